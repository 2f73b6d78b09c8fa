"""What Flower loads at a site. It moves bytes; each decision is in the not_fed that the site itself installed."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query("greet")
def greet(message: Message, context: Context) -> Message:
    """Say which site this is, signed by it."""
    return _answer("answer_greeting", message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Hand the order to the not_fed of this site; carry its answer back."""
    return _answer("answer_order", message, context)


def _answer(name: str, message: Message, context: Context) -> Message:
    try:
        from not_fed.site import flower  # inside: even an import that fails must not send its message

        work: Callable[[RecordDict, Context], RecordDict] = getattr(flower, name)
        content = work(message.content, context)
    except Exception as error:  # Flower would send str(error) to the server; only a code may leave
        content = RecordDict({"answer": ConfigRecord({"refused": _code(error)})})
    return Message(content, reply_to=message)


def _code(error: Exception) -> str:
    try:
        from not_fed.errors import NotFedError
    except Exception:
        return "not-installed"
    return error.code if isinstance(error, NotFedError) else "internal-error"
