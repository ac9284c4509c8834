"""Which percentages can come out of n queries: the granularity check of a printed table."""

from __future__ import annotations

import math


def attainable(percentage: float, queries: int, decimals: int = 2) -> bool:
    """Tell whether a printed percentage can be a share of whole queries.

    True if some whole number h of hits has ``100 * h / queries`` printed as ``percentage``.
    Both ways to print a half are accepted, so only impossible values are refused.

    Args:
        percentage: The printed value, in per cent.
        queries: Number of queries, >= 1.
        decimals: Decimal places of the printed value.

    Raises:
        ValueError: Fewer than one query.

    Source: E002-01 and E002-09 (seed 002, Table 1). Derived in notebooks/30_retrieval.ipynb.
    """
    return nearest_hits(percentage, queries, decimals) is not None


def nearest_hits(percentage: float, queries: int, decimals: int = 2) -> int | None:
    """Return a number of hits that prints as ``percentage``, or None if there is none."""
    if queries < 1:
        raise ValueError(f"queries is {queries}; a percentage needs at least one query")
    tolerance = 0.5 * 10.0**-decimals + 1e-9
    hits = math.floor(percentage * queries / 100)
    for candidate in (hits, hits + 1):
        inside = 0 <= candidate <= queries
        if inside and abs(100 * candidate / queries - percentage) <= tolerance:
            return candidate
    return None
