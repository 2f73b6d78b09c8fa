"""One organ of many of which some may lie: coordinate median, trimmed mean, Krum, multi-Krum, and a filter on norms.

All organs lie on disk; what is in memory is one block of coordinates of all of them, in float64, and whatever a rule
needs to sort or subtract it: at most 64 MiB, whatever the number and the size of the organs. Krum keeps one matrix of
distances besides. The price is reading: median and trimmed mean read each organ once, Krum reads all of them and once
more those that it chose, a filter on norms reads all of them once more before.

Sums are in float64 and in an order that depends on the organs' digests alone, so that whoever has the same organs gets
the same bytes, in whatever order they came.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from not_fed.aggregation.mean import BadWeight, TensorsDiffer
from not_fed.aggregation.rules import BadRule, NormLimit, Rule
from not_fed.envelope.finite import OrganNotFinite
from not_fed.errors import InputError

Floats: TypeAlias = NDArray[np.float64]

BLOCK_NUMBERS = 1 << 21  # of all organs together: 16 MiB in float64
_WIDTHS: Final = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_CODES: Final = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


class CannotCombine(InputError):
    """There is no median of numbers of this format: quantised blocks are not numbers one by one."""

    code = "cannot-combine"


class CutShort(InputError):
    """A file ended while it was being read."""

    code = "cut-short"


class Stored(Protocol):
    """Where the numbers of one tensor lie: `[begin, end)` in `file`; dtype in safetensors' spelling."""

    @property
    def file(self) -> Path: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def begin(self) -> int: ...
    @property
    def end(self) -> int: ...


Tensors: TypeAlias = Mapping[str, Stored]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """One site's organ.

    Attributes:
        name: what the site is called where somebody has to be told.
        sha256: of the file; decides the order of sums, and who comes first of two that are equally good.
        weight: share in a mean; 1 with every other rule.
        factor: its difference from the start is multiplied by this: less than 1 after it was clipped.
    """

    name: str
    sha256: str
    tensors: Tensors
    weight: float = 1.0
    factor: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """An organ that is not in the aggregate as it came.

    Attributes:
        code: `norm-exceeded` and `norm-clipped` by the filter, `not-chosen` by Krum and multi-Krum.
        figure: its norm over the limit, or its score over the best one.
    """

    name: str
    sha256: str
    code: Literal["norm-exceeded", "norm-clipped", "not-chosen"]
    figure: float

    @property
    def left_out(self) -> bool:
        """Whether nothing of it is in the aggregate."""
        return self.code != "norm-clipped"

    def __str__(self) -> str:
        """In words, for whoever runs the coordinator."""
        return {
            "norm-exceeded": f"its organ was left out: {self.figure:.3g} times as far from the start as allowed",
            "norm-clipped": f"its organ was pulled back: {self.figure:.3g} times as far from the start as allowed",
            "not-chosen": "its organ was not chosen: others are closer together "
            f"({self.figure:.3g} times the best score); that alone is no proof of a lie",
        }[self.code]


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """What a rule decided about some organs; the aggregate's numbers are computed when they are asked for."""

    rule: Rule
    members: tuple[Contribution, ...]
    remarks: tuple[Remark, ...]
    start: Tensors | None

    def tensors(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """What the aggregate consists of: number format, as the organs have it, and shape."""
        return {name: (place.dtype, place.shape) for name, place in self.members[0].tensors.items()}

    def blocks(self, name: str) -> Iterator[bytes]:
        """One tensor of the aggregate, in the organs' own number format, block by block.

        Raises:
            OrganNotFinite: an organ has NaN or infinity there. CutShort: its file changed meanwhile.
        """
        weights = np.array([member.weight for member in self.members])
        dtype = self.members[0].tensors[name].dtype
        for rows in _blocks(self.members, name, start=self.start):
            yield _encode(_combine(rows, self.rule, weights), dtype)


def combine(
    organs: Sequence[Contribution],
    *,
    rule: Rule,
    start: Tensors | None = None,
    tell: Callable[[Remark], None] = lambda remark: None,
) -> Combination:
    """Decide who is in the aggregate and how; reads the organs as often as the rule needs.

    Args:
        start: what the round began from; needed with a norm limit.
        tell: told of each remark, also when too few organs are left in the end.
    Raises:
        BadRule: fewer organs than the rule needs, before the norm filter or after it, or a limit without a start.
        TensorsDiffer, CannotCombine: names, shapes or number formats differ, or have no order.
        BadWeight: weights that are not positive, or not equal where each organ counts once.
        OrganNotFinite, CutShort: while norms or distances are computed; the rest is found by `Combination.blocks`.
    Guarantees:
        The result depends on the organs and not on their order. Organs that are all alike are their own aggregate. At
        most 64 MiB are needed beside n² distances.
    Proved by: tests/unit/test_robust.py
    Source: as `Rule`; the norm filter: Sun et al. 2019, Can You Really Backdoor Federated Learning?, section 4.
    """
    members = tuple(sorted(organs, key=lambda one: (one.sha256, one.name)))
    rule.check(len(members))
    _check_alike(members)
    _check_weights(members, rule)
    remarks: list[Remark] = []
    if rule.limit is not None:
        if start is None:
            raise BadRule(
                where="rule of the aggregate", expected="what the round began from, with a limit on norms",
                got="nothing", hint="name the start, or leave out max_norm and max_ratio",
            )  # fmt: skip
        _check_same(start, members[0].tensors, where="what the round began from")
        members, remarks = _filter(members, rule.limit, start)
        for remark in remarks:
            tell(remark)
        rule.check(len(members))
    if rule.name in ("krum", "multi-krum"):
        members, more = _choose(members, rule, start)
        for remark in more:
            tell(remark)
        remarks += more
    return Combination(rule=rule, members=members, remarks=tuple(remarks), start=start)


def distances(members: Sequence[Contribution], *, start: Tensors | None = None) -> Floats:
    """Squared L2 distances of all pairs, shape (organs, organs).

    Each difference is taken before it is squared, in float64. The shorter way, norms minus twice the inner products,
    loses what a round changes in the rounding of the weights' own norms.
    """
    count = len(members)
    found = np.zeros((count, count))
    for name in sorted(members[0].tensors):
        for rows in _blocks(members, name, start=start):
            for one in range(count):
                for other in range(one + 1, count):
                    apart = rows[one] - rows[other]
                    found[one, other] += np.einsum("i,i->", apart, apart)
    return found + found.T


def krum_scores(found: Floats, *, byzantine: int) -> Floats:
    """For each organ, the sum of its n - b - 2 smallest squared distances to others, shape (organs,)."""
    count = len(found)
    others = found[~np.eye(count, dtype=bool)].reshape(count, count - 1)
    scores: Floats = np.sort(others, axis=1)[:, : count - byzantine - 2].sum(axis=1)
    return scores


def norms(members: Sequence[Contribution], *, start: Tensors) -> Floats:
    """L2 norm of each organ's difference from the start, shape (organs,)."""
    squares = np.zeros(len(members))
    for name in sorted(members[0].tensors):
        places = [member.tensors[name] for member in members]
        for begin, count in _ranges(places[0], len(members) + 1):
            origin = _read(start[name], begin, count, whose="start")
            for row, place in enumerate(places):
                apart = _read(place, begin, count, whose=members[row].name) - origin
                squares[row] += np.einsum("i,i->", apart, apart)
    return np.sqrt(squares)


def changes(members: Sequence[Contribution], *, start: Tensors) -> Iterator[Floats]:
    """Each organ's difference from the start, block by block of coordinates, shape (organs, numbers)."""
    for name in sorted(members[0].tensors):
        places = [member.tensors[name] for member in members]
        for begin, count in _ranges(places[0], len(members) + 1):
            origin = _read(start[name], begin, count, whose="start")
            yield np.stack([
                _read(place, begin, count, whose=member.name) - origin
                for place, member in zip(places, members, strict=True)
            ])  # fmt: skip


def _filter(
    members: tuple[Contribution, ...], allowed: NormLimit, start: Tensors
) -> tuple[tuple[Contribution, ...], list[Remark]]:
    """Those within the limit as they are, the others clipped or not at all."""
    found = norms(members, start=start)
    ratio = math.inf if allowed.max_ratio is None else allowed.max_ratio * float(np.median(found))
    limit = min(ratio, math.inf if allowed.max_norm is None else allowed.max_norm)
    kept, remarks = [], []
    for member, norm in zip(members, found.tolist(), strict=True):
        if norm <= limit:
            kept.append(member)
            continue
        code: Literal["norm-exceeded", "norm-clipped"] = "norm-exceeded" if allowed.leave_out else "norm-clipped"
        figure = norm / limit if limit else math.inf
        remarks.append(Remark(name=member.name, sha256=member.sha256, code=code, figure=figure))
        if not allowed.leave_out:
            kept.append(replace(member, factor=limit / norm))
    return tuple(kept), remarks


def _choose(
    members: tuple[Contribution, ...], rule: Rule, start: Tensors | None
) -> tuple[tuple[Contribution, ...], list[Remark]]:
    """The organs with the best scores; of equally good ones those whose digest comes first."""
    scores = krum_scores(distances(members, start=start), byzantine=rule.byzantine)
    order = np.argsort(scores, kind="stable")
    best = float(scores[order[0]])
    chosen = set(order[: rule.kept(len(members))].tolist())
    remarks = []
    for row, member in enumerate(members):
        if row not in chosen:
            figure = float(scores[row]) / best if best else math.inf
            remarks.append(Remark(name=member.name, sha256=member.sha256, code="not-chosen", figure=figure))
    return tuple(member for row, member in enumerate(members) if row in chosen), remarks


def _combine(rows: Floats, rule: Rule, weights: Floats) -> Floats:
    """One block of the aggregate, shape (numbers,), from shape (organs, numbers), which may be sorted on the way."""
    count = len(rows)
    if rule.name == "median":
        rows.sort(axis=0)
        middle: Floats = rows[(count - 1) // 2]
        return middle if count % 2 else middle / 2 + rows[count // 2] / 2
    if rule.name == "trimmed-mean":
        rows.sort(axis=0)
        rows, weights = rows[rule.trimmed : count - rule.trimmed], weights[: count - 2 * rule.trimmed]
    total = np.zeros(rows.shape[1])
    for row, weight in zip(rows, weights, strict=True):
        total += row * weight
    mean: Floats = total / weights.sum()
    return mean


def _blocks(members: Sequence[Contribution], name: str, *, start: Tensors | None) -> Iterator[Floats]:
    """One tensor of all organs, block by block, shape (organs, numbers); clipped ones as they are after that."""
    places = [member.tensors[name] for member in members]
    for begin, count in _ranges(places[0], len(members)):
        rows = np.empty((len(members), count))
        for row, member in zip(rows, members, strict=True):
            row[:] = _read(member.tensors[name], begin, count, whose=member.name)
            if member.factor != 1.0 and start is not None:
                origin = _read(start[name], begin, count, whose="start")
                row[:] = origin + member.factor * (row - origin)
        yield rows


def _ranges(place: Stored, organs: int) -> Iterator[tuple[int, int]]:
    """First number and how many, for blocks that are in memory for so many organs at once."""
    step, size = max(1, BLOCK_NUMBERS // max(4, organs)), math.prod(place.shape)  # of a single organ sums are copies
    for begin in range(0, size, step):
        yield begin, min(step, size - begin)


def _read(place: Stored, begin: int, count: int, *, whose: str) -> Floats:
    """Some numbers of a stored tensor, in float64."""
    offset = place.begin + begin * _WIDTHS[place.dtype]
    raw: NDArray[Any] = np.fromfile(place.file, dtype=_CODES[place.dtype], count=count, offset=offset)
    if len(raw) != count:
        raise CutShort(
            where=f"organ of {whose}", expected=f"{count:,} numbers", got=f"{len(raw):,}", hint="nothing was written"
        )
    if place.dtype == "BF16":
        raw = (raw.astype(np.uint32) << 16).view(np.float32)
    numbers = raw.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise OrganNotFinite(
            where=f"organ of {whose}", expected="finite numbers", got="NaN or infinity",
            hint="nothing was written; tell its author",
        )  # fmt: skip
    return numbers


def _encode(numbers: Floats, dtype: str) -> bytes:
    """In the organs' number format, rounded to the nearest, ties to even."""
    if dtype != "BF16":
        return numbers.astype(_CODES[dtype]).tobytes()
    bits = numbers.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def _check_alike(members: Sequence[Contribution]) -> None:
    first = members[0].tensors
    for name, place in first.items():
        if place.dtype not in _CODES:
            raise CannotCombine(
                where=f"organ of {members[0].name}, tensor {name[:100]}", expected=f"one of {', '.join(_CODES)}",
                got=place.dtype, hint="aggregate organs with floating-point weights",
            )  # fmt: skip
    for member in members[1:]:
        _check_same(member.tensors, first, where=f"organ of {member.name}")


def _check_same(tensors: Tensors, first: Tensors, *, where: str) -> None:
    mine = {name: (place.dtype, place.shape) for name, place in tensors.items()}
    theirs = {name: (place.dtype, place.shape) for name, place in first.items()}
    if mine != theirs:
        odd = next(name for name in sorted({*mine, *theirs}) if mine.get(name) != theirs.get(name))
        raise TensorsDiffer(
            where=f"{where}, tensor {odd[:100]}", expected=str(theirs.get(odd, "no such tensor")),
            got=str(mine.get(odd, "no such tensor")), hint="aggregate organs of one span and one base",
        )  # fmt: skip


def _check_weights(members: Sequence[Contribution], rule: Rule) -> None:
    weights = {member.weight for member in members}
    if not all(0 < weight < math.inf for weight in weights):
        raise BadWeight(
            where="weight of an organ", expected="a positive number", got="another", hint="declare another weight"
        )
    if rule.name != "mean" and len(weights) > 1:
        raise BadWeight(
            where="weights of organs", expected=f"equal ones with {rule.name}, which counts each organ once",
            got=f"{len(weights)} different ones", hint="leave out weights, or take the mean",
        )  # fmt: skip
