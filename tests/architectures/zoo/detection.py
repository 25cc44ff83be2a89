"""Object detection: a set of queries finds what is in an image."""

from tests.architectures.zoo.architecture import ENCODER_DECODER, Architecture

_STAGES = {
    "embedding_size": 12,
    "hidden_sizes": [12, 20, 28, 36],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}
_HEADS = {"d_model": 64, "num_queries": 7, **ENCODER_DECODER}


def _backbone(*features: str) -> dict:
    return {"model_type": "resnet", **_STAGES, "out_features": list(features)}


DETECTION = (
    Architecture(
        "detr",
        "DetrForObjectDetection",
        "DetrConfig",
        _HEADS | {"backbone_config": _backbone("stage4")},
        "queries attend to a convolutional map",
        kind="image",
        size=64,
    ),
    Architecture(
        "deformable-detr",
        "DeformableDetrForObjectDetection",
        "DeformableDetrConfig",
        _HEADS
        | {
            "backbone_config": _backbone("stage2", "stage3", "stage4"),
            "num_feature_levels": 3,
            "encoder_n_points": 2,
            "decoder_n_points": 2,
        },
        "attention to a few sampled places",
        kind="image",
        size=64,
    ),
    Architecture(
        "rt-detr",
        "RTDetrForObjectDetection",
        "RTDetrConfig",
        {
            "backbone_config": {
                "model_type": "rt_detr_resnet",
                **_STAGES,
                "out_features": ["stage2", "stage3", "stage4"],
            },
            "encoder_hidden_dim": 60,
            "encoder_in_channels": [20, 28, 36],
            "encoder_ffn_dim": 118,
            "encoder_attention_heads": 4,
            "d_model": 60,
            "decoder_in_channels": [60, 60, 60],
            "decoder_layers": 2,
            "decoder_attention_heads": 4,
            "decoder_ffn_dim": 118,
            "decoder_n_points": 2,
            "num_queries": 7,
        },
        "the best places become queries",
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
