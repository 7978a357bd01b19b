"""Which run belongs to which row of the paper."""
from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from report.facts import NETWORKS
from report.logs import Finding, Log, canonical
from report.paper import PaperRow


@dataclass
class Cells:
    """Runs by (row of the paper, variant), the others, and what was left out or deserves a note."""
    runs: dict[tuple[PaperRow, str], list[Log]]
    others: list[tuple[Log, str]]
    findings: list[Finding]
    notes: list[str]

    def of(self, row: PaperRow, variant: str) -> list[Log]:
        """The averaged runs of a row, by seed."""
        return self.runs.get((row, variant), [])


def variant_of(log: Log) -> str:
    """The protocol; Table I tells the two shapes of the noise apart, Table II corrected runs without FC dropout."""
    if log.regression:
        return log.settings["protocol"] + ("-broadcast" if log.settings.get("noise") == "broadcast" else "")
    return log.settings["protocol"] + ("-nodropout" if without_dropout(log) else "")


def without_dropout(log: Log) -> bool:
    """Is this a corrected run with `--fc-dropout 0`? Both heads without dropout: the other way to treat them equally (Q5)."""
    return log.settings["protocol"] == "corrected" and "fc_dropout" in log.departures and log.settings.get("fc_dropout") == 0


def place(log: Log, rows: Sequence[PaperRow]) -> tuple[PaperRow | None, str]:
    """The row of the paper that this run belongs to, or none and the reason."""
    own_columns = {"noise"} if log.regression else {"fc_dropout"} if without_dropout(log) else set()
    departures = [key for key in log.departures if key not in own_columns]
    if departures:
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
    return sorted(key for key in left.keys() | right.keys() if canonical(left.get(key)) != canonical(right.get(key)))


def largest_group(logs: list[Log], place_name: str) -> tuple[list[Log], list[Finding]]:
    """The largest group with equal settings and data (ties: first in sorted order); the others are left out by name."""
    groups: dict[tuple[str, str], list[Log]] = defaultdict(list)
    for log in logs:
        groups[log.settings_text, log.data_key].append(log)
    chosen = groups[min(groups, key=lambda key: (-len(groups[key]), key))]
    findings = []
    for group in groups.values():
        if group is not chosen:
            keys = differing_keys(chosen[0].settings, group[0].settings)
            keys += ["data.sha256"] if chosen[0].data_key != group[0].data_key else []
            reason = f"another experiment than the {len(chosen)} runs averaged in {place_name}: differs in {', '.join(keys)}"
            findings += [Finding(log.path, 1, reason) for log in group]
    return sorted(chosen, key=lambda log: log.seed), findings


def provenance_note(name: str, logs: list[Log]) -> str | None:
    """What differs between averaged runs without deciding their numbers."""
    parts = []
    for key in ("script_sha256", "device_name", "versions"):
        values = Counter(log.start["provenance"][key][:8] if key == "script_sha256" else
                         canonical(log.start["provenance"][key]).strip('"') for log in logs)
        if len(values) > 1:
            parts.append(f"{key}: " + ", ".join(f"{value} ({count} runs)" for value, count in sorted(values.items())))
    return f"{name}: {'; '.join(parts)}" if parts else None


def sort_into_cells(logs: list[Log], paper: list[PaperRow]) -> Cells:
    """Every log into a row of the paper or among the others."""
    index: dict[tuple[str, str, str], list[PaperRow]] = defaultdict(list)
    for row in paper:
        index[row.script, row.network, row.head].append(row)
    gathered: dict[tuple[PaperRow, str], list[Log]] = defaultdict(list)
    cells = Cells({}, [], [], [])
    for log in logs:
        row, reason = place(log, index[log.script, log.settings["network"], log.settings["head"]])
        if row is None:
            cells.others.append((log, reason))
        else:
            gathered[row, variant_of(log)].append(log)
    for (row, variant), members in gathered.items():
        name = " ".join(filter(None, (row.script, row.function, NETWORKS.get(row.network, row.network), head_name(row), variant)))
        kept, findings = largest_group(members, name)
        cells.runs[row, variant] = kept
        cells.findings += findings
        if note := provenance_note(name, kept):
            cells.notes.append(note)
    cells.findings.sort(key=lambda finding: finding.path)
    cells.notes.sort()
    return cells


def head_name(row: PaperRow) -> str:
    """`FC` or `Spinal 6 × 8`."""
    return "FC" if row.head == "fc" else f"Spinal {row.layers} × {row.width}"
