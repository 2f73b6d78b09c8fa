"""coordinator: init, enrol, invite, serve, status."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from not_fed.cli import drop
from not_fed.cli.options import BASE_HELP
from not_fed.cli.output import AsJson, say, show
from not_fed.errors import UsageError

if TYPE_CHECKING:
    from not_fed.coordinator.creating import Created, Given
    from not_fed.coordinator.nodes import Enrolled
    from not_fed.envelope.task import ProposedPrivacy

CREATED_SCHEMA = "not-fed/coordinator/1"
ENROLLED_SCHEMA = "not-fed/enrolled/1"
INVITED_SCHEMA = "not-fed/invited/1"
_COMPARE = """\b
Compare a fingerprint over another channel than the file came: by telephone, or on paper, with somebody whose voice or
face you know. The site reads the one that `site init` printed; the two must be the same to the last letter."""

HomeFolder = Annotated[Path, typer.Argument(metavar="HOME", help="The coordinator's folder.")]


class ModeName(StrEnum):
    """How sites share what they train."""

    BANK = "bank"
    SECURE_SUM = "secure-sum"
    TRUSTED = "trusted"


def register(parent: typer.Typer) -> None:
    """Add the commands of this group."""
    group = typer.Typer(
        no_args_is_help=True, rich_markup_mode=None, help="A federation's coordinator: keys, enrolments, serving."
    )
    group.command("init")(init_command)
    group.command("enrol", epilog=_COMPARE)(enrol_command)
    group.command("invite")(invite_command)
    group.command("serve")(serve_command)
    group.command("status")(status_command)
    drop.register_coordinator(group)
    parent.add_typer(group, name="coordinator")


def init_command(
    home: HomeFolder,
    name: Annotated[str, typer.Option("--name", help="The coordinator's name on the roster.")],
    federation: Annotated[str, typer.Option("--federation", help="The federation's name.")],
    address: Annotated[str, typer.Option("--address", metavar="HOST:PORT", help="Where sites will find it.")],
    listen: Annotated[
        str | None,
        typer.Option("--listen", metavar="HOST:PORT", help="Where it listens. [default: 0.0.0.0, at that port]"),
    ] = None,
    base: Annotated[str, typer.Option("--base", help=BASE_HELP)] = "smollm2-135m",
    base_sha256: Annotated[
        str | None, typer.Option("--base-sha256", help="Its digest (not-fed show); then it is not read here.")
    ] = None,
    span: Annotated[
        str, typer.Option("--span", help="Layers START:STOP, half-open: 20:23 is 20, 21, 22.")
    ] = "26:29",
    mode: Annotated[ModeName, typer.Option("--mode", help="How sites share what they train.")] = ModeName.BANK,
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=10_000, help="Rounds of a run.")] = 2,
    epsilon: Annotated[
        float | None,
        typer.Option("--epsilon", min=0, max=10, help="Ask sites for differential privacy. [default: 3 in mode bank]"),
    ] = None,
    delta: Annotated[float, typer.Option("--delta", min=0, max=0.01, help="With --epsilon.")] = 1e-5,
    plain: Annotated[
        bool, typer.Option("--plain", help="Ask for none: organs then tell their recipients about single records.")
    ] = False,
    certificate: Annotated[Path | None, typer.Option("--certificate", help="A certificate of your own (PEM).")] = None,
    key: Annotated[Path | None, typer.Option("--key", help="Its private key (PEM).")] = None,
    ca: Annotated[
        Path | None, typer.Option("--ca", help="Its authority (PEM), where not every machine knows it.")
    ] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Make a coordinator's folder: keys, certificate, plan and settings to read and change, an invitation for sites."""
    from not_fed.coordinator.creating import Wishes, create_coordinator
    from not_fed.organ.anatomy import Span

    layers = Span.parse(span)
    wishes = Wishes(
        name=name, federation=federation, address=address, listen=listen, base=base,
        base_sha256=base_sha256 or _digest_of(base), span=(layers.start, layers.stop), mode=mode.value, rounds=rounds,
        privacy=_privacy(epsilon, delta, mode=mode, plain=plain), given=_given(certificate, key, ca),
    )  # fmt: skip
    created = create_coordinator(home, wishes, now=datetime.now(UTC))
    _show_created(home, created, mode=mode, as_json=as_json)


def enrol_command(
    home: HomeFolder,
    enrolments: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Enrolment files of sites.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Let a site's new keys take the place of those it enrolled with.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Take sites in: their enrolments are verified and kept, their names go into the plan.

    That opens nothing yet: the gateway lets a site in once the stewards' roster has it, with these very keys.
    """
    from not_fed import files
    from not_fed.coordinator.creating import add_site
    from not_fed.coordinator.nodes import Nodes
    from not_fed.coordinator.plan import PLAN_FILE
    from not_fed.envelope.enrolment import MAX_ENROLMENT_BYTES

    names, nodes, now = _names(home), Nodes(home), datetime.now(UTC)
    lines = {path: files.read_regular(path, max_bytes=MAX_ENROLMENT_BYTES) for path in enrolments}
    taken = [
        nodes.enrol(line, federation=names[0], coordinator=names[1], now=now, where=path.name, replace=replace)
        for path, line in lines.items()
    ]
    by_hand = [one.enrolment.site for one in taken if not add_site(home, one.enrolment.site)]
    _show_enrolled(nodes.identity_path, taken, as_json=as_json)
    if by_hand:
        say(f"not in the plan: {', '.join(by_hand)}; put them into sites of {home / PLAN_FILE}, under a new run's name")


def invite_command(
    home: HomeFolder,
    out: Annotated[Path, typer.Option("--out", help="The file to write.")],
    as_json: AsJson = False,
) -> None:
    """Write the invitation again, as the plan and the certificate are now."""
    from not_fed.coordinator.creating import invite

    fingerprint = invite(home, out=out)
    show(
        {"schema": INVITED_SCHEMA, "invitation": str(out), "fingerprint": fingerprint}, as_json=as_json,
        lines=[("invitation", str(out)), ("fingerprint", fingerprint)],
    )  # fmt: skip


def serve_command(
    home: HomeFolder,
    until_complete: Annotated[
        bool, typer.Option("--until-complete", help="End when the plan's run is complete, or has stopped for good.")
    ] = False,
) -> None:
    """Serve: the gateway for sites on the one port that is open, Flower's processes behind it, and the run.

    Whatever of it is killed goes on with the round that was open. SIGTERM or ^C ends it in order.
    """
    from not_fed.coordinator.serve import serve

    serve(home, until_complete=until_complete, say=_say_at)


def status_command(home: HomeFolder, as_json: AsJson = False) -> None:
    """Show rounds, sites and what is awaited from whom, the bank, and problems; whether it serves or not."""
    from not_fed.cli.coordinator_status import lines_of
    from not_fed.coordinator.status import coordinator_status

    status = coordinator_status(home)
    show(status, as_json=as_json, lines=lines_of(status))


def _say_at(message: str) -> None:
    """A line with its time, for a journal that has none of its own."""
    say(f"{datetime.now().astimezone():%H:%M:%S} {message}")


def _digest_of(base: str) -> str:
    from not_fed.cli.progress import shown
    from not_fed.resources.bases import find_base

    with shown() as progress:
        return find_base(base, progress=progress).sha256


def _privacy(epsilon: float | None, delta: float, *, mode: ModeName, plain: bool) -> ProposedPrivacy | None:
    """What the plan asks for: where sites see each other's organs, differential privacy, unless told otherwise."""
    from not_fed.envelope.task import ProposedPrivacy

    if plain and epsilon is not None:
        raise UsageError(where="--plain", expected="it or --epsilon", got="both", hint="leave one of them out")
    if epsilon is None:
        return ProposedPrivacy(epsilon=3.0, delta=delta) if mode is ModeName.BANK and not plain else None
    if not epsilon or not 0 < delta < 0.01:
        raise UsageError(
            where="--epsilon, --delta", expected="both above 0, delta below 0.01", got=f"{epsilon} and {delta}",
            hint="for example --epsilon 3 --delta 1e-5",
        )  # fmt: skip
    return ProposedPrivacy(epsilon=epsilon, delta=delta)


def _given(certificate: Path | None, key: Path | None, ca: Path | None) -> Given | None:
    from not_fed.coordinator.creating import Given

    if certificate is not None and key is not None:
        return Given(certificate=certificate, key=key, ca=ca)
    if certificate is not None or key is not None or ca is not None:
        raise UsageError(
            where="--certificate, --key, --ca", expected="a certificate and its key, or neither",
            got="one without the other", hint="without them the coordinator makes its own",
        )  # fmt: skip
    return None


def _names(home: Path) -> tuple[str, str]:
    """The federation's name and the coordinator's own."""
    from not_fed.coordinator.creating import read_names

    return read_names(home)


def _show_created(home: Path, created: Created, *, mode: ModeName, as_json: bool) -> None:
    from not_fed.canonical import format_time

    roles = "relay" if mode == ModeName.BANK else "relay,aggregator"
    until = format_time(created.certificate.not_after)
    result: dict[str, Any] = {
        "schema": CREATED_SCHEMA, "folder": str(home), "name": created.identity.name,
        "fingerprint": created.identity.fingerprint, "invitation": str(created.invitation),
        "invitation_fingerprint": created.invitation_fingerprint,
        "certificate": {"fingerprint": created.certificate.fingerprint, "not_after": until},
        "member": f"{home / 'keys' / 'identity.json'}:{roles}",
    }  # fmt: skip
    lines = [
        ("folder", str(home)), ("name", created.identity.name), ("fingerprint", created.identity.fingerprint),
        ("invitation", str(created.invitation)), ("fingerprint", created.invitation_fingerprint),
        ("certificate", f"until {until}"),
    ]  # fmt: skip
    show(result, as_json=as_json, lines=lines)
    if not as_json:
        say(f"hand {created.invitation} to every site; they read its fingerprint back to you over another channel")
        say(f"hand {home / 'keys' / 'identity.json'} to the stewards, for: not-fed roster create R")
        say(f"  --member identity.json:{roles}")


def _show_enrolled(identity_path: Any, taken: list[Enrolled], *, as_json: bool) -> None:  # noqa: ANN401  a bound method
    rows = [
        {
            "site": one.enrolment.site, "not_fed": one.enrolment.not_fed, "fingerprint": one.fingerprint,
            "identity_fingerprint": one.identity.fingerprint,
            "member": f"{identity_path(one.enrolment.site)}:author,receiver",
        }
        for one in taken
    ]  # fmt: skip
    lines = []
    for row in rows:
        lines += [
            ("site", f"{row['site']}, not-fed {row['not_fed']}"), ("enrolment", row["fingerprint"]),
            ("identity", row["identity_fingerprint"]), ("for stewards", f"--member {row['member']}"),
        ]  # fmt: skip
    show({"schema": ENROLLED_SCHEMA, "enrolled": rows}, as_json=as_json, lines=lines)
