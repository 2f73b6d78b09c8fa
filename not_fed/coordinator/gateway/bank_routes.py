"""The bank over HTTP. Uploads are authorised by the label that the sender signed, downloads by its recipients.

PUT  /v1/bank/organs/<sha256>             announce: the label and the list of chunks; says which are here
PUT  /v1/bank/organs/<sha256>/chunks/<n>  one chunk; its digest must be the announced one
POST /v1/bank/organs/<sha256>/finish      the whole is checked against the label, and appears
GET  /v1/bank/organs/<sha256>             the list of chunks
GET  /v1/bank/organs/<sha256>/chunks/<n>  one chunk

Memory is bounded by the number of chunks on their way at once, whatever the size and number of organs.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from base64 import b64decode
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from not_fed.coordinator.bank import Bank, NotInBank
from not_fed.coordinator.deployment import BankTable, GatewayTable
from not_fed.coordinator.gateway.admission import CurrentRoster, Problems
from not_fed.coordinator.gateway.answers import Refused, refused_by
from not_fed.coordinator.gateway.bodies import whole
from not_fed.coordinator.gateway.visits import Visits
from not_fed.coordinator.plan import FederationPlan, load_plan
from not_fed.coordinator.state import CoordinatorState, Step
from not_fed.envelope.label import MAX_LABEL_BYTES, Label, check_label, parse_label
from not_fed.errors import NotFedError
from not_fed.transfer.chunks import MAX_LIST_BYTES, USUAL_CHUNK_BYTES, ChunkList

MAX_ANNOUNCED_BYTES = MAX_LIST_BYTES + 2 * MAX_LABEL_BYTES
LOOK_AT_SIZES_S = 30.0
ORGANS_A_ROUND = 8  # of one site: one, and one more each time that the roster changes under it
PLACES_A_MEMBER = 2
PIECE_BYTES = 256 << 10
_T = TypeVar("_T")


class Awaited:
    """Which sealed organs the open run waits for: nothing else is taken in."""

    def __init__(self, home: Path) -> None:
        self._home, self._state = home, CoordinatorState(home)

    def why_not(self, label: Label) -> str | None:
        """What is wrong with an organ of this label, as a code; None when it is awaited."""
        plan = load_plan(self._home)
        step = Step(run=plan.run, round=label.round, kind="train")
        if label.sender not in plan.sites or label.round > plan.rounds or self._state.is_closed(step):
            return "not-awaited"
        if label.round > 1 and not self._state.is_closed(Step(run=plan.run, round=label.round - 1, kind="train")):
            return "not-awaited"
        if not set(label.to) <= set(plan.recipients()):
            return "not-awaited"
        return "too-long" if label.sealed.size_bytes > plan.max_parcel_bytes else None

    def plan(self) -> FederationPlan:
        """The plan as it is now."""
        return load_plan(self._home)


class Places:
    """The few places for chunks in memory, of which one member gets a few; whoever finds none comes back."""

    def __init__(self, count: int) -> None:
        self._free, self._taken = count, Counter[str]()

    @asynccontextmanager
    async def one(self, member: str) -> AsyncIterator[None]:
        """A place, until the block ends; raises Refused 503."""
        if not self._free or self._taken[member] >= PLACES_A_MEMBER:
            raise Refused(503, "bank-busy", headers={"Retry-After": "1"})
        self._free -= 1
        self._taken[member] += 1
        try:
            yield
        finally:
            self._free += 1
            self._taken[member] -= 1


class _Given(Response):
    """A chunk, read when it is sent; its place is taken until it has been, and whoever does not read is cut off."""

    def __init__(self, read: Callable[[], Awaitable[bytes]], *, places: Places, member: str, patience_s: float) -> None:
        super().__init__(media_type="application/octet-stream")
        self._read, self._places, self._member, self._patience_s = read, places, member, patience_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        async with self._places.one(self._member):
            chunk = memoryview(await self._read())
            self.headers["content-length"] = str(len(chunk))
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            for start in range(0, len(chunk), PIECE_BYTES):
                more = start + PIECE_BYTES < len(chunk)
                piece = bytes(chunk[start : start + PIECE_BYTES])
                try:
                    async with asyncio.timeout(self._patience_s):
                        await send({"type": "http.response.body", "body": piece, "more_body": more})
                except TimeoutError:
                    return  # the server ends a connection whose answer is not complete


class BankRoutes:
    """The five calls."""

    def __init__(
        self, home: Path, bank: Bank, *, visits: Visits, roster: CurrentRoster, table: BankTable, limits: GatewayTable,
        problems: Problems,
    ) -> None:  # fmt: skip
        self._bank, self._visits, self._roster, self._problems = bank, visits, roster, problems
        self._table, self._limits, self._awaited = table, limits, Awaited(home)
        self._places = Places(limits.concurrent_chunks)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._coming: dict[str, int] = {}  # bytes of uploads that were announced and are not finished
        self._of_round: dict[tuple[str, int], set[str]] = {}
        self._room = threading.Lock()
        self._labels: dict[str, bytes] = {}  # of uploads under way; an upload that goes on announces itself again
        self._stored: tuple[float, int] = (-LOOK_AT_SIZES_S, 0)

    def routes(self) -> list[Route]:
        """For the application."""
        organ = "/v1/bank/organs/{sha256}"
        return [
            Route("/v1/bank/visits", self._visits.nonce, methods=["POST"]),
            Route("/v1/bank/visits/{nonce}", self._visits.open, methods=["POST"]),
            Route(organ, self.announce, methods=["PUT"]),
            Route(organ, self.listed, methods=["GET"]),
            Route(organ + "/chunks/{index:int}", self.take, methods=["PUT"]),
            Route(organ + "/chunks/{index:int}", self.give, methods=["GET"]),
            Route(organ + "/finish", self.finish, methods=["POST"]),
        ]

    async def announce(self, request: Request) -> Response:
        """Begin an upload or go on with it: `have` are the chunks that need not be sent again."""
        member = await self._member(request)
        body = await whole(request, most=MAX_ANNOUNCED_BYTES, patience_s=self._limits.slow_client_s)
        sha256 = request.path_params["sha256"]
        async with self._turn(sha256):
            return await self._thread(self._announce, member, sha256, body)

    async def take(self, request: Request) -> Response:
        """One chunk of an upload."""
        member = await self._member(request)
        sha256, index = request.path_params["sha256"], request.path_params["index"]
        listed = await self._thread(self._upload, member, sha256)
        if not 0 <= index < len(listed.chunks):
            raise Refused(404, "not-here")
        async with self._places.one(member):
            chunk = await whole(request, most=listed.size_of(index), patience_s=self._limits.slow_client_s)
            await self._thread(self._keep, listed, index, chunk)
        return Response(status_code=204)

    async def finish(self, request: Request) -> Response:
        """The last word of an upload."""
        member = await self._member(request)
        sha256 = request.path_params["sha256"]
        async with self._turn(sha256):
            return await self._thread(self._finish, member, sha256)

    async def listed(self, request: Request) -> Response:
        """How a sealed organ is cut, for one of its recipients."""
        member = await self._member(request)
        return await self._thread(self._list, member, request.path_params["sha256"])

    async def give(self, request: Request) -> Response:
        """One chunk, for one of its recipients."""
        member = await self._member(request)
        sha256, index = request.path_params["sha256"], request.path_params["index"]
        await self._thread(self._require_recipient, member, sha256)
        return _Given(
            lambda: self._thread(self._bank.read_chunk, sha256, index), places=self._places, member=member,
            patience_s=self._limits.slow_client_s,
        )  # fmt: skip

    # -- in threads -----------------------------------------------------------------------------------------------

    def _announce(self, member: str, sha256: str, body: bytes) -> Response:
        label_line, listed = _announced(body, sha256=sha256)
        now = datetime.now(UTC)
        label = check_label(
            label_line, sealed_sha256=listed.sha256, size_bytes=listed.size_bytes, roster=self._roster.get(), now=now
        )
        if label.sender != member:
            self._problems.note("label-of-another", f"it wanted to leave an organ of {label.sender}", site=member)
            raise Refused(403, "label-of-another")
        if (code := self._awaited.why_not(label)) is not None:
            raise Refused(413 if code == "too-long" else 409, code)
        if self._bank.holds(sha256):
            return _told({"done": True, "have": []})
        if listed.chunk_bytes > max(self._table.chunk_bytes, USUAL_CHUNK_BYTES):
            raise Refused(413, "chunks-too-large")
        self._require_room(listed, label)
        self._bank.announce(listed)
        self._labels[sha256] = label_line
        return _told({"done": False, "have": self._bank.arrived(listed)})

    def _upload(self, member: str, sha256: str) -> ChunkList:
        """An upload that this member announced since the gateway started."""
        label = self._labels.get(sha256)
        listed = None if label is None else self._bank.announced(sha256)
        if label is None or listed is None:
            raise Refused(409, "not-announced")
        if parse_label(label)[1].sender != member:
            raise Refused(403, "label-of-another")
        return listed

    def _keep(self, listed: ChunkList, index: int, chunk: bytes) -> None:
        if len(chunk) != listed.size_of(index) or hashlib.sha256(chunk).hexdigest() != listed.chunks[index]:
            raise Refused(422, "chunk-differs")
        self._bank.write_chunk(listed, index, chunk)

    def _finish(self, member: str, sha256: str) -> Response:
        if not self._bank.holds(sha256):
            self._upload(member, sha256)
            try:
                self._bank.finish(sha256, label=self._labels[sha256], roster=self._roster.get(), now=datetime.now(UTC))
            except NotInBank:
                raise Refused(409, "chunks-missing") from None
            except NotFedError as error:
                self._problems.note(error.code, f"an upload was not what its label says: {error}"[:500], site=member)
                raise
        self._labels.pop(sha256, None)
        with self._room:
            size = self._coming.pop(sha256, 0)
            self._stored = (self._stored[0], self._stored[1] + size)
        return _told({"done": True, "have": []})

    def _list(self, member: str, sha256: str) -> Response:
        self._require_recipient(member, sha256)
        return Response(self._bank.listed(sha256).to_bytes(), media_type="application/json")

    def _require_recipient(self, member: str, sha256: str) -> None:
        """Its label names this member, or the member sent it; whoever else asks hears that it is not there."""
        label = parse_label(self._bank.label(sha256))[1]
        if member not in (label.sender, *label.to):
            self._problems.note("not-a-recipient", f"it asked for an organ of {label.sender}", site=member)
            raise Refused(404, "not-in-bank")

    def _require_room(self, listed: ChunkList, label: Label) -> None:
        """Keep room for an upload: what others have announced counts, though it has not come yet."""
        with self._room:
            free, now = self._bank.free_bytes(), time.monotonic()
            if now - self._stored[0] > LOOK_AT_SIZES_S:
                self._stored = (now, self._bank.total_bytes())
            of_round = self._of_round.setdefault((label.sender, label.round), set())
            if listed.sha256 not in of_round and len(of_round) >= ORGANS_A_ROUND:
                self._problems.note("too-many-organs", f"more than {ORGANS_A_ROUND} in one round", site=label.sender)
                raise Refused(409, "too-many-organs")
            coming = sum(size for sha256, size in self._coming.items() if sha256 != listed.sha256)
            full = self._stored[1] + coming + listed.size_bytes > self._table.max_bytes
            if full or (free is not None and free - coming - listed.size_bytes < self._table.free_bytes):
                self._problems.note("bank-full", f"no room for {listed.size_bytes:,} bytes more")
                raise Refused(507, "bank-full", headers={"Retry-After": "60"})
            of_round.add(listed.sha256)
            self._coming[listed.sha256] = listed.size_bytes

    # -- helpers --------------------------------------------------------------------------------------------------

    async def _member(self, request: Request) -> str:
        return await self._thread(self._visits.member, request)

    def _turn(self, sha256: str) -> asyncio.Lock:
        """One after the other for one organ: a list that changes while the whole is checked would go unchecked."""
        lock = self._turns.get(sha256)
        if lock is None:
            lock = self._turns[sha256] = asyncio.Lock()
        return lock

    async def _thread(self, work: Callable[..., _T], *arguments: Any) -> _T:  # noqa: ANN401
        try:
            return await run_in_threadpool(work, *arguments)
        except NotInBank as error:
            raise Refused(404, error.code) from None
        except NotFedError as error:
            if error.exit_code in (4, 8) and error.code in ("no-space", "bank-storage", "bank-damaged"):
                self._problems.note(error.code, f"the bank: {error}"[:500])
                raise Refused(507 if error.code == "no-space" else 503, error.code) from None
            raise refused_by(error) from None


def _announced(body: bytes, *, sha256: str) -> tuple[bytes, ChunkList]:
    """`{"label": base64, "chunks": {...}}`; raises Refused."""
    try:
        value = json.loads(body)
        label = b64decode(value["label"], validate=True)
        listed = ChunkList.model_validate_json(json.dumps(value["chunks"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Refused(400, "bad-chunks") from None
    if listed.sha256 != sha256 or len(label) > MAX_LABEL_BYTES:
        raise Refused(400, "bad-chunks")
    return label, listed


def _told(value: dict[str, object]) -> JSONResponse:
    return JSONResponse({"schema": "not-fed/upload/1", **value})
