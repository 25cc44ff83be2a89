"""A random decoder as a program of its own: to paste into an issue, to keep as a regression test."""

from bi_compile.testing.compiling import code_of_run
from bi_compile.testing.decoders import Decoder
from bi_compile.testing.scripts import comparison, told


def decoder_script_of(case: Decoder, *, backend: str, failure: BaseException | None = None) -> str:
    """A program that is also a file of tests: the model, its weights' seed, its prompts, one comparison.

    backend: one of torch.compile, "eager" or "canonical". failure: its text is told at the top.
    """
    family, settings = case.settings
    lines = [
        *told(failure),
        f"# {case!r}",
        "import torch",
        *(["import bi_compile"] if backend == "canonical" else []),
        f"from transformers import AutoConfig, AutoModelForCausalLM, {_CACHES[case.cache][0]}",
        "",
        "SETTINGS = {",
        *(f"    {name!r}: {value!r}," for name, value in settings.items()),
        "}",
        "PROMPTS = [",
        *(f"    {ids.tolist()}," for ids in case.prompts()),
        "]",
        "",
        "",
        "def build():",
        f"    torch.manual_seed({case.seed})",
        f"    config = AutoConfig.for_model({family!r}, **SETTINGS)",
        '    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()',
        "    with torch.no_grad():",
        "        for parameter in model.parameters():",
        "            parameter.add_(torch.randn_like(parameter) * 0.05)",
        f"    return model.to(torch.{case.dtype}).requires_grad_(False)",
        "",
        "",
        "def test_a_prompt_has_the_same_bits_in_the_batch():",
        "    model = build()",
        f"    run = {code_of_run(backend)}",
        "    longest = max(map(len, PROMPTS))",
        "    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in PROMPTS])",
        "    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])",
        "    positions = (mask.cumsum(-1) - 1).clamp(min=0)",
        f"    cache, pieces, begin = {_CACHES[case.cache][1]}, [], 0",
        "    with torch.no_grad():",
        "        alone = [run(input_ids=torch.tensor([p]), use_cache=False).logits[0] for p in PROMPTS]",
        f"        for size in {case.sizes}:",
        "            end = begin + size",
        "            outputs = run(",
        "                input_ids=ids[:, begin:end],",
        "                attention_mask=mask[:, :end],",
        "                position_ids=positions[:, begin:end],",
        "                past_key_values=cache,",
        "                use_cache=True,",
        "            )",
        "            cache, begin = outputs.past_key_values, end",
        "            pieces.append(outputs.logits)",
        "    for logits, row in zip(alone, torch.cat(pieces, 1)):",
        "        row = row[longest - len(logits) :]",
        *comparison("logits", "row", "in pieces"),
        "",
        "",
        'if __name__ == "__main__":',
        "    test_a_prompt_has_the_same_bits_in_the_batch()",
    ]
    return "\n".join(lines) + "\n"


_CACHES = {
    "dynamic": ("DynamicCache", "DynamicCache(config=model.config)"),
    "static": ("StaticCache", "StaticCache(config=model.config, max_cache_len=longest + 3)"),
}
"""What is imported, and the code of a new cache."""
