"""The audit page: every quirk with consequence and its measured effect, and where the paper does not add up."""
from __future__ import annotations

import csv
from pathlib import Path

from report.cells import Cells
from report.comparisons import Comparison
from report.costs import PARAMETER_COLUMNS, Cost, find, parameter_rows
from report.facts import NETWORKS, NOISE_VARIANCE, UserError
from report.formats import markdown
from report.logs import Log
from report.overview import gains
from report.paper import PaperRow
from report.statistics import error_reduction, mean_of, paired_difference
from report.tables import Column, Row, number

QUIRK_KEYS = ("script", "quirk", "number", "what", "consequence", "published", "corrected", "evidence")
QUIRK_COLUMNS = [Column("script", "Where"), Column("number", "Spec"), Column("what", "What the released code does"),
                 Column("consequence", "Consequence"), Column("published", "Published"), Column("corrected", "Corrected"),
                 Column("effect", "Measured effect")]
COMMANDS = {
    "dropout": "python MNIST/mnist.py --head fc --fc-dropout 0 --runs 5",
    "selection": "make tables  # figures/selection.png, from the logs of both protocols",
    "broadcast": "python Regression/synthetic_regression.py --noise broadcast --runs 10",
    "measure": "python Regression/synthetic_regression.py --protocol corrected --runs 10",
    "seeds": "python Regression/synthetic_regression.py --runs 10",
    "cost": "make costs",
    "vgg": "python -m pytest tests/test_transfer.py -k gradient",
    "verify": "make verify LOG=results/logs/mnist/cnn-fc-published-s0.jsonl",
}


def read_quirks(path: Path) -> list[Row]:
    """The lines of quirks.csv. Raises UserError."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        rows = list(reader)
    if tuple(reader.fieldnames or ()) != QUIRK_KEYS or any(None in row or None in row.values() for row in rows):
        raise UserError(f"{path} has a line that does not have the columns {', '.join(QUIRK_KEYS)}")
    return rows


def interval(difference) -> str:
    """`-0.06 [-0.18, +0.06] (5)`."""
    if difference.low is None:
        return f"{number(difference.mean, 2, '+')} ({difference.pairs} pair{'s' * (difference.pairs > 1)})"
    return (f"{number(difference.mean, 2, '+')} [{number(difference.low, 2, '+')}, {number(difference.high, 2, '+')}] "
            f"({difference.pairs} pairs)")


def dropout_effect(cells: Cells, items: list[Comparison]) -> str:
    """What the FC head gains without its dropout, under the published protocol, and what is left of the Spinal lead then."""
    parts = []
    for (row, variant), fc in cells.runs.items():
        if row.head != "fc" or variant != "published" or row.network != "cnn" or row.table == "I":
            continue
        bare = [log for log, _ in cells.others if log.script == row.script and log.settings["head"] == "fc"
                and log.settings["protocol"] == "published" and log.settings.get("fc_dropout") == 0
                and set(log.departures) == {"fc_dropout"} and log.settings["network"] == "cnn"]
        spinal = next((item.spinal for item in items if item.script == row.script and item.variant == "published"
                       and item.network == NETWORKS["cnn"]), ())
        if bare and spinal:
            parts.append(f"{row.dataset}: the published FC head without its dropout gains {interval(paired_difference(bare, fc))} points; "
                         f"the Spinal head then differs from it by {interval(paired_difference(spinal, bare))}")
    return "; ".join(parts)


def selection_effect(cells: Cells) -> str:
    """Mean gains over the last epoch, over all rows with runs."""
    found = gains(cells)
    parts = []
    for variant, words in (("published", "best test epoch"), ("corrected", "held-out choice")):
        values = [value for (_, kind), runs in found.items() if kind == variant for value in runs]
        if values:
            parts.append(f"{words} against last epoch {number(mean_of(values), 3, '+')} points ({len(values)} runs of 8-epoch networks, "
                         f"largest {number(max(values), 2, '+')})")
    return "; ".join(parts)


def regression_logs(cells: Cells, variant: str) -> list[Log]:
    return [log for (row, kind), logs in cells.runs.items() if row.table == "I" and kind == variant for log in logs]


def broadcast_effect(cells: Cells) -> str:
    """How low the published measure gets with each kind of noise."""
    lows = {kind: [log.value("min_last_batch_mse_200") for log in regression_logs(cells, kind)]
            for kind in ("published", "published-broadcast")}
    if not all(lows.values()):
        return ""
    return (f"lowest of {len(lows['published-broadcast'])} broadcast runs {1000 * min(lows['published-broadcast']):.3f}e-3, of "
            f"{len(lows['published'])} runs with column noise {1000 * min(lows['published']):.3f}e-3; variance of the noise "
            f"{1000 * NOISE_VARIANCE:.3f}e-3")


def measure_effect(cells: Cells) -> str:
    """In how many runs the published number lies below what no model can reach on fresh samples."""
    logs = regression_logs(cells, "published")
    below = sum(log.value("min_last_batch_mse_200") < NOISE_VARIANCE for log in logs)
    return f"{below} of {len(logs)} published runs print a number below the variance of the noise" if logs else ""


def seeds_effect(cells: Cells, items: list[Comparison]) -> str:
    """How often the head that the paper prints as lower is lower in ours."""
    parts = []
    for item in items:
        if item.script == "synthetic_regression" and item.variant == "published":
            won = sum(ours.value("min_last_batch_mse_200") < theirs.value("min_last_batch_mse_200") for ours, theirs in item.pairs)
            parts.append(f"{item.dataset} {won} of {len(item.pairs)}")
    return f"Spinal is lower after 200 epochs in: {', '.join(parts)} seeds" if parts else ""


def cost_effect(costs: list[Cost]) -> str:
    """Multiplications of the ResNet heads."""
    parts = []
    for script, name, width in (("cifar10", "CIFAR-10", 256), ("cifar100", "CIFAR-100", 512)):
        spinal, fc = find(costs, script, "resnet18", "spinal", 4, width), find(costs, script, "resnet18", "fc")
        if spinal and fc:
            parts.append(f"{name}: {spinal.multiplications:,} against {fc.multiplications:,}, "
                         f"{spinal.multiplications / fc.multiplications:.0f} times")
    return "; ".join(parts)


def vgg_effect(paper: list[PaperRow], costs: list[Cost]) -> str:
    """How many printed parameter counts of the VGG rows are those of a network with both classifiers."""
    rows = [row for row in paper if row.table == "III" and row.network == "vgg19_bn"]
    bad = {(row["dataset"], row["head"]) for row in parameter_rows(paper, costs) if row["network"].startswith(("VGG-19", "vgg19"))}
    known = [row for row in rows if find(costs, row.script, row.network, row.head,
                                         *((row.layers, row.width) if row.head == "spinal" else (None, None)))]
    fits = sum((row.dataset, "FC" if row.head == "fc" else f"Spinal {row.layers} × {row.width}") not in bad for row in known)
    leads = []
    for row in rows:
        default = next((other for other in rows if other.head == "fc" and other.script == row.script), None)
        if row.head == "spinal" and default and (mean := row.metric("accuracy_avg_pct")) and (base := default.metric("accuracy_avg_pct")):
            leads.append(float(mean) - float(base))
    ahead = sum(lead > 0 for lead in leads)
    return (f"{fits} of {len(known)} printed parameter counts are those of ImageNet's classifier plus the unused head; a test shows "
            f"that this head gets no gradient. Against it: {ahead} of {len(leads)} printed Spinal averages are the higher ones (by up to "
            f"{number(max(leads, default=0.0), 2)} points); two draws of one and the same network would do that once in {2 ** len(leads):,} "
            "times") if known else ""


PAPER_COLUMNS = [Column("dataset", "Data set"), Column("network", "Network"), Column("head", "Head"), Column("printed", "Printed, %"),
                 Column("recomputed", "From the printed best accuracies, %")]


def reduction_rows(paper: list[PaperRow], tolerance: float = 0.15) -> list[Row]:
    """Rows whose printed error reduction does not follow from the printed accuracies; accuracies have two decimals."""
    rows = []
    for row in paper:
        printed = row.metric("error_reduction_best_pct_printed", "error_reduction_pct_printed")
        if not printed or row.head != "spinal":
            continue
        default = next((other for other in paper if other.head == "fc" and (other.table, other.script, other.network) ==
                        (row.table, row.script, row.network)), None)
        best = [item.metric("accuracy_best_pct", "accuracy_pct") if item else "" for item in (row, default)]
        if not all(best) or (value := error_reduction(*map(float, best))) is None:
            continue
        ours, base = map(float, best)  # rounded to two decimals, so the true ones lie within 0.005 of them
        lowest, highest = error_reduction(ours - 0.005, base + 0.005), error_reduction(ours + 0.005, base - 0.005)
        if lowest is None or not lowest - tolerance <= float(printed) <= highest + tolerance:
            rows.append({"dataset": row.dataset + (" (v2)" if "v2" in row.table else ""),
                         "network": NETWORKS.get(row.network, row.network), "head": f"Spinal {row.layers} × {row.width}",
                         "printed": printed, "recomputed": number(value, 1)})
    return rows


OTHER_DOUBTS = """\
* EMNIST letters and balanced: the printed parameter counts are those of networks with 10 outputs (table below).
* VGG-19, VGG-11, VGG-13 Spinal: the printed counts fit halves of 128 and width 128, not the labels; v2's 95.31M for VGG-13 is
  9.531M with the point in the wrong place. ResNet-18: 3.22M fits width 64 (label 20), 4.66M fits 512 (label 128).
* Averages are "of ten runs" in the text on Table II; for Table III no number of runs is printed, and no table prints a spread.
* STL-10: a single notebook's maximum over epochs on the 8,000 test images; Caltech-101: the value of the selection split is printed
  beside test values; Oxford flowers: validation accuracy (shared/paper notes of this project; not recomputed here).
"""


def audit_page(paper: list[PaperRow], cells: Cells, items: list[Comparison], costs: list[Cost], quirks: list[Row]) -> str:
    """The whole of results/audit.md."""
    effects = {"dropout": dropout_effect(cells, items), "selection": selection_effect(cells), "broadcast": broadcast_effect(cells),
               "measure": measure_effect(cells), "seeds": seeds_effect(cells, items), "cost": cost_effect(costs),
               "vgg": vgg_effect(paper, costs), "verify": "", "none": "", "nothing": "nothing to measure"}
    rows = []
    for quirk in quirks:
        if quirk["evidence"] not in effects:
            raise UserError(f"quirks.csv names the evidence {quirk['evidence']!r}, which the report does not know")
        rows.append(quirk | {"what": f"{quirk['quirk']}: {quirk['what']}", "effect": effects[quirk["evidence"]] or "not measured"})
    parts = [
        "# Audit: what decides the paper's numbers besides the head\n",
        "Made by `python results/aggregate.py`. Quirks: [quirks.csv](quirks.csv), by the numbers of the specification that each script's "
        "docstring cites;\nthose without effect on a number close the list. Measured effects come from `logs/`, `costs.csv` and `paper.csv` "
        "alone. \"Not measured\": no runs of both\nprotocols yet, or an effect that cannot be told apart in them, since `corrected` mends "
        "several quirks at once.\n",
        "## Quirks\n", markdown(QUIRK_COLUMNS, rows),
        "Each measured effect, repeated by one command:\n",
        "\n".join(f"* {name}: `{COMMANDS[name]}`" for name in effects if name in COMMANDS) + "\n",
        "## Where the paper does not add up\n",
        "### Error reductions that do not follow from the printed accuracies\n",
        "Recomputed as 1 - (100 - Spinal) / (100 - FC) from the printed best accuracies; listed if further off than their rounding "
        "allows.\n", markdown(PAPER_COLUMNS, reduction_rows(paper)),
        "### Parameter counts that are not those of the labelled network\n",
        "Counted from the networks built as labelled (`make costs`); listed if more than 0.5 % off.\n",
        markdown(PARAMETER_COLUMNS, parameter_rows(paper, costs)) if costs else "No costs.csv yet: `make costs`.\n",
        "### Other doubts\n", OTHER_DOUBTS,
    ]
    return "\n".join(parts)
