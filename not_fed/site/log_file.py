"""The site's own log, which nobody else reads: one line for each thing that its administrator may want to know."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

LOG_FILE = "log"
MAX_LOG_BYTES = 16 << 20


def note(home: Path, text: str) -> None:
    """Append `text` with the time. A log that is full becomes `log.1`, so that who asks for ever fills no disk.

    Proved by: tests/unit/test_site_state.py::test_a_full_log_makes_room_and_says_the_newest
    """
    _make_room(home)
    descriptor = os.open(home / LOG_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "a", encoding="utf-8") as file:
        file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {text.rstrip()}\n")


def _make_room(home: Path) -> None:
    with suppress(OSError):
        if (home / LOG_FILE).lstat().st_size >= MAX_LOG_BYTES:
            (home / LOG_FILE).replace(home / f"{LOG_FILE}.1")
