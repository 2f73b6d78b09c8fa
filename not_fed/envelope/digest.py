"""SHA-256 on a second thread: the dearest part of sealing and opening, and hashlib lets other threads run meanwhile."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable
from typing import Self

_WAITING = 2  # one being hashed, one behind it: with fewer the threads wait for each other, more help nothing


class BackgroundDigest:
    """Hashes blocks in order while the caller makes the next ones.

    A block may be reused as soon as the second `update` after its own has returned. Two plain queues, one for blocks
    and one for leave to bring more: a future for each block would cost more than all else here.
    """

    def __init__(self, *, also: Callable[[memoryview], object] | None = None) -> None:
        """`also` is called with each block on that thread, after it was hashed; what it raises, `update` raises."""
        self._hash, self._also = hashlib.sha256(), also
        self._blocks: queue.SimpleQueue[bytes | memoryview | None] = queue.SimpleQueue()
        self._leave: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        for _ in range(_WAITING):
            self._leave.put(None)
        self._thread = threading.Thread(target=self._run, name="sha256", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._blocks.put(None)
        self._thread.join()

    def update(self, block: bytes | memoryview) -> None:
        """Hash this block in the background; waits while two others are."""
        self._wait()
        self._blocks.put(block)

    def hexdigest(self) -> str:
        """Of everything so far."""
        for _ in range(_WAITING):
            self._wait()
        for _ in range(_WAITING):
            self._leave.put(None)
        return self._hash.hexdigest()

    def _wait(self) -> None:
        error = self._leave.get()
        if error is not None:
            self._leave.put(error)
            raise error

    def _run(self) -> None:
        error: Exception | None = None
        while (block := self._blocks.get()) is not None:
            try:
                self._hash.update(block)
                if self._also is not None and error is None:
                    self._also(memoryview(block))
            except Exception as caught:  # noqa: BLE001  handed to the thread that waits
                error = caught
            self._leave.put(error)
