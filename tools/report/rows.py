"""Which run belongs to which row of the paper."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from report.logs import Finding, Log
from report.names import SMALL_CNN, network_name
from report.paper import PaperRow
from report.settings import canonical

RELEASED, CORRECTED = "as released", "corrected"
NO_DROPOUT = ", no dropout"
WORDS = {"published": RELEASED, "corrected": CORRECTED}
BROADCAST = "broadcast noise"  # Table I as the released script draws its noise


@dataclass
class Rows:
    """All logs; runs by (row of the paper, variant), the others, what was left out, and notes."""

    logs: list[Log]
    runs: dict[tuple[PaperRow, str], list[Log]]
    others: list[tuple[Log, str]]
    findings: list[Finding]
    notes: list[str]

    def of(self, row: PaperRow | None, variant: str = RELEASED) -> list[Log]:
        """The averaged runs of a row, by seed."""
        return self.runs.get((row, variant), [])


def dropout_words(p: float | None) -> str:
    """What both heads have before their output layer."""
    return NO_DROPOUT if not p else f", dropout {p:g} in both"


def heads_differ(log: Log) -> bool:
    """The released small CNN has dropout in its FC head alone."""
    return log.settings["network"] == "cnn" and log.script in SMALL_CNN


def variant_of(log: Log) -> str:
    """The protocol; Table I tells the shapes of its noise apart, the small CNN its dropouts."""
    protocol = log.settings["protocol"]
    if log.settings.get("noise") == "broadcast":
        return BROADCAST
    if protocol == "corrected" and heads_differ(log):
        return CORRECTED + dropout_words(log.settings.get("fc_dropout"))
    return WORDS.get(protocol, f"recipe {protocol}")


def departures_of(log: Log) -> list[str]:
    """Settings that keep a run from its row; what variants tell apart does not."""
    free = set()
    if log.regression:
        free = {"noise"}
    elif heads_differ(log) and log.settings["protocol"] == "corrected":
        free = {"fc_dropout"} if log.settings.get("fc_dropout") in (0, 0.5) else set()
    return [key for key in log.departures if key not in free]


def place(log: Log, paper: Sequence[PaperRow]) -> tuple[PaperRow | None, str]:
    """The row of the paper that this run belongs to, or none and the reason."""
    if departures := departures_of(log):
        return None, "departs in " + ", ".join(departures)
    if log.settings["protocol"] not in WORDS:
        return None, f"recipe {log.settings['protocol']}, not the paper's row"
    if log.settings.get("limit"):
        return None, f"limit {log.settings['limit']}"
    if log.script == "tabular":
        return None, "a table of one's own"
    if not log.data["official"]:
        return None, "a part of the official data, or others"
    key = (log.script, log.settings["network"], log.settings["head"])
    for row in paper:
        if (row.script, row.network, row.head) == key and row.describes(log.settings):
            if str(log.settings["epochs"]) == row.epochs:
                return row, ""
            return None, f"{log.settings['epochs']} epochs, the paper prints {row.epochs}"
    return None, "the paper has no such row"


def differing_keys(left: dict[str, Any], right: dict[str, Any]) -> list[str]:
    """Keys whose values are not the same."""
    keys = left.keys() | right.keys()
    return sorted(key for key in keys if canonical(left.get(key)) != canonical(right.get(key)))


def largest_group(logs: list[Log], name: str) -> tuple[list[Log], list[Finding]]:
    """The largest group of one experiment (ties: first in sorted order); the others by name."""
    groups: dict[tuple, list[Log]] = defaultdict(list)
    for log in logs:
        groups[log.experiment].append(log)
    chosen = groups.pop(max(sorted(groups), key=Counter(log.experiment for log in logs).get))
    findings, first = [], chosen[0]
    for group in groups.values():
        keys = differing_keys(first.settings, group[0].settings)
        keys += ["data.sha256"] * (first.data_key != group[0].data_key)
        keys += ["device"] * (first.device != group[0].device)
        reason = f"another experiment than the {len(chosen)} runs averaged in {name}: "
        reason += f"differs in {', '.join(keys)}"
        findings += [Finding(log.path, 1, reason) for log in group]
    return sorted(chosen, key=seed_of), findings


def seed_of(log: Log) -> int:
    return log.seed


def provenance_note(name: str, logs: list[Log]) -> list[str]:
    """What differs between averaged runs without deciding the experiment."""
    parts = []
    for key in ("script_sha256", "device_name", "versions"):
        values = Counter(
            canonical(each[key]).strip('"') for log in logs for each in log.provenances
        )
        if len(values) > 1:
            shares = [f"{value} ({count} runs)" for value, count in sorted(values.items())]
            parts.append(f"{key}: {', '.join(shares)}")
    return [f"{name}: {'; '.join(parts)}"] if parts else []


def sort_into_rows(logs: list[Log], paper: list[PaperRow]) -> Rows:
    """Every log into a row of the paper or among the others."""
    gathered: dict[tuple[PaperRow, str], list[Log]] = defaultdict(list)
    rows = Rows(logs, {}, [], [], [])
    for log in logs:
        row, reason = place(log, paper)
        if row is None:
            rows.others.append((log, reason))
        else:
            gathered[row, variant_of(log)].append(log)
    for (row, variant), members in gathered.items():
        words = (row.script, row.function, network_name(row.network), row.head_name, variant)
        name = " ".join(filter(None, words))
        rows.runs[row, variant], findings = largest_group(members, name)
        rows.findings += findings
        rows.notes += provenance_note(name, rows.runs[row, variant])
    rows.notes.sort()
    return rows
