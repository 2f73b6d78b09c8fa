"""Capsules: what an uploader seals to one site of the cohort, and the commitments that bind it.

A capsule holds, in this order: the seed of the mask that its recipient takes off, if it is a helper; the key of the
uploader's blinding mask, in a blind sum; and the recipient's share of each helper's seed, by the helpers' names.
Source: RFC 9180 (HPKE, base mode): the signed label names each capsule's digest, so no sender key is needed.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field

from not_fed.age import HybridIdentity, hpke
from not_fed.aggregation.secure.masks import SEED_BYTES
from not_fed.envelope.summing import TAG, encode

OVERHEAD_BYTES = 1136  # of HPKE with this KEM: an encapsulated key of 1,120 bytes and a tag of 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Capsule:
    """What one site gets from one uploader. Not printable: every field is a secret."""

    seed: bytes | None = field(repr=False)
    blind: bytes | None = field(repr=False)
    shares: tuple[bytes, ...] = field(repr=False)

    def pack(self) -> bytes:
        """The bytes that get sealed."""
        return b"".join((self.seed or b"", self.blind or b"", *self.shares))


def unpack(plain: bytes, *, is_helper: bool, is_blind: bool, helpers: int) -> Capsule | None:
    """The capsule behind opened bytes; None when their number is not the expected one."""
    parts = [plain[start : start + SEED_BYTES] for start in range(0, len(plain), SEED_BYTES)]
    if len(plain) != SEED_BYTES * (is_helper + is_blind + helpers):
        return None
    seed = parts.pop(0) if is_helper else None
    blind = parts.pop(0) if is_blind else None
    return Capsule(seed=seed, blind=blind, shares=tuple(parts))


def seal(capsule: Capsule, *, public: bytes, call_sha256: str, uploader: str, to: str) -> bytes:
    """The capsule for the one-round key `public` of site `to`."""
    return hpke.seal(capsule.pack(), public=public, info=_info(call_sha256, uploader, to))


def unseal(sealed: bytes, *, key: HybridIdentity, call_sha256: str, uploader: str, to: str) -> bytes:
    """The opened bytes; raises NotForThisKey."""
    return key.open(sealed, info=_info(call_sha256, uploader, to))


def commit(seed: bytes, *, call_sha256: str, uploader: str, helper: str) -> str:
    """The commitment to a seed: a hash of it, which hides 256 random bits and binds to them."""
    return hashlib.sha256(
        encode(TAG, b"commit", call_sha256.encode(), uploader.encode(), helper.encode(), seed)
    ).hexdigest()


def commit_blind(key: bytes, *, call_sha256: str, uploader: str) -> str:
    """The commitment to the key of a blinding mask."""
    return hashlib.sha256(encode(TAG, b"commit-blind", call_sha256.encode(), uploader.encode(), key)).hexdigest()


def same(commitment: str, other: str) -> bool:
    """Whether two commitments are the same, in a time that does not tell where they differ."""
    return hmac.compare_digest(commitment, other)


def sealed_sizes(cohort: Sequence[str], helpers: Sequence[str], *, is_blind: bool) -> dict[str, int]:
    """How long each site's capsule is, sealed."""
    return {name: OVERHEAD_BYTES + SEED_BYTES * ((name in helpers) + is_blind + len(helpers)) for name in cohort}


def _info(call_sha256: str, uploader: str, to: str) -> bytes:
    return encode(TAG, b"capsule", call_sha256.encode(), uploader.encode(), to.encode())
