"""Random models one after the other, as long as one likes: counts, failures, and programs that show them.

    python -m bi_compile.testing.campaign --models 20000 --seed 0 --folder out/campaign

The same command goes on where it was stopped. A model is a function of the seed and its number.
"""

import argparse
import json
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bi_compile.testing.checking import check_model
from bi_compile.testing.grammar import OPS
from bi_compile.testing.random_models import RandomModel
from bi_compile.testing.shrinking import smallest

_RESET_AFTER = 50
"""Models after which compiled graphs are forgotten: they would fill the memory."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign; the exit status is 1 if any model failed."""
    parser = argparse.ArgumentParser(prog="python -m bi_compile.testing.campaign", description=__doc__)
    parser.add_argument("--models", type=int, default=100, help="number i is the same model in a longer run")
    parser.add_argument("--steps", type=int, default=10, help="ops drawn for a model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", default="batch_invariant", help='of torch.compile, or "eager"')
    parser.add_argument(
        "--folder", type=Path, default=Path("out/campaign"), help="results and found failures"
    )
    parser.add_argument("--shrink", type=int, default=60, help="tries to make a failing model smaller")
    options = parser.parse_args(arguments)
    logging.getLogger("torch").setLevel(logging.ERROR)
    options.folder.mkdir(parents=True, exist_ok=True)
    results = options.folder / f"{options.backend}-{options.seed}-{options.steps}.jsonl"
    done = _finished(results)
    with results.open("a") as file:
        for number in range(options.models):
            if number in done:
                continue
            _note(file, {"number": number})
            done[number] = result = _one(options, number)
            _note(file, result)
            if result["what"] == "failed":
                print(f"model {number} failed: {result['why']}\n  {result['script']}", flush=True)
            if number % _RESET_AFTER == 0:
                torch.compiler.reset()
    print(summary([done[number] for number in sorted(done) if number < options.models]))
    return int(any(result["what"] == "failed" for result in done.values()))


def settings_of(number: int) -> dict[str, bool]:
    """Every fourth model is checked with its gradient, every fifth with a graph of its own for one sample."""
    return {"gradients": number % 4 == 3, "alone": number % 5 == 4}


def _one(options: argparse.Namespace, number: int) -> dict[str, Any]:
    model = RandomModel.drawn(random.Random(f"{options.seed} {number}"), steps=options.steps)
    start, how = time.process_time(), {"backend": options.backend, **settings_of(number)}
    result: dict[str, Any] = {"number": number, "ops": [name for name, _ in model.steps]}
    try:
        outcome = check_model(model, **how)
        result |= {"what": outcome.what, "why": outcome.why}
    except Exception as error:
        kind = type(error)

        def fails(model: RandomModel) -> bool:
            try:
                check_model(model, **how)
            except kind:
                return True
            except Exception:
                return False
            return False

        small = smallest(model, fails, tries=options.shrink)
        script = options.folder / f"test_{options.backend}_{options.seed}_{number}.py"
        try:
            check_model(small, **how)
        except Exception as again:
            error = again
        script.write_text("\n".join(getattr(error, "__notes__", [])))
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        result |= {"what": "failed", "why": f"{kind.__name__}: {first}", "script": str(script)}
    return result | {"seconds": round(time.process_time() - start, 2)}


def _note(file: Any, line: dict[str, Any]) -> None:
    file.write(json.dumps(line) + "\n")
    file.flush()


def _finished(results: Path) -> dict[int, dict[str, Any]]:
    """Number -> result. A number that was begun and not finished ended the process: that is a failure."""
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = {line["number"]: line for line in lines if "what" in line}
    for line in lines[:-1]:
        crash = {**line, "ops": [], "what": "failed", "why": "the process ended", "script": "", "seconds": 0}
        done.setdefault(line["number"], crash)
    return done


def summary(results: Sequence[dict[str, Any]]) -> str:
    """Counts by outcome, refused ops, ops that no model held, and failures."""
    counts = Counter(result["what"] for result in results)
    lines = [f"{len(results)} models: " + ", ".join(f"{n} {what}" for what, n in counts.most_common())]
    for what in ("refused", "invalid"):
        reasons = Counter(result["why"] for result in results if result["what"] == what)
        lines += [f"  {n} {what}: {why}" for why, n in reasons.most_common()]
    used = Counter(name for result in results for name in set(result["ops"]))
    lines.append(f"  {len(used)} of {len(OPS)} ops, the rarest in {min(used.values(), default=0)} models")
    lines += [f"  failed: {r['why']} ({r['script']})" for r in results if r["what"] == "failed"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
