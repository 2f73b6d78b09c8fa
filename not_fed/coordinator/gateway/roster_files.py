"""The roster as the coordinator trusts it, for everybody: signed files, read by name, from one folder."""

from __future__ import annotations

import re
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from not_fed import files
from not_fed.coordinator.gateway.answers import Refused
from not_fed.errors import InputError
from not_fed.trust.repository import MAX_FILE_BYTES

_NAME = re.compile(r"[0-9a-z][0-9a-z._-]{0,127}")


class RosterFiles:
    """HOME/roster/repository."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "roster" / "repository"

    async def listing(self, _: Request) -> JSONResponse:
        """Which files there are: a newcomer needs them all."""
        return JSONResponse({"schema": "not-fed/roster-files/1", "files": await run_in_threadpool(self._names)})

    async def file(self, request: Request) -> Response:
        """One of them; raises Refused 404."""
        kind, name = request.path_params["kind"], request.path_params["name"]
        if kind not in KINDS or not _NAME.fullmatch(name):
            raise Refused(404, "not-here")
        try:
            data = await run_in_threadpool(files.read_regular, self._folder / kind / name, max_bytes=MAX_FILE_BYTES)
        except InputError:
            raise Refused(404, "not-here") from None
        return Response(data, media_type="application/octet-stream")

    def _names(self) -> list[str]:
        return sorted(
            f"{kind}/{path.name}"
            for kind in KINDS
            for path in (self._folder / kind).glob("*")
            if _NAME.fullmatch(path.name) and path.is_file()
        )


KINDS = ("metadata", "targets", "recalls")
