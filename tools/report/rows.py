"""Which run belongs to which row of the paper, and Spinal against FC: rows and parts of the data, never together."""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from report.inference import Difference, paired, paired_difference
from report.logs import Finding, Log, canonical
from report.names import FUNCTIONS, HEAD_KEYS, NETWORKS, VARIANTS, script_order
from report.paper import PaperRow


@dataclass
class Cells:
    """All logs; runs by (row of the paper, variant), the others, and what was left out or deserves a note."""

    logs: list[Log]
    runs: dict[tuple[PaperRow, str], list[Log]]
    others: list[tuple[Log, str]]
    findings: list[Finding]
    notes: list[str]

    def of(self, row: PaperRow | None, variant: str) -> list[Log]:
        """The averaged runs of a row, by seed."""
        return self.runs.get((row, variant), [])


def variant_of(log: Log) -> str:
    """The protocol; Table I tells the two shapes of the noise apart, Table II corrected runs without dropout."""
    if log.regression:
        return log.settings["protocol"] + "-broadcast" * (log.settings.get("noise") == "broadcast")
    return log.settings["protocol"] + "-nodropout" * without_dropout(log)


def without_dropout(log: Log) -> bool:
    """A corrected run with `--fc-dropout 0`: both heads without dropout, the other way to treat them equally."""
    return (
        log.settings["protocol"] == "corrected"
        and "fc_dropout" in log.departures
        and log.settings.get("fc_dropout") == 0
    )


def place(log: Log, rows: Sequence[PaperRow]) -> tuple[PaperRow | None, str]:
    """The row of the paper that this run belongs to, or none and the reason."""
    own_columns = {"noise"} if log.regression else {"fc_dropout"} if without_dropout(log) else set()
    if departures := [key for key in log.departures if key not in own_columns]:
        return None, "departs in " + ", ".join(departures)
    if log.settings.get("limit"):
        return None, f"limit {log.settings['limit']}"
    if not log.data["official"]:
        return None, "data are not the complete official set"
    row = next((row for row in rows if row.describes(log.settings)), None)
    if row is None:
        return None, "the paper has no such row"
    if str(log.settings["epochs"]) != row.epochs:
        return None, f"{log.settings['epochs']} epochs, the paper prints {row.epochs}"
    return row, ""


def differing_keys(left: dict[str, Any], right: dict[str, Any]) -> list[str]:
    """Keys whose values are not the same."""
    return sorted(
        key
        for key in left.keys() | right.keys()
        if canonical(left.get(key)) != canonical(right.get(key))
    )


def largest_group(logs: list[Log], name: str) -> tuple[list[Log], list[Finding]]:
    """The largest group with equal settings and data (ties: first in sorted order); the others are left out by name."""
    groups: dict[tuple[str, str], list[Log]] = defaultdict(list)
    for log in logs:
        groups[log.settings_text, log.data_key].append(log)
    chosen = groups.pop(min(groups, key=lambda key: (-len(groups[key]), key)))
    findings = []
    for group in groups.values():
        keys = differing_keys(chosen[0].settings, group[0].settings)
        keys += ["data.sha256"] * (chosen[0].data_key != group[0].data_key)
        reason = f"another experiment than the {len(chosen)} runs averaged in {name}: differs in {', '.join(keys)}"
        findings += [Finding(log.path, 1, reason) for log in group]
    return sorted(chosen, key=lambda log: log.seed), findings


def provenance_note(name: str, logs: list[Log]) -> list[str]:
    """What differs between averaged runs without deciding their numbers."""
    parts = []
    for key in ("script_sha256", "device_name", "versions"):
        values = Counter(canonical(log.start["provenance"][key]).strip('"') for log in logs)
        if len(values) > 1:
            parts.append(
                f"{key}: "
                + ", ".join(f"{value} ({count} runs)" for value, count in sorted(values.items()))
            )
    return [f"{name}: {'; '.join(parts)}"] if parts else []


def sort_into_cells(logs: list[Log], paper: list[PaperRow]) -> Cells:
    """Every log into a row of the paper or among the others."""
    index: dict[tuple[str, str, str], list[PaperRow]] = defaultdict(list)
    for row in paper:
        index[row.script, row.network, row.head].append(row)
    gathered: dict[tuple[PaperRow, str], list[Log]] = defaultdict(list)
    cells = Cells(logs, {}, [], [], [])
    for log in logs:
        row, reason = place(log, index[log.script, log.settings["network"], log.settings["head"]])
        if row is None:
            cells.others.append((log, reason))
        else:
            gathered[row, variant_of(log)].append(log)
    for (row, variant), members in gathered.items():
        name = " ".join(
            filter(
                None, (row.script, row.function, NETWORKS.get(row.network), head_name(row), variant)
            )
        )
        cells.runs[row, variant], findings = largest_group(members, name)
        cells.findings += findings
        cells.notes += provenance_note(name, cells.runs[row, variant])
    cells.notes.sort()
    return cells


def head_name(row: PaperRow) -> str:
    """`FC` or `Spinal 6 × 8`."""
    return "FC" if row.head == "fc" else f"Spinal {row.layers} × {row.width}"


def head_of(settings: dict[str, Any]) -> str:
    """The same of a run."""
    return (
        "FC" if settings["head"] == "fc" else f"Spinal {settings['layers']} × {settings['width']}"
    )


@dataclass(frozen=True)
class Comparison:
    """The pairs of one Spinal head under one variant. `row`: of the paper, or none where the runs are no row."""

    dataset: str
    script: str
    network: str
    head: str
    variant: str
    row: PaperRow | None
    default: PaperRow | None
    spinal: tuple[Log, ...]
    fc: tuple[Log, ...]

    @functools.cached_property
    def difference(self) -> Difference:
        return paired_difference(self.spinal, self.fc)

    @property
    def pairs(self) -> list[tuple[Log, Log]]:
        """(Spinal, FC) of one seed on the same data."""
        return paired(self.spinal, self.fc)

    @property
    def settings(self) -> dict[str, Any]:
        return self.spinal[0].settings

    @property
    def size(self) -> str:
        """`6 × 8`."""
        return self.head.removeprefix("Spinal ")

    @property
    def paper_difference(self) -> float | None:
        return printed_difference(self.row, self.default)


def printed_difference(row: PaperRow | None, default: PaperRow | None) -> float | None:
    """Difference of the paper's averages, in points; of the single numbers where v2 prints no more."""
    means = [
        each.metric("accuracy_avg_pct", "accuracy_pct") if each else "" for each in (row, default)
    ]
    return float(means[0]) - float(means[1]) if all(means) else None


def default_of(row: PaperRow, paper: Iterable[PaperRow]) -> PaperRow | None:
    """The FC row of the same network."""

    def key(row: PaperRow) -> tuple:
        return row.table, row.script, row.network, row.function

    return next((other for other in paper if other.head == "fc" and key(other) == key(row)), None)


def row_comparisons(cells: Cells, paper: list[PaperRow]) -> list[Comparison]:
    """Every Spinal row of the paper whose runs have FC twins, under each variant."""
    found = []
    for row in paper:
        if row.head == "spinal":
            default, dataset = (
                default_of(row, paper),
                FUNCTIONS[row.function] if row.function else row.dataset,
            )
            network = NETWORKS.get(row.network, row.network)
            found += [
                Comparison(
                    dataset,
                    row.script,
                    network,
                    head_name(row),
                    variant,
                    row,
                    default,
                    tuple(cells.of(row, variant)),
                    tuple(cells.of(default, variant)),
                )
                for variant in VARIANTS
            ]
    return [item for item in found if item.pairs]


def other_groups(others: Iterable[tuple[Log, str]]) -> dict[tuple, list[Log]]:
    """Runs outside the paper's rows, by everything that must be equal for an average.

    Key: script, network, protocol, settings without the head's, data, reason; head, all settings.
    """
    groups: dict[tuple, list[Log]] = defaultdict(list)
    for log, reason in others:
        shared = canonical(
            {key: value for key, value in log.settings.items() if key not in HEAD_KEYS}
        )
        groups[
            log.script,
            log.settings["network"],
            log.settings["protocol"],
            shared,
            log.data_key,
            reason,
            log.settings["head"],
            log.settings_text,
        ].append(log)

    def reading(key: tuple) -> tuple:
        script, network, protocol, _, data_key, reason, head, _ = key
        settings = groups[key][0].settings
        return (
            script,
            network,
            protocol,
            reason,
            data_key,
            head,
            settings["layers"],
            settings["width"],
            key,
        )

    return {
        key: sorted(groups[key], key=lambda log: log.seed) for key in sorted(groups, key=reading)
    }


def baselines(groups: dict[tuple, list[Log]]) -> dict[tuple, list[Log]]:
    """FC runs for each group of Spinal runs: the only group of its setting; of several, the one with its dropout."""
    defaults: dict[tuple, list[list[Log]]] = defaultdict(list)
    for key, logs in groups.items():
        if key[6] == "fc":
            defaults[key[:6]].append(logs)
    found = {}
    for key, logs in groups.items():
        if key[6] == "spinal" and (candidates := defaults[key[:6]]):
            dropout = logs[0].settings.get("fc_dropout")
            same = [group for group in candidates if group[0].settings.get("fc_dropout") == dropout]
            found[key] = candidates[0] if len(candidates) == 1 else same[0] if same else []
    return found


def part_comparisons(cells: Cells) -> list[Comparison]:
    """Pairs of heads on a part of the official data, shorter schedules included; transfer scripts aside."""
    groups = other_groups(cells.others)
    found = []
    for key, fc in baselines(groups).items():
        first, settings = groups[key][0], groups[key][0].settings
        if first.regression or first.script.startswith("tl_"):
            continue
        if not first.data["official"] or settings.get("limit"):
            found.append(
                Comparison(
                    settings["dataset"],
                    first.script,
                    NETWORKS.get(key[1], key[1]),
                    head_of(settings),
                    variant_of(first),
                    None,
                    None,
                    tuple(groups[key]),
                    tuple(fc),
                )
            )
    return sorted((item for item in found if item.pairs), key=reading_order)


def reading_order(item: Comparison) -> tuple:
    """Rows first, then parts; sets in the paper's order, heads by size, protocols as in VARIANTS."""
    return (
        item.row is None,
        script_order(item.script),
        item.network,
        item.settings["layers"],
        item.settings["width"],
        list(VARIANTS).index(item.variant),
        item.settings["epochs"],
    )
