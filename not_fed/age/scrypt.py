"""Key files under a passphrase: age files with one scrypt stanza, which `age -d` opens too.

Source: c2sp.org/age, "the scrypt recipient type".
"""

from __future__ import annotations

import os
import re
from io import BytesIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from not_fed.age.header import FILE_KEY_BYTES, BadContainer, Header, Stanza, decode64, encode64, read_header
from not_fed.age.whole import read_payload, write_whole
from not_fed.errors import TrustError

MAX_WORK_FACTOR = 20  # 1 GiB and some seconds; a hostile file may not ask for more
_KIND = "scrypt"
_LABEL = b"age-encryption.org/v1/scrypt"
_SALT_BYTES = 16
_DECIMAL = re.compile(r"[1-9][0-9]?")
_ZERO_NONCE = bytes(12)


class PassphraseRefused(TrustError):
    """The passphrase is wrong, or the key file was altered."""

    code = "passphrase-refused"


def encrypt_with_passphrase(plain: bytes, *, passphrase: bytes, work_factor: int) -> bytes:
    """A whole age file that only the passphrase opens; scrypt with N = 2**work_factor, r = 8, p = 1."""
    file_key, salt = os.urandom(FILE_KEY_BYTES), os.urandom(_SALT_BYTES)
    wrapped = ChaCha20Poly1305(_stretch(passphrase, salt, work_factor)).encrypt(_ZERO_NONCE, file_key, None)
    stanza = Stanza(kind=_KIND, arguments=(encode64(salt), str(work_factor)), body=wrapped)
    return write_whole([stanza], file_key=file_key, plain=plain)


def decrypt_with_passphrase(data: bytes, *, passphrase: bytes, max_work_factor: int = MAX_WORK_FACTOR) -> bytes:
    """The content of such a file.

    Raises:
        BadContainer: not an age file with exactly one scrypt stanza, or one that asks for too much work.
        PassphraseRefused: anything that a wrong passphrase or an altered file would cause.
    """
    file = BytesIO(data)
    header = read_header(file)
    salt, work_factor, wrapped = _read_stanza(header)
    if work_factor > max_work_factor:
        raise BadContainer.because(f"scrypt work factor {work_factor}, above {max_work_factor}", where="key file")
    try:
        file_key = ChaCha20Poly1305(_stretch(passphrase, salt, work_factor)).decrypt(_ZERO_NONCE, wrapped, None)
        header.check(file_key)
        return read_payload(file, file_key=file_key, size_bytes=len(data) - header.size_bytes)
    except (InvalidTag, BadContainer):
        raise PassphraseRefused(
            where="key file", expected="its passphrase", got="another, or an altered file",
            hint="try again; without the passphrase the key is lost",
        ) from None  # fmt: skip


def _read_stanza(header: Header) -> tuple[bytes, int, bytes]:
    stanza = header.stanzas[0]
    well_formed = len(header.stanzas) == 1 and stanza.kind == _KIND and len(stanza.arguments) == 2
    if not well_formed or not _DECIMAL.fullmatch(stanza.arguments[1]):
        raise BadContainer.because("no single scrypt stanza", where="key file")
    salt = decode64(stanza.arguments[0])
    if len(salt) != _SALT_BYTES or len(stanza.body) != FILE_KEY_BYTES + 16:
        raise BadContainer.because("a scrypt stanza of another length", where="key file")
    return salt, int(stanza.arguments[1]), stanza.body


def _stretch(passphrase: bytes, salt: bytes, work_factor: int) -> bytes:
    return Scrypt(salt=_LABEL + salt, length=32, n=1 << work_factor, r=8, p=1).derive(passphrase)
