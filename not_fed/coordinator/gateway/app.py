"""The gateway as an ASGI application: an exact list of paths, and nothing behind any other."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from not_fed import __version__
from not_fed.canonical import format_time
from not_fed.coordinator.bank import Bank
from not_fed.coordinator.deployment import BankTable, GatewayTable, load_deployment
from not_fed.coordinator.gateway.admission import Admission, CurrentRoster, Problems
from not_fed.coordinator.gateway.answers import Refused
from not_fed.coordinator.gateway.bank_routes import BankRoutes
from not_fed.coordinator.gateway.bodies import drain
from not_fed.coordinator.gateway.forward import CALLS, Forwarder
from not_fed.coordinator.gateway.roster_files import RosterFiles
from not_fed.coordinator.gateway.visits import Visits
from not_fed.coordinator.nodes import Nodes
from not_fed.coordinator.plan import load_plan
from not_fed.envelope.task import PROTOCOL

_PLAIN_PATH = re.compile(rb"(?:/[0-9A-Za-z_][0-9A-Za-z._-]*)+")
Endpoint = Callable[[Request], Awaitable[Response]]


def build_gateway(
    home: Path, *, superlink_url: str, superlink_ca: Path, nodes: Nodes, seen: Callable[[str], None]
) -> Starlette:
    """The application of the coordinator at `home`.

    Args:
        superlink_url, superlink_ca: where Flower's SuperLink listens on loopback, and what its certificate is from.
        seen: told each time that a site was heard of; called in threads.
    Guarantees:
        Only POST /v1/fleet/{twelve calls}, GET /health, /v1/bank/... and GET /v1/roster/... exist, spelled exactly so.
    Proved by: tests/attacks/test_gateway.py::test_nothing_but_the_listed_paths_leads_anywhere
    """
    deployment, plan = load_deployment(home), load_plan(home)
    limits = GatewayTable() if deployment is None else deployment.gateway
    table = BankTable() if deployment is None else deployment.bank
    roster, problems = CurrentRoster(home), Problems(home)
    forwarder = Forwarder(
        url=superlink_url, ca=superlink_ca, limits=limits, seen=seen,
        admission=Admission(nodes, roster=roster, problems=problems),
    )  # fmt: skip
    visits = Visits(roster, federation=plan.federation, coordinator=plan.name, problems=problems)
    bank = BankRoutes(home, Bank.at(home), visits=visits, roster=roster, table=table, limits=limits, problems=problems)
    facts = {"schema": "not-fed/gateway/1", "not_fed": __version__, "protocol": PROTOCOL, "federation": plan.federation}
    routes = [
        Route("/health", _health(forwarder, facts), methods=["GET"]),
        *(Route(f"/v1/fleet/{name}", forwarder.call, methods=["POST"]) for name in CALLS),
        *_roster_routes(RosterFiles(home)),
        *bank.routes(),
    ]

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await forwarder.close()

    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={Refused: _refuse, 404: _none, 405: _none})
    app.router.redirect_slashes = False
    app.add_middleware(ExactPaths)
    return app


class ExactPaths:
    """Lets a path through only when it means what its bytes say: no escapes, dots, doubled or trailing slashes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and not _is_plain(scope):
            await Refused(404, "not-here").response()(scope, receive, send)
        elif scope["type"] in ("http", "lifespan"):  # no websockets
            await self._app(scope, receive, send)


def _is_plain(scope: Scope) -> bool:
    raw = scope.get("raw_path") or b""
    return bool(_PLAIN_PATH.fullmatch(raw)) and raw.decode("ascii") == scope["path"] and not scope["query_string"]


def _roster_routes(roster: RosterFiles) -> list[Route]:
    return [
        Route("/v1/roster", roster.listing, methods=["GET"]),
        Route("/v1/roster/{kind}/{name}", roster.file, methods=["GET"]),
    ]


def _health(forwarder: Forwarder, facts: Mapping[str, Any]) -> Endpoint:
    """Who answers here, and its clock: a site compares all of it before it starts."""

    async def health(_: Request) -> Response:
        works = await forwarder.health()
        told = {**facts, "time": format_time(datetime.now(UTC)), "flower": works}
        return JSONResponse(told, 200 if works else 503)

    return health


async def _refuse(request: Request, error: Exception) -> Response:
    await drain(request)
    return error.response() if isinstance(error, Refused) else Refused(500, "internal-error").response()


async def _none(_: Request, __: Exception) -> Response:
    return Refused(404, "not-here").response()
