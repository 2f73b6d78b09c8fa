"""What verify, open and import share: the options about whom to trust, the papers beside a sealed file, the words."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from not_fed.cli.output import say

if TYPE_CHECKING:
    from not_fed.envelope import Delivery, Expectation, Inclusion, Passport, SeenWaybills
    from not_fed.envelope.claims import Release
    from not_fed.envelope.policy import Demand
    from not_fed.privacy.accounting import Epsilon
    from not_fed.trust.roster import TrustedRoster

RosterOption = Annotated[Path, typer.Option("--roster", help="The roster you trust. There is no default.")]
IdentityOption = Annotated[Path, typer.Option("--identity", help="Your key folder.")]
SealedFile = Annotated[Path, typer.Argument(metavar="S", help="A sealed organ.")]
ExpectedRound = Annotated[int | None, typer.Option("--round", min=0, help="Refuse any other round.")]
ExpectedBase = Annotated[str | None, typer.Option("--base-sha256", help="Refuse an organ of any other base.")]
PolicyOption = Annotated[
    Path | None, typer.Option("--policy", help="Your organisation's demands (TOML): refuse what does not meet them.")
]
AcceptStale = Annotated[
    bool,
    typer.Option("--accept-stale", help="Go on with a roster past its date. Signatures are checked all the same."),
]
Again = Annotated[bool, typer.Option("--again", help="Even if this very sealing was opened here before.")]


def trusted_roster(folder: Path, *, accept_stale: bool) -> TrustedRoster:
    """The roster, verified; a stale one only when asked for, and never without saying so."""
    from not_fed.canonical import format_time
    from not_fed.trust.roster import load_roster

    roster = load_roster(folder, now=datetime.now(UTC), accept_stale=accept_stale)
    if roster.stale:
        say(f"warning: the roster is past its date ({format_time(roster.expires_at)}); a newer one may exist")
    return roster


def confront_log(folder: Path, delivery: Delivery, roster: TrustedRoster) -> None:
    """Compare the proof's checkpoint with the one that this machine remembers of that log.

    Raises:
        LogForked: of the same size, and another tree; the evidence is kept. As `check_proof`.
    """
    from not_fed.envelope.logged import label_entry
    from not_fed.trust.log_memory import confront
    from not_fed.trust.log_proof import check_proof

    if delivery.proof is None or delivery.label is None:
        return
    entry = label_entry(delivery.label)
    checkpoint = check_proof(delivery.proof, entry=entry, roster=roster, now=datetime.now(UTC))
    if confront(folder, checkpoint) == "unproven":
        say("note: the log has grown, or shrunk, since it was last compared here: not-fed log compare")


def expectation(round_number: int | None, base_sha256: str | None, policy: Path | None) -> Expectation:
    """What the command line and the policy file ask for."""
    from not_fed.envelope import Expectation, load_import_policy

    demands = None if policy is None else load_import_policy(policy)
    return Expectation(round_number=round_number, base_sha256=base_sha256, demands=demands)


def waybill_memory(roster: Path, *, again: bool) -> SeenWaybills:
    """What was opened under this roster on this machine; one that only takes note when asked to open again."""
    from not_fed.envelope import DiskSeen
    from not_fed.envelope.seen import RecordOnly

    memory = DiskSeen(roster / "trusted" / "waybills.db", now=datetime.now(UTC))
    return RecordOnly(memory) if again else memory


def passport_facts(passport: Passport | None) -> dict[str, Any]:
    """The passport's part of a JSON result; all None when nobody looked inside."""
    from not_fed.canonical import format_time

    if passport is None:
        return dict.fromkeys(
            ("organ_sha256", "base_sha256", "span", "family", "size_bytes", "created", "epsilon", "delta", "unit",
             "neighbouring", "records_per_person", "recomputed_epsilon", "audit", "audit_contradicts", "releases",
             "ledger_head", "contributors")
        )  # fmt: skip
    claim, audit, again = passport.dp, passport.audit, recomputed(passport)
    return {
        "organ_sha256": passport.organ_sha256, "base_sha256": passport.base_sha256, "span": list(passport.span),
        "family": passport.family, "size_bytes": passport.organ_size_bytes, "created": format_time(passport.created),
        "epsilon": claim.epsilon if claim else None, "delta": claim.delta if claim else None,
        "unit": claim.unit if claim else None, "neighbouring": claim.mechanism.adjacency if claim else None,
        "records_per_person": claim.mechanism.records_per_person if claim else None,
        "recomputed_epsilon": again.value if again else None,
        "audit": audit.model_dump(exclude_none=True) if audit else None,
        "audit_contradicts": audit.contradicts(claim) if audit else None,
        "releases": [release.model_dump(exclude_none=True) for release in passport.releases],
        "ledger_head": passport.ledger_head,
        "contributors": [one.model_dump() for one in passport.contributors],
    }  # fmt: skip


def roster_facts(roster: TrustedRoster) -> dict[str, Any]:
    """Which roster decided."""
    from not_fed.canonical import format_time

    return {
        "roster_version": roster.version, "roster_expires": format_time(roster.expires_at), "roster_stale": roster.stale
    }  # fmt: skip


def log_facts(logged: Inclusion | None) -> dict[str, Any] | None:
    """Where the log has it."""
    from not_fed.canonical import format_time

    if logged is None:
        return None
    return {
        "index": logged.index, "tree_size": logged.tree_size, "origin": logged.origin, "time": format_time(logged.time)
    }  # fmt: skip


def passport_lines(passport: Passport, roster: TrustedRoster) -> list[tuple[str, str]]:
    """The passport for a person; the author with the fingerprint to compare."""
    from not_fed.canonical import format_time

    start, stop = passport.span
    audit, again = passport.audit, recomputed(passport)
    return [
        ("made by", f"{passport.author}, {format_time(passport.created)}"),
        ("", roster.members[passport.author].fingerprint),
        ("organ", f"{passport.family}, layers {start}:{stop}, {passport.organ_size_bytes:,} bytes"),
        ("digest", passport.organ_sha256),
        ("base", passport.base_sha256),
        ("privacy", privacy_words(passport)),
        *([] if again is None else [("", f"its mechanism costs {again}, computed here")]),
        ("audit", f"{audit.words(passport.dp)}; by the author's word" if audit else "none"),
        *([("numbers", release_words(passport))] if passport.releases else []),
        *(("" if number else "sum of", str(one)) for number, one in enumerate(passport.contributors)),
    ]


def trust_lines(
    roster: TrustedRoster, logged: Inclusion | None, demands: Iterable[Demand], *, inside: bool
) -> list[tuple[str, str]]:
    """Roster, recall, log and policy for a person."""
    from not_fed.canonical import format_time

    met = [demand.field for demand in demands]
    lines = [("roster", f"version {roster.version}, holds until {format_time(roster.expires_at)}")]
    lines.append(("recalled", "no, by this roster" if inside else "unknown without a look inside"))
    where = "no proof beside it" if logged is None else (
        f"entry {logged.index} of {logged.origin}, in its checkpoint of {format_time(logged.time)}"
    )  # fmt: skip
    lines.append(("log", where))
    return [*lines, *([("policy", f"all demands met: {', '.join(dict.fromkeys(met))}")] if met else [])]


def recomputed(passport: Passport) -> Epsilon | None:
    """What the claim's own mechanism costs, by this machine's accountant; raises ClaimTooSmall when it is more."""
    from not_fed.organ.claims import check_claim

    return check_claim(passport.dp)


def privacy_words(passport: Passport) -> str:
    """The claim in one line: never a number without its delta and unit, never as if it were proved."""
    claim = passport.dp
    if claim is None:
        return "no differential privacy claimed"
    most = claim.mechanism.records_per_person
    cap = f", at most {most} of their records in a step" if claim.unit == "person" else ""
    return f"{claim}{cap}; claimed, not proved"


def release_words(passport: Passport) -> str:
    """Each number about the private records that left with the organ, and how."""

    def how(release: Release) -> str:
        if release.how == "public":
            return "without noise, public by decision"
        return f"with noise multiplier {release.noise_multiplier:g}, in epsilon"

    return "; ".join(f"{release.name} {release.value:.4g} ({how(release)})" for release in passport.releases)
