"""Flower's side of the coordinator: messages out, replies in. Decides nothing; see `rounds`.

A message to a site carries `order` (the signed task and the labels) and `parcels` (sealed bytes, as uint8 arrays, which
Flower cuts into chunks and stores once however many sites they go to). A reply carries `answer` and one sealed organ.
Replies are taken one at a time as they come, so that memory does not grow with the number of sites.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid

from not_fed.arrays import bytes_of_array
from not_fed.coordinator.rounds import Order, Reply, Rounds, clean_code
from not_fed.coordinator.state import Step
from not_fed.envelope.task import new_id, verify_greeting
from not_fed.errors import NotFedError, PeerError
from not_fed.home import COORDINATOR, simulation_folder

log = logging.getLogger("not_fed.coordinator")

FIRST_POLL_S, LONGEST_POLL_S = 0.02, 2.0
GREETING_TIMEOUT_S = 60.0


class NobodyThere(PeerError):
    """Too few sites have connected."""

    code = "nobody-there"


def run_federation(grid: Grid, *, home: Path) -> Rounds:
    """Run all steps that are left of the run in `home`; start it again after a crash and it goes on.

    Raises:
        NobodyThere: fewer than `min_answers` sites have connected in time. TooFewAnswers: too few have answered.
    """
    rounds = Rounds(home, now=_now())
    with rounds.state.session():
        seats = _Seats(grid, rounds)
        seats.wait()
        while (step := rounds.next_step()) is not None:
            seats.greet_newcomers()
            _exchange(grid, rounds, step, seats.nodes())
            rounds.close(step, now=_now())
    log.info("run %s is complete", rounds.plan.run)
    return rounds


def home_of(context: Context) -> Path | None:
    """The coordinator's home: `home` in the node configuration, $NOT_FED_COORDINATOR, or a prepared simulation's."""
    home = context.node_config.get("home")
    if isinstance(home, str):
        return Path(home)
    chosen = os.environ.get(COORDINATOR)
    prepared = simulation_folder(context.run_id) / "coordinator"
    return Path(chosen) if chosen else prepared if prepared.is_dir() else None


class _Seats:
    """Which connection is which site: a site says so itself, signed, for a fresh nonce."""

    def __init__(self, grid: Grid, rounds: Rounds) -> None:
        self._grid, self._rounds = grid, rounds
        self._sites: dict[int, str] = {}

    def nodes(self) -> dict[str, int]:
        """Site -> its newest connection among those that are there now."""
        there = set(self._grid.get_node_ids())
        return {site: node for node, site in self._sites.items() if node in there}

    def wait(self) -> None:
        """Until every invited site is there, or the plan's patience is over and enough are."""
        plan = self._rounds.plan
        deadline, pause = time.monotonic() + plan.join_timeout_s, FIRST_POLL_S
        while True:
            self.greet_newcomers()
            there = self.nodes()
            if len(there) == len(plan.sites):
                return
            if time.monotonic() > deadline:
                break
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_POLL_S)
        if len(there) < plan.min_answers:
            raise NobodyThere(
                where="sites",
                expected=f"at least {plan.min_answers} connected",
                got=str(len(there)),
                hint="start the sites, then the coordinator again; nothing is lost",
            )

    def greet_newcomers(self) -> None:
        """Ask every connection that is not known yet who it is, and every site whose memory of the log is uncertain."""
        uncertain = self._rounds.uncertain()
        nonces = {
            node: new_id()
            for node in self._grid.get_node_ids()
            if node not in self._sites or self._sites[node] in uncertain
        }
        messages = [
            Message(RecordDict({"greeting": ConfigRecord({"nonce": nonce})}), node, "query.greet")
            for node, nonce in nonces.items()
        ]
        if not messages:
            return
        for reply in self._grid.send_and_receive(messages, timeout=GREETING_TIMEOUT_S):
            node = reply.metadata.src_node_id
            site = None if reply.has_error() else self._name(reply, nonces.get(node, ""))
            if site is not None:
                self._sites[node] = site
                log.info("%s is connected", site)

    def _name(self, reply: Message, nonce: str) -> str | None:
        answer = _record(reply, "answer")
        line, plan = answer.get("greeting"), self._rounds.plan
        if not isinstance(line, bytes):
            log.warning("a connection did not say who it is: %s", clean_code(answer.get("refused")))
            return None
        try:
            said = verify_greeting(line, coordinator=plan.name, nonce=nonce, roster=self._rounds.roster, now=_now())
        except NotFedError as error:
            log.warning("a connection could not prove who it is: %s", error)
            return None
        if said.site not in plan.sites:
            return None
        self._rounds.saw_log(said.site, size=said.log_size)
        return said.site


def _exchange(grid: Grid, rounds: Rounds, step: Step, nodes: Mapping[str, int]) -> None:
    """Send a step's orders and count the answers, until the last has come or the round's time is over."""
    sent: dict[str, tuple[str, float]] = {}  # message id -> site, when
    for site in rounds.waiting_for(step):
        if site in nodes:
            message = _message(rounds.order(step, site, now=_now()), step, nodes[site])
            started = time.monotonic()
            for message_id in grid.push_messages([message]):
                sent[message_id] = (site, started)
            _take(grid, rounds, step, sent)
    deadline, pause = time.monotonic() + rounds.plan.round_timeout_s, FIRST_POLL_S
    while sent and time.monotonic() < deadline:
        pause = FIRST_POLL_S if _take(grid, rounds, step, sent) else min(2 * pause, LONGEST_POLL_S)
        if sent:
            time.sleep(pause)


def _take(grid: Grid, rounds: Rounds, step: Step, sent: dict[str, tuple[str, float]]) -> bool:
    """Count the replies that have come; whether there were any."""
    came = False
    for message_id in list(sent):
        for message in grid.pull_messages([message_id]):
            site, started = sent.pop(message_id)
            rounds.accept(step, site, _reply(message), seconds=time.monotonic() - started, now=_now())
            came = True
    return came


def _message(order: Order, step: Step, node: int) -> Message:
    content = RecordDict(
        {
            "order": _papers(order),
            "parcels": ArrayRecord(
                {
                    str(number): Array(np.frombuffer(parcel.sealed, dtype=np.uint8))
                    for number, parcel in enumerate(order.parcels)
                }
            ),
        }
    )
    return Message(content, node, "train", group_id=f"{step.kind}-{step.round}")


def _papers(order: Order) -> ConfigRecord:
    """Task and labels; with a log, the proof of each label and the log's growth too; the site's own last receipt."""
    papers = ConfigRecord({"task": order.task, "labels": [parcel.label for parcel in order.parcels]})
    if order.log is not None:
        papers["log"], papers["proofs"] = order.log, [parcel.proof or b"" for parcel in order.parcels]
    if order.receipt is not None:
        papers["receipt"] = order.receipt
    return papers


def _reply(message: Message) -> Reply:
    """What a site answered, as far as it has the right types; what has not is a missing answer, never an exception."""
    if message.has_error():
        return Reply(refused=f"flower-error-{message.error.code}")
    answer = _record(message, "answer")
    refused, label, received, left_out = (answer.get(name) for name in ("refused", "label", "received", "left-out"))
    receipt = answer.get("receipt")
    return Reply(
        sealed=_sealed(message),
        label=label if isinstance(label, bytes) else None,
        received=received if isinstance(received, int) else None,
        refused=refused if isinstance(refused, str) else None,
        left_out=tuple(str(item) for item in left_out) if isinstance(left_out, list) else (),
        receipt=receipt if isinstance(receipt, bytes) else None,
    )


def _sealed(message: Message) -> bytes | None:
    parcels = message.content.get("parcels") if message.has_content() else None
    if not isinstance(parcels, ArrayRecord) or len(parcels) != 1:
        return None
    return bytes_of_array(next(iter(parcels.values())).data)


def _record(message: Message, name: str) -> ConfigRecord:
    record = message.content.get(name) if message.has_content() else None
    return record if isinstance(record, ConfigRecord) else ConfigRecord()


def _now() -> datetime:
    return datetime.now(UTC)
