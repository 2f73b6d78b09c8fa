"""The bad network of these tests does what it says: otherwise the tests behind it show nothing."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from tests.support.proxy import Proxy


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that sends back what it gets; its port."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(1 << 16):
                    connection.sendall(data)
            except OSError:
                return

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    server.close()


@pytest.fixture
def proxy(echo: int) -> Iterator[Proxy]:
    with Proxy(echo) as relay:
        yield relay


def connect(proxy: Proxy, *, timeout_s: float = 20.0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=timeout_s)


def say(connection: socket.socket, data: bytes = b"x") -> bytes:
    connection.sendall(data)
    got = b""
    while len(got) < len(data) and (piece := connection.recv(1 << 16)):
        got += piece
    return got


def goes_through(connection: socket.socket, data: bytes) -> bool:
    try:
        return say(connection, data) == data
    except TimeoutError:
        raise
    except OSError:
        return False


def is_torn(connection: socket.socket) -> bool:
    return not goes_through(connection, b"x")


def is_torn_at_once(proxy: Proxy) -> bool:
    """A new connection, which may be torn before it is known to be one."""
    try:
        with connect(proxy) as one:
            return is_torn(one)
    except OSError:
        return True


def test_an_open_relay_carries_both_ways_and_counts(proxy: Proxy) -> None:
    with connect(proxy) as one:
        assert say(one, b"abc" * 100_000) == b"abc" * 100_000
    proxy.close()  # its threads are done: what was sent is counted a moment after it arrived
    assert proxy.carried == {"up": 300_000, "down": 300_000}


def test_a_cut_tears_what_is_there_and_what_comes_until_it_is_mended(proxy: Proxy) -> None:
    with connect(proxy) as one:
        assert say(one) == b"x"
        proxy.cut()
        assert is_torn(one)
        assert is_torn_at_once(proxy)
        proxy.mend()
        with connect(proxy) as three:
            assert say(three) == b"x"


def test_a_stalled_relay_is_silent_and_loses_nothing(proxy: Proxy) -> None:
    with connect(proxy, timeout_s=0.5) as one:
        assert say(one) == b"x"
        proxy.stall()
        one.sendall(b"y")
        with pytest.raises(TimeoutError):
            one.recv(1)
        proxy.mend()
        one.settimeout(20)
        assert one.recv(1) == b"y"


def test_a_cut_after_so_many_bytes_happens_once_and_there(proxy: Proxy) -> None:
    proxy.cut_after(100_000)
    with connect(proxy) as one:
        assert not goes_through(one, bytes(1 << 20))
    assert proxy.wait_for_cut()
    assert proxy.carried["up"] == 100_000
    with connect(proxy) as two:
        assert say(two) == b"x"


def test_nobody_behind_it_is_a_torn_connection(proxy: Proxy) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        proxy.target = unused.getsockname()[1]
        assert is_torn_at_once(proxy)
