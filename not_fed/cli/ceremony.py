"""What roster and recall share: show what gets signed, ask, sign, and say who is next."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from not_fed.cli.output import printable, say, show
from not_fed.cli.passphrase import PassphraseFd, PassphraseFile, read_passphrase
from not_fed.errors import UsageError

if TYPE_CHECKING:
    from not_fed.keys import PublicIdentity, Steward
    from not_fed.trust.ceremony import Proposal
    from not_fed.trust.diff import Change
    from not_fed.trust.plans import SumPlan
    from not_fed.trust.roster import TrustedRoster

SCHEMA = "not-fed/roster/1"
DRAFT_SCHEMA = "not-fed/draft/1"
StewardFolder = Annotated[
    Path, typer.Option("--steward", help="Key folder of a steward (not-fed keys create --steward).")
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Instead = Annotated[bool, typer.Option("--instead", help="Though you have signed another draft of this version.")]


def ask(question: str, *, yes: bool) -> None:
    """Go on only after a yes; without a terminal and without `--yes` that is a no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(where="confirmation", expected="a yes", got="no terminal to ask on", hint="add --yes")
    typer.confirm(question, abort=True, err=True)


def show_changes(changes: Iterable[Change], *, title: str) -> None:
    """What a version changes, on stderr: kind, and of whom what."""
    rows = [(change.kind.replace("-", " "), change) for change in changes]
    width = max((len(kind) for kind, _ in rows), default=0)
    say(title)
    for kind, change in rows:
        sys.stderr.write(f"  {kind:<{width}}  {printable(change.subject)}: {printable(change.text)}\n")


def show_proposal(proposal: Proposal, *, as_json: bool, yes: bool) -> None:
    """Everything that gets signed, and the fingerprint under which stewards can compare it.

    A script (`--json`, and nobody to ask) finds the changes in the object that is printed, or in a published roster.
    """
    if as_json and (yes or not sys.stdin.isatty()):
        return
    version, federation = proposal.draft.version, proposal.draft.roster().federation
    after = "the first" if proposal.base is None else f"after version {version - 1}"
    show_changes(proposal.changes, title=f"roster of {federation}, version {version}, {after}")
    if len(proposal.progress[0].signed) + len(proposal.progress[0].awaited) > 1:
        say(f"all of this is draft {proposal.draft.fingerprint}")


def question_for(proposal: Proposal) -> str:
    """What to ask before signing: about fingerprints, where there are new ones."""
    if {"fingerprint", "steward-added", "steward-keys"} & {change.kind for change in proposal.changes}:
        return "have you compared each fingerprint above over another channel, and do you sign all of this?"
    return "do you sign all of this?"


def is_alone(proposal: Proposal) -> bool:
    """Whether one steward is enough, before and after."""
    return all(group.needed == 1 for group in proposal.progress)


def decide(
    proposal: Proposal, *, steward: Path, yes: bool, question: str | None, instead: bool,
    passphrase: tuple[Path | None, int | None], as_json: bool,
) -> None:  # fmt: skip
    """Show, ask, sign, settle, report.

    Args:
        question: asked even of a steward who decides alone; None asks only where several decide.
    """
    from not_fed.trust.ceremony import settle

    show_proposal(proposal, as_json=as_json, yes=yes)
    if question is not None or not is_alone(proposal):
        ask(question or question_for(proposal), yes=yes)
    key = load(steward, passphrase)
    proposal.sign(key, instead=instead)
    settled = settle(proposal, signed_by=key)
    report(proposal, settled.roster, settled.draft, as_json=as_json)


def report(proposal: Proposal, roster: TrustedRoster | None, draft: Path | None, *, as_json: bool) -> None:
    """The published roster, or the draft and who is awaited."""
    if roster is not None:
        show_roster(roster, proposal.folder, as_json=as_json, with_members=False)
        if not as_json:
            is_first = roster.version == 1
            words = "pin SOURCE --root-sha256 DIGEST --out R" if is_first else "update R --from SOURCE"
            say(f"published; hand {proposal.folder}/repository to every member and steward, who type:")
            say(f"  not-fed roster {words}")
            if is_first:
                say("tell them the digest, root sha256, over another channel than the one that brings the folder")
        return
    show(draft_facts(proposal, draft), as_json=as_json, lines=draft_lines(proposal, draft))
    if draft is not None and not as_json:
        say(f"carry the folder {draft} to one of them, who types, with R for a roster folder of their own:")
        say(f"  not-fed roster sign R --draft {draft.name} --steward KEYS")


def draft_facts(proposal: Proposal, draft: Path | None) -> dict[str, Any]:
    """A draft as `--json` has it."""
    base = proposal.base
    return {
        "schema": DRAFT_SCHEMA, "federation": proposal.draft.roster().federation, "version": proposal.draft.version,
        "base_version": base.targets.version if base else 0, "draft": str(draft) if draft else None,
        "fingerprint": proposal.draft.fingerprint, "root_sha256": proposal.root_sha256, "complete": proposal.is_enough,
        "changes": [
            {"kind": change.kind, "subject": change.subject, "text": change.text} for change in proposal.changes
        ],
        "groups": [
            {"signed": list(group.signed), "needed": group.needed, "awaited": list(group.awaited)}
            for group in proposal.progress
        ],
    }  # fmt: skip


def draft_lines(proposal: Proposal, draft: Path | None) -> list[tuple[str, str]]:
    """A draft for a person."""
    lines = []
    for group, whose in zip(proposal.progress, ("", " (stewards until now)"), strict=False):
        lines.append((f"signed{whose}", ", ".join(group.signed) or "nobody"))
        missing = group.needed - len(group.signed)
        more = "nobody, it can be published" if missing <= 0 else f"{missing} of {', '.join(group.awaited)}"
        lines.append((f"awaited{whose}", more))
    lines.append(("fingerprint", proposal.draft.fingerprint))
    if proposal.base is None:
        lines.append(("root sha256", proposal.root_sha256))
    return [*lines, *([("draft", str(draft))] if draft else [])]


def show_roster(roster: TrustedRoster, folder: Path, *, as_json: bool, with_members: bool = True) -> None:
    """A trusted roster."""
    from not_fed.canonical import format_time
    from not_fed.trust.roster import root_sha256
    from not_fed.trust.stewards import moment_of

    now = moment_of(None)
    members: list[dict[str, Any]] = [
        {
            "name": member.name, "roles": sorted(member.roles), "not_after": format_time(member.not_after),
            "status": "active" if member.is_current(now) else "inactive", "fingerprint": member.fingerprint,
            "former_keys": len(member.former), "keeps_log": member.log is not None,
        }
        for member in roster.members.values()
    ]  # fmt: skip
    result: dict[str, Any] = {
        "schema": SCHEMA, "federation": roster.federation, "version": roster.version,
        "expires": format_time(roster.expires_at), "stale": roster.stale, "root_sha256": root_sha256(folder),
        "members": members, "recalls": len(roster.recalled),
        "plans": [plan_facts(plan) for _, plan in sorted(roster.plans.items())],
    }  # fmt: skip
    lines = [
        ("federation", roster.federation), ("version", str(roster.version)),
        ("expires", f"{result['expires']}, in {max(0, (roster.expires_at - now).days)} days"),
        ("root sha256", result["root_sha256"]), ("recalled", f"{len(roster.recalled)} organs"),
    ]  # fmt: skip
    if with_members:
        for row in members:
            lines.append((row["name"], f"{row['status']}, {', '.join(row['roles'])}, until {row['not_after']}"))
            lines.append(("", row["fingerprint"]))
        for run, plan in sorted(roster.plans.items()):
            lines.append((f"plan {run}", f"secure sum of {len(plan.sites)} sites, {plan.rounds} rounds"))
            lines.append(("", plan.sha256))
    else:
        lines.append(("members", str(sum(row["status"] == "active" for row in members))))
        if roster.plans:
            lines.append(("plans", ", ".join(sorted(roster.plans))))
    show(result, as_json=as_json, lines=lines)


def plan_facts(plan: SumPlan) -> dict[str, Any]:
    """A plan as `--json` has it: all its fields, its digest, and what follows from them."""
    rule = plan.thresholds()
    follows = {"sha256": plan.sha256, "shares": rule.shares, "helpers": rule.helpers, "min_sites": rule.min_sites}
    return plan.model_dump(mode="json") | follows


def sum_plan_of(file: Path) -> SumPlan:
    """What a coordinator's federation.toml asks the stewards to sign; raises BadSettings."""
    from not_fed import settings
    from not_fed.coordinator.plan import FederationPlan

    plan = settings.load(FederationPlan, file)
    if plan.mode != "secure-sum":
        raise settings.BadSettings(
            where=f"{file}, field mode", expected="secure-sum", got=plan.mode, hint="other modes need no signed plan"
        )
    return plan.sum_plan()


def load(folder: Path, passphrase: tuple[Path | None, int | None]) -> Steward:
    """A steward's private keys."""
    from not_fed.keys import load_steward

    return load_steward(folder, passphrase=read_passphrase(*passphrase))


def member_and_roles(text: str) -> tuple[PublicIdentity, list[str]]:
    """`identity.json:author,receiver`."""
    from not_fed.keys import load_public_identity

    path, colon, roles = text.rpartition(":")
    if not colon or not path:
        raise UsageError(
            where="member", expected="identity.json:author,receiver", got="no roles", hint="roles come after a colon"
        )
    return load_public_identity(Path(path)), [role.strip() for role in roles.split(",")]


__all__ = [
    "DRAFT_SCHEMA", "SCHEMA", "Instead", "PassphraseFd", "PassphraseFile", "StewardFolder", "Yes", "ask", "decide",
    "draft_facts", "draft_lines", "is_alone", "load", "member_and_roles", "plan_facts", "question_for", "report",
    "show_changes", "show_proposal", "show_roster", "sum_plan_of",
]  # fmt: skip
