"""Masks: a stream of ChaCha20 words from a key that is bound to call, uploader and helper.

Each key is fresh and serves one stream, so the nonce is zero (RFC 8439, section 2.3; HKDF-Expand, RFC 5869).
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from not_fed.aggregation.secure import shamir
from not_fed.aggregation.secure.ring import BLOCK_WORDS, Words
from not_fed.envelope.summing import TAG, encode

SEED_BYTES = 32
_NONCE = bytes(16)
_ZEROS = bytes(BLOCK_WORDS * 4)


def new_seed() -> bytes:
    """32 bytes from the operating system at the moment of use: never cached, never a fork's or a snapshot's twice."""
    return secrets.randbelow(shamir.PRIME).to_bytes(SEED_BYTES, "big")


def pair_key(seed: bytes, *, call_sha256: str, uploader: str, helper: str) -> bytes:
    """The key of the mask that `uploader` adds and `helper` takes off."""
    return _expand(seed, b"mask", call_sha256, uploader, helper)


def blind_key(seed: bytes, *, call_sha256: str, uploader: str) -> bytes:
    """The key of the mask that hides `uploader`'s part of the sum from the coordinator."""
    return _expand(seed, b"blind", call_sha256, uploader)


def _expand(seed: bytes, purpose: bytes, *names: str) -> bytes:
    info = encode(TAG, purpose, *(name.encode() for name in names))
    return HKDFExpand(algorithm=SHA256(), length=32, info=info).derive(seed)


class MaskStream:
    """The words of one mask, from its beginning on, added to or taken off blocks in turn."""

    __slots__ = ("_cipher",)

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(algorithms.ChaCha20(key, _NONCE), mode=None).encryptor()

    def add(self, words: Words) -> None:
        """Add the next words of the mask, in place."""
        for start in range(0, len(words), BLOCK_WORDS):
            part = words[start : start + BLOCK_WORDS]
            np.add(part, self._next(part), out=part)

    def subtract(self, words: Words) -> None:
        """Take the next words of the mask off, in place."""
        for start in range(0, len(words), BLOCK_WORDS):
            part = words[start : start + BLOCK_WORDS]
            np.subtract(part, self._next(part), out=part)

    def _next(self, like: Words) -> Words:
        block = np.empty(like.nbytes, np.uint8)  # the allocator hands out the same cached memory each time
        self._cipher.update_into(memoryview(_ZEROS)[: like.nbytes], block.data)
        return block.view(like.dtype)


def subtract_all(keys: Sequence[bytes], words: Words) -> None:
    """Take several masks off, in place, block by block: a block stays in the cache for all of them."""
    streams = [MaskStream(key) for key in keys]
    for start in range(0, len(words), BLOCK_WORDS):
        block = words[start : start + BLOCK_WORDS]
        for stream in streams:
            stream.subtract(block)
