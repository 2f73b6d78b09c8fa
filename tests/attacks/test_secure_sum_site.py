"""Adversary: a site of the cohort that sends what its own client would not send.

Powers: a full member with its keys and a modified client; sends any bytes, signs anything in its own name. Lacks: the
other sites' keys.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from not_fed.aggregation.secure import Ring, shamir
from not_fed.aggregation.secure.ring import TAIL_WORDS, BadSumWeight, NotFinite
from not_fed.aggregation.secure.server import BadVector, MasksRemain, SumImplausible
from not_fed.aggregation.secure.site import BadCapsule, OtherLength, check_upload
from not_fed.envelope.dsse import BadSignature, MalformedSigned
from not_fed.envelope.summing import VECTOR_HEAD, BadSumPaper
from not_fed.errors import NotFedError
from tests.support.lying_sums import OTHER_START, Asked, ByHand, framed, opened, refused, resigned, words_of
from tests.support.sums import NAMES, NOTHING_CLAIMED, NOW, Cohort, Party, new_party, plan_of
from tests.support.trust import payload_of

ALL = list("abcd")


@pytest.fixture(scope="module")
def parties() -> dict[str, Party]:
    return {name: new_party(name) for name in NAMES[:5]}


@pytest.fixture(scope="module")
def ready(parties: dict[str, Party], tmp_path_factory: pytest.TempPathFactory) -> Asked:
    plan = plan_of(ALL, collude=1, vanish=1, max_weight=8)
    return Asked.make(Cohort(plan=plan, parties=parties, folder=tmp_path_factory.mktemp("four") / "sites"))


@pytest.fixture
def asked(ready: Asked, tmp_path: Path) -> Asked:
    return ready.copy(tmp_path / "sites")


@pytest.fixture
def fresh(parties: dict[str, Party], tmp_path: Path) -> Cohort:
    return Cohort(plan=plan_of(ALL, collude=1, vanish=1, max_weight=8), parties=parties, folder=tmp_path / "fresh")


def liar(asked: Asked, **fields: Any) -> ByHand:  # noqa: ANN401
    """The site `d`, at the beginning of an upload of its own making."""
    return ByHand(asked.cohort, "d", asked.call, asked.keys, **fields)


def not_counted(asked: Asked, *kinds: type[NotFedError], site: str = "d", **upload: Any) -> None:  # noqa: ANN401
    """An honest coordinator adds nothing of it, and sums the others."""
    server = asked.cohort.server(asked.call, [name for name in ALL if name != site])
    before = server._total.copy()
    uploaded, words = asked.uploads[site]
    arguments = {"label": uploaded.label, "capsules_of": uploaded.capsules, "vector": memoryview(words)} | upload
    with pytest.raises(kinds):
        server.add_upload(site, **arguments)
    assert np.array_equal(server._total, before)
    server.add_upload(site, label=uploaded.label, capsules_of=uploaded.capsules, vector=memoryview(words))


# -- vectors and labels ------------------------------------------------------------------------------------------------


def test_a_vector_is_the_signed_bytes_of_the_right_length(asked: Asked) -> None:
    """S39, S40, S41. A vector is shorter or longer, of wider or narrower words, or not the one that was signed.

    Powers: sends any bytes under its label. Control: the signed vector is added.
    """
    words = asked.uploads["d"][1]
    another_head = VECTOR_HEAD.replace(b"1", b"2") + words[16:]
    as_floats = framed(words_of(words).astype(np.float64))
    changed = words[:16] + bytes([words[16] ^ 1]) + words[17:]
    for vector in (b"", words[:-4], words[:-1], words + bytes(4), words[: len(words) // 2], as_floats, changed,
                   words[::-1], words[16:], another_head):  # fmt: skip
        not_counted(asked, BadVector, vector=memoryview(vector))
    asked.opens()


def test_a_vector_of_another_length_is_not_counted_even_when_signed(asked: Asked) -> None:
    """S39, S40. The label is for a vector that is too short, too long, or of words of another width.

    Powers: signs any digest. Control: one of the call's length is added.
    """
    for make in (
        lambda hand: hand.words[:-1], lambda hand: np.append(hand.words, hand.words[:1]),
        lambda hand: hand.words.astype("<u2"), lambda hand: hand.words.astype("<u8"),
        lambda hand: hand.words[:0],
    ):  # fmt: skip
        hand = liar(asked)
        vector = np.concatenate([make(hand), hand.tail.astype(make(hand).dtype)])
        uploaded, words = hand.sign(vector, asked.uploads["d"][0].capsules)
        not_counted(asked, BadVector, label=uploaded.label, capsules_of=uploaded.capsules, vector=memoryview(words))
    asked.opens()


def test_an_upload_has_a_capsule_for_every_site(asked: Asked) -> None:
    """S42. A capsule is left out, is not the one of the label, or there is one more.

    Powers: signs any map, sends any other. Control: one for each site of the cohort.
    """
    sealed = dict(asked.uploads["d"][0].capsules)
    without = {name: data for name, data in sealed.items() if name != "a"}
    for others in (without, sealed | {"a": sealed["b"]}, sealed | {"e": sealed["a"]}, {}):
        not_counted(asked, BadSumPaper, capsules_of=others)
    for signed in (without, sealed | {"e": sealed["a"]}):
        uploaded, _ = liar(asked).sign(words_of(asked.uploads["d"][1]), signed)
        not_counted(asked, BadSumPaper, label=uploaded.label, capsules_of=signed)
        with refused(asked.cohort, BadSumPaper):  # whatever a coordinator makes of it
            asked.help(
                asked.helpers[0], [], labels=[*asked.labels("abc"), uploaded.label],
                sealed=asked.capsules(ALL, to=asked.helpers[0]),
            )  # fmt: skip
    asked.opens()


@pytest.mark.parametrize("wrong", ["none", "one less", "one more", "of a site that is no helper"])
def test_an_upload_commits_to_the_seed_of_each_helper(asked: Asked, wrong: str) -> None:
    """Own. An upload has too few or too many commitments, so that nobody can say later which seed was meant.

    Powers: signs any label. Control: one commitment for each helper.
    """
    honest = payload_of(asked.uploads["d"][0].label)["commitments"]
    changed = {
        "none": {}, "one less": dict(list(honest.items())[1:]), "one more": honest | {asked.others[0]: "0" * 64},
        "of a site that is no helper": dict(zip([*asked.helpers[1:], asked.others[0]], honest.values(), strict=True)),
    }[wrong]  # fmt: skip
    label = resigned(asked.uploads["d"][0].label, signer=asked.cohort.parties["d"].signer, commitments=changed)
    not_counted(asked, BadSumPaper, MalformedSigned, label=label)
    asked.opens()


def test_nobody_uploads_in_the_name_of_another(asked: Asked) -> None:
    """S43. A site sends the label of another site, or one of its own making in another's name.

    Powers: sees others' labels; signs anything with its own keys. Control: its own upload counts.
    """
    other, words = asked.uploads["a"]
    not_counted(asked, BadSumPaper, label=other.label, capsules_of=other.capsules, vector=memoryview(words))
    signer = asked.cohort.parties["d"].signer
    not_counted(asked, BadSignature, site="a", label=resigned(asked.uploads["d"][0].label, signer=signer, sender="a"))
    asked.opens()


@pytest.mark.parametrize(
    "changes",
    [
        {"sender": ["d"]}, {"sender": None}, {"capsules": []}, {"capsules": {"a": 1}}, {"commitments": "x"},
        {"commitments": {"a": "Z" * 64}}, {"vector_sha256": True}, {"vector_sha256": "0" * 63}, {"blind": "0" * 64},
        {"blind": False}, {"contribution": None}, {"contribution": {}}, {"weight": 3}, {"call_sha256": 1},
        {"contribution": {"dp": {"epsilon": 1}, "audit": None, "releases": [], "ledger_head": None}},
    ],
    ids=str,
)  # fmt: skip
def test_an_insider_signs_no_other_shape(asked: Asked, changes: dict[str, Any]) -> None:
    """S44. A member signs a label with values of other kinds, to crash or confuse whoever reads it.

    Powers: signs any JSON. Control: the exact shape counts.
    """
    label = resigned(asked.uploads["d"][0].label, signer=asked.cohort.parties["d"].signer, **changes)
    not_counted(asked, MalformedSigned, BadSumPaper, label=label)
    with refused(asked.cohort, MalformedSigned, BadSumPaper):
        asked.help(
            asked.helpers[0], [], labels=[*asked.labels("abc"), label], sealed=asked.capsules(ALL, to=asked.helpers[0])
        )
    asked.opens()


def test_an_upload_of_an_earlier_round_does_not_count(asked: Asked) -> None:
    """S45. A site sends what it sent in an earlier round.

    Powers: keeps its own papers. Control: this round's upload counts.
    """
    old, words = asked.uploads["d"]
    call = asked.next_round(start=OTHER_START)
    newest = asked.upload_again(call, seed=2)
    not_counted(newest, BadSumPaper, label=old.label, capsules_of=old.capsules, vector=memoryview(words))
    assert newest.helped().finish().weight == 4


# -- capsules that are not what they say -------------------------------------------------------------------------------


def _other_seed(hand: ByHand, helper: str) -> None:
    hand.sealed_seeds[helper] = bytes(32)


@pytest.mark.parametrize("way", ["another seed", "for somebody else", "too short", "too long", "garbage"])
def test_a_capsule_that_is_not_what_was_signed_is_found_by_its_helper(asked: Asked, way: str) -> None:
    """S46. A site seals a seed that is not the committed one, or something that does not open, to one of the helpers.

    Powers: seals and signs anything. Control: which is the point: the helper names the site and remembers nothing, so
    that the others are summed without it.
    """
    helper = next(name for name in asked.helpers if name != "d")
    hand = liar(asked)
    if way == "another seed":
        _other_seed(hand, helper)
    if way == "too short":
        del hand.sealed_seeds[helper]
    if way == "too long":
        hand.sealed_blind = bytes(32)
    uploaded, words = hand.build()
    sealed = dict(uploaded.capsules)
    if way == "for somebody else":
        sealed[helper] = sealed["a" if helper != "a" else "b"]
    if way == "garbage":
        sealed[helper] = bytes(len(sealed[helper]))
    asked.sends("d", hand.sign(words_of(words), sealed))
    with refused(asked.cohort, BadCapsule) as caught:
        asked.help(helper, ALL)
    assert "capsule of d" in str(caught.value)
    with refused(asked.cohort, BadCapsule):
        asked.reveal(helper, ALL, [name for name in asked.helpers if name != helper][:1])
    asked.opens(["a", "b", "c"])


def test_shares_of_another_seed_open_nothing_wrong(asked: Asked) -> None:
    """Own. A site hands out shares that belong to no seed or to another one, and then a helper is lost.

    Powers: seals anything as shares; knows that a helper will be lost. Control: which is the point: no wrong seed is
    ever taken for right; the round ends without a sum, since only that site knew the mask.
    """
    hand = liar(asked)
    right = hand.shares
    hand.shares = lambda: {  # type: ignore[method-assign]
        helper: shamir.split(bytes(32), places=4, threshold=3) for helper in right()
    }
    asked.sends("d", hand.build())
    lost = next(name for name in asked.helpers if name != "d")
    server = asked.server()
    for name in asked.helpers:
        if name != lost:
            statement, words = asked.help(name, ALL)
            server.add_partial(name, statement=statement, vector=memoryview(words))
    missing = server.close_partials()
    for name in ALL:
        server.add_shares(name, statement=asked.reveal(name, ALL, missing))
    with pytest.raises(NotFedError) as caught:
        server.finish()
    assert caught.value.code == "too-few-shares"


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 17, 39])
def test_what_is_no_number_is_not_sent(fresh: Cohort, value: float, place: int) -> None:
    """S47. A change of the weights has NaN or an infinity in it, which would become some number of the ring.

    Powers: training data that make a loss diverge. Control: finite numbers are sent.
    """
    keys = fresh.keys()
    call = fresh.call(keys)
    change = fresh.update("a")
    change[place] = value
    with pytest.raises(NotFinite):
        fresh.upload("a", call, keys, change=change)
    assert fresh.ledgers["a"].label_of(call) is None
    fresh.upload("a", call, keys)


@pytest.mark.parametrize("weight", [0, -1, 9, 1 << 31, True, 1.0, 1.5, "1", None])
def test_a_weight_is_a_whole_number_of_the_plan(fresh: Cohort, weight: Any) -> None:  # noqa: ANN401
    """S48. A site's weight is zero, negative, larger than the plan has it, or no whole number.

    Powers: edits its settings. Control: a weight up to the plan's largest is taken.
    """
    keys = fresh.keys()
    call = fresh.call(keys)
    with refused(fresh, BadSumWeight):
        fresh.upload("a", call, keys, weight=weight)
    fresh.upload("a", call, keys, weight=8)


@pytest.mark.parametrize("count", [0, 1, 39, 41, 400])
def test_a_change_of_another_shape_is_not_sent(fresh: Cohort, count: int) -> None:
    """S49. A change has more or fewer numbers than the call says.

    Powers: another base or span than the plan's. Control: a change of the call's length is sent.
    """
    keys = fresh.keys()
    call = fresh.call(keys)
    with pytest.raises(OtherLength):
        fresh.upload("a", call, keys, change=np.zeros(count, dtype=np.float32))
    assert fresh.ledgers["a"].label_of(call) is None
    fresh.upload("a", call, keys)


def test_huge_changes_are_cut_by_the_client(asked: Asked, fresh: Cohort) -> None:
    """S50. A site's change is huge, as when it is meant to outweigh all others.

    Powers: any change, an unmodified client. Control: which is the point: it counts as the plan's clip, and no more.
    """
    keys = fresh.keys()
    call = fresh.call(keys)
    huge = np.full(40, 3e38, dtype=np.float32)
    huge[::2] *= -1
    for name in ALL:
        uploaded, _ = fresh.upload(name, call, keys, change=huge if name == "d" else None)
    assert uploaded.clipped == 40
    total = Asked(fresh, keys, call, fresh.uploads).helped().finish()
    ring = Ring.of(fresh.plan)
    moved = ring.numbers(total.words[:-TAIL_WORDS]) - ring.numbers(fresh.plain("abc"))
    assert set(np.abs(moved)) == {ring.levels}


def _doubled(hand: ByHand) -> None:
    hand.words[:] = Ring.of(hand.cohort.plan).levels * 5


def _wrapped(hand: ByHand) -> None:
    hand.words[7] += np.uint32(1 << 31)


def _heavy(hand: ByHand) -> None:
    hand.tail[-1] = 9 * 8


def _weightless(hand: ByHand) -> None:
    hand.tail[-1] = 0


def _negative(hand: ByHand) -> None:
    hand.tail[-1] = np.uint32(2**32 - 2)


@pytest.mark.parametrize("way", [_doubled, _wrapped, _heavy, _weightless, _negative], ids=lambda way: way.__name__[1:])
def test_a_sum_that_honest_sites_cannot_have_is_not_used(asked: Asked, way: Callable[[ByHand], None]) -> None:
    """S50, S52. A modified client sends words beyond its clip, aims at the ring's wrap, or claims another weight.

    Powers: any words and any weight under right masks. Control: the largest honest sum is used.
    """
    asked.copy(asked.cohort.folder.parent / "honest").opens()
    hand = liar(asked)
    way(hand)
    asked.sends("d", hand.build())
    with pytest.raises(SumImplausible):
        asked.helped().finish()


def test_the_largest_honest_sum_is_used(fresh: Cohort) -> None:
    """Own. Everybody sends the largest change with the largest weight: whoever checks too eagerly loses the round.

    Powers: honest sites at the limits of the plan. Control: which is the point: the sum is right.
    """
    keys = fresh.keys()
    call = fresh.call(keys)
    for name in ALL:
        fresh.upload(name, call, keys, change=np.full(40, -1e30, dtype=np.float32), weight=8)
    total = Asked(fresh, keys, call, fresh.uploads).helped().finish()
    ring = Ring.of(fresh.plan)
    assert set(ring.numbers(total.words[:-TAIL_WORDS])) == {-4 * 8 * ring.levels}
    assert total.weight == 32
    assert np.allclose(ring.mean(total.words[:-TAIL_WORDS], weight=32), -fresh.plan.clip)


def test_a_vector_without_its_masks_is_noticed(asked: Asked) -> None:
    """S51. A site sends another vector than its seeds imply, so that a mask does not cancel.

    Powers: any vector, signed. Control: with its masks the sum comes out.
    """
    hand = liar(asked)
    _, words = hand.build()
    vector = words_of(words)
    vector += np.frombuffer(np.random.default_rng(1).bytes(vector.nbytes), dtype="<u4")
    asked.sends("d", hand.sign(vector, hand.build()[0].capsules))
    with pytest.raises((MasksRemain, SumImplausible)):
        asked.helped().finish()


def test_what_spares_the_check_words_is_left_to_plausibility_and_vote(asked: Asked) -> None:
    """S51. A careful site adds noise to its data words only, and leaves check words and weight as they should be.

    Powers: any vector, signed; knows where the check words are. Lacks: a way to be large and plausible at once.
    Control: which is the point: a large change is refused, a small one is summed like any poison, and left to the vote.
    """
    for noise, plausible in ((1 << 31, False), (1000, True)):
        hand = liar(asked)
        hand.words[:] += np.random.default_rng(1).integers(0, noise, len(hand.words), dtype=np.uint32)
        asked.sends("d", hand.build())
        copied = asked.copy(asked.cohort.folder.parent / f"noise {noise}")
        if plausible:
            assert copied.helped().finish().weight == 4
        else:
            with pytest.raises(SumImplausible):
                copied.helped().finish()


def test_a_colluding_site_reads_its_own_capsule_and_no_other(asked: Asked) -> None:
    """Own. A site tells the coordinator all that it was sent, as every colluding site may.

    Powers: its keys, its capsules, its shares. Control: it reads its own capsules, and too few shares for any seed.
    """
    own = opened(asked, "d", "a")
    assert len(own.shares) == len(asked.helpers)
    for name in "abc":
        with pytest.raises(NotFedError):
            asked.cohort.site("d")._unseal(
                asked.call, asked.cohort.plan.thresholds(), _paper(asked, name), asked.uploads[name][0].capsules["a"],
                asked.cohort.site("d")._round_key(asked.call),
            )  # fmt: skip
    helper = asked.helpers[0]
    one_share = {4: own.shares[0]}
    assert shamir.recover(one_share, threshold=asked.cohort.plan.thresholds().shares, fits=lambda _: True) is None
    commitment = payload_of(asked.uploads["a"][0].label)["commitments"][helper]
    assert len(commitment) == 64


def _paper(asked: Asked, name: str) -> Any:  # noqa: ANN401
    return check_upload(
        asked.uploads[name][0].label, plan=asked.cohort.plan, call=asked.call, site=name, roster=asked.cohort.roster,
        now=NOW,
    )  # fmt: skip


def test_a_capsule_cannot_be_passed_on_as_ones_own(asked: Asked) -> None:
    """Own. A colluding site copies an honest site's capsules into its own upload, to have its masks taken off twice.

    Powers: signs any digests, relays any capsules. Control: its own capsules are opened.
    """
    hand = liar(asked)
    victim = asked.uploads["a"][0]
    paper = payload_of(victim.label)
    vector = words_of(asked.uploads["a"][1])
    asked.sends("d", hand.sign(vector, victim.capsules, commitments=paper["commitments"]))
    for helper in asked.helpers:
        with refused(asked.cohort, BadCapsule):
            asked.help(helper, ALL)
    asked.opens(["a", "b", "c"])


def test_claims_travel_signed_and_beside_the_sum(asked: Asked) -> None:
    """Own. A site claims a guarantee that it has not signed, or another's is put in its place.

    Powers: relays labels. Control: what each signed stands in the total, with its label's digest.
    """
    total = asked.helped().finish()
    assert set(total.contributions) == set(ALL)
    assert all(claim == NOTHING_CLAIMED for _, claim in total.contributions.values())
    line = resigned(
        asked.uploads["a"][0].label, signer=asked.cohort.parties["d"].signer,
        contribution={"dp": None, "audit": None, "releases": [], "ledger_head": "ab" * 32},
    )  # fmt: skip
    not_counted(asked, BadSignature, site="a", label=line)
