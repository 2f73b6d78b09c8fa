"""Cut an organ out of a base: reads headers and the span's own tensors, nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from not_fed import canonical
from not_fed.envelope.header import MAX_METADATA_BYTES
from not_fed.organ.anatomy import Span, told_by_config
from not_fed.organ.checkpoint import Base
from not_fed.organ.organ import Manifest, OrganInfo, read_organ
from not_fed.organ.writing import write_safetensors
from not_fed.progress import Progress, silent

_BLOOD_TYPE_BYTES = MAX_METADATA_BYTES * 3 // 4  # the rest of a manifest, a training's summary with it, needs room too


def describe(base: Base, span: Span) -> Manifest:
    """The manifest of the span as it stands in the base, untouched.

    Raises:
        BadConfig: its blood type would not be read again from an organ's header.
    """
    facts = base.blood_type_at(span)
    with told_by_config(f"{base.folder}/config.json"):
        _require_readable(facts)
    return Manifest(
        blood_type=facts,
        span=span,
        base_sha256=base.sha256,
        span_sha256=base.span_sha256(span),
    )


def _require_readable(facts: Mapping[str, Any]) -> None:
    """Raise ValueError unless an organ's header has room for the facts, and a strict reader takes them.

    Proved by: tests/unit/test_model_folder.py::test_settings_that_no_header_holds_are_refused_before_writing
    """
    told = canonical.dumps(facts)
    if len(told) > _BLOOD_TYPE_BYTES:
        raise ValueError(len(told))
    try:
        canonical.loads(b'{"manifest":' + told + b"}", where="blood type")
    except canonical.BadJson:
        raise ValueError("blood type") from None


def extract(base: Base, *, span: Span, out: Path, progress: Progress = silent) -> OrganInfo:
    """Write the untouched span of a base as an organ file; `out` appears whole or not at all.

    Raises:
        SpanOutside, TensorMissing, UnknownFamily, BadConfig: the base has no such span.
        OutputExists: `out` is there already.
    Guarantees:
        memory stays at one block; tensors are bit-identical to the base's.
    """
    places = base.span_places(span)
    total, done = sum(place.end - place.begin for place in places.values()), 0

    def blocks(name: str) -> Iterator[bytes]:
        nonlocal done
        for block in places[name].blocks():
            yield block
            done += len(block)
            progress("extract", done=done, total=total)

    shapes = {name: (place.dtype, place.shape, place.end - place.begin) for name, place in places.items()}
    write_safetensors(out, shapes, metadata=describe(base, span).as_metadata(), blocks=blocks)
    return read_organ(out)
