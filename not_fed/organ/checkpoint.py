"""A base model's folder: what it holds, without loading it.

Only headers are read to find tensors; bytes are read tensor by tensor. A base is known by a digest that does not depend
on sharding or file names, computed once for each state of its files and remembered (snapshots.py).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from not_fed import canonical, files, snapshots
from not_fed.envelope.header import check_header
from not_fed.errors import FitError, InputError
from not_fed.organ.anatomy import (
    Family,
    Span,
    blood_type,
    family_of,
    is_listed,
    layer_count,
    layer_types,
    with_types,
)
from not_fed.progress import Progress, silent
from not_fed.snapshots import FileState

if TYPE_CHECKING:
    from not_fed.organ.discovery import Found

MAX_CONFIG_BYTES = 16 << 20
_ELSEWHERE = ("transformers_weights", "configuration_files")  # keys of config.json that name files to read instead
_SHA_THREADS = 2


class NotABase(InputError):
    """This is not a model folder in Hugging Face layout with safetensors weights."""

    code = "not-a-base"


class TensorMissing(FitError):
    """The checkpoint lacks a tensor that its own index or its family promises."""

    code = "tensor-missing"


@dataclass(frozen=True, slots=True)
class Place:
    """Where one tensor's bytes are: `[begin, end)` in `file`; dtype in safetensors' spelling."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def blocks(self, size_bytes: int = files.BLOCK_BYTES) -> Iterator[bytes]:
        """The tensor's bytes, in blocks of that size but for the last."""
        with files.open_regular(self.file) as stream:
            stream.seek(self.begin)
            left = self.end - self.begin
            while left:
                block = stream.read(min(left, size_bytes))
                if not block:
                    raise TensorMissing(
                        where=str(self.file),
                        expected=f"{left:,} more bytes of a tensor",
                        got="the end of the file",
                        hint="the file changed while being read; try again",
                    )
                left -= len(block)
                yield block

    def read(self) -> bytes:
        """The tensor's bytes."""
        return b"".join(self.blocks())


@dataclass(frozen=True)
class Base:
    """A model folder whose headers were checked; nothing is loaded.

    Attributes:
        folder: the folder itself, resolved.
        config: config.json as parsed.
        places: tensor name -> where its bytes are, over all shards.
    """

    folder: Path
    config: Mapping[str, Any]
    places: Mapping[str, Place]
    progress: Progress = field(default=silent, repr=False, compare=False)
    _span_digests: dict[Span, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def family(self) -> Family:
        """The anatomy; raises UnknownFamily and NotADecoder."""
        return family_of(self.config, where=self._config_file) if is_listed(self.config) else self._found.family

    @property
    def blood_type(self) -> dict[str, Any]:
        """What another model must share to exchange organs; errors as `family`."""
        return (
            blood_type(self.config, where=self._config_file) if is_listed(self.config) else dict(self._found.blood_type)
        )

    @property
    def layers(self) -> int:
        """Number of decoder layers; errors as `family`."""
        return layer_count(self.config) if is_listed(self.config) else self._found.layers

    @property
    def layer_types(self) -> tuple[str, ...] | None:
        """What kind each layer is, where they differ in more than their weights; None elsewhere. Errors as `family`."""
        return layer_types(self.config, where=self._config_file) if is_listed(self.config) else self._found.types

    def blood_type_at(self, span: Span) -> dict[str, Any]:
        """The blood type of the layers in a span: what kind they are belongs to it."""
        return with_types(self.blood_type, (self.layer_types or ())[span.start : span.stop])

    @property
    def _config_file(self) -> str:
        return str(self.folder / "config.json")

    @property
    def _found(self) -> Found:
        from not_fed.organ.discovery import discover  # it builds the model: torch, and seconds

        return discover(self.config, file=self.folder / "config.json")

    @cached_property
    def sha256(self) -> str:
        """Digest of all tensors (see `digest_tensors`); computed once per state of the files, then remembered."""
        return _remembered("tensors", self.places, progress=self.progress)

    def span_sha256(self, span: Span) -> str:
        """Digest of a span's tensors under their organ names; remembered like `sha256`. Errors as `span_places`."""
        if span not in self._span_digests:
            places = self.span_places(span)
            self._span_digests[span] = _remembered(f"tensors of layers {span}", places)
        return self._span_digests[span]

    def span_places(self, span: Span) -> dict[str, Place]:
        """Organ tensor name (`layers.0.…` is the span's first layer) -> place.

        Raises:
            SpanOutside: the model has fewer layers.
            TensorMissing: a layer of the span has no tensors.
        """
        return {organ: self.places[name] for organ, name in self.span_names(span).items()}

    def span_names(self, span: Span) -> dict[str, str]:
        """Organ tensor name -> name in this checkpoint; errors as `span_places`, and NotABase: it has a layer twice."""
        span.check_inside(self.layers, where=str(self.folder))
        family, found = self.family, {}
        prefix = self._layers_prefix(family)
        for name in sorted(self.places):
            index, _, rest = name.removeprefix(prefix).partition(".")
            ignored = family.ignored is not None and family.ignored.fullmatch(rest)
            if name.startswith(prefix) and index.isdecimal() and span.start <= int(index) < span.stop and not ignored:
                found[f"{family.list_name}.{int(index) - span.start}.{rest}"] = name
        present = {int(name.split(".")[1]) for name in found}
        if missing := sorted(set(range(len(span))) - present):
            raise TensorMissing(
                where=str(self.folder),
                expected=f"tensors of layer {span.start + missing[0]}",
                got="none",
                hint="the checkpoint is incomplete",
            )
        return found

    def _layers_prefix(self, family: Family) -> str:
        """How the names of layers begin, up to the number; transformers would load either of two spellings.

        Proved by: tests/unit/test_model_folder.py::test_a_layer_under_two_names_is_no_base
        """
        starts = {p: [name for name in self.places if name.startswith(p)] for p in family.prefixes()}
        known = [prefix for prefix, names in starts.items() if names] or [family.prefixes()[0]]
        odd = [name for name in starts[known[0]] if re.match(r"0\d", name.removeprefix(known[0]))]
        odd += [starts[other][0] for other in known[1:]]
        if odd:
            raise NotABase(
                where=str(self.folder), expected=f"layers as {known[0]}0, and no other spelling", got=odd[0][:100],
                hint="save the model again with transformers, save_pretrained",
            )  # fmt: skip
        return known[0]


def open_base(folder_or_name: str | Path, *, progress: Progress = silent) -> Base:
    """Find a model folder and check its headers.

    Args:
        folder_or_name: a folder in Hugging Face layout, or a hub id (fetched by huggingface_hub).
    Raises:
        NotABase: no such folder or hub id, no config.json, no safetensors weights, or others than transformers loads.
    Guarantees:
        what is digested here are the weights that transformers loads from that folder.
    Proved by: tests/unit/test_model_folder.py::test_a_folder_that_transformers_reads_otherwise_is_no_base
    """
    folder = Path(folder_or_name)
    if not folder.is_dir():
        folder = _from_hub(str(folder_or_name))
    folder = folder.resolve()
    config = _read_json(folder / "config.json")
    _require_one_reading(folder, config)
    return Base(folder=folder, config=config, places=_read_places(folder), progress=progress)


def _require_one_reading(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise NotABase where transformers would read other weights or settings, or load code, from this folder."""
    odd = [f"{key} in config.json" for key in _ELSEWHERE if key in config]
    wholes = [config, *(value for value in config.values() if isinstance(value, dict))]
    code = ((key, value) for whole in wholes for key, value in whole.items() if key.endswith("attn_implementation"))
    odd += [f"{key} from a repository, in config.json" for key, value in code if "/" in str(value)]
    odd += ["an adapter, in adapter_config.json"] * (folder / "adapter_config.json").exists()
    if odd:
        raise NotABase(
            where=str(folder), expected="a model that is its config.json and its own safetensors files", got=odd[0],
            hint="transformers would load something else from it: merge or take that out, then save the model again",
        )  # fmt: skip


def _remembered(kind: str, places: Mapping[str, Place], *, progress: Progress = silent) -> str:
    """Their digest: from a note of that kind about the files as they are now, computed and noted otherwise."""
    files_read = sorted({place.file for place in places.values()})
    states = [(path, FileState.of(path)) for path in files_read]
    digest = snapshots.recall(kind, states)
    if digest is None:
        digest = digest_tensors(places, progress=progress)
        if states == [(path, FileState.of(path)) for path in files_read]:
            snapshots.note(kind, states, digest)
    return digest


def digest_tensors(places: Mapping[str, Place], *, progress: Progress = silent) -> str:
    """SHA-256 over the sorted list of (name, dtype, shape, SHA-256 of the bytes), as canonical JSON."""

    def digest(place: Place) -> str:
        hasher = hashlib.sha256()
        for block in place.blocks():
            hasher.update(block)
        return hasher.hexdigest()

    names = sorted(places)
    total = sum(places[name].end - places[name].begin for name in names)
    rows, done = [], 0
    with ThreadPoolExecutor(_SHA_THREADS) as pool:  # hashlib releases the GIL
        for name, sha in zip(names, pool.map(digest, (places[name] for name in names)), strict=True):
            rows.append([name, places[name].dtype, list(places[name].shape), sha])
            done += places[name].end - places[name].begin
            progress("digest of the tensors", done=done, total=total)
    return hashlib.sha256(canonical.dumps(rows)).hexdigest()


def read_header(path: Path) -> dict[str, Place]:
    """Places of all tensors in one safetensors file, after the strict header check."""
    with files.open_regular(path) as stream:
        header = check_header(stream, path.stat().st_size)
    start = header.data_start
    return {
        name: Place(path, entry.dtype, tuple(entry.shape), start + entry.begin, start + entry.end)
        for name, entry in header.tensors.items()
    }


def _read_places(folder: Path) -> dict[str, Place]:
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if not index.exists():
        if not single.exists():
            raise NotABase(
                where=str(folder),
                expected="model.safetensors or model.safetensors.index.json",
                got="neither",
                hint="convert the weights to safetensors: load with transformers, then save_pretrained",
            )
        return read_header(_weights(single))
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise NotABase(
            where=str(index),
            expected="a weight_map of tensor name to file name",
            got="something else",
            hint="download the checkpoint again",
        )
    if single.exists() and {*weight_map.values()} != {single.name}:
        raise NotABase(
            where=str(folder), expected=f"{single.name} or an index with its shards", got="both",
            hint="transformers would load the one file and leave the shards; take away what is old",
        )  # fmt: skip
    return dict(_merge(folder, weight_map))


def _merge(folder: Path, weight_map: Mapping[str, str]) -> Iterable[tuple[str, Place]]:
    shards = {}
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name:
            raise NotABase(
                where=str(folder),
                expected="shards beside their index",
                got="a path",
                hint="download the checkpoint again",
            )
        shards[name] = read_header(_weights(folder / name))
        if odd := sorted(tensor for tensor in shards[name] if weight_map.get(tensor) != name):
            raise NotABase(
                where=str(folder / name), expected="the tensors that the index names there, and no others",
                got=odd[0][:100], hint="transformers would load that as well; save the model again",
            )  # fmt: skip
    for tensor, shard in weight_map.items():
        if tensor not in shards[shard]:
            raise TensorMissing(
                where=f"{folder / shard}",
                expected=f"tensor {tensor[:100]}, as its index says",
                got="no such tensor",
                hint="download the checkpoint again",
            )
        yield tensor, shards[shard][tensor]


def _weights(path: Path) -> Path:
    """The file behind a link of the hub's cache; a base is chosen by its owner, so links are allowed here."""
    return path.resolve()


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise NotABase(
            where=str(path.parent),
            expected=f"a model folder with {path.name}",
            got=f"no {path.name}",
            hint="give a folder in Hugging Face layout, a hub id, smollm2-135m or qwen2.5-coder-0.5b",
        )
    try:
        value = json.loads(files.read_regular(path.resolve(), max_bytes=MAX_CONFIG_BYTES))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise NotABase(
            where=str(path), expected="a JSON object", got="something else", hint="download the checkpoint again"
        )
    return value


def _from_hub(name: str) -> Path:
    if name.count("/") > 1 or not name or name.startswith(("/", ".", "~")):
        raise NotABase(where=name, expected="a model folder", got="no such folder", hint="check the path")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise NotABase(
            where=name,
            expected="a model folder or a hub id",
            got=f"no folder, and the hub said {type(error).__name__}",
            hint="check the name, or download the model and give its folder",
        ) from None
