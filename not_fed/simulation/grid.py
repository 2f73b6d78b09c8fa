"""Flower without a network: a Grid that calls the ClientApp in this process, through Flower's own serialisation.

Every message becomes protobuf bytes and back on its way, so that nothing passes by reference, and a `tap` can keep the
exact bytes. An app that raises is answered as a SuperNode answers: with an error that quotes the exception. `drop`
loses messages, as a site that is switched off does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, Protocol

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

FIRST_NODE = 10
RUN_ID = 1

NodeConfig = Mapping[str, bool | float | int | str]


class Tap(Protocol):
    """Told about every message that the server sends or receives, as bytes on the wire."""

    def __call__(self, direction: Literal["sent", "received"], data: bytes) -> None:
        """`sent` and `received` are the server's view."""


class LocalGrid(Grid):
    """The sites' ClientApp in this process, one Context for each site. Sites work one after the other."""

    def __init__(
        self,
        client_app: ClientApp,
        node_configs: Iterable[NodeConfig],
        *,
        tap: Tap | None = None,
        drop: Callable[[Message], bool] | None = None,
    ) -> None:
        self._app, self._tap, self._drop = client_app, tap, drop
        self._replies: dict[str, Message] = {}
        self._count = 0
        self._run: Run | None = None
        self._contexts = {
            node: Context(
                run_id=RUN_ID, node_id=node, node_config=dict(config), state=RecordDict(), run_config={}, series_id=1
            )
            for node, config in enumerate(node_configs, start=FIRST_NODE)
        }
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = (
            RUN_ID  # Message(...) asks for it outside a runtime
        )

    def set_run(self, run: Run) -> None:
        """Part of Grid; nothing here depends on it."""
        self._run = run

    @property
    def run(self) -> Run:
        """Part of Grid."""
        if self._run is None:
            raise RuntimeError("no run was set")
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Part of Grid; new code calls Message itself."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Every site is always connected; `drop` decides what arrives."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Deliver messages one after the other; each reply waits for `pull_messages`."""
        return [self._deliver(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Replies that have come."""
        return [self._replies.pop(message_id) for message_id in message_ids if message_id in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push, then pull; nobody is waited for, since everybody has answered by then."""
        return self.pull_messages(self.push_messages(messages))

    def _deliver(self, message: Message) -> str:
        self._count += 1
        message_id = f"m{self._count}"
        message.metadata.__dict__["_message_id"] = message_id  # the SuperLink's part
        data = message_to_proto(message).SerializeToString()
        self._see("sent", data)
        if self._drop is None or not self._drop(message):
            answer = message_to_proto(self._answer(_parse(data))).SerializeToString()
            self._see("received", answer)
            self._replies[message_id] = _parse(answer)
        return message_id

    def _answer(self, message: Message) -> Message:
        try:
            return self._app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:  # noqa: BLE001  a SuperNode answers any exception, and quotes it
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"{type(error)}:<'{error}'>"), reply_to=message)

    def _see(self, direction: Literal["sent", "received"], data: bytes) -> None:
        if self._tap is not None:
            self._tap(direction, data)


def server_context(node_config: NodeConfig) -> Context:
    """What a ServerApp is called with."""
    return Context(
        run_id=RUN_ID, node_id=0, node_config=dict(node_config), state=RecordDict(), run_config={}, series_id=1
    )


def _parse(data: bytes) -> Message:
    return message_from_proto(ProtoMessage.FromString(data))
