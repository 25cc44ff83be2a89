"""A decoder's whole `generate` against stock Inductor, as ratios of interleaved runs in one process.

    python benchmarks/generate.py [--batches 1 8] [--threads 1] [--prompt 128] [--tokens 64] [--dtype float32]

A Llama of 100 million weights (random), greedy, with a static cache; the model's forward is compiled, by
either backend, once for all lengths. The median ratio of the rounds is printed; below 1 ours is faster.
"""

import argparse
import statistics
from collections.abc import Callable
from datetime import date

import torch
from interleaved import processor, seconds
from transformers import LlamaConfig, LlamaForCausalLM

from bi_compile.integrations.transformers import prepare

VOCABULARY = 32_000
BACKENDS = {"inductor": "inductor", "ours": "batch_invariant"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens to generate")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    # Both arms are compiled from one function of transformers, again for each number of threads.
    torch._dynamo.config.recompile_limit = 64
    arms = {arm: _generator(arm, getattr(torch, args.dtype), args.tokens) for arm in BACKENDS}
    print(f"{args.dtype}, torch {torch.__version__}, {processor()}, {date.today()}")
    print(f"{args.prompt} tokens of prompt, {args.tokens} generated")
    print("threads  batch  inductor tok/s  ours tok/s  ours/inductor")
    for threads in args.threads:
        torch.set_num_threads(threads)
        for batch in args.batches:
            prompts = torch.randint(
                VOCABULARY, (batch, args.prompt), generator=torch.Generator().manual_seed(1)
            )
            times = seconds(arms, args.rounds, prompts, warm=1)
            ratio = statistics.median(a / b for a, b in zip(times["ours"], times["inductor"], strict=True))
            speed = {arm: batch * args.tokens / min(took) for arm, took in times.items()}
            print(
                f"{threads:7d}  {batch:5d}  {speed['inductor']:14.1f}  {speed['ours']:10.1f}  {ratio:13.3f}"
            )


def _generator(arm: str, dtype: torch.dtype, tokens: int) -> Callable[[torch.Tensor], torch.Tensor]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval().to(dtype)
    if arm == "ours":
        prepare(model)
    model.compile(backend=BACKENDS[arm], dynamic=True)

    def generate(prompts: torch.Tensor) -> torch.Tensor:
        return model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            cache_implementation="static",
            disable_compile=True,
            pad_token_id=0,
        )

    return generate


if __name__ == "__main__":
    main()
