"""The organ file: one safetensors file and, in its metadata, one canonical JSON manifest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from not_fed import canonical, files
from not_fed.envelope.header import check_header
from not_fed.errors import InputError
from not_fed.organ.anatomy import BadSpan, Span
from not_fed.organ.checkpoint import Place

FORMAT = "not-fed.organ/1"
KEY = "not-fed"


class NotAnOrgan(InputError):
    """This is not an organ file."""

    code = "not-an-organ"


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
    def parse(cls, text: str, *, where: str) -> Manifest:
        """Read a manifest; raises NotAnOrgan naming the field that is wrong."""
        value = canonical.loads(text.encode(), where=where)
        try:
            if value.get("format") != FORMAT:
                raise _not_an_organ(where, f"format {FORMAT}")
            return cls(
                blood_type=_typed(value, "blood_type", dict, where),
                span=Span(*(_whole(item, where) for item in _typed(value, "span", list, where))),
                base_sha256=_digest(value["base_sha256"], where),
                span_sha256=_digest(value["span_sha256"], where),
                training=None if value["training"] is None else _typed(value, "training", dict, where),
                parents=tuple(_digest(item, where) for item in _typed(value, "parents", list, where)),
            )
        except (KeyError, TypeError, AttributeError, BadSpan) as error:
            raise _not_an_organ(
                where, "a manifest with blood_type, span, base_sha256, span_sha256, training, parents"
            ) from error


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
    def sha256(self) -> str:
        """Digest of the file: the name by which passports, waybills and recalls know it."""
        return files.sha256(self.path)


def read_organ(path: Path) -> OrganInfo:
    """Read an organ's header and manifest.

    Raises:
        NotAFile, NotAnOrgan, or the header's own InputError; never loads a tensor.
    """
    with files.open_regular(path) as stream:
        header = check_header(stream, path.stat().st_size)
    if set(header.metadata) != {KEY}:
        raise _not_an_organ(str(path), "metadata with the one key not-fed")
    manifest = Manifest.parse(header.metadata[KEY], where=f"{path}, manifest")
    places = {
        name: Place(
            path, entry.dtype, tuple(entry.shape), header.data_start + entry.begin, header.data_start + entry.end
        )
        for name, entry in header.tensors.items()
    }
    return OrganInfo(path=path, manifest=manifest, places=places)


def _typed(value: Mapping[str, Any], key: str, kind: type, where: str) -> Any:  # noqa: ANN401
    if not isinstance(value[key], kind):
        raise _not_an_organ(where, f"{key} to be a {kind.__name__}")
    return value[key]


def _whole(value: object, where: str) -> int:
    if type(value) is not int:
        raise _not_an_organ(where, "whole numbers in span")
    return value


def _digest(value: object, where: str) -> str:
    if not isinstance(value, str) or len(value) != 64 or not set(value) <= set("0123456789abcdef"):
        raise _not_an_organ(where, "a hex SHA-256")
    return value


def _not_an_organ(where: str, expected: str) -> NotAnOrgan:
    return NotAnOrgan(
        where=where, expected=expected, got="something else", hint="`not-fed extract` and `not-fed train` write organs"
    )
