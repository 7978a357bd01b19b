"""What `make demo` shows when its runs are through: python tools/demo.py [--results-dir demo]

Reads the logs of the demo (handwritten digits of scikit-learn; the four functions of Table I) and
results/paper.csv. Writes demo/demo.png and prints the same numbers: the FC head against the Spinal
head, on the digits also the FC head without its dropout, and the paper's numbers beside them.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FUNCTIONS = {
    "sum": "sum",
    "sinsum": "sine of sum",
    "product": "product",
    "sinproduct": "sine of product",
}
NAMES = {"fc": "FC", "spinal": "Spinal"}
COLOURS = {"fc": "#4477aa", "spinal": "#ee6677"}
DIGITS = ""  # in place of a function
BARE = "fc without dropout"  # in place of a head
LOOKS = {  # of the digits: heads in the order of the picture
    "fc": ("FC 50,\ndropout 0.5", COLOURS["fc"]),
    BARE: ("FC 50,\nno dropout", "#66ccee"),
    "spinal": ("Spinal 6 × 8,\nno dropout", COLOURS["spinal"]),
}


def read_logs(folder: Path) -> dict[tuple[str, str], dict[int, float]]:
    """The reported number by seed, for each (function or DIGITS, head).

    Accuracy in per cent, or 1e3 times the smallest mean squared error of a last batch.
    """
    found = defaultdict(dict)
    for path in sorted(folder.glob("logs/*/*.jsonl")):
        lines = path.read_text(encoding="utf-8").splitlines()
        start, end = json.loads(lines[0]), json.loads(lines[-1])
        settings = start["settings"]
        head = settings["head"]
        if start["script"] == "optdigits":
            key, value = DIGITS, end["selected_test_accuracy_pct"]
            if head == "fc" and settings["fc_dropout"] == 0:
                head = BARE
        elif start["script"] == "synthetic_regression":
            key, value = settings["function"], 1e3 * end["min_last_batch_mse_200"]
        else:
            continue
        found[key, head][start["seed"]] = value
    return found


def read_paper(path: Path) -> dict[tuple[str, str], float]:
    """Table I after 200 epochs by (function, head); the small CNN on MNIST by (DIGITS, head)."""
    paper = {}
    with path.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            if row["script"] == "synthetic_regression" and row["epochs"] == "200":
                paper[row["function"], row["head"]] = float(row["value"])
            average = (row["script"], row["network"], row["metric"]) == (
                "mnist",
                "cnn",
                "accuracy_avg_pct",
            )
            if average and row["width"] != "10":
                paper[DIGITS, row["head"]] = float(row["value"])
    return paper


def draw_digits(axes, found: dict) -> None:
    """A line through the heads for each seed."""
    for seed in found[DIGITS, "fc"]:
        values = [found[DIGITS, head][seed] for head in LOOKS]
        axes.plot(range(len(LOOKS)), values, color="0.7", zorder=1)
    for x, (head, (_, colour)) in enumerate(LOOKS.items()):
        values = found[DIGITS, head].values()
        axes.scatter([x] * len(values), values, color=colour, zorder=2)
    axes.set(xlim=(-0.5, len(LOOKS) - 0.5), ylabel="test accuracy, %")
    axes.set_title("Handwritten digits, one line a seed")
    axes.set_xticks(range(len(LOOKS)), [name for name, _ in LOOKS.values()])


def draw_functions(axes, found: dict, paper: dict) -> None:
    """Both heads on the functions of Table I, and the paper's numbers as dashes."""
    for x, function in enumerate(FUNCTIONS):
        for shift, (head, name) in zip((-0.15, 0.15), NAMES.items(), strict=True):
            values = list(found[function, head].values())
            look = {"color": COLOURS[head]}
            ours, theirs = dict(look), look | {"marker": "_", "s": 300}
            if x == 0:  # each kind once in the legend
                ours["label"], theirs["label"] = f"{name}, here", f"{name}, paper"
            axes.scatter([x + shift] * len(values), values, **ours)
            axes.scatter(x + shift, paper[function, head], **theirs)
    axes.set(ylabel="smallest loss of a last batch, × 1e-3")
    axes.set_title("Table I, after 200 epochs (lower is better)")
    axes.set_ylim(bottom=0)
    axes.set_xticks(range(len(FUNCTIONS)), FUNCTIONS.values())
    axes.legend(frameon=False, fontsize=8)


def draw(found: dict, paper: dict, path: Path) -> None:
    """Writes the picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    layout = {"figsize": (9, 3.8), "width_ratios": (2, 3), "layout": "constrained"}
    figure, (left, right) = pyplot.subplots(1, 2, **layout)
    draw_digits(left, found)
    draw_functions(right, found, paper)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def range_text(gains: list[float]) -> str:
    """Mean and range of differences."""
    middle = f"{statistics.mean(gains):+.2f} points"
    return f"{middle} ({min(gains):+.2f} to {max(gains):+.2f} by seed)"


def digits_text(found: dict, paper: dict) -> list[str]:
    """The digits in words."""
    fc, bare, spinal = (found[DIGITS, head] for head in LOOKS)
    ours = [statistics.mean(values.values()) for values in (fc, bare, spinal)]
    released, left = ([spinal[seed] - other[seed] for seed in fc] for other in (fc, bare))
    theirs = [paper[DIGITS, head] for head in NAMES]
    return [
        "1. Small CNN on scikit-learn's 1,797 handwritten digits, "
        f"{len(fc)} seeds. Not a row of the paper.",
        f"   FC {ours[0]:.2f} %, FC without its dropout {ours[1]:.2f} %, Spinal {ours[2]:.2f} %.",
        f"   Spinal minus FC as released, where FC alone has dropout: {range_text(released)}",
        f"   Spinal minus FC, no dropout in either head:              {range_text(left)}",
        f"   The paper, the same network on MNIST: FC {theirs[0]:.2f} %, Spinal {theirs[1]:.2f} %, "
        f"{theirs[1] - theirs[0]:+.2f} points.",
    ]


def functions_text(found: dict, paper: dict) -> list[str]:
    """Table I in words."""
    seeds = len(found["sum", "fc"])
    line = "   {:<16} {:>10} {:>7} {:>15} {:>7}   {}"
    rows = [
        "2. Table I of the paper, its own measure (smallest loss of a last mini-batch in 200",
        f"   epochs, x 1e-3); here the mean of {seeds} seeds instead of one run:",
        "",
        line.format("function", "FC: paper", "here", "Spinal: paper", "here", "lower: paper, here"),
    ]
    for function, name in FUNCTIONS.items():
        ours = [statistics.mean(found[function, head].values()) for head in NAMES]
        theirs = [paper[function, head] for head in NAMES]
        lower = ["FC" if pair[0] < pair[1] else "Spinal" for pair in (theirs, ours)]
        numbers = [f"{x:.3f}" for x in (theirs[0], ours[0], theirs[1], ours[1])]
        rows.append(line.format(name, *numbers, ", ".join(lower)))
    return rows


def text(found: dict, paper: dict) -> str:
    """The picture in words."""
    rows = ["Does a SpinalNet head beat the fully connected (FC) head that it replaces?", ""]
    rows += [*digits_text(found, paper), "", *functions_text(found, paper), ""]
    rows += [
        "A few seeds show how the scripts work, and no more. What ten seeds a row say, MNIST and",
        "Fashion-MNIST among them, and which choices of the published scripts decide it:",
        "results/reference/README.md.",
    ]
    return "\n".join(rows)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    help_text = "where the logs of the demo are; default: demo"
    parser.add_argument("--results-dir", type=Path, default=Path("demo"), help=help_text)
    folder = parser.parse_args(argv).results_dir
    found, paper = read_logs(folder), read_paper(ROOT / "results/paper.csv")
    missing = [key for key in [*paper, (DIGITS, BARE)] if not found[key]]
    if missing:
        name = " ".join(missing[0]).strip()
        print(f"error: {folder} has no finished run of {name}: make demo", file=sys.stderr)
        return 2
    picture = folder / "demo.png"
    draw(found, paper, picture)
    print(f"\n{text(found, paper)}\nThe picture: {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
