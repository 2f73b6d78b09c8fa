"""How a site reaches its coordinator: `connection.toml` in its home, which `site init` writes from an invitation."""

from __future__ import annotations

import json
import ssl
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from not_fed import files, settings
from not_fed.envelope.invitation import split_address
from not_fed.errors import InputError
from not_fed.settings import Name, Settings

CONNECTION_FILE = "connection.toml"
_TEXT = """\
# How this site reaches its coordinator. Outbound only: nothing listens for others on this machine.
address = {address}
{ca}
coordinator = {coordinator}
federation = {federation}
# gateway = false  # for a Flower SuperLink that somebody else runs: no bank, and the roster comes by hand
"""


class NoConnection(InputError):
    """This site has no connection to a coordinator."""

    code = "no-connection"


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """Where the coordinator is, and how its certificate is checked.

    Attributes:
        address: host:port, as it is written in the file.
        ca: the certificate of the only authority that is believed; None: those that this machine trusts anyway.
        gateway: whether not-fed's gateway is there; otherwise a SuperLink without a bank and a roster.
    """

    address: str
    ca: Path | None
    coordinator: str
    federation: str
    gateway: bool

    @property
    def host(self) -> str:
        """The host alone, without brackets."""
        return split_address(self.address)[0]

    @property
    def url(self) -> str:
        """What paths of the gateway are appended to."""
        return f"https://{self.address}"

    def tls(self) -> ssl.SSLContext:
        """What checks the coordinator's certificate; raises NotAFile for an authority that is none."""
        if self.ca is not None and not self.ca.is_file():
            raise files.NotAFile(
                where=str(self.ca), expected="the authority's certificate", got="none",
                hint="take it from a new invitation: not-fed site init shows how",
            )  # fmt: skip
        try:
            context = ssl.create_default_context(cafile=None if self.ca is None else str(self.ca))
        except ssl.SSLError:
            raise files.NotAFile(
                where=str(self.ca), expected="the authority's certificate, PEM", got="something else",
                hint="take it from a new invitation: not-fed site init shows how",
            ) from None  # fmt: skip
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context


class _ConnectionFile(Settings):
    address: str = Field(min_length=3)
    ca: str | None = Field(default=None, min_length=1)
    coordinator: Name
    federation: Name
    gateway: bool = True


def load_connection(home: Path) -> Connection | None:
    """The connection of a site; None when it has none, as in a simulation. Raises BadSettings, BadAddress."""
    if not (home / CONNECTION_FILE).is_file():
        return None
    read = settings.load(_ConnectionFile, home / CONNECTION_FILE)
    split_address(read.address)
    return Connection(
        address=read.address, ca=None if read.ca is None else (home / read.ca).resolve(),
        coordinator=read.coordinator, federation=read.federation, gateway=read.gateway,
    )  # fmt: skip


def require_connection(home: Path) -> Connection:
    """The same; raises NoConnection when there is none."""
    connection = load_connection(home)
    if connection is None:
        raise NoConnection(
            where=str(home / CONNECTION_FILE), expected="a connection", got="none",
            hint="not-fed site init HOME --invitation F makes a home with one",
        )  # fmt: skip
    return connection


def write_connection(home: Path, *, address: str, ca: str | None, coordinator: str, federation: str) -> None:
    """Write the file; `ca` is a path relative to the home. Raises BadAddress, OutputExists."""
    split_address(address)
    text = _TEXT.format(
        address=_text(address), coordinator=_text(coordinator), federation=_text(federation),
        ca="# ca: the authorities that this machine trusts" if ca is None else f"ca = {_text(ca)}",
    )  # fmt: skip
    files.write_atomic(home / CONNECTION_FILE, text.encode())


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
