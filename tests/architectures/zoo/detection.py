"""Object detection."""

from tests.architectures.zoo.architecture import Architecture

DETECTION = (
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
