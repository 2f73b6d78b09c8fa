"""The organ file: one safetensors file and, in its metadata, one canonical JSON manifest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from not_fed import canonical, files
from not_fed.envelope.header import TensorHeader, check_organ_header
from not_fed.envelope.manifest import FORMAT, KEY, NotAnOrgan, read_manifest
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import Place
from not_fed.snapshots import Snapshot, take_snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an organ says about itself. Unsigned: the passport is what binds somebody to it.

    Attributes:
        blood_type: the facts that a recipient must share.
        span: where it was cut.
        base_sha256: digest of the whole base it was cut from.
        span_sha256: digest of the span as it was before any training, by the same rule, over organ tensor names.
        training: None for an untouched organ, else how it was trained; `dp` in it is None or the privacy claim.
        parents: digests of the organ files it was made from.
    """

    blood_type: Mapping[str, Any]
    span: Span
    base_sha256: str
    span_sha256: str
    training: Mapping[str, Any] | None = None
    parents: tuple[str, ...] = ()

    def as_metadata(self) -> dict[str, str]:
        """The safetensors `__metadata__`: one key, canonical JSON."""
        value = {
            "format": FORMAT,
            "blood_type": dict(self.blood_type),
            "span": [self.span.start, self.span.stop],
            "base_sha256": self.base_sha256,
            "span_sha256": self.span_sha256,
            "training": None if self.training is None else dict(self.training),
            "parents": list(self.parents),
        }
        return {KEY: canonical.dumps(value).decode()}

    @classmethod
    def of(cls, header: TensorHeader, *, where: str) -> Manifest:
        """The manifest in an organ's header; raises NotAnOrgan."""
        read = read_manifest(header, where=where)
        return cls(
            blood_type=read.blood_type,
            span=Span(*read.span),
            base_sha256=read.base_sha256,
            span_sha256=read.span_sha256,
            training=read.training,
            parents=tuple(read.parents),
        )


@dataclass(frozen=True)
class OrganInfo:
    """An organ file whose header and manifest were read; no tensor was loaded."""

    path: Path
    manifest: Manifest
    places: Mapping[str, Place] = field(repr=False)

    @property
    def span(self) -> Span:
        """Where it was cut from its base."""
        return self.manifest.span

    @property
    def family(self) -> str:
        """The model family, in transformers' spelling."""
        return str(self.manifest.blood_type.get("family"))

    @property
    def base_sha256(self) -> str:
        """Digest of the base it was cut from."""
        return self.manifest.base_sha256

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        return sum(math.prod(place.shape) for place in self.places.values())

    @cached_property
    def size_bytes(self) -> int:
        """Size of the file."""
        return self.path.stat().st_size

    @cached_property
    def snapshot(self) -> Snapshot:
        """The file's digest and its state, so that sealing need not hash it again."""
        return take_snapshot(self.path)

    @property
    def sha256(self) -> str:
        """Digest of the file: the name by which passports, waybills and recalls know it."""
        return self.snapshot.sha256


def read_organ(path: Path) -> OrganInfo:
    """Read an organ's header and manifest.

    Raises:
        NotAFile, NotAnOrgan, or the header's own InputError; never loads a tensor.
    """
    with files.open_regular(path) as stream:
        header = check_organ_header(stream, path.stat().st_size)
    return organ_of(header, path=path)


def organ_of(header: TensorHeader, *, path: Path) -> OrganInfo:
    """The organ behind a header that was read elsewhere, for a file that is or will be at `path`; raises NotAnOrgan."""
    manifest = Manifest.of(header, where=str(path))
    places = {
        name: Place(
            path, entry.dtype, tuple(entry.shape), header.data_start + entry.begin, header.data_start + entry.end
        )
        for name, entry in header.tensors.items()
    }
    return OrganInfo(path=path, manifest=manifest, places=places)


__all__ = ["Manifest", "NotAnOrgan", "OrganInfo", "organ_of", "read_organ"]
