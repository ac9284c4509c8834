"""Statistics over seeds: intervals, paired differences, detectable effects and verdicts.

Re-exported by `mmkd_lite.results`, which is where notebooks import them from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

SHOWN, NOT_SHOWN, UNCLEAR = "shown", "not shown", "unclear at this scale"
HIGHER, LOWER, NO_DIFFERENCE = "higher", "lower", "no difference detectable"


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its confidence interval.

    Attributes:
        mean: Mean of the values.
        low: Lower end; NaN for a single value.
        high: Upper end; NaN for a single value.
        sd: Standard deviation (n - 1 in the denominator); NaN for a single value.
        n: Number of values.
    """

    mean: float
    low: float
    high: float
    sd: float
    n: int

    def text(self, decimals: int = 1) -> str:
        """Spell it as "12.3 [11.0, 13.6]"; a single value as "12.3 (1 run)"."""
        mean = f"{self.mean:.{decimals}f}"
        if math.isnan(self.low):
            return f"{mean} (1 run)"
        return f"{mean} [{self.low:.{decimals}f}, {self.high:.{decimals}f}]"


@dataclass(frozen=True)
class PairedDifference(Interval):
    """The mean of seed-by-seed differences a - b, with its interval."""

    @property
    def verdict(self) -> str:
        """Say "higher" or "lower", or "no difference detectable" if the interval holds 0."""
        if self.low > 0:
            return HIGHER
        return LOWER if self.high < 0 else NO_DIFFERENCE


def mean_and_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    r"""Return the mean of some runs with Student's t interval.

    .. math:: \bar x \pm t_{n-1,\,(1+\text{level})/2}\; s / \sqrt n

    The interval is about the mean over *seeds*: it says nothing about other data or settings.

    Raises:
        ValueError: No value, or one that is not finite.
    """
    numbers = np.asarray(values, dtype=float)
    if numbers.ndim != 1 or numbers.size == 0 or not np.isfinite(numbers).all():
        raise ValueError(f"an interval needs one or more finite numbers, got {values!r}")
    n, mean = numbers.size, float(numbers.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan, math.nan, 1)
    sd = float(numbers.std(ddof=1))
    half = float(stats.t.ppf(0.5 + level / 2, n - 1)) * sd / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, sd, n)


def paired_difference(
    a: Sequence[float] | Mapping[int, float],
    b: Sequence[float] | Mapping[int, float],
    level: float = 0.95,
) -> PairedDifference:
    """Compare two methods that ran from the same seeds.

    Pairing removes what a seed does to both (start, data order), so it sees smaller effects than
    two separate intervals do.

    Args:
        a: Values of the first method, in the order of the seeds, or seed -> value.
        b: Values of the second method; with mappings, only common seeds count.
        level: Coverage of the interval.

    Raises:
        ValueError: Different numbers of values, or no common seed.
    """
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        common = sorted(set(a) & set(b))
        a, b = [a[seed] for seed in common], [b[seed] for seed in common]
    if len(a) != len(b) or not len(a):
        raise ValueError(f"a paired difference needs the same seeds twice, got {len(a)}, {len(b)}")
    pairs = np.asarray(list(a), dtype=float) - np.asarray(list(b), dtype=float)
    found = mean_and_interval(pairs.tolist(), level)
    return PairedDifference(found.mean, found.low, found.high, found.sd, found.n)


def smallest_detectable_effect(n: int, sd: float, level: float = 0.95, power: float = 0.8) -> float:
    """Return the true difference whose sign n paired seeds reveal with the given probability.

    Solves ``P(T > t_crit) = power`` for T noncentral t with n - 1 degrees of freedom and
    noncentrality ``effect / (sd / sqrt(n))``. Smaller effects may well exist and stay unseen.

    Args:
        n: Number of seeds; below 2 nothing is detectable and the answer is infinite.
        sd: Standard deviation of the seed-by-seed differences, >= 0.
        level: Coverage of the matching interval.
        power: Probability to notice the effect.
    """
    if n < 2:
        return math.inf
    critical = float(stats.t.ppf(0.5 + level / 2, n - 1))

    def missing_power(shift: float) -> float:
        return float(stats.nct.sf(critical, n - 1, shift)) - power

    shift = float(optimize.brentq(missing_power, 0.0, 2 * critical + 5))
    return shift * sd / math.sqrt(n)


def verdict(difference: Interval, expected_sign: int = 1, relevant: float = 0.0) -> str:
    """Say whether a claimed effect is there: "shown", "not shown" or "unclear at this scale".

    "shown": the interval lies on the expected side of 0. "not shown": it lies on the other side,
    or below the smallest effect that would matter. Anything else is unclear, one run included.

    Args:
        difference: From `paired_difference`.
        expected_sign: +1 if the claim says "a is higher", -1 if it says "lower".
        relevant: Smallest effect (> 0) that would matter; 0 asks for the sign only.

    Raises:
        ValueError: An expected sign other than +1 and -1, or a negative relevant effect.
    """
    if expected_sign not in (1, -1) or relevant < 0:
        raise ValueError(f"expected_sign {expected_sign} must be 1 or -1, relevant {relevant} >= 0")
    low, high = difference.low, difference.high
    if expected_sign < 0:
        low, high = -high, -low
    if high < relevant or high < 0:
        return NOT_SHOWN
    return SHOWN if low > 0 else UNCLEAR
