"""extract, train, show, transplant, undo: one organ's life on one machine. Those with many options are elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from not_fed.cli.options import BaseOption, SpanOption
from not_fed.cli.output import AsJson, show
from not_fed.cli.progress import shown
from not_fed.cli.train import train_command
from not_fed.cli.transplant import transplant_command, undo_command

SEALED_START = b"age-encryption.org/"


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command("extract")(extract_command)
    app.command("train")(train_command)
    app.command("show")(show_command)
    app.command("transplant")(transplant_command)
    app.command("undo")(undo_command)


def extract_command(
    base: BaseOption,
    span: SpanOption,
    out: Annotated[Path, typer.Option("--out", help="The organ file to write.")],
    as_json: AsJson = False,
) -> None:
    """Cut an untouched organ out of a base; reads only the tensors it needs."""
    from not_fed.organ.anatomy import Span
    from not_fed.organ.extract import extract
    from not_fed.resources.bases import find_base

    cut = Span.parse(span)
    with shown() as progress:
        extract(find_base(base, progress=progress), span=cut, out=out, progress=progress)
    show_organ(out, schema="not-fed/extracted/1", as_json=as_json)


def show_command(
    file: Annotated[Path, typer.Argument(help="An organ or a sealed organ.")], as_json: AsJson = False
) -> None:
    """Anatomy, manifest and sizes of an organ; size and label of a sealed one. Verifies nothing: that is `verify`."""
    from not_fed import files

    with files.open_regular(file) as stream:
        sealed = stream.read(len(SEALED_START)) == SEALED_START
    if sealed:
        _show_sealed(file, as_json=as_json)
    else:
        show_organ(file, schema="not-fed/shown/1", as_json=as_json)


def show_organ(path: Path, *, schema: str, as_json: bool) -> None:
    """Print what an organ file says about itself."""
    from not_fed.envelope.claims import promise
    from not_fed.organ.organ import read_organ

    info = read_organ(path)
    training = info.manifest.training
    dp = training.get("dp") if training else None
    passport = path.with_name(path.name + ".passport")
    result: dict[str, Any] = {
        "schema": schema,
        "organ": str(path),
        "kind": "organ",
        "family": info.family,
        "span": [info.span.start, info.span.stop],
        "parameters": info.parameters,
        "size_bytes": info.size_bytes,
        "base_sha256": info.base_sha256,
        "organ_sha256": info.sha256,
        "tensors": {
            name: {"dtype": place.dtype, "shape": list(place.shape)} for name, place in sorted(info.places.items())
        },
        "blood_type": dict(info.manifest.blood_type),
        "span_sha256": info.manifest.span_sha256,
        "training": None if training is None else dict(training),
        "parents": list(info.manifest.parents),
        "passport": str(passport) if passport.is_file() else None,
    }
    says = (
        "untouched"
        if training is None
        else f"{training.get('mode')}; "
        + (
            f"{promise(dp['epsilon'], delta=dp['delta'], unit=dp['unit'])}, by its own word"
            if dp
            else "no privacy claim"
        )
    )
    show(
        result,
        as_json=as_json,
        lines=[
            ("organ", str(path)),
            ("family", f"{info.family}, layers {info.span}"),
            ("size", f"{info.parameters:,} parameters in {len(info.places)} tensors, {info.size_bytes:,} bytes"),
            ("base", info.base_sha256),
            ("digest", info.sha256),
            ("training", says),
            (
                "passport",
                f"{passport.name}; `not-fed verify` checks a sealed organ" if result["passport"] else "none beside it",
            ),
        ],
    )


def _show_sealed(path: Path, *, as_json: bool) -> None:
    size = path.stat().st_size
    unknown = dict.fromkeys(["family", "span", "parameters", "base_sha256", "organ_sha256", "tensors"])
    label = path.with_name(path.name + ".label")
    show(
        {"schema": "not-fed/shown/1", "kind": "sealed", **unknown, "size_bytes": size},
        as_json=as_json,
        lines=[
            ("sealed", str(path)),
            ("size", f"{size:,} bytes"),
            ("label", label.name if label.is_file() else "none beside it"),
            ("contents", "unknown without a recipient's key; `not-fed verify` says what can be checked"),
        ],
    )
