"""Plots of what the GPU benchmarks print: time of ours over that of stock, a dot for each line of a table.

    python benchmarks/gpu_norms.py | tee out/gpu_norms.txt
    python benchmarks/plot_gpu.py out/gpu_norms.txt ... [--matmul out/gpu_matmul.json] [--to docs]

A line of a table is a label, microseconds of ours, of stock, and their ratio. Each file gives a picture of
its name. --matmul takes the JSON file of `gpu_matmul.py`: a line of each shape over M, and the roofline.
"""

import argparse
import json
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LINE = re.compile(r"^(\S.*?)((?:\s+[\d.]+){3,})$")
FASTER, SLOWER = "#1b7837", "#b35806"


def table(text: str) -> tuple[str, list[tuple[str, float]]]:
    """The machine, and labels with ours / stock."""
    machine, _, *lines = text.splitlines()
    found = [(m[1], m[2].split()) for line in lines if (m := LINE.match(line))]
    return machine, [(" ".join([name, *numbers[:-3]]), float(numbers[-1])) for name, numbers in found]


def dots(machine: str, rows: list[tuple[str, float]], to: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 1 + 0.17 * len(rows)), layout="constrained")
    places, ratios = range(len(rows)), [ratio for _, ratio in rows]
    colors = [FASTER if ratio <= 1 else SLOWER for ratio in ratios]
    axes.axvline(1, color="grey", linewidth=1)
    axes.hlines(places, 1, ratios, colors=colors, linewidth=1)
    axes.scatter(ratios, places, c=colors, s=18, zorder=2)
    axes.set_yticks(places, [name for name, _ in rows], fontsize=7)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlim(0, max(2.0, *ratios) + 0.1)
    axes.set_xlabel("time of ours / time of stock (left of 1 ours is faster)")
    axes.set_title(f"{to.stem}: {machine}", fontsize=9)
    figure.savefig(to, dpi=110)


def matmul(report: dict, to: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for part in axes:
        part.set_prop_cycle(color=plt.get_cmap("tab20").colors)
    for n, k in sorted({(cell["n"], cell["k"]) for cell in report["cells"]}):
        cells = [cell for cell in report["cells"] if (cell["n"], cell["k"]) == (n, k)]
        m = [cell["m"] for cell in cells]
        axes[0].plot(m, [cell["ratio"] for cell in cells], marker=".", label=f"{n} x {k}")
        axes[1].plot(m, [cell["roofline_us"] / cell["ours_us"] for cell in cells], marker=".")
    for part, name in zip(axes, ("speed of ours / cuBLAS", "roofline / time of ours"), strict=True):
        part.axhline(1, color="grey", linewidth=1)
        part.set_xscale("log", base=2)
        part.set_xlabel("M")
        part.set_ylabel(name)
        part.set_ylim(0)
    axes[0].legend(title="N x K", fontsize=7, ncols=2, loc="lower right")
    figure.suptitle(report["machine"], fontsize=9)
    figure.savefig(to, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", type=Path, nargs="*")
    parser.add_argument("--matmul", type=Path)
    parser.add_argument("--to", type=Path, default=Path("docs"))
    options = parser.parse_args()
    for path in options.tables:
        dots(*table(path.read_text()), options.to / f"{path.stem}.png")
    if options.matmul:
        matmul(json.loads(options.matmul.read_text()), options.to / "gpu_matmul.png")


if __name__ == "__main__":
    main()
