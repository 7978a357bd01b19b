"""The rows of all tables, as text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from report import inference as stats
from report.inference import Difference, mean_of, paired_difference, std_of
from report.logs import Log, head_label, is_tabular
from report.names import FUNCTIONS, NETWORKS, NOISE_VARIANCE, VARIANTS
from report.paper import PaperRow
from report.rows import (
    Cells,
    Comparison,
    baselines,
    default_of,
    head_name,
    other_groups,
    reading_order,
    variant_of,
)
from report.rules import FEWEST_RUNS, MARGINS


class Column(NamedTuple):
    """A column of a table: key of the row, heading, and the heading that it shares with its neighbours."""

    key: str
    heading: str
    group: str = ""


Row = dict[str, str]
Constants = dict[
    tuple[str, int], float
]  # (function, seed): MSE x 1e3 of the best constant on that seed's fresh samples


def columns(text: str) -> list[Column]:
    """`key: heading; key: group > heading`."""
    parts = [" ".join(part.split()).split(": ", 1) for part in text.split(";")]
    return [Column(key, *reversed(heading.split(" > "))) for key, heading in parts]


ROW = "dataset: Data set; network: Network; head: Head;"
REFERENCE = columns("reference_runs: Reference > n; reference_cell: Reference > mean ± std")
REFERENCE_200 = columns("reference_runs: Reference > n; reference_cell: Reference > @200")
ACCURACY = columns(
    ROW
    + """epochs: Epochs; paper_mean: Paper > mean; paper_best: Paper > best;
    paper_error_reduction: Paper > error red., %; parameters_printed: Paper > parameters; runs: Ours > n;
    mean_cell: Ours > mean ± std; best: Ours > best; above_best: Ours > above paper's best;
    error_reduction: Ours > error red., %; parameters: Ours > parameters; fc_multiplications: Ours > FC mult.;
    verdict: Told apart from the paper?"""
)
ACCURACY_CSV = """table dataset script network head epochs paper_mean paper_best paper_error_reduction runs mean best
    std error_reduction above_best tolerance verdict corrected_runs corrected_mean corrected_std nodropout_runs
    nodropout_mean nodropout_std parameters_printed parameters fc_multiplications fc_saving""".split()
PAIRS = columns(
    ROW
    + """variant: Protocol; paper_difference: Paper; difference_cell: Spinal − FC [95 %] (pairs);
    paper_inside: Paper's inside?; ahead: Spinal ahead in; correlation: Correlation of the heads; p: p > alone;
    p_holm: p > Holm; alone: Decision > alone; decision: Decision > Holm; equivalent: Equivalent? (margin)"""
)
FRONT = (
    "dataset",
    "head",
    "variant",
    "paper_difference",
    "difference_cell",
    "ahead",
    "p_holm",
    "decision",
)
PARTS = columns(
    ROW
    + """variant: Protocol; setting: Images (train / test), epochs, precision; fc_cell: FC, %;
    spinal_cell: Spinal, %; difference_cell: Spinal − FC [95 %] (pairs); p: p > alone; p_holm: p > Holm;
    decision: Decision, Holm; detectable: Seen with 80 % power from; paper_difference: Paper, all data"""
)
PAIRS_CSV = """dataset script network head variant paper_difference difference low high low90 high90 pairs paper_inside
    ahead correlation p p_holm alone decision equivalent""".split()
PARTS_CSV = [
    key for key in PAIRS_CSV if key != "paper_inside"
] + "train test epochs precision detectable".split()


def number(value: float | None, digits: int, sign: str = "") -> str:
    """A number with fixed digits; empty if there is none."""
    if value is None:
        return ""
    return f"{value:{sign}.{digits}f}".replace("-", "−") if math.isfinite(value) else "diverged"


def p_value(value: float | None) -> str:
    return "" if value is None else "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def mean_cell(logs: Sequence[Log], digits: int = 2) -> str:
    """`98.15 ± 0.17`; empty without runs."""
    values = [log.score for log in logs]
    spread = number(std_of(values), digits) if len(values) > 1 else ""
    return (number(mean_of(values), digits) + f" ± {spread}" * bool(spread)) if values else ""


def difference_text(difference: Difference, digits: int = 3, count: bool = True) -> str:
    """`+0.234 [+0.078, +0.390] (10)`."""
    if difference.mean is None:
        return f"({difference.pairs})" if difference.pairs else ""
    low, high = number(difference.low, digits, "+"), number(difference.high, digits, "+")
    text = number(difference.mean, digits, "+") + f" [{low}, {high}]" * bool(low)
    return f"{text} ({difference.pairs})" if count else text


def decisions(differences: Sequence[Difference]) -> list[tuple[float | None, str, str]]:
    """(p by Holm over this table, decision alone, decision by Holm) of each; those that are not judged do not count."""
    judged = [index for index, difference in enumerate(differences) if difference.judged]
    adjusted = dict(zip(judged, stats.holm([differences[index].p for index in judged])))
    return [
        (
            adjusted.get(index),
            stats.decide(difference, difference.p),
            stats.decide(difference, adjusted.get(index)),
        )
        for index, difference in enumerate(differences)
    ]


def difference_fields(
    difference: Difference, decision: tuple[float | None, str, str], margin: float | None
) -> Row:
    """A paired difference in parts for the CSV and for reading, with what is decided on it."""
    fields = {
        key: number(getattr(difference, key), 3) for key in ("low", "high", "low90", "high90")
    }
    return fields | {
        "difference": number(difference.mean, 3),
        "pairs": str(difference.pairs),
        "difference_cell": difference_text(difference),
        "ahead": f"{difference.ahead} of {difference.pairs}",
        "correlation": number(difference.correlation, 2, "+"),
        "p": p_value(difference.p) if difference.judged else "",
        "p_holm": p_value(decision[0]),
        "alone": decision[1],
        "decision": decision[2],
        "equivalent": stats.equivalent(difference, margin),
    }


def pair_rows(items: Sequence[Comparison]) -> list[Row]:
    """Spinal minus FC of image sets: a line for each head and variant, Holm over all of them."""
    items = sorted((item for item in items if not item.spinal[0].regression), key=reading_order)
    rows = []
    for item, decision in zip(items, decisions([item.difference for item in items])):
        printed, middle, settings, data = (
            item.paper_difference,
            item.difference,
            item.settings,
            item.spinal[0].data,
        )
        inside = ""
        if printed is not None and middle.judged and item.variant == "published":
            inside = "yes" if middle.low <= printed <= middle.high else "no"
        rows.append(
            difference_fields(middle, decision, MARGINS.get(settings["dataset"]))
            | {
                "dataset": item.dataset
                + " (arXiv v2 only)" * (item.row is not None and "v2" in item.row.table),
                "script": item.script,
                "network": item.network,
                "head": item.head,
                "variant": VARIANTS[item.variant],
                "paper_difference": number(printed, 2, "+"),
                "paper_inside": inside,
                "detectable": number(stats.detectable(middle), 2),
                "train": str(data["train"]),
                "test": str(data["test"]),
                "epochs": str(settings["epochs"]),
                "precision": settings["precision"],
                "fc_cell": mean_cell([theirs for _, theirs in item.pairs]),
                "spinal_cell": mean_cell([ours for ours, _ in item.pairs]),
                "setting": f"{data['train']:,} / {data['test']:,}, {settings['epochs']}, {settings['precision']}",
            }
        )
    return rows


def accuracy_row(
    row: PaperRow, default: PaperRow | None, cells: Cells, reference: Cells | None
) -> Row:
    """One row of Table II or III: the paper's numbers, ours, the corrected protocol, the verdict."""
    logs, twins = cells.of(row, "published"), cells.of(default, "published")
    corrected = {
        "corrected": cells.of(row, "corrected"),
        "nodropout": cells.of(row, "corrected-nodropout"),
    }
    values, resolution = [log.score for log in logs], stats.resolution_of(logs[0]) if logs else 0.0
    mean, best = row.metric("accuracy_avg_pct"), row.metric("accuracy_best_pct", "accuracy_pct")
    fields = {
        "table": row.table,
        "dataset": row.dataset + " (arXiv v2 only)" * ("v2" in row.table),
        "script": row.script,
        "network": NETWORKS.get(row.network, row.network),
        "head": head_name(row),
        "epochs": row.epochs,
        "paper_mean": mean,
        "paper_best": best,
        "parameters_printed": row.metric("parameters_printed"),
        "paper_error_reduction": row.metric(
            "error_reduction_best_pct_printed", "error_reduction_pct_printed"
        ).replace("-", "−"),
        "runs": str(len(logs)),
        "mean_cell": mean_cell(logs),
        "verdict": stats.judge_row(values, mean, best, resolution),
    }
    if reference and (theirs := reference.of(row, "published")):
        fields |= {"reference_runs": str(len(theirs)), "reference_cell": mean_cell(theirs)}
    if logs:
        fields |= {
            "mean": number(mean_of(values), 3),
            "best": number(max(values), 2),
            "std": number(std_of(values), 3),
        }
        fields["above_best"] = (
            f"{stats.above_best(values, best)[0]} of {len(values)}" if best and mean else ""
        )
    if len(logs) >= FEWEST_RUNS:
        fields["tolerance"] = number(stats.tolerance_of(values, resolution), 3)
    for prefix, members in corrected.items():
        scores = [log.score for log in members]
        fields[f"{prefix}_runs"] = str(len(members))
        if members:
            fields |= {
                f"{prefix}_mean": number(mean_of(scores), 3),
                f"{prefix}_std": number(std_of(scores), 3),
            }
    for key in ("parameters", "fc_multiplications"):
        counts = {log.start[key] for log in logs or next(filter(None, corrected.values()), [])}
        fields[key] = " / ".join(f"{count:,}" for count in sorted(counts))
    if row.head == "spinal" and logs and twins:
        fields["error_reduction"] = number(
            stats.error_reduction(max(values), max(log.score for log in twins)), 1
        )
        ours, theirs = (group[0].start["fc_multiplications"] for group in (logs, twins))
        fields["fc_saving"] = number(100 - 100 * ours / theirs, 1)
    return fields


def accuracy_rows(
    paper: list[PaperRow], cells: Cells, *tables: str, reference: Cells | None = None
) -> list[Row]:
    """The rows of these tables of the paper, in the paper's order."""
    return [
        accuracy_row(row, default_of(row, paper), cells, reference)
        for table in tables
        for row in paper
        if row.table == table
    ]


REGRESSION = columns("""function: Function; head: Head; paper_100_cell: Paper > @100; paper_200_cell: Paper > @200;
    runs: Ours > n; minimum_100_cell: Ours > @100; minimum_200_cell: Ours > @200; verdict_100: Verdict > @100;
    verdict_200: Verdict > @200; paper_winner: Lower @200 > paper; spinal_wins: Lower @200 > ours""")
LEARNT = columns("""function: Function; head: Head; constant: Constant; runs: Published network > n;
    spinal_wins: Published network > lower by the paper's measure; published_clean_cell: Published network > clean MSE;
    published_clean_wins: Published network > lower clean MSE;
    published_clean_better: Published network > better than the constant in; corrected_runs: Corrected network > n;
    corrected_train_cell: Corrected network > train MSE; corrected_clean_cell: Corrected network > clean MSE;
    corrected_clean_wins: Corrected network > lower clean MSE;
    corrected_clean_better: Corrected network > better than the constant in;
    broadcast_200_cell: Broadcast noise > minimum @200""")
SPREADS = (
    "minimum_100",
    "minimum_200",
    "broadcast_200",
    "published_clean",
    "corrected_train",
    "corrected_clean",
)
REGRESSION_CSV = (
    """table function head paper_100 paper_200 runs broadcast_runs corrected_runs constant verdict_100
    verdict_200 paper_winner spinal_wins published_clean_wins corrected_clean_wins published_clean_better
    corrected_clean_better""".split()
    + [f"{name}_{part}" for name in SPREADS for part in ("median", "low", "high")]
)


def dagger(value: float, text: str) -> str:
    """Marks an MSE (in units of 1e-3) below the noise variance."""
    return text + "†" * (value < 1000 * NOISE_VARIANCE)


def spread_fields(prefix: str, logs: Sequence[Log], key: str, mark: bool = False) -> Row:
    """Median and range over seeds of a number of the end line × 1e3, in parts and as one cell."""
    if not logs:
        return {}
    values = [1000 * log.value(key) for log in logs]
    parts = (statistics.median(values), min(values), max(values))
    median, low, high = (number(value, 3 if parts[0] < 100 else 0) for value in parts)
    return {
        f"{prefix}_median": number(parts[0], 3),
        f"{prefix}_low": number(parts[1], 3),
        f"{prefix}_high": number(parts[2], 3),
        f"{prefix}_cell": f"{dagger(parts[0], median) if mark else median} [{low}, {high}]",
    }


def seeds_won(spinal: Sequence[Log], default: Sequence[Log], key: str) -> str:
    """In how many paired seeds the Spinal head has the lower MSE."""
    partner = {log.seed: log for log in default}
    pairs = [
        (log.value(key), partner[log.seed].value(key)) for log in spinal if log.seed in partner
    ]
    return (
        f"Spinal in {sum(ours < theirs for ours, theirs in pairs)} of {len(pairs)}" if pairs else ""
    )


def regression_row(
    row: PaperRow, default: PaperRow, cells: Cells, constants: Constants, reference: Cells | None
) -> Row:
    """One row of Table I: the paper's minima, ours with both shapes of noise, and what the networks really learnt."""
    variants = ("published", "corrected", "published-broadcast")
    logs, corrected, broadcast = (cells.of(row, variant) for variant in variants)
    fields = {
        "table": "I",
        "function": FUNCTIONS.get(row.function, row.function),
        "head": head_name(row),
        "runs": str(len(logs)),
        "broadcast_runs": str(len(broadcast)),
        "corrected_runs": str(len(corrected)),
    }
    for epochs in ("100", "200"):
        printed = row.values["min_mse_x1e-3", epochs]
        values = [1000 * log.value(f"min_last_batch_mse_{epochs}") for log in logs]
        fields |= {
            f"paper_{epochs}": printed,
            f"paper_{epochs}_cell": dagger(float(printed), printed),
            f"verdict_{epochs}": stats.judge_spread(values, printed),
        }
        fields |= spread_fields(f"minimum_{epochs}", logs, f"min_last_batch_mse_{epochs}", True)
    fields |= spread_fields("broadcast_200", broadcast, "min_last_batch_mse_200")
    fields |= spread_fields("corrected_train", corrected, "train_mse", True)
    if reference and (theirs := reference.of(row, "published")):
        cell = spread_fields("reference", theirs, "min_last_batch_mse_200", True)["reference_cell"]
        fields |= {"reference_runs": str(len(theirs)), "reference_cell": cell}
    for name, members in (("published", logs), ("corrected", corrected)):
        fields |= spread_fields(f"{name}_clean", members, "clean_mse")
        known = [
            (1000 * log.value("clean_mse"), constants[row.function, log.seed])
            for log in members
            if (row.function, log.seed) in constants
        ]
        fields[f"{name}_clean_better"] = (
            f"{sum(a < b for a, b in known)} of {len(known)}" if known else ""
        )
    if scores := [value for (function, _), value in constants.items() if function == row.function]:
        fields["constant"] = number(
            statistics.median(scores), 1 if statistics.median(scores) < 100 else 0
        )
    if row.head == "spinal":
        ours, theirs = (float(which.values["min_mse_x1e-3", "200"]) for which in (row, default))
        twins = cells.of(default, "published")
        fields |= {
            "paper_winner": "tie" if ours == theirs else "Spinal" if ours < theirs else "FC",
            "spinal_wins": seeds_won(logs, twins, "min_last_batch_mse_200"),
            "published_clean_wins": seeds_won(logs, twins, "clean_mse"),
            "corrected_clean_wins": seeds_won(
                corrected, cells.of(default, "corrected"), "clean_mse"
            ),
        }
    return fields


def regression_rows(
    paper: list[PaperRow], cells: Cells, constants: Constants, reference: Cells | None = None
) -> list[Row]:
    """Table I, the two heads of a function one after the other."""
    rows = [row for row in paper if row.table == "I"]
    rows.sort(key=lambda row: (list(FUNCTIONS).index(row.function), row.head))
    return [
        regression_row(row, default_of(row, paper), cells, constants, reference) for row in rows
    ]


OTHER = columns("""script: Script; dataset: Data set; network: Network; head: Head; protocol: Protocol;
    reason: Why it is not a row of the paper; epochs: Epochs; sizes: Train / held out / test; fingerprint: Data;
    metric: Metric; runs: n; mean: Mean; best: Best; std: Std; difference_cell: Spinal − FC [95 %] (pairs);
    parameters: Parameters; fc_multiplications: FC mult.""")
OTHER_CSV = """script dataset network head protocol reason epochs train heldout test sha256 metric runs mean best std
    difference low high pairs parameters fc_multiplications""".split()


def other_rows(others: Sequence[tuple[Log, str]], reference: Cells | None = None) -> list[Row]:
    """Every group of runs outside the paper's rows, labelled for what it is, with its FC runs as the baseline."""
    groups, known, rows = (
        other_groups(others),
        other_groups(reference.others) if reference else {},
        [],
    )
    twins = baselines(groups)
    for key, logs in groups.items():
        first, settings, values = logs[0], logs[0].settings, [log.score for log in logs]
        digits, metric = (6, "clean_mse") if first.regression else (3, "test accuracy, %")
        if is_tabular(settings):
            digits, metric = 1, "test MSE"
        row = {
            "script": first.script,
            "dataset": f"{settings['dataset']} {settings.get('function', '')}".strip(),
            "network": settings["network"],
            "head": head_label(settings),
            "protocol": variant_of(first),
            "reason": key[5],
            "epochs": str(settings["epochs"]),
            "sha256": first.data_key or "by seed",
            "fingerprint": first.data_key[:8] or "by seed",
            "runs": str(len(logs)),
            "metric": metric,
            "sizes": " / ".join(str(first.data[part]) for part in ("train", "heldout", "test")),
            "mean": number(mean_of(values), digits),
            "std": number(std_of(values), digits),
            "best": number(min(values) if first.regression else max(values), digits),
        }
        row |= {part: str(first.data[part]) for part in ("train", "heldout", "test")}
        row |= {name: f"{first.start[name]:,}" for name in ("parameters", "fc_multiplications")}
        if key in known:
            row |= {
                "reference_runs": str(len(known[key])),
                "reference_cell": mean_cell(known[key], digits),
            }
        if key in twins:
            row |= difference_fields(paired_difference(logs, twins[key]), (None, "", ""), None)
        rows.append(row)
    return rows
