"""Object detection."""

from tests.architectures.zoo.architecture import Architecture

_STAGES = {
    "embedding_size": 12,
    "hidden_sizes": [12, 20, 28, 36],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}

DETECTION = (
    Architecture(
        "detr",
        "DetrForObjectDetection",
        "DetrConfig",
        {
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 118,
            "decoder_ffn_dim": 118,
            "num_queries": 7,
            "backbone_config": {"model_type": "resnet", **_STAGES, "out_features": ["stage4"]},
        },
        "queries attend to a convolutional map",
        kind="image",
        size=64,
    ),
    Architecture(
        "yolos",
        "YolosForObjectDetection",
        "YolosConfig",
        {
            "hidden_size": 60,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 118,
            "image_size": [64, 64],
            "patch_size": 16,
            "num_detection_tokens": 7,
        },
        "detection tokens beside patches",
        kind="image",
        size=64,
    ),
)
