"""Adversary: whoever wants an organ back in use, or another's organ out of use; whoever carries the recalls.

Powers: writes any file among the recalls, leaves any out, is a member with keys of its own. Lacks: the author's keys,
enough stewards' keys. Always: a recall that has arrived stays, and a refusal is typed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from not_fed import canonical
from not_fed.cli.output import printable
from not_fed.errors import NotFedError
from not_fed.keys import BadSignature, FileSigner, MalformedSigned, NewerFormat, Signer, Steward, dsse
from not_fed.trust import memory
from not_fed.trust import recall as recalls
from not_fed.trust.members import KeysRetired, MemberNotActive, UnknownMember
from not_fed.trust.recall import PAYLOAD_TYPE, RecallRefused, read_withdrawal, sign_withdrawal
from not_fed.trust.roster import (
    add_withdrawal,
    change_stewards,
    load_roster,
    pin_roster,
    recall_organ,
    renew_roster,
    revoke_member,
    rotate_member,
    update_roster,
)
from not_fed.trust.stewards import BadRecall
from tests.support.rosters import assert_refused, steward_identity
from tests.support.trust import FEDERATION, NOW, Federation, Site, days, listing

ORGAN = "ee" * 32


@pytest.fixture
def pinned(tmp_path: Path, own_federation: Federation) -> Path:
    """A site that trusts the roster of `own_federation`."""
    pin_roster(own_federation.folder, root_sha256=own_federation.root_sha256, out=tmp_path / "site", now=NOW)
    return tmp_path / "site"


def withdrawn(signer: Signer, *, organ: str = ORGAN, reason: str = "trained on the wrong records") -> bytes:
    """A member's own withdrawal, as it would really write it."""
    return sign_withdrawal(signer, federation=FEDERATION, organ_sha256=organ, reason=reason, now=NOW)


def said(signer: Signer, **changes: object) -> bytes:
    """A signed line with any fields."""
    honest = {"federation": FEDERATION, "organ_sha256": ORGAN, "reason": "x", "by": signer.name,
              "issued": canonical.format_time(NOW)}  # fmt: skip
    return dsse.sign(canonical.dumps(honest | changes), payload_type=PAYLOAD_TYPE, signer=signer)


def put(folder: Path, line: bytes, *, name: str | None = None) -> Path:
    """A file among the recalls that a roster folder hands on."""
    place = folder / "repository" / "recalls"
    place.mkdir(exist_ok=True)
    path = place / f"{name or hashlib.sha256(line).hexdigest()}.recall"
    path.write_bytes(line)
    return path


def recalled(site: Path, *, author: str | None = "clinic", organ: str = ORGAN) -> str | None:
    """What the site's roster says."""
    return load_roster(site, now=NOW).recall_of(organ, author=author)


def test_nobody_withdraws_the_organ_of_another_site(own_federation: Federation, pinned: Path) -> None:
    """A68. The lab, a member, withdraws an organ whose passport the clinic signed; in its own and in the clinic's name.

    Powers: a member's keys, and any file among the recalls. Control: the clinic's own word counts; and the lab's for an
    organ of the lab with the very same bytes.
    """
    put(own_federation.folder, withdrawn(own_federation.lab.signer))
    put(own_federation.folder, said(own_federation.lab.signer, by="clinic"))
    update_roster(pinned, source=own_federation.folder, now=NOW)
    assert recalled(pinned, author="clinic") is None
    assert recalled(pinned, author=None) is None
    assert recalled(pinned, author="lab") == "trained on the wrong records"  # control
    put(own_federation.folder, withdrawn(own_federation.clinic.signer))
    update_roster(pinned, source=own_federation.folder, now=NOW)
    assert recalled(pinned, author="clinic") == "trained on the wrong records"  # control


def test_the_stewards_recall_counts_for_every_author(own_federation: Federation, pinned: Path) -> None:
    """A66. Somebody else claims to be the author of an organ that the stewards have recalled.

    Powers: signs a passport of its own for the same bytes. Control: before the recall, and for another organ, nothing.
    """
    assert recalled(pinned) is None  # control
    recall_organ(own_federation.folder, organ_sha256=ORGAN, reason="poisoned", steward=own_federation.steward, now=NOW)
    roster = update_roster(pinned, source=own_federation.folder, now=NOW)
    for author in ("clinic", "lab", "nobody", None):
        assert roster.recall_of(ORGAN, author=author) == "poisoned"
    assert roster.recall_of("ab" * 32, author="clinic") is None  # control


def test_a_withdrawal_needs_its_members_keys_of_that_time(own_federation: Federation) -> None:
    """A68, A16, A17. A withdrawal by a stranger, by one algorithm, by a revoked member, with retired keys, dated ahead.

    Powers: everything but the author's keys in use. Control: the author's own line; a retired key in its own time.
    """
    clinic, folder, steward = own_federation.clinic.signer, own_federation.folder, own_federation.steward
    roster, line = own_federation.roster, withdrawn(own_federation.clinic.signer)
    stranger = FileSigner.generate("clinic")
    half = dsse.parse(line, payload_type=PAYLOAD_TYPE, where="recall")
    wrong = stranger.sign(dsse.pae(PAYLOAD_TYPE, half.payload))
    lines: list[tuple[bytes, type[NotFedError]]] = [
        (withdrawn(stranger), BadSignature), (withdrawn(FileSigner.generate("nobody")), UnknownMember),
        (dsse._line(half.payload, PAYLOAD_TYPE, half.key_ids, (half.signatures[0], wrong[1])), BadSignature),
        (dsse._line(half.payload, PAYLOAD_TYPE, half.key_ids, (wrong[0], half.signatures[1])), BadSignature),
        (said(clinic, issued=canonical.format_time(NOW + timedelta(seconds=301))), RecallRefused),
        (said(clinic, issued="9999-12-31T23:59:59Z"), RecallRefused),
        (said(clinic, issued=canonical.format_time(NOW - days(30))), KeysRetired),
        (said(clinic, federation="highlands"), RecallRefused),
    ]  # fmt: skip
    for attempt, kind in lines:
        with pytest.raises(kind):
            read_withdrawal(attempt, roster=roster, now=NOW)
    assert read_withdrawal(line, roster=roster, now=NOW).recall.by == "clinic"  # control
    new = Site.make("clinic")
    roster = rotate_member(folder, identity=new.public, steward=steward, now=NOW + days(1))
    late = said(clinic, issued=canonical.format_time(NOW + days(2)))
    with pytest.raises(KeysRetired):
        read_withdrawal(late, roster=roster, now=NOW + days(3))
    assert read_withdrawal(line, roster=roster, now=NOW + days(3)).recall.time == NOW  # control
    roster = revoke_member(folder, name="clinic", steward=steward, now=NOW + days(3))
    with pytest.raises(MemberNotActive):
        read_withdrawal(line, roster=roster, now=NOW + days(3))


def test_a_withdrawal_has_one_shape(own_federation: Federation) -> None:
    """A34, A23. Fields missing, added, of other types; another signed object in its place; a newer version.

    Powers: a member, who signs any payload. Control: the shape that our command writes.
    """
    clinic, roster = own_federation.clinic.signer, own_federation.roster
    attempts = [said(clinic, **{field: value}) for field in ("federation", "organ_sha256", "reason", "by", "issued")
                for value in (None, 1, True, [], {}, "", "x" * 5000)]  # fmt: skip
    attempts += [said(clinic, extra=1), said(clinic, organ_sha256="EE" * 32), said(clinic, issued="2026-11-24")]
    attempts += [dsse.sign(payload, payload_type=PAYLOAD_TYPE, signer=clinic) for payload in (b"", b"[]", b"{", b"NaN")]
    label = "application/vnd.not-fed.label.v1+json"
    attempts += [dsse.sign(b"{}", payload_type=label, signer=clinic), b"", b"{}", withdrawn(clinic) + b" "]
    for line in attempts:
        with pytest.raises(MalformedSigned):
            read_withdrawal(line, roster=roster, now=NOW)
    with pytest.raises(NewerFormat):
        newer = dsse.sign(b"{}", payload_type=PAYLOAD_TYPE.replace("v1", "v2"), signer=clinic)
        read_withdrawal(newer, roster=roster, now=NOW)
    assert read_withdrawal(withdrawn(clinic), roster=roster, now=NOW).recall.organ_sha256 == ORGAN  # control


def test_a_file_of_recalls_cannot_be_swapped(own_federation: Federation, pinned: Path) -> None:
    """Own. The clinic's withdrawal of one organ lies under the name of another's, or under any name that is free.

    Powers: renames and replaces files among the recalls. Control: under its own name it counts, once.
    """
    line, other = withdrawn(own_federation.clinic.signer), withdrawn(own_federation.clinic.signer, organ="dd" * 32)
    put(own_federation.folder, line, name=hashlib.sha256(other).hexdigest())
    put(own_federation.folder, line, name="ab" * 32)
    put(own_federation.folder, line, name="../x" if (own_federation.folder / "repository" / "x").exists() else "x")
    update_roster(pinned, source=own_federation.folder, now=NOW)
    assert recalled(pinned) is None
    put(own_federation.folder, line)
    update_roster(pinned, source=own_federation.folder, now=NOW)
    assert recalled(pinned) == "trained on the wrong records"  # control
    assert len(list((pinned / "repository" / "recalls").iterdir())) == 1


def test_garbage_among_the_recalls_locks_nobody_out(own_federation: Federation, pinned: Path) -> None:
    """Own. Among the recalls lie empty files, garbage, links, FIFOs, folders, huge files, names with newlines.

    Powers: fills the folder that is handed on. Control: the honest withdrawal among them arrives; only it travels on.
    """
    place = put(own_federation.folder, withdrawn(own_federation.clinic.signer)).parent
    for number, content in enumerate((b"", b"\0", b"{}", b"[" * 9000, b"x" * 100_000, b"\xff\xfe")):
        put(own_federation.folder, content)
        (place / f"{number:064x}.recall").write_bytes(content)
    for name, target in (("aa", "/dev/zero"), ("bb", "/etc/passwd"), ("cc", "nowhere")):
        (place / f"{name * 32}.recall").symlink_to(target)
    os.mkfifo(place / f"{'dd' * 32}.recall")
    (place / f"{'ff' * 32}.recall").mkdir()
    for name in ("x\ny.recall", "\x1b[2J", "-rf.recall", "a" * 200):
        (place / name).write_bytes(b"x")
    update_roster(pinned, source=own_federation.folder, now=NOW)
    assert recalled(pinned) == "trained on the wrong records"  # control
    assert len(list((pinned / "repository" / "recalls").iterdir())) == 1
    shutil.rmtree(place)
    place.symlink_to("/proc/self/fd")
    renew_roster(own_federation.folder, steward=own_federation.steward, now=NOW)
    assert update_roster(pinned, source=own_federation.folder, now=NOW).version == 2


def test_ten_thousand_recall_files_bury_nothing(own_federation: Federation, pinned: Path) -> None:
    """Own. 10,000 well-formed withdrawals by strangers and with borrowed signatures, sorted before the real one.

    Powers: writes as many files as it likes. Control: the clinic's own withdrawal is found among them.
    """
    clinic = own_federation.clinic.signer
    real = dsse.parse(withdrawn(clinic), payload_type=PAYLOAD_TYPE, where="recall")
    strangers = ("00" * 32, "11" * 32)
    for number in range(10_000):
        payload = canonical.dumps({"federation": FEDERATION, "organ_sha256": f"{number:064x}", "reason": "x",
                                   "by": "clinic", "issued": canonical.format_time(NOW)})  # fmt: skip
        key_ids = strangers if number % 10 else real.key_ids
        put(own_federation.folder, dsse._line(payload, PAYLOAD_TYPE, key_ids, real.signatures))
    put(own_federation.folder, real.line)
    roster = update_roster(pinned, source=own_federation.folder, now=NOW)
    assert list(roster.recalled) == [ORGAN]  # control
    assert len(list((pinned / "trusted" / "recalls").iterdir())) == 1


def test_one_member_cannot_fill_the_others_disks(
    own_federation: Federation, pinned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Own. A member withdraws more organs than there can be, and one organ over and over with other reasons.

    Powers: a member's keys; the room for one member is made small here. Control: another member's withdrawal, sorted
    after all of them, still arrives.
    """
    monkeypatch.setattr(recalls, "MAX_OF_ONE_MEMBER", 3)
    lab, clinic = own_federation.lab.signer, own_federation.clinic.signer
    for number in range(8):
        put(own_federation.folder, withdrawn(lab, organ=f"{number:064x}"))
        put(own_federation.folder, withdrawn(lab, reason=f"reason {number}"))
    put(own_federation.folder, withdrawn(clinic))
    roster = update_roster(pinned, source=own_federation.folder, now=NOW)
    by = [recall.by for found in roster.recalled.values() for recall in found]
    assert (by.count("lab"), by.count("clinic")) == (3, 1)  # control
    assert update_roster(pinned, source=own_federation.folder, now=NOW) == roster


def test_a_withdrawal_that_has_arrived_stays(own_federation: Federation, pinned: Path, tmp_path: Path) -> None:
    """A66. The next roster comes without the withdrawal, which is deleted everywhere else too.

    Powers: decides what is handed over. Control: a site that never saw it does not know of it, until it comes by mail.
    """
    line = withdrawn(own_federation.clinic.signer)
    add_withdrawal(pinned, line + b"\n", now=NOW)
    assert recalled(pinned) == "trained on the wrong records"
    renew_roster(own_federation.folder, steward=own_federation.steward, now=NOW)
    assert update_roster(pinned, source=own_federation.folder, now=NOW).version == 2
    shutil.rmtree(pinned / "repository")
    assert recalled(pinned) == "trained on the wrong records"
    pin_roster(own_federation.folder, root_sha256=own_federation.root_sha256, out=tmp_path / "new", now=NOW)
    assert recalled(tmp_path / "new") is None  # control
    update_roster(pinned, source=own_federation.folder, now=NOW)  # makes the copy to hand on again
    update_roster(tmp_path / "new", source=pinned, now=NOW)
    assert recalled(tmp_path / "new") == "trained on the wrong records"


def test_a_recall_outlasts_the_stewards_who_made_it(tmp_path: Path) -> None:
    """A66. The stewards recall an organ, and are exchanged by a version that does not have the recall.

    Powers: enough of the stewards before and all after them want the organ back. Control: their version is taken, and
    an organ that nobody recalled is good.
    """
    federation, site, fresh = Federation.make(tmp_path / "r"), tmp_path / "site", Steward.generate("again")
    shutil.copytree(tmp_path / "r", tmp_path / "without")
    recall_organ(tmp_path / "r", organ_sha256=ORGAN, reason="poisoned", steward=federation.steward, now=NOW)
    pin_roster(tmp_path / "r", root_sha256=federation.root_sha256, out=site, now=NOW)
    change_stewards(tmp_path / "without", steward=[federation.steward, fresh], add=[steward_identity(fresh)],
                    remove=["steward"], now=NOW)  # fmt: skip
    assert update_roster(site, source=tmp_path / "without", now=NOW).recall_of(ORGAN, author=None) == "poisoned"
    renew_roster(tmp_path / "without", steward=fresh, now=NOW)
    for roster in (update_roster(site, source=tmp_path / "without", now=NOW), load_roster(site, now=NOW)):
        assert (roster.version, roster.recall_of(ORGAN, author="clinic")) == (3, "poisoned")
        assert roster.recall_of("dd" * 32, author="clinic") is None  # control


def test_a_withdrawal_by_mail_is_checked_like_any_other(own_federation: Federation, pinned: Path) -> None:
    """Own. A stranger's withdrawal, and garbage, is mailed to an administrator who takes it over by hand.

    Powers: writes mail. Control: the author's, twice: it is one.
    """
    before = listing(pinned)
    for line in (
        withdrawn(FileSigner.generate("clinic")),
        b"",
        b"x" * 20_000,
        said(own_federation.lab.signer, by="hub"),
    ):
        with pytest.raises(NotFedError):
            add_withdrawal(pinned, line, now=NOW)
        assert listing(pinned) == before
    for _ in range(2):
        assert add_withdrawal(pinned, withdrawn(own_federation.clinic.signer), now=NOW).recall.by == "clinic"  # control
    assert len(memory.read(pinned).withdrawn) == 1


def test_a_list_of_recalls_that_is_kept_back_runs_out(own_federation: Federation, pinned: Path) -> None:
    """A67. The roster with the recall is withheld from a site.

    Powers: decides what the site gets to see, for 90 days. Control: when it arrives the organ is recalled at once.
    """
    recall_organ(own_federation.folder, organ_sha256=ORGAN, reason="poisoned", steward=own_federation.steward, now=NOW)
    assert recalled(pinned) is None
    with pytest.raises(NotFedError) as caught:
        load_roster(pinned, now=NOW + days(91))
    assert caught.value.code == "roster-expired"
    update_roster(pinned, source=own_federation.folder, now=NOW)
    assert recalled(pinned) == "poisoned"  # control


def test_a_reason_cannot_draw_on_the_terminal(own_federation: Federation, pinned: Path) -> None:
    """A38. The reason of a withdrawal holds escape sequences, newlines and a reversed direction.

    Powers: a member, who chooses the reason. Control: an ordinary reason is printed as it is.
    """
    nasty = "fine\x1b[2J\x1b[1;1H\r\nrecalled  no\u202e"
    put(own_federation.folder, withdrawn(own_federation.clinic.signer, reason=nasty))
    update_roster(pinned, source=own_federation.folder, now=NOW)
    reason = recalled(pinned)
    assert reason == nasty
    assert all(mark not in printable(reason) for mark in "\x1b\r\n\u202e")
    assert printable("trained on the wrong records") == "trained on the wrong records"  # control


def test_a_recall_names_an_organ_and_a_reason(own_federation: Federation, pinned: Path) -> None:
    """Own. A steward or an author recalls something that is no digest, or without a reason.

    Powers: types anything. Control: a digest and a reason.
    """
    for organ, reason in (("", "x"), ("../x", "x"), ("EE" * 32, "x"), (ORGAN, ""), (ORGAN, "x" * 501)):
        with pytest.raises(BadRecall):
            recall_organ(
                own_federation.folder, organ_sha256=organ, reason=reason, steward=own_federation.steward, now=NOW
            )
        with pytest.raises(MalformedSigned):
            withdrawn(own_federation.clinic.signer, organ=organ, reason=reason)
    assert (
        add_withdrawal(pinned, withdrawn(own_federation.clinic.signer), now=NOW).recall.organ_sha256 == ORGAN
    )  # control


def test_a_withdrawal_comes_with_no_roster_that_is_refused(own_federation: Federation, pinned: Path) -> None:
    """Own. An older roster, which is refused, brings a valid withdrawal along.

    Powers: combines what it likes. Control: the same file with the newest roster, or by mail, counts.
    """
    shutil.copytree(own_federation.folder, pinned.parent / "old")
    renew_roster(own_federation.folder, steward=own_federation.steward, now=NOW)
    update_roster(pinned, source=own_federation.folder, now=NOW)
    line = withdrawn(own_federation.clinic.signer)
    put(pinned.parent / "old", line)
    assert_refused(pinned, NotFedError, pinned.parent / "old")
    assert recalled(pinned) is None
    put(own_federation.folder, line)
    update_roster(pinned, source=own_federation.folder, now=NOW)
    assert recalled(pinned) == "trained on the wrong records"  # control
