"""The gateway's certificate while it serves: renewed when it is this coordinator's own, read again when replaced.

A connection that is open keeps the certificate that it began with; a new one sees the new one, without a restart.
"""

from __future__ import annotations

import ssl
from datetime import datetime, timedelta
from pathlib import Path

from not_fed.coordinator.creating import CERTIFICATE_DAYS, own_hosts
from not_fed.coordinator.deployment import Deployment
from not_fed.envelope.invitation import split_address
from not_fed.processes import tls

RENEW_BEFORE = timedelta(days=30)


class GatewayCertificate:
    """The certificate of one coordinator, and the TLS settings with which it is shown."""

    def __init__(self, home: Path, deployment: Deployment, *, now: datetime) -> None:
        """Renew an own certificate where that is due.

        Raises:
            CertificateExpired: a given one whose time is over or has not begun.
            OSError, ssl.SSLError: not readable, or key and certificate do not belong together.
        """
        self._tls, self._host = deployment.tls, split_address(deployment.address)[0]
        self._home = home
        self.path, self._key = home / deployment.tls.certificate, home / deployment.tls.key
        self.renewed = self._renew(now)
        tls.require_current(self.path, now)
        tls.require_pair(self.path, self._key)
        self._stamp = self._read_stamp()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.load_cert_chain(self.path, self._key)

    @property
    def facts(self) -> tls.Facts:
        """What sites see now."""
        return tls.read_certificate(self.path)

    def refresh(self, now: datetime) -> bool:
        """Renew what is due and show what was replaced; whether new connections see another certificate now.

        Raises:
            CertificateExpired: a given one is over; connections are still accepted, and refused by the sites.
        """
        self._renew(now)
        stamp, changed = self._read_stamp(), False
        if stamp != self._stamp:
            tls.require_pair(self.path, self._key)  # both were replaced, or the old ones stay
            self.context.load_cert_chain(self.path, self._key)
            self._stamp, changed = stamp, True
        tls.require_current(self.path, now)
        return changed

    def _renew(self, now: datetime) -> bool:
        if self._tls.ca is None or self._tls.ca_key is None:
            return False
        hosts = own_hosts(self._host)
        if self.path.is_file():
            facts = tls.read_certificate(self.path)
            if facts.not_after - now > RENEW_BEFORE and set(hosts) <= set(facts.hosts):
                return False
        folder = self.path.parent
        tls.require_current(self._home / self._tls.ca, now)
        tls.issue_server_certificate(
            folder, ca=(self._home / self._tls.ca).parent, hosts=hosts, days=CERTIFICATE_DAYS, name=self.path.stem
        )
        return True

    def _read_stamp(self) -> tuple[int, int]:
        return self.path.stat().st_mtime_ns, self._key.stat().st_mtime_ns
