"""roster: what stewards decide, one after the other, each on a machine of its own; and what everybody else checks.

A command that changes the roster shows what gets signed and asks. Where one steward is enough, it is then published;
where several are needed, a draft folder goes from one to the next (`roster sign`).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from not_fed.cli.ceremony import (
    Instead,
    StewardFolder,
    Yes,
    ask,
    decide,
    draft_facts,
    draft_lines,
    load,
    member_and_roles,
    plan_facts,
    question_for,
    report,
    show_changes,
    show_proposal,
    show_roster,
    sum_plan_of,
)
from not_fed.cli.output import AsJson, say, show
from not_fed.cli.passphrase import PassphraseFd, PassphraseFile
from not_fed.errors import UsageError

PLANS_SCHEMA = "not-fed/plans/1"
RosterFolder = Annotated[Path, typer.Argument(metavar="R", help="The roster folder.")]
ExpiresDays = Annotated[
    int, typer.Option("--expires-days", min=1, max=3650, help="How long sites may rely on it unrenewed.")
]
DraftFolder = Annotated[Path | None, typer.Option("--draft", help="The draft folder. [default: R/draft]")]
ValidDays = Annotated[int, typer.Option("--valid-days", min=1, max=3650, help="How long the membership lasts.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    group = typer.Typer(no_args_is_help=True, help="Who belongs: signed by stewards, checked by every site.")
    for name, command in (
        ("create", create_command), ("add", add_command), ("extend", extend_command), ("rotate", rotate_command),
        ("revoke", revoke_command), ("renew", renew_command), ("stewards", stewards_command), ("plan", plan_command),
        ("diff", diff_command), ("sign", sign_command), ("pin", pin_command), ("update", update_command),
        ("show", show_command), ("check", check_command),
    ):  # fmt: skip
        group.command(name)(command)
    app.add_typer(group, name="roster")


def create_command(
    roster: RosterFolder,
    federation: Annotated[str, typer.Option("--federation", help="Its name.")],
    steward: StewardFolder,
    steward_identity: Annotated[
        list[Path] | None, typer.Option("--steward-identity", help="steward.json of another steward; once for each.")
    ] = None,
    member: Annotated[
        list[str] | None, typer.Option("--member", help="identity.json:author,receiver; once for each member.")
    ] = None,
    expires_days: ExpiresDays = 90,
    yes: Yes = False,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    as_json: AsJson = False,
) -> None:
    """Start a federation's roster. With other stewards, it waits for their signatures; sites then pin its root."""
    from not_fed.keys import load_steward_identity
    from not_fed.trust.ceremony import settle
    from not_fed.trust.stewards import exchanging, first_proposal

    others = [load_steward_identity(path) for path in steward_identity or []]
    members = [member_and_roles(text) for text in member or []]
    key = load(steward, (passphrase_file, passphrase_fd))  # first: the draft names this steward's own keys
    others = [other for other in others if other.keys != key.public]
    proposal = first_proposal(
        roster, federation=federation, stewards=exchanging(add=others)({key.name: key.public}), members=members,
        expires_in=timedelta(days=expires_days), now=_now(),
    )  # fmt: skip
    show_proposal(proposal, as_json=as_json, yes=yes)
    if others:
        ask(question_for(proposal), yes=yes)
    proposal.sign(key)
    settled = settle(proposal, signed_by=key)
    report(proposal, settled.roster, settled.draft, as_json=as_json)


def add_command(
    roster: RosterFolder,
    member: Annotated[str, typer.Argument(help="identity.json:author,receiver")],
    steward: StewardFolder,
    valid_days: ValidDays = 365,
    expires_days: ExpiresDays = 90,
    yes: Yes = False,
    instead: Instead = False,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    as_json: AsJson = False,
) -> None:
    """Enrol a member whose fingerprint you have compared."""
    from not_fed.trust.ceremony import propose
    from not_fed.trust.stewards import adding

    identity, roles = member_and_roles(member)
    edit = adding(identity, roles=roles, now=_now(), valid_for=timedelta(days=valid_days))
    decide(
        propose(roster, edit, now=_now(), expires_in=timedelta(days=expires_days)), steward=steward, yes=yes,
        question=None, instead=instead, passphrase=(passphrase_file, passphrase_fd), as_json=as_json,
    )  # fmt: skip


def extend_command(
    roster: RosterFolder,
    name: Annotated[str, typer.Argument(help="The member.")],
    steward: StewardFolder,
    valid_days: ValidDays = 365,
    expires_days: ExpiresDays = 90,
    yes: Yes = False,
    instead: Instead = False,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    as_json: AsJson = False,
) -> None:
    """Let a membership last longer, with the keys it has."""
    from not_fed.trust.ceremony import propose
    from not_fed.trust.stewards import extending

    edit = extending(name, now=_now(), valid_for=timedelta(days=valid_days))
    decide(
        propose(roster, edit, now=_now(), expires_in=timedelta(days=expires_days)), steward=steward, yes=yes,
        question=None, instead=instead, passphrase=(passphrase_file, passphrase_fd), as_json=as_json,
    )  # fmt: skip


def rotate_command(
    roster: RosterFolder,
    identity: Annotated[Path, typer.Argument(help="The member's new identity.json.")],
    steward: StewardFolder,
    succession: Annotated[
        Path | None, typer.Option("--succession", help="succession.json: the old keys' word for the new ones.")
    ] = None,
    stolen: Annotated[
        bool, typer.Option("--stolen", help="The old keys were stolen: nothing that they signed counts any longer.")
    ] = False,
    expires_days: ExpiresDays = 90,
    yes: Yes = False,
    instead: Instead = False,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    as_json: AsJson = False,
) -> None:
    """Give a member its new keys; what the old ones signed in their time stays good, unless they were stolen."""
    from not_fed import files
    from not_fed.keys import load_public_identity
    from not_fed.keys.succession import MAX_SUCCESSION_BYTES
    from not_fed.trust.ceremony import propose
    from not_fed.trust.stewards import rotating

    if stolen and succession is not None:
        raise UsageError(
            where="roster rotate", expected="--succession or --stolen", got="both",
            hint="a thief can write a succession too: compare the new fingerprint by telephone",
        )  # fmt: skip
    line = None
    if succession is not None:
        line = files.read_regular(succession, max_bytes=MAX_SUCCESSION_BYTES).removesuffix(b"\n")
    new = load_public_identity(identity)
    edit = rotating(new, succession=line, stolen=stolen, now=_now())
    named = "its old keys name these new ones" if line else "have you compared the fingerprint with the member"
    decide(
        propose(roster, edit, now=_now(), expires_in=timedelta(days=expires_days)), steward=steward, yes=yes,
        question=f"new keys for {new.name}; {named}; sign?", instead=instead,
        passphrase=(passphrase_file, passphrase_fd), as_json=as_json,
    )  # fmt: skip


def revoke_command(
    roster: RosterFolder,
    name: Annotated[str, typer.Argument(help="The member.")],
    steward: StewardFolder,
    expires_days: ExpiresDays = 90,
    yes: Yes = False,
    instead: Instead = False,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    as_json: AsJson = False,
) -> None:
    """Take a member's trust away: whoever has the new roster refuses its organs."""
    from not_fed.trust.ceremony import propose
    from not_fed.trust.stewards import revoking

    decide(
        propose(roster, revoking(name), now=_now(), expires_in=timedelta(days=expires_days)), steward=steward, yes=yes,
        question=f"revoke {name}? everybody will refuse its organs, the old ones too", instead=instead,
        passphrase=(passphrase_file, passphrase_fd), as_json=as_json,
    )  # fmt: skip


def renew_command(
    roster: RosterFolder,
    steward: StewardFolder,
    expires_days: ExpiresDays = 90,
    yes: Yes = False,
    instead: Instead = False,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    as_json: AsJson = False,
) -> None:
    """Sign the same roster again with new dates; works on an expired one."""
    from not_fed.trust.ceremony import propose
    from not_fed.trust.stewards import unchanged

    decide(
        propose(roster, unchanged, now=_now(), expires_in=timedelta(days=expires_days), renew_root=True),
        steward=steward, yes=yes, question=None, instead=instead, passphrase=(passphrase_file, passphrase_fd),
        as_json=as_json,
    )  # fmt: skip


def stewards_command(
    roster: RosterFolder,
    add: Annotated[list[Path] | None, typer.Option("--add", help="steward.json of a new steward.")] = None,
    remove: Annotated[list[str] | None, typer.Option("--remove", help="Name of a steward who leaves.")] = None,
    steward: Annotated[Path | None, typer.Option("--steward", help="Key folder of a steward.")] = None,
    expires_days: ExpiresDays = 90,
    yes: Yes = False,
    instead: Instead = False,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    as_json: AsJson = False,
) -> None:
    """Show the stewards; or exchange some: enough of those before and enough of those after must sign."""
    from not_fed.keys import load_steward_identity
    from not_fed.trust.ceremony import propose
    from not_fed.trust.stewards import exchanging, unchanged

    if not add and not remove:
        _show_stewards(roster, as_json=as_json)
        return
    if steward is None:
        raise UsageError(where="roster stewards", expected="--steward KEYS", got="none", hint="who signs the change?")
    exchange = exchanging(add=[load_steward_identity(path) for path in add or []], remove=remove or [])
    decide(
        propose(roster, unchanged, now=_now(), expires_in=timedelta(days=expires_days), stewards=exchange),
        steward=steward, yes=yes, question="do you exchange the stewards, who decide all else, and sign all of this?",
        instead=instead, passphrase=(passphrase_file, passphrase_fd), as_json=as_json,
    )  # fmt: skip


def plan_command(
    roster: RosterFolder,
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="The coordinator's federation.toml, of mode secure-sum."),
    ] = None,
    remove: Annotated[
        str | None, typer.Option("--remove", metavar="RUN", help="Take the plan of this run away, for good.")
    ] = None,
    steward: Annotated[Path | None, typer.Option("--steward", help="Key folder of a steward.")] = None,
    expires_days: ExpiresDays = 90,
    yes: Yes = False,
    instead: Instead = False,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    as_json: AsJson = False,
) -> None:
    """Show the plans of secure sums; or sign one, which sites then hold the coordinator to; or take one away."""
    from not_fed.trust.ceremony import propose
    from not_fed.trust.planning import planning, unplanning
    from not_fed.trust.stewards import unchanged

    if source is None and remove is None:
        _show_plans(roster, as_json=as_json)
        return
    if steward is None or (source is not None and remove is not None):
        raise UsageError(
            where="roster plan", expected="--from FILE or --remove RUN, and --steward KEYS",
            got="no steward" if steward is None else "both", hint="a plan is never changed, only removed",
        )  # fmt: skip
    now = _now()
    if source is not None:
        plan = sum_plan_of(source)
        edit, question = planning(plan, now=now), f"a plan is never changed; do you sign this one for run {plan.run}?"
    else:
        edit, question = unplanning(str(remove)), f"end run {remove} for good? no plan can have its name again"
    decide(
        propose(roster, unchanged, now=now, expires_in=timedelta(days=expires_days), plans=edit), steward=steward,
        yes=yes, question=question, instead=instead, passphrase=(passphrase_file, passphrase_fd), as_json=as_json,
    )  # fmt: skip


def diff_command(roster: RosterFolder, draft: DraftFolder = None, as_json: AsJson = False) -> None:
    """Show what a draft changes, and who has signed it; changes nothing."""
    from not_fed.trust.ceremony import open_draft

    place = roster / "draft" if draft is None else draft
    proposal = open_draft(roster, draft=place, now=_now())
    show_proposal(proposal, as_json=as_json, yes=True)
    show(draft_facts(proposal, place), as_json=as_json, lines=draft_lines(proposal, place))


def sign_command(
    roster: RosterFolder,
    draft: DraftFolder = None,
    steward: Annotated[
        Path | None, typer.Option("--steward", help="Your key folder. Without it, a complete draft is published.")
    ] = None,
    yes: Yes = False,
    instead: Instead = False,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    as_json: AsJson = False,
) -> None:
    """Sign another steward's draft, after reading what it changes; the last signature needed publishes it."""
    from not_fed.trust.ceremony import open_draft, settle

    proposal = open_draft(roster, draft=roster / "draft" if draft is None else draft, now=_now())
    if steward is not None:
        decide(
            proposal, steward=steward, yes=yes, question=question_for(proposal), instead=instead,
            passphrase=(passphrase_file, passphrase_fd), as_json=as_json,
        )  # fmt: skip
        return
    show_proposal(proposal, as_json=as_json, yes=yes)
    if proposal.is_enough:
        ask("publish it?", yes=yes)
    settled = settle(proposal, signed_by=None)
    report(proposal, settled.roster, settled.draft, as_json=as_json)


def pin_command(
    source: Annotated[Path, typer.Argument(help="A roster folder, or its repository.")],
    root_sha256: Annotated[str, typer.Option("--root-sha256", help="The root's digest, told by a steward.")],
    out: Annotated[Path, typer.Option("--out", help="The roster folder to make.")],
    as_json: AsJson = False,
) -> None:
    """Start to trust a roster, by a digest that came over another channel."""
    from not_fed.trust.roster import load_roster, pin_roster

    pin_roster(source, root_sha256=root_sha256, out=out, now=_now())
    show_roster(load_roster(out, now=_now()), out, as_json=as_json)


def update_command(
    roster: RosterFolder,
    source: Annotated[Path, typer.Option("--from", help="A newer roster folder, its repository, or a signed draft.")],
    as_json: AsJson = False,
) -> None:
    """Take over a newer roster, if it holds, and say what it changes; otherwise nothing changes."""
    from not_fed.trust import memory
    from not_fed.trust.diff import changes_between
    from not_fed.trust.roster import update_roster
    from not_fed.trust.takeover import trusted

    before = trusted(roster, now=_now(), accept_expired=True)[1] if memory.exists(roster) else None
    updated = update_roster(roster, source=source, now=_now())
    after = trusted(roster, now=_now())[1]
    if not as_json:
        old = before.targets.version if before is not None else 0
        if old == updated.version:
            say(f"version {updated.version} is what you had")
        else:
            was = f"version {old} becomes" if old else "the first,"
            show_changes(changes_between(before, after), title=f"{was} version {updated.version}")
    show_roster(updated, roster, as_json=as_json, with_members=False)


def show_command(roster: RosterFolder, as_json: AsJson = False) -> None:
    """Check a roster, and print its members with their fingerprints."""
    from not_fed.trust.roster import load_roster

    show_roster(load_roster(roster, now=_now()), roster, as_json=as_json)


def check_command(roster: RosterFolder, as_json: AsJson = False) -> None:
    """Check a roster as every command does, and say how long it holds."""
    from not_fed.trust.roster import load_roster

    show_roster(load_roster(roster, now=_now()), roster, as_json=as_json, with_members=False)


def _show_stewards(roster: Path, *, as_json: bool) -> None:
    from not_fed.trust.diff import steward_fingerprint
    from not_fed.trust.draft import old_people
    from not_fed.trust.people import majority
    from not_fed.trust.takeover import trusted

    people = old_people(trusted(roster, now=_now(), accept_expired=True)[1])
    found = {name: steward_fingerprint(keys) for name, keys in sorted(people.items())}
    result = {
        "schema": "not-fed/stewards/1", "needed": majority(len(people)),
        "stewards": [{"name": name, "fingerprint": value} for name, value in found.items()],
    }  # fmt: skip
    show(result, as_json=as_json, lines=[("needed", f"{majority(len(people))} of {len(people)}"), *found.items()])


def _show_plans(roster: Path, *, as_json: bool) -> None:
    from not_fed.trust.diff import plan_words
    from not_fed.trust.roster import load_roster

    trusted = load_roster(roster, now=_now())
    lines = [("removed", ", ".join(sorted(trusted.removed_runs)))] if trusted.removed_runs else []
    for run, plan in sorted(trusted.plans.items()):
        lines += [("run", run), ("digest", plan.sha256)]
        lines += [(kind.removeprefix("plan-"), text) for kind, text in plan_words(plan)]
    result = {
        "schema": PLANS_SCHEMA, "plans": [plan_facts(plan) for _, plan in sorted(trusted.plans.items())],
        "removed": sorted(trusted.removed_runs),
    }  # fmt: skip
    show(result, as_json=as_json, lines=lines or [("plans", "none")])


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
