"""bench: the comparisons, each one command, in one run."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from not_fed.cli.options import BASE_HELP
from not_fed.cli.output import AsJson, say
from not_fed.cli.progress import shown
from not_fed.errors import UsageError

if TYPE_CHECKING:
    from not_fed.bench.organ_texts import Texts
    from not_fed.progress import Progress


class CorpusName(StrEnum):
    """Texts that come with not-fed."""

    MEDICINE = "medicine"
    LAW = "law"


FinishedFile = Annotated[
    Path | None,
    typer.Option(
        "--out", help="JSON file of finished runs; a run that was stopped goes on with it. [default: a temporary one]"
    ),
]

group = typer.Typer(no_args_is_help=True, help="Compare with the peers, in one run on this machine.")


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.add_typer(group, name="bench")


@group.callback()
def bench() -> None:
    """Compare with the peers, in one run on this machine."""


@group.command("organ")
def organ_command(
    quick: Annotated[
        bool, typer.Option("--quick", help="Few steps, two rates and one seed: about ten minutes on 2 cores.")
    ] = False,
    base: Annotated[str, typer.Option("--base", help=BASE_HELP)] = "smollm2-135m",
    corpus: Annotated[CorpusName, typer.Option("--corpus", help="Texts that come with not-fed.")] = CorpusName.MEDICINE,
    data: Annotated[Path | None, typer.Option("--data", help="Records to train on, instead of --corpus.")] = None,
    held_out: Annotated[
        Path | None, typer.Option("--held-out", help="Records to measure on; goes with --data.")
    ] = None,
    rates_of: Annotated[
        Path | None,
        typer.Option(
            "--rates-of", help="Take the learning rates that this finished run chose; sweep only what it lacks."
        ),
    ] = None,
    out: FinishedFile = None,
    picture: Annotated[Path | None, typer.Option("--picture", help="Also draw perplexity against cost (.png).")] = None,
    as_json: AsJson = False,
) -> None:
    """Organs beside LoRA and full fine-tuning: perplexity after equal tokens and in equal time, bytes and memory."""
    import tempfile

    from not_fed.bench.organ import FULL, QUICK, bench_organ, finished_rates, methods_for, table
    from not_fed.bench.organ_picture import conclusion, organ_picture
    from not_fed.bench.sweep_picture import require_pictures
    from not_fed.resources.bases import find_base

    if picture is not None:
        require_pictures()
    with shown() as progress, tempfile.TemporaryDirectory() as scratch:
        texts = _organ_texts(corpus, data, held_out, progress=progress)
        found = find_base(base, progress=progress)
        result = bench_organ(
            found, texts=texts, methods=methods_for(found.layers, quick=quick), size=QUICK if quick else FULL,
            out=out or Path(scratch) / "bench.json", progress=progress,
            rates=finished_rates(rates_of) if rates_of is not None else {},
        )  # fmt: skip
    if picture is not None:
        organ_picture(result, out=picture)
    sys.stdout.write((json.dumps(result) if as_json else table(result)) + "\n")
    say(conclusion(result))


@group.command("federated")
def federated_command(
    quick: Annotated[
        bool, typer.Option("--quick", help="Few records, rates and steps, without epsilon: about ten minutes.")
    ] = False,
    base: Annotated[str, typer.Option("--base", help=BASE_HELP)] = "smollm2-135m",
    corpus: Annotated[CorpusName, typer.Option("--corpus", help="Texts that come with not-fed.")] = CorpusName.MEDICINE,
    out: FinishedFile = None,
    as_json: AsJson = False,
) -> None:
    """Three sites: the organs' mean beside LoRA's (naive, FFA, FedEx), each site alone, and pooled records."""
    import tempfile

    from not_fed.bench.federated import FULL, QUICK, bench_federated, table
    from not_fed.bench.organ_texts import of_corpus
    from not_fed.resources.bases import find_base

    with shown() as progress, tempfile.TemporaryDirectory() as scratch:
        result = bench_federated(
            find_base(base, progress=progress), sites=of_corpus(corpus.value, progress=progress),
            size=QUICK if quick else FULL, out=out or Path(scratch) / "bench.json", progress=progress,
        )  # fmt: skip
    sys.stdout.write((json.dumps(result) if as_json else table(result)) + "\n")


@group.command("paper")
def paper_command(
    quick: Annotated[bool, typer.Option("--quick", help="60 records in place of 1,000, two positions.")] = False,
    base: Annotated[str, typer.Option("--base", help=BASE_HELP)] = "smollm2-135m",
    corpus: Annotated[CorpusName, typer.Option("--corpus", help="Texts that come with not-fed.")] = CorpusName.MEDICINE,
    out: FinishedFile = None,
    as_json: AsJson = False,
) -> None:
    """The protocol of the Neural Organ Transplantation paper: stand-alone organs by position, controls, domains."""
    import tempfile

    from not_fed.bench.organ_texts import MOST_RECORDS, of_corpus
    from not_fed.bench.paper import FULL, QUICK, bench_paper, table
    from not_fed.resources.bases import find_base

    size = QUICK if quick else FULL
    with shown() as progress, tempfile.TemporaryDirectory() as scratch:
        result = bench_paper(
            find_base(base, progress=progress), size=size, out=out or Path(scratch) / "bench.json", progress=progress,
            domains=of_corpus(corpus.value, records=80 if quick else MOST_RECORDS[corpus.value], progress=progress),
        )  # fmt: skip
    sys.stdout.write((json.dumps(result) if as_json else table(result)) + "\n")


def _organ_texts(corpus: CorpusName, data: Path | None, held_out: Path | None, *, progress: Progress) -> Texts:
    """The records of a comparison: a corpus of ours, all sites pooled, or two files."""
    from not_fed.bench.organ_texts import of_corpus, pooled, split_texts
    from not_fed.organ.data import read_records

    if (data is None) != (held_out is None):
        raise UsageError(where="bench", expected="--data together with --held-out", got="one of them", hint="give both")
    if data is None or held_out is None:
        return pooled(corpus.value, of_corpus(corpus.value, progress=progress))
    return split_texts(data.name, train=read_records(data), held_out=read_records(held_out), source=data.name)


@group.command("crypto")
def crypto_command(
    size_mb: Annotated[int | None, typer.Option("--size-mb", min=1, help="Size of the organ. [default: 500]")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="100 MB in 3 turns: about two minutes on 2 cores.")] = False,
    repeats: Annotated[int | None, typer.Option("--repeats", min=1, help="Turns. [default: 7]")] = None,
    folder: Annotated[Path | None, typer.Option("--folder", help="Where temporary files go.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Also write the JSON object here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Sealing and opening beside age, secretstream and model-signing: CPU seconds over those of SHA-256, and memory."""
    from not_fed import files
    from not_fed.bench.crypto import bench_crypto, table

    with shown() as progress:
        result = bench_crypto(
            size_mb=size_mb or (100 if quick else 500), repeats=repeats or (3 if quick else 7), folder=folder,
            progress=progress,
        )  # fmt: skip
    if out is not None:
        files.write_atomic(out, json.dumps(result, indent=1).encode() + b"\n", overwrite=True, mode=0o644)
    sys.stdout.write((json.dumps(result) if as_json else table(result)) + "\n")
    say(f"{result['size_mb']} MB on {result['filesystem']}, {result['repeats']} turns; {result['machine']['cpu']}")


@group.command("aggregation")
def aggregation_command(
    quick: Annotated[
        bool, typer.Option("--quick", help="4 sites and few numbers: its shape, not its numbers, in half a minute.")
    ] = False,
    repeats: Annotated[int | None, typer.Option("--repeats", min=1, help="Turns. [default: 5]")] = None,
    folder: Annotated[Path | None, typer.Option("--folder", help="Where temporary files go: up to 6 GB.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Also write the JSON object here.")] = None,
    picture: Annotated[Path | None, typer.Option("--picture", help="Also write a PNG here.")] = None,
    as_json: AsJson = False,
) -> None:
    """The secure sum beside Flower's SecAgg+ and a plain mean: CPU seconds, bytes and memory, of 4, 16 and 50 sites."""
    from not_fed import files
    from not_fed.bench import aggregation
    from not_fed.bench.aggregation_picture import aggregation_picture

    size: dict[str, Any] = {"cohorts": aggregation.QUICK, "shapes": aggregation.QUICK_SHAPES} if quick else {}
    with shown() as progress:
        result = aggregation.bench_aggregation(
            **size, repeats=repeats or (1 if quick else 5), folder=folder, progress=progress
        )
    if out is not None:
        files.write_atomic(out, json.dumps(result, indent=1).encode() + b"\n", overwrite=True, mode=0o644)
    if picture is not None:
        files.write_atomic(picture, aggregation_picture(result), overwrite=True, mode=0o644)
    sys.stdout.write((json.dumps(result) if as_json else aggregation.table(result)) + "\n")
    say(aggregation.conclusion(result))


@group.command("dp")
def dp_command(
    utility: Annotated[
        bool, typer.Option("--utility", help="Perplexity against epsilon instead: hours; goes on with --out.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer turns, or records and steps: some minutes.")] = False,
    base: Annotated[str, typer.Option("--base", help=BASE_HELP)] = "smollm2-135m",
    out: Annotated[Path | None, typer.Option("--out", help="Also write the JSON object here.")] = None,
    picture: Annotated[Path | None, typer.Option("--picture", help="With --utility: write a PNG here.")] = None,
    as_json: AsJson = False,
) -> None:
    """A private step beside a plain one and the peers: CPU seconds, memory; or perplexity against epsilon."""
    if utility:
        _dp_utility(quick=quick, base=base, out=out, picture=picture, as_json=as_json)
    elif picture is not None:
        raise UsageError(where="bench dp", expected="--picture with --utility", got="it alone", hint="add --utility")
    else:
        _dp_speed(quick=quick, base=base, out=out, as_json=as_json)


def _dp_speed(*, quick: bool, base: str, out: Path | None, as_json: bool) -> None:
    from not_fed import files
    from not_fed.bench.dp_speed import bench_speed, kinds, table
    from not_fed.resources.bases import find_base

    with shown() as progress:
        folder = find_base(base, progress=progress).folder
        result = bench_speed(kinds(folder), repeats=2 if quick else 5, progress=progress)
    if out is not None:
        files.write_atomic(out, json.dumps(result, indent=1).encode() + b"\n", overwrite=True, mode=0o644)
    sys.stdout.write((json.dumps(result) if as_json else table(result)) + "\n")
    say(f"{result['records']} records of {result['tokens']} tokens, {result['repeats']} turns; one thread")


def _dp_utility(*, quick: bool, base: str, out: Path | None, picture: Path | None, as_json: bool) -> None:
    from not_fed import files
    from not_fed.bench.dp_picture import utility_picture
    from not_fed.bench.dp_settings import FULL, QUICK, SPAN
    from not_fed.bench.dp_texts import bench_texts
    from not_fed.bench.dp_utility import bench_utility, table
    from not_fed.resources.bases import find_base

    if out is None:
        raise UsageError(
            where="bench dp --utility", expected="--out, where finished runs are kept", got="none", hint="name a file"
        )
    size = QUICK if quick else FULL
    with shown() as progress:
        result = bench_utility(
            find_base(base, progress=progress),
            texts=bench_texts(each=size.records + size.held_out, progress=progress),
            span=SPAN,
            size=size,
            out=out,
            progress=progress,
        )
    if picture is not None:
        files.write_atomic(picture, utility_picture(result), overwrite=True, mode=0o644)
    sys.stdout.write((json.dumps(result) if as_json else table(result)) + "\n")
    say(f"span {result['span']}, {result['records']:,} records, seeds {result['seeds']}; {result['source']}")


@group.command("scale")
def scale_command(
    relay: Annotated[
        bool, typer.Option("--relay", help="Instead: one large sealed organ through the bank, and as a Flower message.")
    ] = False,
    sites: Annotated[int, typer.Option("--sites", min=2, max=250, help="How many sites.")] = 100,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="How many rounds.")] = 3,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Turns.")] = 3,
    mode: Annotated[str, typer.Option("--mode", help="trusted or bank.")] = "trusted",
    quick: Annotated[bool, typer.Option("--quick", help="20 sites once; with --relay 100 MB and no peer.")] = False,
    folder: Annotated[Path | None, typer.Option("--folder", help="Where temporary files go.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Also write the JSON object here.")] = None,
    as_json: AsJson = False,
) -> None:
    """What the federation itself costs: CPU for each site and round beside Flower's own FedAvg; or a large relay."""
    from not_fed import files

    if relay:
        text, line, result = _relay(quick=quick, folder=folder)
    else:
        from not_fed.bench.scale import bench_scale, conclusion, table

        with shown() as progress:
            result = bench_scale(
                sites=20 if quick else sites, rounds=rounds, repeats=1 if quick else repeats, mode=mode,
                real=not quick, folder=folder, progress=progress,
            )  # fmt: skip
        text, line = table(result), conclusion(result)
    if out is not None:
        files.write_atomic(out, json.dumps(result, indent=1).encode() + b"\n", overwrite=True, mode=0o644)
    sys.stdout.write((json.dumps(result) if as_json else text) + "\n")
    say(line)


def _relay(*, quick: bool, folder: Path | None) -> tuple[str, str, dict[str, Any]]:
    import tempfile

    from not_fed.bench.relay import FLOWER_BYTES, GIB, bench_relay, conclusion, table

    with tempfile.TemporaryDirectory(dir=folder, prefix="not-fed-relay-") as work, shown() as progress:
        result = bench_relay(
            Path(work) / "relay", size_bytes=GIB // 10 if quick else GIB, flower_bytes=0 if quick else FLOWER_BYTES,
            progress=progress, say=say,
        )  # fmt: skip
    return table(result), conclusion(result), result


@group.command("poisoning")
def poisoning_command(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer records, one seed: some minutes.")] = False,
    base: Annotated[str, typer.Option("--base", help=BASE_HELP)] = "smollm2-135m",
    folder: Annotated[Path | None, typer.Option("--folder", help="Where temporary files go.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Also write the JSON object here.")] = None,
    as_json: AsJson = False,
) -> None:
    """One of five sites scales, turns or backdoors its organ: perplexity after each rule, and after a vote."""
    from not_fed import files
    from not_fed.bench.poisoning import FULL, QUICK, bench_poisoning, table
    from not_fed.bench.poisoning_texts import poisoning_texts
    from not_fed.resources.bases import find_base

    size = QUICK if quick else FULL
    with shown() as progress:
        result = bench_poisoning(
            find_base(base, progress=progress),
            texts=lambda seed: poisoning_texts(
                train=size.train, held_out=size.held_out, seed=seed, progress=progress
            ),
            size=size, folder=folder, progress=progress,
        )  # fmt: skip
    if out is not None:
        files.write_atomic(out, json.dumps(result, indent=1).encode() + b"\n", overwrite=True, mode=0o644)
    sys.stdout.write((json.dumps(result) if as_json else table(result)) + "\n")
    say(f"{result['cpu_seconds'] / 60:.0f} CPU minutes, one thread; {result['machine']['cpu']}; {result['source']}")
