"""audit: what an attack on a private training found, beside what the organ claims."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, NamedTuple

import typer

from not_fed.cli.output import AsJson, show
from not_fed.errors import InputError, TrustError, UsageError

if TYPE_CHECKING:
    from not_fed.envelope.claims import AuditResult, DpClaim
    from not_fed.privacy.audit.verdict import Judgement

WORD = "claim and audit are the author's word: they show mistakes, not somebody who signs made-up numbers"
FITS = "the attack on this training found no more than the claim allows, and less noise than claimed would have shown"
SEALED_START = b"age-encryption.org/"


class AuditContradicts(TrustError):
    """What an attack on the training found cannot be true if the claim is."""

    code = "audit-contradicts"


class StillSealed(InputError):
    """What a sealed organ says is inside, and needs a key."""

    code = "audit-sealed"


class _Said(NamedTuple):
    """What an organ's manifest or its passport says."""

    source: str
    claim: DpClaim | None
    audit: AuditResult | None
    engine: str | None


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command("audit")(audit_command)


def audit_command(
    file: Annotated[Path | None, typer.Argument(help="An organ, or the .passport beside it.")] = None,
    simulate: Annotated[bool, typer.Option("--simulate", help="What the audit of a plan could see; no file.")] = False,
    epsilon: Annotated[float, typer.Option("--epsilon", help="Of the plan, with --simulate.")] = 3.0,
    delta: Annotated[float, typer.Option("--delta", help="Likewise.")] = 1e-5,
    sample_rate: Annotated[float, typer.Option("--sample-rate", help="Likewise.")] = 0.2,
    steps: Annotated[int, typer.Option("--steps", help="Likewise; of one run.")] = 10,
    runs: Annotated[int, typer.Option("--runs", help="Likewise; such as a federation's rounds.")] = 1,
    canaries: Annotated[int, typer.Option("--canaries", min=100, max=100_000, help="Likewise.")] = 5000,
    as_json: AsJson = False,
) -> None:
    """Does what an attack on the training found fit the epsilon that is claimed? Checks no signature: that is `verify`.

    Exit code 6 where the audit contradicts the claim.
    """
    if simulate == (file is not None):
        got = "both" if simulate else "neither"
        raise UsageError(where="not-fed audit", expected="a file, or --simulate", got=got, hint="name one organ file")
    if file is None:
        _simulate(epsilon, delta, sample_rate, steps, runs, canaries, as_json=as_json)
        return
    said = _read(file)
    if said.claim is None:
        _show_unclaimed(file, said, as_json=as_json)
    elif said.audit is None:
        _show_unaudited(file, said, as_json=as_json)
    else:
        _show_audited(file, said, said.claim, said.audit, as_json=as_json)


def _read(file: Path) -> _Said:
    from not_fed import files
    from not_fed.envelope.claims import AuditResult, DpClaim
    from not_fed.envelope.header import check_organ_header
    from not_fed.envelope.manifest import read_manifest
    from not_fed.envelope.passport import MAX_PASSPORT_BYTES, parse_passport

    with files.open_regular(file) as stream:
        start = require_open(stream, where=file.name)
        if not start.startswith(b"{"):
            manifest = read_manifest(check_organ_header(stream, file.stat().st_size), where=file.name)
            training = manifest.training
            engine = (training or {}).get("engine")
            return _Said("manifest", DpClaim.from_training(training), AuditResult.from_training(training), engine)
    _, passport = parse_passport(files.read_regular(file, max_bytes=MAX_PASSPORT_BYTES).strip())
    return _Said("passport", passport.dp, passport.audit, None)


def require_open(stream: BinaryIO, *, where: str) -> bytes:
    """Refuse a sealed organ by its first bytes, which are returned; the stream is back at its start.

    Raises:
        StillSealed: it needs a key.
    """
    start = stream.read(len(SEALED_START))
    if start == SEALED_START:
        raise StillSealed(
            where=where, expected="an organ or a passport", got="a sealed organ",
            hint="`not-fed open` it, or `not-fed verify --identity` shows its audit beside its claim",
        )  # fmt: skip
    stream.seek(0)
    return start


def _judged(claim: DpClaim, audit: AuditResult) -> Judgement:
    from not_fed.organ.claims import plan_of
    from not_fed.privacy.audit.verdict import Recorded, judge

    recorded = Recorded(
        epsilon_lower_bound=audit.epsilon_lower_bound, canaries=audit.canaries, steps=audit.steps,
        fdp_epsilon_lower_bound=audit.fdp_epsilon_lower_bound, noise_ratio=audit.noise_ratio,
        contradicts=audit.verdict == "contradicts",
    )  # fmt: skip
    return judge(recorded, epsilon=claim.epsilon, plan=plan_of(claim))


def _show_audited(file: Path, said: _Said, claim: DpClaim, audit: AuditResult, *, as_json: bool) -> None:
    judged = _judged(claim, audit)
    fits = not judged.contradictions
    sentence = FITS if fits else f"DO NOT RELY ON THIS CLAIM: {'; '.join(judged.contradictions)}"
    result = _result(file, said) | {
        "audit": audit.model_dump(mode="json", exclude_none=True), "expected": _expected(judged),
        "verdict": "consistent" if fits else "contradicts", "contradictions": list(judged.contradictions),
        "sentence": sentence,
    }  # fmt: skip
    lines = [*_claim_lines(claim), *_audit_lines(claim, audit, judged)]
    if said.engine:
        lines.append(("sentinel", f"the engine ({said.engine}) agreed with plain autograd before the first step"))
    show(result, as_json=as_json, lines=[*lines, ("verdict", sentence), ("", WORD)])
    if not fits:
        raise AuditContradicts(
            where=f"{file.name}, training audit", expected="what the claimed mechanism gives",
            got="; ".join(judged.contradictions), hint="do not rely on its epsilon; ask its author",
        )  # fmt: skip


def _result(file: Path, said: _Said) -> dict[str, Any]:
    claim = None if said.claim is None else said.claim.model_dump(mode="json")
    return {"schema": "not-fed/audited/1", "file": str(file), "source": said.source, "claim": claim,
            "audit": None, "expected": None}  # fmt: skip


def _expected(judged: Judgement) -> dict[str, Any] | None:
    if judged.expected is None:
        return None
    typical, most = judged.expected.typical, judged.expected.at_most
    return {
        "typical": typical.epsilon, "at_most": most.epsilon, "fdp_typical": typical.fdp_epsilon,
        "fdp_at_most": most.fdp_epsilon, "noise_ratio_at_least": judged.least_noise,
    }  # fmt: skip


def _claim_lines(claim: DpClaim) -> list[tuple[str, str]]:
    by = claim.mechanism
    runs = f" in each of {by.runs} runs" if by.runs > 1 else ""
    return [
        ("claim", f"{claim}; claimed, not proved"),
        ("", f"{by.steps:,} steps{runs}, sample rate {by.sample_rate:g}, noise multiplier {by.noise_multiplier:g}"),
    ]


def _audit_lines(claim: DpClaim, audit: AuditResult, judged: Judgement) -> list[tuple[str, str]]:
    sure = f"{audit.confidence:.0%} confidence"
    delta = audit.delta or claim.delta
    lines = [
        ("attack", f"epsilon was at least {audit.epsilon_lower_bound:.2f} at delta {delta:g}, {sure}"),
        *([] if audit.fdp_epsilon_lower_bound is None else [
            ("", f"by the f-DP curve at least {audit.fdp_epsilon_lower_bound:.2f}: sharper, an alarm and not a theorem")
        ]),
        ("", f"{audit.canaries:,} canaries; {audit.method}"),
    ]  # fmt: skip
    if claim.mechanism.runs > 1:
        lines.append(("", f"of one run; the claim is for all {claim.mechanism.runs}"))
    if judged.expected is not None:
        typical, most = judged.expected.typical, judged.expected.at_most
        lines += [
            ("expected", f"about {typical.epsilon:.2f} and at most {most.epsilon:.2f} if the claim is true"),
            ("", f"by the f-DP curve about {typical.fdp_epsilon:.2f} and at most {most.fdp_epsilon:.2f}"),
        ]
    if audit.noise_ratio is not None and judged.least_noise is not None:
        least = f"{judged.least_noise:.3f} or more is right; gradients can only raise it"
        lines.append(("noise", f"{audit.noise_ratio:.3f} times the claimed deviation ({least})"))
    return lines


def _show_unclaimed(file: Path, said: _Said, *, as_json: bool) -> None:
    sentence = "no differential privacy is claimed, so there is nothing that an audit could confirm or refute"
    show(_result(file, said) | {"verdict": "nothing-claimed", "contradictions": [], "sentence": sentence},
         as_json=as_json, lines=[("verdict", sentence)])  # fmt: skip


def _show_unaudited(file: Path, said: _Said, *, as_json: bool) -> None:
    assert said.claim is not None
    sentence = "THE CLAIM WAS NOT AUDITED: nobody attacked this training, or nobody wrote down what they found"
    show(_result(file, said) | {"verdict": "not-audited", "contradictions": [], "sentence": sentence},
         as_json=as_json, lines=[*_claim_lines(said.claim), ("verdict", sentence)])  # fmt: skip


def _simulate(
    epsilon: float, delta: float, sample_rate: float, steps: int, runs: int, canaries: int, *, as_json: bool
) -> None:
    from not_fed.privacy.accounting import plan_dp
    from not_fed.privacy.audit.verdict import foresee

    plan = plan_dp(epsilon=epsilon, delta=delta, sample_rate=sample_rate, steps=steps, runs=runs,
                   max_grad_norm=1.0, divisor=1.0)  # fmt: skip
    expected, rows = foresee(plan, canaries=canaries)
    most = expected.at_most
    result = {
        "schema": "not-fed/audit-simulated/1", "epsilon": plan.epsilon().value, "delta": delta,
        "sample_rate": sample_rate, "steps": steps, "runs": runs, "noise_multiplier": plan.noise_multiplier,
        "canaries": canaries, "at_most": most.epsilon, "fdp_at_most": most.fdp_epsilon,
        "rows": [{"does": row.does, "epsilon_lower_bound": row.bounds.epsilon,
                  "fdp_epsilon_lower_bound": row.bounds.fdp_epsilon, "seen_by": list(row.seen_by)} for row in rows],
    }  # fmt: skip
    lines = [
        ("plan", f"{plan.epsilon()}: noise multiplier {plan.noise_multiplier:g}, {canaries:,} canaries in one run"),
        ("alarm", f"above a lower bound of {most.epsilon:.2f}, or {most.fdp_epsilon:.2f} by the f-DP curve"),
        ("if code does", "a typical audit finds (epsilon / f-DP curve), and is stopped by"),
    ]
    for row in rows:
        found = f"{row.bounds.epsilon:.2f} / {row.bounds.fdp_epsilon:.2f}"
        lines.append((row.does, f"{found:<13} {', '.join(row.seen_by) or 'nothing'}"))
    show(result, as_json=as_json, lines=lines)
