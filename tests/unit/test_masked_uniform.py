"""A masked vector looks like noise, alone and beside others; generators with a flaw or with few seeds are noticed."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from numpy.typing import NDArray

from not_fed.aggregation.secure.masks import MaskStream, blind_key, new_seed, pair_key
from not_fed.aggregation.secure.ring import Ring

WORDS = 1 << 18
CALL = "ab" * 32
RING = Ring(word_bits=32, value_bits=24, clip=2.0**-6, max_weight=1)
SHORT = 20_000
SEARCHED = 1 << 12
LIMIT = 8.0  # standard deviations: once in 10^12 trials or so

Array = NDArray[np.uint32]


@pytest.fixture(scope="module")
def update() -> Array:
    """The words of a change as it comes from training: small, most of their upper bits alike."""
    change = np.random.default_rng(0).normal(0, 4e-4, WORDS).astype(np.float32)
    return RING.words(RING.round(change), weight=1).astype(np.uint32)


def masked(words: Array, *, helper: str = "ward", key: bytes | None = None) -> Array:
    """With one mask of ours."""
    out = words.astype("<u4")
    MaskStream(key or pair_key(new_seed(), call_sha256=CALL, uploader="clinic", helper=helper)).add(out)
    return out.astype(np.uint32)


def flaws(seen: Array, update: Array) -> set[str]:
    """Every test of uniformity that the vector fails."""
    found = {f"byte {place}" for place in range(4) if _uneven(seen >> np.uint32(8 * place) & np.uint32(255), 256)}
    found |= {"low 16 bits" for _ in "x" if _uneven(seen & np.uint32(0xFFFF), 1 << 16)}
    found |= {"high 16 bits" for _ in "x" if _uneven(seen >> np.uint32(16), 1 << 16)}
    found |= {f"bit {bit}" for bit in range(32) if _lopsided(seen >> np.uint32(bit) & np.uint32(1))}
    signed = seen.view(np.int32)
    found |= {f"lag {lag}" for lag in (1, 2, 3, 4, 16, 624) if _correlated(signed[lag:], signed[:-lag])}
    low = (seen & np.uint32(0xFFFF)).astype(np.int32)
    found |= {f"low lag {lag}" for lag in (1, 16) if _correlated(low[lag:], low[:-lag])}
    if _correlated(signed, update.view(np.int32)):
        found.add("update")
    if len(np.unique(seen)) < len(seen) * 0.99:  # of 2^32 words: about 8 pairs alike
        found.add("few words")
    return found


def _uneven(values: Array, kinds: int) -> bool:
    """Chi-square, on both sides: what is too even was counted, not drawn."""
    counts = np.bincount(values, minlength=kinds)
    expected = len(values) / kinds
    chi_square = float(((counts - expected) ** 2).sum() / expected)
    return bool(abs(chi_square - (kinds - 1)) > LIMIT * (2 * (kinds - 1)) ** 0.5)


def _lopsided(bits: Array) -> bool:
    return bool(abs(int(bits.sum()) - len(bits) / 2) > LIMIT * (len(bits) / 4) ** 0.5)


def _correlated(one: NDArray[Any], other: NDArray[Any]) -> bool:
    ours, theirs = (values - values.mean() for values in (one, other))
    size = float(np.sqrt((ours @ ours) * (theirs @ theirs)))
    return bool(abs(float(ours @ theirs)) > LIMIT / len(one) ** 0.5 * size)


def test_a_masked_update_looks_uniform(update: Array) -> None:
    for _ in range(2):
        seen = masked(update)
        assert flaws(seen, update) == set()
        again = masked(update)
        assert flaws(seen - again, update) == set()  # another seed is another mask
    assert flaws(masked(np.zeros_like(update)), update) == set()  # the mask by itself
    blind = masked(update, key=blind_key(new_seed(), call_sha256=CALL, uploader="clinic"))
    assert flaws(blind, update) == set()


def test_one_seed_gives_each_call_uploader_and_helper_a_mask_of_its_own(update: Array) -> None:
    seed = new_seed()
    first = pair_key(seed, call_sha256=CALL, uploader="clinic", helper="ward")
    others = [
        pair_key(seed, call_sha256="cd" * 32, uploader="clinic", helper="ward"),
        pair_key(seed, call_sha256=CALL, uploader="ward", helper="clinic"),
        pair_key(seed, call_sha256=CALL, uploader="clinicw", helper="ard"),
        blind_key(seed, call_sha256=CALL, uploader="clinic"),
    ]
    for other in others:
        assert flaws(masked(update, key=first) - masked(update, key=other), update) == set()
    assert not (masked(update, key=first) - masked(update, key=first)).any()  # control: the same key is the same mask


def _counter(words: Array) -> Array:
    return np.add(words, np.arange(len(words)), dtype=np.uint32, casting="unsafe")


def _congruential(words: Array) -> Array:
    """x -> 1664525 x + 1013904223 modulo 2^32, whose low bits repeat after 2^8, 2^16 …"""
    jump, add = 1, 0
    block = np.empty(1 << 10, dtype=np.uint64)
    for place in range(len(block)):
        block[place] = add
        jump, add = jump * 1664525 % 2**32, (add * 1664525 + 1013904223) % 2**32
    rows, state = [], int.from_bytes(os.urandom(4), "little")
    powers = np.array([pow(1664525, place, 2**32) for place in range(len(block))], dtype=np.uint64)
    for _ in range(len(words) // len(block)):
        rows.append((powers * np.uint64(state) + block).astype(np.uint32))
        state = (jump * state + add) % 2**32
    return words + np.concatenate(rows)


def _too_narrow(words: Array) -> Array:
    return words + (np.frombuffer(os.urandom(4 * len(words)), dtype=np.uint32) >> np.uint32(8))


def _starts_anew(words: Array) -> Array:
    """The stream of a cipher whose counter is set back for each block."""
    block = np.frombuffer(os.urandom(4 << 10), dtype=np.uint32)
    return words + np.tile(block, len(words) // len(block))


def _signs_only(words: Array) -> Array:
    flip = np.frombuffer(os.urandom(4 * len(words)), dtype=np.uint32) & np.uint32(1)
    return np.where(flip == 1, words, np.uint32(0) - words).astype(np.uint32)


@pytest.mark.parametrize(
    "weak", [np.copy, _counter, _congruential, _too_narrow, _starts_anew, _signs_only], ids=lambda weak: weak.__name__
)
def test_masks_with_a_flaw_are_noticed(weak: Callable[[Array], Array], update: Array) -> None:
    assert flaws(weak(update), update) | flaws(weak(np.zeros_like(update)), update) != set()


def test_one_mask_for_two_updates_is_noticed(update: Array) -> None:
    other = np.roll(update, 1000)
    key = pair_key(new_seed(), call_sha256=CALL, uploader="clinic", helper="ward")
    assert flaws(masked(update, key=key) - masked(other, key=key), update) != set()


def _first_bytes(count: int) -> Iterator[bytes]:
    """How masks of ours begin."""
    for _ in range(count):
        words = np.zeros(4, dtype="<u4")
        MaskStream(pair_key(new_seed(), call_sha256=CALL, uploader="clinic", helper="ward")).add(words)
        yield words.tobytes()


def _flower_keys(count: int) -> list[bytes]:
    """Keys as SecAgg+ has them when it seeds its generator: base64 text of 32 random bytes."""
    return [base64.urlsafe_b64encode(os.urandom(32)) for _ in range(count)]


def _folded(keys: list[bytes]) -> Array:
    parts = np.frombuffer(b"".join(keys), dtype="<u4").reshape(len(keys), -1)
    folded: Array = np.bitwise_xor.reduce(parts, axis=1)
    return folded


def test_a_generator_with_few_seeds_repeats_itself_and_ours_does_not() -> None:
    """The birthday test, which no single vector can replace: Flower's masks look uniform one by one.

    Among 120,000 keys of SecAgg+ about 27 pairs give one and the same mask, since it folds each key into 28 bits.
    """
    keys = _flower_keys(120_000)
    seeds = _folded(keys)
    assert not (seeds & ~np.uint32(0x7F7F7F7F)).any()  # 28 bits
    order = np.argsort(seeds, kind="stable")
    twice = np.flatnonzero(np.diff(seeds[order].astype(np.int64)) == 0)
    assert len(twice) > 3
    for at in twice[:3]:
        one, other = keys[order[at]], keys[order[at + 1]]
        assert one != other
        same, mask = (pseudo_rand_gen(key, 1 << 32, [(64,)])[0] for key in (one, other))
        assert np.array_equal(same, mask)
    assert len(set(_first_bytes(SHORT))) == SHORT
    fours = len({first[:4] for first in _first_bytes(SHORT)})
    assert fours >= SHORT - 8  # of 32 bits: 0.05 pairs alike are expected, of 28 bits and less 0.7 and more


def _found(seen: Array, candidates: Iterator[tuple[bytes, Array]]) -> list[bytes]:
    """The seeds after whose mask only small numbers are left: what a coordinator that merely listens can try."""
    small = 1 << 20
    return [
        seed for seed, mask in candidates
        if np.all(np.abs((seen[: len(mask)] - mask).view(np.int32).astype(np.int64)) < small)
    ]  # fmt: skip


def test_with_few_seeds_whoever_listens_finds_the_update_by_trying(update: Array) -> None:
    """The search that opened SecAgg+ (28 bits, 90 CPU seconds), cut to 12 bits; the same search finds nothing of ours.

    Flower's own generator, with what a fold of a key into few bits leaves of it.
    """
    secret = int.from_bytes(os.urandom(2), "little") % SEARCHED

    def theirs(length: int) -> Iterator[tuple[bytes, Array]]:
        for number in range(SEARCHED):
            seed = number.to_bytes(4, "little")
            yield seed, pseudo_rand_gen(seed, 1 << 32, [(length,)])[0].astype(np.uint32)

    def ours(length: int) -> Iterator[tuple[bytes, Array]]:
        for number in range(SEARCHED):
            seed, words = number.to_bytes(32, "big"), np.zeros(length, dtype="<u4")
            MaskStream(pair_key(seed, call_sha256=CALL, uploader="clinic", helper="ward")).add(words)
            yield seed, words.astype(np.uint32)

    whole = pseudo_rand_gen(secret.to_bytes(4, "little"), 1 << 32, [(WORDS,)])[0].astype(np.uint32)
    weak = update + whole
    assert flaws(weak, update) == set()  # by itself it looks as good as any
    assert _found(weak, theirs(8)) == [secret.to_bytes(4, "little")]
    assert np.array_equal(weak - whole, update)
    assert _found(masked(update), ours(8)) == []
    weak_seed = secret.to_bytes(32, "big")  # control: with a seed that few bits give, ours would fall too
    key = pair_key(weak_seed, call_sha256=CALL, uploader="clinic", helper="ward")
    assert _found(masked(update, key=key), ours(8)) == [weak_seed]


def test_seeds_come_from_the_operating_system_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """No state of ours that a fork or a snapshot could copy: each seed asks the operating system for its own bytes."""
    drawn: list[int] = []
    real = os.urandom

    def counted(size: int) -> bytes:
        drawn.append(size)
        return real(size)

    monkeypatch.setattr("random._urandom", counted)
    seeds = set()
    for number in range(1, 65):
        seeds.add(new_seed())
        assert sum(drawn) >= 32 * number  # nothing was drawn ahead
        assert sum(drawn) <= 32 * (number + 1)
    assert len(seeds) == 64
