"""Request bodies, read as they come: no longer than announced, no longer than allowed, and not at any pace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect, Request

from not_fed.coordinator.gateway.answers import Refused

MAX_DRAINED_BYTES, DRAIN_S = 8 << 20, 5.0
LEAST_BYTES_A_S = 4096  # over the time that silence is put up with; slower than any line that trains models
_READ = "not_fed.body_read"


def announced_bytes(request: Request, *, most: int) -> int:
    """How long the body says it is.

    Raises:
        Refused: it does not say (411), or it is longer than `most` (413).
    """
    lengths = request.headers.getlist("content-length")
    if len(lengths) != 1 or "transfer-encoding" in request.headers or not lengths[0].isascii():
        raise Refused(411, "length-required")
    if not lengths[0].isdigit() or len(lengths[0]) > 18:
        raise Refused(400, "bad-length")
    if int(lengths[0]) > most:
        raise Refused(413, "too-long")
    return int(lengths[0])


async def pieces(request: Request, *, patience_s: float) -> AsyncIterator[bytes]:
    """The body piece by piece; whoever is silent for `patience_s`, or hardly sends anything, is cut off (408)."""
    stream, began, size = aiter(request.stream()), time.monotonic(), 0
    while True:
        try:
            piece = await asyncio.wait_for(anext(stream), patience_s)
        except StopAsyncIteration:
            request.scope[_READ] = True
            return
        except TimeoutError:
            raise Refused(408, "too-slow") from None
        except ClientDisconnect:
            raise Refused(400, "cut-off") from None
        size += len(piece)
        if size < LEAST_BYTES_A_S * (time.monotonic() - began - patience_s):
            raise Refused(408, "too-slow")
        if piece:
            yield piece


async def whole(request: Request, *, most: int, patience_s: float) -> bytes:
    """A body of at most `most` bytes."""
    size, body = announced_bytes(request, most=most), bytearray()
    async for piece in pieces(request, patience_s=patience_s):
        body += piece
        if len(body) > size:
            raise Refused(400, "bad-length")
    if len(body) != size:
        raise Refused(400, "cut-off")
    return bytes(body)


async def drain(request: Request) -> None:
    """Take the rest of a body that was refused: closing on somebody who still sends loses the answer on its way."""
    length = request.headers.get("content-length", "0")
    if request.scope.get(_READ) or not length.isdigit() or not 0 < int(length) <= MAX_DRAINED_BYTES:
        return
    try:
        async with asyncio.timeout(DRAIN_S):
            while (message := await request.receive())["type"] == "http.request" and message.get("more_body"):
                pass
    except TimeoutError:
        return
