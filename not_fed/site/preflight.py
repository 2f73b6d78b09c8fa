"""What is looked at before a site connects, each with an error that names what is wrong and on which side.

The coordinator is asked for its health over the very connection that a SuperNode will use, proxy included, because
Flower's own message for a wrong certificate, clock or version is one and the same.
"""

from __future__ import annotations

import hashlib
import json
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

import not_fed
from not_fed.canonical import format_time
from not_fed.envelope.task import ClockApart, check_protocol
from not_fed.errors import FitError, PeerError, TrustError
from not_fed.processes.tls import CertificateExpired
from not_fed.site.connection import Connection

TIMEOUT_S = 15.0
MAX_APART = timedelta(minutes=5)
MAX_HEALTH_BYTES = 64 << 10
GATEWAY = "not-fed/gateway/1"
_NOT_YET, _EXPIRED, _OTHER_HOST = 9, 10, 62  # OpenSSL: X509_V_ERR_*


class CoordinatorUnreachable(PeerError):
    """The coordinator does not answer."""

    code = "coordinator-unreachable"


class CertificateForeign(TrustError):
    """Whoever answers at the coordinator's address shows a certificate by another authority."""

    code = "certificate-foreign"


class CertificateOtherHost(TrustError):
    """Whoever answers at the coordinator's address shows a certificate for another host."""

    code = "certificate-other-host"


class ForeignCoordinator(FitError):
    """At this address is another federation's coordinator."""

    code = "foreign-coordinator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What a coordinator says about itself; a SuperLink without our gateway says nothing.

    Attributes:
        apart: how far its clock is ahead of this machine's; None when it gave no date.
    """

    not_fed: str | None
    protocol: int | None
    federation: str | None
    apart: timedelta | None


def ask_health(connection: Connection, *, timeout_s: float = TIMEOUT_S) -> Health:
    """Ask the coordinator for its health over a checked connection.

    Raises:
        CoordinatorUnreachable: no connection, no answer, or an answer that is none. It may pass: try again.
        CertificateForeign, CertificateOtherHost, CertificateExpired, NotAFile: see each.
    Proved by: tests/unit/test_site_preflight.py::test_each_thing_that_keeps_a_site_from_connecting_has_its_own_code
    """
    try:
        with httpx.Client(verify=connection.tls(), timeout=timeout_s) as client:
            response = client.get(f"{connection.url}/health")
        said = response.json() if len(response.content) <= MAX_HEALTH_BYTES else None
    except httpx.HTTPError as error:
        raise _explained(error, connection) from None
    except ValueError:
        said = None
    facts = said if isinstance(said, dict) else {}
    if not response.is_success and facts.get("schema") != GATEWAY:  # ours says so when only its SuperLink is down
        raise unreachable(connection, f"status {response.status_code}")
    return _to_health(facts, response.headers.get("date"))


def check_health(health: Health, connection: Connection) -> None:
    """Refuse a coordinator that this site cannot work with.

    Raises:
        ClockApart, ForeignCoordinator; OtherProtocol: another version of what the two say to each other.
    """
    if health.apart is not None and abs(health.apart) > MAX_APART:
        minutes = round(health.apart / timedelta(minutes=1))
        raise ClockApart(
            where="clock", expected=f"within {MAX_APART // timedelta(minutes=1)} minutes of {connection.coordinator}'s",
            got=f"{abs(minutes)} minutes {'behind' if minutes > 0 else 'ahead'}",
            hint="set the clock that is wrong, here or there; NTP keeps it right",
        )  # fmt: skip
    if not connection.gateway:
        return
    if health.federation is not None and health.federation != connection.federation:
        raise ForeignCoordinator(
            where=f"coordinator at {connection.address}", expected=f"federation {connection.federation}",
            got=health.federation, hint="see address in connection.toml",
        )  # fmt: skip
    check_protocol(health.protocol, where=_who(health, connection))


def unreachable(connection: Connection, got: str) -> CoordinatorUnreachable:
    """The error for one observation."""
    return CoordinatorUnreachable(
        where=f"{connection.coordinator} at {connection.address}", expected="an answer", got=got,
        hint="is it running, and does this machine's firewall let the connection out? It is tried again",
    )  # fmt: skip


def _who(health: Health, connection: Connection) -> str:
    return f"{connection.coordinator}, not-fed {health.not_fed or 'of an unknown version'} (here {not_fed.__version__})"


def _to_health(said: Mapping[str, Any], date: str | None) -> Health:
    version, protocol, federation = (said.get(name) for name in ("not_fed", "protocol", "federation"))
    return Health(
        not_fed=version if isinstance(version, str) else None,
        protocol=protocol if isinstance(protocol, int) else None,
        federation=federation if isinstance(federation, str) else None, apart=_apart(date),
    )  # fmt: skip


def _apart(date: str | None) -> timedelta | None:
    try:
        return None if date is None else parsedate_to_datetime(date).astimezone(UTC) - datetime.now(UTC)
    except ValueError:
        return None


def _explained(error: httpx.HTTPError, connection: Connection) -> PeerError | TrustError:
    """What a failed connection means: a certificate that is wrong in one of four ways, or nobody there."""
    refused = next((cause for cause in _causes(error) if isinstance(cause, ssl.SSLCertVerificationError)), None)
    if refused is None:
        return unreachable(connection, str(error).lower() or type(error).__name__)
    shown, where = _shown_certificate(connection), f"certificate of {connection.address}"
    got = "another certificate" if shown is None else _described(shown)
    if refused.verify_code in (_NOT_YET, _EXPIRED):
        return CertificateExpired(
            where=where, expected=f"one that holds at {format_time(datetime.now(UTC))}, this machine's time", got=got,
            hint=f"tell {connection.coordinator}, unless this machine's clock is wrong",
        )  # fmt: skip
    if refused.verify_code == _OTHER_HOST:
        return CertificateOtherHost(
            where=where, expected=f"one for {connection.host}", got=got,
            hint=f"ask {connection.coordinator} for its address, and correct connection.toml",
        )  # fmt: skip
    authority = "that this machine trusts" if connection.ca is None else f"in {connection.ca.name}"
    return CertificateForeign(
        where=where, expected=f"one by the authority {authority}", got=got,
        hint="somebody is in between (a proxy that inspects TLS?), or the coordinator has a new authority: ask it by "
        "telephone; nothing was sent",
    )  # fmt: skip


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _shown_certificate(connection: Connection) -> x509.Certificate | None:
    """The certificate as it is shown, unchecked: to describe it, over a connection that carries nothing."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            httpx.Client(verify=context, timeout=TIMEOUT_S) as client,
            client.stream("GET", f"{connection.url}/health") as response,
        ):
            shown = response.extensions["network_stream"].get_extra_info("ssl_object").getpeercert(True)  # noqa: FBT003  positional only
            return x509.load_der_x509_certificate(shown)
    except (httpx.HTTPError, ValueError, KeyError, AttributeError, TypeError):
        return None


def _described(certificate: x509.Certificate) -> str:
    der = certificate.public_bytes(Encoding.DER)
    issuer = json.dumps(certificate.issuer.rfc4514_string()[:80])
    return (
        f"one by {issuer}, from {format_time(certificate.not_valid_before_utc)} to "
        f"{format_time(certificate.not_valid_after_utc)}, {hashlib.sha256(der).hexdigest()[:12]}"
    )
