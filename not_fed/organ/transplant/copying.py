"""Write a checkpoint that differs from another in some tensors, or in the numbers of its layers, in bounded memory."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from not_fed import files
from not_fed.envelope.header import check_header
from not_fed.errors import InputError
from not_fed.organ.checkpoint import Base, Place, read_header
from not_fed.organ.writing import write_safetensors
from not_fed.progress import Progress, silent

INDEX = "model.safetensors.index.json"
_OTHER_WEIGHTS = (".bin", ".gguf", ".pt", ".pth")  # the same weights in another form would be stale
_MAX_INDEX_BYTES = 64 << 20

Blocks = Callable[[], Iterable[bytes]]


class ChangedSincePlan(InputError):
    """A file changed after the transplant was planned; nothing was written."""

    code = "changed-since-plan"


def state_of(path: Path) -> tuple[int, int]:
    """Size and time of the last change of a file."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def check_unchanged(states: Mapping[Path, tuple[int, int]]) -> None:
    """Raise ChangedSincePlan unless each file's state is still this one."""
    for path, state in states.items():
        if state_of(path) != state:
            raise ChangedSincePlan(
                where=str(path), expected="the file that the plan saw", got="another size or time", hint="plan again"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTensor:
    """A tensor that a checkpoint did not have; `blocks` gives its bytes."""

    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    blocks: Blocks


def write_copy(base: Base, folder: Path, *, replaced: Mapping[str, Blocks], progress: Progress = silent) -> None:
    """Fill an existing private folder with a copy of a checkpoint in which some tensors have other bytes.

    Args:
        replaced: name in the checkpoint -> its new bytes, as many as it has.
    Raises:
        ChangedSincePlan: they are more or fewer.
    Guarantees:
        every other tensor is bit-identical; a shard in which nothing is replaced is a hard link where possible.
    Proved by: tests/unit/test_organ_files.py::test_every_tensor_outside_the_plan_is_bit_identical,
        tests/unit/test_organ_files.py::test_untouched_shards_are_hard_links
    """
    shards = _shards(base)
    for number, (shard, name) in enumerate(shards.items(), start=1):
        inside = {tensor: blocks for tensor, blocks in replaced.items() if base.places[tensor].file == shard}
        if inside:
            _overwrite(base, shard, folder / name, inside)
        else:
            link_or_copy(shard, folder / name)
        progress("transplant", done=number, total=len(shards))
    _copy_others(base, folder)


def write_renamed(
    base: Base, folder: Path, *, names: Mapping[str, str], added: Mapping[str, NewTensor], config: bytes,
    progress: Progress = silent,
) -> None:  # fmt: skip
    """Fill an existing private folder with a copy of a checkpoint in which tensors have other names, come or go.

    Args:
        names: name in the copy -> name in the checkpoint; a tensor that is not in it is left out.
        added: name in the copy -> a new tensor. They have a file of their own where the checkpoint has several.
        config: the copy's config.json.
    Guarantees:
        every tensor has the bytes that it had; a shard whose tensors keep their names is a hard link where possible.
    Proved by: tests/unit/test_transplant_insert.py::test_shards_below_the_new_layers_are_hard_links
    """
    single = not (base.folder / INDEX).exists()
    weight_map: dict[str, str] = {}
    shards = _shards(base)
    for number, (shard, name) in enumerate(shards.items(), start=1):
        inside = {new: old for new, old in names.items() if base.places[old].file == shard}
        more = added if single else {}
        if inside or more:
            _write_shard(base, shard, folder / name, inside, more)
        weight_map |= dict.fromkeys([*inside, *more], name)
        progress("transplant", done=number, total=len(shards))
    if added and not single:
        name = _free_name({source.name for source in base.folder.iterdir()})
        _write_tensors(folder / name, added, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(added, name)
    if not single:
        _write_index(base, folder, weight_map)
    (folder / "config.json").write_bytes(config)
    _copy_others(base, folder, but=(INDEX, "config.json"))


def _shards(base: Base) -> dict[Path, str]:
    """The checkpoint's weight files, and what each is called in its folder: in the hub's cache they are links."""
    index = base.folder / INDEX
    names = _read_index(base)["weight_map"].values() if index.exists() else ["model.safetensors"]
    called = {(base.folder / name).resolve(): name for name in names}
    return {shard: called[shard] for shard in sorted({place.file for place in base.places.values()})}


def _read_index(base: Base) -> dict[str, Any]:
    index: dict[str, Any] = json.loads(files.read_regular((base.folder / INDEX).resolve(), max_bytes=_MAX_INDEX_BYTES))
    return index


def _overwrite(base: Base, shard: Path, target: Path, replaced: Mapping[str, Blocks]) -> None:
    with files.open_regular(shard) as source, files.new_file(target, mode=0o644) as copy:
        shutil.copyfileobj(source, copy, files.BLOCK_BYTES)
        for name, blocks in replaced.items():
            place = base.places[name]
            copy.seek(place.begin)
            copy.writelines(_exactly(place.end - place.begin, blocks(), where=f"{shard}, tensor {name}"))


def _exactly(size: int, blocks: Iterable[bytes], *, where: str) -> Iterator[bytes]:
    left = size
    for block in blocks:
        left -= len(block)
        if left < 0:
            break
        yield block
    if left:
        raise ChangedSincePlan(
            where=where, expected=f"{size:,} bytes", got="more" if left < 0 else f"{size - left:,}", hint="plan again"
        )


def _write_shard(
    base: Base, shard: Path, target: Path, inside: Mapping[str, str], added: Mapping[str, NewTensor]
) -> None:
    with files.open_regular(shard) as stream:
        header = check_header(stream, shard.stat().st_size)
    if not added and all(new == old for new, old in inside.items()) and set(inside) == set(header.tensors):
        link_or_copy(shard, target)
        return
    kept = {new: _as_it_is(base.places[old]) for new, old in inside.items()}
    _write_tensors(target, {**kept, **added}, metadata=header.metadata or {"format": "pt"})


def _as_it_is(place: Place) -> NewTensor:
    return NewTensor(dtype=place.dtype, shape=place.shape, size_bytes=place.end - place.begin, blocks=place.blocks)


def _write_tensors(target: Path, tensors: Mapping[str, NewTensor], *, metadata: Mapping[str, str]) -> None:
    sizes = {name: (tensor.dtype, tensor.shape, tensor.size_bytes) for name, tensor in tensors.items()}

    def blocks(name: str) -> Iterable[bytes]:
        return _exactly(tensors[name].size_bytes, tensors[name].blocks(), where=f"tensor {name}")

    write_safetensors(target, sizes, metadata=metadata, blocks=blocks)


def _write_index(base: Base, folder: Path, weight_map: Mapping[str, str]) -> None:
    index = _read_index(base)
    places = [place for file in sorted(set(weight_map.values())) for place in read_header(folder / file).values()]
    totals = {"total_size": sum(place.end - place.begin for place in places)}
    told = index.get("metadata")
    index["metadata"] = {**(told if isinstance(told, dict) else {}), **totals}
    if "total_parameters" in index["metadata"]:
        index["metadata"]["total_parameters"] = sum(math.prod(place.shape) for place in places)
    index["weight_map"] = dict(sorted(weight_map.items()))
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _free_name(taken: Collection[str]) -> str:
    return next(name for number in count(1) if (name := f"model-inserted-{number}.safetensors") not in taken)


def _copy_others(base: Base, folder: Path, *, but: Collection[str] = ()) -> None:
    weights = set(_shards(base))
    for source in base.folder.iterdir():
        stale = source.suffix in _OTHER_WEIGHTS or source.resolve() in weights
        if source.is_file() and not stale and source.name not in but:
            shutil.copyfile(source, folder / source.name)


def link_or_copy(source: Path, target: Path) -> None:
    """The same file under a second name, or a copy of it."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
