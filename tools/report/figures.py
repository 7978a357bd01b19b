"""Figures from the logs, as SVG and PNG: each is drawn if there are runs for it, and removed if there are none."""

from __future__ import annotations

import io
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report.costs import Cost, of_row
from report.inference import half_width, mean_of, resolution_of, t_quantile
from report.logs import Log
from report.names import FUNCTIONS, NETWORKS, VARIANTS, script_order
from report.paper import PaperRow
from report.rows import Cells, Comparison, head_name, reading_order
from report.series import DROPOUT_SETS, LEVELS, SPINAL_HEADS, dropout_gains, dropout_runs
from report.tables import Constants

# Okabe-Ito colours; shapes and dashes keep the lines apart without colour
LOOKS = {
    "published": ("#D55E00", "o"),
    "corrected": ("#0072B2", "s"),
    "corrected-nodropout": ("#009E73", "D"),
}
HEADS = [
    ("#000000", "-", "o"),
    ("#D55E00", "--", "s"),
    ("#0072B2", "-.", "D"),
    ("#009E73", ":", "^"),
    ("#CC79A7", (0, (5, 1, 1, 1)), "v"),
]
PAPER_LOOK = {"color": "black", "marker": "x", "linestyle": "none", "markersize": 5}
STYLE = {
    "svg.hashsalt": "spinalnet",
    "svg.fonttype": "none",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
    "axes.titlesize": 8,
    "legend.frameon": False,
    "legend.fontsize": 7,
}


def grid_of(
    pyplot: Any, count: int, width: float = 3.1, height: float = 2.5, most: int = 4
) -> tuple[Any, list[Any]]:
    """A figure with this many panels; no empty ones."""
    columns = min(count, most)
    figure, grid = pyplot.subplots(
        math.ceil(count / columns),
        columns,
        squeeze=False,
        layout="constrained",
        figsize=(max(width * columns, 4.5), height * math.ceil(count / columns)),
    )
    for axes in grid.flat[count:]:
        axes.remove()
    return figure, list(grid.flat[:count])


def shared_legend(figure: Any, columns: int = 4) -> None:
    """One legend above all panels."""
    handles = {
        text: handle
        for axes in figure.axes
        for handle, text in zip(*axes.get_legend_handles_labels())
    }
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=columns)


def interval(logs: Sequence[Log]) -> tuple[float, float]:
    """Mean accuracy and half its 95 % interval (0 for a single run)."""
    values = [log.score for log in logs]
    return mean_of(values), half_width(values, 0, resolution_of(logs[0])) if len(
        values
    ) > 1 else 0.0


def ordered(cells: Cells, regression: bool) -> list[PaperRow]:
    """Rows with runs: functions or data sets in the paper's order, FC before Spinal heads by width."""
    functions = ["", *FUNCTIONS]
    rows = {
        row for (row, _), logs in cells.runs.items() if logs and (row.table == "I") == regression
    }
    return sorted(
        rows,
        key=lambda row: (
            script_order(row.script),
            functions.index(row.function),
            row.network,
            row.head,
            row.layers or 0,
            row.width or 0,
        ),
    )


def panels(rows: Sequence[PaperRow]) -> dict[str, list[PaperRow]]:
    """Rows by data set and network."""
    found: dict[str, list[PaperRow]] = defaultdict(list)
    for row in rows:
        found[f"{row.dataset}, {NETWORKS.get(row.network, row.network)}"].append(row)
    return dict(found)


def forest(pyplot: Any, items: Sequence[Comparison]) -> Any:
    """Spinal minus FC of every head with enough pairs, a panel with its own scale for each set; parts to the right."""
    sides: list[dict[str, dict[str, list[Comparison]]]] = [{}, {}]
    for item in sorted(items, key=reading_order):
        if item.variant in LOOKS and not item.spinal[0].regression and item.difference.judged:
            label, settings = item.size, item.settings
            if not item.row and item.network != "CNN":
                label += f"\n{settings['epochs']} epochs, {settings['precision']}"
            title = f"{item.dataset}, {item.network}" + ", part of the data" * (item.row is None)
            sides[item.row is None].setdefault(title, {}).setdefault(label, []).append(item)
    sides = [side for side in sides if side]
    if not sides:
        return None
    heights = [[len(lines) + 1.2 for lines in side.values()] for side in sides]
    tallest = max(map(sum, heights))
    figure = pyplot.figure(
        figsize=(4.9 * len(sides) + 0.8, 0.7 + 0.4 * tallest), layout="constrained"
    )
    for place, (side, ratios) in zip(figure.add_gridspec(1, len(sides)), zip(sides, heights)):
        rest = [tallest - sum(ratios)] * (tallest > sum(ratios))
        grid = place.subgridspec(len(ratios) + len(rest), 1, height_ratios=ratios + rest)
        for cell, (title, lines) in zip(grid, side.items()):
            forest_panel(figure.add_subplot(cell), title, lines)
    figure.supxlabel(
        "Spinal minus FC, points of test accuracy (right of 0: Spinal ahead); each set has its own scale",
        fontsize=8,
    )
    shared_legend(figure, 5)
    return figure


def forest_panel(axes: Any, title: str, lines: dict[str, list[Comparison]]) -> None:
    """One set: a line for each head, its variants one above the other."""
    for place, members in enumerate(lines.values()):
        for item in members:
            colour, marker = LOOKS[item.variant]
            middle, offset = item.difference, 0.24 * (list(LOOKS).index(item.variant) - 1)
            axes.errorbar(
                middle.mean,
                place + offset,
                xerr=middle.high - middle.mean,
                color=colour,
                marker=marker,
                markersize=4,
                capsize=2,
                linewidth=1,
                markerfacecolor=colour if item.row else "white",
                label=VARIANTS[item.variant] if item.row else None,
            )
        if (printed := members[0].paper_difference) is not None:
            axes.plot(printed, place - 0.24, label="paper", **PAPER_LOOK)
    if members[0].row is None:
        axes.plot(
            [],
            [],
            "o",
            color="#777777",
            markerfacecolor="white",
            markersize=4,
            label="hollow: a part of the official data",
        )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(lines)), list(lines))
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_title(title, loc="left", pad=3)


def accuracies(pyplot: Any, cells: Cells, costs: Sequence[Cost]) -> Any:
    """Mean and interval of each row beside the paper's average, against the multiplications of the whole network."""
    sets = panels([row for row in ordered(cells, False) if of_row(costs, row)])
    if not sets:
        return None
    figure, grid = grid_of(pyplot, len(sets))
    for axes, (title, rows) in zip(grid, sets.items()):
        macs = [of_row(costs, row).macs / 1000 for row in rows]
        step = 0.02 * (max(macs) - min(macs) or 1)
        for row, place in zip(rows, macs):
            for variant, (colour, marker) in LOOKS.items():
                if logs := cells.of(row, variant):
                    mean, half = interval(logs)
                    axes.errorbar(
                        place,
                        mean,
                        yerr=half,
                        color=colour,
                        marker=marker,
                        markersize=4,
                        capsize=2,
                        linewidth=1,
                        linestyle="none",
                        label=f"ours, {VARIANTS[variant]}: mean, 95 % interval",
                    )
            if printed := row.metric("accuracy_avg_pct", "accuracy_pct"):
                axes.plot(
                    place - 2 * step,
                    float(printed),
                    label="paper, published (average; v2: its one number)",
                    **PAPER_LOOK,
                )
        names = [head_name(row).removeprefix("Spinal ") for row in rows]
        axes.set_xticks(macs, [f"{name}\n{place:,.1f}" for name, place in zip(names, macs)])
        axes.margins(x=0.15)
        axes.set_title(title)
        axes.set_xlabel("multiplications of the whole network, thousands")
    grid[0].set_ylabel("test accuracy, %")
    shared_legend(figure, 2)
    return figure


def dropout(pyplot: Any, cells: Cells) -> Any:
    """Accuracy against the dropout before the output layer, each head, published protocol."""
    runs = dropout_runs(cells)
    heads, known = ("FC", *SPINAL_HEADS), dict(dropout_gains(runs))
    sets = [(script, name) for script, name in DROPOUT_SETS if name in known]
    if not sets:
        return None
    figure, grid = grid_of(pyplot, len(sets), 3.3)
    for axes, (script, name) in zip(grid, sets):
        for shift, head, (colour, dashes, marker) in zip((-0.008, 0, 0.008), heads, HEADS):
            points = [
                (p + shift, *interval(logs))
                for p in LEVELS
                if len(logs := runs.get((script, head, p), [])) > 1
            ]
            if points:
                x, y, half = zip(*points)
                axes.errorbar(
                    x,
                    y,
                    yerr=half,
                    color=colour,
                    linestyle=dashes,
                    marker=marker,
                    markersize=4,
                    capsize=2,
                    linewidth=1,
                    label=head,
                )
                if published := runs.get((script, head, 0.5 if head == "FC" else 0.0)):
                    axes.plot(
                        (0.5 if head == "FC" else 0.0) + shift,
                        interval(published)[0],
                        "o",
                        markersize=10,
                        markerfacecolor="none",
                        color="#999999",
                        label="what the paper compares",
                    )
        axes.set_xticks(LEVELS)
        axes.set_title(f"{name}, CNN, published protocol")
        axes.set_xlabel("dropout before the output layer")
    grid[0].set_ylabel("test accuracy, %")
    shared_legend(figure)
    return figure


def band(
    axes: Any, curves: Sequence[Sequence[float]], colour: str, dashes: Any, label: str, kind: str
) -> float:
    """Centre and band of curves over the epochs; returns the lowest point of the band after the first epochs.

    `kind`: "std" (mean ± std), "interval" (mean and its 95 % interval) or "quartiles" (median between the quartiles).
    """
    import numpy

    values = numpy.full(
        (len(curves), max(map(len, curves))), numpy.nan
    )  # a diverged run ends early
    for row, curve in zip(values, curves):
        row[: len(curve)] = curve
    values = values[:, ~numpy.isnan(values).all(axis=0)]
    epochs = numpy.arange(1, values.shape[1] + 1)
    if kind == "quartiles":
        centre, (low, high) = (
            numpy.nanmedian(values, axis=0),
            numpy.nanquantile(values, (0.25, 0.75), axis=0),
        )
    else:
        count = len(values)
        spread = numpy.nanstd(values, axis=0) * math.sqrt(count / max(count - 1, 1))
        spread *= (
            t_quantile(count - 1) / math.sqrt(count) if kind == "interval" and count > 1 else 1
        )
        centre = numpy.nanmean(values, axis=0)
        low, high = centre - spread, centre + spread
    axes.fill_between(epochs, low, high, color=colour, alpha=0.18, linewidth=0)
    marker = {"marker": "o", "markersize": 2.5} if len(epochs) < 15 else {}
    axes.plot(epochs, centre, color=colour, linestyle=dashes, linewidth=1.1, label=label, **marker)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epoch")
    return float(min(low[len(epochs) // 10 :] if len(epochs) > 20 else low))


def training_curves(pyplot: Any, cells: Cells) -> Any:
    """Test accuracy by epoch, published protocol."""
    sets = panels([row for row in ordered(cells, False) if cells.of(row, "published")])
    if not sets:
        return None
    figure, grid = grid_of(pyplot, len(sets))
    for axes, (title, rows) in zip(grid, sets.items()):
        floors = []
        for row, (colour, dashes, _) in zip(rows, HEADS):
            logs = cells.of(row, "published")
            label = f"{head_name(row)} (n = {len(logs)})"
            floors.append(band(axes, [log.curve for log in logs], colour, dashes, label, "std"))
        top = axes.get_ylim()[1]  # the first epochs of long runs would flatten all that matters
        axes.set_ylim(min(floors) - 0.04 * (top - min(floors)), top)
        axes.set_title(title)
        axes.legend(loc="lower right")
    grid[0].set_ylabel("test accuracy, %")
    return figure


def differences(pyplot: Any, items: Sequence[Comparison]) -> Any:
    """Spinal minus FC after each epoch: what the watched accuracy says, test images or held-out ones."""
    sets: dict[str, list[Comparison]] = defaultdict(list)
    for item in sorted(items, key=reading_order):
        if (
            item.row
            and item.variant in LOOKS
            and item.difference.judged
            and not item.spinal[0].regression
        ):
            sets[item.dataset, item.network].append(item)
    if not sets:
        return None
    figure, grid = grid_of(pyplot, len(sets))
    for axes, ((dataset, network), members) in zip(grid, sets.items()):
        for item in members:
            if item.head == members[0].head:  # the narrowest
                watched = "test" if item.variant == "published" else "held-out"
                dashes = {"published": "-", "corrected": "--"}.get(item.variant, ":")
                curves = [
                    [a - b for a, b in zip(ours.curve, theirs.curve)] for ours, theirs in item.pairs
                ]
                label = f"{VARIANTS[item.variant]}, {watched} images"
                band(axes, curves, LOOKS[item.variant][0], dashes, label, "interval")
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_title(f"{dataset}, {network}, {members[0].size}")
    grid[0].set_ylabel("Spinal minus FC, points")
    shared_legend(figure)
    return figure


def regression_curves(pyplot: Any, cells: Cells, constants: Constants) -> Any:
    """Error on fresh samples by epoch, corrected protocol, with the constant's."""
    sets: dict[str, list[PaperRow]] = defaultdict(list)
    for row in ordered(cells, True):
        if cells.of(row, "corrected"):
            sets[row.function].append(row)
    if not sets:
        return None
    figure, grid = grid_of(pyplot, len(sets), most=2)
    for axes, (function, rows) in zip(grid, sets.items()):
        for row, (colour, dashes, _) in zip(rows, HEADS):
            logs = cells.of(row, "corrected")
            curves = [[1000 * value for value in log.curve] for log in logs]
            band(axes, curves, colour, dashes, f"{head_name(row)} (n = {len(logs)})", "quartiles")
        if scores := [value for (name, _), value in constants.items() if name == function]:
            axes.axhline(
                statistics.median(scores),
                color="#009E73",
                linewidth=1.2,
                linestyle=":",
                label="the best constant",
            )
        if axes.dataLim.y1 > 20 * axes.dataLim.y0:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(
                "{x:g}" if axes.dataLim.y1 < 200 * axes.dataLim.y0 else ""
            )
            axes.yaxis.get_minor_locator().set_params(subs=(2, 5))
        axes.set_title(FUNCTIONS.get(function, function))
        axes.set_ylabel("MSE on fresh samples × 1e-3")
    shared_legend(figure)
    return figure


def write_figures(
    cells: Cells,
    items: Sequence[Comparison],
    costs: Sequence[Cost],
    constants: Constants,
    folder: Path,
) -> None:
    """All figures as SVG and PNG, with nothing in them that changes from day to day."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    drawings = {
        "forest": lambda: forest(pyplot, items),
        "accuracies": lambda: accuracies(pyplot, cells, costs),
        "training_curves": lambda: training_curves(pyplot, cells),
        "differences": lambda: differences(pyplot, items),
        "dropout": lambda: dropout(pyplot, cells),
        "regression_curves": lambda: regression_curves(pyplot, cells, constants),
    }
    for name, draw in drawings.items():
        with pyplot.rc_context(matplotlib.rcParamsDefault | STYLE):
            figure = draw()
            if figure is None:
                for suffix in ("svg", "png"):
                    (folder / f"{name}.{suffix}").unlink(missing_ok=True)
                continue
            text = io.StringIO()
            figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
            shorter = re.sub(
                r"(\d\.\d\d)\d+", r"\1", text.getvalue()
            )  # two decimals do: half the size
            (folder / f"{name}.svg").write_text(shorter, encoding="utf-8")
            figure.savefig(folder / f"{name}.png", dpi=130, metadata={"Software": None})
            pyplot.close(figure)
