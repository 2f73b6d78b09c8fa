"""Bytes that travel as a numpy file: accepted only when they are what numpy itself writes for bytes in one row.

`numpy.load` reserves what a file's header announces before it looks for it, so that 128 bytes can ask for terabytes.
Here the header decides nothing: it must announce exactly what follows it.
"""

from __future__ import annotations

import re

# Format 1.0: magic, version, length of the header, a Python dictionary padded with blanks. Source: numpy.lib.format
_FILE = re.compile(
    rb"\x93NUMPY\x01\x00(?P<length>..)"
    rb"\{'descr': '\|u1', 'fortran_order': False, 'shape': \((?P<count>[0-9]{1,18}),\), \} *\n",
    re.DOTALL,
)
_FIXED_BYTES = 10


def bytes_of_array(file: bytes) -> bytes | None:
    """The bytes in a numpy file that holds one row of unsigned bytes; None for anything else, whatever it is.

    Guarantees: allocates no more than the file's own size.
    Proved by: tests/attacks/test_flower_messages.py::test_an_array_that_announces_more_than_it_has_ends_nothing
    """
    head = _FILE.match(file)
    if head is None or head.end() != _FIXED_BYTES + int.from_bytes(head["length"], "little"):
        return None
    return file[head.end() :] if int(head["count"]) == len(file) - head.end() else None
