"""Key folders are made and rotated whole: a kill leaves no folder or a complete one, the old one or the new one.

Rotation builds the new folder beside the old one and lets the kernel exchange their names, because four files change
that belong together: no order of single replacements would keep every moment consistent.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from not_fed import files
from not_fed.age import encrypt_with_passphrase
from not_fed.errors import InputError, NotFedError
from not_fed.keys.folder import KeyFolder, open_key_folder
from not_fed.keys.hsm import Pkcs11Signer, Token
from not_fed.keys.identity import PublicIdentity, check_name, read_identity, sign_identity
from not_fed.keys.log_keys import LogSigner
from not_fed.keys.sealing import SealKey
from not_fed.keys.secret import Secret
from not_fed.keys.signing import FileSigner, Steward
from not_fed.keys.steward import sign_steward_identity
from not_fed.keys.succession import sign_succession

WORK_FACTOR = 18  # 0.8 s and 256 MiB for each guess
KEEP_RETIRED = timedelta(days=90)
MAX_RETIRED = 200
_RENEWED = ("seal.key", "sign.key", "identity.json", "succession.json")


class BadPassphrase(InputError):
    """A passphrase is needed to protect the keys."""

    code = "bad-passphrase"


class TooManyRetired(InputError):
    """Too many retired sealing keys are kept."""

    code = "too-many-retired-keys"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """What a rotation did: who follows whom, and what became of the sealing keys.

    `kept` says when each retired sealing key that still opens old organs was retired, newest first.
    """

    old: PublicIdentity
    new: PublicIdentity
    kept: tuple[datetime, ...]
    destroyed: int


def create_keys(
    folder: Path, *, name: str, passphrase: Secret, work_factor: int = WORK_FACTOR, steward: bool = False,
    log: bool = False, token: Token | None = None,
) -> PublicIdentity:  # fmt: skip
    """Make a key folder; it appears whole or not at all.

    Args:
        folder: must not exist yet.
        name: what the site will be called on rosters.
        work_factor: scrypt's cost, 2**work_factor; lower it in tests only.
        steward: add `roster.key`, with which a roster can be created and changed, and `steward.json`.
        log: add `log.key`, with which a log's checkpoints are signed.
        token: make the Ed25519 half of `sign.key` in this PKCS#11 token, to stay there.
    Raises:
        OutputExists, BadName, BadPassphrase; and what `Pkcs11Signer.generate` raises.
    """
    check_name(name)
    if not passphrase.reveal():
        raise BadPassphrase(where="passphrase", expected="at least one character", got="none", hint="choose a long one")
    now = _moment(None)
    seal_key = SealKey.generate(now=now)
    secrets, public = {"seal.key": seal_key.lines.reveal()}, {}
    log_signer = LogSigner.generate(name) if log else None
    if log_signer:
        secrets["log.key"] = log_signer.pem()
    if steward:
        roster_keys = Steward.generate(name)
        secrets["roster.key"], public["steward.json"] = roster_keys.pem(), sign_steward_identity(roster_keys, now=now)
    with ExitStack() as undo:
        with files.new_folder(folder) as part:
            signer = Pkcs11Signer.generate(name, token=token) if token else FileSigner.generate(name)
            undo.callback(_destroy_unused, signer, folder=folder)
            line = sign_identity(signer, seal=seal_key.identity.recipient, now=now, log=log_signer)
            secrets["sign.key"], public["identity.json"] = signer.key_file(), line
            _write(part, secrets, passphrase=passphrase, work_factor=work_factor)
            _publish(part, public)
        undo.pop_all()
    return read_identity(line, where="identity.json")


def rotate_keys(
    folder: Path, *, passphrase: Secret, keep: timedelta = KEEP_RETIRED, work_factor: int = WORK_FACTOR,
    now: datetime | None = None,
) -> Rotation:  # fmt: skip
    """New signing and sealing keys in a key folder; a steward's and a log's keys stay as they are.

    Args:
        keep: for how long after its retirement a sealing key still opens what was sealed to it. Older ones, and the old
            signing keys in any case, are destroyed: deleted, which a copy or a flash disk's spare blocks may survive.
    Returns:
        the old and the new identity; hand out `identity.json` and `succession.json`.
    Raises:
        as `load_signer`; FolderBusy: another rotation is at work. TooManyRetired: shorten `keep`.
    Guarantees:
        A kill at any moment leaves the old folder or the new one; other files in it come along. What a kill kept it
        from deleting (a hidden folder beside this one, under the same passphrase) the next rotation deletes. In a token
        a kill may leave one key too many: a new one that nothing names, or the old one.
    Proved by: tests/unit/test_keys_rotate.py::test_a_kill_leaves_the_old_keys_or_the_new_ones
    """
    moment = _moment(now)
    with open_key_folder(folder):
        pass  # private, or nothing is made beside it
    with ExitStack() as undo:
        with files.replace_folder(folder) as part, open_key_folder(folder) as opened:
            old, old_signer, keys = opened.identity(), opened.signer(passphrase), opened.seal_keys(passphrase)
            log_signer = opened.log_signer(passphrase) if old.log else None
            kept = _kept([keys[0].retire(now=moment), *keys[1:]], now=moment, keep=keep)
            seal_key, signer = SealKey.generate(now=moment), _successor(old_signer)
            undo.callback(_destroy_unused, signer, folder=folder)
            line = sign_identity(signer, seal=seal_key.identity.recipient, now=moment, log=log_signer)
            new = read_identity(line, where="identity.json")
            succession = sign_succession(old_signer, old=old, new=new, now=moment)
            _copy_rest(opened, part, succession=succession)
            seal_file = b"".join(key.lines.reveal() for key in (seal_key, *kept))
            secrets = {"seal.key": seal_file, "sign.key": signer.key_file()}
            _write(part, secrets, passphrase=passphrase, work_factor=work_factor)
            _publish(part, {"identity.json": line, "succession.json": succession})
        undo.pop_all()
    _destroy(old_signer)
    times = tuple(key.retired for key in kept if key.retired)
    return Rotation(old=old, new=new, kept=times, destroyed=len(keys) - len(kept))


def _kept(retired: Sequence[SealKey], *, now: datetime, keep: timedelta) -> list[SealKey]:
    kept = [key for key in retired if key.retired and now - key.retired < keep]
    if len(kept) > MAX_RETIRED:
        raise TooManyRetired(
            where="seal.key", expected=f"at most {MAX_RETIRED} retired keys", got=str(len(kept)),
            hint="keep them for fewer days",
        )  # fmt: skip
    return kept


def _successor(signer: FileSigner | Pkcs11Signer) -> FileSigner | Pkcs11Signer:
    if isinstance(signer, Pkcs11Signer):
        return Pkcs11Signer.generate(signer.name, token=signer.token)
    return FileSigner.generate(signer.name)


def _destroy_unused(signer: FileSigner | Pkcs11Signer, *, folder: Path) -> None:
    """Undo a key of a command that failed, unless the folder names it already: then only the tidying was cut short."""
    with suppress(NotFedError), open_key_folder(folder) as there:
        if there.identity().signing == signer.public:
            return
    _destroy(signer)


def _destroy(signer: FileSigner | Pkcs11Signer) -> None:
    """A key file goes with its folder; a token's key by itself. A token that fails now must not hide what happened."""
    if isinstance(signer, Pkcs11Signer):
        with suppress(NotFedError):
            signer.destroy()


def _write(folder: Path, secrets: Mapping[str, bytes], *, passphrase: Secret, work_factor: int) -> None:
    for name, plain in secrets.items():
        sealed = encrypt_with_passphrase(plain, passphrase=passphrase.reveal(), work_factor=work_factor)
        files.write_atomic(folder / name, sealed)


def _publish(folder: Path, lines: Mapping[str, bytes]) -> None:
    for name, line in lines.items():
        files.write_atomic(folder / name, line + b"\n", mode=0o644)


def _copy_rest(old: KeyFolder, part: Path, *, succession: bytes) -> None:
    """What a rotation does not renew, files that are not ours included, links as links; and one more of `retired`."""

    def renewed(where: str, names: Iterable[str]) -> set[str]:
        return set(names) & set(_RENEWED) if Path(where) == old.path else set()

    try:
        shutil.copytree(old.path, part, symlinks=True, ignore=renewed, dirs_exist_ok=True)
        (part / "retired").mkdir(mode=0o700, exist_ok=True)
        numbers = [int(entry.name) for entry in (part / "retired").iterdir() if entry.name.isdecimal()]
        place = part / "retired" / str(max(numbers, default=0) + 1)
        place.mkdir(mode=0o700)
        shutil.copyfile(old.path / "identity.json", place / "identity.json", follow_symlinks=False)
    except OSError:  # a FIFO, a full disk; shutil.Error is one too
        raise files.NotAFile(
            where=str(old.path), expected="files that can be copied", got="something else", hint="nothing was changed"
        ) from None
    _publish(place, {"succession.json": succession})


def _moment(now: datetime | None) -> datetime:
    return (now or datetime.now(UTC)).replace(microsecond=0)


__all__ = [
    "KEEP_RETIRED", "WORK_FACTOR", "BadPassphrase", "Rotation", "TooManyRetired", "create_keys", "rotate_keys",
]  # fmt: skip
