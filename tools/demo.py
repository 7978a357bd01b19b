"""What `make demo` shows when its runs are through: python tools/demo.py [--results-dir demo]

Reads the logs of the demo (handwritten digits of scikit-learn; the four functions of Table I) and results/paper.csv.
Writes demo/demo.png and prints the same numbers, the FC head against the Spinal head and the paper's numbers beside
them.
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
FUNCTIONS = {"sum": "sum", "sinsum": "sine of sum", "product": "product", "sinproduct": "sine of product"}
NAMES = {"fc": "FC", "spinal": "Spinal"}
COLOURS = {"fc": "#4477aa", "spinal": "#ee6677"}


def read_logs(folder: Path) -> dict[tuple, dict[int, float]]:
    """The reported number by seed, for each (function or empty, head). Accuracy in %, or the minimum MSE x 1e-3."""
    found = defaultdict(dict)
    for path in sorted(folder.glob("logs/*/*.jsonl")):
        start, *_, end = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
        settings = start["settings"]
        if start["script"] == "optdigits":
            found["", settings["head"]][start["seed"]] = end["selected_test_accuracy_pct"]
        elif start["script"] == "synthetic_regression":
            found[settings["function"], settings["head"]][start["seed"]] = 1e3 * end["min_last_batch_mse_200"]
    return found


def read_paper(path: Path) -> dict[tuple, float]:
    """Table I after 200 epochs by (function, head); and the average of the small CNN on MNIST by ("", head)."""
    paper = {}
    with path.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            if row["script"] == "synthetic_regression" and row["epochs"] == "200":
                paper[row["function"], row["head"]] = float(row["value"])
            if (row["script"], row["network"], row["metric"]) == ("mnist", "cnn", "accuracy_avg_pct") and row[
                "width"
            ] != "10":
                paper["", row["head"]] = float(row["value"])
    return paper


def draw(found: dict, paper: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.8), width_ratios=(1, 2), layout="constrained")
    for seed in found["", "fc"]:
        left.plot([0, 1], [found["", "fc"][seed], found["", "spinal"][seed]], color="0.7", zorder=1)
    for x, head in enumerate(NAMES):
        left.scatter([x] * len(found["", head]), found["", head].values(), color=COLOURS[head], zorder=2)
    left.set(xlim=(-0.5, 1.5), ylabel="test accuracy, %", title="Handwritten digits, one line a seed")
    left.set_xticks([0, 1], ["FC 50", "Spinal 6 × 8"])
    for x, function in enumerate(FUNCTIONS):
        for shift, (head, name) in zip((-0.15, 0.15), NAMES.items()):
            values, label = list(found[function, head].values()), "" if x else name
            right.scatter([x + shift] * len(values), values, color=COLOURS[head], label=label and f"{label}, here")
            line = {"marker": "_", "s": 300, "color": COLOURS[head], "label": label and f"{label}, paper"}
            right.scatter(x + shift, paper[function, head], **line)
    right.set(ylabel="smallest loss of a last batch, × 1e-3", title="Table I, after 200 epochs (lower is better)")
    right.set_ylim(bottom=0)
    right.set_xticks(range(len(FUNCTIONS)), FUNCTIONS.values())
    right.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def text(found: dict, paper: dict) -> str:
    """The same in words."""
    fc, spinal = (found["", head] for head in ("fc", "spinal"))
    differences = [spinal[seed] - fc[seed] for seed in fc]
    rows = [
        "Does a SpinalNet head beat the fully connected (FC) head that it replaces?",
        "",
        f"1. Small CNN on scikit-learn's 1,797 handwritten digits, {len(fc)} seeds. Not a row of the paper.",
        f"   FC {statistics.mean(fc.values()):.2f} %, Spinal {statistics.mean(spinal.values()):.2f} %: Spinal minus FC "
        f"{statistics.mean(differences):+.2f} points, {min(differences):+.2f} to {max(differences):+.2f} by seed.",
        f"   The paper, the same network on MNIST: FC {paper['', 'fc']:.2f} %, Spinal {paper['', 'spinal']:.2f} %, "
        f"{paper['', 'spinal'] - paper['', 'fc']:+.2f} points.",
        "",
        "2. Table I of the paper, its own measure (smallest loss of a last mini-batch in 200 epochs, x 1e-3);",
        f"   here the mean of {len(found['sum', 'fc'])} seeds instead of one run:",
        "",
        f"   {'function':<16} {'FC: paper':>10} {'here':>7} {'Spinal: paper':>15} {'here':>7}   lower: paper, here",
    ]
    for function, name in FUNCTIONS.items():
        ours = [statistics.mean(found[function, head].values()) for head in NAMES]
        theirs = [paper[function, head] for head in NAMES]
        lower = ["FC" if pair[0] < pair[1] else "Spinal" for pair in (theirs, ours)]
        rows.append(
            f"   {name:<16} {theirs[0]:>10.3f} {ours[0]:>7.3f} {theirs[1]:>15.3f} {ours[1]:>7.3f}   {', '.join(lower)}"
        )
    rows += [
        "",
        "A few seeds show how the scripts work, and no more. What ten seeds a row say, MNIST and Fashion-MNIST among",
        "them, and which choices of the published scripts decide it: results/reference/README.md.",
    ]
    return "\n".join(rows)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--results-dir", type=Path, default=Path("demo"), help="where the logs of the demo are (default: demo)"
    )
    options = parser.parse_args(argv)
    found, paper = read_logs(options.results_dir), read_paper(ROOT / "results/paper.csv")
    if missing := [key for key in paper if not found[key]]:
        print(f"error: {options.results_dir} has no finished run of {missing[0]}: make demo", file=sys.stderr)
        return 2
    picture = options.results_dir / "demo.png"
    draw(found, paper, picture)
    print(f"\n{text(found, paper)}\nThe picture: {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
