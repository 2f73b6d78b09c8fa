"""The step of a server optimiser, on organ files: from where the round began towards the mean, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from not_fed import canonical
from not_fed.aggregation.optimisers import Moment, ServerOptimiser
from not_fed.envelope.header import MAX_METADATA_BYTES
from not_fed.envelope.manifest import KEY
from not_fed.errors import FitError, InputError
from not_fed.organ.checkpoint import Place
from not_fed.organ.merge import digest_parents
from not_fed.organ.organ import Manifest, OrganInfo, read_organ
from not_fed.organ.writing import write_safetensors

STATE_KEY: Final = "not-fed-optimiser"
STATE_SCHEMA: Final = "not-fed/optimiser-state/1"
_DTYPES: Final = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class StartDiffers(FitError):
    """The mean does not hold the tensors of what its round began from."""

    code = "start-differs"


class NotAState(InputError):
    """This is not the state of this optimiser for these tensors."""

    code = "not-an-optimiser-state"


class Overshot(InputError):
    """The step leads to numbers that are not finite; there is no aggregate."""

    code = "optimiser-overshot"


def optimise(
    mean: Path,
    *,
    start: Mapping[str, Place],
    parents: tuple[str, ...],
    optimiser: ServerOptimiser,
    state: Path | None,
    new_state: Path,
    out: Path,
) -> OrganInfo:
    """Write the organ that one step leads to, and the optimiser's state after it.

    Args:
        mean: the organ that the round's answers came to, by whatever rule.
        start: the tensors that the round began from, by their names in an organ: of an organ, or of a base's span.
        parents: digest of the organ that they are of; nothing for a base's own span.
        state: after the span's last round; None where there was none.
        new_state: written first; not at all by an optimiser that remembers nothing.
        out: the organ. With plain FedAvg the mean itself is moved there, not a byte changed.
    Raises:
        StartDiffers, NotAState, Overshot: nothing usable was written. OutputExists.
    Guarantees:
        The same mean, start and state give the same bytes. Memory: a few copies of one tensor, whatever the organ's
        size; disk: the organ and, with moments, four or eight bytes a parameter.
        The claim is the mean's: the start and the moments were made of earlier rounds alone, whose organs count in the
        claims of those who go on from them; a step is post-processing.
    Proved by: tests/unit/test_optimisers.py::test_the_same_round_taken_again_gives_the_same_bytes,
        tests/unit/test_optimisers.py::test_rate_one_without_momentum_is_plain_fedavg_bit_for_bit,
        tests/unit/test_optimisers.py::test_memory_does_not_grow_with_the_number_of_tensors
    """
    organ = read_organ(mean)
    _check_same(organ, start)
    if optimiser.is_plain:
        mean.rename(out)
        return read_organ(out)
    if optimiser.moments:
        _write_state(organ, start, optimiser, before=state, out=new_state)
    with _opened(new_state if optimiser.moments else None, organ, optimiser) as moments:

        def blocks(name: str) -> Iterator[bytes]:
            place, begun = organ.places[name], _tensor(start[name])
            after: dict[str, Tensor] = {which: moments(which, name) for which in optimiser.moments}
            stepped = optimiser.step(begun, _tensor(place) - begun, after).to(_DTYPES[place.dtype])
            if not bool(stepped.isfinite().all()):
                raise _overshot(name)
            yield _bytes(stepped)

        metadata = _describe(organ.manifest, optimiser, parents).as_metadata()
        write_safetensors(out, _sizes(organ.places), metadata=metadata, blocks=blocks)
    return read_organ(out)


def _write_state(
    organ: OrganInfo, start: Mapping[str, Place], optimiser: ServerOptimiser, *, before: Path | None, out: Path
) -> None:
    with _opened(before, organ, optimiser) as moments:
        tensors = {
            f"{which}/{name}": ("F32", place.shape, 4 * math.prod(place.shape))
            for which in optimiser.moments
            for name, place in organ.places.items()
        }

        def blocks(key: str) -> Iterator[bytes]:
            which, _, name = key.partition("/")
            chosen: Moment = "v" if which == "v" else "m"
            difference = _tensor(organ.places[name]) - _tensor(start[name])
            known = None if before is None else moments(chosen, name)
            after = optimiser.moment(chosen, difference, known)
            if not bool(after.isfinite().all()):
                raise _overshot(name)
            yield _bytes(after)

        facts = canonical.dumps({"schema": STATE_SCHEMA, "optimiser": optimiser.as_training()}).decode()
        write_safetensors(out, tensors, metadata={STATE_KEY: facts}, blocks=blocks)


class _Moments:
    """The moments in a state file, read one at a time; each time anew, since what was read stays mapped while open."""

    def __init__(self, state: Path | None) -> None:
        self._state = state

    def __call__(self, which: str, name: str) -> Tensor:
        with safe_open(str(self._state), framework="pt") as tensors:
            moment: Tensor = tensors.get_tensor(f"{which}/{name}").clone()
        return moment


@contextmanager
def _opened(state: Path | None, organ: OrganInfo, optimiser: ServerOptimiser) -> Iterator[_Moments]:
    """A state file, once it is known to be this optimiser's for these tensors; or none."""
    if state is not None:
        wanted = {f"{which}/{name}": place.shape for which in optimiser.moments for name, place in organ.places.items()}
        try:
            with safe_open(state, framework="pt") as tensors:
                facts = canonical.loads((tensors.metadata() or {}).get(STATE_KEY, "").encode(), where=state.name)
                found = {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
        except (SafetensorError, InputError, OSError):
            facts, found = None, {}
        if facts != {"schema": STATE_SCHEMA, "optimiser": optimiser.as_training()} or found != wanted:
            raise NotAState(
                where=state.name, expected=f"the state of {optimiser.name} for {len(organ.places)} tensors",
                got="something else", hint="remove it to begin anew without moments",
            )  # fmt: skip
    yield _Moments(state)


def _describe(manifest: Manifest, optimiser: ServerOptimiser, parents: tuple[str, ...]) -> Manifest:
    """The mean's manifest with optimiser and start; where that is too long, one digest stands for the organs."""
    training = {**(manifest.training or {}), "optimiser": optimiser.as_training()}
    listed = replace(manifest, training=training, parents=(*manifest.parents, *parents))
    if len(listed.as_metadata()[KEY].encode()) <= MAX_METADATA_BYTES:
        return listed
    weights = training.pop("weights", {})
    if not weights:  # one digest does already
        return listed
    counted = training | {"organs": len(weights)}
    return replace(manifest, training=counted, parents=(digest_parents(weights.items()), *parents))


def _check_same(organ: OrganInfo, start: Mapping[str, Place]) -> None:
    for name in sorted({*organ.places, *start}):
        mine, theirs = organ.places.get(name), start.get(name)
        if mine is None or theirs is None or (mine.dtype, mine.shape) != (theirs.dtype, theirs.shape):
            raise StartDiffers(
                where=f"{organ.path.name}, tensor {name[:100]}",
                expected="no such tensor" if theirs is None else f"{theirs.dtype} {theirs.shape}, as the start has it",
                got="no such tensor" if mine is None else f"{mine.dtype} {mine.shape}",
                hint="give the organ that this round began from",
            )


def _sizes(places: Mapping[str, Place]) -> dict[str, tuple[str, tuple[int, ...], int]]:
    return {name: (place.dtype, place.shape, place.end - place.begin) for name, place in places.items()}


def _tensor(place: Place) -> Tensor:
    """One tensor in float64, so that what is added and squared does not round on the way."""
    data = bytearray(place.read())
    flat = torch.frombuffer(data, dtype=_DTYPES[place.dtype]) if data else torch.empty(0, dtype=_DTYPES[place.dtype])
    return flat.reshape(place.shape).double()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _overshot(name: str) -> Overshot:
    return Overshot(
        where=f"server optimiser, tensor {name[:100]}", expected="finite numbers", got="NaN or infinity",
        hint="use a smaller rate",
    )  # fmt: skip
