"""Convolutions on a CUDA device against PyTorch's, which are cuDNN's.

`python benchmarks/gpu_convolution.py [--tiles]`: layers of usual networks, cuDNN's fp32 without TF32,
as CUDA graphs; with --tiles the time of every shipped tile besides. Under three minutes.
"""

import functools
import sys

import torch
from gpu_timing import compare, machine
from triton.testing import do_bench_cudagraph

LAYERS = {
    "ResNet stem": ((3, 224, 224), (64, 3, 7, 7), 2, 3, 1),
    "ResNet 3x3, 64": ((64, 56, 56), (64, 64, 3, 3), 1, 1, 1),
    "ResNet 3x3, 256": ((256, 14, 14), (256, 256, 3, 3), 1, 1, 1),
    "ResNet 3x3, 512": ((512, 7, 7), (512, 512, 3, 3), 1, 1, 1),
    "ResNet 1x1": ((256, 56, 56), (64, 256, 1, 1), 1, 0, 1),
    "ViT patches": ((3, 224, 224), (768, 3, 16, 16), 16, 0, 1),
    "MobileNet depthwise": ((384, 14, 14), (384, 1, 3, 3), 1, 1, 384),
    "EfficientNet depthw.": ((480, 14, 14), (480, 1, 5, 5), 1, 2, 480),
    "Mamba, 4 taps": ((1536, 2048), (1536, 1, 4), 1, 3, 1536),
    "ConvNeXt depthwise": ((192, 28, 28), (192, 1, 7, 7), 1, 3, 192),
    "VAE 3x3": ((128, 128, 128), (128, 128, 3, 3), 1, 1, 1),
    "wav2vec 2": ((512, 3000), (512, 512, 3), 2, 0, 1),
}


@torch.inference_mode()
def main() -> None:
    import bi_compile.backend  # noqa: F401  (defines the ops)
    from bi_compile.templates.convolution import gpu, gpu_tiles
    from bi_compile.templates.gpu import device

    torch.backends.cudnn.allow_tf32 = False
    print(machine())
    print(f"{'layer':20} {'dtype':9} {'batch':>5} {'ours us':>9} {'cuDNN us':>9} {'ratio':>6}")
    for name, (sample, kernel, stride, padding, groups) in LAYERS.items():
        for dtype in (torch.bfloat16, torch.float32):
            for batch in (1, 32):
                x = torch.randn(batch, *sample, device="cuda", dtype=dtype)
                w, bias = (torch.randn(*s, device="cuda", dtype=dtype) for s in (kernel, kernel[:1]))
                dims = len(sample) - 1
                lists = ([stride] * dims, [padding] * dims, [1] * dims)
                arguments = (*lists, False, [0] * dims, groups)
                a, b, ratio = compare(
                    functools.partial(torch.ops.bi_compile.convolution, x, w, bias, *arguments),
                    functools.partial(torch.convolution, x, w, bias, *arguments),
                )
                short = str(dtype).removeprefix("torch.")
                print(f"{name:20} {short:9} {batch:5} {a:9.1f} {b:9.1f} {ratio:6.2f}", flush=True)
                if "--tiles" not in sys.argv or groups > 1 or kernel[2:] == (1, 1):
                    continue
                for shipped in gpu_tiles.shipped(device.processor(0), dtype):
                    tile = gpu_tiles.whole(shipped, dtype, kernel[1])
                    call = functools.partial(gpu.convolution, x, w, bias, *arguments, tile=tile)
                    print(f"    {1e3 * do_bench_cudagraph(call, rep=5):9.1f}  {tuple(tile)}", flush=True)


if __name__ == "__main__":
    main()
