"""A key folder: mode 0700, secrets 0600 and encrypted, and the public identity beside them.

seal.key       age scrypt file: an age identity; `age -d -i` understands what is inside
sign.key       age scrypt file: two PKCS#8 keys, Ed25519 and ML-DSA-65
roster.key     the same for a steward of a roster, with other keys
log.key        the same for whoever keeps the log, with Ed25519 and ML-DSA-44
identity.json  public: hand it out
steward.json   public: a steward's
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TypeVar

from not_fed import files
from not_fed.age import BadContainer, BadKeyText, HybridIdentity, decrypt_with_passphrase, encrypt_with_passphrase
from not_fed.age.hybrid import SEED_BYTES, identity_text
from not_fed.errors import InputError, TrustError
from not_fed.keys.identity import PublicIdentity, check_name, load_public_identity, read_identity, sign_identity
from not_fed.keys.log_keys import LogSigner
from not_fed.keys.sealing import Opener
from not_fed.keys.secret import Secret
from not_fed.keys.signing import FileSigner, Signer, Steward
from not_fed.keys.steward import load_steward_identity, sign_steward_identity

WORK_FACTOR = 18  # 0.8 s and 256 MiB for each guess
MAX_KEY_FILE_BYTES = 64 * 1024


class KeyExposed(TrustError):
    """Others on this machine could read or replace this key."""

    code = "key-exposed"


class KeyMismatch(TrustError):
    """The keys in this folder do not belong together."""

    code = "key-mismatch"


class BadPassphrase(InputError):
    """A passphrase is needed to protect the keys."""

    code = "bad-passphrase"


def create_keys(
    folder: Path, *, name: str, passphrase: Secret, work_factor: int = WORK_FACTOR, steward: bool = False,
    log: bool = False,
) -> PublicIdentity:  # fmt: skip
    """Make a key folder; it appears whole or not at all.

    Args:
        folder: must not exist yet.
        name: what the site will be called on rosters.
        work_factor: scrypt's cost, 2**work_factor; lower it in tests only.
        steward: add `roster.key`, with which a roster can be created and changed, and `steward.json`.
        log: add `log.key`, with which a log's checkpoints are signed.
    Raises:
        OutputExists, BadName, BadPassphrase.
    """
    check_name(name)
    if not passphrase.reveal():
        raise BadPassphrase(where="passphrase", expected="at least one character", got="none", hint="choose a long one")
    signer, seed = FileSigner.generate(name), os.urandom(SEED_BYTES)
    recipient, now = HybridIdentity(seed).recipient, datetime.now(UTC).replace(microsecond=0)
    age_identity = f"# created: {now.isoformat()}\n# public key: {recipient}\n{identity_text(seed)}\n".encode()
    secrets = {"seal.key": age_identity, "sign.key": signer.pem()}
    public: dict[str, bytes] = {}
    log_signer = LogSigner.generate(name) if log else None
    if log_signer:
        secrets["log.key"] = log_signer.pem()
    if steward:
        roster_keys = Steward.generate(name)
        secrets["roster.key"] = roster_keys.pem()
        public["steward.json"] = sign_steward_identity(roster_keys, now=now)
    public["identity.json"] = line = sign_identity(signer, seal=recipient, now=now, log=log_signer)
    with files.new_folder(folder) as part:
        for file_name, plain in secrets.items():
            sealed = encrypt_with_passphrase(plain, passphrase=passphrase.reveal(), work_factor=work_factor)
            files.write_atomic(part / file_name, sealed)
        for file_name, signed in public.items():
            files.write_atomic(part / file_name, signed + b"\n", mode=0o644)
    return read_identity(line, where="identity.json")


def load_signer(folder: Path, *, passphrase: Secret) -> Signer:
    """The site's signing keys, checked against its identity.

    Raises:
        KeyExposed: the folder or the file is a symbolic link, another user's, or readable by others.
        PassphraseRefused, KeyMismatch; and InputError when a file is missing.
    """
    identity, plain = _load_secret(folder, "sign.key", passphrase)
    return _checked(lambda: FileSigner.from_pem(identity.name, plain), identity.signing, folder / "sign.key")


def load_steward(folder: Path, *, passphrase: Secret) -> Steward:
    """A steward's roster keys, checked against `steward.json`; errors as `load_signer`."""
    identity, plain = _load_secret(folder, "roster.key", passphrase)
    public = load_steward_identity(folder / "steward.json").keys
    return _checked(lambda: Steward.from_pem(identity.name, plain), public, folder / "roster.key")


def load_log_signer(folder: Path, *, passphrase: Secret) -> LogSigner:
    """The keys of a log, checked against the identity; errors as `load_signer`."""
    identity, plain = _load_secret(folder, "log.key", passphrase)
    return _checked(lambda: LogSigner.from_pem(identity.name, plain), identity.log, folder / "log.key")


def load_opener(folder: Path, *, passphrase: Secret) -> Opener:
    """The site's decryption identity; errors as `load_signer`."""
    identity, plain = _load_secret(folder, "seal.key", passphrase)
    lines = [line for line in plain.decode("utf-8", "replace").splitlines() if line and not line.startswith("#")]
    try:
        secret = HybridIdentity.from_text(lines[0] if len(lines) == 1 else "")
    except BadKeyText:
        raise _mismatch(folder / "seal.key", "something else than one age identity") from None
    if secret.recipient != identity.seal:
        raise _mismatch(folder / "seal.key", "the key of another identity")
    return Opener(name=identity.name, identity=secret)


class _Private(Protocol):
    @property
    def public(self) -> object: ...


_Kind = TypeVar("_Kind", bound=_Private)


def _checked(read: Callable[[], _Kind], public: object, path: Path) -> _Kind:
    try:
        pair = read()
    except (ValueError, TypeError):
        raise _mismatch(path, "something else than two private keys of its kind") from None
    if pair.public != public:  # a steward's keys are never the site's
        raise _mismatch(path, "keys for another purpose or identity")
    return pair


def _load_secret(folder: Path, file_name: str, passphrase: Secret) -> tuple[PublicIdentity, bytes]:
    _check_folder(folder)
    identity = load_public_identity(folder / "identity.json")
    with files.open_regular(folder / file_name, max_bytes=MAX_KEY_FILE_BYTES) as file:
        _check_private(os.fstat(file.fileno()), folder / file_name)
        data = file.read(MAX_KEY_FILE_BYTES + 1)
    return identity, decrypt_with_passphrase(data, passphrase=passphrase.reveal())


def _check_folder(folder: Path) -> None:
    try:
        status = os.lstat(folder)
    except (OSError, ValueError):
        raise files.NotAFile(
            where=str(folder), expected="a key folder", got="none", hint="make one: not-fed keys create"
        ) from None
    if not stat.S_ISDIR(status.st_mode):
        raise KeyExposed(where=str(folder), expected="a folder", got="a link or a file", hint="name the folder itself")
    _check_private(status, folder)


def _check_private(status: os.stat_result, path: Path) -> None:
    if status.st_uid != os.geteuid():
        raise KeyExposed(where=str(path), expected="a key of your own", got="another user's", hint=f"chown {path.name}")
    if status.st_mode & 0o077:
        raise KeyExposed(
            where=str(path), expected="no access for group and others", got=f"mode {stat.S_IMODE(status.st_mode):04o}",
            hint=f"chmod go= {path}; if others had access, make new keys",
        )  # fmt: skip


def _mismatch(path: Path, got: str) -> KeyMismatch:
    return KeyMismatch(
        where=path.name,
        expected="the key of this folder's identity.json",
        got=got,
        hint="restore the whole folder",
    )


__all__ = [
    "WORK_FACTOR", "BadContainer", "BadPassphrase", "KeyExposed", "KeyMismatch", "create_keys", "load_log_signer",
    "load_opener", "load_signer", "load_steward",
]  # fmt: skip
