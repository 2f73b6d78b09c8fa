"""A site's side of the coordinator's bank: leave a sealed organ, fetch one, fetch the roster; resumed where it was cut.

Outbound HTTPS only, to the one address of connection.toml. What arrives is checked by its digest before it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import httpx

from not_fed import files
from not_fed.envelope.visit import Visit, sign_visit
from not_fed.errors import PeerError, TrustError
from not_fed.keys import Signer
from not_fed.progress import Progress, silent
from not_fed.site.connection import Connection
from not_fed.site.not_now import DiskFull
from not_fed.transfer.chunks import MAX_CHUNK_BYTES, USUAL_CHUNK_BYTES, ChunkList, list_chunks

CHUNK_BYTES = USUAL_CHUNK_BYTES
MAX_ANSWER_BYTES = MAX_CHUNK_BYTES + (1 << 20)  # the largest that a bank has a reason for
TRIES_WITHOUT_GAIN = 5
TIMEOUT = httpx.Timeout(60.0, connect=15.0)
_NONCE, _TOKEN = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9A-Za-z_-]{1,128}")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0
PATIENCE_S = 300.0  # without any progress
MAX_ROSTER_FILES = 2000
PASSING = {408, 429, 500, 502, 503, 504}


class BankUnreachable(PeerError):
    """The coordinator's bank cannot be reached; what has arrived stays and is not sent again."""

    code = "bank-unreachable"


class BankRefused(PeerError):
    """The coordinator's bank refused."""

    code = "bank-refused"


class BankFull(PeerError):
    """The coordinator's bank has no room."""

    code = "bank-full"


class FetchedDiffers(TrustError):
    """What the bank handed out is not what was asked for; it was deleted."""

    code = "fetched-differs"


class BankClient:
    """One member's visits to the bank of one coordinator.

    Attributes:
        bytes_sent, bytes_fetched: of chunks, those that were cut off and sent again included.
    """

    def __init__(
        self, connection: Connection, *, name: str, coordinator: str, federation: str,
        signer: Signer | Callable[[], Signer], patience_s: float = PATIENCE_S,
    ) -> None:  # fmt: skip
        self._name, self._coordinator, self._federation, self._signer = name, coordinator, federation, signer
        self._patience_s = patience_s
        self._token: str | None = None
        self.bytes_sent = self.bytes_fetched = 0
        self._address = connection.address
        self._client = httpx.Client(base_url=connection.url, verify=connection.tls(), timeout=TIMEOUT,
                                    headers={"Accept-Encoding": "identity"})  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def upload(self, sealed: Path, *, label: bytes, progress: Progress = silent) -> None:
        """Leave a sealed organ; returns when the bank has checked the whole of it.

        Raises:
            BankUnreachable: no progress for five minutes. BankFull. BankRefused: it is not awaited, or not as labelled.
        Guarantees: a chunk that has arrived is not sent again, after a cut or a restart of either side.
        Proved by: tests/unit/test_bank_client.py::test_after_a_cut_only_what_is_missing_is_sent
        """
        listed = list_chunks(sealed, chunk_bytes=CHUNK_BYTES)
        organ = f"/v1/bank/organs/{listed.sha256}"
        chunks = json.loads(listed.to_bytes())
        announced = json.dumps({"label": b64encode(label).decode(), "chunks": chunks}).encode()
        gain, tries = -1, 0
        with self._lasting() as patience, files.open_regular(sealed) as file:
            while True:
                have = _have(self._call("PUT", organ, patience, body=announced))
                if have is None:
                    return
                gain, tries = (len(have), 0) if len(have) > gain else (gain, tries + 1)
                if tries >= TRIES_WITHOUT_GAIN:
                    raise _refused("that what was sent has arrived", "the same chunks wanted again and again")
                try:
                    for index in range(len(listed.chunks)):
                        progress("sealed organ to the bank", done=index, total=len(listed.chunks))
                        if index not in have:
                            file.seek(index * listed.chunk_bytes)
                            chunk = file.read(listed.size_of(index))
                            self.bytes_sent += len(chunk)
                            self._call("PUT", f"{organ}/chunks/{index}", patience, body=chunk)
                    self._call("POST", f"{organ}/finish", patience, body=b"")
                except _Again:  # the gateway was started anew, or a chunk is gone: announce and go on
                    patience.wait()
                    continue
                return

    def download(self, sha256: str, *, size_bytes: int, out: Path, progress: Progress = silent) -> None:
        """Fetch a sealed organ to `out`, which appears whole; what an earlier attempt has fetched is not fetched again.

        Raises:
            BankUnreachable, BankRefused; FetchedDiffers: not the digest or size that the label names; DiskFull.
        Proved by: tests/unit/test_bank_client.py::test_a_download_goes_on_after_a_cut
        """
        part = out.with_name(f".{out.name}.fetching")
        with self._lasting() as patience:
            listed = ChunkList.parse(self._call("GET", f"/v1/bank/organs/{sha256}", patience).content, where="bank")
            if (listed.sha256, listed.size_bytes) != (sha256, size_bytes):
                raise _differs(f"{size_bytes:,} bytes", f"{listed.size_bytes:,}")
            try:
                self._fill(part, listed, patience, progress)
            except OSError as error:
                raise DiskFull(
                    where=str(out.parent), expected=f"room for {size_bytes:,} bytes", got=os.strerror(error.errno or 0),
                    hint="free some space: what was fetched stays",
                ) from None  # fmt: skip
        if files.sha256(part) != sha256:
            part.unlink()
            raise _differs(f"SHA-256 {sha256[:16]}...", "another")
        part.replace(out)
        files.fsync_folder(out.parent)

    def fetch_roster(self, out: Path) -> None:
        """Copy the coordinator's roster files into the empty folder `out`; nothing of it is trusted by that.

        Raises:
            BankUnreachable, BankRefused.
        """
        with self._lasting() as patience:
            for name in self._roster_names(patience):
                data = self._call("GET", f"/v1/roster/{name}", patience, session=False).content
                (out / name).parent.mkdir(exist_ok=True)
                files.write_atomic(out / name, data, mode=0o644)

    def _roster_names(self, patience: _Patience) -> list[str]:
        names = _told(self._call("GET", "/v1/roster", patience, session=False)).get("files")
        if not isinstance(names, list) or len(names) > MAX_ROSTER_FILES:
            raise _refused("a list of roster files", "something else")
        for name in names:
            kind, _, rest = str(name).partition("/")
            if kind not in ("metadata", "targets", "recalls") or not rest or "/" in rest or rest.startswith("."):
                raise _refused("names of roster files", "another name")
        return [str(name) for name in names]

    def _fill(self, part: Path, listed: ChunkList, patience: _Patience, progress: Progress) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(part, flags, 0o600), "r+b") as file:
            start = _valid_chunks(file, listed)
            file.seek(start * listed.chunk_bytes)
            file.truncate()
            for index in range(start, len(listed.chunks)):
                progress("sealed organ from the bank", done=index, total=len(listed.chunks))
                chunk = self._call("GET", f"/v1/bank/organs/{listed.sha256}/chunks/{index}", patience).content
                self.bytes_fetched += len(chunk)
                if len(chunk) != listed.size_of(index) or hashlib.sha256(chunk).hexdigest() != listed.chunks[index]:
                    raise _differs("the chunk that the bank announced", "another")
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())

    def _call(
        self, method: str, path: str, patience: _Patience, *, body: bytes | None = None, session: bool = True
    ) -> httpx.Response:
        """One request, made again while the network or the bank is away.

        Raises:
            BankUnreachable, BankRefused, BankFull; _Again: the bank has forgotten the upload.
        """
        while True:
            try:
                headers = {"Authorization": f"Bearer {self._session()}"} if session else {}
                response = self._request(method, path, content=body, headers=headers)
            except httpx.TransportError as error:
                patience.wait(because=_network(error))
                continue
            if response.is_success:
                patience.renew()
                return response
            self._refusal(response, patience)

    def _session(self) -> str:
        """The token of the visit under way, or of a new one."""
        if self._token is None:
            nonce = self._request("POST", "/v1/bank/visits", content=b"")
            if not nonce.is_success:
                raise httpx.RemoteProtocolError("no nonce")
            said = str(_told(nonce).get("nonce"))
            if not _NONCE.fullmatch(said):
                raise _refused("a nonce", "something else")
            visit = Visit(
                v=1, federation=self._federation, member=self._name, coordinator=self._coordinator, nonce=said,
                issued=datetime.now(UTC).replace(microsecond=0),
            )  # fmt: skip
            signer = self._signer() if callable(self._signer) else self._signer
            opened = self._request("POST", f"/v1/bank/visits/{said}", content=sign_visit(visit, signer=signer))
            if opened.status_code in PASSING:
                raise httpx.RemoteProtocolError("no session")
            if not opened.is_success:
                raise _refused("a session", _code(opened))
            token = str(_told(opened).get("token"))
            if not _TOKEN.fullmatch(token):
                raise _refused("a session", "something else")
            self._token = token
        return self._token

    def _request(
        self, method: str, path: str, *, content: bytes | None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """One request; its answer is read as it stands on the line, and no longer than a bank has a reason for.

        Raises:
            httpx.TransportError; BankRefused: compressed, or too long.
        Proved by: tests/attacks/test_gateway.py::test_a_coordinator_cannot_fill_a_sites_memory
        """
        with self._client.stream(method, path, content=content, headers=headers) as response:
            body = bytearray()
            if "content-encoding" in response.headers:
                raise _refused("an answer as it is", "a compressed one")
            for piece in response.iter_raw():
                body += piece
                if len(body) > MAX_ANSWER_BYTES:
                    raise _refused(f"at most {MAX_ANSWER_BYTES:,} bytes", "more")
        return httpx.Response(response.status_code, content=bytes(body), request=response.request)

    def _refusal(self, response: httpx.Response, patience: _Patience) -> None:
        """Wait and return where it may pass; raise where it does not."""
        code = _code(response)
        if response.status_code == 401:
            self._token = None
            patience.wait(because=code)
        elif code in ("not-announced", "chunks-missing", "chunk-differs"):
            raise _Again
        elif response.status_code in PASSING:
            patience.wait(because=code)
        elif response.status_code == 507:
            raise BankFull(where=self._address, expected="room", got=code, hint="tell the coordinator; nothing is lost")
        else:
            raise _refused("an answer", code)

    @contextmanager
    def _lasting(self) -> Iterator[_Patience]:
        yield _Patience(self._patience_s, address=self._address)


class _Again(Exception):
    """The bank does not know the upload (any more)."""


class _Patience:
    """Waits longer each time, and not for ever; progress renews it."""

    def __init__(self, total_s: float, *, address: str) -> None:
        self._total_s, self._address = total_s, address
        self.renew()

    def renew(self) -> None:
        """There was progress."""
        self._pause_s, self._since = FIRST_PAUSE_S, time.monotonic()

    def wait(self, *, because: str = "announce it again") -> None:
        """Sleep; raises BankUnreachable when there was no progress for too long."""
        if time.monotonic() - self._since > self._total_s:
            raise BankUnreachable(
                where=self._address, expected="the coordinator's bank", got=because,
                hint="what has arrived stays; it is tried again when the coordinator asks again",
            )  # fmt: skip
        time.sleep(self._pause_s)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)


def _valid_chunks(file: Any, listed: ChunkList) -> int:  # noqa: ANN401
    """How many chunks from the start an earlier attempt has fetched whole."""
    for index, digest in enumerate(listed.chunks):
        if hashlib.sha256(file.read(listed.size_of(index))).hexdigest() != digest:
            return index
    return len(listed.chunks)


def _told(response: httpx.Response) -> dict[str, Any]:
    """The answer as a JSON object; raises BankRefused: a bank would have sent one, whatever this is."""
    try:
        told = json.loads(response.content)
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise _refused("an answer of a bank", "something else")
    return told


def _have(response: httpx.Response) -> set[int] | None:
    """The chunks that have arrived, or None when the whole has been checked; raises BankRefused."""
    told = _told(response)
    have = told.get("have")
    if told.get("done") is True:
        return None
    if not isinstance(have, list) or not all(type(index) is int for index in have):
        raise _refused("a list of chunks", "something else")
    return set(have)


def _code(response: httpx.Response) -> str:
    try:
        code = response.json()["code"]
    except (ValueError, KeyError, TypeError):
        return f"HTTP status {response.status_code}"
    return code if isinstance(code, str) and code.replace("-", "").isalnum() and len(code) <= 64 else "something else"


def _network(error: httpx.TransportError) -> str:
    text = str(error)
    return "a certificate that is not the coordinator's" if "CERTIFICATE_VERIFY_FAILED" in text else "no connection"


def _refused(expected: str, got: str) -> BankRefused:
    return BankRefused(where="bank", expected=expected, got=got, hint="ask the coordinator, whose log has the reason")


def _differs(expected: str, got: str) -> FetchedDiffers:
    return FetchedDiffers(
        where="bank", expected=expected, got=got, hint="tell the coordinator: its bank is damaged, or it lies"
    )
