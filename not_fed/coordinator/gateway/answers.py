"""What the gateway answers when it refuses: a status and a code, never a reason that helps whoever guesses."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse

from not_fed.errors import NotFedError


class Refused(Exception):
    """A request that gets no further."""

    def __init__(self, status: int, code: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(code)
        self.status, self.code, self.headers = status, code, dict(headers or {})

    def response(self) -> JSONResponse:
        """As JSON that the site's bank client reads; the connection ends, since a body may be left unread."""
        headers = {**self.headers, "Connection": "close"}
        return JSONResponse({"schema": "not-fed/refused/1", "code": self.code}, self.status, headers)


def refused_by(error: NotFedError) -> Refused:
    """The same for an error of a check: 400 for what cannot be read, 403 for what is not trusted."""
    return Refused(403 if error.exit_code == 6 else 400, error.code)
