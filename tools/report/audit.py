"""The audit page: how paper, released code and a fair comparison differ, and what it does."""

import csv
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from report.comparisons import Identity, dataset_of, image_standard_error, shared_settings
from report.costs import PARAMETERS, Cost, find, of_row, parameter_rows
from report.formats import fill, markdown
from report.inference import error_reduction, mean_of, paired, paired_difference, std_of
from report.logs import Log
from report.names import FUNCTIONS, NOISE_VARIANCE, UserError, network_name, script_order
from report.paper import PaperRow, default_of
from report.rows import BROADCAST, RELEASED, Rows
from report.rules import FEWEST_RUNS
from report.tables import Columns, Row, difference_text, number, seeds_won

KEYS = ("script", "quirk", "number", "what", "consequence", "published", "corrected")
KEYS += ("favours", "evidence")
FAVOURS = ("Spinal", "FC", "neither", "unknown")
DIFFERENCES: Columns = {
    "script": "Where",
    "what_cell": "What the released code does (its number)",
    "consequence": "Consequence",
    "published": "As released, here",
    "corrected": "Corrected",
    "favours": "Favours",
    "effect": "Measured effect, and on which runs",
}
FOLDED: Columns = {
    key: text for key, text in DIFFERENCES.items() if key not in ("favours", "effect")
}
RESNET_WIDTHS = (  # of ResNet-18's Spinal head: the label, then the released script's
    ("cifar10", "CIFAR-10", 20),
    ("cifar10", "CIFAR-10", 256),
    ("cifar100", "CIFAR-100", 128),
    ("cifar100", "CIFAR-100", 512),
)
REDUCTIONS: Columns = {
    "dataset": "Data set",
    "network": "Network",
    "head": "Head",
    "printed": "Printed, %",
    "recomputed": "From the printed best accuracies, %",
}


def read_quirks(path: Path) -> list[Row]:
    """The lines of quirks.csv. Raises UserError."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        rows = list(reader)
    if tuple(reader.fieldnames or ()) != KEYS:
        raise UserError(f"{path} does not have the columns {', '.join(KEYS)}")
    for row in rows:
        if None in row or None in row.values() or row["favours"] not in FAVOURS:
            words = f"nine columns, and in favours one of {', '.join(FAVOURS)}"
            raise UserError(f"{path}: the line of {row['number']} does not have {words}")
    return rows


def dropout_effect(identities: Sequence[Identity]) -> str:
    """What FC gains without its dropout, and what is left of the lead then."""
    parts = [
        f"{each.released.dataset}, CNN, {each.released.heads}: FC gains "
        f"{difference_text(each.gain, 2)} points without its dropout; "
        f"{difference_text(each.left.difference, 2)} are left of the lead"
        for each in identities
        if each.left.difference.judged
    ]
    return "; ".join(parts)


def regression_logs(ours: Rows, variant: str) -> list[Log]:
    found = [
        logs for (row, kind), logs in ours.runs.items() if row.table == "I" and kind == variant
    ]
    return [log for logs in found for log in logs]


def lowest(logs: Sequence[Log]) -> str:
    return f"{1000 * min(log.value('min_last_batch_mse_200') for log in logs):.3f}e-3"


def broadcast_effect(ours: Rows) -> str:
    """How low the paper's measure gets with each kind of noise."""
    column, broadcast = (regression_logs(ours, kind) for kind in (RELEASED, BROADCAST))
    if not column or not broadcast:
        return ""
    return (
        f"Table I: lowest of {len(broadcast)} broadcast runs {lowest(broadcast)}, of {len(column)} "
        f"runs with column noise {lowest(column)}; "
        f"expected variance of the noise {1e3 * NOISE_VARIANCE:.3f}e-3"
    )


def measure_effect(ours: Rows) -> str:
    """In how many runs the printed measure lies below what no model can reach on fresh samples."""
    logs = regression_logs(ours, RELEASED)
    below = sum(log.value("min_last_batch_mse_200") < NOISE_VARIANCE for log in logs)
    text = f"Table I: {below} of {len(logs)} runs as released report less than the noise's variance"
    return text if logs else ""


def seeds_effect(ours: Rows, paper: list[PaperRow]) -> str:
    """How often the Spinal network is lower after 200 epochs."""
    parts = []
    for row in paper:
        if row.table == "I" and row.head == "spinal":
            logs, twins = ours.of(row), ours.of(default_of(row, paper))
            if won := seeds_won(logs, twins, "min_last_batch_mse_200"):
                parts.append(f"{FUNCTIONS[row.function]} {won.removeprefix('Spinal in ')}")
    return f"Table I: Spinal is lower after 200 epochs in {', '.join(parts)} seeds" if parts else ""


def cost_effect(costs: list[Cost]) -> str:
    """Multiplications of the ResNet heads."""
    parts = []
    for script, name, width in RESNET_WIDTHS:
        spinal = find(costs, script, "resnet18", "spinal", 4, width)
        fc = find(costs, script, "resnet18", "fc")
        if spinal and fc:
            times = spinal.multiplications / fc.multiplications
            numbers = f"{spinal.multiplications:,} against {fc.multiplications:,}"
            parts.append(f"{name}, 4 × {width}: {numbers}, {times:.0f} times")
    return f"counted, no run: {'; '.join(parts)}" if parts else ""


def vgg_effect(paper: list[PaperRow], costs: list[Cost]) -> str:
    """How many printed parameter counts are those of a VGG with both classifiers."""
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
        f"counted, no run: {fits} of {len(known)} printed parameter counts are those of ImageNet's "
        "classifier plus the unused head, which gets no gradient (a test). Against it: "
        f"{sum(lead > 0 for lead in leads)} of {len(leads)} printed Spinal averages are the higher "
        f"ones (by up to {number(max(leads, default=0.0), 2)} points); two draws of one "
        f"network would do that once in {2 ** len(leads):,} times"
    )


def selection_effect(logs: Iterable[Log], networks: str, scripts: str) -> str:
    """Best test epoch minus last epoch of networks that select so, and on which runs."""
    groups: dict[tuple, list[Log]] = defaultdict(list)
    for log in logs:
        settings = log.settings
        selects = settings["selection"] == "best_test" and settings["epochs"] >= 10
        mine = settings["network"] in networks.split() and log.script.startswith(scripts)
        if selects and mine:
            name = f"{dataset_of(log)}, {network_name(settings['network'])}"
            key = script_order(log.script), name, settings["epochs"], settings["precision"]
            groups[(*key, log.data["train"])].append(log)
    parts = []
    for (_, name, epochs, precision, train), members in sorted(groups.items()):
        gains = [
            log.end["best_test_accuracy_pct"] - log.end["last_test_accuracy_pct"] for log in members
        ]
        if len(members) >= FEWEST_RUNS:
            spread = f"{number(mean_of(gains), 2, '+')} ± {number(std_of(gains), 2)}"
            runs = f"{name}, {train:,} images, {epochs} epochs, {precision}"
            parts.append(f"{spread} points in {len(members)} runs ({runs})")
    return f"best test epoch minus last epoch: {'; '.join(parts)}" if parts else ""


def densenet_effect(logs: Iterable[Log]) -> str:
    """What DenseNet's FC head gains in training mode (Q22), on which runs."""
    groups: dict[tuple, dict[bool, list[Log]]] = defaultdict(lambda: defaultdict(list))
    for log in logs:
        if log.settings["network"] == "densenet" and log.settings["head"] == "fc":
            groups[shared_settings(log)]["train_mode_epochs" in log.departures].append(log)
    parts = []
    for members in groups.values():
        gain = paired_difference(members[True], members[False])
        if gain.judged:
            first = members[True][0]
            runs = f"{dataset_of(first)}, {first.settings['epochs']} epochs"
            text = f"FC in training mode gains {difference_text(gain, 2)} points ({runs})"
            error = image_standard_error(paired(members[True], members[False]))
            if error is not None:
                words = "another test set of this size would move it by a standard error of"
                text += f"; {words} {error:.2f} points"
            parts.append(text)
    return "; ".join(parts)


def reduction_rows(paper: list[PaperRow], tolerance: float = 0.15) -> list[Row]:
    """Rows whose printed error reduction does not follow from the printed accuracies."""
    rows = []
    for row in paper:
        keys = ("error_reduction_best_pct_printed", "error_reduction_pct_printed")
        printed = row.metric(*keys)
        both = (row, default_of(row, paper))
        best = [each.metric("accuracy_best_pct", "accuracy_pct") if each else "" for each in both]
        if row.head == "fc" or not printed or not all(best):
            continue
        ours, base = map(float, best)  # rounded to two decimals: the true ones lie within 0.005
        value = error_reduction(ours, base)
        lowest = error_reduction(ours - 0.005, base + 0.005)
        highest = error_reduction(ours + 0.005, base - 0.005)
        if None in (value, lowest, highest):
            continue
        if not lowest - tolerance <= float(printed) <= highest + tolerance:
            cells = (row.dataset_name, row.network_name, row.head_name, printed)
            rows.append(dict(zip(REDUCTIONS, (*cells, number(value, 1)), strict=True)))
    return rows


def effects_of(
    paper: list[PaperRow], ours: Rows, identities: Sequence[Identity], costs: list[Cost]
) -> dict[str, str]:
    """What each key of the column `evidence` of quirks.csv says."""
    from_scratch = ("arch2", "mnist", "fashion", "kmnist", "qmnist", "emnist")
    cifar = "vgg11 vgg13 vgg16 vgg19 resnet18 resnet34"
    return {
        "dropout": dropout_effect(identities),
        "broadcast": broadcast_effect(ours),
        "measure": measure_effect(ours),
        "seeds": seeds_effect(ours, paper),
        "cost": cost_effect(costs),
        "vgg": vgg_effect(paper, costs),
        "densenet": densenet_effect(ours.logs),
        "selection-mnist": selection_effect(ours.logs, "vgg5 arch2", from_scratch),
        "selection-cifar": selection_effect(ours.logs, cifar, ("cifar",)),
        "none": "",
        "nothing": "",
    }


def audit_page(
    paper: list[PaperRow],
    ours: Rows,
    identities: Sequence[Identity],
    costs: list[Cost],
    quirks: list[Row],
) -> str:
    """The whole of results/audit.md."""
    effects = effects_of(paper, ours, identities, costs)
    rows, folded, harmless = [], [], []
    for quirk in quirks:
        if quirk["evidence"] not in effects:
            name = repr(quirk["evidence"])
            raise UserError(f"quirks.csv names evidence that the report does not know: {name}")
        what = f"{quirk['quirk']}: {quirk['what']} ({quirk['number']})"
        effect = effects[quirk["evidence"]] or "not measured"
        row = quirk | {"what_cell": what, "effect": effect}
        if quirk["evidence"] == "nothing":
            harmless.append(quirk["number"])
        elif quirk["favours"] == "neither" and effect == "not measured":
            folded.append(row)
        else:
            rows.append(row)
    values = {
        "differences": markdown(DIFFERENCES, rows),
        "folded": markdown(FOLDED, folded),
        "count": str(len(folded)),
        "harmless": "; ".join(harmless),
        "reductions": markdown(REDUCTIONS, reduction_rows(paper)),
        "parameters": markdown(PARAMETERS, parameter_rows(paper, costs)),
    }
    return fill("audit.md", values)
