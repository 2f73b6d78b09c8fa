"""Sessions with the bank: a nonce of ours, signed by a member of the roster, buys a token that is good for an hour.

Tokens are random, kept by their digest, in memory only: a restart ends them all, and members come again.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse

from not_fed.coordinator.gateway.admission import CurrentRoster, Problems
from not_fed.coordinator.gateway.answers import Refused, refused_by
from not_fed.coordinator.gateway.bodies import whole
from not_fed.envelope.task import new_id
from not_fed.envelope.visit import MAX_VISIT_BYTES, verify_visit
from not_fed.errors import NotFedError

NONCE_S, SESSION_S = 60.0, 3600.0
MAX_NONCES, MAX_SESSIONS = 1 << 16, 4096
PATIENCE_S = 20.0


@dataclass(frozen=True, slots=True)
class _Session:
    member: str
    until: float


class Visits:
    """Who is at the bank."""

    def __init__(self, roster: CurrentRoster, *, federation: str, coordinator: str, problems: Problems) -> None:
        self._roster, self._problems = roster, problems
        self._federation, self._coordinator = federation, coordinator
        self._lock = threading.Lock()
        self._nonces: dict[str, float] = {}
        self._sessions: dict[str, _Session] = {}

    async def nonce(self, _: Request) -> JSONResponse:
        """A fresh nonce; good for a minute, and once."""
        nonce, now = new_id(), time.monotonic()
        with self._lock:
            while self._nonces and (self._oldest() <= now or len(self._nonces) >= MAX_NONCES):
                del self._nonces[next(iter(self._nonces))]  # the oldest: anybody may ask, nobody shuts others out
            self._nonces[nonce] = now + NONCE_S
        return JSONResponse({"schema": "not-fed/nonce/1", "nonce": nonce})

    def _oldest(self) -> float:
        return next(iter(self._nonces.values()))

    async def open(self, request: Request) -> JSONResponse:
        """A signed visit in, a token out; raises Refused."""
        line = await whole(request, most=MAX_VISIT_BYTES, patience_s=PATIENCE_S)
        nonce = request.path_params["nonce"]
        with self._lock:
            until = self._nonces.pop(nonce, 0.0)
        if until <= time.monotonic():
            raise Refused(403, "bad-visit")
        peer = request.client.host if request.client else "somewhere"
        member = await run_in_threadpool(self._check, line, nonce, peer)
        token, now = secrets.token_urlsafe(32), time.monotonic()
        with self._lock:
            self._sessions = {key: session for key, session in self._sessions.items() if session.until > now}
            if len(self._sessions) >= MAX_SESSIONS:
                raise Refused(503, "bank-busy", headers={"Retry-After": "30"})
            self._sessions[_key(token)] = _Session(member, now + SESSION_S)
        return JSONResponse({"schema": "not-fed/session/1", "token": token, "seconds": SESSION_S})

    def member(self, request: Request) -> str:
        """Whose session this request belongs to, still on the roster.

        Raises:
            Refused: 401 without a session, 403 for a member that was revoked meanwhile.
        """
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        with self._lock:
            session = self._sessions.get(_key(token)) if kind == "Bearer" else None
        if session is None or session.until <= time.monotonic():
            raise Refused(401, "no-session")
        try:
            self._roster.get().member(session.member, now=datetime.now(UTC))
        except NotFedError as error:
            self._problems.note(error.code, "a visit to the bank was ended: it is not on the roster any more",
                                site=session.member)  # fmt: skip
            raise refused_by(error) from None
        return session.member

    def _check(self, line: bytes, nonce: str, peer: str) -> str:
        try:
            return verify_visit(
                line, coordinator=self._coordinator, nonce=nonce, roster=self._roster.get(), now=datetime.now(UTC)
            ).member
        except NotFedError as error:
            self._problems.note(error.code, f"a visit to the bank from {peer} was refused: {error}"[:500])
            raise refused_by(error) from None


def _key(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
