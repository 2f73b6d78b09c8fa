"""The key with which a site's connection proves itself to Flower: it opens the door, and signs and opens nothing else.

Flower wants an EC key without a passphrase: whoever copies it from the site's disk can take the site's place on the
line, receive ciphertext and say nothing that counts, because organs and greetings are signed by the site's own keys.
"""

from __future__ import annotations

import binascii
import hashlib
from base64 import b64decode
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from not_fed import files
from not_fed.errors import InputError

MAX_KEY_CHARACTERS = 1024
MAX_KEY_BYTES = 4096
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)  # of those that Flower takes, the ones that are current


class BadNodeKey(InputError):
    """This is not a key for a site's connection."""

    code = "bad-node-key"


def create_node_key(private: Path) -> str:
    """Make a key for a site's connection.

    Args:
        private: where the private half goes, in OpenSSH's format, mode 0600; must not exist.
    Returns:
        the public half as OpenSSH's one line, without a comment.
    Raises:
        OutputExists, NotAFile, NoSpace.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    files.write_atomic(private, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    return _public_text(key.public_key())


def node_public_key(private: Path) -> str:
    """The public half of a private key file, as `create_node_key` returned it; raises BadNodeKey, NotAFile."""
    data = files.read_regular(private, max_bytes=MAX_KEY_BYTES)
    try:
        key = serialization.load_ssh_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise _bad("a private EC key in OpenSSH's format, without a passphrase", where=private.name) from None
    return _public_text(_checked(key.public_key(), where=private.name))


def node_key_id(public: str) -> str:
    """The name of a connection's key: hex SHA-256 of the bytes by which Flower knows it.

    Args:
        public: OpenSSH's one line; a comment after the key makes no difference.
    Raises:
        BadNodeKey: not one line, not an EC key, or not on the curve P-256, P-384 or P-521.
    """
    text = public.strip()
    if len(text) > MAX_KEY_CHARACTERS or "\n" in text or not text.isascii():
        raise _bad("one line of OpenSSH's format")
    try:
        key = serialization.load_ssh_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise _bad("one line of OpenSSH's format") from None
    pem = _checked(key).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def node_key_id_of_header(value: str | None) -> str | None:
    """The same name, from the header in which Flower's SuperNode sends its key; None when that is no such header.

    Whether the sender holds the key is for Flower to check: another spelling of the same key gets another name.
    """
    if value is None or len(value) > MAX_KEY_CHARACTERS or not value.isascii():
        return None
    try:
        pem = b64decode(value, validate=True)
    except (ValueError, binascii.Error):
        return None
    return hashlib.sha256(pem).hexdigest()


def _checked(key: object, *, where: str = "node key") -> ec.EllipticCurvePublicKey:
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
        raise _bad("an EC key on P-256, P-384 or P-521", where=where)
    return key


def _public_text(key: ec.EllipticCurvePublicKey) -> str:
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def _bad(expected: str, *, where: str = "node key") -> BadNodeKey:
    return BadNodeKey(where=where, expected=expected, got="something else", hint="`not-fed site init` makes one")
