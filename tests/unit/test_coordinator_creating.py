"""A new coordinator's home, the commands that make it and take sites in, and its certificate over the years."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import stat
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from not_fed.cli import main as command
from not_fed.coordinator.certificates import RENEW_BEFORE, GatewayCertificate
from not_fed.coordinator.creating import Given, GivenFiles, add_site, create_coordinator
from not_fed.coordinator.deployment import Deployment, load_deployment
from not_fed.coordinator.nodes import Nodes
from not_fed.coordinator.plan import load_plan
from not_fed.coordinator.state import CoordinatorState
from not_fed.envelope.invitation import invitation_fingerprint, read_invitation
from not_fed.files import OutputExists
from not_fed.home import Home
from not_fed.keys import load_public_identity
from not_fed.processes.bundle import expected_bundle_sha256
from not_fed.processes.tls import (
    CertificateExpired,
    CertificateKeyMismatch,
    create_ca,
    issue_server_certificate,
    read_certificate,
)
from not_fed.settings import BadSettings
from tests.support.coordinators import BASE, Hub, wishes
from tests.support.enrolments import Joining
from tests.support.trust import FEDERATION

Run = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    return Hub.make(tmp_path_factory.mktemp("creating"), sites=())


@pytest.fixture
def hub(made: Hub, tmp_path: Path) -> Hub:
    return made.copy(tmp_path)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Type a command with --json; its exit code, and the object that it printed."""

    def typed(*words: object) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr("sys.argv", ["not-fed", "coordinator", *map(str, words), "--json"])
        with pytest.raises(SystemExit) as ended:
            command.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), json.loads((said.out or said.err).strip().rpartition("\n")[2])

    return typed


def joining(name: str, folder: Path) -> tuple[Joining, Path]:
    one = Joining.make(name, folder=folder / name)
    path = folder / f"{name}.enrolment"
    path.write_bytes(one.enrolment(now=datetime.now(UTC)) + b"\n")
    return one, path


def test_a_new_home_is_whole_and_private(made: Hub) -> None:
    home = made.home
    assert {path.name for path in home.iterdir()} == {
        "coordinator.toml", "federation.toml", "hub.invitation", "keys", "nodes", "passphrase", "roster", "tls",
    }  # fmt: skip
    for secret in ("passphrase", "tls/ca.key", "tls/gateway.key", "keys/sign.key", "keys/log.key"):
        assert stat.S_IMODE((home / secret).stat().st_mode) == 0o600
    assert Home(home).signer().name == Home(home).log_signer().name == "hub"
    assert load_deployment(home) == Deployment.model_validate(
        tomllib.loads((home / "coordinator.toml").read_text())
    )  # fmt: skip


def test_the_invitation_says_what_the_home_has(made: Hub) -> None:
    invitation = read_invitation(made.created.invitation)
    assert invitation.ca_certificate == (made.home / "tls" / "ca.crt").read_text()
    assert (invitation.federation, invitation.coordinator, invitation.address) == (FEDERATION, "hub", "localhost:8443")
    assert (invitation.base_sha256, invitation.spans, invitation.bundle_sha256) == (
        BASE, ((1, 3),), expected_bundle_sha256(),
    )  # fmt: skip
    assert made.created.invitation_fingerprint == invitation_fingerprint(made.created.invitation.read_bytes())


def test_nothing_is_left_when_a_home_cannot_be_made(tmp_path: Path) -> None:
    given = Given(certificate=tmp_path / "none.crt", key=tmp_path / "none.key")
    with pytest.raises(GivenFiles):
        create_coordinator(tmp_path / "hub", wishes(given=given), now=datetime.now(UTC))
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_that_is_there_already_is_filled_and_a_full_one_is_not_touched(tmp_path: Path) -> None:
    home = tmp_path / "mounted"
    home.mkdir()
    inode = home.stat().st_ino
    create_coordinator(home, wishes(), now=datetime.now(UTC))
    assert home.stat().st_ino == inode  # a mounted folder cannot be replaced
    assert not list(home.glob(".*"))
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    with pytest.raises(OutputExists):
        create_coordinator(home, wishes(), now=datetime.now(UTC))
    assert before == {path: path.stat().st_mtime_ns for path in home.rglob("*")}


def test_two_administrators_by_their_commands(tmp_path: Path, run: Run) -> None:
    home = tmp_path / "hub"
    code, created = run(
        "init", home, "--name", "hub", "--federation", FEDERATION, "--address", "localhost:8443",
        "--base-sha256", BASE, "--span", "1:3",
    )  # fmt: skip
    assert (code, created["schema"]) == (0, "not-fed/coordinator/1")
    assert created["fingerprint"] == load_public_identity(home / "keys").fingerprint
    assert created["member"].endswith("identity.json:relay")
    files = [joining(name, tmp_path)[1] for name in ("ward", "clinic")]
    code, enrolled = run("enrol", home, *files)
    assert code == 0
    assert [row["site"] for row in enrolled["enrolled"]] == ["ward", "clinic"]
    identity = Path(enrolled["enrolled"][0]["member"].rpartition(":")[0])
    assert load_public_identity(identity).fingerprint == enrolled["enrolled"][0]["identity_fingerprint"]
    assert load_plan(home).sites == ["clinic", "ward"]
    code, invited = run("invite", home, "--out", tmp_path / "again")
    assert (code, invited["fingerprint"]) == (0, created["invitation_fingerprint"])
    code, status = run("status", home)
    assert (code, status["run"]["outcome"]) == (0, None)


def test_one_bad_enrolment_is_named_and_nothing_of_the_plan_is_lost(hub: Hub, tmp_path: Path, run: Run) -> None:
    _, good = joining("ward", tmp_path)
    bad = tmp_path / "bad"
    bad.write_bytes(good.read_bytes()[:-40])
    code, error = run("enrol", hub.home, bad)
    assert (code, error["code"], error["where"]) == (6, "signed-malformed", "bad")
    assert run("enrol", hub.home, good)[0] == 0


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--address", "localhost"], "bad-address"), (["--address", "localhost:8443", "--span", "3:3"], "bad-span"),
        (["--address", "localhost:8443", "--name", "a b"], "bad-name"),
        (["--address", "localhost:8443", "--ca", "x"], "usage"),
        (["--address", "localhost:8443", "--base-sha256", "ABC"], "bad-settings"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_made(
    words: list[str], code: str, tmp_path: Path, run: Run
) -> None:
    options = {"--name": "hub", "--federation": "f", "--base-sha256": BASE, "--span": "1:3"}
    options |= dict(zip(words[::2], words[1::2], strict=True))
    _, error = run("init", tmp_path / "hub", *(word for pair in options.items() for word in pair))
    assert error["code"] == code
    assert not (tmp_path / "hub").exists()


def test_a_site_is_added_to_the_plan_until_the_run_has_begun(hub: Hub) -> None:
    plan = hub.home / "federation.toml"
    comments = [line for line in plan.read_text().splitlines() if "#" in line]
    assert add_site(hub.home, "ward")
    assert add_site(hub.home, "clinic")
    assert load_plan(hub.home).sites == ["clinic", "ward"]
    assert len([line for line in plan.read_text().splitlines() if "#" in line]) == len(comments)
    CoordinatorState(hub.home).start_run("run-1", plan_sha256="ab" * 32)
    before = plan.read_bytes()
    assert not add_site(hub.home, "lab")
    assert add_site(hub.home, "ward")  # it is there
    assert plan.read_bytes() == before


def test_a_plan_that_its_administrator_wrote_otherwise_is_left_alone(hub: Hub) -> None:
    plan = hub.home / "federation.toml"
    plan.write_text(plan.read_text().replace("sites = []", 'sites = [ # mine\n  "a[1]" ]'))
    before = plan.read_bytes()
    with pytest.raises(BadSettings):
        add_site(hub.home, "ward")
    plan.write_text(before.decode().replace('sites = [ # mine\n  "a[1]" ]', '"sites" = ["lab"]'))
    before = plan.read_bytes()
    assert not add_site(hub.home, "ward")
    assert plan.read_bytes() == before


def certificate(home: Path, *, now: datetime | None = None) -> GatewayCertificate:
    deployment = load_deployment(home)
    assert deployment is not None
    return GatewayCertificate(home, deployment, now=now or datetime.now(UTC))


def issue(home: Path, *, days: int, hosts: tuple[str, ...] = ("localhost", "127.0.0.1")) -> str:
    path = issue_server_certificate(home / "tls", ca=home / "tls", hosts=hosts, days=days, name="gateway")
    return read_certificate(path).fingerprint


def test_an_own_certificate_is_renewed_a_month_before_its_end_and_not_earlier(hub: Hub) -> None:
    first = issue(hub.home, days=RENEW_BEFORE.days + 1)
    assert certificate(hub.home).facts.fingerprint == first
    issue(hub.home, days=RENEW_BEFORE.days - 1)
    renewed = certificate(hub.home)
    assert renewed.renewed
    assert renewed.facts.not_after - datetime.now(UTC) > timedelta(days=300)
    issue(hub.home, days=0)  # it stood still for too long: this is what a start must mend too
    assert certificate(hub.home).facts.not_after > datetime.now(UTC)


def test_an_own_certificate_follows_the_address(hub: Hub) -> None:
    toml = hub.home / "coordinator.toml"
    toml.write_text(toml.read_text().replace("localhost:8443", "hub.example.org:8443"))
    assert certificate(hub.home).facts.hosts == ("hub.example.org",)


@contextmanager
def listening(shown: GatewayCertificate) -> Iterator[int]:
    """Accepts TLS connections with the certificate, until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                    shown.context.wrap_socket(connection, server_side=True).close()
                except ssl.SSLError:
                    continue
                except OSError:
                    return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def seen(port: int, ca: Path) -> str:
    """Which certificate a client is shown that checks it."""
    import hashlib

    context = ssl.create_default_context(cafile=str(ca))
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        return hashlib.sha256(tls.getpeercert(binary_form=True) or b"").hexdigest()


def test_new_connections_see_a_replaced_certificate_without_a_restart(hub: Hub) -> None:
    first = issue(hub.home, days=100)
    shown = certificate(hub.home)
    with listening(shown) as port:
        assert seen(port, hub.home / "tls" / "ca.crt") == first
        assert not shown.refresh(datetime.now(UTC))
        second = issue(hub.home, days=200)
        assert shown.refresh(datetime.now(UTC))
        assert seen(port, hub.home / "tls" / "ca.crt") == second != first


def test_half_of_a_replaced_pair_changes_nothing(hub: Hub, tmp_path: Path) -> None:
    first = issue(hub.home, days=100)
    shown = certificate(hub.home)
    other = tmp_path / "other"
    other.mkdir()
    create_ca(other)
    issue_server_certificate(other, ca=other, hosts=("localhost", "127.0.0.1"), days=100)
    with listening(shown) as port:
        shutil.copy(other / "server.crt", hub.home / "tls" / "gateway.crt")
        with pytest.raises(CertificateKeyMismatch):
            shown.refresh(datetime.now(UTC))
        assert seen(port, hub.home / "tls" / "ca.crt") == first


def test_a_given_certificate_is_used_where_it_lies_and_never_renewed(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    create_ca(given)
    issue_server_certificate(given, ca=given, hosts=("hub.example.org",), days=10)
    create_coordinator(
        tmp_path / "hub",
        wishes(
            address="hub.example.org:8443",
            given=Given(certificate=given / "server.crt", key=given / "server.key", ca=given / "ca.crt"),
        ),
        now=datetime.now(UTC),
    )
    first = read_certificate(given / "server.crt").fingerprint
    assert certificate(tmp_path / "hub").facts.fingerprint == first
    assert read_invitation(tmp_path / "hub" / "hub.invitation").ca_certificate == (given / "ca.crt").read_text()
    with pytest.raises(CertificateExpired):
        certificate(tmp_path / "hub", now=datetime.now(UTC) + timedelta(days=11))
    assert read_certificate(given / "server.crt").fingerprint == first


def test_nobody_is_enrolled_in_a_new_home(made: Hub) -> None:
    assert Nodes(made.home).all() == {}
