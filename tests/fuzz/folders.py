"""Targets: rosters, drafts, logs: files, and folders in which one file was changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from tuf.api.serialization import SerializationError

from not_fed import canonical
from not_fed.age import (
    BadContainer,
)
from not_fed.errors import NotFedError
from not_fed.trust.ceremony import Proposal, open_draft
from not_fed.trust.log import verify_proof
from not_fed.trust.log_checkpoint import stored_checkpoint, verify_checkpoint
from not_fed.trust.log_proof import checkpoint_in, read_consistency, read_proof, write_consistency, write_proof
from not_fed.trust.log_sources import read_source
from not_fed.trust.members import member_entry, read_roster
from not_fed.trust.roster import renew_roster, update_roster
from tests.fuzz.mutations import as_bytes, as_json
from tests.fuzz.target import NOW, ROSTER_NOW, federation, keeper, scratch
from tests.support.logs import ORIGIN, leaf
from tests.support.plans import plans_file, sum_plan
from tests.support.rosters import Council, forge_draft, signers
from tests.support.trust import NOW as SUPPORT_NOW
from tests.support.trust import Site, days, listing
from tests.support.vectors import SEALED, Vector

NO_RECALLS = b'{"format":"not-fed.recalls/1","recalls":[]}'


def roster_seed() -> bytes:
    said = Vector.load(SEALED / "opened-signed-with-former-keys.json")
    return canonical.dumps({"format": "not-fed.roster/1", "federation": "lowlands", "members": said.entries()})


def run_roster(data: bytes) -> None:
    roster = read_roster(data, NO_RECALLS, version=1, expires_at=NOW)
    for name, member in roster.members.items():
        assert member.name == name
        assert len(member.fingerprint) >= 64
        member.is_current(NOW)


def run_recalls(data: bytes) -> None:
    roster = read_roster(roster_seed(), data, version=1, expires_at=NOW)
    assert set(roster.recalls) == {entry["organ_sha256"] for entry in json.loads(data)["recalls"]}


@cache
def four_sites_and_hub() -> bytes:
    made = [Site.make(name).public for name in ("clinic", "hub", "lab", "north", "ward")]
    entries = [member_entry(each, roles=["author", "relay"], now=NOW, valid_for=days(9)).model_dump() for each in made]
    return canonical.dumps({"format": "not-fed.roster/1", "federation": "lowlands", "members": entries})


def plans_seeds() -> list[bytes]:
    plans = [sum_plan(), sum_plan(run="summer", blind=True, min_sites=4, max_weight=9, vanish=0)]
    return [canonical.dumps(plans_file(*(plan.model_dump(mode="json") for plan in plans), removed=["winter"]))]


def run_plans(data: bytes) -> None:
    roster = read_roster(four_sites_and_hub(), NO_RECALLS, data, version=1, expires_at=NOW)
    for run, plan in roster.plans.items():
        assert (plan.run, plan.federation) == (run, "lowlands")
        assert plan.thresholds().min_sites >= plan.collude + 2
        assert {plan.coordinator, *plan.sites} <= set(roster.members)
    assert not set(roster.plans) & roster.removed_runs


@cache
def rosters() -> tuple[Path, Path]:
    """A site's folder at version 1, and the stewards' at version 2."""
    made, site = federation(), scratch() / "site"
    shutil.copytree(made.folder, site)
    renew_roster(made.folder, steward=made.steward, now=ROSTER_NOW)
    return site, made.folder / "repository"


def repository_seeds() -> list[bytes]:
    folder = rosters()[1]
    files = sorted(path for path in folder.rglob("*.json") if path.is_file())
    return [str(path.relative_to(folder)).encode() + b"\n" + path.read_bytes() for path in files]


def as_named_json(data: bytes, others: Sequence[bytes], random: Any) -> bytes:  # noqa: ANN401
    """A file's name, a line feed, and JSON."""
    name, _, content = data.partition(b"\n")
    return name + b"\n" + as_json(content, [other.partition(b"\n")[2] for other in others], random)


def run_repository(data: bytes) -> None:
    """A newer roster, in which one file was changed by whoever carried it."""
    name, _, content = data.partition(b"\n")
    known = {seed.partition(b"\n")[0] for seed in repository_seeds()}
    site, source = scratch() / "site-copy", scratch() / "carried-roster"
    for copy, original in zip((site, source), rosters(), strict=True):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(original, copy)
    before = listing(site)
    (source / (name if name in known else min(known)).decode()).write_bytes(content)
    try:
        roster = update_roster(site, source=source, now=ROSTER_NOW)
    except NotFedError:
        assert listing(site) == before, "a refused roster left something behind"
        raise
    assert set(roster.members) == {"clinic", "hub", "lab"}, "another roster than the stewards signed"
    assert roster.members == federation().roster.members


@cache
def council() -> tuple[Council, Path]:
    """Three stewards, and a draft by one of them."""
    made = Council.make(scratch() / "council")
    made.propose("alice")
    return made, made.of("alice") / "draft"


def draft_seeds() -> list[bytes]:
    folder = council()[1]
    files = sorted(path for path in folder.rglob("*.json") if path.is_file())
    return [str(path.relative_to(folder)).encode() + b"\n" + path.read_bytes() for path in files]


def run_draft(data: bytes) -> None:
    """A draft in which one file was changed by whoever carried it to the next steward."""
    name, _, content = data.partition(b"\n")
    known = {seed.partition(b"\n")[0] for seed in draft_seeds()}
    made, original = council()
    draft = scratch() / "carried-draft"
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(original, draft)
    (draft / (name if name in known else min(known)).decode()).write_bytes(content)
    show(open_draft(made.of("bob"), draft=draft, now=SUPPORT_NOW))


def signed_draft_seeds() -> list[bytes]:
    parts = {path.name: json.loads(path.read_bytes())["signed"] for path in (council()[1] / "metadata").iterdir()}
    return [json.dumps({name.removesuffix(".json").split(".")[-1]: part for name, part in parts.items()}).encode()]


def run_signed_draft(data: bytes) -> None:
    """A steward's own hostile draft: what is signed says anything, and her signatures hold."""
    made, original = council()
    draft = scratch() / "hostile-draft"

    def change(values: dict[str, dict[str, Any]]) -> None:
        said = json.loads(data)
        values.update({name: said[name] for name in values})

    try:
        forge_draft(original, draft, signers([made.steward("alice")]), change)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SerializationError) as error:
        raise BadContainer.because(f"what TUF's own library does not write: {error}") from None
    show(open_draft(made.of("bob"), draft=draft, now=SUPPORT_NOW))


def show(proposal: Proposal) -> None:
    """What the next steward sees before signing."""
    assert proposal.draft.version == 2
    assert proposal.changes
    assert len(proposal.progress) >= 1


def note_seeds() -> list[bytes]:
    made = keeper()
    return [made.note, made.signed_note(size=1), made.signed_note(size=0), made.signed_note(timestamp=1 << 62),
            made.signed_note(lines="extension\n"), made.signed_note(size="01")]  # fmt: skip


def run_note(data: bytes) -> None:
    with suppress(NotFedError):
        assert stored_checkpoint(data, where="note").note == data
    later = keeper().now + timedelta(days=1)
    signed_note = verify_checkpoint(data, keys=keeper().keys, origin=ORIGIN, now=later)
    assert signed_note.text() == data[: data.index(b"\n\n") + 1]


def proof_seeds() -> list[bytes]:
    return [keeper().log().proof(leaf(number)) for number in (0, 3, 6)]


def run_proof(data: bytes) -> None:
    proof = read_proof(data)
    assert write_proof(index=proof.index, path=proof.path, note=proof.note) == data
    verify_proof(data, entry=leaf(3), keys=keeper().keys, origin=ORIGIN, now=keeper().now)


def consistency_seeds() -> list[bytes]:
    return [keeper().log().consistency_text(size) for size in (0, 1, 3, 7)]


def run_consistency(data: bytes) -> None:
    note, _ = checkpoint_in(data)
    proof = read_consistency(data)
    assert proof.note == note
    assert write_consistency(old_size=proof.old_size, path=proof.path, note=proof.note) == data


def log_seeds() -> list[bytes]:
    folder = keeper().folder
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [str(path.relative_to(folder)).encode() + b"\n" + path.read_bytes() for path in files]


def as_named_bytes(data: bytes, others: Sequence[bytes], random: Any) -> bytes:  # noqa: ANN401
    """A file's name, a line feed, and bytes."""
    name, _, content = data.partition(b"\n")
    return name + b"\n" + as_bytes(content, [other.partition(b"\n")[2] for other in others], random)


def run_log_folder(data: bytes) -> None:
    """A log's folder in which one file was changed by whoever carried it."""
    name, _, content = data.partition(b"\n")
    known = {seed.partition(b"\n")[0] for seed in log_seeds()}
    folder = scratch() / "carried"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(keeper().folder, folder)
    (folder / (name if name in known else min(known)).decode()).write_bytes(content)
    log = read_source(folder).folder
    assert log is not None
    log.audit()
    log.proof(leaf(3))
