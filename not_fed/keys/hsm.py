"""An Ed25519 key that never leaves a PKCS#11 token; its ML-DSA-65 partner stays in the key file.

PKCS#11 knows ML-DSA from version 3.2 on. SoftHSM 2.6, and the tokens that hospitals own today, speak 2.40 or 3.0: they
have Ed25519 (CKM_EDDSA) at best. So the token guards the one half, the passphrase the other, and a forger needs both.
`sign.key` then holds, under the passphrase, an RFC 7512 URI with the token's PIN instead of a private Ed25519 key.

One session for each signature: a token logs in whole processes, and two signers must not log each other out.
Source: RFC 7512; OASIS PKCS#11 Cryptographic Token Interface, 3.0, section 2.3.14 (EdDSA)
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

from not_fed.errors import InputError, TrustError
from not_fed.keys.secret import Secret
from not_fed.keys.signing import ED25519_BYTES, SigningKeys, read_key, to_pem
from not_fed.keys.token_uri import TokenUri, TokenUriRefused, read_token_uri

if TYPE_CHECKING:
    import pkcs11

_ED25519_OID = bytes.fromhex("06032b6570")  # 1.3.101.112, RFC 8410
_OCTET_STRING = bytes.fromhex("0420")
_LOGIN = threading.Lock()


class TokenModuleRefused(TrustError):
    """This PKCS#11 module is missing, or others on this machine could replace it."""

    code = "token-module"


class TokenSupportMissing(InputError):
    """The Python package that speaks PKCS#11 is not installed."""

    code = "token-support-missing"


class TokenMissing(InputError):
    """The token, or the key that should be in it, is not there."""

    code = "token-missing"


class TokenPinRefused(TrustError):
    """The token did not take this PIN."""

    code = "token-pin-refused"


class TokenPinLocked(TrustError):
    """The token's PIN is locked after too many wrong ones."""

    code = "token-pin-locked"


class TokenKeyExposed(TrustError):
    """The key in the token could be taken out, or came from outside."""

    code = "token-key-exposed"


class TokenFailed(TrustError):
    """The token did not do what was asked."""

    code = "token-failed"


@dataclass(frozen=True, slots=True)
class Token:
    """A token and the PIN that opens it; `uri.object_id` names a key in it."""

    uri: TokenUri
    pin: Secret


class Pkcs11Signer:
    """The Signer whose Ed25519 key is in a token. Cannot be printed or pickled.

    Guarantees: every signature of the token is verified before it is handed out; the token alone signs nothing that
    anybody accepts.
    Proved by: tests/unit/test_keys_hsm.py::test_a_tokens_signature_is_one_like_any_other
    """

    __slots__ = ("_ml_dsa_65", "_token", "name", "public")

    def __init__(self, name: str, *, token: Token, ed25519: bytes, ml_dsa_65: MLDSA65PrivateKey) -> None:
        self.name, self._token, self._ml_dsa_65 = name, token, ml_dsa_65
        self.public = SigningKeys(ed25519, ml_dsa_65.public_key().public_bytes_raw())

    @classmethod
    def generate(cls, name: str, *, token: Token) -> Self:
        """New keys: Ed25519 inside the token, there to stay; ML-DSA-65 from the operating system's randomness.

        Raises:
            TokenModuleRefused, TokenSupportMissing, TokenMissing, TokenPinRefused, TokenPinLocked, TokenKeyExposed,
            TokenFailed.
        """
        placed = replace(token, uri=replace(token.uri, object_id=os.urandom(16)))
        with _session(placed, rw=True) as session:
            _generate(session, name, placed)
        return cls(name, token=placed, ed25519=_find(placed), ml_dsa_65=MLDSA65PrivateKey.generate())

    @classmethod
    def from_key_file(cls, name: str, plain: bytes) -> Self:
        """From what `key_file` wrote; raises ValueError or TypeError, and what `generate` raises."""
        line, _, pem = plain.partition(b"\n")
        try:
            uri, pin = read_token_uri(line.decode())
        except (TokenUriRefused, UnicodeDecodeError):
            raise ValueError("no PKCS#11 URI") from None
        ml_dsa_65 = read_key(pem)
        if pin is None or uri.object_id is None or not isinstance(ml_dsa_65, MLDSA65PrivateKey):
            raise ValueError("not a PKCS#11 URI with a PIN and a key, followed by an ML-DSA-65 key")
        token = Token(uri, pin)
        return cls(name, token=token, ed25519=_find(token), ml_dsa_65=ml_dsa_65)

    @property
    def token(self) -> Token:
        """Where the Ed25519 key is."""
        return self._token

    def key_file(self) -> bytes:
        """The token's URI with its PIN, and the ML-DSA-65 key, for the key file's ciphertext and nothing else."""
        return self._token.uri.text(pin=self._token.pin).encode() + b"\n" + to_pem(self._ml_dsa_65)

    def sign(self, message: bytes) -> tuple[bytes, bytes]:
        """Ed25519's and ML-DSA-65's signature over the same bytes; raises what `generate` raises."""
        with _session(self._token) as session:
            from pkcs11 import Mechanism

            signature = bytes(_private_key(session, self._token).sign(message, mechanism=Mechanism.EDDSA))
        try:
            Ed25519PublicKey.from_public_bytes(self.public.ed25519).verify(signature, message)
        except InvalidSignature:  # a fault, or another key under the same id: publishing it could give the key away
            raise _failed("a signature that holds", "one that does not") from None
        return signature, self._ml_dsa_65.sign(message)

    def destroy(self) -> None:
        """Delete the Ed25519 key from the token."""
        with _session(self._token, rw=True) as session:
            for found in session.get_objects({_attribute("ID"): self._token.uri.object_id}):
                found.destroy()

    def __repr__(self) -> str:
        return f"Pkcs11Signer({self.name!r}, hidden)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("private keys stay in this process")


def _attribute(name: str) -> Any:  # noqa: ANN401  the package is optional, so its types are too
    import pkcs11

    return pkcs11.Attribute[name]


def _generate(session: pkcs11.Session, name: str, token: Token) -> None:
    from pkcs11 import Attribute, KeyType, Mechanism

    curve = session.create_domain_parameters(KeyType.EC_EDWARDS, {Attribute.EC_PARAMS: _ED25519_OID}, local=True)
    never = dict.fromkeys((Attribute.EXTRACTABLE, Attribute.DECRYPT, Attribute.UNWRAP, Attribute.DERIVE), False)
    always = dict.fromkeys((Attribute.TOKEN, Attribute.PRIVATE, Attribute.SENSITIVE, Attribute.SIGN), True)
    curve.generate_keypair(
        id=token.uri.object_id, label=f"not-fed {name}", store=True, mechanism=Mechanism.EC_EDWARDS_KEY_PAIR_GEN,
        private_template={**always, **never},
    )  # fmt: skip


def _find(token: Token) -> bytes:
    """The raw public key; raises unless its private half is in the token, was made there and cannot leave it."""
    with _session(token) as session:
        from pkcs11 import Attribute, KeyType, ObjectClass

        private = _private_key(session, token)
        kept = private[Attribute.SENSITIVE] and private[Attribute.NEVER_EXTRACTABLE] and private[Attribute.LOCAL]
        if not kept:
            raise TokenKeyExposed(
                where="token", expected="a key that was made in the token and cannot leave it", got="another",
                hint="make new keys: not-fed keys create --hsm",
            )  # fmt: skip
        public = session.get_key(object_class=ObjectClass.PUBLIC_KEY, key_type=KeyType.EC_EDWARDS,
                                 id=token.uri.object_id)  # fmt: skip
        point = bytes(public[Attribute.EC_POINT])
    raw = point.removeprefix(_OCTET_STRING) if len(point) == ED25519_BYTES + len(_OCTET_STRING) else point
    if len(raw) != ED25519_BYTES:
        raise _failed("an Ed25519 key", f"a key of {len(raw)} bytes")
    return raw


def _private_key(session: pkcs11.Session, token: Token) -> Any:  # noqa: ANN401  mixes several of the package's classes
    from pkcs11 import KeyType, ObjectClass

    return session.get_key(object_class=ObjectClass.PRIVATE_KEY, key_type=KeyType.EC_EDWARDS, id=token.uri.object_id)


@contextmanager
def _session(token: Token, *, rw: bool = False) -> Iterator[pkcs11.Session]:
    """Logged in, alone in this process, and logged out afterwards; the package's errors become ours."""
    library = _library(check_module(token.uri.module_path))
    import pkcs11

    serial = {} if token.uri.serial is None else {"token_serial": token.uri.serial.encode()}
    with _LOGIN:
        try:
            found = library.get_token(token_label=token.uri.token, **serial)
            with found.open(rw=rw, user_pin=_pin_text(token.pin)) as session:
                yield session
        except pkcs11.PKCS11Error as error:
            raise _refusal(error, token.uri) from None


def _library(module: Path) -> Any:  # noqa: ANN401  pkcs11.lib is a function and a class
    try:
        import pkcs11
    except ImportError:
        raise TokenSupportMissing(
            where="python-pkcs11", expected="the package", got="none", hint="pip install 'not-fed[hsm]'"
        ) from None
    try:
        return pkcs11.lib(str(module))
    except (RuntimeError, AttributeError, OSError):  # its PKCS11Error is a RuntimeError
        raise _no_module(module, "one that does not start as such") from None


def _pin_text(pin: Secret) -> str:
    try:
        return pin.reveal().decode()
    except UnicodeDecodeError:
        raise _pin_refused("bytes that are not text", "it is kept in sign.key; make new keys to change it") from None


def check_module(path: Path) -> Path:
    """Where the module really is, once nobody but root and this user can change what would be loaded.

    Guarantees: no expansion of variables or home folders, no search path. Whoever could write the library, or a folder
    above it, would run code in this process.
    Proved by: tests/attacks/test_keys_token.py::test_a_module_that_others_could_replace_is_not_loaded
    """
    if not path.is_absolute() or ".." in path.parts:
        raise _no_module(path, "a relative path")
    try:
        real = path.resolve(strict=True)
        status = [place.stat() for place in (real, *real.parents)]
    except (OSError, ValueError, RuntimeError):
        raise _no_module(path, "none") from None
    if not stat.S_ISREG(status[0].st_mode):
        raise _no_module(path, "a folder or special file")
    for place in status:
        sticky = stat.S_ISDIR(place.st_mode) and place.st_mode & stat.S_ISVTX
        if place.st_uid not in (0, os.geteuid()) or (place.st_mode & 0o022 and not sticky):
            raise _no_module(path, "one that others can replace")
    return real


def _no_module(path: Path, got: str) -> TokenModuleRefused:
    return TokenModuleRefused(
        where=str(path), expected="the absolute path of a PKCS#11 module that only root or you can change", got=got,
        hint="for example module-path=/usr/lib/softhsm/libsofthsm2.so",
    )  # fmt: skip


def _pin_refused(got: str, hint: str) -> TokenPinRefused:
    return TokenPinRefused(where="token", expected="its PIN", got=got, hint=hint)


def _failed(expected: str, got: str) -> TokenFailed:
    return TokenFailed(where="token", expected=expected, got=got, hint="nothing was signed; see the token's own log")


def _refusal(error: pkcs11.PKCS11Error, uri: TokenUri) -> InputError | TrustError:
    """Never the text of `error`: it comes from the module."""
    import pkcs11

    if isinstance(error, pkcs11.PinLocked):
        return TokenPinLocked(
            where="token", expected="a PIN that can be tried", got="a locked one",
            hint="its security officer unlocks it (softhsm2-util, pkcs11-tool --init-pin --login-type so)",
        )  # fmt: skip
    if isinstance(error, pkcs11.PinIncorrect | pkcs11.PinInvalid | pkcs11.PinLenRange | pkcs11.PinExpired):
        return _pin_refused("another", "tokens lock after a few wrong ones: be sure before you try again")
    if isinstance(error, pkcs11.NoSuchToken | pkcs11.MultipleTokensReturned | pkcs11.TokenNotPresent):
        many = isinstance(error, pkcs11.MultipleTokensReturned)
        return TokenMissing(
            where="token", expected=f"one token labelled {uri.token}", got="several" if many else "none",
            hint="plug it in; serial=... in the URI tells two apart; softhsm2-util --show-slots lists them",
        )  # fmt: skip
    if isinstance(error, pkcs11.NoSuchKey | pkcs11.MultipleObjectsReturned):
        return TokenMissing(
            where="token", expected="the Ed25519 key that sign.key names", got="none, or several",
            hint="the key was deleted from the token, or this is another token; make new keys",
        )  # fmt: skip
    if isinstance(error, pkcs11.MechanismInvalid | pkcs11.FunctionNotSupported | pkcs11.AttributeValueInvalid):
        return _failed("Ed25519 (CKM_EDDSA)", "a token without it")
    return _failed("an answer", f"the error {type(error).__name__}")
