"""SHA-256 on a second thread: hashing is the dearest part of sealing, and hashlib lets other threads run."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self


class BackgroundDigest:
    """Hashes blocks in order while the caller makes the next one. A block may be reused after the second call."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sha256")
        self._pending: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True)

    def update(self, block: bytes | memoryview) -> None:
        """Wait for the block before, then hash this one in the background."""
        self._settle()
        self._pending = self._pool.submit(self._hash.update, block)

    def hexdigest(self) -> str:
        """Of everything so far."""
        self._settle()
        return self._hash.hexdigest()

    def _settle(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None
