"""Shamir's secret sharing of a 32-byte seed over the field of integers modulo 2^256 - 189.

A place is a site's number in the sorted cohort, from 1; it is never sent. Whether shares belong together is decided
by the commitment in the signed label, not here. Python's integers take a time that depends on their value; nobody
times this: each seed is shared once and opened at most once, behind a network.
Source: Shamir 1979, How to Share a Secret. The modulus is the largest prime below 2^256.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from itertools import combinations, islice

PRIME = 2**256 - 189
SHARE_BYTES = 32
MAX_TRIES = 20_000  # sets of shares that are tried where some are wrong


def split(secret: bytes, *, places: int, threshold: int) -> list[bytes]:
    """One share of 32 bytes for each place 1..places; any `threshold` of them give the secret, fewer say nothing.

    Raises:
        ValueError: not 1 <= threshold <= places, or a secret outside the field.
    """
    value = int.from_bytes(secret, "big")
    if len(secret) != SHARE_BYTES or value >= PRIME or not 1 <= threshold <= places:
        raise ValueError("a secret of 32 bytes below the modulus, and a threshold of at most the places")
    coefficients = [value, *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return [_at(coefficients, place).to_bytes(SHARE_BYTES, "big") for place in range(1, places + 1)]


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret behind shares by place: right when they are right and enough, else some other 32 bytes.

    Raises:
        ValueError: a place below 1, or a share of another length or outside the field.
    """
    points = {place: int.from_bytes(share, "big") for place, share in shares.items()}
    if any(place < 1 for place in points) or any(
        len(share) != SHARE_BYTES or points[place] >= PRIME for place, share in shares.items()
    ):
        raise ValueError("shares of 32 bytes below the modulus, at places from 1")
    return _through(shares, 0)


def recover(
    shares: Mapping[int, bytes], *, threshold: int, fits: Callable[[bytes], bool]
) -> tuple[bytes, frozenset[int]] | None:
    """The secret that `fits`, and the places of the shares that do not belong to it; None when no set gives it.

    A share outside the field is wrong, not an error: whoever is asked for one may send anything.
    """
    usable = {
        place: share
        for place, share in sorted(shares.items())
        if len(share) == SHARE_BYTES and int.from_bytes(share, "big") < PRIME
    }
    for chosen in islice(combinations(usable, threshold), MAX_TRIES):
        points = {place: usable[place] for place in chosen}
        secret = combine(points)
        if fits(secret):
            base = {0: secret, **dict(list(points.items())[: threshold - 1])}
            return secret, frozenset(place for place, share in shares.items() if _through(base, place) != share)
    return None


def _through(points: Mapping[int, bytes], place: int) -> bytes:
    """The value at `place` of the polynomial through `points`, which may lie at 0."""
    if place in points:
        return points[place]
    total = 0
    for own, share in points.items():
        above = below = 1
        for other in points:
            if other != own:
                above = above * (place - other) % PRIME
                below = below * (own - other) % PRIME
        total = (total + int.from_bytes(share, "big") * above * pow(below, -1, PRIME)) % PRIME
    return total.to_bytes(SHARE_BYTES, "big")


def _at(coefficients: list[int], place: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * place + coefficient) % PRIME
    return value
