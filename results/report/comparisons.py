"""Spinal against FC, seed by seed: what the overview figures and the sentences on chances rest on."""
from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from report.cells import Cells, differing_keys, head_name, variant_of
from report.facts import FUNCTIONS, HEAD_KEYS, NETWORKS, SCRIPT_ORDER
from report.logs import Log
from report.paper import PaperRow
from report.statistics import Difference, paired_difference

SUBSET = "data are not the complete official set"
LABELS = {"published": "published", "published-broadcast": "broadcast noise", "corrected": "corrected, same FC dropout",
          "corrected-nodropout": "corrected, no FC dropout"}


@dataclass(frozen=True)
class Comparison:
    """The pairs of one Spinal head under one variant. `row`: of the paper, or none where the data are a subset."""
    dataset: str
    script: str
    network: str
    head: str
    variant: str
    row: PaperRow | None
    default: PaperRow | None
    spinal: tuple[Log, ...]
    fc: tuple[Log, ...]

    @property
    def difference(self) -> Difference:
        return paired_difference(self.spinal, self.fc)

    @property
    def pairs(self) -> list[tuple[Log, Log]]:
        """(Spinal, FC) of one seed on the same data."""
        partner = {log.seed: log for log in self.fc}
        return [(log, partner[log.seed]) for log in self.spinal
                if log.seed in partner and log.data["sha256"] == partner[log.seed].data["sha256"]]

    @property
    def paper_difference(self) -> float | None:
        """Difference of the averages that the paper prints, of the single numbers where version 2 prints no more; in points."""
        if self.row is None or self.default is None:
            return None
        means = [row.metric("accuracy_avg_pct", "accuracy_pct") for row in (self.row, self.default)]
        return float(means[0]) - float(means[1]) if all(means) else None


def comparisons(cells: Cells, paper: list[PaperRow]) -> list[Comparison]:
    """Every Spinal head with pairs: rows of the paper, then complete recipes on subsets of the official data."""
    found = []
    for row in paper:
        if row.head != "spinal":
            continue
        default = next((other for other in paper if other.head == "fc" and (other.table, other.script, other.network,
                        other.function) == (row.table, row.script, row.network, row.function)), None)
        for variant in LABELS:
            fc = cells.of(default, variant) if default else []
            if cells.of(row, variant) and fc:
                dataset = FUNCTIONS[row.function] if row.function else row.dataset
                found.append(Comparison(dataset, row.script, NETWORKS.get(row.network, row.network), head_name(row), variant, row,
                                        default, tuple(cells.of(row, variant)), tuple(fc)))
    return [item for item in [*found, *subset_comparisons(cells.others)] if item.pairs]


def subset_comparisons(others: Iterable[tuple[Log, str]]) -> list[Comparison]:
    """The same for runs that depart from the paper's rows in nothing but the data, of which they have a part."""
    groups: dict[tuple, list[Log]] = defaultdict(list)
    for log, reason in others:
        if reason == SUBSET:
            settings = log.settings
            groups[log.script, settings["network"], variant_of(log), log.data_key, settings["head"], settings["layers"],
                   settings["width"]].append(log)
    found = []
    for (script, network, variant, data, head, layers, width), logs in sorted(groups.items()):
        fc = [other for key, other in groups.items() if key[:5] == (script, network, variant, data, "fc")]
        if head == "spinal" and len(fc) == 1 and comparable(logs[0], fc[0][0]):
            found.append(Comparison(f"{logs[0].settings['dataset']}, subset", script, NETWORKS.get(network, network),
                                    f"Spinal {layers} × {width}", variant, None, None, tuple(logs), tuple(fc[0])))
    return found


def comparable(ours: Log, theirs: Log) -> bool:
    """Whether two runs differ in their heads only."""
    return set(differing_keys(ours.settings, theirs.settings)) <= HEAD_KEYS


def reading_order(item: Comparison) -> tuple:
    place = SCRIPT_ORDER.index(item.script) if item.script in SCRIPT_ORDER else len(SCRIPT_ORDER)
    settings = item.spinal[0].settings
    return (item.row is None, place, item.script, item.network, settings["layers"], settings["width"],
            list(LABELS).index(item.variant))


def wilson(won: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval for a proportion."""
    share, spread = won / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def chance(items: Iterable[Comparison]) -> tuple[float, float, float, int, int] | None:
    """(share of pairs that the Spinal run wins, low, high, pairs, clusters); a tie counts half.

    Spinal heads of one seed and data set share their FC twin, so their pairs are one cluster, and the interval is Wilson's
    for as many trials as there are clusters: wider than pairs would give, never narrower.
    """
    clusters: dict[tuple, list[float]] = defaultdict(list)
    for item in items:
        for ours, theirs in item.pairs:
            better = theirs.score - ours.score if ours.regression else ours.score - theirs.score  # an error is better low
            clusters[item.dataset, item.network, ours.seed].append(0.5 if better == 0 else float(better > 0))
    if not clusters:
        return None
    share = math.fsum(sum(won) / len(won) for won in clusters.values()) / len(clusters)
    return share, *wilson(share * len(clusters), len(clusters)), sum(map(len, clusters.values())), len(clusters)


def chance_lines(items: list[Comparison]) -> list[str]:
    """Sentences: the chance that a Spinal run beats its FC twin, for each family and overall, for each variant."""
    families: dict[str, list[Comparison]] = defaultdict(list)
    for item in items:
        families["Regression" if item.script == "synthetic_regression" else item.dataset].append(item)
    lines = []
    for name, members in families.items():
        parts = chances(members, regression=name == "Regression")
        lines += [f"* **{name}**: {'; '.join(parts)}."] if parts else []
    images = [item for item in items if item.script != "synthetic_regression"]
    if images and len(families) > 1:
        lines.append(f"* **All image sets**: {'; '.join(chances(images, regression=False))}.")
    return lines


def chances(items: list[Comparison], regression: bool) -> list[str]:
    parts = []
    for variant, label in LABELS.items():
        if regression and variant != "corrected":
            continue  # the published number of Table I is no test error
        if result := chance(item for item in items if item.variant == variant):
            share, low, high, pairs, clusters = result
            what = "corrected, error on fresh samples" if regression else label
            parts.append(f"{what} {100 * share:.0f} % ({100 * low:.0f} to {100 * high:.0f}; {pairs} pairs, {clusters} seeds)")
    return parts
