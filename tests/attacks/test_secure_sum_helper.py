"""Adversary: a helper of a secure sum, or a site that is asked for shares, which answers something else.

Powers: a full member with its keys, all that was sealed to it, and a modified client; signs any answer in its own
name. Lacks: the other sites' keys.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from not_fed.aggregation.secure import ServerSum, masks
from not_fed.aggregation.secure.ring import TAIL_WORDS
from not_fed.aggregation.secure.server import BadVector, MasksRemain, SumImplausible, TooFewShares
from not_fed.envelope.dsse import BadSignature, MalformedSigned
from not_fed.envelope.summing import VECTOR_HEAD, BadSumPaper
from not_fed.errors import NotFedError
from tests.support.lying_sums import Asked, framed, is_noise, opened, partial_by_hand, resigned, words_of
from tests.support.sums import NAMES, Cohort, Party, new_party, plan_of
from tests.support.trust import payload_of

ALL = list("abcd")


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


def add(server: ServerSum, name: str, answer: tuple[bytes, bytes]) -> None:
    server.add_partial(name, statement=answer[0], vector=memoryview(answer[1]))


def not_taken(asked: Asked, name: str, answer: tuple[bytes, bytes], *kinds: type[NotFedError]) -> None:
    """An honest coordinator takes nothing of it off, and goes on with the right answer."""
    server = asked.server()
    before = server._total.copy()
    with pytest.raises(kinds):
        add(server, name, answer)
    assert np.array_equal(server._total, before)
    for helper in asked.helpers:
        add(server, helper, asked.help(helper, ALL))
    assert np.array_equal(server.finish().words[:-TAIL_WORDS], asked.cohort.plain(ALL))


# -- partial sums ------------------------------------------------------------------------------------------------------


def test_only_helpers_have_a_partial_sum(asked: Asked) -> None:
    """S53. A site that is no helper of this call sends a partial sum, to move the total.

    Powers: signs any partial sum in its own name. Control: the helpers' are taken.
    """
    words = VECTOR_HEAD + bytes(4 * (40 + TAIL_WORDS))
    for name in asked.others:
        statement = partial_by_hand(asked, name, asked.server(), words)
        not_taken(asked, name, (statement, words), BadSumPaper)


def test_a_partial_sum_is_its_helpers(asked: Asked) -> None:
    """S54. A helper hands in another helper's answer as its own, or signs one in the other's name.

    Powers: sees the other's answer, as a coordinator's friend may. Control: each hands in its own.
    """
    first, second, _ = asked.helpers
    theirs = asked.help(second, ALL)
    not_taken(asked, first, theirs, BadSumPaper)
    forged = partial_by_hand(asked, first, asked.server(), theirs[1], as_=second)
    not_taken(asked, second, (forged, theirs[1]), BadSignature)


def test_a_partial_sum_is_the_signed_bytes(asked: Asked) -> None:
    """S55. The vector of a partial sum is edited, cut or stretched on its way, or is not what was signed.

    Powers: edits messages; signs one vector and sends another. Control: the signed one is taken.
    """
    first = asked.helpers[0]
    statement, words = asked.help(first, ALL)
    for wrong in (
        b"",
        words[:-4],
        words + bytes(4),
        words[:16] + bytes([words[16] ^ 1]) + words[17:],
        words[::-1],
        VECTOR_HEAD + bytes(len(words) - 16),
    ):
        not_taken(asked, first, (statement, wrong), BadVector)
    short = partial_by_hand(asked, first, asked.server(), words[:-4])
    not_taken(asked, first, (short, words[:-4]), BadVector)


def test_a_helper_answers_once(asked: Asked) -> None:
    """Own. A helper's answer is taken off twice, or after the helpers that are lost were named.

    Powers: repeats and delays its message. Control: once, in time, it counts.
    """
    first, second, third = asked.helpers
    server = asked.server()
    answers = {name: asked.help(name, ALL) for name in asked.helpers}
    for name in (first, second):
        add(server, name, answers[name])
        with pytest.raises(BadSumPaper):
            add(server, name, answers[name])
    missing = server.close_partials()
    with pytest.raises(BadSumPaper):
        add(server, third, answers[third])
    for name in ALL:
        server.add_shares(name, statement=asked.reveal(name, ALL, missing))
    assert np.array_equal(server.finish().words[:-TAIL_WORDS], asked.cohort.plain(ALL))


def test_garbage_from_a_helper_gives_no_sum(asked: Asked) -> None:
    """S56. A helper signs and sends random words, to spoil the sum.

    Powers: any vector, signed. Control: the right ones give the sum; the garbage gives none.
    """
    asked.copy(asked.cohort.folder.parent / "honest").opens()
    server = asked.server()
    first, *others = asked.helpers
    garbage = VECTOR_HEAD + np.random.default_rng(2).bytes(4 * (40 + TAIL_WORDS))
    add(server, first, (partial_by_hand(asked, first, server, garbage), garbage))
    for name in others:
        add(server, name, asked.help(name, ALL))
    with pytest.raises(MasksRemain):
        server.finish()


def test_garbage_that_spares_the_check_words_is_signed_garbage(asked: Asked) -> None:
    """S57. A helper spoils the data words and leaves the check words right, a little or a lot.

    Powers: any vector, signed; the masks of its column. Control: which is the point: a lot is refused as implausible; a
    little passes and is left to the vote, and the column's seeds, revealed, prove whose signed vector is wrong.
    """
    first, *others = asked.helpers
    right = words_of(asked.help(first, ALL)[1])
    for noise, plausible in ((1 << 31, False), (1000, True)):
        wrong = right.copy()
        wrong[:-TAIL_WORDS] += np.random.default_rng(3).integers(0, noise, len(wrong) - TAIL_WORDS, dtype=np.uint32)
        server = asked.server()
        statement = partial_by_hand(asked, first, server, framed(wrong))
        add(server, first, (statement, framed(wrong)))
        for name in others:
            add(server, name, asked.help(name, ALL))
        if not plausible:
            with pytest.raises(SumImplausible):
                server.finish()
            continue
        assert not np.array_equal(server.finish().words[:-TAIL_WORDS], asked.cohort.plain(ALL))
        # the audit: t sites open the column, and anybody computes what the helper should have signed
        audit = asked.server()
        for name in others:
            add(audit, name, asked.help(name, ALL))
        assert audit.close_partials() == (first,)
        with_masks = audit._total.copy()
        for name in ALL:
            audit.add_shares(name, statement=asked.reveal(name, ALL, [first]))
        column = with_masks - audit.finish().words
        assert np.array_equal(column, right)
        assert not np.array_equal(column, wrong)
        assert payload_of(statement)["from"] == first


def test_a_partial_sum_for_another_set_is_not_taken(asked: Asked) -> None:
    """S61. An answer for another set of uploads comes, or one for another call.

    Powers: true answers of the same helper. Control: the answer for this set is taken.
    """
    first = asked.helpers[0]
    elsewhere = asked.copy(asked.cohort.folder.parent / "elsewhere")
    not_taken(asked, first, elsewhere.help(first, ALL[:3]), BadSumPaper)
    other = Asked.make(Cohort(plan=asked.cohort.plan, parties=asked.cohort.parties, folder=asked.cohort.folder / "x"))
    not_taken(asked, other.helpers[0], other.help(other.helpers[0], ALL), BadSumPaper)


# -- shares ------------------------------------------------------------------------------------------------------------


class Lost:
    """A coordinator that has lost a helper and asks for shares."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.lost = asked.helpers[1]
        self.server = asked.server()
        for name in asked.helpers:
            if name != self.lost:
                add(self.server, name, asked.help(name, ALL))
        assert self.server.close_partials() == (self.lost,)

    def shares(self, name: str) -> bytes:
        return self.asked.reveal(name, ALL, [self.lost])

    def changed(self, name: str, change: Callable[[dict[str, Any]], object], **fields: Any) -> bytes:  # noqa: ANN401
        line = self.shares(name)
        shares = payload_of(line)["shares"]
        change(shares)
        signer = self.asked.cohort.parties[name].signer
        return resigned(line, kind="shares", signer=signer, **{"shares": shares, **fields})

    def sum(self) -> None:
        total = self.server.finish()
        assert np.array_equal(total.words[:-TAIL_WORDS], self.asked.cohort.plain(ALL))


def _another_share(shares: dict[str, Any], lost: str) -> None:
    for uploader in shares:
        shares[uploader][lost] = "17" * 32


def _one_another_share(shares: dict[str, Any], lost: str) -> None:
    shares["c"][lost] = "00" * 32


def _beyond_the_field(shares: dict[str, Any], lost: str) -> None:
    shares["a"][lost] = "ff" * 32


def _exchanged(shares: dict[str, Any], lost: str) -> None:
    shares["a"], shares["b"] = shares["b"], shares["a"]


@pytest.mark.parametrize("way", [_another_share, _one_another_share, _beyond_the_field, _exchanged])
@pytest.mark.parametrize("liar", ALL)
def test_a_wrong_share_is_skipped_and_its_signer_named(asked: Asked, way: Callable[..., None], liar: str) -> None:
    """S58. One site answers with shares that are not those it was sealed.

    Powers: signs any shares; answers first or last. Control: which is the point: the others' shares give the exact sum,
    and the coordinator knows whose were wrong.
    """
    lost = Lost(asked)
    for name in ALL:
        wrong = lost.changed(name, lambda shares: way(shares, lost.lost)) if name == liar else lost.shares(name)
        lost.server.add_shares(name, statement=wrong)
    lost.sum()
    assert lost.server.wrong_shares == {liar}


def test_too_few_shares_open_nothing(asked: Asked) -> None:
    """S59. Fewer sites than t answer, the coordinator's own friend among them.

    Powers: t - 1 sites' shares. Control: with one more the sum comes out.
    """
    lost = Lost(asked)
    assert asked.cohort.plan.thresholds().shares == 3
    masked = lost.server._total.copy()
    for name in ("a", "d"):
        lost.server.add_shares(name, statement=lost.shares(name))
        with pytest.raises(TooFewShares):
            lost.server.finish()
        lost.server.add_shares(name, statement=lost.shares(name))  # twice is once
        with pytest.raises(TooFewShares):
            lost.server.finish()
    assert np.array_equal(lost.server._total, masked)
    assert is_noise(masked[:-TAIL_WORDS])
    lost.server.add_shares("b", statement=lost.shares("b"))
    lost.sum()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda shares, lost: shares.clear(), id="none"),
        pytest.param(lambda shares, lost: shares.pop("a"), id="an uploader less"),
        pytest.param(lambda shares, lost: shares.update(e=dict(shares["a"])), id="an uploader more"),
        pytest.param(lambda shares, lost: shares["a"].clear(), id="a helper less"),
        pytest.param(lambda shares, lost: shares["a"].update(e="00" * 32), id="a helper more"),
        pytest.param(lambda shares, lost: shares["a"].update({lost: "00" * 31}), id="too short"),
        pytest.param(lambda shares, lost: shares["a"].update({lost: "00" * 33}), id="too long"),
        pytest.param(lambda shares, lost: shares["a"].update({lost: "zz" * 32}), id="no hexadecimal"),
        pytest.param(lambda shares, lost: shares["a"].update({lost: 7}), id="a number"),
        pytest.param(lambda shares, lost: shares["a"].update({lost: None}), id="null"),
        pytest.param(lambda shares, lost: shares.update(a=[]), id="a list"),
    ],
)
def test_shares_of_another_form_are_not_taken(asked: Asked, change: Callable[..., object]) -> None:
    """S60. Shares are left out, doubled, of another length or kind, or for somebody who was not asked about.

    Powers: signs any JSON. Control: the right form is taken.
    """
    lost = Lost(asked)
    with pytest.raises((MalformedSigned, BadSumPaper)):
        lost.server.add_shares("a", statement=lost.changed("a", lambda shares: change(shares, lost.lost)))
    for name in ALL:
        lost.server.add_shares(name, statement=lost.shares(name))
    lost.sum()
    assert lost.server.wrong_shares == set()


def test_shares_for_another_set_or_list_are_not_taken(asked: Asked) -> None:
    """S61. Shares come for another set, another lost helper, another call, or in the name of another site.

    Powers: true shares of other questions; signs with its own keys. Control: those for this question are taken.
    """
    keep: Callable[[dict[str, Any]], object] = lambda shares: None  # noqa: E731
    elsewhere, later = (asked.copy(asked.cohort.folder.parent / name) for name in ("elsewhere", "later"))
    lost = Lost(asked)
    other = next(name for name in asked.helpers if name != lost.lost)
    for line in (
        elsewhere.reveal("d", ALL[:3], [lost.lost]), later.reveal("d", ALL, [other]),
        lost.changed("d", keep, active_sha256="ab" * 32), lost.changed("d", keep, missing=[other]),
        lost.changed("d", keep, missing=[]), lost.changed("d", keep, call_sha256="ab" * 32), lost.shares("a"),
        lost.changed("a", keep, sender="d"), lost.changed("d", keep, sender="a"),
    ):  # fmt: skip
        with pytest.raises((BadSumPaper, MalformedSigned, BadSignature)):
            lost.server.add_shares("d", statement=line)
    for name in ALL:
        lost.server.add_shares(name, statement=lost.shares(name))
    lost.sum()


def test_a_helper_sees_no_more_than_its_own_masks(asked: Asked) -> None:
    """Own. A helper takes its own mask off every upload that it gets to see, and looks at what is left.

    Powers: all seeds of its column, all masked vectors, as when it works with the coordinator. Control: what is left of
    an upload is noise; with the seeds of all helpers it would be the update.
    """
    for name in ALL:
        vector = words_of(asked.uploads[name][1])
        for place, helper in enumerate(asked.helpers, start=1):
            seed = opened(asked, helper, name).seed
            assert seed is not None
            key = masks.pair_key(seed, call_sha256=asked.call.sha256, uploader=name, helper=helper)
            masks.MaskStream(key).subtract(vector)
            assert is_noise(vector[:-TAIL_WORDS]) == (place < len(asked.helpers))
        assert np.array_equal(vector[:-TAIL_WORDS], asked.cohort.plain(name))
