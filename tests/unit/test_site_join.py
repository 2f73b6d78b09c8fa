"""The process that keeps a site connected: what it refuses, what it waits for, and what it tells."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from not_fed.errors import NotFedError
from not_fed.processes.flower import flower_environment
from not_fed.processes.ports import free_port
from not_fed.site.connection import require_connection
from not_fed.site.creating import create_site
from not_fed.site.join import SUPEREXEC, SUPERNODE, AlreadyJoined, KeysNotEnrolled, children, join, joining
from not_fed.site.news import News
from not_fed.trust.roster import RosterNotPinned, UnknownMember, root_sha256
from tests.support.children import wait_for
from tests.support.coordinators import Hub
from tests.support.gateways import Gate, open_gate

COMMAND = str(Path(sys.executable).parent / "not-fed")


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    with open_gate(Hub.make(tmp_path_factory.mktemp("gate"))) as opened:
        yield opened


@pytest.fixture
def home(gate: Gate, tmp_path: Path) -> Path:
    """A site that was invited by that gateway's coordinator, and is on nobody's roster."""
    (tmp_path / "notes.jsonl").write_text('{"text": "a note"}\n')
    place = tmp_path / "clinic"
    create_site(
        place, invitation=gate.home / "hub.invitation", name="clinic", data=tmp_path / "notes.jsonl",
        now=datetime.now(UTC),
    )  # fmt: skip
    aim(place, gate.port)
    return place


def aim(home: Path, port: int) -> None:
    path = home / "connection.toml"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("address")]
    path.write_text("\n".join([f'address = "localhost:{port}"', *lines]) + "\n")


@contextmanager
def joined(home: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """The real command; ended at the end."""
    process = subprocess.Popen([COMMAND, "site", "join", str(home), *words], stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=60)


def refusal(home: Path, root: str | None = None) -> NotFedError:
    with pytest.raises(NotFedError) as caught:
        join(home, root_sha256=root, say=[].append)
    return caught.value


def test_a_second_join_of_the_same_home_is_refused(home: Path) -> None:
    aim(home, free_port())
    assert joining(home) is None
    with joined(home):
        wait_for(lambda: joining(home) is not None)
        assert isinstance(refusal(home), AlreadyJoined)
    assert joining(home) is None


def test_a_coordinator_that_does_not_answer_is_waited_for(home: Path) -> None:
    """A site's machine may be up first; a signal still ends the wait in order."""
    aim(home, free_port())
    with joined(home) as process:
        wait_for(lambda: "expected an answer" in (home / "log").read_text() if (home / "log").exists() else False)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 0
        assert "hub at localhost" in said


def test_without_a_pinned_roster_the_root_must_be_named(gate: Gate, home: Path) -> None:
    assert isinstance(refusal(home), RosterNotPinned)
    assert isinstance(refusal(home, "ab" * 32), RosterNotPinned)
    assert not (home / "roster").exists()
    assert joining(home) is None, "nothing was started"


def test_a_site_that_the_stewards_do_not_have_is_not_connected(gate: Gate, home: Path) -> None:
    """Neither under its own name, nor under that of a member with other keys: Flower is not even told."""
    root = root_sha256(gate.home / "roster")
    assert isinstance(refusal(home, root), KeysNotEnrolled)
    rename(home, "newcomer")
    assert isinstance(refusal(home), UnknownMember)
    assert (home / "roster").is_dir(), "control: the roster was pinned"
    assert not (home / "flower").exists()


def rename(home: Path, name: str) -> None:
    path = home / "site.toml"
    path.write_text(path.read_text().replace('name = "clinic"', f'name = "{name}"', 1))


def test_a_rehearsal_and_the_home_reach_the_client_app_and_nothing_else_differs(home: Path) -> None:
    connection = require_connection(home)
    real, rehearsed = (children(home, connection, port=9000, rehearse=rehearse) for rehearse in (False, True))
    assert [one.name for one in real] == [SUPERNODE, SUPEREXEC]
    assert [one.argv for one in real] == [one.argv for one in rehearsed]
    for plain, other in zip(real, rehearsed, strict=True):
        assert dict(other.env) == {**plain.env, "NOT_FED_REHEARSE": "1"}
        assert plain.env["NOT_FED_SITE"] == str(home)
        assert plain.env["PATH"].startswith(str(home / "flower" / "bin"))
        assert plain.env["FLWR_HOME"] == str(home / "flower" / "home")
    secrets = [path for path in (home / "flower").rglob("*") if path.is_file() and path.stat().st_mode & 0o077]
    assert secrets == []
    assert "NOT_FED_REHEARSE" not in flower_environment(home / "flower" / "home")


def test_news_are_told_once_and_in_few_words(tmp_path: Path) -> None:
    supernode, site, said = tmp_path / "supernode.log", tmp_path / "log", list[str]()
    site.write_text("2026-01-01T00:00:00+00:00 of an earlier time\n")
    news = News(supernode=supernode, site=site, say=said.append)
    news.poll()
    with supernode.open("a") as file:
        file.write("INFO: SuperNode ID: 17\nERROR: Failed to activate SuperNode\nhalf a li")
    with site.open("a") as file:
        file.write('2026-01-02T00:00:00+00:00 refused: policy-base\nTraceback (most recent call last):\n  File "x"\n')
    news.poll()
    news.poll()
    assert said[0] == "connected"
    assert "not enrolled or not on its roster" in said[1]
    assert said[2:] == ["refused: policy-base"]
    supernode.write_text("SuperNode ID: 18\n")  # its beginning was moved elsewhere
    news.poll()
    assert said[3:] == ["connected"]
