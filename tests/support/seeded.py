"""Repeatable randomness, for tests alone: whoever knows the seed can take the noise away."""

from __future__ import annotations

import hashlib


class Seeded:
    """A source whose keys follow from a seed; it remembers what it handed out, so that tests can see it erased."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.handed_out: list[bytearray] = []

    def fresh_key(self) -> bytearray:
        """The next key."""
        number = len(self.handed_out)
        self.handed_out.append(bytearray(hashlib.sha256(f"{self.seed}/{number}".encode()).digest()))
        return self.handed_out[-1]
