"""TLS certificates: an own authority for a federation, one for this machine's loopback, and what a certificate says."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from not_fed import files
from not_fed.canonical import format_time
from not_fed.errors import InputError, NotFedError, TrustError

CA_DAYS, LOOPBACK_DAYS = 3650, 3650
BEFORE = timedelta(hours=1)  # clocks differ
MAX_PEM_BYTES = 1 << 20
LOOPBACK_HOSTS = ("127.0.0.1", "localhost")
_RENEW_LOOPBACK = timedelta(days=365)  # looked at when a program starts, which may then run for months


class BadCertificate(InputError):
    """This file is not a certificate, or not the key of one."""

    code = "bad-certificate"


class CertificateKeyMismatch(InputError):
    """The certificate and the private key do not belong together."""

    code = "certificate-key-mismatch"


class CertificateExpired(TrustError):
    """The certificate's time is over, or has not begun."""

    code = "certificate-expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a certificate says: when it holds, for which hosts, and the hex SHA-256 of its DER."""

    not_before: datetime
    not_after: datetime
    hosts: tuple[str, ...]
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTls:
    """The three files with which a program serves TLS and its clients check it."""

    ca: Path
    certificate: Path
    key: Path


def create_ca(folder: Path, *, name: str = "not-fed") -> Path:
    """Make an authority of one's own in `folder`: `ca.crt`, and `ca.key` with mode 0600.

    Returns:
        the path of `ca.crt`.
    Raises:
        OutputExists: one of the two is there. NotAFile, NoSpace.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    files.require_free(folder / "ca.crt")
    files.write_atomic(folder / "ca.key", _pem(key))
    files.write_atomic(folder / "ca.crt", _authority(key, name).public_bytes(Encoding.PEM), mode=0o644)
    return folder / "ca.crt"


def issue_server_certificate(
    folder: Path, *, ca: Path, hosts: Sequence[str], days: int, name: str = "server"
) -> Path:  # fmt: skip
    """A server's certificate, `NAME.crt`, from the authority in the folder `ca`; its key is `NAME.key`, mode 0600.

    A key that is there is kept, so that a renewal changes one file, and a kill leaves the old certificate or the new.

    Args:
        hosts: DNS names and IP addresses, the first also as the common name.
    Returns:
        the path of `NAME.crt`.
    Raises:
        BadCertificate: the authority's files, or the key that is there. NotAFile, NoSpace.
    """
    authority, authority_key = _read(ca / "ca.crt"), _read_key(ca / "ca.key")
    key_path, path = folder / f"{name}.key", folder / f"{name}.crt"
    if not key_path.is_file():
        files.write_atomic(key_path, _pem(ec.generate_private_key(ec.SECP256R1())))
    certificate = _server(_read_key(key_path), authority, authority_key, hosts, days)
    files.write_atomic(path, certificate.public_bytes(Encoding.PEM), overwrite=True, mode=0o644)
    return path


def loopback_tls(folder: Path) -> ServerTls:
    """Certificates for programs of this machine that talk to each other over 127.0.0.1; renewed when their time nears.

    The authority's key is thrown away as soon as it has signed: nobody can ever issue a second certificate.
    """
    tls = ServerTls(ca=folder / "ca.crt", certificate=folder / "loopback.crt", key=folder / "loopback.key")
    if not _holds(tls):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        authority_key, key = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP256R1())
        authority = _authority(authority_key, "not-fed loopback")
        certificate = _server(key, authority, authority_key, LOOPBACK_HOSTS, LOOPBACK_DAYS)
        files.write_atomic(tls.key, _pem(key), overwrite=True)
        files.write_atomic(tls.certificate, certificate.public_bytes(Encoding.PEM), overwrite=True)
        files.write_atomic(tls.ca, authority.public_bytes(Encoding.PEM), overwrite=True)
    return tls


def read_certificate(path: Path) -> Facts:
    """What the first certificate of a PEM file says; raises BadCertificate, NotAFile."""
    certificate = _read(path)
    return Facts(
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        hosts=_hosts(certificate),
        fingerprint=hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest(),
    )


def require_current(path: Path, now: datetime) -> Facts:
    """Refuse a certificate whose time is over or has not begun.

    Raises:
        CertificateExpired, naming the file and both dates; BadCertificate, NotAFile.
    """
    facts = read_certificate(path)
    if not facts.not_before <= now < facts.not_after:
        raise CertificateExpired(
            where=f"certificate {path.name}, {facts.fingerprint[:12]}",
            expected=f"a time from {format_time(facts.not_before)} to {format_time(facts.not_after)}",
            got=f"{format_time(now)} by this machine's clock",
            hint="renew the certificate, or set the clock" if now >= facts.not_after else "set this machine's clock",
        )
    return facts


def require_pair(certificate: Path, key: Path) -> None:
    """Refuse a private key that is not the certificate's; raises CertificateKeyMismatch, BadCertificate, NotAFile."""
    mine, said = _read_key(key).public_key(), _read(certificate).public_key()
    if _spki(mine) != _spki(said):
        raise CertificateKeyMismatch(
            where=f"certificate {certificate.name}", expected=f"the public half of {key.name}", got="another key",
            hint="name the two files that were issued together",
        )  # fmt: skip


def _holds(tls: ServerTls) -> bool:
    """Whether what is there still serves: a kill between two writes leaves files that do not fit."""
    try:
        require_pair(tls.certificate, tls.key)
        facts = require_current(tls.certificate, datetime.now(UTC) + _RENEW_LOOPBACK)
        _read(tls.certificate).verify_directly_issued_by(_read(tls.ca))
    except (NotFedError, ValueError, TypeError, InvalidSignature):
        return False
    return set(facts.hosts) == set(LOOPBACK_HOSTS)


def _authority(key: ec.EllipticCurvePrivateKey, name: str) -> x509.Certificate:
    usage = _usage(key_cert_sign=True, crl_sign=True)
    builder = _builder(key.public_key(), name, _name(name), key, CA_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return builder.add_extension(usage, critical=True).sign(key, hashes.SHA256())


def _server(
    key: ec.EllipticCurvePrivateKey, authority: x509.Certificate, authority_key: ec.EllipticCurvePrivateKey,
    hosts: Sequence[str], days: int,
) -> x509.Certificate:  # fmt: skip
    builder = _builder(key.public_key(), hosts[0], authority.subject, authority_key, days)
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
        .sign(authority_key, hashes.SHA256())
    )


def _builder(
    public: ec.EllipticCurvePublicKey, subject: str, issuer: x509.Name, issuer_key: ec.EllipticCurvePrivateKey,
    days: int,
) -> x509.CertificateBuilder:  # fmt: skip
    now = datetime.now(UTC)
    by = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BEFORE)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(by, critical=False)
    )


def _usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:  # fmt: skip
    return x509.KeyUsage(
        digital_signature=digital_signature, key_cert_sign=key_cert_sign, crl_sign=crl_sign, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])  # X.520: 64 at most


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError:
        raise BadCertificate(
            where="host name", expected="a DNS name in ASCII, or an address", got="something else",
            hint="write an international name as xn--...",
        ) from None  # fmt: skip


def _hosts(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    dns, addresses = names.get_values_for_type(x509.DNSName), names.get_values_for_type(x509.IPAddress)
    return (*dns, *(str(address) for address in addresses))


def _read(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(files.read_regular(path, max_bytes=MAX_PEM_BYTES))
    except ValueError:
        raise _bad(path, "a certificate in PEM") from None


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """An EC key; any other kind of a given certificate is read too, but issues nothing."""
    try:
        key = serialization.load_pem_private_key(files.read_regular(path, max_bytes=MAX_PEM_BYTES), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise _bad(path, "a private key in PEM without a passphrase") from None
    return key  # type: ignore[return-value]  # RSA of a given certificate: only its public half is asked for


def _spki(key: object) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined, no-any-return]


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _bad(path: Path, expected: str) -> BadCertificate:
    return BadCertificate(where=str(path), expected=expected, got="something else", hint="check the file")
