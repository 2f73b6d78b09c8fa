"""The manifest inside an organ file: `__metadata__` has one key, `not-fed`, with canonical JSON."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from not_fed import canonical
from not_fed.envelope.dsse import Sha256
from not_fed.envelope.header import TensorHeader
from not_fed.errors import InputError

KEY = "not-fed"
FORMAT = "not-fed.organ/1"
Family = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\z")]
Layer = Annotated[int, Field(ge=0, le=65_535)]
_LAYER_NUMBER = re.compile(r"(?:^|\.)(\d{1,5})\.")


class NotAnOrgan(InputError):
    """This safetensors file is not an organ."""

    code = "not-an-organ"


class Manifest(BaseModel):
    """What an organ says about itself. Its blood type and training summary are the organ layer's business."""

    model_config = ConfigDict(defer_build=True, strict=True, frozen=True, extra="forbid")

    format: Literal["not-fed.organ/1"]
    blood_type: dict[str, Any]
    span: tuple[Layer, Layer]
    base_sha256: Sha256
    span_sha256: Sha256
    training: dict[str, Any] | None
    parents: list[Sha256]

    @property
    def family(self) -> str:
        """The model family, from the blood type."""
        return str(self.blood_type["family"])


def read_manifest(header: TensorHeader, *, where: str = "organ") -> Manifest:
    """The manifest of an organ, and a check that its tensors lie within its span.

    Raises:
        NotAnOrgan: not exactly one metadata key, another shape, or a tensor outside the span or a layer without any.
    """
    if set(header.metadata) != {KEY}:
        raise _bad(where, f"metadata with the single key {KEY}", f"{len(header.metadata)} keys")
    try:
        value = canonical.loads(header.metadata[KEY].encode(), where=where)
        manifest = Manifest.model_validate_json(canonical.dumps(value))
    except (ValidationError, ValueError, canonical.BadJson) as error:
        got = f"{error.error_count()} wrong fields" if isinstance(error, ValidationError) else "something else"
        raise _bad(where, "a manifest of format not-fed.organ/1", got) from None
    family = manifest.blood_type.get("family")
    if not isinstance(family, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", family):
        raise _bad(where, "a blood type that names its family", "none")
    start, stop = manifest.span
    if start >= stop:
        raise _bad(where, "a span of at least one layer", f"[{start}, {stop})")
    _check_layers(header, stop - start, where)
    return manifest


def _check_layers(header: TensorHeader, layers: int, where: str) -> None:
    """Each tensor belongs to one of the span's layers, numbered from 0, and each layer has a tensor."""
    found = set()
    for name in header.tensors:
        number = _LAYER_NUMBER.search(name)
        if number is None or int(number[1]) >= layers:
            raise _bad(where, f"tensors of layers 0 to {layers - 1} and no others", name)
        found.add(int(number[1]))
    if len(found) != layers:
        raise _bad(where, f"tensors for each of {layers} layers", f"for {len(found)}")


def _bad(where: str, expected: str, got: str) -> NotAnOrgan:
    return NotAnOrgan(
        where=where, expected=expected, got=got, hint="an organ comes from not-fed extract, train or open"
    )
