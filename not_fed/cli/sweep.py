"""sweep: which span is worth training on these records; without privacy, for the site's own eyes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from not_fed.cli.options import BaseOption, Device, TextField, device_of
from not_fed.cli.output import AsJson, printable, say
from not_fed.cli.progress import shown
from not_fed.cli.train import require_no_account
from not_fed.errors import UsageError

if TYPE_CHECKING:
    from not_fed.organ.data import Records

RESULT, PICTURE = "result.json", "sweep.png"
SHARE = 0.2


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command("sweep")(sweep_command)


def sweep_command(
    data: Annotated[Path, typer.Argument(help="Records: .jsonl, .txt (a record a line), .csv or .parquet.")],
    base: BaseOption,
    out: Annotated[Path, typer.Option("--out", help="Folder for result.json and sweep.png; a second call goes on.")],
    held_out: Annotated[
        Path | None, typer.Option("--held-out", help="Records to measure on. [default: a share of DATA]")
    ] = None,
    held_out_share: Annotated[
        float | None, typer.Option("--held-out-share", help="Of DATA, by whole people where known. [default: 0.2]")
    ] = None,
    lengths: Annotated[str, typer.Option("--lengths", help="Layers in a span, with commas between.")] = "1,3,5",
    starts: Annotated[
        str | None, typer.Option("--starts", help="First layers to try, with commas between, instead of --every.")
    ] = None,
    every: Annotated[
        int | None,
        typer.Option(
            "--every", min=1, help="Try a start every so many layers, and the last. [default: about 8 starts]"
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Optimiser steps for each span. [default: 16, a pass at most]")
    ] = None,
    lr: Annotated[
        list[float] | None,
        typer.Option("--lr", help="Peak learning rate. Repeatable: the best is taken for each span. [default: 2e-3]"),
    ] = None,
    batch_tokens: Annotated[int, typer.Option("--batch-tokens", help="Predicted tokens in a step.")] = 1024,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longer records are cut.")] = 512,
    seed: Annotated[int, typer.Option("--seed", help="Order of the records, and which are held out.")] = 0,
    max_seconds: Annotated[
        float | None, typer.Option("--max-seconds", help="Budget: seconds of the training that follows.")
    ] = None,
    max_bytes: Annotated[int | None, typer.Option("--max-bytes", help="Budget: bytes of the organ's tensors.")] = None,
    text_field: TextField = "text",
    device: Device = "auto",
    plain: Annotated[
        bool, typer.Option("--plain", help="Though the records have a privacy budget: for your own eyes alone.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Try spans of layers on your records, alike, and recommend one; the same command again goes on where it was.

    Without privacy, and with exact numbers: for public text, or your own eyes. A choice that rests on them is not
    charged to a budget.
    """
    from not_fed import files
    from not_fed.bench.sweep import NextCommand, SweepSettings, plan_spans, sweep
    from not_fed.bench.sweep_choice import Limits, table
    from not_fed.bench.sweep_picture import require_pictures, sweep_picture
    from not_fed.organ.train import TrainSettings
    from not_fed.resources.bases import find_base

    if starts is not None and every is not None:
        raise UsageError(where="not-fed sweep", expected="--starts or --every", got="both", hint="leave one out")
    wanted, first = _numbers("--lengths", lengths, least=1), _numbers("--starts", starts, least=0) if starts else None
    require_pictures()
    train, measured = _records(data, held_out, share=held_out_share, seed=seed, text_field=text_field, plain=plain)
    _require_ours(out)
    with shown() as progress:
        found = find_base(base, progress=progress)
        spans = plan_spans(found.layers, lengths=wanted, starts=first, every=every)
        settings = SweepSettings(
            spans=spans, lrs=tuple(dict.fromkeys(lr or [TrainSettings(span=spans[0]).lr])), steps=steps,
            batch_tokens=batch_tokens, max_tokens=max_tokens, seed=seed, device=device_of(device),
        )  # fmt: skip
        options = _options(
            batch_tokens=batch_tokens, max_tokens=max_tokens, seed=seed, text_field=text_field, plain=plain
        )
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        result = sweep(
            found, train=train, held_out=measured, settings=settings, out=out / RESULT,
            limits=Limits(seconds=max_seconds, size_bytes=max_bytes),
            command=NextCommand(data=str(data), base=base, options=options, takes_held_out=held_out is None),
            progress=progress,
        )  # fmt: skip
    files.write_atomic(out / PICTURE, sweep_picture(result), overwrite=True)
    chosen = result["recommended"]
    if as_json:
        sys.stdout.write(json.dumps(result, allow_nan=False) + "\n")
    else:
        span = "none" if chosen["span"] is None else "{}:{}".format(*chosen["span"])
        lines = [
            ("recommended", f"{span}: {chosen['why']}"),
            ("rule", chosen["rule"]),
            ("next", chosen["command"] or "-"),
        ]
        said = "".join(f"{label:<11}  {printable(value)}\n" for label, value in lines)
        sys.stdout.write(f"{table(result)}\n\n{said}")
    say(f"picture: {out / PICTURE}; base perplexity {result['base_perplexity']['value']:.2f}")
    say("exact numbers of your records, without privacy: for your own eyes; a choice that rests on them is not charged")


def _records(
    data: Path, held_out: Path | None, *, share: float | None, seed: int, text_field: str, plain: bool
) -> tuple[list[str], list[str]]:
    """Texts to train on and to measure on, unless either file has a privacy budget."""
    from not_fed.bench.sweep import share_out
    from not_fed.organ.data import read_data

    def read(path: Path, *, unit: str | None) -> Records:
        records = read_data(path, text_field=text_field, unit=unit)
        if not plain:
            require_no_account(records)
        return records

    if held_out is not None and share is not None:
        raise UsageError(
            where="not-fed sweep", expected="--held-out or --held-out-share", got="both", hint="leave one out"
        )
    part = SHARE if share is None else share
    if not 0 < part < 1:
        raise UsageError(
            where="--held-out-share", expected="more than 0, less than 1", got=f"{share}", hint="0.2 is a fifth"
        )
    if held_out is None:
        return share_out(read(data, unit=None), share=part, seed=seed)
    return list(read(data, unit="record").texts), list(read(held_out, unit="record").texts)


def _numbers(option: str, text: str, *, least: int) -> list[int]:
    words = text.split(",")
    if not all(word.strip().isascii() and word.strip().isdigit() and len(word) < 6 for word in words):
        raise UsageError(
            where=option, expected="whole numbers with commas between", got=f"{len(text)} other characters",
            hint="such as 1,3,5",
        )  # fmt: skip
    numbers = [int(word) for word in words]
    if min(numbers) < least:
        raise UsageError(where=option, expected=f"numbers from {least} up", got=str(min(numbers)), hint="such as 1,3,5")
    return numbers


def _require_ours(out: Path) -> None:
    """A folder without a result of ours keeps whatever picture it has."""
    from not_fed import files

    if out.exists() and not (out / RESULT).exists():
        files.require_free(out / PICTURE)


def _options(*, batch_tokens: int, max_tokens: int, seed: int, text_field: str, plain: bool) -> tuple[str, ...]:
    """What was not left at its default, for the command that follows."""
    said = {"--batch-tokens": (batch_tokens, 1024), "--max-tokens": (max_tokens, 512), "--seed": (seed, 0),
            "--text-field": (text_field, "text")}  # fmt: skip
    words = [word for name, (value, default) in said.items() if value != default for word in (name, str(value))]
    return (*words, "--plain") if plain else tuple(words)
