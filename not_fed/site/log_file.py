"""The site's own log, which nobody else reads: one line for each thing that its administrator may want to know."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

LOG_FILE = "log"
MAX_LOG_BYTES = 16 << 20


def note(home: Path, text: str) -> None:
    """Append `text` with the time; beyond MAX_LOG_BYTES nothing: who asks for ever must not fill the disk."""
    descriptor = os.open(home / LOG_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "a", encoding="utf-8") as file:
        if os.fstat(file.fileno()).st_size < MAX_LOG_BYTES:
            file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {text.rstrip()}\n")
