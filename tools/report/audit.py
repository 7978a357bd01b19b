"""The audit page: every quirk with consequence and its measured effect, and where the paper does not add up."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

from report.costs import PARAMETERS, Cost, find, of_row, parameter_rows
from report.formats import fill, markdown
from report.inference import error_reduction, paired_difference
from report.logs import Log
from report.names import NETWORKS, NOISE_VARIANCE, UserError
from report.paper import PaperRow
from report.rows import Cells, Comparison, default_of, head_name
from report.series import DROPOUT_SETS, dropout_gains, dropout_runs, selection_effect
from report.tables import ROW, Row, columns, difference_text, number

QUIRK_KEYS = (
    "script",
    "quirk",
    "number",
    "what",
    "consequence",
    "published",
    "corrected",
    "evidence",
)
QUIRKS = columns("""script: Where; what: What the released code does (number of the specification);
    consequence: Consequence; published: Published; corrected: Corrected; effect: Measured effect, and on which runs""")
REDUCTIONS = columns(ROW + "printed: Printed, %; recomputed: From the printed best accuracies, %")


def read_quirks(path: Path) -> list[Row]:
    """The lines of quirks.csv. Raises UserError."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        rows = list(reader)
    if tuple(reader.fieldnames or ()) != QUIRK_KEYS or any(
        None in row or None in row.values() for row in rows
    ):
        raise UserError(f"{path} has a line that does not have the columns {', '.join(QUIRK_KEYS)}")
    return rows


def dropout_effect(cells: Cells) -> str:
    """What the published FC head gains without its dropout, and what is left of the Spinal lead then."""
    parts, runs = [], dropout_runs(cells)
    for name, gain in dropout_gains(runs):
        script = next(script for script, label in DROPOUT_SETS if label == name)
        spinal = paired_difference(
            runs.get((script, "Spinal 6 × 8", 0.0), []), runs.get((script, "FC", 0.0), [])
        )
        if spinal.judged:
            parts.append(
                f"{name}, CNN, published: FC without its dropout gains {difference_text(gain, 2)} points; "
                f"Spinal 6 × 8 then differs from it by {difference_text(spinal, 2)}"
            )
    return "; ".join(parts)


def regression_logs(cells: Cells, variant: str) -> list[Log]:
    return [
        log
        for (row, kind), logs in cells.runs.items()
        if row.table == "I" and kind == variant
        for log in logs
    ]


def broadcast_effect(cells: Cells) -> str:
    """How low the published measure gets with each kind of noise."""
    lows = {
        kind: [log.value("min_last_batch_mse_200") for log in regression_logs(cells, kind)]
        for kind in ("published", "published-broadcast")
    }
    if not all(lows.values()):
        return ""
    return (
        f"Table I, published: lowest of {len(lows['published-broadcast'])} broadcast runs "
        f"{1000 * min(lows['published-broadcast']):.3f}e-3, of {len(lows['published'])} runs with column noise "
        f"{1000 * min(lows['published']):.3f}e-3; variance of the noise {1000 * NOISE_VARIANCE:.3f}e-3"
    )


def measure_effect(cells: Cells) -> str:
    """In how many runs the published number lies below what no model can reach on fresh samples."""
    logs = regression_logs(cells, "published")
    below = sum(log.value("min_last_batch_mse_200") < NOISE_VARIANCE for log in logs)
    text = f"Table I: {below} of {len(logs)} published runs report a number below the variance of the noise"
    return text if logs else ""


def seeds_effect(items: list[Comparison]) -> str:
    """How often the Spinal network is lower after 200 epochs."""
    parts = []
    for item in items:
        if item.script == "synthetic_regression" and item.variant == "published":
            scores = [[log.value("min_last_batch_mse_200") for log in pair] for pair in item.pairs]
            won = sum(ours < theirs for ours, theirs in scores)
            parts.append(f"{item.dataset} {won} of {len(item.pairs)}")
    return (
        f"Table I, published: Spinal is lower after 200 epochs in {', '.join(parts)} seeds"
        if parts
        else ""
    )


def cost_effect(costs: list[Cost]) -> str:
    """Multiplications of the ResNet heads."""
    parts = []
    for script, name, width in (("cifar10", "CIFAR-10", 256), ("cifar100", "CIFAR-100", 512)):
        spinal, fc = (
            find(costs, script, "resnet18", "spinal", 4, width),
            find(costs, script, "resnet18", "fc"),
        )
        if spinal and fc:
            parts.append(
                f"{name}: {spinal.multiplications:,} against {fc.multiplications:,}, "
                f"{spinal.multiplications / fc.multiplications:.0f} times"
            )
    return f"counted, no run: {'; '.join(parts)}" if parts else ""


def vgg_effect(paper: list[PaperRow], costs: list[Cost]) -> str:
    """How many printed parameter counts of the VGG rows are those of a network with both classifiers."""
    rows = [row for row in paper if row.table == "III" and row.network == "vgg19_bn"]
    known = [row for row in rows if of_row(costs, row)]
    if not known:
        return ""
    fits = len(known) - len(parameter_rows(known, costs))
    means = {
        (row.script, row.head): float(row.metric("accuracy_avg_pct"))
        for row in rows
        if row.metric("accuracy_avg_pct")
    }
    leads = [
        mean - means[script, "fc"]
        for (script, head), mean in means.items()
        if head == "spinal" and (script, "fc") in means
    ]
    return (
        f"counted, no run: {fits} of {len(known)} printed parameter counts are those of ImageNet's classifier plus "
        "the unused head; a test shows that this head gets no gradient. Against it: "
        f"{sum(lead > 0 for lead in leads)} of {len(leads)} printed Spinal averages are the higher ones (by up to "
        f"{number(max(leads, default=0.0), 2)} points); two draws of one and the same network would do that once "
        f"in {2 ** len(leads):,} times"
    )


def reduction_rows(paper: list[PaperRow], tolerance: float = 0.15) -> list[Row]:
    """Rows whose printed error reduction does not follow from the printed accuracies; accuracies have two decimals."""
    rows = []
    for row in paper:
        printed = row.metric("error_reduction_best_pct_printed", "error_reduction_pct_printed")
        if not printed or row.head != "spinal":
            continue
        default = default_of(row, paper)
        best = [
            item.metric("accuracy_best_pct", "accuracy_pct") if item else ""
            for item in (row, default)
        ]
        if not all(best) or (value := error_reduction(*map(float, best))) is None:
            continue
        ours, base = map(
            float, best
        )  # rounded to two decimals, so the true ones lie within 0.005 of them
        lowest, highest = (
            error_reduction(ours - 0.005, base + 0.005),
            error_reduction(ours + 0.005, base - 0.005),
        )
        if lowest is None or not lowest - tolerance <= float(printed) <= highest + tolerance:
            rows.append(
                {
                    "dataset": row.dataset + (" (v2)" if "v2" in row.table else ""),
                    "head": head_name(row),
                    "network": NETWORKS.get(row.network, row.network),
                    "printed": printed,
                    "recomputed": number(value, 1),
                }
            )
    return rows


def audit_page(
    paper: list[PaperRow],
    cells: Cells,
    items: list[Comparison],
    costs: list[Cost],
    quirks: list[Row],
) -> str:
    """The whole of results/audit.md."""
    effects: dict[str, Callable[[], str]] = {
        "dropout": lambda: dropout_effect(cells),
        "broadcast": lambda: broadcast_effect(cells),
        "measure": lambda: measure_effect(cells),
        "seeds": lambda: seeds_effect(items),
        "cost": lambda: cost_effect(costs),
        "vgg": lambda: vgg_effect(paper, costs),
        "selection-mnist": lambda: selection_effect(
            cells.logs, "vgg5 arch2", "arch2 mnist fashion kmnist qmnist emnist"
        ),
        "selection-cifar": lambda: selection_effect(
            cells.logs, "vgg11 vgg13 vgg16 vgg19 resnet18 resnet34", "cifar"
        ),
        "none": lambda: "",
        "nothing": lambda: "nothing to measure",
    }
    rows = []
    for quirk in quirks:
        if quirk["evidence"] not in effects:
            raise UserError(
                f"quirks.csv names the evidence {quirk['evidence']!r}, which the report does not know"
            )
        rows.append(
            quirk
            | {
                "what": f"{quirk['quirk']}: {quirk['what']} ({quirk['number']})",
                "effect": effects[quirk["evidence"]]() or "not measured",
            }
        )
    return fill(
        "audit.md",
        {
            "quirks": markdown(QUIRKS, rows),
            "reductions": markdown(REDUCTIONS, reduction_rows(paper)),
            "parameters": markdown(PARAMETERS, parameter_rows(paper, costs)),
        },
    )
