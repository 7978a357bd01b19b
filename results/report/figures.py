"""Figures from the logs, as SVG and PNG."""
from __future__ import annotations

import math
import textwrap
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from report.cells import Cells, head_name
from report.facts import FUNCTIONS, NETWORKS, NOISE_VARIANCE, SCRIPT_ORDER
from report.logs import head_label
from report.paper import PaperRow
from report.tables import other_groups


class Line(NamedTuple):
    """One curve of a panel: its label and the curves of its runs."""
    label: str
    curves: list[list[float]]


Panels = dict[str, list[Line]]
FEWEST_EPOCHS = 4  # shorter trial runs are in the table of other runs alone
FIGURES = ("training_curves", "regression_curves", "training_curves_other")
STYLES = [("#000000", "-"), ("#D55E00", "--"), ("#0072B2", "-."), ("#009E73", ":"), ("#CC79A7", (0, (5, 1, 1, 1, 1, 1)))]  # Okabe-Ito


def panels_of(cells: Cells, name: str) -> Panels:
    """The panels of a figure in fixed order; FC comes first in each."""
    panels: Panels = defaultdict(list)
    if name == "training_curves_other":
        for key, logs in other_groups(cells.others).items():
            first = logs[0]
            if not first.regression and first.settings["epochs"] >= FEWEST_EPOCHS:
                watched = "published" if key[2] == "published" else "corrected, held-out images"
                title = (f"{first.settings['dataset']}, {key[1]} ({watched})\n"
                         f"{key[5]}; {first.settings['epochs']} epochs, {first.data['train']} images")
                panels[title].append(Line(head_label(first.settings).upper() if key[6] == "fc" else
                                          f"Spinal {first.settings['layers']} × {first.settings['width']}",
                                          [log.curve for log in logs]))
        return dict(panels)
    regression = name == "regression_curves"
    variant = "corrected" if regression else "published"
    for (row, kind), logs in sorted(cells.runs.items(), key=lambda item: cell_order(item[0][0])):
        if kind == variant and (row.table == "I") == regression:
            title = FUNCTIONS.get(row.function, row.function) if regression else f"{row.dataset}, {NETWORKS[row.network]}"
            panels[title].append(Line(head_name(row), [log.curve for log in logs]))
    return dict(panels)


def cell_order(row: PaperRow) -> tuple:
    """Tables, then functions or data sets in the paper's order, then FC before Spinal heads by width."""
    functions, scripts = list(FUNCTIONS), SCRIPT_ORDER
    return (row.table == "III", scripts.index(row.script) if row.script in scripts else len(scripts), row.script,
            functions.index(row.function) if row.function in functions else 0, row.network, row.head, row.layers or 0,
            row.width or 0)


def figures_of(cells: Cells) -> list[str]:
    """Names of the figures for which there are runs."""
    return [name for name in FIGURES if panels_of(cells, name)]


def padded(curves: list[list[float]]) -> Any:
    """Curves (runs, epochs) as an array, with NaN after the end of a diverged run."""
    import numpy
    array = numpy.full((len(curves), max(map(len, curves))), numpy.nan)
    for row, curve in zip(array, curves):
        row[:len(curve)] = curve
    return array


def draw_panel(axes: Any, lines: list[Line], regression: bool) -> None:
    """One panel: centre and band of each head."""
    import numpy
    floors = []
    for index, line in enumerate(lines):
        colour, dashes = STYLES[index % len(STYLES)]
        values = padded(line.curves)
        values = values[:, ~numpy.isnan(values).all(axis=0)]
        if not values.size:
            continue
        epochs = numpy.arange(1, values.shape[1] + 1)
        if regression:
            centre = numpy.nanmedian(values, axis=0)
            low, high = numpy.nanquantile(values, (0.25, 0.75), axis=0)
        else:
            centre = numpy.nanmean(values, axis=0)
            spread = numpy.nanstd(values, axis=0) * math.sqrt(len(values) / max(len(values) - 1, 1))
            low, high = centre - spread, centre + spread
        axes.fill_between(epochs, low, high, color=colour, alpha=0.18, linewidth=0)
        marker = {"marker": "o", "markersize": 2.5} if len(epochs) < 15 else {}
        axes.plot(epochs, centre, color=colour, linestyle=dashes, linewidth=1.1, label=f"{line.label} (n = {len(values)})", **marker)
        floors.append(min(low[len(epochs) // 10:] if len(epochs) > 20 else low))
    if floors and not regression:  # the first epochs of long runs would flatten all that matters
        top = axes.get_ylim()[1]
        axes.set_ylim(min(floors) - 0.04 * (top - min(floors)), top)


def draw(cells: Cells, name: str, folder: Path) -> None:
    """One figure as SVG and PNG, with nothing in them that changes from day to day."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    panels, regression = panels_of(cells, name), name == "regression_curves"
    columns = min(len(panels), 2 if regression else 4)
    rows = math.ceil(len(panels) / columns)
    with pyplot.rc_context(matplotlib.rcParamsDefault | {"svg.hashsalt": "spinalnet", "font.size": 8, "axes.spines.top": False,
                                                        "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3}):
        figure, grid = pyplot.subplots(rows, columns, figsize=(max(3.1 * columns, 4.2), 2.3 * rows), squeeze=False,
                                       layout="constrained")
        for axes in grid.flat[len(panels):]:
            axes.set_visible(False)
        for axes, (title, lines) in zip(grid.flat, panels.items()):
            draw_panel(axes, lines, regression)
            if regression:
                axes.set_yscale("log")
                axes.yaxis.set_minor_formatter("")
                axes.axhline(NOISE_VARIANCE, color="#666666", linewidth=0.8, label="noise variance 0.04/12")
            axes.set_title("\n".join(textwrap.fill(line, 46) for line in title.split("\n")), fontsize=8 if "\n" not in title else 7)
            axes.set_xlabel("epoch")
            axes.set_ylabel("clean MSE" if regression else "accuracy, %")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.legend(fontsize=6.5, frameon=False, loc="lower right" if name == "training_curves" else "best")
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
        figure.savefig(folder / f"{name}.png", dpi=150, metadata={"Software": None})
        pyplot.close(figure)


def write_figures(cells: Cells, folder: Path) -> None:
    """All figures; one that has no runs any more is removed, lest it outlive its logs."""
    folder.mkdir(parents=True, exist_ok=True)
    present = figures_of(cells)
    for name in FIGURES:
        if name in present:
            draw(cells, name, folder)
        else:
            for suffix in ("svg", "png"):
                (folder / f"{name}.{suffix}").unlink(missing_ok=True)
