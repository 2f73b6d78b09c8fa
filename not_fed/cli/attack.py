"""attack: what somebody who is given an organ can find out about its records, as pictures and numbers."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from not_fed.cli.options import BaseOption, Device, SpanOption, TextField, device_of
from not_fed.cli.output import AsJson, say, show
from not_fed.cli.progress import shown
from not_fed.errors import UsageError

if TYPE_CHECKING:
    from not_fed.bench.attack_organs import Kind
    from not_fed.organ.data import Records


class Precision(StrEnum):
    """Of the arithmetic when organs are trained."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


group = typer.Typer(no_args_is_help=True, help="See what an organ gives away about its records, before it leaves.")

Data = Annotated[Path, typer.Argument(help="Records of your own: organs are trained on them and deleted again.")]
OutOption = Annotated[Path, typer.Option("--out", help="A new folder for attack.json, attack.png and index.html.")]
Epsilons = Annotated[
    list[float] | None,
    typer.Option("--epsilon", help="Attack organs of this epsilon too, beside non-private ones; may be repeated."),
]
Delta = Annotated[float, typer.Option("--delta", help="Of the private organs.")]
UnitOption = Annotated[
    str | None,
    typer.Option("--unit", help="record, or the field that names the person. [default: the person, if named]"),
]
PerPerson = Annotated[int, typer.Option("--records-per-person", min=1, help="At most in one step, per person.")]
SampleRate = Annotated[float, typer.Option("--sample-rate", help="DP: chance of a unit to join a step.")]
MaxGradNorm = Annotated[float, typer.Option("--max-grad-norm", help="DP: the clip, an L2 norm per unit.")]
Divisor = Annotated[float, typer.Option("--divisor", help="DP: declared batch size.")]
Epochs = Annotated[int, typer.Option("--epochs", min=1, help="Passes over the records, private or not.")]
Rate = Annotated[float, typer.Option("--lr", help="Peak learning rate without privacy.")]
PrivateRate = Annotated[float, typer.Option("--private-lr", help="Peak learning rate with DP.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", help="Longer records are cut.")]
PrecisionOption = Annotated[
    Precision, typer.Option("--precision", help="bfloat16 is faster where the hardware has it.")
]
Seed = Annotated[int, typer.Option("--seed", help="Of coins, secrets and order; never used for DP.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.add_typer(group, name="attack")


@group.callback()
def attack() -> None:
    """See what an organ gives away about its records, before it leaves. Charged to no budget: results stay with you."""


@group.command("membership")
def membership_command(
    base: BaseOption,
    out: OutOption,
    data: Annotated[Path | None, typer.Argument(help="Records of your own; organs learn from random halves.")] = None,
    span: Annotated[str | None, typer.Option("--span", help="Layers START:STOP; goes with records.")] = None,
    organ: Annotated[Path | None, typer.Option("--organ", help="Attack this organ instead; trains nothing.")] = None,
    members: Annotated[Path | None, typer.Option("--members", help="Records it was trained on.")] = None,
    non_members: Annotated[
        Path | None, typer.Option("--non-members", help="Records like them, never trained on.")
    ] = None,
    shadows: Annotated[int, typer.Option("--shadows", help="Organs that the attacker trains for each target.")] = 8,
    epsilon: Epsilons = None,
    delta: Delta = 1e-5,
    unit: UnitOption = None,
    records_per_person: PerPerson = 4,
    sample_rate: SampleRate = 0.1,
    max_grad_norm: MaxGradNorm = 1.0,
    divisor: Divisor = 100.0,
    epochs: Epochs = 4,
    lr: Rate = 2e-3,
    private_lr: PrivateRate = 1e-2,
    max_tokens: MaxTokens = 512,
    precision: PrecisionOption = Precision.FLOAT32,
    seed: Seed = 0,
    text_field: TextField = "text",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Can somebody tell who was in the training data? Reference loss and shadow organs (LiRA): ROC, AUC, epsilon."""
    from not_fed.bench.attack import membership, membership_of_organ
    from not_fed.bench.attack_pictures import require_pictures
    from not_fed.organ.data import read_data
    from not_fed.resources.bases import find_base

    require_pictures()
    _require_new(out)
    if organ is not None:
        known, unknown = _members(data, members, non_members)
        with shown() as progress:
            result = membership_of_organ(
                find_base(base, progress=progress),
                organ=organ,
                members=read_data(known, text_field=text_field, unit=unit),
                others=read_data(unknown, text_field=text_field, unit=unit),
                max_tokens=max_tokens,
                device=device_of(device),
                progress=progress,
            )
    else:
        records_file, layers = _records(data, span, members, non_members)
        records = read_data(records_file, text_field=text_field, unit=unit)
        kinds = _kinds(
            layers, records, epsilons=epsilon or [], delta=delta, records_per_person=records_per_person,
            sample_rate=sample_rate, max_grad_norm=max_grad_norm, divisor=divisor, epochs=epochs, lr=lr,
            private_lr=private_lr, max_tokens=max_tokens, precision=precision,
        )  # fmt: skip
        with shown() as progress:
            result = membership(
                find_base(base, progress=progress), records=records, kinds=kinds, delta=delta, shadows=shadows,
                seed=seed, device=device_of(device), progress=progress,
            )  # fmt: skip
    _finish(result, out=out, as_json=as_json)


@group.command("extraction")
def extraction_command(
    data: Data,
    base: BaseOption,
    span: SpanOption,
    out: OutOption,
    planted: Annotated[int, typer.Option("--planted", min=1, help="Secrets for each number of repeats.")] = 5,
    repeats: Annotated[str, typer.Option("--repeats", help="How often each stands in the records.")] = "1,4,16",
    prompt: Annotated[
        str, typer.Option("--prompt", help="How the secrets' sentence begins; {} is a name.")
    ] = "The access code of ward {} is",
    candidates: Annotated[int, typer.Option("--candidates", min=2, help="Codes that each is ranked among.")] = 256,
    epsilon: Epsilons = None,
    delta: Delta = 1e-5,
    unit: UnitOption = None,
    records_per_person: PerPerson = 4,
    sample_rate: SampleRate = 0.1,
    max_grad_norm: MaxGradNorm = 1.0,
    divisor: Divisor = 100.0,
    epochs: Epochs = 4,
    lr: Rate = 2e-3,
    private_lr: PrivateRate = 1e-2,
    max_tokens: MaxTokens = 512,
    precision: PrecisionOption = Precision.FLOAT32,
    seed: Seed = 0,
    text_field: TextField = "text",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Do secrets come out? Plants made-up codes in your records, trains, and asks the organs for them."""
    from not_fed.bench.attack import extraction
    from not_fed.bench.attack_extraction import plan_secrets
    from not_fed.bench.attack_pictures import require_pictures
    from not_fed.organ.data import read_data
    from not_fed.resources.bases import find_base

    require_pictures()
    _require_new(out)
    secrets = plan_secrets(each=planted, repeats=_numbers(repeats), prompt=prompt, candidates=candidates, seed=seed)
    records = read_data(data, text_field=text_field, unit=unit)
    kinds = _kinds(
        span, records, epsilons=epsilon or [], delta=delta, records_per_person=records_per_person,
        sample_rate=sample_rate, max_grad_norm=max_grad_norm, divisor=divisor, epochs=epochs, lr=lr,
        private_lr=private_lr, max_tokens=max_tokens, precision=precision,
    )  # fmt: skip
    with shown() as progress:
        result = extraction(
            find_base(base, progress=progress), records=records, kinds=kinds, planted=secrets, seed=seed,
            device=device_of(device), progress=progress,
        )  # fmt: skip
    _finish(result, out=out, as_json=as_json)


def _kinds(
    span: str,
    records: Records,
    *,
    epsilons: list[float],
    delta: float,
    records_per_person: int,
    sample_rate: float,
    max_grad_norm: float,
    divisor: float,
    epochs: int,
    lr: float,
    private_lr: float,
    max_tokens: int,
    precision: Precision,
) -> list[Kind]:
    from not_fed.bench.attack import plan_kinds
    from not_fed.organ.anatomy import Span
    from not_fed.organ.train import TrainSettings
    from not_fed.privacy.accounting import plan_dp

    plans = [
        (
            value,
            plan_dp(
                epsilon=value, delta=delta, sample_rate=sample_rate, steps=max(1, round(epochs / sample_rate)),
                max_grad_norm=max_grad_norm, divisor=divisor, unit=records.unit,
                records_per_person=1 if records.unit == "record" else records_per_person,
            ),
        )
        for value in epsilons
    ]  # fmt: skip
    settings = TrainSettings(
        span=Span.parse(span), lr=lr, epochs=epochs, max_tokens=max_tokens, precision=precision.value
    )
    return plan_kinds(settings, plans=plans, private_lr=private_lr, records=records)


def _members(data: Path | None, members: Path | None, non_members: Path | None) -> tuple[Path, Path]:
    if data is not None or members is None or non_members is None:
        raise UsageError(
            where="attack membership",
            expected="--organ with --members and --non-members, and no other records",
            got="another combination",
            hint="whoever trained the organ can name records that were in, and others that were not",
        )
    return members, non_members


def _records(data: Path | None, span: str | None, members: Path | None, non_members: Path | None) -> tuple[Path, str]:
    if data is None or span is None or members is not None or non_members is not None:
        raise UsageError(
            where="attack membership",
            expected="records and --span, or --organ with --members and --non-members",
            got="another combination",
            hint="not-fed attack membership notes.jsonl --base smollm2-135m --span 26:29 --out attack",
        )
    return data, span


def _numbers(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < 6 for part in parts):
        raise UsageError(
            where="--repeats", expected="whole numbers, such as 1,4,16", got=f"{len(text)} characters of another form",
            hint="separate them by commas",
        )  # fmt: skip
    return [int(part) for part in parts]


def _require_new(out: Path) -> None:
    """Settle before hours of training what would fail after it."""
    from not_fed.files import OutputExists

    if out.exists() or out.is_symlink():
        raise OutputExists(where=str(out), expected="no such folder yet", got="something", hint="choose another --out")


def _finish(result: dict[str, Any], *, out: Path, as_json: bool) -> None:
    import sys

    from not_fed.bench.attack_page import markdown, write_attack
    from not_fed.bench.attack_words import sentences

    write_attack(result, out=out)
    if as_json:
        show(result, as_json=True)
    else:
        sys.stdout.write(markdown(result) + "\n\n" + "".join(f"- {sentence}\n" for sentence in sentences(result)))
    say(f"{out / 'index.html'}")
    say(result["stays"])
