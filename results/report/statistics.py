"""Means, intervals and verdicts."""
from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from report.facts import CONFIDENCE, FEWEST_RUNS, PAPER_ROUNDING, PAPER_RUNS
from report.logs import Log


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function I_x(a, b), by Lentz's continued fraction."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast only on the other side
        return 1 - incomplete_beta(b, a, 1 - x)
    front = math.exp(a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)) / a
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 1000):
        for factor in (m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
                       -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))):
            d, c = 1 / (1 + factor * d), 1 + factor / c
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * fraction


@functools.lru_cache(maxsize=None)
def t_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """The t with P(|T| <= t) = confidence for Student's distribution, by bisection of its distribution function."""
    low, high = 0.0, 1e9
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if incomplete_beta(degrees / 2, 0.5, degrees / (degrees + middle * middle)) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def mean_of(values: Sequence[float]) -> float:
    """Mean, independent of the order."""
    return math.fsum(values) / len(values)


def std_of(values: Sequence[float]) -> float | None:
    """Sample standard deviation (n - 1); none for a single value or one that diverged."""
    return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None


def half_width(values: Sequence[float], further: float, resolution: float) -> float:
    """t(n - 1) s sqrt(1/n + further). A spread below the weight of one test image cannot be told from one image."""
    spread = max(std_of(values), resolution)
    return t_quantile(len(values) - 1) * spread * math.sqrt(1 / len(values) + further)


class Difference(NamedTuple):
    """Mean of Spinal minus FC over seeds that have both, with its confidence interval (none below two pairs)."""
    pairs: int
    mean: float | None = None
    low: float | None = None
    high: float | None = None


def paired_difference(spinal: Iterable[Log], default: Iterable[Log]) -> Difference:
    """Runs of one seed saw the same batches, so the seed's share of the scatter cancels in the difference."""
    partner = {log.seed: log for log in default}
    pairs = [(log, partner[log.seed]) for log in spinal
             if log.seed in partner and log.data["sha256"] == partner[log.seed].data["sha256"]]
    differences = [ours.score - theirs.score for ours, theirs in pairs]
    if not differences or not all(map(math.isfinite, differences)):
        return Difference(len(differences))
    mean = mean_of(differences)
    if len(differences) == 1:
        return Difference(1, mean)
    half = half_width(differences, 0, resolution_of(pairs[0][0]))
    return Difference(len(differences), mean, mean - half, mean + half)


def resolution_of(log: Log) -> float:
    """What one test image weighs, in points of accuracy."""
    return 0.0 if log.regression else 100 / max(log.data["test"], 1)


def error_reduction(better: float, base: float) -> float | None:
    """By how many per cent the error falls from accuracy `base` to `better`."""
    return 100 * (better - base) / (100 - base) if base < 100 else None


def judge_mean(values: Sequence[float], printed: str, resolution: float) -> str:
    """Verdict on a row: is the paper's average what ten more runs of ours might give?"""
    if not values:
        return "not yet run"
    if not printed:
        return "not comparable"
    if len(values) < FEWEST_RUNS:
        return "not judged"
    distance = mean_of(values) - float(printed)
    if abs(distance) <= half_width(values, 1 / PAPER_RUNS, resolution) + PAPER_ROUNDING:
        return "reproduced"
    return f"not reproduced: ours {'higher' if distance > 0 else 'lower'} by {abs(distance):.2f}"


def judge_claim(difference: Difference) -> str:
    """Verdict on "Spinal beats FC"."""
    if difference.pairs == 0:
        return "not yet run"
    if difference.pairs < FEWEST_RUNS or difference.low is None:
        return "not judged"
    if difference.low > 0:
        return "yes"
    return "no (FC better)" if difference.high < 0 else "undecided"
