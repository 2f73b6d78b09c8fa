"""Cut an organ out of a base: reads headers and the span's own tensors, nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import Base
from not_fed.organ.organ import Manifest, OrganInfo, read_organ
from not_fed.organ.writing import write_safetensors
from not_fed.progress import Progress, silent


def describe(base: Base, span: Span) -> Manifest:
    """The manifest of the span as it stands in the base, untouched."""
    return Manifest(
        blood_type=base.blood_type_at(span),
        span=span,
        base_sha256=base.sha256,
        span_sha256=base.span_sha256(span),
    )


def extract(base: Base, *, span: Span, out: Path, progress: Progress = silent) -> OrganInfo:
    """Write the untouched span of a base as an organ file; `out` appears whole or not at all.

    Raises:
        SpanOutside, TensorMissing, UnknownFamily: the base has no such span.
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
