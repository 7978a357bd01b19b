"""Figures from the logs, as SVG and PNG: drawn if there are runs for them, else removed."""

import io
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report import tuned
from report.comparisons import NO_DROPOUT_RELEASED, Comparison, Identity, shared_settings
from report.inference import half_width, mean_of, resolution_of, t_quantile
from report.logs import Log
from report.names import FUNCTIONS, network_name, script_order
from report.paper import Constants, PaperRow, default_of
from report.rows import CORRECTED, RELEASED, Rows, heads_differ
from report.tables import number

# Okabe-Ito colours; shapes and dashes keep the lines apart without colour
BLACK, RED, BLUE, GREEN, GREY = "#000000", "#D55E00", "#0072B2", "#009E73", "#777777"
HEADS = [(BLACK, "-", "o"), (RED, "--", "s"), (BLUE, "-.", "D"), (GREEN, ":", "^")]
PAPER_LOOK = {"color": BLACK, "marker": "x", "linestyle": "none", "markersize": 5}
PAPER = "paper, as released, all images"
COLUMNS = {  # of the forest: title, and the treatments that it shows, the first one that there is
    "as released": (RELEASED,),
    "no dropout": (NO_DROPOUT_RELEASED,),
    "dropout 0.5 in both": (
        f"{RELEASED}, dropout 0.5 in both",
        f"{CORRECTED}, dropout 0.5 in both",
    ),
}
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


def grid_of(pyplot: Any, count: int, width: float = 3.1, most: int = 3) -> tuple[Any, list[Any]]:
    """A figure with this many panels; no empty ones."""
    columns = min(count, most)
    lines = math.ceil(count / columns)
    size = (max(width * columns, 4.5), 2.5 * lines)
    figure, grid = pyplot.subplots(
        lines, columns, squeeze=False, layout="constrained", figsize=size
    )
    for axes in grid.flat[count:]:
        axes.remove()
    return figure, list(grid.flat[:count])


def shared_legend(figure: Any, columns: int = 3) -> None:
    """One legend above all panels, not wider than they are."""
    handles = {}
    for axes in figure.axes:
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True):
            handles[text] = handle
    columns = min(columns, max(1, int(figure.get_figwidth() / 2)))
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=columns)


def interval(logs: Sequence[Log]) -> tuple[float, float]:
    """Mean accuracy and half its 95 % interval (0 for a single run)."""
    values = [log.score for log in logs]
    half = half_width(values, 0, resolution_of(logs[0])) if len(values) > 1 else 0.0
    return mean_of(values), half


# ---- Dropout: the front page --------------------------------------------------------------------
def dropout(pyplot: Any, logs: Sequence[Log], identities: Sequence[Identity]) -> Any:
    """Accuracy against the dropout before the output layer, and what the paper compares."""
    sets: dict[str, Identity] = {}
    for each in identities:
        if each.released.complete and each.left.difference.judged:
            sets.setdefault(each.released.dataset, each)  # the narrowest head
    if not sets:
        return None
    figure, grid = grid_of(pyplot, len(sets), 3.6)
    figure.set_figheight(3.0)
    for axes, (name, identity) in zip(grid, sets.items(), strict=True):
        dropout_panel(axes, series_of(logs, identity), identity)
        axes.set_title(f"{name}, small CNN", loc="left")
    grid[0].set_ylabel("test accuracy, %")
    return figure


def series_of(logs: Sequence[Log], identity: Identity) -> dict[str, dict[float, list[Log]]]:
    """The runs of both heads that differ from those of the identity in dropout alone."""
    found: dict[str, dict[float, list[Log]]] = {"FC": defaultdict(list)}
    size = f"Spinal {identity.released.size}"
    found[size] = defaultdict(list)
    heads = {identity.released.first.head: size, "fc": "FC"}
    experiment = identity.released.experiment
    for log in logs:
        if not log.regression and shared_settings(log) == experiment and log.head in heads:
            found[heads[log.head]][log.settings["fc_dropout"]].append(log)
    return found


def dropout_panel(axes: Any, series: dict, identity: Identity) -> None:
    """Both heads by dropout; the paper's comparison as an arrow, the fair one as a bracket."""
    ends = {}
    for (head, levels), (colour, dashes, marker) in zip(series.items(), HEADS, strict=False):
        points = sorted((p, *interval(members)) for p, members in levels.items())
        x, y, half = zip(*points, strict=True)
        look = {"color": colour, "linestyle": dashes, "marker": marker, "markersize": 4}
        axes.errorbar(x, y, yerr=half, capsize=2, linewidth=1.2, **look)
        ends[head] = dict(zip(x, y, strict=True))
        place = (x[-1], y[-1]) if head == "FC" else (x[len(x) // 2], y[len(y) // 2])
        offset, alignment = ((6, 0), "left") if head == "FC" else ((-4, -12), "right")
        axes.annotate(
            head, place, xytext=offset, textcoords="offset points", color=colour, ha=alignment
        )
    (fc, spinal) = ends.values()
    lead = number(identity.released.difference.mean, 2, "+")
    left = number(identity.left.difference.mean, 2, "+")
    arrow = {"arrowstyle": "->", "color": BLUE, "shrinkA": 5, "shrinkB": 5, "linewidth": 1.2}
    axes.annotate("", (0.0, spinal[0.0]), (0.5, fc[0.5]), arrowprops=arrow)
    middle = (0.26, (spinal[0.0] + fc[0.5]) / 2)
    paper = number(identity.released.paper_difference, 2, "+")
    words = f"as released:\n{lead}\n(paper: {paper})"
    axes.annotate(words, middle, (14, 8), textcoords="offset points", color=BLUE)
    bracket = {"arrowstyle": "|-|, widthA=0.3, widthB=0.3", "color": GREEN, "linewidth": 1.2}
    axes.annotate("", (-0.04, spinal[0.0]), (-0.04, fc[0.0]), arrowprops=bracket)
    axes.text(-0.06, (spinal[0.0] + fc[0.0]) / 2, f"no dropout:\n{left}", color=GREEN, ha="right")
    axes.set_xlim(-0.3, 0.62)
    axes.set_xticks([0, 0.25, 0.5])
    axes.set_xlabel("dropout before the output layer")


# ---- Spinal minus FC ----------------------------------------------------------------------------
def forest(pyplot: Any, comparisons: Sequence[Comparison]) -> Any:
    """Small CNN: a line of panels for each set, a column for each treatment, one scale a line."""
    sets: dict[str, dict[str, list[Comparison]]] = defaultdict(lambda: defaultdict(list))
    for item in comparisons:
        if not heads_differ(item.first) or not item.difference.judged or item.fc[0].head != "fc":
            continue
        for title, treatments in COLUMNS.items():
            if item.treatment in treatments and item.first.settings["precision"] == "fp32":
                sets[item.dataset][title].append(item)
    if not sets:
        return None
    titles = [title for title in COLUMNS if any(title in columns for columns in sets.values())]
    size = (max(1.4 + 2 * len(titles), 5.4), 0.9 + 0.72 * len(sets))
    shape = {"squeeze": False, "sharex": "row", "layout": "constrained", "figsize": size}
    figure, grid = pyplot.subplots(len(sets), len(titles), **shape)
    for line, (name, columns) in zip(grid, sets.items(), strict=True):
        for axes, title in zip(line, titles, strict=True):
            forest_panel(axes, first_treatment(columns[title], COLUMNS[title]))
        line[0].set_ylabel(name.replace(", ", ",\n"), rotation=0, ha="right", va="center")
        for axes in line[1:]:
            axes.set_yticklabels([])
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title)
    words = "Spinal minus FC, points of test accuracy; right of 0: Spinal ahead"
    figure.supxlabel(words, fontsize=8)
    shared_legend(figure, 4)
    return figure


def first_treatment(items: list[Comparison], treatments: tuple[str, ...]) -> list[Comparison]:
    """The comparisons under the first of these treatments that there is."""
    for treatment in treatments:
        if found := [item for item in items if item.treatment == treatment]:
            return found
    return []


def forest_panel(axes: Any, items: list[Comparison]) -> None:
    """The widths of one set under one treatment, with what the paper prints."""
    for place, item in enumerate(items):
        middle = item.difference
        corrected = item.treatment.startswith(CORRECTED)
        label = "ours, epoch chosen on held-out images" if corrected else "ours, 95 % interval"
        axes.errorbar(
            middle.mean,
            place,
            xerr=middle.high - middle.mean,
            color=BLUE,
            marker="o",
            markersize=4,
            markerfacecolor="white" if corrected else BLUE,
            capsize=2,
            label=label,
        )
        if item.paper_difference is not None:
            axes.plot(item.paper_difference, place - 0.25, label=PAPER, **PAPER_LOOK)
    axes.axvline(0, color=BLACK, linewidth=0.8)
    axes.set_yticks(range(len(items)), [item.heads for item in items])
    axes.set_ylim(max(len(items), 1) - 0.5, -0.6)
    axes.grid(axis="y", visible=False)


def vgg5(pyplot: Any, comparisons: Sequence[Comparison]) -> Any:
    """VGG-5 on parts of the data and complete, each with its own setting."""
    items = [each for each in comparisons if each.network == "VGG-5" and each.difference.judged]
    if not items:
        return None
    size = (6.4, 0.9 + 0.32 * len(items))
    figure, axes = pyplot.subplots(layout="constrained", figsize=size)
    forest_panel(axes, items)
    labels = [f"{each.dataset}, {each.setting.split(', ', 1)[1]}" for each in items]
    axes.set_yticks(range(len(items)), labels)
    axes.set_xlabel("VGG-5: Spinal minus FC, points of test accuracy")
    shared_legend(figure)
    return figure


# ---- Curves -------------------------------------------------------------------------------------
def band(axes: Any, curves: Sequence[Sequence[float]], look: dict, label: str, kind: str) -> float:
    """Centre and band of curves over the epochs; returns the band's lowest point after the start.

    kind: "std" (mean ± std), "interval" (mean, 95 % interval) or "quartiles" (median; the quartiles
    as thin lines, for bands that would hide each other)
    """
    import numpy

    values = numpy.full((len(curves), max(map(len, curves))), numpy.nan)  # diverged ones end early
    for row, curve in zip(values, curves, strict=True):
        row[: len(curve)] = curve
    values = values[:, ~numpy.isnan(values).all(axis=0)]
    count, epochs = len(values), numpy.arange(1, values.shape[1] + 1)
    if kind == "quartiles":
        low, centre, high = numpy.nanquantile(values, (0.25, 0.5, 0.75), axis=0)
    else:
        spread = numpy.nanstd(values, axis=0) * math.sqrt(count / max(count - 1, 1))
        if kind == "interval" and count > 1:
            spread *= t_quantile(count - 1) / math.sqrt(count)
        centre = numpy.nanmean(values, axis=0)
        low, high = centre - spread, centre + spread
    if kind == "quartiles":
        for edge in (low, high):
            axes.plot(epochs, edge, linewidth=0.5, alpha=0.6, **look)
    else:
        axes.fill_between(epochs, low, high, color=look["color"], alpha=0.18, linewidth=0)
    marker = {"marker": "o", "markersize": 2.5} if len(epochs) < 15 else {}
    axes.plot(epochs, centre, linewidth=1.1, label=label, **look, **marker)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epoch")
    return float(min(low[len(epochs) // 10 :] if len(epochs) > 20 else low))


def row_order(row: PaperRow) -> tuple:
    """Data sets in the paper's order, FC before Spinal heads by width."""
    sizes = row.layers or 0, row.width or 0
    return script_order(row.script), row.network, row.head, sizes


def training_curves(pyplot: Any, ours: Rows, identities: Sequence[Identity]) -> Any:
    """Test accuracy by epoch, as released, and of the FC head without its dropout."""
    sets: dict[tuple, list[PaperRow]] = defaultdict(list)
    found = {row for (row, variant) in ours.runs if variant == RELEASED and row.table != "I"}
    for row in sorted(found, key=row_order):
        sets[row.script, row.dataset, row.network_name].append(row)
    if not sets:
        return None
    bare = {each.left.script: each.left.fc for each in identities if each.left.complete}
    figure, grid = grid_of(pyplot, len(sets))
    for axes, ((script, dataset, network), rows) in zip(grid, sets.items(), strict=True):
        floors = []
        series = [(row.head_name, ours.of(row)) for row in rows]
        if network == "CNN" and script in bare:
            series.append(("FC without dropout", bare[script]))
        for (name, logs), (colour, dashes, _) in zip(series, [*HEADS] * 4, strict=False):
            look = {"color": colour, "linestyle": dashes}
            if name == "FC without dropout":
                look = {"color": GREY, "linestyle": "-"}
            label = f"{name} (n = {len(logs)})"
            floors.append(band(axes, [log.curve for log in logs], look, label, "std"))
        top = axes.get_ylim()[1]  # the first epochs of long runs would flatten all that matters
        axes.set_ylim(min(floors) - 0.04 * (top - min(floors)), top)
        axes.set_title(f"{dataset}, {network}")
        axes.legend(loc="lower right")
    grid[0].set_ylabel("test accuracy, %")
    return figure


def differences(pyplot: Any, identities: Sequence[Identity]) -> Any:
    """Spinal minus FC after each epoch, on the test images: as released, and without dropout."""
    sets = {}
    for each in identities:
        if each.released.difference.judged and each.left.difference.judged:
            sets.setdefault(each.released.dataset, each)  # the narrowest head
    if not sets:
        return None
    figure, grid = grid_of(pyplot, len(sets))
    for axes, (dataset, each) in zip(grid, sets.items(), strict=True):
        both = (each.released, RED, "-"), (each.left, GREEN, "--")
        for item, colour, dashes in both:
            curves = [
                [a - b for a, b in zip(ours.curve, theirs.curve, strict=False)]
                for ours, theirs in item.pairs
            ]
            look = {"color": colour, "linestyle": dashes}
            label = "no dropout in either head" if item is each.left else "as released"
            band(axes, curves, look, label, "interval")
        axes.axhline(0, color=BLACK, linewidth=0.8)
        axes.set_title(f"{dataset}, {each.released.heads}")
    grid[0].set_ylabel("Spinal minus FC, points")
    shared_legend(figure)
    return figure


def regression_curves(pyplot: Any, ours: Rows, paper: list[PaperRow], constants: Constants) -> Any:
    """Error on fresh samples by epoch, corrected protocol, with the constant's."""
    spinal = {row.function: row for row in paper if row.table == "I" and row.head == "spinal"}
    sets = {name: spinal[name] for name in FUNCTIONS if ours.of(spinal.get(name), CORRECTED)}
    if not sets:
        return None
    figure, grid = grid_of(pyplot, len(sets), most=2)
    for axes, (function, row) in zip(grid, sets.items(), strict=True):
        for each, (colour, dashes, _) in zip((default_of(row, paper), row), HEADS, strict=False):
            if logs := ours.of(each, CORRECTED):
                curves = [[1000 * value for value in log.curve] for log in logs]
                look = {"color": colour, "linestyle": dashes}
                band(axes, curves, look, f"{each.head_name} (n = {len(logs)})", "quartiles")
        if scores := [value for (name, _), value in constants.items() if name == function]:
            middle, label = statistics.median(scores), "no better than a constant"
            axes.axhline(middle, color=GREEN, linewidth=1.2, linestyle=":", label=label)
        logarithmic(axes, 1)
        axes.set_title(FUNCTIONS[function])
        axes.set_ylabel("MSE on fresh samples × 1e-3")
    shared_legend(figure)
    return figure


def own_curves(pyplot: Any, logs: Sequence[Log]) -> Any:
    """All runs of one script, by epoch: a panel a network, a line for runs that differ in seed."""
    groups: dict[tuple, dict[str, list[Log]]] = defaultdict(lambda: defaultdict(list))
    for log in logs:
        panel = log.settings["network"], log.settings.get("function", "")
        groups[panel][log.start["run"].removesuffix(f"-s{log.seed}")].append(log)
    figure, grid = grid_of(pyplot, len(groups), 4.5, most=2)
    for axes, (panel, series) in zip(grid, sorted(groups.items()), strict=True):
        for place, (name, members) in enumerate(sorted(series.items())):
            colour, _, _ = HEADS[place % len(HEADS)]
            dashes = HEADS[(place // len(HEADS) + place) % len(HEADS)][1]
            curves = [log.curve for log in members]
            label = f"{name} (n = {len(members)})"
            band(axes, curves, {"color": colour, "linestyle": dashes}, label, "std")
        axes.set_title(" ".join([network_name(panel[0]), *filter(None, panel[1:])]))
        axes.set_ylabel("error" if logs[0].regression else "accuracy, %")
        if logs[0].regression:
            logarithmic(axes)
    shared_legend(figure, 1)
    return figure


def write_curves(evidence: Any, folder: Path) -> None:
    """curves.png beside the logs of each script (pages.Evidence; folder: of the logs)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    scripts: dict[str, list[Log]] = defaultdict(list)
    for log in evidence.rows.logs:
        if log.curve:
            scripts[log.script].append(log)
    for script, logs in scripts.items():
        with pyplot.rc_context(matplotlib.rcParamsDefault | STYLE):
            figure = own_curves(pyplot, logs)
            figure.savefig(folder / script / "curves.png", dpi=130, metadata={"Software": None})
            pyplot.close(figure)


def logarithmic(axes: Any, span: float = 20) -> None:
    """A logarithmic axis with plain numbers, where the data span more than this factor."""
    if axes.dataLim.y1 > span * axes.dataLim.y0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}" if axes.dataLim.y1 < 200 * axes.dataLim.y0 else "")
        axes.yaxis.get_minor_locator().set_params(subs=(2, 5))


def write_figure(pyplot: Any, folder: Path, name: str, figure: Any) -> None:
    """SVG and PNG, with nothing in them that changes from day to day; none if there is nothing."""
    if figure is None:
        for suffix in ("svg", "png"):
            (folder / f"{name}.{suffix}").unlink(missing_ok=True)
        return
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    shorter = re.sub(r"(\d\.\d\d)\d+", r"\1", text.getvalue())  # two decimals do: half the size
    (folder / f"{name}.svg").write_text(shorter, encoding="utf-8")
    figure.savefig(folder / f"{name}.png", dpi=130, metadata={"Software": None})
    pyplot.close(figure)


def write_figures(evidence: Any, folder: Path) -> None:
    """All figures of this evidence (pages.Evidence)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    ours, identities, comparisons = evidence.rows, evidence.identities, evidence.comparisons
    drawings = {
        "dropout": (dropout, (ours.logs, identities)),
        "forest": (forest, (comparisons,)),
        "vgg5": (vgg5, (comparisons,)),
        "training_curves": (training_curves, (ours, identities)),
        "differences": (differences, (identities,)),
        "regression_curves": (regression_curves, (ours, evidence.paper, evidence.constants)),
        "tuned_heads": (tuned.draw, (evidence.tuned, grid_of, HEADS)),
    }
    for name, (draw, sources) in drawings.items():
        with pyplot.rc_context(matplotlib.rcParamsDefault | STYLE):
            write_figure(pyplot, folder, name, draw(pyplot, *sources))
