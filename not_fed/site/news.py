"""What a site's administrator wants to see while it is joined: new lines of two logs, in fewer words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

MAX_BYTES = 64 << 10
_CONNECTED = "SuperNode ID:"
_SIGNS = {
    "Failed to activate SuperNode": "the coordinator does not let this connection in: it is not enrolled or not on its "
    "roster, or a killed one of this site is remembered for a minute",
    "CERTIFICATE_VERIFY_FAILED": "the certificate at the coordinator's address cannot be trusted",
    "Invalid SuperNode authentication": "the coordinator does not accept this site's key or clock",
}


class Tail:
    """The lines that are appended to a file from now on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = path.stat().st_size if path.is_file() else 0

    def lines(self) -> Iterator[str]:
        """Whole new lines, as far as they may be read at once."""
        try:
            with self._path.open("rb") as file:
                if file.seek(0, 2) < self._at:  # cut short: its beginning was moved elsewhere
                    self._at = 0
                file.seek(self._at)
                data = file.read(MAX_BYTES)
        except OSError:
            return
        whole = data.rfind(b"\n") + 1
        if not whole and len(data) == MAX_BYTES:
            whole = len(data)
        self._at += whole
        yield from data[:whole].decode(errors="replace").splitlines()


class News:
    """Tells what is new in the SuperNode's log and in the site's own."""

    def __init__(self, *, supernode: Path, site: Path, say: Callable[[str], None]) -> None:
        self._supernode, self._site, self._say = Tail(supernode), Tail(site), say
        self._last = ""

    def poll(self) -> None:
        """Tell what has been written since the last time."""
        for line in self._supernode.lines():
            if _CONNECTED in line:
                self._tell("connected")
            for sign, meaning in _SIGNS.items():
                if sign in line:
                    self._tell(meaning)
        for line in self._site.lines():
            time, _, text = line.partition(" ")
            if text and time[:4].isdigit():  # not the lines of a traceback
                self._tell(text)

    def _tell(self, text: str) -> None:
        if text != self._last:
            self._last = text
            self._say(text)
