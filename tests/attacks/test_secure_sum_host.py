"""Adversary: the network between sites and coordinator, and whoever has a hand on a site's machine or its backups.

Powers: replays, reorders, cuts and delays every message; kills the site's process, fills its disk, starts it twice,
restores older files; reads logs, error texts and files. Lacks: the site's keys.
"""

from __future__ import annotations

import gc
import json
import logging
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from not_fed.aggregation.secure import ServerSum, SumLedger, capsules, masks
from not_fed.aggregation.secure.ledger import LEDGER_FILE, LedgerRolledBack, OtherSet, RoundKeyGone
from not_fed.aggregation.secure.ring import TAIL_WORDS
from not_fed.aggregation.secure.server import TooFewUploads
from not_fed.envelope.dsse import MalformedSigned
from not_fed.envelope.summing import BadSumPaper, SumCall
from not_fed.errors import NotFedError
from not_fed.home import Home
from not_fed.site.state import STATE_FILE, SiteState
from not_fed.site.sumkeys import sums
from tests.support.lying_sums import OTHER_START, Asked, ByHand, refused
from tests.support.sums import NAMES, NOTHING_CLAIMED, NOW, Cohort, Party, new_party, plan_of

ALL = list("abcd")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def parties() -> dict[str, Party]:
    return {name: new_party(name) for name in NAMES[:5]}


@pytest.fixture(scope="module")
def ready(parties: dict[str, Party], tmp_path_factory: pytest.TempPathFactory) -> Asked:
    plan = plan_of(ALL, collude=1, vanish=1)
    return Asked.make(Cohort(plan=plan, parties=parties, folder=tmp_path_factory.mktemp("four") / "sites"))


@pytest.fixture
def asked(ready: Asked, tmp_path: Path) -> Asked:
    return ready.copy(tmp_path / "sites")


@pytest.fixture
def fresh(parties: dict[str, Party], tmp_path: Path) -> Cohort:
    return Cohort(plan=plan_of(ALL, collude=1, vanish=1), parties=parties, folder=tmp_path / "fresh")


def processes(what: str, folder: Path, trials: int) -> dict[str, int]:
    """What trials with real processes saw."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.sum_kills", what, str(folder), str(trials), "7"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    seen: dict[str, int] = json.loads(done.stdout)
    return seen


# -- the ledger --------------------------------------------------------------------------------------------------------


def test_a_promise_survives_the_kill_before_its_answer(tmp_path: Path) -> None:
    """S30. The site is killed after its ledger's commit, before a word of the answer left, and asked for another set.

    Powers: kills the site's process at that very moment. Control: the promised set is answered after the restart.
    """
    assert processes("promise", tmp_path, 3) == {"other refused": 3, "same answered": 3}


def test_whenever_a_site_is_killed_it_has_answered_for_one_set(tmp_path: Path) -> None:
    """S30. The site is killed at any moment of a partial sum or of an upload, and asked for something else.

    Powers: kills the site's process at any moment. Control: what was promised is given again, what was not is free.
    """
    seen = processes("anywhere", tmp_path, 12)
    assert seen["other refused"] + seen.get("other answered", 0) == 12
    assert sum(count for what, count in seen.items() if what.startswith("uploads")) == 12


def test_two_processes_of_one_site_answer_once(tmp_path: Path) -> None:
    """S76. Two processes of one site are asked at the same time, for two sets and for two uploads.

    Powers: starts the site twice on one home. Control: one of the two is answered.
    """
    assert processes("race", tmp_path, 3) == {"races": 3}


def test_a_full_disk_keeps_the_answer_back(tmp_path: Path) -> None:
    """S77. The disk is full when the ledger is to be written: an answer that left would be a forgotten one.

    Powers: fills the disk, at the beginning or just before the promise. Control: with room the site answers.
    """
    assert processes("full", tmp_path, 1) == {"full": 1}


def test_clones_of_a_process_draw_other_seeds(tmp_path: Path) -> None:
    """S78. The site's process is forked, as a snapshot of its machine would be, and both draw the same seeds.

    Powers: copies the process's memory. Control: which is the point: seeds come from the operating system at each use.
    """
    assert processes("fork", tmp_path, 2) == {"forks": 2}


def test_without_its_ledger_a_site_opens_nothing(asked: Asked) -> None:
    """S30. The ledger is removed after an answer, so that the site may answer again for another set.

    Powers: deletes the site's files, not its keys. Control: with the ledger the same set is answered.
    """
    helper = asked.helpers[0]
    answer = asked.help(helper, ALL)
    path = asked.cohort.folder / helper / LEDGER_FILE
    kept = path.read_bytes()
    path.unlink()
    for sites in (ALL, ALL[:3]):
        with pytest.raises((RoundKeyGone, BadSumPaper)):
            asked.help(helper, sites)
        with pytest.raises((RoundKeyGone, BadSumPaper)):
            asked.reveal(helper, sites, asked.helpers[1:2])
    other = [name for name in ALL if name != helper]
    with pytest.raises(RoundKeyGone):  # nor when its own upload is left out
        asked.help(helper, other)
    path.unlink()
    path.write_bytes(kept)
    assert asked.help(helper, ALL) == answer


def test_an_older_ledger_is_noticed(asked: Asked, tmp_path: Path) -> None:
    """S30. The ledger of before the answer is put back, in which the round's key is still unused.

    Powers: restores one file from a backup, not both. Control: with the newest one the site answers the same again.
    """
    helper = asked.helpers[0]
    (tmp_path / "home").mkdir()
    home = Home(tmp_path / "home")
    state = SiteState(home.folder)
    path = home.private_folder("sums") / LEDGER_FILE
    shutil.copy(asked.cohort.folder / helper / LEDGER_FILE, path)
    before = path.read_bytes()

    def help_for(sites: list[str]) -> tuple[bytes, bytes]:
        with sums(home, state) as ledger:
            asked.cohort.ledgers[helper] = ledger
            return asked.help(helper, sites)

    answer = help_for(ALL)
    kept = path.read_bytes()
    for older in (before, None):
        path.unlink()
        if older is not None:
            path.write_bytes(older)
        with pytest.raises(LedgerRolledBack):
            help_for(ALL[:3])
        path.unlink(missing_ok=True)
        for side in path.parent.glob("*"):
            side.unlink()
        path.write_bytes(kept)
    assert help_for(ALL) == answer
    with pytest.raises(OtherSet):
        help_for(ALL[:3])
    assert (home.folder / STATE_FILE).exists()


def test_what_was_written_is_noted_before_the_answer_leaves(asked: Asked, tmp_path: Path) -> None:
    """S30. The note of how often the ledger was written comes after the answer, so that a kill between leaves it old.

    Powers: kills the site between answer and note. Control: which is the point: inside the block nothing has left yet,
    and at its end, also when it ends in an error, the note is there.
    """
    (tmp_path / "home").mkdir()
    home = Home(tmp_path / "home")
    state = SiteState(home.folder)
    shutil.copy(asked.cohort.folder / "a" / LEDGER_FILE, home.private_folder("sums") / LEDGER_FILE)
    with sums(home, state) as ledger:
        asked.cohort.ledgers["a"] = ledger
        asked.reveal("a", ALL, asked.helpers[:1])
        writes = ledger.writes
    assert state.sum_writes() == writes
    with pytest.raises(KeyError), sums(home, state) as ledger:
        ledger.close(asked.cohort.plan.sha256, before=1)
        raise KeyError("the process goes down")
    assert state.sum_writes() == writes + 1


def test_a_ledger_is_its_owners(asked: Asked, tmp_path: Path) -> None:
    """Own. Another user of the machine reads or replaces the ledger, or a link stands in its place.

    Powers: an account on the machine. Control: the owner's process uses it.
    """
    path = asked.cohort.folder / "a" / LEDGER_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    elsewhere = tmp_path / "elsewhere.db"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    with pytest.raises(NotFedError) as caught:
        asked.reveal("a", ALL, asked.helpers[:1])
    assert caught.value.code == "store-damaged"
    path.unlink()
    elsewhere.rename(path)
    asked.reveal("a", ALL, asked.helpers[:1])


# -- messages ----------------------------------------------------------------------------------------------------------


def test_steps_come_in_their_order(asked: Asked) -> None:
    """S71, S73. Partial sums before the set is fixed, uploads after it, shares before anybody is lost, an early end.

    Powers: delays, repeats and reorders every message. Control: in their order they give the sum.
    """
    first, second, third = asked.helpers
    statement, words = asked.help(first, ALL)
    shares = asked.reveal("a", ALL, [third])
    server = asked.cohort.server(asked.call, "abc")
    with pytest.raises(BadSumPaper):
        server.add_partial(first, statement=statement, vector=memoryview(words))
    for step in (server.close_partials, server.finish):
        with pytest.raises(BadSumPaper):
            step()
    with pytest.raises(BadSumPaper):
        server.add_shares("a", statement=shares)
    uploaded, vector = asked.uploads["d"]
    for _ in range(2):  # once it counts, then it is there already
        if _:
            with pytest.raises(BadSumPaper):
                server.add_upload("d", label=uploaded.label, capsules_of=uploaded.capsules, vector=memoryview(vector))
        else:
            server.add_upload("d", label=uploaded.label, capsules_of=uploaded.capsules, vector=memoryview(vector))
    assert server.close_uploads() is server.close_uploads()
    with pytest.raises(BadSumPaper):
        server.add_shares("a", statement=shares)
    server.add_partial(first, statement=statement, vector=memoryview(words))
    statement, words = asked.help(second, ALL)
    server.add_partial(second, statement=statement, vector=memoryview(words))
    assert server.close_partials() == (third,)
    for name in ALL:
        server.add_shares(name, statement=asked.reveal(name, ALL, [third]))
    assert np.array_equal(server.finish().words[:-TAIL_WORDS], asked.cohort.plain(ALL))


def test_a_late_upload_does_not_count(asked: Asked) -> None:
    """S73. An upload comes after the set was fixed: to count it would give another sum under the same helpers' masks.

    Powers: delays a message. Control: in time it counts.
    """
    server = asked.cohort.server(asked.call, "abc")
    server.close_uploads()
    before = server._total.copy()
    uploaded, vector = asked.uploads["d"]
    with pytest.raises(BadSumPaper):
        server.add_upload("d", label=uploaded.label, capsules_of=uploaded.capsules, vector=memoryview(vector))
    assert np.array_equal(server._total, before)
    asked.opens()


def test_the_order_in_which_sites_answer_changes_nothing(asked: Asked) -> None:
    """S71. Uploads, labels and partial sums arrive in another order at the coordinator and at the helpers.

    Powers: reorders messages. Control: which is the point: the set and the sum are the same in any order.
    """
    sums_seen, sets = set(), set()
    for order in list(permutations(ALL))[::5]:
        server = asked.cohort.server(asked.call, order)
        sets.add(server.close_uploads().sha256)
        for name in sorted(asked.helpers, key=list(order).index):
            statement, words = asked.help(name, list(order))
            server.add_partial(name, statement=statement, vector=memoryview(words))
        sums_seen.add(server.finish().words.tobytes())
    assert len(sets) == len(sums_seen) == 1


@pytest.mark.parametrize("paper", ["upload", "partial", "shares", "key"])
def test_a_cut_or_doubled_paper_is_none(asked: Asked, paper: str) -> None:
    """S71. A signed paper is cut anywhere, doubled, or has bytes changed on its way.

    Powers: edits messages. Control: whole it counts.
    """
    first, second, third = asked.helpers
    server = asked.server()
    if paper == "key":
        keys = asked.cohort.keys()
        call = asked.cohort.call(keys, round_number=2, start=OTHER_START)
        line = keys["b"]
    elif paper == "upload":
        line = asked.uploads["d"][0].label
    else:
        for name in (first, second):
            statement, words = asked.help(name, ALL)
            if paper == "shares" or name == second:
                server.add_partial(name, statement=statement, vector=memoryview(words))
            else:
                line, vector = statement, words
        if paper == "shares":
            server.close_partials()
            line = asked.reveal("a", ALL, [third])

    def take(changed: bytes) -> None:
        if paper == "key":
            wrong = {**keys, "b": changed}
            call = asked.cohort.call(wrong, round_number=2, start=OTHER_START)
            asked.cohort.upload("a", call, wrong, change=asked.cohort.update("a", seed=2))
        elif paper == "upload":
            receiver = asked.cohort.server(asked.call, "abc")
            uploaded, words = asked.uploads["d"]
            receiver.add_upload("d", label=changed, capsules_of=uploaded.capsules, vector=memoryview(words))
        elif paper == "partial":
            server.add_partial(first, statement=changed, vector=memoryview(vector))
        else:
            server.add_shares("a", statement=changed)

    cuts = [line[:length] for length in range(0, len(line), len(line) // 12)]
    edits = [line[:place] + bytes([line[place] ^ 1]) + line[place + 1 :] for place in range(3, len(line), 397)]
    for changed in (*cuts, *edits, line + line, line + b"\n" + line, line[1:], b"\xff" + line, line + b"\0"):
        with pytest.raises(NotFedError):
            take(changed)
    take(line)
    if paper == "key":
        assert call.sha256 == asked.cohort.call(keys, round_number=2, start=OTHER_START).sha256


def test_a_changed_call_has_another_digest(asked: Asked) -> None:
    """Own. A call is copied with a field changed and keeps the digest of the first, as a remembered one would.

    Powers: a hurried programmer. Control: which is the point: whatever is changed, the digest follows.
    """
    digest = asked.call.sha256
    changes: dict[str, Any] = {
        "round": 2, "start_sha256": OTHER_START, "cohort": asked.call.cohort[:3], "parameters": 41, "run": "run-2",
        "federation": "others", "plan_sha256": "ab" * 32,
    }  # fmt: skip
    digests = {asked.call.model_copy(update={field: value}).sha256 for field, value in changes.items()}
    digests |= {SumCall(**{**_fields(asked.call), field: value}).sha256 for field, value in changes.items()}
    assert len(digests) == len(changes)
    assert digest not in digests
    assert SumCall(**_fields(asked.call)).sha256 == digest == asked.call.sha256


def _fields(call: SumCall) -> dict[str, Any]:
    return {name: getattr(call, name) for name in SumCall.model_fields}


# -- what is left behind, and what is said -----------------------------------------------------------------------------


def _numbers(change: np.ndarray[Any, Any], cohort: Cohort) -> set[str]:
    """How numbers of a change may be written."""
    words = ByHand.ring_of(cohort).round(change)
    plain = {f"{value:{form}}" for value in change.tolist() for form in (".4f", ".6g", ".5e")} | {
        repr(value) for value in change.tolist()
    }
    return {text for text in plain | {str(int(word)) for word in words} if len(text) >= 5}


def test_no_error_says_a_number_of_the_data(asked: Asked, fresh: Cohort) -> None:
    """S74. An error's text, which may reach the coordinator or a log, quotes a weight, a word, a seed or a share.

    Powers: provokes every error, reads every text. Control: each names what was expected, and where.
    """
    keys = fresh.keys()
    call = fresh.call(keys)
    change = fresh.update("a")
    broken = change.copy()
    broken[3] = np.nan
    helper, lost = asked.helpers[0], asked.helpers[1:2]
    right = asked.capsules(ALL, to=helper)
    too_few = asked.cohort.server(asked.call, ALL[:2])
    liar = ByHand(asked.cohort, "d", asked.call, asked.keys)
    liar.words[0] += np.uint32(1 << 31)
    spoiled = asked.copy(asked.cohort.folder.parent / "spoiled")
    spoiled.sends("d", liar.build())
    provoked: list[Callable[[], object]] = [
        lambda: fresh.upload("a", call, keys, change=broken), lambda: fresh.upload("a", call, keys, change=change[:7]),
        lambda: fresh.upload("a", call, keys, weight=10_000_019),
        lambda: asked.help(helper, ALL[:2]), lambda: asked.help(helper, ALL, sealed={**right, "a": right["b"]}),
        lambda: asked.reveal("a", ALL, []), lambda: asked.reveal("a", ALL, asked.helpers),
        lambda: asked.cohort.upload("a", asked.call, asked.keys), too_few.close_uploads,
        lambda: spoiled.helped().finish(),
        lambda: asked.server().add_partial(helper, statement=asked.reveal("a", ALL, lost), vector=memoryview(b"")),
    ]  # fmt: skip
    secrets = _numbers(change, fresh) | {data.hex()[:16] for data in right.values()}
    texts = []
    for provoke in provoked:
        with pytest.raises(NotFedError) as caught:
            provoke()
        texts.append(f"{caught.value} {caught.value.hint} {caught.value.as_json()} {caught.value.args}")
        assert caught.value.where
    assert len(texts) == len(provoked)
    for text in texts:
        assert not {secret for secret in secrets if secret in text}


def test_no_seed_or_update_is_left_on_the_disk_or_in_a_log(
    asked: Asked, fresh: Cohort, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """S75. Seeds, shares, blinding keys or the update itself stand in a file, a log or an object's text afterwards.

    Powers: reads the site's files and logs, prints any object. Control: with the round's key and the long-lived one
    the site itself reads its capsules.
    """
    caplog.set_level(logging.DEBUG)
    drawn: list[bytes] = []
    real = masks.new_seed
    monkeypatch.setattr(masks, "new_seed", lambda: drawn.append(real()) or drawn[-1])  # type: ignore[func-returns-value]
    keys = fresh.keys()
    call = fresh.call(keys)
    for name in ALL:
        fresh.upload(name, call, keys)
    round_asked = Asked(fresh, keys, call, fresh.uploads)
    shares = [round_asked.reveal(name, ALL, round_asked.helpers[:1]) for name in ALL]
    round_asked.opens()
    assert len(drawn) == 4 * 3
    secret = [*drawn, *(fresh.update(name).tobytes()[:24] for name in ALL)]
    secret += [ByHand(fresh, name, call, keys).words.tobytes()[:24] for name in ALL]
    looked = 0
    for path in fresh.folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            looked += len(data)
            assert not [one for one in secret if one in data or one.hex().encode() in data], path
    assert looked > 10_000
    said = caplog.text + repr(round_asked.uploads["a"][0]) + repr(fresh.site("a")) + repr(fresh.ledgers["a"])
    said += repr(capsules.Capsule(seed=drawn[0], blind=drawn[1], shares=(drawn[2],)))
    said += repr(round_asked.helped().finish())
    assert not [one for one in secret if one.hex() in said or repr(one) in said]
    assert all(shares)


def test_after_a_round_its_key_is_gone(asked: Asked) -> None:
    """S75. Whoever steals a site's machine and keys later opens what was recorded of earlier rounds.

    Powers: all traffic, all files and long-lived keys of all sites, after the next round has begun. Control: while the
    round is open, the site itself opens its capsules.
    """
    first = asked.helpers[0]
    asked.help(first, ALL)
    sealed = asked.cohort.ledgers[first].sealed_key(asked.call, me=first)
    assert asked.cohort.parties[first].opener.open_own(sealed, info=_own_info())
    asked.upload_again(asked.next_round(start=OTHER_START), seed=2)
    for name in ALL:
        with pytest.raises(RoundKeyGone):
            asked.cohort.ledgers[name].sealed_key(asked.call, me=name)
    for path in (asked.cohort.folder / first).iterdir():
        assert sealed not in path.read_bytes(), path.name


def _own_info() -> bytes:
    from not_fed.aggregation.secure import site

    return site._OWN_INFO


def test_a_site_keeps_neither_update_nor_seeds(fresh: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    """S75. The update or the seeds stay in the site's memory after the upload, for a later core dump.

    Powers: reads the process's memory after the upload. Control: during the upload they are there.
    """
    drawn: list[bytes] = []
    real = masks.new_seed
    monkeypatch.setattr(masks, "new_seed", lambda: drawn.append(real()) or drawn[-1])  # type: ignore[func-returns-value]
    keys = fresh.keys()
    call = fresh.call(keys)
    change = fresh.update("a").copy()
    site, gone = fresh.site("a"), weakref.ref(change)
    kept = site.upload(call, keys=keys, change=[change], sink=lambda _: None, contribution=NOTHING_CLAIMED)
    assert gone() is not None
    del change
    gc.collect()
    assert gone() is None
    assert kept.label
    for seed in drawn:
        holders = [holder for holder in gc.get_referrers(seed) if holder is not drawn]
        assert not [holder for holder in holders if isinstance(holder, dict | list | tuple)], "a seed is kept somewhere"


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(lambda change: change.astype(">f4"), id="big-endian"),
        pytest.param(lambda change: np.repeat(change, 3)[::3], id="strided"),
        pytest.param(lambda change: np.ascontiguousarray(change[::-1])[::-1], id="backwards"),
        pytest.param(lambda change: np.asfortranarray(change.reshape(5, 8)), id="columns first"),
        pytest.param(lambda change: change.reshape(2, 4, 5), id="in three dimensions"),
        pytest.param(lambda change: change.astype(np.float64), id="of doubles"),
    ],
)
def test_how_an_array_lies_in_memory_changes_nothing(fresh: Cohort, shape: Callable[..., Any]) -> None:
    """S79. A change comes big-endian, strided, backwards or in columns, and its bytes are summed as they lie.

    Powers: another machine or library. Control: which is the point: the sum is the plain sum, bit for bit.
    """
    keys = fresh.keys()
    call = fresh.call(keys)
    for name in ALL:
        fresh.upload(name, call, keys, change=shape(fresh.update(name)))
    Asked(fresh, keys, call, fresh.uploads).opens()


def test_a_change_may_come_in_blocks_of_any_length(fresh: Cohort) -> None:
    """Own. A change comes in blocks whose borders fall anywhere, so that masks slip by some words.

    Powers: another layout of tensors. Control: which is the point: the sum is the plain sum, bit for bit.
    """
    keys = fresh.keys()
    call = fresh.call(keys)
    for place, name in enumerate(ALL):
        change, words = fresh.update(name), bytearray()
        borders = [0, place, place + 1, 17, 17, 39, 40]
        blocks = [change[start:stop] for start, stop in pairwise(borders)]
        uploaded = fresh.site(name).upload(
            call, keys=keys, change=blocks, sink=words.extend, contribution=NOTHING_CLAIMED
        )
        fresh.uploads[name] = uploaded, bytes(words)
    Asked(fresh, keys, call, fresh.uploads).opens()


def test_an_upload_is_counted_under_its_own_site(asked: Asked) -> None:
    """S72. The connection of one site brings the label of another, so that one site counts as two, or as nobody.

    Powers: one enrolled connection, and another site's recorded messages. Control: under its own name it counts.
    """
    server = asked.cohort.server(asked.call, "ab")
    uploaded, vector = asked.uploads["c"]
    for name in ("a", "b", "d", "e", ""):
        with pytest.raises(BadSumPaper):
            server.add_upload(name, label=uploaded.label, capsules_of=uploaded.capsules, vector=memoryview(vector))
    with pytest.raises(TooFewUploads):
        server.close_uploads()
    server.add_upload("c", label=uploaded.label, capsules_of=uploaded.capsules, vector=memoryview(vector))
    assert list(server.close_uploads().labels) == ["a", "b", "c"]


def test_a_round_open_elsewhere_is_not_disturbed(asked: Asked, parties: dict[str, Party], tmp_path: Path) -> None:
    """S71. Messages of two runs with the same sites cross each other.

    Powers: relays each run's messages into the other. Control: each run's own give its own sum.
    """
    other = Asked.make(
        Cohort(
            plan=plan_of(ALL, collude=1, vanish=1, run="run-2"), parties=parties, folder=tmp_path / "other run"
        ),
        run="run-2",
    )  # fmt: skip
    uploaded, vector = other.uploads["d"]
    server: ServerSum = asked.cohort.server(asked.call, "abc")
    with pytest.raises(BadSumPaper):
        server.add_upload("d", label=uploaded.label, capsules_of=uploaded.capsules, vector=memoryview(vector))
    with refused(asked.cohort, BadSumPaper):
        asked.help(asked.helpers[0], [], labels=other.labels(ALL), sealed=other.capsules(ALL, to=asked.helpers[0]))
    asked.opens()
    other.opens()


def test_a_ledger_that_is_no_ledger_stops_the_site(fresh: Cohort) -> None:
    """Own. The ledger's file is cut, overwritten, or another database.

    Powers: writes the site's files. Control: a new one is made where there is none, and no open round is in it.
    """
    path = fresh.folder / "a" / LEDGER_FILE
    fresh.keys()
    for data in (b"not a database" * 100, path.read_bytes()[:3000]):
        path.write_bytes(data)
        with pytest.raises(NotFedError) as caught:
            fresh.site("a").offer_key()
        assert caught.value.code == "store-damaged"
    path.unlink()
    assert SumLedger(path.parent).writes == 0
    assert fresh.site("a").offer_key()
    assert MalformedSigned.code
    assert NOW
