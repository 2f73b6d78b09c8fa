"""extract, train, show, transplant, evaluate: one organ's life on one machine."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from not_fed.cli.output import AsJson, say, show
from not_fed.cli.progress import shown
from not_fed.errors import UsageError

if TYPE_CHECKING:
    from not_fed.organ.checkpoint import Base
    from not_fed.organ.train import Trained, TrainSettings
    from not_fed.privacy.accounting import DpPlan

BaseOption = Annotated[str, typer.Option("--base", help="Model folder, hub id, or smollm2-135m.")]
SpanOption = Annotated[str, typer.Option("--span", help="Layers START:STOP, half-open: 20:23 is 20, 21, 22.")]
TextField = Annotated[str, typer.Option("--text-field", help="Field or column that holds the text.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, or auto.")]
SEALED_START = b"age-encryption.org/"


class Mode(StrEnum):
    """How an organ is put in."""

    REPLACE = "replace"


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command("extract")(extract_command)
    app.command("train")(train_command)
    app.command("show")(show_command)
    app.command("transplant")(transplant_command)
    app.command("evaluate")(evaluate_command)


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


def train_command(
    data: Annotated[Path, typer.Argument(help="Records: .jsonl, .txt (a record a line), .csv or .parquet.")],
    base: BaseOption,
    span: SpanOption,
    out: Annotated[Path | None, typer.Option("--out", help="The organ file to write.")] = None,
    init: Annotated[
        Path | None, typer.Option("--init", help="Start from this organ instead of the base's span.")
    ] = None,
    epsilon: Annotated[float | None, typer.Option("--epsilon", help="Train with DP-SGD to this epsilon.")] = None,
    delta: Annotated[float, typer.Option("--delta", help="Below one over the number of records.")] = 1e-5,
    unit: Annotated[str, typer.Option("--unit", help="What epsilon protects: record.")] = "record",
    sample_rate: Annotated[float, typer.Option("--sample-rate", help="DP: chance of a record to join a step.")] = 0.1,
    max_grad_norm: Annotated[float, typer.Option("--max-grad-norm", help="DP: the clip, an L2 norm per record.")] = 1.0,
    divisor: Annotated[
        float, typer.Option("--divisor", help="DP: declared batch size; never taken from the data.")
    ] = 100.0,
    lr: Annotated[float | None, typer.Option("--lr", help="Peak learning rate. [default: 2e-3; 1e-2 with DP]")] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="Passes over the records. [default: 1; 2 with DP]")
    ] = None,
    batch_tokens: Annotated[int, typer.Option("--batch-tokens", help="Predicted tokens in a step, without DP.")] = 1024,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longer records are cut.")] = 512,
    seed: Annotated[int, typer.Option("--seed", help="Order of the records; never used for DP.")] = 0,
    text_field: TextField = "text",
    device: Device = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done and what it costs; train nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a span in place on your records; all else stays frozen. An interrupted run goes on when started again."""
    from not_fed.organ.anatomy import Span
    from not_fed.organ.data import read_records
    from not_fed.organ.train import Speed, TrainSettings, train
    from not_fed.resources.bases import find_base

    _only_records(unit)
    records = read_records(data, text_field=text_field)
    passes = epochs or (1 if epsilon is None else 2)
    dp = _plan(
        epsilon, delta=delta, sample_rate=sample_rate, epochs=passes, max_grad_norm=max_grad_norm, divisor=divisor
    )
    settings = TrainSettings(
        span=Span.parse(span),
        lr=lr or (2e-3 if dp is None else 1e-2),
        epochs=passes,
        batch_tokens=batch_tokens,
        max_tokens=max_tokens,
        seed=seed,
        dp=dp,
    )
    with shown() as progress:
        found = find_base(base, progress=progress)
        settings.span.check_inside(found.layers, where=str(found.folder))
        if dry_run:
            _show_plan(found, records, settings, as_json=as_json)
            return
        if out is None:
            raise UsageError(
                where="not-fed train", expected="--out, or --dry-run", got="neither", hint="add --out my.organ"
            )
        trained = train(
            found,
            records=records,
            settings=settings,
            out=out,
            init=init,
            speed=Speed(device=_device(device)),
            progress=progress,
        )
    _show_trained(trained, as_json=as_json)


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


def transplant_command(
    organ: Annotated[Path, typer.Argument(help="The organ to put in.")],
    into: Annotated[str, typer.Option("--into", help="Model folder, hub id, or smollm2-135m.")],
    out: Annotated[Path | None, typer.Option("--out", help="The new model folder.")] = None,
    mode: Annotated[Mode, typer.Option("--mode", help="How the organ is put in.")] = Mode.REPLACE,
    at: Annotated[
        int | None, typer.Option("--at", min=0, help="First layer of its place. [default: where it was cut]")
    ] = None,
    accept_different_base: Annotated[
        bool, typer.Option("--accept-different-base", help="The layers there may differ from those it was cut from.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be replaced; write nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put an organ into a copy of a model: an ordinary Hugging Face folder comes out."""
    from not_fed.organ.organ import read_organ
    from not_fed.organ.transplant import apply_transplant, plan_transplant
    from not_fed.resources.bases import find_base

    with shown() as progress:
        plan = plan_transplant(
            organ=read_organ(organ),
            base=find_base(into, progress=progress),
            at=at,
            accept_different_base=accept_different_base,
        )
        if not dry_run:
            if out is None:
                raise UsageError(
                    where="not-fed transplant", expected="--out, or --dry-run", got="neither", hint="add --out DIR"
                )
            apply_transplant(plan, out=out, progress=progress)
    result = {
        "schema": "not-fed/transplanted/1",
        "out": None if out is None else str(out),
        "mode": mode.value,
        "replaced": sorted(plan.tensors),
        "at": [plan.at.start, plan.at.stop],
        "exact": plan.exact,
        "dry_run": dry_run,
    }
    show(
        result,
        as_json=as_json,
        lines=[
            ("organ", f"{organ}, layers {plan.organ.span}"),
            (
                "into",
                f"{plan.base.folder}, layers {plan.at}" + ("" if plan.exact else "; NOT the layers it was cut from"),
            ),
            ("replaced", f"{len(plan.tensors)} tensors in {len(plan.touched)} of the base's files"),
            ("out", "dry run: nothing was written" if dry_run else str(out)),
        ],
    )


def evaluate_command(
    base: Annotated[str, typer.Argument(help="Model folder, hub id, or smollm2-135m.")],
    data: Annotated[Path, typer.Option("--data", help="Held-out records.")],
    organ: Annotated[
        Path | None, typer.Option("--organ", help="Evaluate with this organ in place, without writing a model.")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longer records are cut.")] = 512,
    text_field: TextField = "text",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Token-weighted perplexity on held-out records, with its 95 % bootstrap interval over records."""
    from not_fed.organ.anatomy import Span
    from not_fed.organ.data import read_records
    from not_fed.organ.evaluate import Evaluator
    from not_fed.organ.organ import read_organ
    from not_fed.resources.bases import find_base

    records = read_records(data, text_field=text_field)
    with shown() as progress:
        found = find_base(base, progress=progress)
        span = Span(0, 1) if organ is None else read_organ(organ).span
        evaluator = Evaluator(
            found, records=records, span=span, max_tokens=max_tokens, device=_device(device), progress=progress
        )
        measured = evaluator.perplexity(organ)
    facts = {name: value for name, value in asdict(measured).items() if name != "value"}
    show(
        {"schema": "not-fed/evaluated/1", "perplexity": measured.value, **facts},
        as_json=as_json,
        lines=[
            ("perplexity", f"{measured.value:.2f}  (95 % interval {measured.ci_low:.2f} to {measured.ci_high:.2f})"),
            (
                "measured on",
                f"{measured.records:,} records, {measured.tokens:,} predicted tokens, {measured.seconds:.1f} s",
            ),
        ],
    )


def show_organ(path: Path, *, schema: str, as_json: bool) -> None:
    """Print what an organ file says about itself."""
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
            f"epsilon {dp['epsilon']:.2f} at delta {dp['delta']:g}, per {dp['unit']}, by its own word"
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


def _show_trained(trained: Trained, *, as_json: bool) -> None:
    claim = trained.organ.manifest.training["dp"] if trained.organ.manifest.training else None
    result = {
        "schema": "not-fed/trained/1",
        "organ": str(trained.organ.path),
        "organ_sha256": trained.organ.sha256,
        "span": [trained.organ.span.start, trained.organ.span.stop],
        "records": trained.records,
        "steps": trained.steps,
        "tokens": trained.tokens,
        "seconds": round(trained.seconds, 3),
        "prefix_seconds": round(trained.prefix_seconds, 3),
        "loss_first": trained.loss_first,
        "loss_last": trained.loss_last,
        "epsilon": claim["epsilon"] if claim else None,
        "delta": claim["delta"] if claim else None,
        "unit": claim["unit"] if claim else None,
    }
    first, last = trained.loss_first, trained.loss_last
    show(
        result,
        as_json=as_json,
        lines=[
            ("organ", str(trained.organ.path)),
            (
                "trained",
                f"{trained.records:,} records, {trained.steps:,} steps, {trained.seconds:.0f} s",
            ),
            (
                "loss",
                f"{first:.3f} to {last:.3f}; computed on your records, for you alone"
                if first and last
                else "no step drew a record",
            ),
            (
                "privacy",
                "none: whoever has this organ may learn about its records"
                if trained.dp is None
                else str(trained.dp.epsilon()),
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


def _show_plan(base: Base, records: list[str], settings: TrainSettings, *, as_json: bool) -> None:
    from not_fed.organ.prefix import tokenise
    from not_fed.organ.split import load_tokenizer
    from not_fed.organ.steps import plan_batches

    dp = settings.dp
    if dp is None:
        lengths = tokenise(load_tokenizer(base), records, max_tokens=settings.max_tokens).predictions
        steps = len(
            plan_batches(lengths, epochs=settings.epochs, batch_tokens=settings.batch_tokens, seed=settings.seed)
        )
        batch = len(records) * settings.epochs / max(steps, 1)
    else:
        steps, batch = dp.steps, len(records) * dp.sample_rate
    cost = None if dp is None else dp.epsilon()
    result = {
        "schema": "not-fed/planned/1",
        "records": len(records),
        "steps": steps,
        "expected_batch": round(batch, 1),
        "epsilon": cost.value if cost else None,
        "delta": cost.delta if cost else None,
        "unit": cost.unit if cost else None,
        "noise_multiplier": dp.noise_multiplier if dp else None,
        "sample_rate": dp.sample_rate if dp else None,
        "max_grad_norm": dp.max_grad_norm if dp else None,
    }
    show(
        result,
        as_json=as_json,
        lines=[
            ("records", f"{len(records):,}, about {batch:,.0f} in each of {steps:,} steps"),
            ("cost", str(cost) if cost else "no privacy: nothing is clipped, no noise is added"),
            *([("noise", f"{dp.noise_multiplier} times the clip of {dp.max_grad_norm}")] if dp else []),
        ],
    )
    say("dry run: nothing was trained, nothing was spent")


def _plan(
    epsilon: float | None, *, delta: float, sample_rate: float, epochs: int, max_grad_norm: float, divisor: float
) -> DpPlan | None:
    from not_fed.privacy.accounting import plan_dp

    if epsilon is None:
        return None
    steps = max(1, round(epochs / sample_rate)) if sample_rate > 0 else 1
    return plan_dp(
        epsilon=epsilon, delta=delta, sample_rate=sample_rate, steps=steps, max_grad_norm=max_grad_norm, divisor=divisor
    )


def _only_records(unit: str) -> None:
    if unit != "record":
        raise UsageError(
            where="--unit",
            expected="record",
            got=f"a name of {len(unit)} characters",
            hint="privacy per person is not built yet; do not read a record's epsilon as a person's",
        )


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name
