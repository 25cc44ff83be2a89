"""The picture of the experiment: how the completions of one prompt divide, for each arm and temperature."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {"eager": "#9aa5b1", "inductor": "#5b7db1", "ours": "#2a9d6f"}


def save_plot(path: Path, results: dict, arms: dict[str, str], completions: int, machine: str) -> None:
    """A bar for each arm, cut into its distinct completions, the most frequent first."""
    temperatures = sorted({temperature for _, temperature in results})
    figure, panels = plt.subplots(
        len(temperatures),
        1,
        figsize=(8.5, 0.9 + 2.3 * len(temperatures)),
        layout="constrained",
        squeeze=False,
    )
    for axes, temperature in zip(panels[:, 0], temperatures, strict=True):
        shown = [arm for arm in arms if (arm, temperature) in results][::-1]
        for row, arm in enumerate(shown):
            result = results[arm, temperature]
            counts = sorted(result.completions.values(), reverse=True)
            left = 0
            for count in counts:
                axes.barh(row, count, 0.62, left, color=COLOURS[arm], edgecolor="white", linewidth=0.6)
                left += count
            axes.text(
                completions * 1.01,
                row,
                f"{len(counts)} distinct; {_percent(result.unlike_forward / result.rows)} of logits\n"
                "unlike a full forward's",
                va="center",
                fontsize=8.5,
                fontweight="bold",
            )
        axes.set_yticks(range(len(shown)), [arms[arm] for arm in shown])
        axes.set_xlim(0, completions * 1.5)
        axes.set_xticks([completions * i // 4 for i in range(5)])
        axes.set_title(f"temperature {temperature:g}", loc="left", fontsize=10)
        axes.set_xlabel("completions", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"One prompt completed {completions} times while other requests come and go",
        fontsize=12,
        x=0.01,
        ha="left",
    )
    figure.text(0.99, 0.01, machine, ha="right", va="bottom", fontsize=6.5, color="#666")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _percent(share: float) -> str:
    return "none" if share == 0 else f"{100 * share:.2g} %"
