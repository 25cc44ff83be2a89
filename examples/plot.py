"""The picture of the demo: embeddings changed, and time, for each arm and padding mode."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from measure import MODES, Result

COLOURS = {"eager": "#9aa5b1", "mkl": "#c9b458", "inductor": "#5b7db1", "ours": "#2a9d6f"}


def save_plot(
    path: Path, results: dict[str, dict[str, Result]], arms: dict[str, str], count: int, machine: str
) -> None:
    shown = [arm for arm in arms if all(arm in by_arm for by_arm in results.values())]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    _bars(left, results, shown, arms, lambda r: r.changed, lambda v: f"{v:.0f}")
    left.set_title(f"embeddings that change a bit, of {count}", loc="left", fontsize=11)
    left.set_ylim(0, count * 1.12)
    if all(r.ratio is not None for by_arm in results.values() for r in by_arm.values()):
        _bars(right, results, shown, arms, lambda r: r.ratio, lambda v: f"{v:.2f}")
        right.axhline(1.0, color="#444", linewidth=0.8, linestyle=":")
        right.set_title("time per sentence in a batch, relative to stock Inductor", loc="left", fontsize=11)
    else:
        _bars(right, results, shown, arms, lambda r: 1000 * r.seconds, lambda v: f"{v:.1f}")
        right.set_title("milliseconds per sentence in a batch", loc="left", fontsize=11)
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside lower center", ncols=len(shown), frameon=False
    )
    figure.suptitle(
        "The same sentence alone and in batches: MiniLM embeddings", fontsize=13, x=0.01, ha="left"
    )
    figure.text(0.99, 0.985, machine, ha="right", va="top", fontsize=7, color="#666")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _bars(axes, results, shown, names, value, label) -> None:
    width = 0.8 / len(shown)
    for i, arm in enumerate(shown):
        places = [m + (i - (len(shown) - 1) / 2) * width for m in range(len(results))]
        values = [value(by_arm[arm]) for by_arm in results.values()]
        bars = axes.bar(places, values, width * 0.92, color=COLOURS[arm], label=names[arm])
        axes.bar_label(bars, [label(v) for v in values], fontsize=8, padding=2, fontweight="bold")
    axes.set_xticks(range(len(results)), ["padded\n" + MODES[mode] for mode in results], fontsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", length=0)
