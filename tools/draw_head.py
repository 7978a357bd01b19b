"""Draw the two heads that this collection compares: results/reference/figures/heads.png and .svg.

    python tools/draw_head.py [--output FOLDER]

A drawing, not a result: it reads no log. The sizes are those of the small CNN (paper, section III).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

FOLDER = Path(__file__).resolve().parent.parent / "results" / "reference" / "figures"
INPUT, HIDDEN, OUTPUT = "#d9e6f2", "#f6dfc3", "#dcebd3"
A, B = "#2f6690", "#b5541c"  # of the arrows from the two halves


def box(axes, x: float, y: float, width: float, height: float, text: str, colour: str) -> None:
    """A box whose lower left corner is (x, y), with a text in its middle."""
    style = "round,pad=0,rounding_size=0.08"
    patch = FancyBboxPatch((x, y), width, height, boxstyle=style, fc=colour, ec="#555555", lw=1)
    axes.add_patch(patch)
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=10)


def arrow(axes, start: tuple, end: tuple, colour: str = "#555555") -> None:
    """An arrow between two points."""
    patch = FancyArrowPatch(start, end, arrowstyle="-|>", shrinkA=0, shrinkB=0, color=colour)
    patch.set_mutation_scale(11)
    patch.set_linewidth(1.3)
    axes.add_patch(patch)


def prepare(axes, title: str, width: float) -> None:
    """A drawing board `width` wide and 4.2 high."""
    axes.set_xlim(0, width)
    axes.set_ylim(0, 4.2)
    axes.set_aspect("equal")
    axes.axis("off")
    axes.set_title(title, fontsize=11, loc="left")


def draw_fc(axes) -> None:
    """The default head: one hidden layer that sees all features."""
    prepare(axes, "FC head: one wide hidden layer", 4.6)
    box(axes, 0.1, 0.9, 0.9, 2.4, "320\nfeatures", INPUT)
    box(axes, 1.75, 1.35, 0.9, 1.5, "hidden\n50", HIDDEN)
    box(axes, 3.4, 1.6, 0.9, 1.0, "output\n10", OUTPUT)
    arrow(axes, (1.0, 2.1), (1.75, 2.1))
    arrow(axes, (2.65, 2.1), (3.4, 2.1))
    axes.text(3.02, 2.22, "dropout\n0.5", ha="center", va="bottom", fontsize=8)


def draw_spinal(axes) -> None:
    """The Spinal head: a chain of small layers, each of which sees one half of the features."""
    prepare(axes, "SpinalNet head: a chain of six small hidden layers", 9.2)
    box(axes, 0.1, 2.75, 1.0, 1.1, "half A\n160", INPUT)
    box(axes, 0.1, 0.35, 1.0, 1.1, "half B\n160", INPUT)
    left, step, size = 1.85, 0.95, 0.62
    joined = 4.02
    axes.plot([left + size / 2, 7.95], [joined, joined], color="#888888", lw=1.3)
    for k in range(6):
        x = left + k * step
        box(axes, x, 1.8, size, 0.62, "8", HIDDEN)
        arrow(axes, (x + size * 0.75, 2.42), (x + size * 0.75, joined), "#888888")
        if k:
            arrow(axes, (x - step + size, 2.11), (x, 2.11))
        foot = x + size * 0.3
        if k % 2 == 0:
            axes.plot([1.1, foot], [3.3, 3.3], color=A, lw=1.3)
            arrow(axes, (foot, 3.3), (foot, 2.42), A)
        else:
            axes.plot([1.1, foot], [0.9, 0.9], color=B, lw=1.3)
            arrow(axes, (foot, 0.9), (foot, 1.8), B)
    box(axes, 8.15, 1.6, 0.9, 1.0, "output\n10", OUTPUT)
    axes.plot([7.95, 8.6], [joined, joined], color="#888888", lw=1.3)
    arrow(axes, (8.6, joined), (8.6, 2.6), "#888888")
    axes.text(7.9, 3.9, "all 48\noutputs", ha="center", va="top", fontsize=9)
    axes.text(4.6, 0.05, "each layer also sees the one before it", ha="center", fontsize=9)


def main(argv: list[str] | None = None) -> int:
    """Writes both files. Exit status 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=FOLDER, help="default: %(default)s")
    folder = parser.parse_args(argv).output
    folder.mkdir(parents=True, exist_ok=True)
    matplotlib.rcParams["svg.hashsalt"] = "heads"  # the same file each time
    ratios = {"width_ratios": [4.6, 9.2]}
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.3), gridspec_kw=ratios)
    draw_fc(left)
    draw_spinal(right)
    figure.tight_layout()
    figure.savefig(folder / "heads.png", dpi=130, bbox_inches="tight", metadata={"Software": None})
    figure.savefig(folder / "heads.svg", bbox_inches="tight", metadata={"Date": None})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
