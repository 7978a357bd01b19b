"""Means, intervals, tests and verdicts; the rules are those of rules.py."""

import functools
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from report.logs import Log
from report.rules import (
    CONFIDENCE,
    FEWEST_RUNS,
    FEWEST_SEEDS,
    PAPER_ROUNDING,
    PAPER_RUNS,
    POWER,
    ROW_CONFIDENCE,
)


@functools.cache
def t_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """The t with P(|T| <= t) = confidence for Student's distribution."""
    from scipy.stats import t

    return float(t.ppf((1 + confidence) / 2, degrees))


def mean_of(values: Sequence[float]) -> float:
    """Mean, independent of the order."""
    return math.fsum(values) / len(values)


def std_of(values: Sequence[float]) -> float | None:
    """Sample standard deviation (n - 1); none for a single value or one that diverged."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None
    return statistics.stdev(values)


def half_width(
    values: Sequence[float],
    further: float = 0.0,
    resolution: float = 0.0,
    confidence: float = CONFIDENCE,
) -> float:
    """t(n - 1) s sqrt(1/n + further); a spread below one test image cannot be told from it."""
    spread = max(std_of(values), resolution)
    degrees = len(values) - 1
    return t_quantile(degrees, confidence) * spread * math.sqrt(1 / len(values) + further)


class Difference(NamedTuple):
    """Mean of paired differences; intervals, p of the t test and spread from two pairs on."""

    pairs: int
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    low90: float | None = None
    high90: float | None = None
    p: float | None = None
    std: float | None = None
    correlation: float | None = None
    ahead: int = 0

    @property
    def judged(self) -> bool:
        return self.pairs >= FEWEST_RUNS and self.p is not None


def paired(left: Iterable[Log], right: Iterable[Log]) -> list[tuple[Log, Log]]:
    """Runs of one seed on the same data."""
    partner = {(log.seed, log.data_key): log for log in right}
    keys = [(log, (log.seed, log.data_key)) for log in left]
    return [(log, partner[key]) for log, key in keys if key in partner]


def paired_difference(left: Iterable[Log], right: Iterable[Log]) -> Difference:
    """Left minus right, seed by seed."""
    pairs = paired(left, right)
    values = [ours.score - theirs.score for ours, theirs in pairs]
    ahead = sum(value > 0 for value in values)
    if not values or not all(map(math.isfinite, values)):
        return Difference(len(values), ahead=ahead)
    mean = mean_of(values)
    if len(values) == 1:
        return Difference(1, mean, ahead=ahead)
    from scipy.stats import t

    floor = resolution_of(pairs[0][0])
    wide, narrow = (
        half_width(values, 0, floor, confidence) for confidence in (CONFIDENCE, 2 * CONFIDENCE - 1)
    )
    spread = max(std_of(values), floor)
    ratio = math.inf if mean else 0.0
    if spread:
        ratio = abs(mean) / (spread / math.sqrt(len(values)))
    p = float(2 * t.sf(ratio, len(values) - 1))
    sides = [[log.score for log in side] for side in zip(*pairs, strict=True)]
    correlation = None
    if all(std_of(side) for side in sides):
        correlation = statistics.correlation(*sides)
    ends = mean - wide, mean + wide, mean - narrow, mean + narrow
    return Difference(len(values), mean, *ends, p, spread, correlation, ahead)


def resolution_of(log: Log) -> float:
    """What one test image weighs, in points of accuracy."""
    return 0.0 if log.regression else 100 / max(log.data["test"], 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the order given."""
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def decisions(differences: Sequence[Difference]) -> list[tuple[float | None, str]]:
    """(p by Holm over these, decision) of each; those that are not judged do not count."""
    judged = [index for index, each in enumerate(differences) if each.judged]
    adjusted = holm([differences[index].p for index in judged])
    p_values = dict(zip(judged, adjusted, strict=True))
    return [
        (p_values.get(index), decide(each, p_values.get(index)))
        for index, each in enumerate(differences)
    ]


def decide(difference: Difference, p: float | None) -> str:
    """Which head is better at 5 %, by this p value."""
    if difference.pairs == 0:
        return "not run yet"
    if not difference.judged or p is None:
        return "not judged"
    if p >= 1 - CONFIDENCE:
        return "undecided"
    return "Spinal better" if difference.mean > 0 else "FC better"


def equivalent(difference: Difference, margin: float | None) -> str:
    """Two one-sided tests: does the 90 % interval lie inside the margin?"""
    if margin is None or not difference.judged:
        return ""
    inside = -margin < difference.low90 and difference.high90 < margin
    return f"{'yes' if inside else 'not shown'} (± {margin})"


def detectable(difference: Difference, power: float = POWER) -> tuple[float, float, float] | None:
    """The true difference that so many pairs show at 5 % with this power (noncentral t).

    With the scatter that was seen, and with both ends of the 95 % interval of the scatter itself
    (chi-square), which is wide for a few pairs.
    """
    if not difference.judged or not difference.std:
        return None
    from scipy.optimize import brentq
    from scipy.stats import chi2, nct

    degrees, limit = difference.pairs - 1, t_quantile(difference.pairs - 1)

    def excess(shift: float) -> float:
        return nct.sf(limit, degrees, shift) - power

    unit = brentq(excess, 1, 12) / math.sqrt(difference.pairs)
    tail = (1 - CONFIDENCE) / 2
    low, high = (math.sqrt(degrees / chi2.ppf(q, degrees)) for q in (1 - tail, tail))
    return tuple(unit * difference.std * factor for factor in (1.0, low, high))


def error_reduction(better: float, base: float) -> float | None:
    """By how many per cent the error falls from accuracy `base` to `better`."""
    return 100 * (better - base) / (100 - base) if base < 100 else None


def above_best(values: Sequence[float], best: str) -> tuple[int, float]:
    """(k, chance): how many runs exceed the paper's best of ten, and the chance of k or more."""
    k = sum(value > float(best) + PAPER_ROUNDING for value in values)
    return k, math.comb(len(values), k) / math.comb(len(values) + PAPER_RUNS, k)


def tolerance_of(values: Sequence[float], resolution: float) -> float:
    """How far the paper's average may lie from ours untold: a prediction interval for ten runs."""
    return half_width(values, 1 / PAPER_RUNS, resolution, ROW_CONFIDENCE) + PAPER_ROUNDING


def judge_row(values: Sequence[float], printed: str, best: str, resolution: float) -> str:
    """Verdict on a row, by the mean and by the best of ten."""
    if not values:
        return "not run yet"
    if not printed:
        return "not comparable"
    if len(values) < FEWEST_RUNS:
        return "not judged"
    distance, tolerance = mean_of(values) - float(printed), tolerance_of(values, resolution)
    if abs(distance) > tolerance:
        side = "higher" if distance > 0 else "lower"
        return f"yes: mean {side} by {abs(distance):.2f}, tolerance {tolerance:.2f}"
    if best:
        k, chance = above_best(values, best)
        if chance <= 1 - ROW_CONFIDENCE:
            return f"yes: {k} of {len(values)} above the paper's best, chance {100 * chance:.1f} %"
    return f"no, tolerance {tolerance:.2f}"


def judge_range(values: Sequence[float], printed: str) -> str:
    """Verdict on a cell of Table I: is the one value of the paper within our seeds?"""
    if not values:
        return "not run yet"
    if len(values) < FEWEST_SEEDS:
        return "not judged"
    if float(printed) < min(values):
        return "paper below all our seeds"
    return "paper above all our seeds" if float(printed) > max(values) else "within our range"
