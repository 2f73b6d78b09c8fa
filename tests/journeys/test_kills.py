"""kill -9 at any moment leaves the old state or the new one, and the same command given again succeeds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from not_fed.envelope import find_delivery, issue_passport, label_path, new_passport, seal_organ
from not_fed.files import OutputExists
from not_fed.keys import Steward, create_keys, load_signer
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import open_base
from not_fed.organ.extract import extract
from not_fed.organ.organ import read_organ
from not_fed.organ.transplant import apply_transplant, plan_transplant
from not_fed.trust.roster import create_roster, load_roster
from tests.support.folders import save_base
from tests.support.killing import PASSPHRASE
from tests.support.tiny import tiny_llama
from tests.support.trust import FEDERATION, NOW, edited, organ_bytes

ROOT = Path(__file__).parents[2]
TRIALS = {"seal": 60, "open": 60, "import": 40}


def members(start: Path) -> None:
    """Keys of clinic and hub, and the roster that names them."""
    start.mkdir()
    roles = {"clinic": ["author", "receiver"], "hub": ["receiver"]}
    people = [
        (create_keys(start / name, name=name, passphrase=PASSPHRASE, work_factor=2), roles[name]) for name in roles
    ]
    create_roster(start / "R", federation=FEDERATION, steward=Steward.generate("steward"), members=people, now=NOW)


def send(start: Path) -> None:
    """The clinic seals `knee.organ` to the hub."""
    clinic = load_signer(start / "clinic", passphrase=PASSPHRASE)
    passport = new_passport(
        start / "knee.organ", author="clinic", federation=FEDERATION, round_number=3, now=NOW
    )  # fmt: skip
    (start / "knee.passport").write_bytes(issue_passport(passport, signer=clinic))
    seal_organ(
        start / "knee.organ", passport=(start / "knee.passport").read_bytes(), sender=clinic, recipients=["hub"],
        roster=load_roster(start / "R", now=NOW), federation=FEDERATION, round_number=3, out=start / "knee.sealed",
        now=NOW,
    )  # fmt: skip


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An organ of 16 MB, so that most kills come while it is read and written."""
    folder = tmp_path_factory.mktemp("large")
    members(folder / "start")
    (folder / "start" / "knee.organ").write_bytes(organ_bytes(floats=2_000_000))
    send(folder / "start")
    return folder


@pytest.fixture(scope="module")
def fitting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small base and an organ that changes it."""
    folder = tmp_path_factory.mktemp("fitting")
    members(start := folder / "start")
    base = save_base(tiny_llama(), start / "base")
    organ = read_organ(extract(base, span=Span(1, 3), out=start / "knee.organ").path)
    data = bytearray(organ.path.read_bytes())
    place = max(organ.places.values(), key=lambda place: place.end)  # its end is what killing.py looks for
    data[place.begin : place.end : 4] = bytes(byte ^ 1 for byte in data[place.begin : place.end : 4])
    organ.path.write_bytes(data)
    send(start)
    apply_transplant(plan_transplant(organ=read_organ(organ.path), base=base), out=folder / "model")
    (start / "base.sha256").write_text(base.sha256)
    (start / "model.sha256").write_text(open_base(folder / "model").sha256)
    assert open_base(folder / "model").sha256 != base.sha256
    return folder


@pytest.mark.parametrize("name", TRIALS)
def test_a_kill_at_any_moment_leaves_the_old_state_or_the_new(name: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue("fitting" if name == "import" else "large")
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.killing", name, str(folder), str(TRIALS[name]), "7"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert sum(found.values()) == TRIALS[name]
    assert set(found) == {"old", "new"}, "kills before and after the decisive moment: else nothing was shown"


def test_only_the_senders_own_label_makes_way_for_a_new_one(large: Path, tmp_path: Path) -> None:
    """A kill between label and sealed file leaves the label alone; sealing again replaces it, and nobody else's."""
    start, out = large / "start", tmp_path / "again.sealed"
    own, others = find_delivery(start / "knee.sealed").label, b"a label of somebody else"
    assert own is not None

    def seal_again() -> None:
        seal_organ(
            start / "knee.organ", passport=(start / "knee.passport").read_bytes(), recipients=["hub"], now=NOW,
            sender=load_signer(start / "clinic", passphrase=PASSPHRASE), roster=load_roster(start / "R", now=NOW),
            federation=FEDERATION, round_number=3, out=out,
        )  # fmt: skip

    for label in (others, own[:-40] + own[-41:-1] + b"x", payload_swapped(own)):
        label_path(out).write_bytes(label)
        with pytest.raises(OutputExists):
            seal_again()
        assert label_path(out).read_bytes() == label
        assert not out.exists()
    label_path(out).write_bytes(own)
    seal_again()
    assert out.exists()
    assert label_path(out).read_bytes() != own


def payload_swapped(line: bytes) -> bytes:
    """The line with its signatures under another payload."""
    return edited(line, payload=json.loads(line)["payload"].swapcase())
