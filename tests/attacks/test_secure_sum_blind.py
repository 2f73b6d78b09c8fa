"""Adversary: a coordinator that wants to read a blind sum, and sites that would take its masks off for it or spoil it.

Powers: the sum with the sites' blinding masks on it, every upload, every partial sum; sites that lie about their keys.
Lacks: a site that hands it the blinding keys. (One colluding site can: then it has the sum, and no single update.)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from not_fed.age import NotForThisKey
from not_fed.aggregation.secure import Total, masks
from not_fed.aggregation.secure.ring import CHECK_WORDS, TAIL_WORDS, Words
from not_fed.aggregation.secure.site import BadCapsule, OtherLength
from not_fed.envelope.summing import TAG, BadSumPaper, encode
from not_fed.trust.plans import UnsafePlan
from tests.support.lying_sums import OTHER_START, Asked, ByHand, is_noise, opened, refused, resigned, words_of
from tests.support.sums import NAMES, Cohort, Party, new_party, plan_of
from tests.support.trust import payload_of

ALL = list("abcd")


@pytest.fixture(scope="module")
def parties() -> dict[str, Party]:
    return {name: new_party(name) for name in NAMES[:5]}


@pytest.fixture(scope="module")
def ready(parties: dict[str, Party], tmp_path_factory: pytest.TempPathFactory) -> Asked:
    plan = plan_of(ALL, collude=1, vanish=1, blind=True, quorum=3)
    return Asked.make(Cohort(plan=plan, parties=parties, folder=tmp_path_factory.mktemp("four") / "sites"))


@pytest.fixture
def asked(ready: Asked, tmp_path: Path) -> Asked:
    return ready.copy(tmp_path / "sites")


def unblinded(asked: Asked, name: str, total: Total, sites: list[str] | None = None) -> Words:
    """What that site reads in the sum."""
    words, names = total.words.copy(), sites or ALL
    asked.cohort.site(name).unblind(
        asked.call, labels=asked.labels(names), capsules_to_me=asked.capsules(names, to=name), total=words
    )
    return words


def test_a_coordinator_cannot_read_a_blind_sum(asked: Asked) -> None:
    """Own. The coordinator reads the sum that it has formed, its weight, or low bits of it.

    Powers: all that an honest round gives it, and all partial sums. Control: every site reads the plain sum and weight.
    """
    total = asked.helped().finish()
    plain = asked.cohort.plain(ALL)
    assert total.weight is None
    data = total.words[:-TAIL_WORDS]
    assert is_noise(data)
    assert is_noise(data - plain)
    assert int(total.words[-1]) not in range(1 << 16)
    assert list(total.words[-TAIL_WORDS:-1]) == [4] * CHECK_WORDS  # which show that the helpers' masks are off
    for name in ALL:
        words = unblinded(asked, name, total)
        assert np.array_equal(words[:-TAIL_WORDS], plain)
        assert int(words[-1]) == 4


@pytest.mark.parametrize("way", ["no blinding mask", "a blinding mask that the plan does not have"])
def test_the_plan_says_whether_a_sum_is_blind(
    asked: Asked, parties: dict[str, Party], tmp_path: Path, way: str
) -> None:
    """S66. An upload comes without a blinding mask under a blind plan, or with one under another plan.

    Powers: signs any label. Control: as the plan has it, it counts.
    """
    if way.startswith("a blinding"):
        plan = plan_of(ALL, collude=1, vanish=1)
        asked = Asked.make(Cohort(plan=plan, parties=parties, folder=tmp_path / "open"))
        asked.opens()
    label = resigned(
        asked.uploads["d"][0].label, signer=parties["d"].signer, blind=None if way.startswith("no") else "ab" * 32
    )
    uploaded, words = asked.uploads["d"]
    server = asked.cohort.server(asked.call, ALL[:3])
    with pytest.raises(BadSumPaper):
        server.add_upload("d", label=label, capsules_of=uploaded.capsules, vector=memoryview(words))
    with refused(asked.cohort, BadSumPaper):
        asked.help(
            asked.helpers[0], [], labels=[*asked.labels("abc"), label], sealed=asked.capsules(ALL, to=asked.helpers[0])
        )
    server.add_upload("d", label=uploaded.label, capsules_of=uploaded.capsules, vector=memoryview(words))


def test_a_blind_plan_needs_a_vote(asked: Asked) -> None:
    """Own. A plan hides the sum from the coordinator and lets nobody look at it: any poison would be used unseen.

    Powers: a steward who makes the plan in haste. Control: with a quorum the plan is made.
    """
    with pytest.raises(UnsafePlan):
        plan_of(ALL, blind=True, quorum=0).thresholds()
    assert asked.cohort.plan.thresholds().sites == 4


@pytest.mark.parametrize("way", ["another key for one site", "none for one site", "another key than was committed to"])
def test_every_site_has_the_blinding_key_that_was_signed(asked: Asked, way: str) -> None:
    """S67. A site blinds with one key and seals another to some site, which would read another sum than all others.

    Powers: seals and signs anything. Control: which is the point: that site names it, and the others are summed.
    """
    hand = ByHand(asked.cohort, "d", asked.call, asked.keys)
    victim = asked.helpers[0] if asked.helpers[0] != "d" else asked.helpers[1]
    uploaded, words = hand.build()
    sealed = dict(uploaded.capsules)
    if way == "another key than was committed to":
        hand.sealed_blind = bytes(32)
        sealed = dict(hand.build()[0].capsules)
    elif way == "none for one site":
        hand.sealed_blind = None
        sealed[victim] = hand.build()[0].capsules[victim]
    else:
        hand.sealed_blind = masks.new_seed()
        sealed[victim] = hand.build()[0].capsules[victim]
    asked.sends("d", hand.sign(words_of(words), sealed))
    with refused(asked.cohort, BadCapsule) as caught:
        asked.help(victim, ALL)
    assert "capsule of d" in str(caught.value)
    total = asked.helped(ALL[:3]).finish()
    for name in ALL:
        assert np.array_equal(unblinded(asked, name, total, ALL[:3])[:-TAIL_WORDS], asked.cohort.plain("abc"))


def test_a_site_that_is_no_helper_finds_a_false_blinding_key_too(asked: Asked) -> None:
    """S67. The false key is sealed to a site that carries no masks and looks at its capsule only at the end.

    Powers: seals and signs anything; knows who helps. Control: the others read the same sum; that site reads nothing
    wrong, and names the liar.
    """
    hand = ByHand(asked.cohort, "a", asked.call, asked.keys)
    victim = asked.others[0]
    if victim == "a":
        hand = ByHand(asked.cohort, "b", asked.call, asked.keys)
    uploaded, words = hand.build()
    hand.sealed_blind = masks.new_seed()
    sealed = {**uploaded.capsules, victim: hand.build()[0].capsules[victim]}
    asked.sends(hand.name, hand.sign(words_of(words), sealed))
    total = asked.helped().finish()
    with refused(asked.cohort, BadCapsule) as caught:
        unblinded(asked, victim, total)
    assert f"capsule of {hand.name}" in str(caught.value)
    readings = {unblinded(asked, name, total).tobytes() for name in ALL if name != victim}
    assert len(readings) == 1


def test_a_blinding_key_belongs_to_its_call_and_uploader(asked: Asked) -> None:
    """S68, S70. A capsule of another round, of another uploader or of an earlier cohort brings another blinding key.

    Powers: relays any capsule that it ever saw. Control: each call's own capsules open its own sum.
    """
    old = dict(asked.uploads)
    total = asked.helped().finish()
    call = asked.next_round(start=OTHER_START)
    newest = asked.upload_again(call, seed=2)
    later = newest.helped().finish()
    for name in ALL:
        stale = {uploader: old[uploader][0].capsules[name] for uploader in ALL}
        right = newest.capsules(ALL, to=name)
        for sealed in (stale, {**right, "a": stale["a"]}, {**right, "a": right["b"], "b": right["a"]}):
            with refused(asked.cohort, BadCapsule):
                newest.cohort.site(name).unblind(
                    call, labels=newest.labels(ALL), capsules_to_me=sealed, total=later.words.copy()
                )
    expected = sum(
        (asked.cohort.plan.sites and _words(asked, name, seed=2) for name in ALL), np.zeros(40, dtype=np.uint32)
    )
    assert np.array_equal(unblinded(newest, "a", later)[:-TAIL_WORDS], expected)
    assert not np.array_equal(later.words, total.words)


def _words(asked: Asked, name: str, *, seed: int) -> Words:
    ring = ByHand(asked.cohort, name, asked.call, asked.keys, change=asked.cohort.update(name, seed=seed))
    return ring.words


def test_keys_of_one_call_take_no_masks_off_another(asked: Asked) -> None:
    """S70. A former member, or whoever kept the keys of an earlier call, uses them on a later sum.

    Powers: all blinding keys of an earlier call, both sums. Control: on its own sum they work.
    """
    kept = {uploader: opened(asked, "a", uploader).blind for uploader in ALL}
    total = asked.helped().finish()
    call = asked.next_round(start=OTHER_START)
    later = asked.upload_again(call, seed=2).helped().finish()

    def without(words: Words, call_sha256: str) -> Words:
        left = words[:-TAIL_WORDS].copy()
        for uploader, key in kept.items():
            assert key is not None
            masks.MaskStream(masks.blind_key(key, call_sha256=call_sha256, uploader=uploader)).subtract(left)
        return left

    first = asked.call.sha256
    assert np.array_equal(without(total.words, first), asked.cohort.plain(ALL))
    for tried in (first, call.sha256):
        assert is_noise(without(later.words, tried))


def test_each_site_blinds_with_a_mask_of_its_own(asked: Asked) -> None:
    """S69. All sites blind with one common mask B: of four sites the sum shows its two lowest bits, since 4 B has none.

    Powers: the blind sum of an even number of sites; the low bits of single updates. Control: which is the point: masks
    are per site, and the low bits of the sum are noise; with a common one they would be those of the plain sum.
    """
    plain = asked.cohort.plain(ALL)
    assert len({payload_of(asked.uploads[name][0].label)["blind"] for name in ALL}) == 4
    assert len({opened(asked, "a", name).blind for name in ALL}) == 4
    total = asked.helped().finish()
    low = np.uint32(3)
    assert not np.array_equal(total.words[:-TAIL_WORDS] & low, plain & low)

    common = masks.new_seed()
    single: list[Words] = []
    for _ in ALL:  # as it was not done
        words = np.zeros(40, dtype="<u4")
        masks.MaskStream(masks.blind_key(common, call_sha256=asked.call.sha256, uploader="all")).add(words)
        single.append(words)
    leaking = plain + sum(single[1:], single[0])
    assert np.array_equal(leaking & low, plain & low)
    assert is_noise(leaking)  # which looks as good as any


def test_one_site_without_blinding_would_be_the_sum(asked: Asked) -> None:
    """Own. One site alone carries the blinding, drops out, and the sum of the others lies open.

    Powers: loses any upload it likes. Control: whoever is lost, the sum of the others is noise to the coordinator.
    """
    for lost in ALL:
        rest = [name for name in ALL if name != lost]
        copied = asked.copy(asked.cohort.folder.parent / f"without {lost}")
        total = copied.helped(rest).finish()
        assert is_noise(total.words[:-TAIL_WORDS])
        assert np.array_equal(unblinded(copied, rest[0], total, rest)[:-TAIL_WORDS], asked.cohort.plain(rest))


def test_recovery_takes_no_blinding_off(asked: Asked) -> None:
    """Own. A helper is called lost, so that shares come: maybe those of the blinding keys come with them.

    Powers: t sites' shares of one helper's column. Control: the sum is exact for the sites, and noise for others.
    """
    lost, *others = asked.helpers
    server = asked.server()
    for name in others:
        statement, words = asked.help(name, ALL)
        server.add_partial(name, statement=statement, vector=memoryview(words))
    missing = server.close_partials()
    assert missing == (lost,)
    for name in ALL:
        line = asked.reveal(name, ALL, missing)
        server.add_shares(name, statement=line)
        given = {share for held in payload_of(line)["shares"].values() for share in held.values()}
        blind = {key.hex() for key in (opened(asked, name, uploader).blind for uploader in ALL) if key is not None}
        assert not given & blind
    total = server.finish()
    assert is_noise(total.words[:-TAIL_WORDS])
    assert np.array_equal(unblinded(asked, "a", total)[:-TAIL_WORDS], asked.cohort.plain(ALL))


@pytest.mark.parametrize("change", [lambda words: words[:-1], lambda words: np.append(words, words[:1])])
def test_a_blind_sum_has_the_calls_length(asked: Asked, change: Callable[[Words], Words]) -> None:
    """Own. The total that comes to be read is shorter or longer than the call's.

    Powers: sends any total. Control: one of the right length is read.
    """
    total = asked.helped().finish()
    with refused(asked.cohort, OtherLength):
        asked.cohort.site("a").unblind(
            asked.call, labels=asked.labels(ALL), capsules_to_me=asked.capsules(ALL, to="a"), total=change(total.words)
        )
    unblinded(asked, "a", total)


def test_an_outsider_has_no_capsule_of_its_own(asked: Asked, parties: dict[str, Party]) -> None:
    """Own. Whoever is not in the cohort, or has a site's long-lived key alone, opens capsules that it sees passing.

    Powers: every capsule, the sealing keys of the roster. Lacks: the keys of this round. Control: a site opens its own.
    """
    assert opened(asked, "a", "b").blind is not None
    for thief in ("e", "a"):
        with pytest.raises(NotForThisKey):
            parties[thief].opener.open_own(
                asked.uploads["b"][0].capsules["a"],
                info=encode(TAG, b"capsule", asked.call.sha256.encode(), b"b", b"a"),
            )  # fmt: skip
