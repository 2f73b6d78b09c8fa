"""A new coordinator's home: keys, certificate, the plan and the deployment as files to read and change, an invitation.

What has to be decided is decided before anything is written; the home appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import tomllib
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from pydantic import Field

import not_fed
from not_fed import files, settings
from not_fed.coordinator.deployment import DEPLOYMENT_FILE, Deployment, load_deployment
from not_fed.coordinator.nodes import FOLDER as NODES
from not_fed.coordinator.plan import PLAN_FILE
from not_fed.coordinator.state import CoordinatorState
from not_fed.envelope.invitation import SUFFIX, Invitation, split_address, write_invitation
from not_fed.envelope.task import Mode, ProposedPrivacy, Training
from not_fed.errors import InputError
from not_fed.home import new_home
from not_fed.keys import PublicIdentity, Secret, create_keys
from not_fed.keys.identity import check_name
from not_fed.processes import tls
from not_fed.processes.bundle import expected_bundle_sha256
from not_fed.settings import Name, Pair, Settings, Sha256

WORK_FACTOR = 8  # the pass phrase is 256 random bits: stretching it protects nothing
TLS = "tls"
CERTIFICATE_DAYS = 398  # the longest that common clients take
LOOPBACK = ("localhost", "127.0.0.1")
_MAX_PEM_BYTES = 64 << 10
_SITES = re.compile(r"^sites\s*=\s*\[[^\]]*\]", re.MULTILINE)


class GivenFiles(InputError):
    """A certificate, its key and its authority do not come together."""

    code = "certificate-incomplete"


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A certificate that the administrator brought.

    Attributes:
        ca: what sites check it against; None: an authority that every machine knows.
    """

    certificate: Path
    key: Path
    ca: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the administrator of a new coordinator says; the rest has defaults that the files show."""

    name: str
    federation: str
    address: str
    listen: str | None = None
    base: str
    base_sha256: str
    span: tuple[int, int]
    mode: Mode = "bank"
    rounds: int = 2
    run: str = "run-1"
    privacy: ProposedPrivacy | None = None
    given: Given | None = None
    training: Training = field(default_factory=lambda: Training(lr=2e-3, epochs=1, batch_tokens=1024, max_tokens=256))

    def __post_init__(self) -> None:
        """Refuse what cannot be before keys are made; raises BadName, BadAddress."""
        check_name(self.name)
        check_name(self.federation)
        for address in (self.address, self.listening):
            split_address(address)

    @property
    def listening(self) -> str:
        """Where the gateway listens: on every interface, at the address's port, unless something else was said."""
        return self.listen or f"0.0.0.0:{split_address(self.address)[1]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Created:
    """What was made, to be shown."""

    identity: PublicIdentity
    invitation: Path
    invitation_fingerprint: str
    certificate: tls.Facts


def create_coordinator(home: Path, wishes: Wishes, *, work_factor: int = WORK_FACTOR, now: datetime) -> Created:
    """Make the folder `home`: whole, or not at all.

    Raises:
        OutputExists: there is something in it. BadSettings, GivenFiles; CertificateExpired: the given one.
    """
    with new_home(home, last=DEPLOYMENT_FILE) as part:
        passphrase = secrets.token_hex(32).encode()
        files.write_atomic(part / "passphrase", passphrase + b"\n")
        identity = create_keys(
            part / "keys", name=wishes.name, passphrase=Secret(passphrase), work_factor=work_factor, log=True
        )
        plan = _plan_text(wishes)
        settings.check(_NewPlan, tomllib.loads(plan), where=PLAN_FILE)
        files.write_atomic(part / PLAN_FILE, plan.encode())
        (part / NODES).mkdir(mode=0o700)
        facts = add_deployment(
            part, address=wishes.address, listen=wishes.listening, base=wishes.base, given=wishes.given, now=now
        )
        fingerprint = invite(part, out=part / f"{wishes.name}{SUFFIX}")
    return Created(
        identity=identity, invitation=home / f"{wishes.name}{SUFFIX}", invitation_fingerprint=fingerprint,
        certificate=facts,
    )  # fmt: skip


def add_deployment(
    home: Path, *, address: str, listen: str, base: str, given: Given | None = None, now: datetime
) -> tls.Facts:
    """Make a certificate (or take the given one) and `coordinator.toml` in a home that has keys and a plan.

    Raises:
        GivenFiles, CertificateExpired: the given certificate cannot serve. OutputExists: there is one already.
    """
    if given is None:
        certificate = _own_certificate(home / TLS, host=split_address(address)[0])
    else:
        certificate = _check_given(given, now=now)
    text = _deployment_text(address=address, listen=listen, base=base, given=given)
    settings.check(Deployment, tomllib.loads(text), where=DEPLOYMENT_FILE)
    files.write_atomic(home / DEPLOYMENT_FILE, text.encode())
    return tls.read_certificate(certificate)


def own_hosts(host: str) -> tuple[str, ...]:
    """Under which names an own certificate is good: the address's, and on one machine all of the loopback's."""
    return LOOPBACK if host in LOOPBACK else (host,)


def invite(home: Path, *, out: Path, overwrite: bool = False) -> str:
    """Write the invitation of the coordinator at `home`; its fingerprint.

    Raises:
        BadSettings; NotAFile: the home or its certificate authority is not there. OutputExists.
    """
    deployment = require_deployment(home)
    plan = settings.load(_NewPlan, home / PLAN_FILE)
    ca, spans = deployment.tls.ca, tuple(plan.spans) if plan.span is None else (plan.span,)
    invitation = Invitation(
        v=1, federation=plan.federation, coordinator=plan.name, address=deployment.address,
        ca_certificate=None if ca is None else files.read_regular(home / ca, max_bytes=_MAX_PEM_BYTES).decode("ascii"),
        bundle_sha256=expected_bundle_sha256(), base=deployment.base, base_sha256=plan.base_sha256, spans=spans,
        mode=plan.mode, rounds=plan.rounds, privacy=plan.privacy, not_fed=not_fed.__version__,
    )  # fmt: skip
    return write_invitation(invitation, out=out, overwrite=overwrite)


def read_names(home: Path) -> tuple[str, str]:
    """The federation's name and the coordinator's own, of a home whose plan may still lack sites."""
    require_deployment(home)
    plan = settings.load(_NewPlan, home / PLAN_FILE)
    return plan.federation, plan.name


def require_deployment(home: Path) -> Deployment:
    """The deployment of a coordinator's home; raises NotAFile where there is none."""
    deployment = load_deployment(home)
    if deployment is None:
        raise files.NotAFile(
            where=str(home / DEPLOYMENT_FILE), expected="the home of a coordinator", got="none",
            hint="not-fed coordinator init makes one",
        )  # fmt: skip
    return deployment


def add_site(home: Path, site: str) -> bool:
    """Put an enrolled site's name into the plan's `sites`, in the file that its administrator reads.

    Returns:
        False when it has to be done by hand: the run has begun, or the line was rewritten in another way.
    """
    path = home / PLAN_FILE
    text = files.read_regular(path, max_bytes=settings.MAX_SETTINGS_BYTES).decode()
    plan = settings.load(_NewPlan, path)
    if site in plan.sites:
        return True
    if CoordinatorState(home).outcome(plan.run) is not None:
        return False
    sites = sorted([*plan.sites, site])
    changed = _SITES.sub(lambda _: f"sites = {json.dumps(sites)}", text, count=1)
    try:
        if tomllib.loads(changed) != {**tomllib.loads(text), "sites": sites}:
            return False
    except tomllib.TOMLDecodeError:
        return False
    files.write_atomic(path, changed.encode(), overwrite=True)
    return True


class _NewPlan(Settings):
    """A `FederationPlan` whose list of sites may still be short: before anybody is enrolled."""

    name: Name
    federation: Name
    run: Name
    mode: Mode
    sites: list[Name] = Field(default=[])
    rounds: int
    base_sha256: Sha256
    base: str | None = None
    span: Pair | None = None
    spans: list[Pair] = Field(default=[])
    training: Training
    privacy: ProposedPrivacy | None = None

    model_config = Settings.model_config | {"extra": "ignore"}


def _own_certificate(folder: Path, *, host: str) -> Path:
    """A certificate authority of one coordinator, and the gateway's certificate by it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    tls.create_ca(folder)
    return tls.issue_server_certificate(folder, ca=folder, hosts=own_hosts(host), days=CERTIFICATE_DAYS, name="gateway")


def _check_given(given: Given, *, now: datetime) -> Path:
    for path in (given.certificate, given.key, *([given.ca] if given.ca else [])):
        if not os.access(path, os.R_OK):
            raise GivenFiles(
                where=str(path), expected="a file that can be read", got="none", hint="name certificate, key and --ca"
            )
    tls.require_current(given.certificate, now)
    tls.require_pair(given.certificate, given.key)
    return given.certificate


def _deployment_text(*, address: str, listen: str, base: str, given: Given | None) -> str:
    if given is None:
        tables = {
            "certificate": "tls/gateway.crt",
            "key": "tls/gateway.key",
            "ca": "tls/ca.crt",
            "ca_key": "tls/ca.key",
        }
    else:
        tables = {"certificate": str(given.certificate.resolve()), "key": str(given.key.resolve())}
        if given.ca is not None:
            tables["ca"] = str(given.ca.resolve())
    lines = "\n".join(f"{key} = {_text(value)}" for key, value in tables.items())
    return _DEPLOYMENT.format(address=_text(address), listen=_text(listen), base=_text(base), tls=lines)


def _plan_text(wishes: Wishes) -> str:
    privacy = wishes.privacy
    training = wishes.training
    return _PLAN.format(
        name=_text(wishes.name), federation=_text(wishes.federation), run=_text(wishes.run), mode=_text(wishes.mode),
        rounds=wishes.rounds, base_sha256=_text(wishes.base_sha256), span=list(wishes.span),
        base=f"base = {_text(wishes.base)}" if wishes.mode != "bank" else f"# base = {_text(wishes.base)}",
        training="\n".join(f"{key} = {_text(value)}" for key, value in training.model_dump().items()),
        off="# " if privacy is None else "", epsilon=privacy.epsilon if privacy else 3.0,
        delta=privacy.delta if privacy else 1e-5, sum_off="" if wishes.mode == "secure-sum" else "# ",
    )  # fmt: skip


def _text(value: object) -> str:
    """JSON's spelling of text and numbers, which TOML reads."""
    return json.dumps(value, ensure_ascii=False)


_PLAN = """\
# What this coordinator proposes to its sites. Each of them holds it against its own policy.
name = {name}
federation = {federation}
run = {run}  # once a run has begun, its plan stays: for another plan choose another name
mode = {mode}  # "bank": sites share organs with each other; "trusted": this coordinator opens and averages them;
# "secure-sum": it sees the sum of what they send, and no single one; at least three sites
sites = []  # who takes part; `not-fed coordinator enrol` adds names until the run has begun
rounds = {rounds}
span = {span}
base_sha256 = {base_sha256}
{base}  # needed where this coordinator makes the aggregate: in modes "trusted" and "secure-sum"

# min_answers = 2            # a round with fewer organs is closed as such, and opened again
# round_timeout_s = 3600.0   # how long a round waits for its last answer
# join_timeout_s = 120.0     # how long the run waits for sites to connect at its start

[training]
{training}

{off}[privacy]  # what each site is asked for; its own policy may want more
{off}epsilon = {epsilon}
{off}delta = {delta}

{sum_off}[secure_sum]  # counts once the stewards have signed it: not-fed roster plan
{sum_off}collude = 1  # how many sites may tell this coordinator everything without another's organ being opened
{sum_off}vanish = 0   # how many helpers of a round may be lost after the uploads without losing the round
{sum_off}quorum = 0   # how many sites have to accept a round's aggregate; 0 without a vote
{sum_off}blind = false  # true: this coordinator cannot read the sum either; needs a quorum
"""

_DEPLOYMENT = """\
# How sites reach this coordinator, and where it keeps what it relays.
address = {address}  # what the invitation says
listen = {listen}  # on this machine; everything else binds to 127.0.0.1 only
base = {base}  # the base model's name, for invitations

[tls]  # with ca_key the certificate is this coordinator's own, and renewed 30 days before its end
{tls}

[bank]
storage = "bank"  # a folder, relative to this one, or "s3://bucket/prefix"
# inline_bytes = 4194304  # larger sealed organs go through the bank
# keep_days = 30          # how long one is kept that no open run needs
# max_bytes = 1099511627776

[gateway]
# concurrent_chunks = 8
# slow_client_s = 30.0
"""

__all__ = [
    "CERTIFICATE_DAYS", "Created", "Given", "GivenFiles", "Wishes", "add_deployment", "add_site", "create_coordinator",
    "invite", "own_hosts", "read_names", "require_deployment",
]  # fmt: skip
