"""A new site's home: keys, a policy to read and change, the connection, and the enrolment for the coordinator.

What has to be decided is decided before anything is written; the home appears whole or not at all.
"""

from __future__ import annotations

import json
import secrets
import tomllib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import not_fed
from not_fed import files, settings
from not_fed.envelope.enrolment import enrolment_fingerprint, new_enrolment
from not_fed.envelope.invitation import (
    MAX_INVITATION_BYTES,
    Invitation,
    invitation_fingerprint,
    read_invitation,
)
from not_fed.home import Home, new_home
from not_fed.keys import PublicIdentity, Secret, create_keys
from not_fed.keys.identity import MAX_IDENTITY_BYTES, check_name
from not_fed.keys.node_key import create_node_key
from not_fed.site.connection import CONNECTION_FILE, write_connection
from not_fed.site.policy import POLICY_FILE, SitePolicy

WORK_FACTOR = 8  # the pass phrase is 256 random bits and lies beside the keys: stretching it protects nothing
CA_FILE, NODE_KEY, NODE_PUBLIC = "coordinator.crt", "node.key", "node.pub"
ENROLMENT_SUFFIX = ".enrolment"


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """What a site hands to its coordinator, and the words to compare."""

    enrolment: Path
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatedSite:
    """What was made, to be shown."""

    identity: PublicIdentity
    enrolled: Enrolled
    invitation: Invitation
    invitation_fingerprint: str


def create_site(
    home: Path, *, invitation: Path, name: str, data: Path, text_field: str | None = None, base: str | None = None,
    work_factor: int = WORK_FACTOR, now: datetime,
) -> CreatedSite:  # fmt: skip
    """Make the folder `home`: whole, or not at all.

    Args:
        invitation: the coordinator's file.
        name: what the site will be called on the roster.
        data: the records; they are named by their absolute path, and neither copied nor read.
        base: where this site has the base model, when not under the name that the invitation gives.
    Raises:
        OutputExists: there is something in it. BadInvitation, BadName; NotAFile: no such records.
    """
    invited, content = read_invitation(invitation), files.read_regular(invitation, max_bytes=MAX_INVITATION_BYTES)
    check_name(name)
    files.open_regular(data).close()
    policy = policy_text(invited, name=name, data=data.resolve(), text_field=text_field, base=base)
    settings.check(SitePolicy, tomllib.loads(policy), where=POLICY_FILE)
    with new_home(home, last=CONNECTION_FILE) as part:
        passphrase = secrets.token_hex(32).encode()
        files.write_atomic(part / "passphrase", passphrase + b"\n")
        identity = create_keys(part / "keys", name=name, passphrase=Secret(passphrase), work_factor=work_factor)
        files.write_atomic(part / POLICY_FILE, policy.encode())
        files.write_atomic(part / f"{invited.coordinator}.invitation", content)
        enrolled = add_connection(part, invited, now=now)
    enrolled = Enrolled(enrolment=home / enrolled.enrolment.name, fingerprint=enrolled.fingerprint)
    return CreatedSite(
        identity=identity, enrolled=enrolled, invitation=invited,
        invitation_fingerprint=invitation_fingerprint(content),
    )  # fmt: skip


def add_connection(home: Path, invitation: Invitation, *, now: datetime) -> Enrolled:
    """Give a home with keys a connection: its own key, the coordinator's address and authority, an enrolment.

    Raises:
        OutputExists: it has one. As `Home.signer`.
    """
    signer = Home(home).signer()
    node_key = create_node_key(home / NODE_KEY)
    files.write_atomic(home / NODE_PUBLIC, f"{node_key}\n".encode(), mode=0o644)
    if invitation.ca_certificate is not None:
        files.write_atomic(home / CA_FILE, invitation.ca_certificate.encode("ascii"), mode=0o644)
    line = new_enrolment(
        federation=invitation.federation,
        identity=files.read_regular(home / "keys" / "identity.json", max_bytes=MAX_IDENTITY_BYTES),
        node_key=node_key, not_fed=not_fed.__version__, signer=signer, now=now,
    )  # fmt: skip
    out = home / f"{signer.name}{ENROLMENT_SUFFIX}"
    files.write_atomic(out, line + b"\n", mode=0o644)
    write_connection(
        home, address=invitation.address, ca=None if invitation.ca_certificate is None else CA_FILE,
        coordinator=invitation.coordinator, federation=invitation.federation,
    )  # fmt: skip
    return Enrolled(enrolment=out, fingerprint=enrolment_fingerprint(line))


def policy_text(
    invitation: Invitation, *, name: str, data: Path, text_field: str | None = None, base: str | None = None
) -> str:
    """`site.toml` as it is for this invitation: what was proposed is permitted, and nothing beyond it.

    Where organs go to other sites, privacy is required even if the invitation proposes none: to train without it is for
    the site's officer to decide, in so many words.
    """
    privacy = invitation.privacy
    return _POLICY.format(
        name=_text(name), federation=_text(invitation.federation), coordinator=_text(invitation.coordinator),
        data=_text(str(data)),
        text_field=f"text_field = {_text(text_field)}" if text_field else '# text_field = "text"',
        base=_text(base or invitation.base), base_sha256=_text(invitation.base_sha256),
        spans=_text([list(span) for span in invitation.spans]), mode=_text(invitation.mode), rounds=invitation.rounds,
        bundle=_text(invitation.bundle_sha256), off="# " if privacy is None and invitation.mode != "bank" else "",
        epsilon=privacy.epsilon if privacy else 3.0, budget=min(10.0, 2 * privacy.epsilon) if privacy else 6.0,
        delta=privacy.delta if privacy else 1e-5,
    )  # fmt: skip


def _text(value: object) -> str:
    """JSON's spelling of text and lists, which TOML reads."""
    return json.dumps(value, ensure_ascii=False)


_POLICY = """\
# What this site enforces. It is read from this disk with each order, and nothing in it comes from the coordinator: an
# order is a proposal, and what asks for more than this is refused. docs/site.md explains every line.
name = {name}
federation = {federation}
coordinator = {coordinator}  # the only one whose orders count
bundle_sha256 = [{bundle}]  # Flower bundles that are accepted; none of them is ever run

data = {data}
{text_field}
base = {base}
base_sha256 = {base_sha256}
spans = {spans}  # layers that may be trained
modes = [{mode}]  # "bank": organs go to the other sites; "trusted": to the coordinator, which averages them;
# "secure-sum": masked changes, of which the coordinator learns the sum, under a plan that the stewards have signed
max_rounds = {rounds}
max_epochs = 2.0  # passes over the records in one round, at most
# partners = ["neurology"]  # the sites that organs are shared with; without it, all whom the stewards admit
metrics_that_may_leave = []  # exact numbers about the training: "steps", "tokens", "records", "loss_first", "loss_last"
# cache_prefix = false  # keep no activations of the records on the disk

# approval = "never"  # "run" or "round": a person agrees first, with `not-fed site approve`
# hours = ["20:00-06:00"]  # local time in which work is done; without it, always
# sum_weight = 1  # how often this site counts in a secure sum, up to the plan's max_weight; "records": their number
# max_parcel_bytes = 8589934592  # no larger sealed organ is taken in
# held_out = "held-out.jsonl"  # records like data that are never trained on, to vote on what a round made

{off}[privacy]  # declared, public, and chosen without looking at the records
{off}required = true  # an order without differential privacy is refused; false: taken as it is
{off}max_epsilon = {epsilon}  # of one run: all its rounds, and all numbers that leave with them
{off}budget = {budget}  # of all runs together, ever, whoever asks
{off}delta = {delta}  # below one over the number of people
{off}# unit = "patient_id"  # the field that names the person; left out: found by its usual names, else one record
{off}sample_rate = 0.1  # share of the records in a step
{off}max_grad_norm = 1.0
{off}divisor = 32.0  # about the expected batch: declared, never counted

# [vote]  # with held_out: accept or refuse what a round made. One bit about those records leaves: docs/voting.md
# allowed = "charged"  # with noise, paid for by the ledger above; "public_by_decision": exact, no epsilon covers it
# tolerance = 0.0  # by how much the loss may rise, in nats a token
# clip = 1.0  # how much one record, or one person, counts at most
# noise_multiplier = 10.0
# least_quorum = 2  # a run in which fewer sites decide is refused
"""
