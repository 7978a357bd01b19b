"""Figures that show all rows at a glance: differences of the heads, accuracies, cost, what selection is worth."""
from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from report.cells import Cells, head_name
from report.comparisons import LABELS, Comparison, comparisons, reading_order
from report.facts import NETWORKS
from report.figures import cell_order
from report.paper import PaperRow
from report.statistics import mean_of, std_of

# Okabe-Ito colours and shapes: the variants stay apart without colour
LOOKS = {"published": ("#D55E00", "o"), "corrected": ("#0072B2", "s"), "corrected-nodropout": ("#009E73", "D")}
PAPER_LOOK = {"color": "black", "marker": "x", "linestyle": "none", "markersize": 5}
STYLE = {"svg.hashsalt": "spinalnet", "font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
         "grid.alpha": 0.3, "axes.axisbelow": True}


def save(figure: Any, folder: Path, name: str) -> None:
    """SVG and PNG without anything that changes from day to day."""
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
    figure.savefig(folder / f"{name}.png", dpi=150, metadata={"Software": None})


def forest(pyplot: Any, items: list[Comparison]) -> Any:
    """Spinal minus FC of every head, with 95 % intervals, under all variants; one line a head."""
    items = [item for item in items if item.variant in LOOKS and item.script != "synthetic_regression"]
    lines: dict[tuple, list[Comparison]] = defaultdict(list)
    for item in sorted(items, key=reading_order):
        lines[item.dataset, item.network, item.head].append(item)
    if not lines:
        return None
    figure, axes = pyplot.subplots(figsize=(6.3, 0.9 + 0.38 * len(lines)), layout="constrained")
    labelled = set()
    for place, ((dataset, network, head), members) in enumerate(lines.items()):
        if place % 2 == 0:
            axes.axhspan(place - 0.5, place + 0.5, color="#f2f2f2", zorder=0)
        for item in members:
            colour, marker = LOOKS[item.variant]
            middle, offset = item.difference, 0.24 * (list(LOOKS).index(item.variant) - 1)
            label = LABELS[item.variant] if item.variant not in labelled else None
            labelled.add(item.variant)
            error = None if middle.low is None else [[middle.mean - middle.low], [middle.high - middle.mean]]
            axes.errorbar(middle.mean, place + offset, xerr=error, color=colour, marker=marker, markersize=4, capsize=2,
                          linewidth=1, label=label, markerfacecolor=colour if item.row else "white")
        if (printed := members[0].paper_difference) is not None:
            axes.plot(printed, place, label=None if "paper" in labelled else "paper", **PAPER_LOOK)
            labelled.add("paper")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(lines)), [f"{d}, {n}, {h}" for d, n, h in lines])
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("Spinal minus FC, points of test accuracy (right: Spinal better)")
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=7)
    return figure


def accuracies(pyplot: Any, cells: Cells) -> Any:
    """Mean accuracy of each row with runs and the paper's; bars begin above zero, where the differences can be seen."""
    rows = sorted({row for (row, _), logs in cells.runs.items() if row.table != "I" and logs}, key=cell_order)
    sets = list(dict.fromkeys((row.dataset, row.network) for row in rows))
    if not sets:
        return None
    columns = min(4, len(sets))
    figure, grid = pyplot.subplots(math.ceil(len(sets) / columns), columns, squeeze=False, layout="constrained",
                                   figsize=(max(3.1 * columns, 4.5), 2.9 * math.ceil(len(sets) / columns)))
    for axes in grid.flat[len(sets):]:
        axes.set_visible(False)
    for axes, (dataset, network) in zip(grid.flat, sets):
        here, ends = [row for row in rows if (row.dataset, row.network) == (dataset, network)], []
        for place, row in enumerate(here):
            for shift, (variant, (colour, _)) in zip((-0.27, 0, 0.27), LOOKS.items()):
                values = [log.score for log in cells.of(row, variant)]
                if not values:
                    continue
                spread = std_of(values) or 0.0
                ends += [mean_of(values) - spread, mean_of(values) + spread]
                axes.bar(place + shift, mean_of(values), 0.25, color=colour, yerr=spread, capsize=2, alpha=0.85,
                         hatch={"published": "", "corrected": "//", "corrected-nodropout": ".."}[variant], edgecolor="white",
                         label=LABELS[variant], error_kw={"linewidth": 0.8})
            if printed := row.metric("accuracy_avg_pct", "accuracy_pct"):
                ends.append(float(printed))
                axes.plot(place - 0.27, float(printed), label="paper, average (v2: its one number)", **PAPER_LOOK)
        height = max(ends) - min(ends)
        axes.set_ylim(min(ends) - 0.3 * height - 0.01, min(100.0, max(ends) + 0.08 * height + 0.01))
        axes.set_xticks(range(len(here)), [head_name(row).replace("Spinal ", "Spinal\n") for row in here])
        axes.grid(axis="x", visible=False)
        axes.set_title(f"{dataset}, {NETWORKS.get(network, network)}", fontsize=8)
        axes.set_ylabel("test accuracy, %, mean ± std")
    handles = {text: handle for axes in grid.flat for handle, text in zip(*axes.get_legend_handles_labels())}
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=4, frameon=False, fontsize=7)
    return figure


def cost(pyplot: Any, cells: Cells) -> Any:
    """Accuracy against the head's multiplications: up and to the left is better."""
    rows = sorted({row for (row, _), logs in cells.runs.items() if row.table != "I" and logs}, key=cell_order)
    sets = list(dict.fromkeys((row.dataset, row.network) for row in rows))
    if not sets:
        return None
    columns = min(4, len(sets))
    figure, grid = pyplot.subplots(math.ceil(len(sets) / columns), columns, squeeze=False, layout="constrained",
                                   figsize=(max(3.1 * columns, 4.5), 2.7 * math.ceil(len(sets) / columns)))
    for axes in grid.flat[len(sets):]:
        axes.set_visible(False)
    for axes, (dataset, network) in zip(grid.flat, sets):
        ticks: dict[float, str] = {}
        for variant, (colour, marker) in LOOKS.items():
            points = sorted((logs[0].start["fc_multiplications"] / 1000, mean_of([log.score for log in logs]),
                             std_of([log.score for log in logs]) or 0.0, head_name(row)) for row in rows
                            if (row.dataset, row.network) == (dataset, network) and (logs := cells.of(row, variant)))
            if not points:
                continue
            x, y, spread, names = zip(*points)
            axes.errorbar(x, y, yerr=spread, color=colour, marker=marker, markersize=4, capsize=2, linewidth=0.9,
                          label=LABELS[variant])
            ticks |= {place: f"{name.replace(chr(32), chr(10), 1)}\n{place:,.1f}" for place, _, _, name in points}
        axes.set_xticks(sorted(ticks), [ticks[place] for place in sorted(ticks)], fontsize=7)
        axes.margins(x=0.18, y=0.1)
        axes.set_title(f"{dataset}, {NETWORKS.get(network, network)}", fontsize=8)
        axes.set_xlabel("multiplications of the head, thousands")
        axes.set_ylabel("test accuracy, %, mean ± std")
    handles = {text: handle for axes in grid.flat for handle, text in zip(*axes.get_legend_handles_labels())}
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=4, frameon=False, fontsize=7)
    return figure


def gains(cells: Cells) -> dict[tuple[str, str], list[float]]:
    """(row, variant): points that selection adds to the last epoch's test accuracy, run by run.

    Published: the best epoch on the test set minus the last one, or the selected one where the publication held images out
    (Bird225, Caltech-101, CINIC-10). Corrected: the epoch chosen on held-out images minus the last.
    """
    found = {}
    for (row, variant), logs in sorted(cells.runs.items(), key=lambda item: (cell_order(item[0][0]), item[0][1])):
        if row.table == "I" or variant not in LOOKS or not logs:
            continue
        key = "best_test_accuracy_pct" if variant == "published" else "selected_test_accuracy_pct"
        name = f"{row.dataset}, {NETWORKS.get(row.network, row.network)}, {head_name(row)}"
        chosen = [log.end.get(key, log.end["selected_test_accuracy_pct"]) for log in logs]
        found[name, variant] = [accuracy - log.end["last_test_accuracy_pct"] for accuracy, log in zip(chosen, logs)]
    return found


def selection(pyplot: Any, cells: Cells) -> Any:
    """What picking the best epoch on the test set adds, against what picking it on held-out images adds."""
    found = gains(cells)
    names = list(dict.fromkeys(name for name, _ in found))
    if not names:
        return None
    figure, axes = pyplot.subplots(figsize=(6.3, 0.9 + 0.34 * len(names)), layout="constrained")
    labelled = set()
    for place, name in enumerate(names):
        for variant, (colour, marker) in LOOKS.items():
            values = found.get((name, variant))
            if not values:
                continue
            what = "published: best on the test set" if variant == "published" else LABELS[variant].replace("ed,", "ed: held-out choice,")
            shift = 0.24 * (list(LOOKS).index(variant) - 1)
            axes.plot(values, [place + shift] * len(values), marker="|", linestyle="none", color=colour, alpha=0.5, markersize=5)
            axes.plot(mean_of(values), place + shift, marker=marker, color=colour, markersize=4.5, linestyle="none",
                      label=None if variant in labelled else what)
            labelled.add(variant)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("chosen epoch minus last epoch, points of test accuracy (strokes: runs)")
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=7)
    return figure


def confusion(pyplot: Any, records: list[dict]) -> Any:
    """Errors of the best run of each head: row the true class, column what it was taken for; right answers are left out."""
    if not records:
        return None
    columns = max(len(record["runs"]) for record in records)
    figure, grid = pyplot.subplots(len(records), columns, figsize=(2.35 * columns, 2.55 * len(records)), squeeze=False,
                                   layout="constrained")
    for axes in grid.flat:
        axes.set_visible(False)
    for row, record in zip(grid, records):
        highest = max(value for run in record["runs"] for i, line in enumerate(run["matrix"]) for j, value in enumerate(line) if i != j)
        for axes, run in zip(row, record["runs"]):
            errors = [[0 if i == j else value for j, value in enumerate(line)] for i, line in enumerate(run["matrix"])]
            axes.set_visible(True)
            axes.imshow(errors, cmap="Blues", vmin=0, vmax=highest)
            for i, line in enumerate(errors):
                for j, value in enumerate(line):
                    if value:
                        axes.text(j, i, value, ha="center", va="center", fontsize=4.5 if value < 1000 else 4,
                                  color="white" if value > 0.6 * highest else "black")
            head = "FC" if run["head"] == "fc" else f"Spinal {run['layers']} × {run['width']}"
            axes.set_title(f"{record['dataset']}, {head}: {run['accuracy_pct']:.2f} %", fontsize=7)
            axes.set_xticks(range(len(errors)))
            axes.set_yticks(range(len(errors)))
            axes.tick_params(labelsize=6, length=0)
            axes.grid(visible=False)
            axes.set_xlabel("taken for class", fontsize=6.5)
            axes.set_ylabel("true class", fontsize=6.5)
    return figure


def read_confusion(folder: Path) -> list[dict]:
    """What tools/confusion.py counted, MNIST first."""
    paths = sorted(folder.glob("*.json"), key=lambda path: (path.stem != "mnist", path.name))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


CAPTIONS = {
    "forest": "Spinal minus FC, paired by seed: mean and 95 % t interval. Hollow: runs on a subset of the official data",
    "accuracies": "Accuracy of every row that has runs, mean ± std over seeds; axes do not begin at zero",
    "cost": "Accuracy against the multiplications of the head; those of the convolutions are the same for all heads of a network",
    "selection": "What selecting an epoch is worth, in points over the last epoch",
    "confusion": "Test images that the best published run of each head gets wrong (tools/confusion.py repeats these runs and counts)",
}


def drawings(cells: Cells, paper: list[PaperRow], records: list[dict]) -> dict[str, Callable[[Any], Any]]:
    """Name of each overview figure and how it is drawn; a drawing returns nothing where there are no runs for it."""
    items = comparisons(cells, paper)
    return {"forest": lambda pyplot: forest(pyplot, items), "accuracies": lambda pyplot: accuracies(pyplot, cells),
            "cost": lambda pyplot: cost(pyplot, cells), "selection": lambda pyplot: selection(pyplot, cells),
            "confusion": lambda pyplot: confusion(pyplot, records)}


def overview_names(cells: Cells, counted: bool = False) -> list[str]:
    """Figures for which there are runs; the report links these. `counted`: whether confusions were."""
    images = any(logs for (row, _), logs in cells.runs.items() if row.table != "I")
    pairs = any(item.script != "synthetic_regression" for item in comparisons(cells, sorted({row for row, _ in cells.runs},
                                                                                            key=cell_order)))
    return [name for name in CAPTIONS if (pairs if name == "forest" else counted if name == "confusion" else images)]


def write_overview(cells: Cells, paper: list[PaperRow], folder: Path) -> None:
    """All overview figures; one without runs is removed."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    for name, draw in drawings(cells, paper, read_confusion(folder / "../confusion")).items():
        with pyplot.rc_context(matplotlib.rcParamsDefault | STYLE):
            figure = draw(pyplot)
            if figure is None:
                for suffix in ("svg", "png"):
                    (folder / f"{name}.{suffix}").unlink(missing_ok=True)
            else:
                save(figure, folder, name)
                pyplot.close(figure)
