"""A Flower that goes wrong on purpose, sites that answer by script, and stewards who change the roster meanwhile.

`Network` keeps the rules that Flower's own Grid was seen to keep: a message waits for a connection that is away, is
lost with one that vanishes, and then an error says so that comes from the SuperLink, not from the site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from not_fed.envelope.task import Task, verify_task
from not_fed.errors import NotFedError
from not_fed.home import Home
from not_fed.keys import Steward
from not_fed.keys.identity import load_public_identity
from not_fed.simulation import Prepared
from not_fed.site.work import greet
from not_fed.trust.roster import create_roster, pin_roster, renew_roster, revoke_member, update_roster
from tests.support.federation import Parcel, an_organ, seal_as

Answer = RecordDict | int | None  # what a site answers, an error code of Flower's, or nothing


@dataclass
class Site:
    """A site that seals an organ of its own for each round, once, and sends the same again when asked again.

    Attributes:
        script: what it does with each order in turn: a code to refuse with, `None` for no answer, or nothing more.
        orders: the tasks that it was sent.
        greetings: how often it was asked who it is.
    """

    prepared: Prepared
    name: str
    script: list[Callable[[Task, RecordDict], Answer]] = field(default_factory=list)
    orders: list[Task] = field(default_factory=list)
    greetings: int = 0
    answers: dict[tuple[str, int], Parcel] = field(default_factory=dict)
    mute: bool = False

    @property
    def home(self) -> Path:
        """Where its keys are."""
        return self.prepared.sites[self.name]

    def hear(self, message: Message) -> Answer:
        """Its answer to a message."""
        if "greeting" in message.content:
            self.greetings += 1
            return None if self.mute else self.greet(str(message.content["greeting"]["nonce"]))
        order = message.content["order"]
        assert isinstance(order, ConfigRecord)
        line = order["task"]
        assert isinstance(line, bytes)
        now = datetime.now(UTC)
        try:
            task = verify_task(line, roster=Home(self.home).roster(now), now=now)
        except NotFedError as error:
            return RecordDict({"answer": ConfigRecord({"refused": error.code})})
        self.orders.append(task)
        if self.script:
            return self.script.pop(0)(task, message.content)
        return self.answer(task)

    def greet(self, nonce: str) -> RecordDict:
        """Who it is."""
        said = greet(nonce, home=self.home, now=datetime.now(UTC))
        return RecordDict({"answer": ConfigRecord({"greeting": said})})

    def answer(self, task: Task, *, round_number: int | None = None) -> RecordDict:
        """What it answers to a task; its organ may be made for another round than it was asked for."""
        if task.kind == "receive":
            return RecordDict({"answer": ConfigRecord({"received": len(task.parcels), "left-out": []})})
        number = task.round if round_number is None else round_number
        parcel = self.answers.get((task.run, number))
        if parcel is None:
            parcel = self.answers[task.run, number] = self.seal(number, task)
        return organ(parcel)

    def seal(self, round_number: int, task: Task) -> Parcel:
        """An organ for a round, sealed to those of the task that the site's roster has."""
        now = datetime.now(UTC)
        roster = Home(self.home).roster(now)
        to = [name for name in task.recipients if roster.members[name].is_current(now)]
        path = an_organ(self.prepared, self.prepared.folder / f"{self.name}-{round_number}.organ", add=0.01)
        return seal_as(self.prepared, self.name, path, round_number=round_number, to=to)


def organ(parcel: Parcel) -> RecordDict:
    """An answer with one sealed organ."""
    arrays = ArrayRecord({"0": Array(np.frombuffer(parcel.sealed, dtype=np.uint8))})
    return RecordDict(
        {"answer": ConfigRecord({"label": parcel.label, "received": 0, "left-out": []}), "parcels": arrays}
    )


def refuses(code: str) -> Callable[[Task, RecordDict], Answer]:
    """One order that is refused."""
    return lambda task, content: RecordDict({"answer": ConfigRecord({"refused": code})})


def says_nothing(task: Task, content: RecordDict) -> Answer:
    """One order that is never answered."""
    return None


def fails(code: int) -> Callable[[Task, RecordDict], Answer]:
    """One order to which Flower answers instead of the site."""
    return lambda task, content: code


@dataclass
class _Letter:
    message: Message
    site: Site
    delivered: bool = False
    lost: bool = False
    answer: Message | None = None


class Network(Grid):
    """Connections that come and go.

    Attributes:
        events: number of the look at who is there -> what happens just before it.
        held: sites whose answers to orders have not arrived yet.
        down: how many calls fail from now on, as while the SuperLink restarts.
    """

    def __init__(self, sites: Iterable[Site]) -> None:
        self.sites = dict(enumerate(sites, start=10))
        self.there = set(self.sites)
        self.letters: dict[str, _Letter] = {}
        self.events: dict[int, Callable[[], None]] = {}
        self.held: set[str] = set()
        self.down = self.looks = self._count = 0
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1

    def set_run(self, run: Run) -> None:
        """Part of Grid."""

    @property
    def run(self) -> Run:
        """Part of Grid."""
        raise NotImplementedError

    def create_message(self, *_: object, **__: object) -> Message:
        """Part of Grid."""
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        """Who is there, after what the script has for this moment."""
        self.looks += 1
        self.events.pop(self.looks, lambda: None)()
        self._fail()
        return sorted(self.there)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Take messages; those to a connection that is there arrive at once."""
        self._fail()
        numbers = []
        for message in messages:
            self._count += 1
            number = f"m{self._count}"
            message.metadata.__dict__["_message_id"] = number
            node = message.metadata.dst_node_id
            self.letters[number] = _Letter(message, self.sites[node])
            numbers.append(number)
            if node in self.there:
                self._deliver(self.letters[number])
        return numbers

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Answers that have come; an error for what was lost."""
        self._fail()
        found = []
        for number in message_ids:
            letter = self.letters.get(number)
            if letter is None:
                found.append(self._error(number, None, ErrorCode.MESSAGE_UNAVAILABLE))
            elif letter.message.metadata.dst_node_id not in self.there:
                del self.letters[number]
                found.append(self._error(number, letter, ErrorCode.NODE_UNAVAILABLE))
            elif letter.answer is not None and not (
                letter.site.name in self.held and "order" in letter.message.content
            ):
                del self.letters[number]
                found.append(letter.answer)
        return found

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Part of Grid; nothing here may wait."""
        raise NotImplementedError

    def leave(self, name: str, *, quietly: bool = False) -> None:
        """A site's process is killed: what it was sent is lost; `quietly`: it is back before Flower looks."""
        node = self.node(name)
        for letter in self.letters.values():
            if letter.message.metadata.dst_node_id == node and letter.delivered:
                letter.answer, letter.lost = None, True
        if not quietly:
            self.there.discard(node)

    def come(self, name: str) -> None:
        """It is back, under the same number; what waited for it arrives."""
        self.there.add(self.node(name))
        for letter in self.letters.values():
            if letter.message.metadata.dst_node_id == self.node(name) and not letter.delivered:
                self._deliver(letter)

    def forget(self, name: str) -> None:
        """The SuperLink handed out a site's answers and died before they arrived: nobody says that they are lost."""
        for letter in self.letters.values():
            if letter.site.name == name:
                letter.answer, letter.lost = None, True

    def node(self, name: str) -> int:
        """The number of a site's connection."""
        return next(node for node, site in self.sites.items() if site.name == name)

    def _is_held(self, letter: _Letter) -> bool:
        return letter.site.name in self.held and "order" in letter.message.content

    def _deliver(self, letter: _Letter) -> None:
        letter.delivered = True
        answer = letter.site.hear(letter.message)
        if isinstance(answer, int):
            letter.answer = self._error(str(letter.message.metadata.message_id), letter, answer)
        elif answer is not None:
            letter.answer = Message(answer, reply_to=letter.message)

    def _error(self, number: str, letter: _Letter | None, code: int) -> Message:
        about = letter.message if letter is not None else next(iter(self.letters.values())).message
        error = Message(Error(code, "as Flower says it"), reply_to=about)
        error.metadata.__dict__["_reply_to_message_id"] = number
        error.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID
        return error

    def _fail(self) -> None:
        if self.down:
            self.down -= 1
            raise httpx.ConnectError("the SuperLink is away")


class Stewards:
    """Whoever signs the roster of a prepared federation, so that it can change while a run goes on."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared, self._steward = prepared, Steward.generate("steward")
        self._folder = prepared.folder / "stewards"
        homes = [prepared.coordinator, *prepared.sites.values()]
        roles = ["relay", "aggregator"] if prepared.mode == "trusted" else ["relay"]
        members = [
            (
                load_public_identity(home / "keys" / "identity.json"),
                roles if home == prepared.coordinator else ["author", "receiver"],
            )
            for home in homes
        ]
        root = create_roster(self._folder, federation="tiny", steward=self._steward, members=members)
        for home in homes:
            (home / "roster").rename(home / "roster.before")
            pin_roster(self._folder, root_sha256=root, out=home / "roster")

    def revoke(self, name: str) -> None:
        """Take a member off, and tell everybody else."""
        revoke_member(self._folder, name=name, steward=self._steward, now=datetime.now(UTC))
        self.tell()

    def renew(self) -> None:
        """A new version in which nobody has changed."""
        renew_roster(self._folder, steward=self._steward, now=datetime.now(UTC))

    def tell(self, *names: str) -> None:
        """Bring the newest roster to these members, or to all."""
        homes = {"coordinator": self._prepared.coordinator, **self._prepared.sites}
        for name in names or homes:
            update_roster(homes[name] / "roster", source=self._folder, now=datetime.now(UTC))
