"""A site's way to the coordinator's bank, made when the first sealed organ needs it; a simulation's home has none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from not_fed.envelope.label import SealedFile, parse_label
from not_fed.errors import InputError
from not_fed.home import Home
from not_fed.progress import Progress, silent
from not_fed.site.bank_client import BankClient
from not_fed.site.connection import load_connection
from not_fed.site.policy import load_policy


class NoBank(InputError):
    """A sealed organ is to go through a bank, and this site has no connection to one."""

    code = "no-bank"


class BankAccess:
    """Fetches sealed organs by what their labels say, and leaves this site's own."""

    def __init__(self, home: Path, *, progress: Progress = silent) -> None:
        self._home, self._progress = home, progress
        self._client: BankClient | None = None

    def fetch(self, sealed: SealedFile) -> Callable[[Path], None]:
        """What brings that sealed organ to a path, resumed where it was cut off.

        Raises:
            NoBank: this home has no connection.
        """
        client = self._connect()

        def bring(out: Path) -> None:
            client.download(sealed.sha256, size_bytes=sealed.size_bytes, out=out, progress=self._progress)

        return bring

    def leave(self, sealed: Path, *, label: bytes) -> str:
        """Upload a sealed organ, from where an earlier attempt was cut off; its digest.

        Raises:
            NoBank: this home has no connection. PeerError: the bank cannot be reached, or takes nothing now.
        """
        self._connect().upload(sealed, label=label, progress=self._progress)
        return parse_label(label)[1].sealed.sha256

    def _connect(self) -> BankClient:
        if self._client is None:
            connection = load_connection(self._home)
            if connection is None or not connection.gateway:
                raise NoBank(
                    where="order",
                    expected="sealed organs inside the message",
                    got="the digest of one",
                    hint="only a coordinator's gateway has a bank (connection.toml); nothing was done",
                )
            policy = load_policy(self._home)
            self._client = BankClient(
                connection, name=policy.name, coordinator=policy.coordinator, federation=policy.federation,
                signer=Home(self._home).signer,
            )  # fmt: skip
        return self._client
