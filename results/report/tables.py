"""The rows of all tables, as text."""
from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from report.cells import Cells, head_name, variant_of
from report.facts import FEWEST_RUNS, FEWEST_SEEDS, FUNCTIONS, HEAD_KEYS, NETWORKS, NOISE_VARIANCE, PAPER_ROUNDING, PAPER_RUNS
from report.logs import Log, canonical, head_label, is_tabular
from report.paper import PaperRow
from report.statistics import (
    Difference, error_reduction, half_width, judge_claim, judge_mean, mean_of, paired_difference, resolution_of, std_of)


class Column(NamedTuple):
    """A column of a table: key of the row, heading, and the heading that it shares with its neighbours."""
    key: str
    heading: str
    group: str = ""


Row = dict[str, str]
VARIANTS = {"": "published", "corrected_": "corrected", "nodropout_": "corrected-nodropout"}  # of Table II: prefix of its keys

ROW_COLUMNS = [Column("dataset", "Data set"), Column("network", "Network"), Column("head", "Head")]
ACCURACY_COLUMNS = ROW_COLUMNS + [
    Column("epochs", "Epochs"),
    Column("paper_mean", "mean", "Paper"), Column("paper_best", "best", "Paper"),
    Column("paper_error_reduction", "error red., %", "Paper"), Column("parameters_printed", "parameters", "Paper"),
    Column("runs", "n", "Ours"), Column("mean_cell", "mean ± std", "Ours"), Column("best", "best", "Ours"),
    Column("error_reduction", "error red., %", "Ours"), Column("parameters", "parameters", "Ours"),
    Column("verdict", "Verdict"),
]
PAIR_COLUMNS = ROW_COLUMNS + [
    Column("fc_multiplications", "FC mult."), Column("fc_saving", "fewer, %"),
    Column("paper_difference", "Paper"), Column("difference_cell", "Published"), Column("corrected_difference_cell", "Corrected"),
    Column("nodropout_difference_cell", "Corrected, no FC dropout"), Column("spinal_beats_fc", "published", "Spinal beats FC?"),
    Column("corrected_spinal_beats_fc", "corrected", "Spinal beats FC?"),
    Column("nodropout_spinal_beats_fc", "no FC dropout", "Spinal beats FC?"),
]
ACCURACY_CSV = [
    "table", "dataset", "script", "network", "head", "epochs", "paper_mean", "paper_best", "paper_error_reduction", "runs", "mean",
    "best", "std", "error_reduction", "difference", "difference_low", "difference_high", "pairs", "corrected_runs",
    "corrected_mean", "corrected_std", "corrected_difference", "corrected_difference_low", "corrected_difference_high",
    "corrected_pairs", "nodropout_runs", "nodropout_mean", "nodropout_std", "nodropout_difference", "nodropout_difference_low",
    "nodropout_difference_high", "nodropout_pairs", "parameters_printed", "parameters", "fc_multiplications", "fc_saving",
    "tolerance", "verdict", "spinal_beats_fc", "corrected_spinal_beats_fc", "nodropout_spinal_beats_fc"]


def number(value: float | None, digits: int, sign: str = "") -> str:
    """A number with fixed digits; empty if there is none."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return "diverged"
    text = f"{value:{sign}.{digits}f}"
    return text.replace("-", "−")


def difference_fields(prefix: str, difference: Difference) -> Row:
    """A paired difference in parts for the CSV, and as one cell for reading."""
    low, high = number(difference.low, 3, "+"), number(difference.high, 3, "+")
    cell = number(difference.mean, 3, "+")
    cell += f" [{low}, {high}]" if low else ""
    return {f"{prefix}difference": number(difference.mean, 3), f"{prefix}difference_low": number(difference.low, 3),
            f"{prefix}difference_high": number(difference.high, 3), f"{prefix}pairs": str(difference.pairs),
            f"{prefix}difference_cell": f"{cell} ({difference.pairs})" if difference.pairs else ""}


def accuracy_row(row: PaperRow, default: PaperRow | None, cells: Cells) -> Row:
    """One row of Table II or III: the paper's numbers, ours, the corrected protocol, the verdicts."""
    logs, others = cells.of(row, "published"), {prefix: cells.of(row, variant) for prefix, variant in VARIANTS.items() if prefix}
    values = [log.score for log in logs]
    paper_mean = row.metric("accuracy_avg_pct")
    resolution = resolution_of(logs[0]) if logs else 0.0
    fields = {
        "table": row.table, "dataset": row.dataset, "script": row.script, "network": NETWORKS.get(row.network, row.network),
        "head": head_name(row), "epochs": row.epochs, "paper_mean": paper_mean,
        "paper_best": row.metric("accuracy_best_pct", "accuracy_pct"),
        "paper_error_reduction": row.metric("error_reduction_best_pct_printed", "error_reduction_pct_printed"),
        "parameters_printed": row.metric("parameters_printed"), "runs": str(len(logs)),
        "verdict": judge_mean(values, paper_mean, resolution),
    }
    if logs:
        fields |= {"mean": number(mean_of(values), 3), "best": number(max(values), 2), "std": number(std_of(values), 3)}
        fields["mean_cell"] = number(mean_of(values), 2) + (f" ± {number(std_of(values), 2)}" if len(values) > 1 else "")
    if len(logs) >= FEWEST_RUNS:
        fields["tolerance"] = number(half_width(values, 1 / PAPER_RUNS, resolution) + PAPER_ROUNDING, 3)
    for prefix, members in others.items():
        fields[f"{prefix}runs"] = str(len(members))
        if members:
            scores = [log.score for log in members]
            fields |= {f"{prefix}mean": number(mean_of(scores), 3), f"{prefix}std": number(std_of(scores), 3)}
    if counted := logs or next(filter(None, others.values()), []):
        for key in ("parameters", "fc_multiplications"):
            fields[key] = " / ".join(f"{count:,}" for count in sorted({log.start[key] for log in counted}))
    if row.head == "spinal" and default is not None:
        fields |= comparison_fields(row, default, cells)
    return fields


def comparison_fields(row: PaperRow, default: PaperRow, cells: Cells) -> Row:
    """Spinal against the FC head of the same network: in the paper, and in ours under each protocol."""
    fields: Row = {}
    for prefix, variant in VARIANTS.items():
        difference = paired_difference(cells.of(row, variant), cells.of(default, variant))
        fields |= difference_fields(prefix, difference) | {f"{prefix}spinal_beats_fc": judge_claim(difference)}
    paper, paper_default = (printed.metric("accuracy_avg_pct", "accuracy_pct") for printed in (row, default))
    if paper and paper_default:
        fields["paper_difference"] = number(float(paper) - float(paper_default), 2, "+")
    logs, baseline = cells.of(row, "published"), cells.of(default, "published")
    if logs and baseline:
        reduction = error_reduction(max(log.score for log in logs), max(log.score for log in baseline))
        fields["error_reduction"] = number(reduction, 1)
        ours, theirs = (group[0].start["fc_multiplications"] for group in (logs, baseline))
        fields["fc_saving"] = number(100 - 100 * ours / theirs, 1)
    return fields


def accuracy_rows(paper: list[PaperRow], cells: Cells, *tables: str) -> list[Row]:
    """The rows of these tables of the paper, in the paper's order."""
    defaults = {(row.table, row.script, row.network): row for row in paper if row.head == "fc"}
    return [accuracy_row(row, defaults.get((row.table, row.script, row.network)), cells)
            for table in tables for row in paper if row.table == table]


TARGET_COLUMNS = [Column("function", "Function"), Column("head", "Head")]
REGRESSION_COLUMNS = TARGET_COLUMNS + [
    Column("paper_100_cell", "@100", "Paper"), Column("paper_200_cell", "@200", "Paper"), Column("runs", "n", "Ours"),
    Column("minimum_100_cell", "@100", "Ours"), Column("minimum_200_cell", "@200", "Ours"),
    Column("verdict_100", "@100", "Verdict"), Column("verdict_200", "@200", "Verdict"),
    Column("paper_winner", "paper", "Lower @200"), Column("spinal_wins", "ours", "Lower @200"),
]
LEARNT_COLUMNS = TARGET_COLUMNS + [
    Column("broadcast_runs", "n", "Broadcast noise"), Column("broadcast_200_cell", "minimum @200", "Broadcast noise"),
    Column("corrected_runs", "n", "Corrected"), Column("train_mse_cell", "train_mse", "Corrected"),
    Column("clean_mse_cell", "clean_mse", "Corrected"), Column("corrected_spinal_wins", "lower clean_mse", "Corrected"),
]
REGRESSION_CSV = [
    "table", "function", "head", "paper_100", "paper_200", "runs", "minimum_100_median", "minimum_100_mean", "minimum_100_low",
    "minimum_100_high", "minimum_200_median", "minimum_200_mean", "minimum_200_low", "minimum_200_high", "broadcast_runs",
    "broadcast_200_median", "broadcast_200_mean", "broadcast_200_low", "broadcast_200_high", "corrected_runs", "train_mse_mean",
    "train_mse_std", "clean_mse_mean", "clean_mse_std", "verdict_100", "verdict_200", "paper_winner", "spinal_wins",
    "corrected_spinal_wins"]


def dagger(value: float | None, text: str, floor: float = NOISE_VARIANCE) -> str:
    """Marks an MSE (in units of 1e-3) below the noise variance."""
    return text + "†" if value is not None and value < 1000 * floor else text


def spread_fields(prefix: str, values: list[float], floor: float = NOISE_VARIANCE) -> Row:
    """Median, mean and range of minima, in parts and as one cell; the values come in units of 1e-3."""
    if not values:
        return {}
    parts = (statistics.median(values), mean_of(values), min(values), max(values))
    median, mean, low, high = (number(value, 3) for value in parts)
    return {f"{prefix}_median": median, f"{prefix}_mean": mean, f"{prefix}_low": low, f"{prefix}_high": high,
            f"{prefix}_cell": f"{dagger(parts[0], median, floor)} [{low}, {high}]"}


def judge_spread(values: list[float], printed: str) -> str:
    """Verdict on a cell of Table I: is the one value of the paper within our seeds?"""
    if not values:
        return "not yet run"
    if len(values) < FEWEST_SEEDS:
        return "not judged"
    if float(printed) < min(values):
        return "outside: the paper below all our seeds"
    return "outside: the paper above all our seeds" if float(printed) > max(values) else "within our spread"


def seeds_won(spinal: list[Log], default: list[Log], key: str) -> str:
    """In how many paired seeds the Spinal head has the lower MSE."""
    partner = {log.seed: log for log in default}
    pairs = [(log.value(key), partner[log.seed].value(key)) for log in spinal if log.seed in partner]
    return f"Spinal in {sum(ours < theirs for ours, theirs in pairs)} of {len(pairs)}" if pairs else ""


def minima(logs: list[Log], epochs: str) -> list[float]:
    """Minimum of the last-batch loss over these epochs, in units of 1e-3, one a seed."""
    return [1000 * log.value(f"min_last_batch_mse_{epochs}") for log in logs]


def regression_row(row: PaperRow, default: PaperRow | None, cells: Cells) -> Row:
    """One row of Table I: the paper's minima, ours with both shapes of noise, and what the networks really learnt."""
    logs, corrected = cells.of(row, "published"), cells.of(row, "corrected")
    broadcast = cells.of(row, "published-broadcast")
    fields = {"table": "I", "function": FUNCTIONS.get(row.function, row.function), "head": head_name(row),
              "runs": str(len(logs)), "broadcast_runs": str(len(broadcast)), "corrected_runs": str(len(corrected))}
    for epochs in ("100", "200"):
        printed = row.values.get(("min_mse_x1e-3", epochs), "")
        values = minima(logs, epochs)
        fields |= {f"paper_{epochs}": printed, f"paper_{epochs}_cell": dagger(float(printed), printed) if printed else "",
                   f"verdict_{epochs}": judge_spread(values, printed) if printed else "not comparable"}
        fields |= spread_fields(f"minimum_{epochs}", values)
    fields |= spread_fields("broadcast_200", minima(broadcast, "200"), 0.0)
    for key in ("train_mse", "clean_mse") if corrected else ():
        values = [1000 * log.value(key) for log in corrected]
        mean, std = number(mean_of(values), 3), number(std_of(values), 3)
        marked = dagger(mean_of(values), mean) if key == "train_mse" else mean
        fields |= {f"{key}_mean": mean, f"{key}_std": std, f"{key}_cell": f"{marked} ± {std}" if std else marked}
    if row.head == "spinal" and default is not None:
        ours, theirs = (float(which.values["min_mse_x1e-3", "200"]) for which in (row, default))
        fields |= {"paper_winner": "tie" if ours == theirs else "Spinal" if ours < theirs else "FC",
                   "spinal_wins": seeds_won(logs, cells.of(default, "published"), "min_last_batch_mse_200"),
                   "corrected_spinal_wins": seeds_won(corrected, cells.of(default, "corrected"), "clean_mse")}
    return fields


def regression_rows(paper: list[PaperRow], cells: Cells) -> list[Row]:
    """Table I, the two heads of a function one after the other."""
    rows = [row for row in paper if row.table == "I"]
    defaults = {row.function: row for row in rows if row.head == "fc"}
    order = {function: index for index, function in enumerate(FUNCTIONS)}
    rows.sort(key=lambda row: (order.get(row.function, len(order)), row.head))
    return [regression_row(row, defaults.get(row.function), cells) for row in rows]


OTHER_COLUMNS = [
    Column("script", "Script"), Column("dataset", "Data set"), Column("network", "Network"), Column("head", "Head"),
    Column("protocol", "Protocol"), Column("reason", "Why it is not a row of the paper"), Column("epochs", "Epochs"),
    Column("sizes", "Train / held out / test"), Column("fingerprint", "Data"), Column("metric", "Metric"), Column("runs", "n"),
    Column("mean", "Mean"), Column("best", "Best"), Column("std", "Std"),
    Column("difference_cell", "Spinal − FC [95 %] (pairs)"), Column("parameters", "Parameters"),
    Column("fc_multiplications", "FC mult."),
]
OTHER_CSV = [
    "script", "dataset", "network", "head", "protocol", "reason", "epochs", "train", "heldout", "test", "sha256", "metric", "runs",
    "mean", "best", "std", "difference", "difference_low", "difference_high", "pairs", "parameters", "fc_multiplications"]


def other_groups(others: list[tuple[Log, str]]) -> dict[tuple, list[Log]]:
    """Runs outside the paper's rows, by everything that must be equal for an average; the heads of a setting are neighbours."""
    groups: dict[tuple, list[Log]] = defaultdict(list)
    for log, reason in others:
        shared = canonical({key: value for key, value in log.settings.items() if key not in HEAD_KEYS})
        groups[log.script, log.settings["network"], log.settings["protocol"], shared, log.data_key, reason,
               log.settings["head"], log.settings_text].append(log)
    def reading_order(key: tuple) -> tuple:
        script, network, protocol, _, data_key, reason, head, _ = key
        settings = groups[key][0].settings
        return script, network, protocol, reason, data_key, head, settings["layers"], settings["width"], key

    return {key: sorted(groups[key], key=lambda log: log.seed) for key in sorted(groups, key=reading_order)}


def other_row(key: tuple, logs: list[Log], baseline: list[Log]) -> Row:
    """One group of runs that are not comparable with the paper, labelled for what they are."""
    first, reason = logs[0], key[5]
    digits = 1 if is_tabular(first.settings) else 6 if first.regression else 3
    values = [log.score for log in logs]
    function = first.settings.get("function")
    fields = {
        "script": first.script, "dataset": first.settings["dataset"] + (f" {function}" if function else ""),
        "network": first.settings["network"], "head": head_label(first.settings), "protocol": variant_of(first),
        "reason": reason, "epochs": str(first.settings["epochs"]), "sha256": first.data_key or "by seed",
        "fingerprint": first.data_key[:8] or "by seed", "runs": str(len(logs)),
        "metric": "test MSE" if is_tabular(first.settings) else "clean_mse" if first.regression else "test accuracy, %",
        "sizes": " / ".join(str(first.data[part]) for part in ("train", "heldout", "test")),
        "mean": number(mean_of(values), digits), "std": number(std_of(values), digits),
        "best": number(min(values) if first.regression else max(values), digits),
    }
    fields |= {part: str(first.data[part]) for part in ("train", "heldout", "test")}
    fields |= {key: f"{first.start[key]:,}" for key in ("parameters", "fc_multiplications")}
    if first.settings["head"] == "spinal":
        fields |= difference_fields("", paired_difference(logs, baseline))
    return fields


def other_rows(others: list[tuple[Log, str]]) -> list[Row]:
    """Every group of runs outside the paper's rows; the FC runs of the same settings and data are the baseline."""
    groups = other_groups(others)
    defaults: dict[tuple, list[list[Log]]] = defaultdict(list)
    for key, logs in groups.items():
        if key[6] == "fc":
            defaults[key[:6]].append(logs)
    return [other_row(key, logs, baseline_of(logs, defaults[key[:6]])) for key, logs in groups.items()]


def baseline_of(logs: list[Log], candidates: list[list[Log]]) -> list[Log]:
    """The only group of FC runs; of several, the one with the dropout of these runs, else none."""
    if len(candidates) == 1:
        return candidates[0]
    dropout = logs[0].settings.get("fc_dropout")
    return next((group for group in candidates if group[0].settings.get("fc_dropout") == dropout), [])


COST_COLUMNS = [
    Column("dataset", "Data set"), Column("network", "Network"), Column("head", "Spinal head"), Column("protocol", "Protocol"),
    Column("fc_parameters", "FC", "Parameters"), Column("parameters", "Spinal", "Parameters"),
    Column("fc_multiplications", "FC", "FC multiplications"), Column("spinal_multiplications", "Spinal", "FC multiplications"),
    Column("ratio", "Spinal / FC", "FC multiplications"),
]


def cost_rows(logs: Iterable[Log]) -> list[Row]:
    """What each Spinal head costs beside the FC head of its network, as the scripts counted it, whatever the run was for."""
    counts: dict[tuple, dict[tuple, tuple[int, int]]] = defaultdict(dict)
    for log in logs:
        settings = log.settings
        counts[settings["dataset"], settings["network"], settings["protocol"]][
            settings["head"], settings["layers"], settings["width"]] = (log.start["parameters"], log.start["fc_multiplications"])
    rows: dict[str, Row] = {}  # both protocols mostly count the same
    for (dataset, network, protocol), heads in sorted(counts.items(), key=lambda item: (*item[0][:2], item[0][2] != "published")):
        default = next((cost for head, cost in heads.items() if head[0] == "fc"), None)
        for (head, layers, width), (parameters, multiplications) in sorted(heads.items()):
            if head == "spinal" and default and default[1]:
                row = {"dataset": dataset, "network": NETWORKS.get(network, network), "head": f"{layers} × {width}",
                       "fc_parameters": f"{default[0]:,}", "parameters": f"{parameters:,}",
                       "fc_multiplications": f"{default[1]:,}", "spinal_multiplications": f"{multiplications:,}",
                       "ratio": number(multiplications / default[1], 2 if multiplications < 10 * default[1] else 0)}
                same = rows.setdefault(canonical(row), row | {"protocol": ""})
                same["protocol"] += f"{', ' * bool(same['protocol'])}{protocol}"
    return list(rows.values())
