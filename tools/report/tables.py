"""The rows of all tables, as text. Keys that end in `_cell` are for reading, others for the CSV."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence

from report import inference
from report.comparisons import Comparison, Identity, dataset_of
from report.inference import Difference, mean_of, paired_difference, std_of
from report.logs import Log
from report.names import FUNCTIONS, NOISE_VARIANCE, network_name, script_order
from report.paper import Constants, PaperRow, default_of
from report.rows import BROADCAST, CORRECTED, NO_DROPOUT, RELEASED, Rows, dropout_words, variant_of
from report.rules import FEWEST_RUNS, MARGINS
from report.settings import canonical, is_tabular

FC_RUNS = " ‡"  # these are the runs of the FC row, whose network is the same
Row = dict[str, str]
Columns = dict[str, str]  # key of the row: heading

IDENTITY: Columns = {
    "dataset": "Data set",
    "head": "Spinal head",
    "paper": "Paper: Spinal − FC",
    "released_cell": "As released (pairs)",
    "gain_cell": "= FC's gain without its dropout",
    "left_cell": "+ left: no dropout in either",
    "p_holm": "p, Holm",
    "decision": "Decision",
}
PAIRS: Columns = {
    "dataset": "Data set",
    "head_cell": "Network, head",
    "treatment": "Both heads trained",
    "setting_cell": "Images (train / test), training",
    "fc_cell": "FC, %",
    "spinal_cell": "Spinal, %",
    "difference_cell": "Spinal − FC [95 %] (pairs)",
    "paper": "Paper, as released, all data",
}
VGG5: Columns = {
    "dataset": "Data set",
    "treatment": "Both heads trained",
    "setting_cell": "Images (train / test), training",
    "fc_cell": "FC, %",
    "spinal_cell": "Spinal, %",
    "difference_cell": "Spinal − FC [95 %] (pairs)",
    "detectable_cell": "Seen with 80 % power from",
    "paper": "Paper, all data",
}
ACCURACY: Columns = {
    "dataset": "Data set",
    "head_cell": "Network, head",
    "paper_cell": "Paper: mean (best)",
    "ours_cell": "Ours: mean ± std (runs)",
    "best": "Ours: best",
    "above_best": "Above paper's best",
    "corrected_cell": "Ours, corrected",
    "verdict": "Told apart from the paper?",
}
REGRESSION: Columns = {
    "function": "Function",
    "head": "Head",
    "paper_100_cell": "Paper @100",
    "minimum_100_cell": "Ours @100",
    "paper_200_cell": "Paper @200",
    "minimum_200_cell": "Ours @200",
    "verdict_cell": "Paper's value, @100; @200",
    "wins_cell": "Lower @200: paper; ours",
}
LEARNT: Columns = {
    "function": "Function",
    "head": "Head",
    "constant": "Best constant",
    "released_clean_cell": "As released",
    "released_clean_wins": "lower, as released",
    "corrected_clean_cell": "Corrected",
    "corrected_clean_better": "Corrected: better than the constant in",
    "broadcast_200_cell": "Broadcast noise: smallest last batch @200",
}
PRECISION: Columns = {
    "dataset": "Data set",
    "head_cell": "Network, head",
    "setting_cell": "Trained; images, epochs, device",
    "fp32_cell": "fp32, %",
    "difference_cell": "bf16 − fp32 [95 %] (pairs)",
    "narrow_cell": "90 %",
    "alone": "Told apart?",
    "equivalent": "Equivalent? (margin)",
}
OTHER: Columns = {
    "dataset": "Data set",
    "head_cell": "Script: network, head",
    "variant": "Trained",
    "reason": "Why it is no row of the paper",
    "sizes_cell": "Train / held out / test; epochs",
    "sha256": "Data",
    "runs": "n",
    "mean_cell": "Mean ± std",
}


def number(value: float | None, digits: int, sign: str = "") -> str:
    """A number with fixed digits; empty if there is none."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return "diverged"
    return f"{value:{sign}.{digits}f}".replace("-", "−")


def p_value(value: float | None) -> str:
    if value is None:
        return ""
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def mean_cell(logs: Sequence[Log], digits: int = 2, count: bool = False) -> str:
    """`98.15 ± 0.17 (10)`; empty without runs."""
    if not logs:
        return ""
    values = [log.score for log in logs]
    spread = number(std_of(values), digits)
    text = number(mean_of(values), digits) + (f" ± {spread}" if spread else "")
    return f"{text} ({len(values)})" if count else text


def difference_text(difference: Difference, digits: int = 3, count: bool = True) -> str:
    """`+0.234 [+0.078, +0.390] (10)`."""
    if difference.mean is None:
        return f"({difference.pairs})" if difference.pairs else ""
    low, high = (number(end, digits, "+") for end in (difference.low, difference.high))
    text = number(difference.mean, digits, "+") + (f" [{low}, {high}]" if low else "")
    return f"{text} ({difference.pairs})" if count else text


def difference_fields(difference: Difference, prefix: str = "") -> Row:
    """A paired difference in parts for the CSV, and as one cell for reading."""
    ends = ("low", "high", "low90", "high90", "std")
    fields = {f"{prefix}{key}": number(getattr(difference, key), 3) for key in ends}
    p = p_value(difference.p) if difference.judged else ""
    return {
        f"{prefix}difference": number(difference.mean, 3),
        f"{prefix}difference_cell": difference_text(difference),
        f"{prefix}pairs": str(difference.pairs),
        f"{prefix}ahead": f"{difference.ahead} of {difference.pairs}",
        f"{prefix}p": p,
        **fields,
    }


# ---- Spinal against FC --------------------------------------------------------------------------
def identity_rows(identities: Sequence[Identity]) -> list[Row]:
    """The lead as released, in two parts. Holm over the parts without dropout."""
    decisions = inference.decisions([each.left.difference for each in identities])
    rows = []
    for each, (p, decision) in zip(identities, decisions, strict=True):
        parts = {"released": each.released.difference, "gain": each.gain}
        parts["left"] = each.left.difference
        row = {
            "dataset": each.released.dataset,
            "script": each.released.script,
            "head": each.released.heads,
            "setting": each.released.setting,
            "paper": number(each.released.paper_difference, 2, "+"),
            "p_holm": p_value(p),
            "decision": decision,
        }
        for name, part in parts.items():
            row |= difference_fields(part, f"{name}_")
            row[f"{name}_cell"] = difference_text(part, count=name == "released")
        margin = MARGINS.get(each.released.dataset)
        row["equivalent"] = inference.equivalent(each.left.difference, margin)
        rows.append(row)
    return rows


def pair_row(item: Comparison) -> Row:
    """A comparison of two heads: a line of PAIRS or VGG5."""
    difference, data = item.difference, item.first.data
    seen = inference.detectable(difference)
    power = [number(value, 2) for value in seen] if seen else []
    row = {
        "dataset": item.dataset,
        "script": item.script,
        "network": item.network,
        "head": item.heads,
        "head_cell": f"{item.network}, {item.heads}",
        "treatment": item.treatment,
        "train": str(data["train"]),
        "test": str(data["test"]),
        "epochs": str(item.first.settings["epochs"]),
        "precision": item.first.settings["precision"],
        "device": item.first.device,
        "setting_cell": item.setting,
        "fc_cell": mean_cell([theirs for _, theirs in item.pairs]),
        "spinal_cell": mean_cell([ours for ours, _ in item.pairs]),
        "fc_mean": number(mean_of([theirs.score for _, theirs in item.pairs]), 3),
        "spinal_mean": number(mean_of([ours.score for ours, _ in item.pairs]), 3),
        "paper": number(item.paper_difference, 2, "+"),
        "correlation": number(difference.correlation, 2, "+"),
        "detectable": power[0] if power else "",
        "detectable_cell": "{} ({} to {})".format(*power) if power else "",
    }
    return row | difference_fields(difference)


# ---- Tables II and III --------------------------------------------------------------------------
def corrected_cell(logs: dict[str, list[Log]]) -> str:
    """The corrected runs of a row, by what their heads have in dropout."""
    cells = [
        mean_cell(members, count=True) + variant.removeprefix(CORRECTED)
        for variant, members in logs.items()
        if members
    ]
    return "; ".join(cells)


def ours_fields(values: list[float], best: str, average: str, resolution: float) -> Row:
    """Our runs of a row in numbers; empty without runs."""
    if not values:
        return dict.fromkeys(("mean", "best", "std", "above_best", "tolerance"), "")
    tolerance = None
    if len(values) >= FEWEST_RUNS:
        tolerance = inference.tolerance_of(values, resolution)
    above = f"{inference.above_best(values, best)[0]} of {len(values)}"
    return {
        "mean": number(mean_of(values), 3),
        "best": number(max(values), 2),
        "std": number(std_of(values), 3),
        "above_best": above if best and average else "",
        "tolerance": number(tolerance, 3),
    }


def same_network(row: PaperRow) -> bool:
    """As released, VGG-19_bn never calls its new head: both rows train one network (Q1)."""
    return row.table == "III" and row.network == "vgg19_bn"


def accuracy_row(row: PaperRow, paper: list[PaperRow], ours: Rows, reference: Rows | None) -> Row:
    """One row of Table II or III: the paper's numbers, ours, corrected runs, the verdict."""
    own, twins = ours.of(row), ours.of(default_of(row, paper))
    logs = own or (twins if same_network(row) else [])
    variants = (CORRECTED, CORRECTED + NO_DROPOUT, CORRECTED + dropout_words(0.5))
    corrected = {variant: ours.of(row, variant) for variant in variants}
    values = [log.score for log in logs]
    resolution = inference.resolution_of(logs[0]) if logs else 0.0
    mean, best = row.metric("accuracy_avg_pct"), row.metric("accuracy_best_pct", "accuracy_pct")
    counted = logs or next(filter(None, corrected.values()), [])
    fields = {
        "table": row.table,
        "dataset": dataset_of(logs[0]) if logs and not logs[0].verified else row.dataset_name,
        "script": row.script,
        "network": row.network_name,
        "head": row.head_name,
        "head_cell": f"{row.network_name}, {row.head_name}",
        "epochs": row.epochs,
        "paper_mean": mean,
        "paper_best": best,
        "paper_cell": f"{mean} ({best})" if mean else f"({best})",
        "parameters_printed": row.metric("parameters_printed"),
        "runs": str(len(logs)),
        "ours_cell": mean_cell(logs, count=True) + (FC_RUNS if logs and not own else ""),
        **ours_fields(values, best, mean, resolution),
        "verdict": inference.judge_row(values, mean, best, resolution),
        "corrected_cell": corrected_cell(corrected),
        "corrected_runs": str(sum(map(len, corrected.values()))),
        "reference_cell": mean_cell(reference.of(row), count=True) if reference else "",
    }
    fields |= {"error_reduction": "", "fc_saving": ""}
    for key in ("parameters", "fc_multiplications"):
        fields[key] = " / ".join(
            str(count) for count in sorted({log.start[key] for log in counted})
        )
    if row.head == "spinal" and own and twins:
        reduction = inference.error_reduction(max(values), max(log.score for log in twins))
        ours, theirs = (group[0].start["fc_multiplications"] for group in (logs, twins))
        fields["error_reduction"] = number(reduction, 1)
        fields["fc_saving"] = number(100 - 100 * ours / theirs, 1)
    return fields


def accuracy_rows(
    paper: list[PaperRow], ours: Rows, *tables: str, reference: Rows | None = None
) -> list[Row]:
    """The rows of these tables of the paper, in the paper's order."""
    rows = [row for table in tables for row in paper if row.table == table]
    return [accuracy_row(row, paper, ours, reference) for row in rows]


# ---- Table I ------------------------------------------------------------------------------------
def dagger(value: float, text: str) -> str:
    """Marks an MSE (in units of 1e-3) below the noise variance."""
    return text + ("†" if value < 1000 * NOISE_VARIANCE else "")


def spread_fields(prefix: str, logs: Sequence[Log], key: str, mark: bool = False) -> Row:
    """Median and range over seeds of a number of the end line × 1e3, in parts and as one cell."""
    names = [f"{prefix}_{part}" for part in ("median", "low", "high", "cell")]
    if not logs:
        return dict.fromkeys(names, "")
    values = [1000 * log.value(key) for log in logs]
    parts = (statistics.median(values), min(values), max(values))
    median, low, high = (number(value, 3 if parts[0] < 100 else 0) for value in parts)
    cell = f"{dagger(parts[0], median) if mark else median} [{low}, {high}]"
    return dict(zip(names, [*(number(part, 3) for part in parts), cell], strict=True))


def seeds_won(spinal: Sequence[Log], default: Sequence[Log], key: str) -> str:
    """In how many paired seeds the Spinal head has the lower MSE."""
    partner = {log.seed: log for log in default}
    pairs = [
        (log.value(key), partner[log.seed].value(key)) for log in spinal if log.seed in partner
    ]
    if not pairs:
        return ""
    return f"Spinal in {sum(ours < theirs for ours, theirs in pairs)} of {len(pairs)}"


def better_than_constant(row: PaperRow, logs: Sequence[Log], constants: Constants) -> str:
    """In how many seeds the network is closer to the function than the best constant."""
    known = [
        (1000 * log.value("clean_mse"), constants[row.function, log.seed])
        for log in logs
        if (row.function, log.seed) in constants
    ]
    return f"{sum(ours < constant for ours, constant in known)} of {len(known)}" if known else ""


def spinal_wins(row: PaperRow, default: PaperRow, ours: Rows) -> Row:
    """Which head is lower, as printed and in our seeds; empty for an FC row."""
    keys = ("paper_winner", "spinal_wins", "released_clean_wins", "corrected_clean_wins")
    if row.head == "fc":
        return dict.fromkeys((*keys, "wins_cell"), "")
    spinal, fc = (float(which.values["min_mse_x1e-3", "200"]) for which in (row, default))
    winner = "Spinal" if spinal < fc else "FC"
    released, corrected = (
        (ours.of(row, variant), ours.of(default, variant)) for variant in (RELEASED, CORRECTED)
    )
    wins = seeds_won(*released, "min_last_batch_mse_200")
    learnt = [seeds_won(*pair, "clean_mse") for pair in (released, corrected)]
    values = ("tie" if spinal == fc else winner, wins, *learnt)
    cell = f"{values[0]}; {wins or 'not run yet'}"
    return dict(zip(keys, values, strict=True)) | {"wins_cell": cell}


def regression_row(row: PaperRow, paper: list[PaperRow], ours: Rows, constants: Constants) -> Row:
    """One row of Table I: the paper's minima, ours, and what the networks really learnt."""
    logs, corrected, broadcast = (ours.of(row, v) for v in (RELEASED, CORRECTED, BROADCAST))
    fields = {
        "table": "I",
        "function": FUNCTIONS.get(row.function, row.function),
        "head": row.head_name,
        "runs": str(len(logs)),
        "corrected_runs": str(len(corrected)),
        "broadcast_runs": str(len(broadcast)),
    }
    for epochs in ("100", "200"):
        printed, key = row.values["min_mse_x1e-3", epochs], f"min_last_batch_mse_{epochs}"
        values = [1000 * log.value(key) for log in logs]
        fields |= {
            f"paper_{epochs}": printed,
            f"paper_{epochs}_cell": dagger(float(printed), printed),
            f"verdict_{epochs}": inference.judge_range(values, printed),
        }
        fields |= spread_fields(f"minimum_{epochs}", logs, key, True)
    fields["verdict_cell"] = f"{fields['verdict_100']}; {fields['verdict_200']}"
    fields |= spread_fields("broadcast_200", broadcast, "min_last_batch_mse_200")
    fields |= spread_fields("released_clean", logs, "clean_mse")
    fields |= spread_fields("corrected_clean", corrected, "clean_mse")
    fields |= spread_fields("corrected_train", corrected, "train_mse", True)
    fields["released_clean_better"] = better_than_constant(row, logs, constants)
    fields["corrected_clean_better"] = better_than_constant(row, corrected, constants)
    scores = [value for (function, _), value in constants.items() if function == row.function]
    middle = statistics.median(scores) if scores else None
    fields["constant"] = number(middle, 1 if scores and middle < 100 else 0)
    return fields | spinal_wins(row, default_of(row, paper), ours)


def regression_rows(paper: list[PaperRow], ours: Rows, constants: Constants) -> list[Row]:
    """Table I, the two heads of a function one after the other."""
    return [
        regression_row(row, paper, ours, constants)
        for function in FUNCTIONS
        for head in ("fc", "spinal")
        for row in paper
        if (row.table, row.function, row.head) == ("I", function, head)
    ]


# ---- Precision, and everything that is no row ---------------------------------------------------
def precision_rows(logs: Iterable[Log]) -> list[Row]:
    """bf16 minus fp32 of runs that are equal in everything else, paired by seed."""
    groups: dict[tuple, dict[str, list[Log]]] = defaultdict(lambda: defaultdict(list))
    for log in logs:
        if not log.regression:
            rest = {key: value for key, value in log.settings.items() if key != "precision"}
            key = (script_order(log.script), log.head, canonical(rest), log.data_key, log.device)
            groups[key][log.settings["precision"]].append(log)
    rows = []
    for _, group in sorted(groups.items()):
        difference = paired_difference(group["bf16"], group["fp32"])
        if difference.judged:
            rows.append(precision_row(group["fp32"], difference))
    return rows


def precision_row(fp32: list[Log], difference: Difference) -> Row:
    """One line of PRECISION."""
    log, settings = fp32[0], fp32[0].settings
    told = inference.decide(difference, difference.p)
    margin = MARGINS.get(settings["dataset"]) if settings["network"] == "cnn" else None
    ends = [number(end, 3, "+") for end in (difference.low90, difference.high90)]
    setting = f"{variant_of(log)}; {log.data['train']:,}, {settings['epochs']}, {log.device}"
    return {
        "dataset": dataset_of(log),
        "head_cell": f"{network_name(settings['network'])}, {log.head}",
        "network": settings["network"],
        "head": log.head,
        "variant": variant_of(log),
        "setting_cell": setting,
        "fp32_cell": mean_cell(fp32),
        "narrow_cell": " to ".join(ends),
        "alone": "no" if told == "undecided" else "yes",
        "equivalent": inference.equivalent(difference, margin) or "no margin",
        **difference_fields(difference),
    }


def other_rows(others: Sequence[tuple[Log, str]], reference: Sequence[Log] = ()) -> list[Row]:
    """Every group of runs outside the paper's rows, labelled for what it is."""
    groups: dict[tuple, list[Log]] = defaultdict(list)
    for log, reason in others:
        order = script_order(log.script), log.settings["network"], reason, log.head
        groups[(*order, variant_of(log), *log.experiment)].append(log)
    known: dict[tuple, list[Log]] = defaultdict(list)
    for log in reference:
        known[(log.script, *log.experiment)].append(log)
    rows = []
    for key, logs in sorted(groups.items()):
        log = logs[0]
        row = other_row(logs, key[2])
        row["reference_cell"] = mean_cell(known[(log.script, *log.experiment)], count=True)
        rows.append(row)
    return rows


def other_row(logs: list[Log], reason: str) -> Row:
    """One line of OTHER."""
    log, settings = logs[0], logs[0].settings
    values = [each.score for each in logs]
    digits, metric = (6, "clean MSE") if log.regression else (3, "test accuracy, %")
    if is_tabular(settings):
        digits, metric = 1, "test MSE"
    sizes = " / ".join(f"{log.data[part]:,}" for part in ("train", "heldout", "test"))
    variant = variant_of(log)
    if "fc_dropout" in log.departures and settings["protocol"] == "published":
        variant += f", dropout {settings['fc_dropout']:g}"
    row = {
        "script": log.script,
        "dataset": settings.get("function") or dataset_of(log),
        "network": settings["network"],
        "head": log.head,
        "head_cell": f"{log.script}: {settings['network']}, {log.head}",
        "variant": variant,
        "reason": reason,
        "epochs": str(settings["epochs"]),
        "precision": settings["precision"],
        "sizes_cell": f"{sizes}; {settings['epochs']}",
        "sha256": log.data_key[:8] or "by seed",
        "device": log.device,
        "metric": metric,
        "runs": str(len(logs)),
        "mean": number(mean_of(values), digits),
        "std": number(std_of(values), digits),
        "best": number(min(values) if log.regression else max(values), digits),
        "mean_cell": mean_cell(logs, digits if log.regression else 2),
    }
    row |= {part: str(log.data[part]) for part in ("train", "heldout", "test")}
    return row | {key: str(log.start[key]) for key in ("parameters", "fc_multiplications")}
