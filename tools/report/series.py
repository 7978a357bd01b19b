"""Evidence beyond the paper's rows: the dropout series, parts of the data, precision, selection, and which text ran."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable

from report.inference import Difference, decide, mean_of, paired_difference, std_of
from report.logs import Log, canonical
from report.names import NETWORKS, ROOT, script_order, script_path
from report.paper import PaperRow
from report.rows import Cells, default_of, head_name, head_of, part_comparisons, printed_difference
from report.rules import FEWEST_RUNS, MARGINS
from report.tables import (
    ROW,
    Row,
    columns,
    decisions,
    difference_fields,
    mean_cell,
    number,
    pair_rows,
)

# ---- Dropout: published protocol, everything equal but the dropout before the output layer ----
DROPOUT_SETS = (("mnist", "MNIST"), ("fashion_mnist", "Fashion-MNIST"))
LEVELS, SPINAL_HEADS = (0.0, 0.25, 0.5), ("Spinal 6 × 8", "Spinal 6 × 10")
DropoutRuns = dict[tuple[str, str, float], list[Log]]  # script, head, dropout
DROPOUT = columns("""dataset: Data set; dropout: Dropout in both heads; fc_cell: FC, % (runs); head: Spinal head;
    spinal_cell: Spinal, % (runs); difference_cell: Spinal − FC [95 %] (pairs); p: p > alone; p_holm: p > Holm;
    decision: Decision, Holm; equivalent: Equivalent? (margin)""")
DROPOUT_CSV = (
    "dataset dropout head fc_runs spinal_runs difference low high pairs p p_holm alone decision "
    "equivalent"
).split()


def dropout_runs(cells: Cells) -> DropoutRuns:
    """Complete published runs of the small CNN by script, head and dropout."""
    found: DropoutRuns = defaultdict(list)
    for log in cells.logs:
        published_cnn = (log.settings["network"], log.settings["protocol"]) == ("cnn", "published")
        complete = (
            log.data["official"]
            and not log.settings.get("limit")
            and set(log.departures) <= {"fc_dropout"}
        )
        if log.script in dict(DROPOUT_SETS) and published_cnn and complete:
            found[log.script, head_of(log.settings), log.settings.get("fc_dropout")].append(log)
    return found


def outside_the_series(cells: Cells) -> list[tuple[Log, str]]:
    """The other runs without those of the dropout series, which has a table of its own."""
    series = {
        log.path for (_, _, p), logs in dropout_runs(cells).items() if p in LEVELS for log in logs
    }
    return [(log, reason) for log, reason in cells.others if log.path not in series]


def dropout_differences(runs: DropoutRuns) -> dict[tuple[str, float, str], Difference]:
    """Spinal minus FC at equal dropout: (script, dropout, head)."""
    return {
        (script, p, head): paired_difference(
            runs.get((script, head, p), []), runs.get((script, "FC", p), [])
        )
        for script, _ in DROPOUT_SETS
        for p in LEVELS
        for head in SPINAL_HEADS
    }


def dropout_rows(runs: DropoutRuns) -> list[Row]:
    """A line for each set, dropout and width; Holm over all twelve."""
    found, names, rows = dropout_differences(runs), dict(DROPOUT_SETS), []
    for ((script, p, head), difference), decision in zip(
        found.items(), decisions(list(found.values()))
    ):
        row = difference_fields(difference, decision, MARGINS.get(names[script]))
        row |= {"dataset": names[script], "dropout": f"{p:g}", "head": head.removeprefix("Spinal ")}
        for name, key in (("fc", (script, "FC", p)), ("spinal", (script, head, p))):
            logs = runs.get(key, [])
            text = f"{mean_cell(logs)} ({len(logs)})" if logs else "not run yet"
            row |= {f"{name}_runs": str(len(logs)), f"{name}_cell": text}
        rows.append(row)
    return rows


def dropout_gains(runs: DropoutRuns) -> list[tuple[str, Difference]]:
    """What the published FC head gains if its dropout 0.5 is left out, seed by seed; sets with enough pairs."""
    found = [
        (
            name,
            paired_difference(runs.get((script, "FC", 0.0), []), runs.get((script, "FC", 0.5), [])),
        )
        for script, name in DROPOUT_SETS
    ]
    return [(name, gain) for name, gain in found if gain.judged]


# ---- Parts of the official data: what was planned is shown as "not run yet" while there is no pair ----
PLANNED = {  # network: (script, data set, heads, variants)
    "cnn": [
        (script, name, SPINAL_HEADS, ("published", "corrected"))
        for script, name in (
            ("kmnist", "Kuzushiji-MNIST"),
            ("emnist_digits", "EMNIST (Digits)"),
            ("emnist_letters", "EMNIST (Letters)"),
        )
    ],
    "vgg5": [
        ("kmnist", "Kuzushiji-MNIST", ("Spinal 4 × 128",), ("published",)),
        ("fashion_mnist", "Fashion-MNIST", ("Spinal 4 × 128",), ("published", "corrected")),
    ],
}


def part_rows(cells: Cells, paper: list[PaperRow], network: str) -> list[Row]:
    """Spinal minus FC of one network on parts of the data; the small CNN with its published schedule only.

    Beside them the difference that the paper prints for the complete data.
    """
    items = [
        item
        for item in part_comparisons(cells)
        if item.network == NETWORKS[network]
        and (network == "vgg5" or not item.spinal[0].departures)
    ]
    have = {(item.script, item.head, item.variant) for item in items}
    missing = [
        {
            "dataset": name,
            "script": script,
            "network": NETWORKS[network],
            "head": head,
            "variant": variant,
            "decision": "not run yet",
        }
        for script, name, heads, variants in PLANNED[network]
        for head in heads
        for variant in variants
        if (script, head, variant) not in have
    ]
    rows = pair_rows(items) + missing
    for printed in paper:
        for row in rows:
            if (printed.script, printed.network, head_name(printed)) == (
                row["script"],
                network,
                row["head"],
            ):
                row["paper_difference"] = number(
                    printed_difference(printed, default_of(printed, paper)), 2, "+"
                )
    return sorted(
        rows,
        key=lambda row: (
            script_order(row["script"]),
            row["head"] != SPINAL_HEADS[0],
            row["variant"] != "published",
        ),
    )


# ---- Precision: bf16 against fp32 ----
PRECISION = columns(
    ROW
    + """setting: Protocol, images, epochs, device; fp32: fp32, %;
    difference_cell: bf16 − fp32 [95 %] (pairs); narrow: 90 %; alone: Told apart? (95 %);
    equivalent: Equivalent? (margin)"""
)
PRECISION_CSV = "dataset network head setting pairs fp32 difference low high low90 high90 alone equivalent".split()


def precision_rows(logs: Iterable[Log]) -> list[Row]:
    """bf16 minus fp32 of runs that are equal in everything else, paired by seed; groups with enough pairs."""
    groups: dict[tuple, dict[str, list[Log]]] = defaultdict(lambda: {"fp32": [], "bf16": []})
    for log in logs:
        if not log.regression:
            rest = {key: value for key, value in log.settings.items() if key != "precision"}
            key = (
                script_order(log.script),
                *(log.settings[key] for key in ("network", "head", "width")),
                canonical(rest),
                log.data_key,
                log.start["provenance"]["device"],
            )
            groups[key][log.settings["precision"]].append(log)
    rows = []
    for key, group in sorted(groups.items()):
        difference = paired_difference(group["bf16"], group["fp32"])
        if difference.judged:
            log, told = group["fp32"][0], decide(difference, difference.p)
            settings = log.settings
            row = difference_fields(
                difference,
                (None, "no" if told == "undecided" else "yes", ""),
                MARGINS.get(settings["dataset"]),
            )
            rows.append(
                row
                | {
                    "dataset": settings["dataset"],
                    "network": NETWORKS.get(settings["network"], settings["network"]),
                    "head": head_of(settings),
                    "fp32": mean_cell(group["fp32"]),
                    "equivalent": row["equivalent"] or "no margin set",
                    "setting": f"{settings['protocol']}, {log.data['train']:,}, {settings['epochs']}, {key[-1]}",
                    "narrow": f"{number(difference.low90, 3, '+')} to {number(difference.high90, 3, '+')}",
                }
            )
    return rows


# ---- Selection by the test set ----
def selection_effect(logs: Iterable[Log], networks: str, scripts: str) -> str:
    """Best test epoch minus last epoch in runs of these networks that select so; names the runs it is measured on."""
    groups: dict[tuple, list[Log]] = defaultdict(list)
    for log in logs:
        settings = log.settings
        selects = settings["selection"] == "best_test" and settings["epochs"] >= 10
        if (
            selects
            and settings["network"] in networks.split()
            and log.script.startswith(tuple(scripts.split()))
        ):
            groups[
                script_order(log.script),
                settings["dataset"],
                settings["network"],
                log.data["train"],
                settings["epochs"],
                settings["precision"],
            ].append(log)
    parts = []
    for (_, dataset, network, train, epochs, precision), members in sorted(groups.items()):
        gains = [
            log.end["best_test_accuracy_pct"] - log.end["last_test_accuracy_pct"] for log in members
        ]
        if len(members) >= FEWEST_RUNS:
            parts.append(
                f"best test epoch minus last epoch {number(mean_of(gains), 2, '+')} ± "
                f"{number(std_of(gains), 2)} points in {len(members)} runs ({dataset}, {NETWORKS[network]}, "
                f"{train:,} images, {epochs} epochs, {precision})"
            )
    return "; ".join(parts)


# ---- Which text of a script wrote a log ----
def foreign_texts(logs: Iterable[Log]) -> str:
    """How many logs, script by script, were written by another text of the script than the shipped one."""
    members: dict[str, list[str]] = defaultdict(list)
    for log in logs:
        members[log.script].append(log.start["provenance"]["script_sha256"])
    other = {}
    for script in sorted(members, key=script_order):
        path = script_path(script)
        shipped = hashlib.sha256((ROOT / path).read_bytes()).hexdigest()[:16] if path else None
        if count := sum(text != shipped for text in members[script]):
            other[script] = f"`{script}` {count} of {len(members[script])}", count
    total = sum(map(len, members.values()))
    if not total:
        return "There are no logs yet."
    if not other:
        return f"All {total} logs were written by the shipped text of their script (SHA-256)."
    return (
        f"**{sum(count for _, count in other.values())} of {total} logs were written by another text of their "
        f"script than the shipped one** (SHA-256): {', '.join(text for text, _ in other.values())}."
    )
