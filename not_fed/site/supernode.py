"""Flower's SuperNode in a process that ends when its work has ended, so that whoever supervises it sees that.

Flower's own command (1.42.0) stays: an error that it does not try again (a connection torn within a TLS handshake, a
500 of a SuperLink whose database is locked) ends its loop or its heartbeats, while the thread of its runtime interface
keeps the process alive. Such a SuperNode takes no task and sends no answer any more.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from typing import NoReturn

ENDED = 1


def main() -> NoReturn:
    """The command; all arguments are Flower's.

    Guarantees: the process ends when Flower's loop has ended or one of its threads has died, whatever else still runs.
    Proved by: tests/deployment/test_network.py::test_a_connection_torn_in_its_handshake_is_made_again_without_hands
    """
    from flwr.supernode.cli import flower_supernode

    threading.excepthook = _thread_died
    code: object = ENDED  # to return is to have lost the connection: a signal raises SystemExit
    try:
        flower_supernode()
        sys.stderr.write("the SuperNode has lost its connection and does not try again: it ends\n")
    except SystemExit as ended:
        code = ended.code
    except BaseException:  # noqa: BLE001  whatever it is, the process must not outlive it
        traceback.print_exc()
    _end(0 if code is None else code if isinstance(code, int) else ENDED)


def _thread_died(died: threading.ExceptHookArgs) -> None:
    traceback.print_exception(died.exc_type, died.exc_value, died.exc_traceback)
    sys.stderr.write(f"the SuperNode's thread {died.thread.name if died.thread else '?'} has died: it ends\n")
    _end(ENDED)


def _end(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
