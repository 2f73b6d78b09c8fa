"""HPKE to a raw hybrid key, for short secrets that are no age file: the suite of the age recipient, another info.

`HybridIdentity.open` opens it.

Source: RFC 9180, section 6.1 (single-shot, base mode); draft-ietf-hpke-pq (KEM MLKEM768-X25519).
"""

from __future__ import annotations

import os

from not_fed.age.hybrid import SEED_BYTES, public_key, suite


def new_seed() -> bytes:
    """32 bytes from the operating system, at the moment of use: never cached, never from a fork's memory."""
    return os.urandom(SEED_BYTES)


def seal(plain: bytes, *, public: bytes, info: bytes) -> bytes:
    """`plain` for the raw public key (1,216 bytes), bound to `info`; 1,136 bytes longer. Raises BadKeyText."""
    return suite().encrypt(plain, public_key(public), info=info)
