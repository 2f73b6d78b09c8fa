"""Flower's Fleet API, passed on to the SuperLink on this machine's loopback: these twelve calls and no others."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import httpx
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from not_fed.coordinator.deployment import GatewayTable
from not_fed.coordinator.gateway.admission import NODE_KEY_HEADER, Admission
from not_fed.coordinator.gateway.answers import Refused
from not_fed.coordinator.gateway.bodies import announced_bytes, pieces

CALLS: Final = (
    "register-node", "activate-node", "deactivate-node", "unregister-node", "send-node-heartbeat", "pull-messages",
    "push-messages", "get-run", "get-fab", "push-object", "pull-object", "confirm-message-received",
)  # fmt: skip
_PASSED_ON = ("content-type", "accept")
_NOT_PASSED_ON = ("flwr-task-token", "flwr-superexec-")  # what opens Flower's other APIs has no business here
CONNECTIONS = 512


class Forwarder:
    """Passes calls on, streaming both ways."""

    def __init__(
        self, *, url: str, ca: Path, admission: Admission, limits: GatewayTable, seen: Callable[[str], None]
    ) -> None:
        self._admission, self._limits, self._seen = admission, limits, seen
        timeout = httpx.Timeout(limits.upstream_timeout_s, connect=5.0)
        self._client = httpx.AsyncClient(
            base_url=url, verify=ssl.create_default_context(cafile=str(ca)), timeout=timeout, trust_env=False,
            limits=httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=32),
        )  # fmt: skip

    async def close(self) -> None:
        """End the connections to the SuperLink."""
        await self._client.aclose()

    async def call(self, request: Request) -> Response:
        """One call of the Fleet API.

        Raises:
            Refused: not an enrolled, active site; too long; the SuperLink does not answer (503: SuperNodes try again).
        Proved by: tests/attacks/test_gateway.py::test_a_revoked_site_cannot_hide_behind_the_key_of_another
        """
        _require_once(request)
        peer = request.client.host if request.client else "somewhere"
        header = request.headers.get(NODE_KEY_HEADER)
        site = await run_in_threadpool(self._admission.site, header, peer=peer)
        size = announced_bytes(request, most=self._limits.max_message_bytes)
        await run_in_threadpool(self._seen, site)
        upstream = await self._send(request, size)
        headers = {name: value for name in ("content-type", "content-length") if (value := upstream.headers.get(name))}
        # Flower's own clients give up at a 500, which its SuperLink answers when its database is busy
        status = 503 if upstream.status_code == 500 else upstream.status_code
        return StreamingResponse(upstream.aiter_raw(), status, headers, background=BackgroundTask(upstream.aclose))

    async def health(self) -> bool:
        """Whether the SuperLink answers."""
        try:
            return (await self._client.get("/health", timeout=5.0)).is_success
        except httpx.HTTPError:
            return False

    async def _send(self, request: Request, size: int) -> httpx.Response:
        headers = {name: value for name in _PASSED_ON if (value := request.headers.get(name))}
        headers |= {
            name: value
            for name, value in request.headers.items()
            if name.startswith("flwr-") and not name.startswith(_NOT_PASSED_ON)
        }
        headers |= {"content-length": str(size), "accept-encoding": "identity"}
        body: AsyncIterator[bytes] = pieces(request, patience_s=self._limits.slow_client_s)
        call = self._client.build_request("POST", request.url.path, content=body, headers=headers)
        try:
            return await self._client.send(call, stream=True)
        except httpx.HTTPError:
            raise Refused(503, "superlink-away", headers={"Retry-After": "2"}) from None


def _require_once(request: Request) -> None:
    """Refuse a request in which one of Flower's headers stands twice: who is admitted is who is passed on."""
    names = [name for name, _ in request.headers.raw if name.startswith(b"flwr-")]
    if len(names) != len(set(names)):
        raise Refused(400, "header-twice")
