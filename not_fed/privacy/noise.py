"""Gaussian noise in float64 from a cryptographic generator."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from not_fed.privacy.randomness import Keystream, RandomSource, keystream

CHUNK = 2**14  # values at a time: their 1 MB of random words stay in the processor's cache
SUMMANDS = 4


def gaussian(shape: Sequence[int], *, std: float, source: RandomSource) -> Tensor:
    """Independent draws from N(0, std^2); shape `shape`, float64, on the CPU.

    Each is half the sum of four draws, from four different pairs of uniforms: guessing the bits behind one value then
    means guessing 424 bits instead of 106.

    Guarantees: every call draws under a key of its own, which is forgotten at the end. No global state is read or set.
    Proved by: tests/unit/test_noise.py::test_a_million_draws_look_gaussian
    Source: Holohan & Braghin 2021, Secure Random Sampling in Differential Privacy.
    """
    values = torch.empty(math.prod(shape), dtype=torch.float64)
    with keystream(source) as stream:
        for start in range(0, len(values), CHUNK):
            part = values[start : start + CHUNK]
            part.copy_(_sums(stream, (len(part) + 1) // 2)[: len(part)])
    return values.mul_(std / math.sqrt(SUMMANDS)).reshape(tuple(shape))


def _sums(stream: Keystream, pairs: int) -> Tensor:
    """Twice `pairs` values, each the sum of four standard normals (Box-Muller)."""
    uniforms = torch.from_numpy((stream.words(2 * SUMMANDS * pairs) >> 11).astype("int64"))  # 53 bits
    first, second = uniforms.double().mul_(2.0**-53).reshape(2, SUMMANDS, pairs)
    radius = first.neg_().add_(1.0).log_().mul_(-2.0).sqrt_()  # 1 - u is never 0
    angle = second.mul_(2 * math.pi)
    return torch.cat([(radius * angle.cos()).sum(dim=0), (radius * angle.sin()).sum(dim=0)])
