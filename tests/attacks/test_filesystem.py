"""Adversary: another process of this machine, a full disk, a careless person.

Powers: puts links, pipes and files where sealing and opening read and write; changes an organ while it is sealed.
Always: nothing existing is overwritten, nothing is followed, nothing half-written stays.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from not_fed import files
from not_fed.envelope import issue_passport, new_passport, seal_organ
from not_fed.envelope import seal as module
from not_fed.envelope.label import label_path
from not_fed.envelope.open import passport_path
from not_fed.envelope.seal import BadRecipients, CannotDispatch, OrganChanged, Sealed
from not_fed.errors import InputError, NotFedError
from not_fed.files import NotAFile, OutputExists
from not_fed.keys.dsse import BadSignature
from not_fed.trust.members import MemberNotActive, UnknownMember, WrongRole
from not_fed.trust.roster import revoke_member
from tests.support.trust import FEDERATION, NOW, Federation, Parcel, Site, assert_refused, listing, organ_bytes


def test_inputs_are_never_followed_and_never_block(parcel: Parcel) -> None:
    """A link, a pipe, a folder and nothing at all where the sealed file should be."""
    whole = parcel.path.rename(parcel.folder / "real.sealed")
    makers: list[Callable[[], None]] = [
        lambda: parcel.path.symlink_to(whole), lambda: os.mkfifo(parcel.path), parcel.path.mkdir,
    ]  # fmt: skip
    for make in makers:
        make()
        assert_refused(parcel, NotAFile)
        parcel.path.rmdir() if parcel.path.is_dir() and not parcel.path.is_symlink() else parcel.path.unlink()
    assert_refused(parcel, NotAFile)
    whole.rename(parcel.path)
    assert parcel.open().sender == "clinic"  # control


@pytest.mark.parametrize("which", ["organ", "passport"])
def test_nothing_that_exists_is_overwritten(parcel: Parcel, which: str) -> None:
    """A file, a link to a file, a dangling link and a folder where the output should go."""
    out = parcel.folder / "opened.organ"
    target = out if which == "organ" else passport_path(out)
    other = parcel.folder / "precious"
    other.write_bytes(b"precious")
    for make in (
        lambda: target.write_bytes(b"mine"),
        lambda: target.symlink_to(other),
        lambda: target.symlink_to(parcel.folder / "nowhere"),
        target.mkdir,
    ):
        make()
        assert_refused(parcel, OutputExists)
        target.rmdir() if target.is_dir() and not target.is_symlink() else target.unlink()
    assert other.read_bytes() == b"precious"
    assert parcel.open().organ.read_bytes() == parcel.organ


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a\0b", "x" * 300, "missing/folder/x"],
    ids=["empty", "dot", "dots", "nul", "long", "no-folder"],
)
def test_impossible_output_names_are_refused(parcel: Parcel, name: str) -> None:
    assert_refused(parcel, (NotAFile, OutputExists), out=parcel.folder / name)


@pytest.mark.parametrize("name", ["-rf", "--", "two\nlines", "ümläut 心", "a" * 200])
def test_strange_but_possible_output_names_work(parcel: Parcel, name: str) -> None:
    assert parcel.open(out=parcel.folder / name).organ.read_bytes() == parcel.organ


def test_outputs_are_private_whatever_the_umask(parcel: Parcel) -> None:
    before = os.umask(0)
    try:
        parcel.open()
    finally:
        os.umask(before)
    for path in (
        parcel.folder / "opened.organ",
        passport_path(parcel.folder / "opened.organ"),
        parcel.path,
        label_path(parcel.path),
    ):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_read_only_folder_and_a_full_disk_leave_nothing(parcel: Parcel, monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.open("/dev/full", os.O_RDWR)
    monkeypatch.setattr(files, "_open_nameless", lambda folder, mode: os.dup(full))  # every write says ENOSPC
    try:
        assert_refused(parcel, files.NoSpace)
    finally:
        os.close(full)


def test_without_nameless_files_the_part_file_is_swept(parcel: Parcel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without O_TMPFILE, and one without hard links as well: whole or nothing, never an overwrite."""
    monkeypatch.setattr(files, "_open_nameless", lambda folder, mode: None)
    assert parcel.open(out=parcel.folder / "one.organ").organ.read_bytes() == parcel.organ
    sealed = bytearray(parcel.path.read_bytes())
    sealed[-1] ^= 1
    whole = parcel.path.read_bytes()
    parcel.path.write_bytes(sealed)
    assert_refused(parcel, NotFedError)
    parcel.path.write_bytes(whole)

    def no_links(*_: object, **__: object) -> None:
        raise PermissionError(1, "no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    assert parcel.open(out=parcel.folder / "two.organ").organ.read_bytes() == parcel.organ
    assert_refused(parcel, OutputExists, out=parcel.folder / "two.organ")
    assert not [name for name in listing(parcel.folder) if name.endswith(".part")]


def test_the_output_folder_cannot_be_swapped_meanwhile(parcel: Parcel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is renamed and a link put in its place after the first check: the output stays in the real one."""
    real, trap = parcel.folder / "out", parcel.folder / "trap"
    real.mkdir()
    trap.mkdir()
    publish = files._publish

    def swap(*arguments: object, **more: object) -> None:
        if not (parcel.folder / "moved").exists():
            real.rename(parcel.folder / "moved")
            real.symlink_to(trap)
        publish(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "_publish", swap)
    parcel.open(out=real / "x.organ")
    assert (parcel.folder / "moved" / "x.organ").read_bytes() == parcel.organ
    assert "x.organ" not in listing(trap)


def _seal(parcel: Parcel, **changes: object) -> Sealed:
    arguments: dict[str, object] = {
        "passport": parcel.passport_line, "sender": parcel.federation.clinic.signer, "recipients": ["hub", "lab"],
        "roster": parcel.federation.roster, "federation": FEDERATION, "round_number": 3, "now": NOW,
        "out": parcel.folder / "again.sealed",
    } | changes  # fmt: skip
    return seal_organ(parcel.organ_path, **arguments)  # type: ignore[arg-type]


def _assert_not_sealed(
    parcel: Parcel, kind: type[NotFedError] | tuple[type[NotFedError], ...], **changes: object
) -> None:
    before = listing(parcel.folder)
    with pytest.raises(kind):
        _seal(parcel, **changes)
    assert listing(parcel.folder) == before


def test_sealing_control(parcel: Parcel) -> None:
    assert _seal(parcel, round_number=5, pad=True).recipients == ("hub", "lab")
    parcel.path = parcel.folder / "again.sealed"
    assert parcel.open().organ.read_bytes() == parcel.organ


def test_an_organ_cannot_change_while_it_is_sealed(
    tmp_path: Path, federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the header was checked and before it was read: another weight, or a shorter file."""
    parcel = Parcel(tmp_path, federation, organ=organ_bytes(floats=40_000))  # more than any read-ahead buffer holds
    check = module._check_organ
    for change in (parcel.organ[:-1] + b"\x7f", parcel.organ[:-8]):

        def then(*arguments: object, change: bytes = change) -> None:
            check(*arguments)  # type: ignore[arg-type]
            parcel.organ_path.write_bytes(change)

        monkeypatch.setattr(module, "_check_organ", then)
        before = set(listing(parcel.folder))
        with pytest.raises(OrganChanged):
            _seal(parcel)
        assert set(listing(parcel.folder)) == before
        monkeypatch.setattr(module, "_check_organ", check)
        _assert_not_sealed(parcel, NotFedError)  # before it starts: not the organ of this passport
        parcel.organ_path.write_bytes(parcel.organ)


@pytest.mark.parametrize(
    ("recipients", "kind"),
    [([], BadRecipients), (["clinic"], BadRecipients), (["hub", "hub"], BadRecipients), (["nobody"], UnknownMember),
     (["hub", "HUB"], UnknownMember), ("hub", BadRecipients)],
    ids=["nobody", "oneself", "twice", "unknown", "other-case", "a-bare-text"],
)  # fmt: skip
def test_only_members_named_once_can_be_sealed_to(parcel: Parcel, recipients: object, kind: type[NotFedError]) -> None:
    _assert_not_sealed(parcel, kind, recipients=recipients)


def test_revoked_expired_and_wrong_members_cannot_be_sealed_to_or_seal(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "roster")
    (tmp_path / "work").mkdir()
    parcel = Parcel(tmp_path / "work", federation)
    revoked = revoke_member(federation.folder, name="lab", steward=federation.steward, now=NOW)
    _assert_not_sealed(parcel, MemberNotActive, roster=revoked)
    _assert_not_sealed(parcel, MemberNotActive, roster=revoked, sender=federation.lab.signer, recipients=["hub"])
    _assert_not_sealed(parcel, UnknownMember, sender=Site.make("mallory").signer)
    _assert_not_sealed(parcel, BadSignature, sender=Site.make("clinic").signer)
    _assert_not_sealed(parcel, CannotDispatch, sender=federation.lab.signer, recipients=["hub"])
    _assert_not_sealed(parcel, CannotDispatch, federation="highlands")
    _assert_not_sealed(parcel, CannotDispatch, round_number=2)
    relay = replace(federation.roster.members["lab"], roles=frozenset({"relay"}))
    weaker = replace(federation.roster, members={**federation.roster.members, "lab": relay})
    _assert_not_sealed(parcel, WrongRole, roster=weaker)
    assert _seal(parcel).recipients == ("hub", "lab")  # control


def test_what_is_no_organ_gets_no_passport(tmp_path: Path) -> None:
    for number, data in enumerate((b"", b"\x80\x04pickle", organ_bytes()[:-1])):
        path = tmp_path / f"{number}"
        path.write_bytes(data)
        with pytest.raises(InputError):
            new_passport(path, author="clinic", federation=FEDERATION, round_number=0, now=NOW)


def test_nobody_issues_a_passport_for_another(parcel: Parcel) -> None:
    with pytest.raises(InputError):
        issue_passport(parcel.passport, signer=parcel.federation.lab.signer)


def test_a_label_that_is_in_the_way_leaves_no_sealed_file(parcel: Parcel) -> None:
    label_path(parcel.folder / "again.sealed").write_bytes(b"mine")
    _assert_not_sealed(parcel, OutputExists)


def test_an_output_that_appears_meanwhile_leaves_no_label(parcel: Parcel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody takes the name while the organ is being sealed: their file stays, and no label lies beside it."""
    encrypt, out = module._encrypt, parcel.folder / "again.sealed"

    def then(*arguments: object) -> str:
        out.write_bytes(b"theirs")
        return encrypt(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_encrypt", then)
    with pytest.raises(OutputExists):
        _seal(parcel)
    assert out.read_bytes() == b"theirs"
    assert not label_path(out).exists()
