"""A bad network on this machine: a TCP relay that can be cut, stalled, slowed, or cut after so many bytes.

It carries bytes and looks at none of them. One thread accepts, two carry each connection; all end with the relay.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Final, Literal, Self

Direction = Literal["up", "down"]  # towards the server, or back
Mode = Literal["open", "cut", "stalled"]
PIECE_BYTES: Final = 64 << 10
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER with no time: closing sends a reset, as a torn line does


class Proxy:
    """A port of its own in front of `target`, on 127.0.0.1.

    Attributes:
        target: the port behind it; may be changed, new connections then go there.
        carried: bytes that went each way so far.
    """

    def __init__(self, target: int = 0) -> None:
        self.target = target
        self.carried: dict[Direction, int] = {"up": 0, "down": 0}
        self._change = threading.Condition()
        self._mode: Mode = "open"
        self._bytes_per_s: float | None = None
        self._left: dict[Direction, int | None] = {"up": None, "down": None}
        self._live: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._server = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._server.getsockname()[1]
        self._start(self._accept)

    def cut(self) -> None:
        """Tear every connection; new ones are torn at once."""
        self._set("cut")
        self._tear()

    def stall(self) -> None:
        """Nothing passes and nothing is said: connections stay, as on a line where packets are lost."""
        self._set("stalled")

    def mend(self) -> None:
        """Let everything pass again, at full speed."""
        with self._change:
            self._bytes_per_s, self._left = None, {"up": None, "down": None}
        self._set("open")

    def throttle(self, bytes_per_s: float) -> None:
        """Each connection carries so much each way and no more."""
        with self._change:
            self._bytes_per_s = bytes_per_s

    def cut_after(self, size_bytes: int, *, direction: Direction = "up") -> None:
        """After so many more bytes in one direction every connection is torn, once; new ones pass."""
        with self._change:
            self._left[direction] = size_bytes

    def wait_for_cut(self, *, direction: Direction = "up", timeout_s: float = 60.0) -> bool:
        """Until `cut_after` has happened."""
        with self._change:
            return self._change.wait_for(lambda: self._left[direction] is None, timeout_s)

    def close(self) -> None:
        """End it: no port, no connection, no thread."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._tear()
        for thread in self._threads:
            thread.join(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, where: TracebackType | None) -> None:
        self.close()

    def _set(self, mode: Mode) -> None:
        with self._change:
            self._mode = mode
            self._change.notify_all()

    def _start(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            far = None if self._mode == "cut" else self._connect()
            if far is None:
                _reset(near)
                continue
            with self._change:
                self._live |= {near, far}
            over = threading.Event()  # set when one direction has ended well
            self._start(self._carry, near, far, "up", over)
            self._start(self._carry, far, near, "down", over)

    def _connect(self) -> socket.socket | None:
        try:
            far = socket.create_connection(("127.0.0.1", self.target), timeout=10)
        except OSError:
            return None
        far.settimeout(None)
        return far

    def _carry(self, source: socket.socket, sink: socket.socket, direction: Direction, over: threading.Event) -> None:
        with suppress(OSError):
            while piece := source.recv(PIECE_BYTES):
                if not self._send(sink, piece, direction):
                    break
            else:
                sink.shutdown(socket.SHUT_WR)
                if not over.is_set():  # the other direction may go on
                    over.set()
                    return
        self._end(source, sink)

    def _send(self, sink: socket.socket, piece: bytes, direction: Direction) -> bool:
        """False when the connection is over."""
        with self._change:
            self._change.wait_for(lambda: self._mode != "stalled" or self._closed)
            if self._closed or self._mode == "cut":
                return False
            left, speed = self._left[direction], self._bytes_per_s
            torn = left is not None and left <= len(piece)
            if left is not None:
                self._left[direction] = None if torn else left - len(piece)
                piece = piece[:left] if torn else piece
            self._change.notify_all()
        sink.sendall(piece)
        with self._change:
            self.carried[direction] += len(piece)
        if torn:
            self._tear()
            return False
        if speed:
            time.sleep(len(piece) / speed)
        return True

    def _tear(self) -> None:
        with self._change:
            live, self._live = self._live, set()
        for one in live:
            _reset(one)

    def _end(self, *ends: socket.socket) -> None:
        with self._change:
            self._live -= set(ends)
        for one in ends:
            _reset(one)


def _reset(connection: socket.socket) -> None:
    """Close with a reset; the shutdown wakes a thread that waits in recv."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
