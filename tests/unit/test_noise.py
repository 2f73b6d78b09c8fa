"""Noise is Gaussian, unpredictable, never repeated, and its keys are forgotten."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from not_fed.privacy.noise import CHUNK, gaussian
from not_fed.privacy.randomness import Keystream, OperatingSystem, keystream
from tests.support.seeded import Seeded

COUNT = 1_000_000


def test_a_million_draws_look_gaussian() -> None:
    """Mean, variance, skewness and kurtosis within six standard errors, and the tails as heavy as they should be."""
    draws = gaussian((1000, 1000), std=1.0, source=Seeded(1)).flatten()
    assert draws.dtype is torch.float64
    error = 6 / math.sqrt(COUNT)
    centred = draws - draws.mean()
    assert abs(draws.mean()) < error
    assert abs(draws.var() - 1) < error * math.sqrt(2)
    assert abs((centred**3).mean()) < error * math.sqrt(6)
    assert abs((centred**4).mean() - 3) < error * math.sqrt(24) * 1.1
    for bound in (0.5, 1.0, 2.0, 3.0, 4.0):
        expected = math.erfc(bound / math.sqrt(2))
        outside = float((draws.abs() > bound).double().mean())
        assert abs(outside - expected) < error * math.sqrt(expected)


def test_each_draw_is_half_the_sum_of_four_from_53_bits_each() -> None:
    """Against Box-Muller in plain Python on the same words, to the last few bits."""
    draws = gaussian((6,), std=2.0, source=Seeded(6)).tolist()
    words = Keystream(Seeded(6).fresh_key()).words(24).tolist()
    radii = [math.sqrt(-2 * math.log(1 - (word >> 11) / 2**53)) for word in words[:12]]
    angles = [2 * math.pi * (word >> 11) / 2**53 for word in words[12:]]
    for turn, part in ((math.cos, draws[:3]), (math.sin, draws[3:])):
        for column, draw in enumerate(part):
            four = sum(radii[i] * turn(angles[i]) for i in range(column, 12, 3))
            assert draw == pytest.approx(four, rel=1e-12, abs=1e-14)  # half of four, times 2


def test_neighbouring_draws_are_not_correlated() -> None:
    draws = gaussian((COUNT,), std=1.0, source=Seeded(2))
    for lag in (1, 2, CHUNK // 2, CHUNK):  # the two halves of a pair lie half a chunk apart
        for ours, theirs in ((draws[:-lag], draws[lag:]), (draws[:-lag] ** 2, draws[lag:] ** 2)):
            correlation = float(torch.corrcoef(torch.stack([ours, theirs]))[0, 1])
            assert abs(correlation) < 6 / math.sqrt(COUNT - lag)


@pytest.mark.parametrize("std", [1e-3, 250.0])
def test_the_standard_deviation_is_the_one_asked_for(std: float) -> None:
    draws = gaussian((100_000,), std=std, source=Seeded(3))
    assert abs(draws.std() / std - 1) < 6 / math.sqrt(200_000)


def test_two_calls_share_no_value() -> None:
    source = OperatingSystem()
    first, second = (gaussian((100_000,), std=1.0, source=source).numpy() for _ in range(2))
    assert len(np.unique(first)) == len(first)
    assert len(np.intersect1d(first, second)) == 0


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (CHUNK + 1,), (2, CHUNK)])
def test_any_shape_is_filled(shape: tuple[int, ...]) -> None:
    draws = gaussian(shape, std=1.0, source=Seeded(4))
    assert draws.shape == shape
    assert draws.isfinite().all()
    assert len(torch.unique(draws)) == draws.numel()


def test_the_keystream_is_aes_256_in_counter_mode() -> None:
    """First block of the all-zero key: NIST's known answer for AES-256 of a zero block (CAVP, ECBVarKey256)."""
    assert Keystream(bytearray(32)).words(2).tobytes().hex() == "dc95c078a2408989ad48a21492842087"


def test_a_keystream_goes_on_and_never_starts_again() -> None:
    key = bytearray(range(32))
    whole, parts = Keystream(key).words(1000), Keystream(key)
    assert np.array_equal(whole, np.concatenate([parts.words(1), parts.words(998), parts.words(1)]))


def test_keys_are_overwritten_after_use_even_when_it_fails() -> None:
    source = Seeded(5)
    gaussian((10,), std=1.0, source=source)
    with pytest.raises(ZeroDivisionError), keystream(source):
        assert any(source.handed_out[1])
        raise ZeroDivisionError
    assert source.handed_out == [bytearray(32), bytearray(32)]


def test_the_operating_system_gives_other_keys_each_time() -> None:
    keys = {bytes(OperatingSystem().fresh_key()) for _ in range(100)}
    assert len(keys) == 100
    assert {len(key) for key in keys} == {32}
