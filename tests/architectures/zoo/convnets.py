"""Convolutional and hybrid image models, from timm."""

from tests.architectures.zoo.architecture import Architecture

CONVNETS = (
    Architecture("timm resnet18", "resnet18", "", {}, "basic blocks", kind="image", size=33),
    Architecture(
        "timm mobilenetv3",
        "mobilenetv3_small_050",
        "",
        {},
        "hard swish, squeeze and excite",
        kind="image",
        size=33,
    ),
    Architecture(
        "timm efficientnet", "efficientnet_b0", "", {}, "silu, squeeze and excite", kind="image", size=33
    ),
    Architecture(
        "timm regnety",
        "regnety_002",
        "",
        {},
        "grouped convolutions, squeeze and excite",
        kind="image",
        size=33,
    ),
    Architecture(
        "timm densenet",
        "densenet121",
        "",
        {"growth_rate": 8, "block_config": (2, 2)},
        "dense concatenation",
        kind="image",
        size=33,
    ),
    Architecture("timm ghostnet", "ghostnet_050", "", {}, "cheap feature maps", kind="image", size=33),
    Architecture(
        "timm cait",
        "cait_xxs24_224",
        "",
        {"depth": 2, "num_heads": 4, "patch_size": 8, "img_size": 32, "embed_dim": 60},
        "class attention, talking heads",
        kind="image",
        size=32,
    ),
    Architecture("timm repvgg", "repvgg_a0", "", {}, "parallel branches", kind="image", size=33),
    Architecture("timm skresnet", "skresnet18", "", {}, "selective kernels", kind="image", size=33),
)
