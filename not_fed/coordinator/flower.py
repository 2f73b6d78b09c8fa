"""Flower's side of the coordinator: messages out, replies in. Decides nothing; see `rounds`.

A message to a site carries `order` (protocol, the signed task and the labels) and `parcels` (sealed bytes under their
digests, as uint8 arrays, which Flower cuts into chunks and stores once however many sites they go to); larger organs
stay in the bank. A reply carries `answer` and one sealed organ, or the digest under which it was left in the bank.
Replies are taken one at a time as they come, so that memory does not grow with the number of sites.

Nothing is taken for granted about the way: SuperNodes vanish and come back under the same number, messages are lost
(Flower says so, or nobody does), a site greets when it has time, and the SuperLink itself may be away for a while. Each
site has its own turn in one loop: it is greeted when it is not known, ordered when it is, ordered again when the order
was lost or the site refused for now. Sites answer the same task with the same answer, so an order may go out twice.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

import httpx
import numpy as np
from flwr.app import DEFAULT_TTL, Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

from not_fed.aggregation.secure.server import HelpersLost, TooFewShares
from not_fed.aggregation.secure.site import NotTheSignedPlan
from not_fed.arrays import bytes_of_array
from not_fed.coordinator.rounds import Order, Reply, Rounds, TooFewAnswers, clean_code
from not_fed.coordinator.state import Step, run_lock
from not_fed.coordinator.summing import TooFewKeys
from not_fed.envelope.papers import AnswerPapers, RoundPapers
from not_fed.envelope.task import PROTOCOL, ClockApart, Greeting, OtherProtocol, new_id, verify_greeting
from not_fed.errors import NotFedError, PeerError
from not_fed.home import COORDINATOR, simulation_folder

log = logging.getLogger("not_fed.coordinator")

FIRST_POLL_S, LONGEST_POLL_S = 0.02, 2.0
SLOW_CALL_S = 1.0  # Flower tries again by itself where the SuperLink does not answer: a call that took this long tells
DOUBT_S = 10.0
LINK_PATIENCE_S = 300.0
ROSTER_LOOK_S = 30.0
MAX_CRASHES = 3
MORE_MAY_COME: Final = (TooFewAnswers, TooFewKeys, HelpersLost, TooFewShares)
LOST: Final = {ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE}
_T = TypeVar("_T")


class NobodyThere(PeerError):
    """Too few sites have connected."""

    code = "nobody-there"


class SuperLinkGone(PeerError):
    """Flower's SuperLink has not answered for a long time."""

    code = "superlink-gone"


def run_federation(grid: Grid, *, home: Path) -> Rounds:
    """Run all steps that are left of the run in `home`; start it again after a crash and it goes on.

    Raises:
        RunLocked: another process is at it.
        NobodyThere: fewer than `min_answers` sites have connected in time. TooFewAnswers: too few have answered, as
            often as the plan says; the run has stopped until it is started again. SuperLinkGone.
        NotTheSignedPlan: the roster does not have the plan of a secure sum; the run has stopped.
    Proved by: tests/unit/test_exchange.py::test_a_round_with_too_few_answers_is_opened_again_and_then_the_run_stops
    """
    with run_lock(home):
        rounds = Rounds(home, now=_now())
        with rounds.state.session():
            try:
                _drive(_Exchange(grid, rounds), rounds)
            except NotTheSignedPlan as error:  # before the first round, or since the stewards took the plan away
                rounds.state.problem(error.code, str(error)[:500])
                rounds.state.stop_run(rounds.plan.run, code=error.code)
                raise
    log.info("run %s is complete", rounds.plan.run)
    return rounds


def _drive(exchange: _Exchange, rounds: Rounds) -> None:
    """Every step that is left; raises as `run_federation`."""
    failed = 0
    while (step := rounds.next_step()) is not None:
        rounds.open(step)
        if not exchange.ask(step):
            continue
        try:
            rounds.close(step, now=_now())
            failed = 0
        except PeerError as error:
            failed += 1
            if failed >= rounds.plan.max_attempts or not isinstance(error, MORE_MAY_COME):
                rounds.state.stop_run(rounds.plan.run, code=error.code)
                raise
            log.warning("%s; it is opened again in %.0f s", error, rounds.plan.retry_after_s)
            exchange.linger(step)
        rounds.refresh(now=_now())


def home_of(context: Context) -> Path | None:
    """The coordinator's home: `home` in the node configuration, $NOT_FED_COORDINATOR, or a prepared simulation's."""
    home = context.node_config.get("home")
    if isinstance(home, str):
        return Path(home)
    chosen = os.environ.get(COORDINATOR)
    prepared = simulation_folder(context.run_id) / "coordinator"
    return Path(chosen) if chosen else prepared if prepared.is_dir() else None


class _Link:
    """Flower's Grid, where a call that fails is one to be made again.

    Attributes:
        breaks: how often the SuperLink was away; what was under way then may be lost without a word.
        broke_at: when it was last.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._nodes: set[int] = set()
        self._failing_since: float | None = None
        self.breaks, self.broke_at = 0, 0.0

    def nodes(self) -> set[int]:
        """The connections that are there now; while nobody says, those that were."""
        found = self._call(lambda: set(self._grid.get_node_ids()), slow=lambda _: True)
        if found is not None:
            self._nodes = found
        return self._nodes

    def push(self, message: Message) -> str | None:
        """The message's number, or None when it was not taken."""
        numbers = self._call(lambda: list(self._grid.push_messages([message])), slow=lambda _: False)
        return numbers[0] if numbers else None  # Flower answers with None for a message that it could not take

    def pull(self, numbers: Iterable[str]) -> list[Message]:
        """Replies that have come; none while nobody says."""
        wanted = list(numbers)
        if not wanted:
            return []
        return self._call(lambda: list(self._grid.pull_messages(wanted)), slow=lambda found: not found) or []

    def _call(self, call: Callable[[], _T], *, slow: Callable[[_T], bool]) -> _T | None:
        """Its result, or None when Flower failed; `slow` says whether a call with this result is a quick one."""
        started = time.monotonic()
        try:
            found = call()
        except (httpx.HTTPError, ObjectPushError, OSError) as error:
            self._broke()
            self._failing_since = self._failing_since or started
            if time.monotonic() - self._failing_since > LINK_PATIENCE_S:
                raise _gone(error) from None
            log.warning("the SuperLink did not answer: %s", type(error).__name__)
            return None
        self._failing_since = None
        if time.monotonic() - started > SLOW_CALL_S and slow(found):
            self._broke()
        return found

    def _broke(self) -> None:
        self.breaks, self.broke_at = self.breaks + 1, time.monotonic()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A greeting that is under way."""

    number: str
    nonce: str
    breaks: int


class _Seats:
    """Which connection is which site: a site says so itself, signed, for a fresh nonce.

    A site that is busy answers when it has time; nobody waits for it, and nobody asks twice before.
    """

    def __init__(self, link: _Link, rounds: Rounds) -> None:
        self._link, self._rounds = link, rounds
        self._sites: dict[int, str] = {}  # by when they said so: the newest last
        self._there: set[int] = set()
        self._seen_there: dict[str, float] = {}
        self._asked: dict[int, _Asked] = {}
        self._again_at: dict[int, float] = {}
        self.other_protocol: dict[str, int] = {}
        self.returned: set[int] = set()

    def look(self) -> None:
        """See who is there; what was sent to whoever has come back may be lost, and it may be another version now."""
        there = self._link.nodes()
        self.returned = there - self._there
        for node in self.returned:
            self._asked.pop(node, None)
            self._again_at.pop(node, None)
            if self._sites.get(node) in self.other_protocol:
                del self._sites[node]
        self._there = set(there)
        for site in self.nodes():
            self._seen_there[site] = time.monotonic()

    def nodes(self) -> dict[str, int]:
        """Site -> its newest connection among those that are there now."""
        return {site: node for node, site in self._sites.items() if node in self._there}

    def known(self) -> set[str]:
        """Sites that have ever been there."""
        return set(self._seen_there)

    def there_at(self, site: str) -> float:
        """When a site was last there; long ago if never."""
        return self._seen_there.get(site, 0.0)

    def greet(self, wanted: Callable[[str], bool]) -> bool:
        """Ask newcomers who they are, and known sites that are `wanted`; take what they say. Whether anybody did."""
        now = time.monotonic()
        for node in sorted(self._there):
            known = node in self._sites and not wanted(self._sites[node])
            under_way = node in self._asked and not self._doubtful(self._asked[node])
            if not known and not under_way and self._again_at.get(node, 0.0) <= now:
                self._ask(node)
        return self._take()

    def _ask(self, node: int) -> None:
        nonce = new_id()
        content = RecordDict({"greeting": ConfigRecord({"nonce": nonce, "protocol": PROTOCOL})})
        number = self._link.push(Message(content, node, "query.greet"))
        if number is not None:
            self._asked[node] = _Asked(number=number, nonce=nonce, breaks=self._link.breaks)

    def _doubtful(self, asked: _Asked) -> bool:
        return asked.breaks != self._link.breaks and time.monotonic() - self._link.broke_at > DOUBT_S

    def _take(self) -> bool:
        nodes = {asked.number: node for node, asked in self._asked.items()}
        came = False
        for reply in self._link.pull(nodes):
            node = nodes.get(reply.metadata.reply_to_message_id)
            if node is not None:
                self._heard(node, reply)
                came = True
        return came

    def _heard(self, node: int, reply: Message) -> None:
        nonce = self._asked.pop(node).nonce
        said = self._name(reply, nonce)
        if said is None:
            self._again_at[node] = time.monotonic() + self._rounds.plan.retry_s
            return
        self._sites.pop(node, None)
        self._sites[node] = said.site
        self._seen_there[said.site] = time.monotonic()
        self._rounds.saw_log(said.site, size=said.log_size)
        if said.round_key is not None:
            self._rounds.take_key(said.site, said.round_key.encode(), now=_now())
        self._rounds.state.saw_site(said.site, at=_now(), version=said.not_fed)
        self.other_protocol.pop(said.site, None)
        if said.protocol != PROTOCOL:
            self.other_protocol[said.site] = said.protocol
        log.info("%s is connected, not-fed %s", said.site, said.not_fed)

    def _name(self, reply: Message, nonce: str) -> Greeting | None:
        if reply.has_error():
            if reply.error.code not in LOST:  # who is gone has said nothing
                self._note("a connection could not be asked who it is", f"flower-error-{reply.error.code}")
            return None
        answer = _record(reply, "answer")
        line, plan = answer.get("greeting"), self._rounds.plan
        if not isinstance(line, bytes):
            self._note("a connection did not say who it is", clean_code(answer.get("refused")))
            return None
        try:
            said = verify_greeting(line, coordinator=plan.name, nonce=nonce, roster=self._rounds.roster, now=_now())
        except NotFedError as error:
            log.warning("a connection could not prove who it is: %s", error)
            site = error.site if isinstance(error, ClockApart) else None
            self._rounds.state.problem(error.code, f"a connection could not prove who it is: {error}"[:500], site=site)
            return None
        return said if said.site in plan.sites else None

    def _note(self, what: str, code: str) -> None:
        log.warning("%s: %s", what, code)
        self._rounds.state.problem(code, what)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sent:
    """An order that is under way."""

    step: Step
    site: str
    node: int
    at: float
    breaks: int


@dataclass(slots=True)
class _Turn:
    """How far one site is in one attempt.

    Attributes:
        due: when it may be ordered; None while an order is under way.
        settled: it has given its answer, whatever it was.
    """

    due: float | None = 0.0
    crashes: int = 0
    settled: bool = False


@dataclass(slots=True)
class _Attempt:
    """One attempt at a step."""

    step: Step
    turns: dict[str, _Turn] = field(default_factory=dict)
    opened: float = field(default_factory=time.monotonic)


class _Exchange:
    """The loop that sends orders and counts answers."""

    def __init__(self, grid: Grid, rounds: Rounds) -> None:
        self._rounds, self._link = rounds, _Link(grid)
        self._seats = _Seats(self._link, rounds)
        self._sent: dict[str, _Sent] = {}
        self._attempt = _Attempt(step=Step(run=rounds.plan.run, round=1, kind="train"))
        self._started = self._roster_at = time.monotonic()

    def ask(self, step: Step) -> bool:
        """Ask every site whose answer is missing, until the last has answered or its time is over.

        Returns:
            whether the step may be closed; not when the roster has changed, which may change what has to be asked.
        Raises:
            NobodyThere, SuperLinkGone.
        """
        self._attempt = _Attempt(step=step, turns={site: _Turn() for site in self._rounds.waiting_for(step)})
        pause, roster = FIRST_POLL_S, self._rounds.roster.version
        while True:
            self._seats.look()
            came = self._seats.greet(self._uncertain)
            self._doubt()
            for site, node in self._in_turn() if self._is_ready() else ():
                if self._rounds.roster.version == roster:
                    came = self._order(site, node) or came
            came = self._take(self._sent) or came
            self._look_at_roster()
            if self._rounds.roster.version != roster:
                return False
            if self._is_over():
                return True
            self._require_anybody()
            pause = FIRST_POLL_S if came else min(2 * pause, LONGEST_POLL_S)
            time.sleep(pause)

    def _is_ready(self) -> bool:
        """Whether anybody can be ordered: a secure sum waits for its sites' keys, for some time."""
        patient = time.monotonic() - self._attempt.opened < self._rounds.plan.join_timeout_s
        return self._rounds.is_ready(self._attempt.step, patient=patient, now=_now())

    def _look_at_roster(self) -> None:
        """Whoever is revoked while a round goes on is not asked, and not counted, to its end."""
        if time.monotonic() - self._roster_at > ROSTER_LOOK_S:
            self._roster_at = time.monotonic()
            self._rounds.refresh(now=_now())

    def linger(self, step: Step) -> None:
        """Wait before the step is opened again; an answer that comes meanwhile counts, and enough of them end it."""
        until = time.monotonic() + self._rounds.plan.retry_after_s
        while (left := until - time.monotonic()) > 0 and not self._rounds.enough(step):
            time.sleep(min(left, LONGEST_POLL_S))
            self._take(self._sent)

    def _in_turn(self) -> list[tuple[str, int]]:
        """Sites that are there, in the plan's order, with their connections."""
        there = self._seats.nodes()
        return [(site, there[site]) for site in self._rounds.plan.sites if site in there]

    def _uncertain(self, site: str) -> bool:
        """Whether a site that is awaited has to say first what it remembers of the log."""
        turn = self._attempt.turns.get(site)
        if turn is None or turn.settled or turn.due is None:
            return False
        if not self._is_ready():
            return self._rounds.lacks_key(site)
        return not self._rounds.may_order(self._attempt.step, site, now=_now())

    def _doubt(self) -> None:
        """Orders that may have been lost without a word go out again."""
        now = time.monotonic()
        settled_down = now - self._link.broke_at > DOUBT_S
        for sent in list(self._sent.values()):
            turn = self._attempt.turns.get(sent.site)
            if turn is None or turn.due is not None or sent.step != self._attempt.step:
                continue
            if sent.node in self._seats.returned or (settled_down and sent.breaks != self._link.breaks):
                newest = max((one for one in self._sent.values() if one.site == sent.site), key=lambda one: one.at)
                if newest is sent:
                    turn.due = now

    def _order(self, site: str, node: int) -> bool:
        """Order a site whose turn it is, and take its answer if it is there at once; whether anything came."""
        step, turn = self._attempt.step, self._attempt.turns.get(site)
        if turn is None or turn.settled or turn.due is None or turn.due > time.monotonic():
            return False
        if site in self._seats.other_protocol:
            self._accept(step, site, Reply(refused=OtherProtocol.code), seconds=0.0)
            return True
        if not self._rounds.may_order(step, site, now=_now()):
            return False
        order = self._rounds.order(step, site, now=_now())
        sent = _Sent(step=step, site=site, node=node, at=time.monotonic(), breaks=self._link.breaks)
        number = self._link.push(_message(order, step, node, ttl_s=self._rounds.plan.round_timeout_s))
        if number is None:
            turn.due = time.monotonic() + LONGEST_POLL_S
            return False
        self._sent[number], turn.due = sent, None
        return self._take([number])

    def _take(self, numbers: Iterable[str]) -> bool:
        """Count the replies that have come, one at a time; whether there were any."""
        came = False
        for number in list(numbers):
            for message in self._link.pull([number]):
                sent = self._sent.pop(number, None)
                if sent is not None:
                    self._heard(sent, message)
                    came = True
        return came

    def _heard(self, sent: _Sent, message: Message) -> None:
        if message.has_error() and self._comes_again(sent, message.error.code):
            return
        self._accept(sent.step, sent.site, _reply(message), seconds=time.monotonic() - sent.at)

    def _comes_again(self, sent: _Sent, code: int) -> bool:
        """Whether this error of Flower's is none of the site's: then the order goes out again."""
        turn = self._attempt.turns.get(sent.site)
        if turn is None or sent.step != self._attempt.step:
            return code in LOST
        if code == ErrorCode.CLIENT_APP_CRASHED and turn.crashes < MAX_CRASHES:
            turn.crashes += 1
        elif code not in LOST:
            return False
        if not turn.settled and not any(one.site == sent.site for one in self._sent.values()):
            there = code == ErrorCode.NODE_UNAVAILABLE  # it is ordered when it is back
            turn.due = time.monotonic() + (0.0 if there else self._rounds.plan.retry_s)
            what = "its connection was lost" if there else "its message was lost"
            if code == ErrorCode.CLIENT_APP_CRASHED:
                what = "its process ended"
            log.warning("round %d: %s: %s while it had the task", sent.step.round, sent.site, what)
            text = f"round {sent.step.round}: {what} while it had the task; it is sent again"
            self._rounds.state.problem(f"flower-error-{code}", text, site=sent.site)
        return True

    def _accept(self, step: Step, site: str, reply: Reply, *, seconds: float) -> None:
        status = self._rounds.accept(step, site, reply, seconds=seconds, now=_now())
        turn = self._attempt.turns.get(site)
        if turn is None or step != self._attempt.step:
            return
        if status == "waiting":
            turn.due = time.monotonic() + self._rounds.plan.retry_s
            self._rounds.refresh(now=_now())
        else:
            turn.settled = True

    def _is_over(self) -> bool:
        """All have answered, or the time is up, or enough have and the others have not been there for long."""
        plan, now = self._rounds.plan, time.monotonic()
        awaited = [site for site, turn in self._attempt.turns.items() if not turn.settled]
        if not awaited:
            return True
        if now - self._attempt.opened > plan.round_timeout_s:
            self._require_anybody()
            return True
        if self._attempt.step.kind == "receive" or not self._rounds.enough(self._attempt.step):
            return False  # whoever only receives keeps nobody waiting
        there = self._seats.nodes()
        gone_at = {site: max(self._attempt.opened, self._seats.there_at(site)) for site in awaited if site not in there}
        return all(site in gone_at and now - gone_at[site] > plan.join_timeout_s for site in awaited)

    def _require_anybody(self) -> None:
        plan, there = self._rounds.plan, self._seats.known()
        if len(there) < plan.min_answers and time.monotonic() - self._started > plan.join_timeout_s:
            raise NobodyThere(
                where="sites",
                expected=f"at least {plan.min_answers} connected",
                got=f"{len(there)} ({', '.join(sorted(there)) or 'none'})",
                hint="start the sites, then the coordinator again; nothing is lost",
            )


def _message(order: Order, step: Step, node: int, *, ttl_s: float) -> Message:
    content = RecordDict(
        {
            "order": _papers(order),
            "papers": _round_papers(order.papers),
            "parcels": ArrayRecord(
                {
                    parcel.sealed_sha256: Array(np.frombuffer(parcel.sealed, dtype=np.uint8))
                    for parcel in order.parcels
                    if parcel.sealed is not None
                }
            ),
        }
    )
    return Message(content, node, "train", ttl=max(ttl_s, DEFAULT_TTL), group_id=f"{step.kind}-{step.round}")


def _papers(order: Order) -> ConfigRecord:
    """Task and labels; with a log, the proof of each label and the log's growth too; the site's own last receipt."""
    papers = ConfigRecord(
        {"protocol": PROTOCOL, "task": order.task, "labels": [parcel.label for parcel in order.parcels]}
    )
    if order.inline_bytes is not None:
        papers["inline-bytes"] = order.inline_bytes
    if order.log is not None:
        papers["log"], papers["proofs"] = order.log, [parcel.proof or b"" for parcel in order.parcels]
    if order.receipt is not None:
        papers["receipt"] = order.receipt
    return papers


def _round_papers(papers: RoundPapers) -> ConfigRecord:
    """What a secure sum or votes add: lists of lines, and of whose they are."""
    votes = [(number, line) for number, lines in papers.votes.items() for line in lines]
    lists: dict[str, list[str] | list[int] | list[bytes]] = {
        "key-sites": list(papers.keys), "keys": list(papers.keys.values()),
        "uploads": list(papers.labels), "capsule-sites": list(papers.capsules),
        "capsules": list(papers.capsules.values()), "vote-rounds": [number for number, _ in votes],
        "votes": [line for _, line in votes],
    }  # fmt: skip
    return ConfigRecord({name: values for name, values in lists.items() if values})


def _answer_papers(answer: ConfigRecord) -> AnswerPapers:
    statement, round_key = answer.get("statement"), answer.get("round-key")
    sites, capsules = answer.get("capsule-sites"), answer.get("capsules")
    paired = isinstance(sites, list) and isinstance(capsules, list) and len(sites) == len(capsules)
    return AnswerPapers(
        statement=statement if isinstance(statement, bytes) else None,
        round_key=round_key if isinstance(round_key, bytes) else None,
        capsules={
            site: sealed
            for site, sealed in zip(sites, capsules, strict=True)  # type: ignore[arg-type]
            if isinstance(site, str) and isinstance(sealed, bytes)
        }
        if paired
        else {},
    )


def _reply(message: Message) -> Reply:
    """What a site answered, as far as it has the right types; what has not is a missing answer, never an exception."""
    if message.has_error():
        return Reply(refused=f"flower-error-{message.error.code}")
    answer = _record(message, "answer")
    refused, label, received, left_out = (answer.get(name) for name in ("refused", "label", "received", "left-out"))
    receipt, banked = answer.get("receipt"), answer.get("banked")
    return Reply(
        sealed=_sealed(message),
        label=label if isinstance(label, bytes) else None,
        banked=banked if isinstance(banked, str) else None,
        received=received if isinstance(received, int) else None,
        refused=refused if isinstance(refused, str) else None,
        left_out=tuple(str(item) for item in left_out) if isinstance(left_out, list) else (),
        receipt=receipt if isinstance(receipt, bytes) else None,
        papers=_answer_papers(answer),
    )


def _sealed(message: Message) -> bytes | None:
    parcels = message.content.get("parcels") if message.has_content() else None
    if not isinstance(parcels, ArrayRecord) or len(parcels) != 1:
        return None
    return bytes_of_array(next(iter(parcels.values())).data)


def _record(message: Message, name: str) -> ConfigRecord:
    record = message.content.get(name) if message.has_content() else None
    return record if isinstance(record, ConfigRecord) else ConfigRecord()


def _gone(error: Exception) -> SuperLinkGone:
    return SuperLinkGone(
        where="SuperLink",
        expected=f"an answer within {LINK_PATIENCE_S:.0f} s",
        got=type(error).__name__,
        hint="see its log; the round goes on where it was when the coordinator is started again",
    )


def _now() -> datetime:
    return datetime.now(UTC)
