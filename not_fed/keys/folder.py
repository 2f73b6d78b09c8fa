"""A key folder: mode 0700, secrets 0600 and encrypted, and the public identities beside them.

seal.key         age scrypt file: age identities, the current one first, then retired ones; `age -d -i` understands it
sign.key         age scrypt file: two PKCS#8 keys, Ed25519 and ML-DSA-65; or a token's URI and one key (hsm.py)
roster.key       two such keys, others, of a steward of a roster
log.key          two such keys, Ed25519 and ML-DSA-44, of whoever keeps the log
identity.json    public: hand it out
steward.json     public: a steward's
succession.json  public: the last identity's word for this one
retired/N/       public: the Nth identity, and its succession.json

The folder is opened once and everything is read from that descriptor: nobody can put another folder in its place
between a check and the reading.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from not_fed import files
from not_fed.age import BadKeyText, decrypt_with_passphrase
from not_fed.errors import TrustError
from not_fed.keys.hsm import Pkcs11Signer
from not_fed.keys.identity import MAX_IDENTITY_BYTES, PublicIdentity, read_identity
from not_fed.keys.log_keys import LogSigner
from not_fed.keys.sealing import Opener, SealKey, read_seal_keys
from not_fed.keys.secret import Secret
from not_fed.keys.signing import FileSigner, Steward
from not_fed.keys.steward import read_steward_identity
from not_fed.keys.token_uri import SCHEME

MAX_KEY_FILE_BYTES = 1 << 20


class KeyExposed(TrustError):
    """Others on this machine could read or replace this key."""

    code = "key-exposed"


class KeyMismatch(TrustError):
    """The keys in this folder do not belong together."""

    code = "key-mismatch"


class _Private(Protocol):
    @property
    def public(self) -> object: ...


_Kind = TypeVar("_Kind", bound=_Private)


@dataclass(frozen=True, slots=True)
class KeyFolder:
    """A key folder, held open and seen to be private; every method raises what `load_signer` raises."""

    path: Path
    descriptor: int

    def identity(self) -> PublicIdentity:
        """Whose keys these are."""
        return read_identity(self._public("identity.json"), where="identity.json")

    def signer(self, passphrase: Secret) -> FileSigner | Pkcs11Signer:
        """The site's signing keys."""
        identity, plain = self.identity(), self._secret("sign.key", passphrase)
        kind = Pkcs11Signer.from_key_file if plain.startswith(SCHEME.encode()) else FileSigner.from_pem
        read: Callable[[], FileSigner | Pkcs11Signer] = lambda: kind(identity.name, plain)  # noqa: E731  names the type
        return _checked(read, identity.signing, "sign.key")

    def steward(self, passphrase: Secret) -> Steward:
        """A steward's roster keys."""
        identity, plain = self.identity(), self._secret("roster.key", passphrase)
        public = read_steward_identity(self._public("steward.json"), where="steward.json")
        return _checked(lambda: Steward.from_pem(identity.name, plain), public.keys, "roster.key")

    def log_signer(self, passphrase: Secret) -> LogSigner:
        """The keys of a log."""
        identity, plain = self.identity(), self._secret("log.key", passphrase)
        return _checked(lambda: LogSigner.from_pem(identity.name, plain), identity.log, "log.key")

    def seal_keys(self, passphrase: Secret) -> list[SealKey]:
        """The decryption identities, the current one first."""
        identity = self.identity()
        try:
            keys = read_seal_keys(self._secret("seal.key", passphrase))
        except (BadKeyText, ValueError):
            raise mismatch("seal.key", "something else than age identities, the current one first") from None
        if keys[0].identity.recipient != identity.seal:
            raise mismatch("seal.key", "the key of another identity")
        return keys

    def has(self, name: str) -> bool:
        """Whether there is anything of that name."""
        try:
            os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _public(self, name: str) -> bytes:
        return self._read(name, MAX_IDENTITY_BYTES, private=False).removesuffix(b"\n")

    def _secret(self, name: str, passphrase: Secret) -> bytes:
        return decrypt_with_passphrase(
            self._read(name, MAX_KEY_FILE_BYTES, private=True), passphrase=passphrase.reveal()
        )

    def _read(self, name: str, max_bytes: int, *, private: bool) -> bytes:
        with files.open_regular(self.path / name, max_bytes=max_bytes, folder=self.descriptor) as file:
            if private:
                _check_private(os.fstat(file.fileno()), self.path / name)
            return file.read(max_bytes + 1)


def load_signer(folder: Path, *, passphrase: Secret) -> FileSigner | Pkcs11Signer:
    """The site's signing keys, checked against its identity; a `Signer`, wherever its keys are.

    Raises:
        KeyExposed: the folder or the file is a symbolic link, another user's, or readable by others.
        PassphraseRefused, KeyMismatch; InputError when a file is missing; and what hsm.py raises about a token.
    """
    with open_key_folder(folder) as opened:
        return opened.signer(passphrase)


def load_steward(folder: Path, *, passphrase: Secret) -> Steward:
    """A steward's roster keys, checked against `steward.json`; errors as `load_signer`."""
    with open_key_folder(folder) as opened:
        return opened.steward(passphrase)


def load_log_signer(folder: Path, *, passphrase: Secret) -> LogSigner:
    """The keys of a log, checked against the identity; errors as `load_signer`."""
    with open_key_folder(folder) as opened:
        return opened.log_signer(passphrase)


def load_opener(folder: Path, *, passphrase: Secret) -> Opener:
    """The site's decryption identities, retired ones too; errors as `load_signer`."""
    with open_key_folder(folder) as opened:
        current, *retired = opened.seal_keys(passphrase)
        return Opener(opened.identity().name, current.identity, tuple(key.identity for key in retired))


@contextmanager
def open_key_folder(folder: Path) -> Iterator[KeyFolder]:
    """The folder behind `folder`, and no other one until the block ends; raises KeyExposed or NotAFile."""
    files.recover_folder(folder)
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise KeyExposed(
                where=str(folder), expected="a folder", got="a link or a file", hint="name the folder itself"
            ) from None
        raise files.NotAFile(
            where=str(folder), expected="a key folder", got="none", hint="make one: not-fed keys create"
        ) from None
    try:
        _check_private(os.fstat(descriptor), folder)
        yield KeyFolder(folder, descriptor)
    finally:
        os.close(descriptor)


def _checked(read: Callable[[], _Kind], public: object, name: str) -> _Kind:
    try:
        pair = read()
    except (ValueError, TypeError):
        raise mismatch(name, "something else than two private keys of its kind") from None
    if pair.public != public:  # a steward's keys are never the site's
        raise mismatch(name, "keys for another purpose or identity")
    return pair


def _check_private(status: os.stat_result, path: Path) -> None:
    if status.st_uid != os.geteuid():
        raise KeyExposed(where=str(path), expected="a key of your own", got="another user's", hint=f"chown {path.name}")
    if status.st_mode & 0o077:
        raise KeyExposed(
            where=str(path), expected="no access for group and others", got=f"mode {stat.S_IMODE(status.st_mode):04o}",
            hint=f"chmod go= {path}; if others had access, make new keys",
        )  # fmt: skip


def mismatch(name: str, got: str) -> KeyMismatch:
    """The error for one observation in one file of a folder."""
    return KeyMismatch(
        where=name, expected="the key of this folder's identity.json", got=got, hint="restore the whole folder"
    )
