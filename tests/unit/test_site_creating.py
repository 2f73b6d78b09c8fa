"""A site's home is made from an invitation: what was proposed is permitted, nothing more, and nothing is half made."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import tomllib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from not_fed.coordinator.creating import create_coordinator
from not_fed.coordinator.nodes import Nodes
from not_fed.envelope.enrolment import enrolment_fingerprint, verify_enrolment
from not_fed.envelope.invitation import BadInvitation, read_invitation
from not_fed.envelope.task import ProposedPrivacy
from not_fed.files import NotAFile, OutputExists
from not_fed.keys.identity import BadName
from not_fed.keys.node_key import node_public_key
from not_fed.site.connection import require_connection
from not_fed.site.creating import CreatedSite, add_connection, create_site
from not_fed.site.policy import load_policy
from tests.support.coordinators import BASE, wishes
from tests.support.trust import FEDERATION

COMMAND = str(Path(sys.executable).parent / "not-fed")


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("hub") / "hub"
    create_coordinator(home, wishes(), now=now())
    return home


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "notes.jsonl").write_text('{"text": "a note"}\n')
    return tmp_path / "notes.jsonl"


def create(hub: Path, home: Path, data: Path, **more: str) -> CreatedSite:
    return create_site(home, invitation=hub / "hub.invitation", name="clinic", data=data, now=now(), **more)


def test_a_site_s_home_permits_what_the_invitation_proposes_and_nothing_beyond_it(
    hub: Path, tmp_path: Path, data: Path
) -> None:
    home = tmp_path / "clinic"
    created = create(hub, home, data)
    policy, invited = load_policy(home), read_invitation(hub / "hub.invitation")
    assert (policy.name, policy.federation, policy.coordinator) == ("clinic", FEDERATION, "hub")
    assert policy.bundle_sha256 == [invited.bundle_sha256]
    assert (policy.base_sha256, policy.spans, policy.modes) == (BASE, [(1, 3)], ["bank"])
    assert (policy.max_rounds, policy.metrics_that_may_leave) == (invited.rounds, [])
    assert invited.privacy is None
    assert policy.privacy is not None, "other sites will see its organs, so that plain training is its own decision"
    assert policy.privacy.required
    assert policy.data == str(data.resolve())
    connection = require_connection(home)
    assert connection.address == invited.address
    assert connection.ca is not None
    assert connection.ca.read_text() == invited.ca_certificate
    assert created.invitation_fingerprint
    assert not list(home.glob("**/*.jsonl")), "the records stay where they are"


def test_everything_that_the_template_shows_as_a_comment_can_be_switched_on(
    hub: Path, tmp_path: Path, data: Path
) -> None:
    """A commented default that the policy would refuse is worse than none."""
    from not_fed import settings
    from not_fed.site.policy import SitePolicy

    create(hub, tmp_path / "clinic", data)
    text = (tmp_path / "clinic" / "site.toml").read_text()
    shown = [line.removeprefix("# ") for line in text.splitlines()]
    switched = "\n".join(line for line in shown if "=" in line or line.startswith("["))
    switched = switched.replace("metrics_that_may_leave = []", "metrics_that_may_leave = ['steps']")
    policy = settings.check(SitePolicy, tomllib.loads(switched), where="the template")
    left_out = set(SitePolicy.model_fields) - set(policy.model_fields_set)
    assert left_out == set(), "every setting is shown"
    assert policy.privacy is not None


def test_an_invitation_to_private_training_is_taken_at_its_word(tmp_path: Path, data: Path) -> None:
    home = tmp_path / "hub"
    create_coordinator(home, wishes(privacy=ProposedPrivacy(epsilon=3.0, delta=1e-5)), now=now())
    create(home, tmp_path / "clinic", data)
    privacy = load_policy(tmp_path / "clinic").privacy
    assert privacy is not None
    assert (privacy.required, privacy.max_epsilon, privacy.budget, privacy.delta) == (True, 3.0, 6.0, 1e-5)


def test_a_site_s_secrets_are_its_own(hub: Path, tmp_path: Path, data: Path) -> None:
    home = tmp_path / "clinic"
    create(hub, home, data)
    private = {"passphrase", "node.key", "sign.key", "seal.key"}
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in home.rglob("*") if path.name in private}
    assert modes == dict.fromkeys(private, 0o600)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    secret = (home / "node.key").read_text().splitlines()[2]
    for handed in (home / "clinic.enrolment", home / "node.pub"):
        assert secret not in handed.read_text()


def test_its_enrolment_is_taken_by_the_coordinator_that_invited(hub: Path, tmp_path: Path, data: Path) -> None:
    home = tmp_path / "clinic"
    created = create(hub, home, data)
    line = created.enrolled.enrolment.read_bytes().removesuffix(b"\n")
    enrolment, identity = verify_enrolment(line, where="test")
    assert (enrolment.site, enrolment.federation, identity.name) == ("clinic", FEDERATION, "clinic")
    assert enrolment.node_key == node_public_key(home / "node.key") == (home / "node.pub").read_text().strip()
    assert created.enrolled.fingerprint == enrolment_fingerprint(line)
    taken = Nodes(hub).enrol(line, federation=FEDERATION, coordinator="hub", now=now())
    assert taken.fingerprint == created.enrolled.fingerprint


@pytest.mark.parametrize("home", ["mounted", "new"])
def test_a_home_is_made_whole_or_not_at_all(home: str, hub: Path, tmp_path: Path, data: Path) -> None:
    folder = tmp_path / "homes" / home
    folder.parent.mkdir()
    if home == "mounted":
        folder.mkdir()
    before = sorted(folder.parent.rglob("*"))
    invitation = tmp_path / "altered.invitation"
    invitation.write_bytes((hub / "hub.invitation").read_bytes().replace(b'"v":1', b'"v":2'))
    with pytest.raises(BadInvitation):
        create_site(folder, invitation=invitation, name="clinic", data=data, now=now())
    with pytest.raises(BadName):
        create_site(folder, invitation=hub / "hub.invitation", name="no name", data=data, now=now())
    with pytest.raises(NotAFile):
        create_site(folder, invitation=hub / "hub.invitation", name="clinic", data=tmp_path / "gone", now=now())
    assert sorted(folder.parent.rglob("*")) == before
    create(hub, folder, data)
    with pytest.raises(OutputExists):
        create(hub, folder, data)
    assert not list(folder.parent.glob("**/.new"))


def test_a_home_that_has_keys_gets_a_connection_once(hub: Path, tmp_path: Path, data: Path) -> None:
    home = tmp_path / "clinic"
    create(hub, home, data)
    kept = (home / "node.key").read_bytes()
    with pytest.raises(OutputExists):
        add_connection(home, read_invitation(hub / "hub.invitation"), now=now())
    assert (home / "node.key").read_bytes() == kept


def test_a_coordinator_with_a_public_certificate_is_checked_by_the_machine_s_authorities(
    hub: Path, tmp_path: Path, data: Path
) -> None:
    create(hub, tmp_path / "clinic", data)
    invited = read_invitation(hub / "hub.invitation").model_copy(update={"ca_certificate": None})
    home = tmp_path / "clinic"
    for name in ("connection.toml", "node.key", "node.pub", "coordinator.crt", "clinic.enrolment"):
        (home / name).unlink()
    add_connection(home, invited, now=now())
    assert require_connection(home).ca is None
    assert replace(require_connection(home), ca=None).tls().check_hostname


def test_the_command_shows_what_is_to_be_compared(hub: Path, tmp_path: Path, data: Path) -> None:
    words = ["site", "init", tmp_path / "clinic", "--invitation", hub / "hub.invitation", "--name", "clinic"]
    done = subprocess.run(
        [COMMAND, *words, "--data", data, "--json"], capture_output=True, text=True, check=True
    )  # fmt: skip
    shown = json.loads(done.stdout)
    assert shown["schema"] == "not-fed/site/1"
    line = (tmp_path / "clinic" / "clinic.enrolment").read_bytes().removesuffix(b"\n")
    assert shown["enrolment_fingerprint"] == enrolment_fingerprint(line)
    assert shown["bundle"] == "as this version builds it"
