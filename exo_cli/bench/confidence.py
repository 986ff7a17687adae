"""How well a figure is known from a few repeats: Student's t, for one run and for the ratio of two. Pure.

Rates and times are positive and their noise is in proportion, so all of it is done on logarithms: means
are geometric, intervals are factors. `interval` says where another run of the same load should fall, not
only where the true mean lies: two runs differ by the noise of both, so it is wider by the root of two. It
knows of the noise between this run's repeats and takes the other run's for the same; where a machine's
noise comes in bursts, two runs agree if their intervals overlap. What only another start or another day
would change, no run can know, so no interval is narrower than `FLOOR` on each side.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

CONFIDENCE: Final = 0.95
FLOOR: Final = 0.02
"""Relative: what starting the same processes again changes on a machine that does nothing else."""
WIDEST: Final = 1000.0
"""A factor: an interval that reaches further either way says no more than that nothing is known."""

_TINY: Final = 1e-300
_STEPS: Final = 300
_ENOUGH: Final = 1e-13


@dataclass(frozen=True, slots=True)
class Around:
    """A figure, and where it would be found again."""

    mean: float
    low: float
    high: float


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Around | None:
    """Where the mean of as many further repeats falls; None from less than two values, or where one is
    not positive."""
    n = len(values)
    if n < 2 or min(values) <= 0:
        return None
    logs = [math.log(value) for value in values]
    noise = t_quantile((1 + confidence) / 2, n - 1) * statistics.stdev(logs) * math.sqrt(2 / n)
    return _around(statistics.fmean(logs), max(noise, math.log1p(FLOOR)))


def ratio(a: Sequence[float], b: Sequence[float], confidence: float = CONFIDENCE) -> Around | None:
    """b / a by Welch's t on the logarithms; None from less than two values, or where one is not positive."""
    if min(len(a), len(b)) < 2 or min(*a, *b) <= 0:
        return None
    logs = [[math.log(value) for value in values] for values in (a, b)]
    shares = [statistics.variance(each) / len(each) for each in logs]
    spread = math.sqrt(sum(shares))
    freedom = (
        spread**4 / sum(share**2 / (len(each) - 1) for share, each in zip(shares, logs, strict=True))
        if spread
        else math.inf
    )
    middle = statistics.fmean(logs[1]) - statistics.fmean(logs[0])
    half = max(t_quantile((1 + confidence) / 2, freedom) * spread, math.log1p(FLOOR))
    return _around(middle, half)


def _around(middle: float, half: float) -> Around:
    """From logarithms."""
    half = min(half, math.log(WIDEST))
    return Around(math.exp(middle), math.exp(middle - half), math.exp(middle + half))


@lru_cache(maxsize=1024)
def t_quantile(p: float, freedom: float) -> float:
    """Of Student's t, for p of a half or more."""
    if not 0.5 <= p < 1:
        raise ValueError("p is between a half and one")
    if math.isinf(freedom):
        return statistics.NormalDist().inv_cdf(p)
    low, high = 0.0, 1.0
    while _t_below(high, freedom) < p:
        high *= 2
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_below(middle, freedom) < p else (low, middle)
    return (low + high) / 2


def _t_below(t: float, freedom: float) -> float:
    return 1 - _beta(freedom / 2, 0.5, freedom / (freedom + t * t)) / 2


def _beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function, by its continued fraction (Lentz)."""
    if x <= 0 or x >= 1:
        return min(max(x, 0.0), 1.0)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    if x > (a + 1) / (a + b + 2):
        return 1 - front * _fraction(b, a, 1 - x) / b
    return front * _fraction(a, b, x) / a


def _fraction(a: float, b: float, x: float) -> float:
    c, d = 1.0, 1 / _not_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _STEPS):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _not_zero(1 + term * d)
            c = _not_zero(1 + term / c)
            value *= c * d
        if abs(c * d - 1) < _ENOUGH:
            break
    return value


def _not_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
