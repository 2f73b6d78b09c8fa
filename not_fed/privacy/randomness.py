"""Random bits that nobody can predict: an AES-256 key from the operating system for every use, forgotten after it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

KEY_BYTES = 32
Words = NDArray[np.uint64]


class RandomSource(Protocol):
    """Where keys come from. Outside tests it is always the operating system: who knows a seed can undo the noise."""

    def fresh_key(self) -> bytearray:
        """32 bytes that were never given out before; the caller overwrites them after use."""


class OperatingSystem:
    """Keys from the operating system's generator."""

    def fresh_key(self) -> bytearray:
        """32 bytes from `os.urandom`."""
        return bytearray(os.urandom(KEY_BYTES))


class Keystream:
    """AES-256 in counter mode over zeros: 64-bit words, each given out once."""

    def __init__(self, key: bytearray) -> None:
        self._encryptor: Any = Cipher(AES(key), CTR(bytes(16))).encryptor()

    def words(self, count: int) -> Words:
        """The next `count` words of 64 bits."""
        out = np.zeros(count, dtype=np.uint64)
        view = out.data.cast("B")
        written = self._encryptor.update_into(bytes(len(view)), view)
        if written != len(view):
            raise RuntimeError("the cipher gave fewer bytes than asked for")
        return out


@contextmanager
def keystream(source: RandomSource) -> Iterator[Keystream]:
    """A keystream under a key of its own. The key is overwritten at the end, as far as Python allows."""
    key = source.fresh_key()
    try:
        yield Keystream(key)
    finally:
        key[:] = bytes(len(key))
