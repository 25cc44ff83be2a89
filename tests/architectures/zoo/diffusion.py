"""Denoisers of images and video, and their autoencoder, from diffusers."""

import torch

from tests.architectures.zoo.architecture import Architecture

_UNET = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "block_out_channels": (20, 40),
    "norm_num_groups": 5,
}
_TRANSFORMER = {"num_attention_heads": 3, "attention_head_dim": 20, "in_channels": 4, "out_channels": 4}
# Before upsampling: contiguous() of 64 images and more, or of more elements than int32 counts.
_ASKS = ("B >= 64", "5120*B > 2147483648", "6480*B > 2147483648")

DIFFUSION = (
    Architecture(
        "unet-2d",
        "UNet2DModel",
        "",
        _UNET
        | {
            "attention_head_dim": 10,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        },
        "resampling, group norms, time embedding",
        kind="diffusion",
        size=16,
        package="diffusers",
        asks=_ASKS,
    ),
    Architecture(
        "unet-2d-condition",
        "UNet2DConditionModel",
        "",
        _UNET
        | {
            "attention_head_dim": 2,
            "cross_attention_dim": 32,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        },
        "cross attention (Stable Diffusion)",
        kind="prompted",
        size=16,
        package="diffusers",
        asks=_ASKS,
    ),
    Architecture(
        "autoencoder-kl",
        "AutoencoderKL",
        "",
        {
            "layers_per_block": 1,
            "block_out_channels": (20, 40),
            "norm_num_groups": 5,
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
        },
        "to latents and back",
        kind="latents",
        package="diffusers",
        asks=_ASKS,
    ),
    Architecture(
        "dit",
        "DiTTransformer2DModel",
        "",
        _TRANSFORMER | {"num_layers": 2, "sample_size": 10, "num_embeds_ada_norm": 10},
        "norms modulated by class and time",
        kind="classes",
        size=10,
        package="diffusers",
    ),
    Architecture(
        "pixart",
        "PixArtTransformer2DModel",
        "",
        _TRANSFORMER
        | {
            "num_layers": 2,
            "sample_size": 10,
            "caption_channels": 32,
            "cross_attention_dim": 60,
            "use_additional_conditions": False,
        },
        "cross attention, one modulation for all layers",
        kind="captioned",
        extra={"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
        size=10,
        package="diffusers",
    ),
    Architecture(
        "sana",
        "SanaTransformer2DModel",
        "",
        _TRANSFORMER
        | {
            "num_layers": 2,
            "num_cross_attention_heads": 3,
            "cross_attention_head_dim": 20,
            "cross_attention_dim": 60,
            "caption_channels": 32,
            "sample_size": 10,
        },
        "linear attention",
        kind="captioned",
        size=10,
        package="diffusers",
    ),
    Architecture(
        "sd3",
        "SD3Transformer2DModel",
        "",
        _TRANSFORMER
        | {
            "num_layers": 2,
            "sample_size": 10,
            "patch_size": 2,
            "caption_projection_dim": 60,
            "joint_attention_dim": 32,
            "pooled_projection_dim": 32,
        },
        "joint attention of image and text",
        kind="pooled",
        size=10,
        package="diffusers",
    ),
    Architecture(
        "flux",
        "FluxTransformer2DModel",
        "",
        {
            "patch_size": 1,
            "in_channels": 4,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 20,
            "num_attention_heads": 3,
            "joint_attention_dim": 32,
            "pooled_projection_dim": 32,
            "axes_dims_rope": (4, 8, 8),
        },
        "joint and single streams, rotary places in three axes",
        kind="stream",
        extra={"img_ids": torch.arange(75.0).view(25, 3) % 5, "txt_ids": torch.zeros(7, 3)},
        size=25,
        package="diffusers",
    ),
    Architecture(
        "wan",
        "WanTransformer3DModel",
        "",
        _TRANSFORMER
        | {
            "patch_size": (1, 2, 2),
            "text_dim": 32,
            "freq_dim": 30,
            "ffn_dim": 118,
            "num_layers": 2,
            "rope_max_seq_len": 32,
        },
        "video, rotary places in fp64",
        kind="clip",
        size=6,
        package="diffusers",
    ),
)
