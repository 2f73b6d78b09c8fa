"""Adversary: whoever kept an honest sealed organ and sends it again, later or to a machine that was restarted.

Powers: every file that was ever sent, unchanged; chooses when it arrives, and how often. Lacks: any member's keys.
"""

from __future__ import annotations

import stat
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from not_fed.envelope import DiskSeen, Expectation, MemorySeen, WaybillReplayed, verify_sealed
from not_fed.envelope.checks import OtherRound
from not_fed.envelope.dsse import Stale
from not_fed.envelope.seen import REMEMBERED_LONGER, CheckOnly, RecordOnly
from not_fed.errors import NotFedError
from not_fed.store import StoreDamaged
from tests.support.trust import NOW, Forger, Parcel, assert_refused, days


def disk(parcel: Parcel, *, later: timedelta = timedelta(0)) -> DiskSeen:
    """The hub's memory on its disk, as a fresh process opens it."""
    (parcel.folder / "memory").mkdir(exist_ok=True)
    return DiskSeen(parcel.folder / "memory" / "waybills.db", now=NOW + later)


def test_an_organ_sent_again_after_a_restart_is_refused(parcel: Parcel) -> None:
    """A33. The same waybill to a process that was started anew. Powers: the file. Control: it opens the first time."""
    assert parcel.open(seen=disk(parcel)).sender == "clinic"
    for number in range(3):
        assert_refused(parcel, WaybillReplayed, seen=disk(parcel), out=parcel.folder / f"again-{number}.organ")


def test_another_process_remembers_what_this_one_opened(parcel: Parcel) -> None:
    """Own. Two programs of one site share the memory. Powers: reaches both. Control: an unknown waybill passes."""
    parcel.open(seen=disk(parcel))
    code = (
        "import sys; from datetime import datetime, UTC\n"
        "from pathlib import Path; from not_fed.envelope import DiskSeen\n"
        "DiskSeen(Path(sys.argv[1]), now=datetime.now(UTC)).check(sys.argv[2])"
    )
    words = [sys.executable, "-c", code, str(parcel.folder / "memory" / "waybills.db")]
    refused = subprocess.run(
        [*words, f"clinic/{parcel.sealed.waybill_id}"], capture_output=True, text=True, check=False
    )
    assert "WaybillReplayed" in refused.stderr
    assert subprocess.run([*words, "0" * 32], check=False).returncode == 0


def test_two_opens_at_once_of_one_file_yield_one_organ(parcel: Parcel) -> None:
    """A88. A race, so that both look before either has noted it. Powers: timing. Control: exactly one succeeds."""
    gate, outcomes = threading.Barrier(4), []

    def one(number: int) -> None:
        seen = disk(parcel)
        gate.wait()
        try:
            outcomes.append(parcel.open(seen=seen, out=parcel.folder / f"race-{number}.organ").organ)
        except WaybillReplayed:
            outcomes.append(None)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won = [path for path in outcomes if path is not None]
    assert len(outcomes) == 4
    assert len(won) == 1
    assert sorted(parcel.folder.glob("race-*")) == sorted([won[0], won[0].with_name(won[0].name + ".passport")])


def test_a_memory_is_kept_longer_than_the_waybill_is_valid(parcel: Parcel) -> None:
    """Own. Waits until the memory is gone. Powers: patience. Control: by then the waybill's own date refuses it."""
    seen = disk(parcel)
    parcel.open(seen=seen)
    last = parcel.sealed.expires + timedelta(seconds=299)  # a clock may be five minutes off
    disk(parcel, later=last - NOW).record("1" * 32, last)  # whatever is old enough is dropped now
    assert_refused(parcel, WaybillReplayed, now=last, seen=disk(parcel, later=last - NOW), out=parcel.folder / "b")
    after = parcel.sealed.expires + REMEMBERED_LONGER + timedelta(seconds=1)
    disk(parcel, later=after - NOW).record("2" * 32, after)
    disk(parcel, later=after - NOW).check(f"clinic/{parcel.sealed.waybill_id}")  # forgotten
    assert_refused(parcel, Stale, now=after, seen=disk(parcel, later=after - NOW), out=parcel.folder / "c")


def test_a_refused_organ_is_not_remembered_as_opened(parcel: Parcel) -> None:
    """Own. Spoils the only copy by a try that fails. Powers: damages one delivery. Control: the whole one opens."""
    whole = parcel.path.read_bytes()
    parcel.path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert_refused(parcel, NotFedError, seen=disk(parcel))
    parcel.path.write_bytes(whole)
    assert parcel.open(seen=disk(parcel)).sender == "clinic"


def test_nobody_uses_up_the_number_of_anothers_waybill(parcel: Parcel, forger: Forger) -> None:
    """Own. The lab seals its own organ under the clinic's waybill number, first. Powers: knows the number.

    Control: afterwards the clinic's own organ opens, and neither of the two a second time.
    """
    seen, whole, lab = disk(parcel), parcel.path.read_bytes(), parcel.federation.lab.signer
    passport = forger.passport_with(signer=lab, author="lab")
    forger.rewrite(passport=passport, signer=lab, sender="lab")
    assert parcel.open(seen=seen, out=parcel.folder / "lab.organ").sender == "lab"
    parcel.path.write_bytes(whole)
    assert parcel.open(seen=seen).sender == "clinic"
    assert_refused(parcel, WaybillReplayed, seen=seen, out=parcel.folder / "again.organ")


def test_opening_again_on_purpose_is_remembered_too(parcel: Parcel) -> None:
    """Own. A first opening with --again leaves no memory. Powers: sends twice. Control: --again opens each time."""
    for number in range(2):
        assert parcel.open(seen=RecordOnly(disk(parcel)), out=parcel.folder / f"{number}.organ").sender == "clinic"
    assert_refused(parcel, WaybillReplayed, seen=disk(parcel))


def test_looking_is_not_opening(parcel: Parcel) -> None:
    """Own. verify, and work that is not done yet, leave no memory. Powers: none. Control: opening does."""
    seen, hub = disk(parcel), parcel.federation.hub
    for _ in range(2):
        verify_sealed(
            parcel.path, roster=parcel.federation.roster, now=NOW, label=None, opener=hub.opener, seen=seen
        )  # fmt: skip
    assert parcel.open(seen=CheckOnly(seen)).sender == "clinic"
    assert parcel.open(seen=seen, out=parcel.folder / "b").sender == "clinic"
    with pytest.raises(WaybillReplayed):
        CheckOnly(seen).check(f"clinic/{parcel.sealed.waybill_id}")


def test_an_organ_of_an_old_round_is_refused_in_a_new_one(parcel: Parcel) -> None:
    """A33. Round 3's organ while round 4 is open. Powers: keeps it until then. Control: in round 3 it opens."""
    assert_refused(parcel, OtherRound, expect=Expectation(round_number=4))
    assert_refused(parcel, Stale, now=NOW + days(15))
    assert parcel.open(expect=Expectation(round_number=3), seen=MemorySeen()).sender == "clinic"


def test_the_memory_is_private(parcel: Parcel) -> None:
    """Own. Reads from the memory what was opened when. Powers: another account here. Control: its owner reads it."""
    parcel.open(seen=disk(parcel))
    for path in (parcel.folder / "memory").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name


def test_a_memory_that_was_replaced_by_something_else_fails_closed(parcel: Parcel, tmp_path: Path) -> None:
    """Own. The memory file overwritten or made a link. Powers: writes in that folder. Control: the real memory."""
    (parcel.folder / "memory").mkdir()
    path = parcel.folder / "memory" / "waybills.db"
    path.write_bytes(b"not a database" * 100)
    assert_refused(parcel, StoreDamaged, seen=disk(parcel))
    path.unlink()
    disk(parcel).record("clinic/" + "0" * 32, NOW)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 8192)  # the table's own pages
    for extra in path.parent.glob("waybills.db-*"):
        extra.unlink()
    assert_refused(parcel, StoreDamaged, seen=disk(parcel))
    path.unlink()
    path.symlink_to(parcel.folder / "elsewhere")
    assert_refused(parcel, StoreDamaged, seen=disk(parcel))
    path.unlink()
    assert parcel.open(seen=disk(parcel)).sender == "clinic"
