"""Adversary: the coordinator of a secure sum, which wants to see what a single site has sent.

Powers: chooses every call, which uploads it shows to whom, when it asks for what, and what it says was lost; keeps all
that it was ever sent; up to c sites tell it everything. Lacks: the stewards' keys, so the plan; the honest sites' keys.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from not_fed import canonical
from not_fed.aggregation.secure.ledger import (
    OtherCohort,
    OtherSet,
    RoundKeyGone,
    SumRoundTaken,
    SumUploaded,
    UpdateReused,
)
from not_fed.aggregation.secure.ring import CHECK_WORDS, TAIL_WORDS
from not_fed.aggregation.secure.server import HelpersLost, MasksRemain
from not_fed.aggregation.secure.site import BadCapsule, NotTheSignedPlan, SiteSum
from not_fed.envelope.dsse import BadSignature, MalformedSigned
from not_fed.envelope.summing import BadSumPaper, SumCall
from not_fed.trust.members import MemberNotActive, UnknownMember
from not_fed.trust.plans import UnsafePlan
from tests.support.lying_sums import (
    OTHER_START,
    Asked,
    ByHand,
    is_noise,
    partial_by_hand,
    refused,
    resigned,
    words_of,
)
from tests.support.sums import NAMES, NOTHING_CLAIMED, Cohort, Party, new_party, plan_of, roster_of
from tests.support.trust import edited, payload_of

ALL = list("abcd")


@pytest.fixture(scope="module")
def parties() -> dict[str, Party]:
    return {name: new_party(name) for name in NAMES[:5]}


@pytest.fixture(scope="module")
def ready(parties: dict[str, Party], tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """Four sites of which one may collude, three helpers of which one may be lost."""
    plan = plan_of(ALL, collude=1, vanish=1)
    return Asked.make(Cohort(plan=plan, parties=parties, folder=tmp_path_factory.mktemp("four") / "sites"))


@pytest.fixture
def asked(ready: Asked, tmp_path: Path) -> Asked:
    return ready.copy(tmp_path / "sites")


@pytest.fixture
def fresh(parties: dict[str, Party], tmp_path: Path) -> Cohort:
    """The same sites, asked for nothing yet."""
    return Cohort(plan=plan_of(ALL, collude=1, vanish=1), parties=parties, folder=tmp_path / "fresh")


def called(cohort: Cohort, call: SumCall, keys: dict[str, bytes], *, me: str = "a") -> None:
    cohort.upload(me, call, keys)


# -- the call ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"plan_sha256": "cd" * 32}, {"plan_sha256": "weaker"}, {"federation": "hospitals"}, {"run": "run-2"},
        {"round_number": 10},
    ],
    ids=str,
)  # fmt: skip
def test_a_call_under_another_plan_gets_nothing(fresh: Cohort, changes: dict[str, Any]) -> None:
    """S1. The call is made under a plan of the coordinator's own, with weaker numbers, or for another run.

    Powers: writes any call. Lacks: the stewards' keys. Control: under the signed plan the site answers.
    """
    if changes.get("plan_sha256") == "weaker":
        changes = {"plan_sha256": plan_of(ALL, collude=0, vanish=1).sha256}
    keys = fresh.keys()
    with refused(fresh, NotTheSignedPlan):
        called(fresh, fresh.call(keys, **changes), keys)
    called(fresh, fresh.call(keys), keys)


def test_a_stranger_in_the_cohort_stops_the_call(fresh: Cohort, parties: dict[str, Party]) -> None:
    """S2. The cohort holds a site that the roster, or the plan, does not have, to count it among the honest.

    Powers: keys of its own; writes any call. Control: with the plan's own sites the site answers.
    """
    keys = fresh.keys()
    stranger = Cohort(plan=plan_of("abce"), parties=parties, folder=fresh.folder / "stranger")
    with refused(fresh, NotTheSignedPlan):
        four = {**{name: keys[name] for name in "abc"}, **stranger.keys("e")}
        called(fresh, fresh.call(four), four)
    without_d = roster_of(parties[name] for name in "abc")
    with refused(fresh, UnknownMember):
        _upload(fresh.site("a", roster=without_d), fresh.call(keys), keys, fresh)
    called(fresh, fresh.call(keys), keys)


def _upload(site: SiteSum, call: SumCall, keys: dict[str, bytes], cohort: Cohort) -> None:
    site.upload(call, keys=keys, change=[cohort.update("a")], sink=lambda _: None, contribution=NOTHING_CLAIMED)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda call: call["cohort"].append(call["cohort"][0]), id="S3 a site twice"),
        pytest.param(lambda call: call["cohort"].reverse(), id="unsorted"),
        pytest.param(lambda call: call["cohort"][1].update(key_sha256=call["cohort"][0]["key_sha256"]), id="one key"),
        pytest.param(lambda call: call.update(threshold=1), id="S5 an extra field"),
        pytest.param(lambda call: call["cohort"][0].update(weight=9), id="S5 an extra field inside"),
        pytest.param(lambda call: call.update(round=True), id="S6 a bool as round"),
        pytest.param(lambda call: call.update(round=1.0), id="S6 a float as round"),
        pytest.param(lambda call: call["cohort"][0].update(site=["a"]), id="S7 a list as name"),
        pytest.param(lambda call: call["cohort"][0].update(site={"a": 1}), id="S7 an object as name"),
        pytest.param(lambda call: call["cohort"][0].update(site="../a"), id="S7 a path as name"),
        pytest.param(lambda call: call.update(parameters=0), id="nothing to sum"),
        pytest.param(lambda call: call.pop("start_sha256"), id="no start"),
    ],
)
def test_a_call_has_one_shape(fresh: Cohort, spoil: Callable[[dict[str, Any]], object]) -> None:
    """S3, S5, S6, S7. A call names a site twice, has a field more, a bool for a number, a list for a name.

    Powers: writes any JSON. Control: the exact shape is read, and answered.
    """
    keys = fresh.keys()
    payload = json.loads(fresh.call(keys).to_payload())
    spoil(payload)
    with refused(fresh, MalformedSigned):
        called(fresh, SumCall.from_payload(canonical.dumps(payload), where="call"), keys)
    called(fresh, SumCall.from_payload(fresh.call(keys).to_payload(), where="call"), keys)


def test_a_cohort_too_small_for_the_plan_is_refused(fresh: Cohort) -> None:
    """S4. The cohort is so small that what the plan promises cannot be kept: of two sites each sees the other.

    Powers: chooses who is called. Control: the plan's whole cohort is answered.
    """
    keys = fresh.keys()
    for few in ("ab", "abc"):  # three could not stand in for a lost helper
        with refused(fresh, UnsafePlan):
            called(fresh, fresh.call({name: keys[name] for name in few}), keys)
    called(fresh, fresh.call(keys), keys)


def test_nobody_uploads_twice_in_a_round(asked: Asked) -> None:
    """S8. The same call comes a second time, so that the site masks its update once more, with other seeds.

    Powers: repeats and reorders messages. Control: the first upload stands, and the sum comes out.
    """
    with refused(asked.cohort, SumUploaded):
        asked.cohort.upload("a", asked.call, asked.keys)
    asked.opens()


def test_a_round_belongs_to_one_call(asked: Asked) -> None:
    """S9. A second call for the same round, with other sites, another start, other keys or another length.

    Powers: writes any call for a round that it has called already. Control: the first call's sum comes out.
    """
    now = asked.cohort.keys()
    for keys, changes in ((now, {}), (now, {"start": OTHER_START}), (asked.keys, {"parameters": 41})):
        call = asked.cohort.call(keys, **changes)
        with refused(asked.cohort, SumRoundTaken):
            asked.cohort.upload("a", call, keys)
        with refused(asked.cohort, BadSumPaper):  # with this round's uploads, which are for another call
            asked.help(asked.helpers[0], ALL, call=call)
        for name in ALL:
            with refused(asked.cohort, SumRoundTaken):
                asked.cohort.ledgers[name].bind(call, me=name, active_sha256="ab" * 32, sites=ALL)
    asked.opens()


def test_sites_that_start_elsewhere_are_in_no_common_sum(asked: Asked, parties: dict[str, Party]) -> None:
    """S11. Each site is shown a start model of its own, so that its part of the sum can be told by it.

    Powers: sends unlike starts and calls to unlike sites (Pasquini et al. 2021). Lacks: an upload for the call that the
    helpers answer. Control: uploads for one start are summed.
    """
    for name in "cd":  # they are sent another model, and answer for it
        other = Cohort(plan=asked.cohort.plan, parties=parties, folder=asked.cohort.folder.parent / f"at {name}")
        call = asked.cohort.call(asked.keys, start=OTHER_START)
        keys = {**asked.keys, name: other.site(name).offer_key()}
        call = call.model_copy(update={"cohort": other.call(keys).cohort})
        asked.uploads[f"other {name}"] = other.upload(name, call, keys)
    helper = asked.helpers[0]
    mixed = [asked.uploads[name][0].label for name in ("a", "b", "other c", "other d")]
    sealed = {name[-1]: asked.uploads[name][0].capsules[helper] for name in ("a", "b", "other c", "other d")}
    with refused(asked.cohort, BadSumPaper):
        asked.help(helper, ALL, labels=mixed, sealed=sealed)
    asked.opens()


def test_an_older_round_is_over(asked: Asked) -> None:
    """S12. A round below the newest is asked for again, for an upload or for help, now that its sum is wanted.

    Powers: remembers every call. Control: the newest round is answered.
    """
    server, old = asked.server(), dict(asked.keys)
    call = asked.next_round(start=OTHER_START)
    newest = Asked(asked.cohort, asked.keys, call, {}).upload_again(call, seed=2)
    for helper in asked.helpers:
        with refused(asked.cohort, SumRoundTaken, RoundKeyGone):
            asked.cohort.help(helper, server)
        with refused(asked.cohort, SumRoundTaken, RoundKeyGone):
            asked.cohort.reveal(helper, server, asked.helpers[:1])
    with refused(asked.cohort, SumRoundTaken):
        asked.cohort.upload("a", asked.call, old)
    with refused(asked.cohort, SumRoundTaken):  # nor one that was never called
        asked.cohort.ledgers["a"].begin(asked.cohort.call(asked.keys, round_number=1, start="12" * 32), me="a")
    total = newest.helped().finish()
    assert total.weight == 4


def test_a_revoked_site_is_in_no_cohort(fresh: Cohort, parties: dict[str, Party]) -> None:
    """S12. A site that was revoked, or whose time is over, is called along, to stand for an honest one.

    Powers: the keys of that site. Control: while it is a member the call is answered.
    """
    keys = fresh.keys()
    call = fresh.call(keys)
    with refused(fresh, MemberNotActive):
        _upload(fresh.site("a", roster=roster_of(parties.values(), revoked=["d"])), call, keys, fresh)
    _upload(fresh.site("a"), call, keys, fresh)


# -- the set of uploads ------------------------------------------------------------------------------------------------


def test_no_sum_of_fewer_sites_than_the_plan_says(asked: Asked) -> None:
    """S13. Help is asked for a set of fewer sites than m, in the end for that of one.

    Powers: shows helpers any set of true uploads. Control: m of them are summed.
    """
    assert asked.cohort.plan.thresholds().min_sites == 3
    for size in (0, 1, 2):
        for few in combinations(ALL, size):
            for name in ALL:
                with refused(asked.cohort, BadSumPaper, sites=[name]):
                    asked.reveal(name, few, asked.helpers[:1])
            with refused(asked.cohort, BadSumPaper):
                asked.help(asked.helpers[0], few)
    asked.opens(ALL[:3])


def test_one_upload_counts_once(asked: Asked) -> None:
    """S14. One site stands in the set several times, so that two sites look like three.

    Powers: repeats labels. Control: three different ones are summed.
    """
    helper = asked.helpers[0]
    for doubled in (["a", "b", "b"], ["a", "a", "a"], ["a", "b", "c", "c"]):
        with refused(asked.cohort, BadSumPaper):
            asked.help(helper, doubled)
        with refused(asked.cohort, BadSumPaper):
            asked.reveal(helper, doubled, asked.helpers[:1])
    with pytest.raises(BadSumPaper):
        asked.cohort.server(asked.call, ["a", "b", "a"])
    asked.opens(["a", "b", "c"])


def test_a_helper_answers_for_one_set(asked: Asked) -> None:
    """S15. After a helper's answer for one set another is asked for: the difference of two sums is a site's update.

    Powers: shows any set of true uploads, as often as it likes. Control: the first set's sum comes out.
    """
    first, *_ = asked.helpers
    asked.help(first, ALL)
    for other in combinations(ALL, 3):
        with refused(asked.cohort, OtherSet):
            asked.help(first, other)
    asked.opens()


def test_the_same_sites_with_other_uploads_are_another_set(asked: Asked) -> None:
    """S15. A colluding site signs two uploads, so that the same sites make two sets, and a helper answers for both.

    Powers: one site signs what it likes, also twice for one call. Control: the first set's sum comes out.
    """
    liar = next(name for name in ALL if name != asked.helpers[0])
    honest = asked.uploads[liar]
    asked.help(asked.helpers[0], ALL)
    asked.uploads[liar] = ByHand(asked.cohort, liar, asked.call, asked.keys).build()
    with refused(asked.cohort, OtherSet):
        asked.help(asked.helpers[0], ALL)
    asked.uploads[liar] = honest
    asked.opens()


def test_the_same_question_has_the_same_answer(asked: Asked) -> None:
    """S16. The same set is asked for again, in the hope of another answer.

    Powers: repeats messages; restarts the site between them. Control: which is the point: the same bytes come again.
    """
    first, *_ = asked.helpers
    once = asked.help(first, ALL)
    assert asked.help(first, list(reversed(ALL))) == once
    shares = asked.reveal(first, ALL, asked.helpers[1:2])
    assert asked.reveal(first, ALL, asked.helpers[1:2]) == shares
    asked.opens()


def test_who_carries_no_masks_helps_nobody(asked: Asked) -> None:
    """S17. Help is asked of a site that is none of the call's helpers.

    Powers: asks anybody. Control: the helpers answer.
    """
    for name in asked.others:
        with refused(asked.cohort, BadSumPaper):
            asked.help(name, ALL)
    asked.opens()


def test_a_label_of_a_stranger_is_in_no_set(asked: Asked, parties: dict[str, Party]) -> None:
    """S18. A label by a site of the coordinator's own, outside the cohort, fills the set up to m.

    Powers: makes sites, keys and labels; two honest uploads and its own would make three. Control: three of the cohort.
    """
    helper = asked.helpers[0]
    mine = resigned(asked.uploads["c"][0].label, signer=parties["e"].signer, sender="e")
    sealed = {**asked.capsules(["a", "b"], to=helper), "e": asked.uploads["c"][0].capsules[helper]}
    with refused(asked.cohort, BadSumPaper):
        asked.help(helper, [], labels=[*asked.labels(["a", "b"]), mine], sealed=sealed)
    in_the_name_of_c = resigned(asked.uploads["c"][0].label, signer=parties["e"].signer)
    with refused(asked.cohort, BadSignature):
        asked.help(
            helper, [], labels=[*asked.labels(["a", "b"]), in_the_name_of_c],
            sealed=asked.capsules(["a", "b", "c"], to=helper),
        )  # fmt: skip
    asked.opens(["a", "b", "c"])


@pytest.mark.parametrize("forged", [0, 1], ids=["S20 Ed25519", "S19 ML-DSA-65"])
def test_a_label_needs_both_signatures(asked: Asked, parties: dict[str, Party], forged: int) -> None:
    """S19, S20. One of a label's two signatures is not the site's: forged, of other bytes, left out, or repeated.

    Powers: edits lines; a break of one of the two algorithms. Control: with both signatures it counts.
    """
    line = asked.uploads["c"][0].label
    right = json.loads(line)["signatures"]
    changed = resigned(line, signer=parties["c"].signer, vector_sha256="0" * 64)
    of_other_bytes = json.loads(changed)["signatures"][forged]["sig"]
    foreign = json.loads(resigned(line, signer=parties["e"].signer))["signatures"][forged]["sig"]
    zeros = base64.b64encode(bytes(len(base64.b64decode(right[forged]["sig"])))).decode()
    for signature in (of_other_bytes, foreign, zeros, ""):
        signatures = [dict(one) for one in right]
        signatures[forged]["sig"] = signature
        _refused_as_label(asked, edited(line, signatures=signatures))
    _refused_as_label(asked, edited(line, signatures=right[:1] if forged else right[1:]))
    asked.opens()


def _refused_as_label(asked: Asked, line: bytes, *kinds: type[Exception]) -> None:
    """In c's place, at a helper, at a revealer and at an honest coordinator."""
    helper, others = asked.helpers[0], [name for name in ALL if name != "c"]
    labels = [*asked.labels(others), line]
    with refused(asked.cohort, *(kinds or (BadSignature, MalformedSigned, BadSumPaper))):  # type: ignore[arg-type]
        asked.help(helper, [], labels=labels, sealed=asked.capsules(ALL, to=helper))
    with refused(asked.cohort, *(kinds or (BadSignature, MalformedSigned, BadSumPaper))):  # type: ignore[arg-type]
        asked.reveal(helper, [], asked.helpers[:1], labels=labels, sealed=asked.capsules(ALL, to=helper))
    server = asked.cohort.server(asked.call, others)
    uploaded, words = asked.uploads["c"]
    with pytest.raises((BadSignature, MalformedSigned, BadSumPaper)):
        server.add_upload("c", label=line, capsules_of=uploaded.capsules, vector=memoryview(words))


def test_a_label_has_one_spelling(asked: Asked) -> None:
    """S21. A label is spelled anew, with spaces, other keys first or a line feed, so that its digest is another.

    Powers: edits lines without touching what is signed. Control: the site's own spelling counts.
    """
    line = asked.uploads["c"][0].label
    value = json.loads(line)
    for spelling in (
        json.dumps(value).encode(), json.dumps(value, indent=1).encode(), line + b"\n", b" " + line,
        json.dumps(dict(reversed(value.items())), separators=(",", ":")).encode(),
        line.replace(b'"payload"', b'"\\u0070ayload"'),
    ):  # fmt: skip
        assert spelling != line
        _refused_as_label(asked, spelling, MalformedSigned)
    asked.opens()


def test_each_capsule_is_its_uploaders_for_this_site(asked: Asked) -> None:
    """S22, S23, S24. Capsules of two uploaders change places, another site's capsule comes, or one with a bit changed.

    Powers: relays all capsules. Control: in their places they open.
    """
    first, second, _ = asked.helpers
    right = asked.capsules(ALL, to=first)
    flipped = bytearray(right["a"])
    flipped[200] ^= 1
    for wrong in (
        right | {"a": right["b"], "b": right["a"]}, right | {"a": asked.uploads["a"][0].capsules[second]},
        right | {"a": bytes(flipped)}, right | {"a": b""}, right | {"a": right["a"] + b"x"},
    ):  # fmt: skip
        with refused(asked.cohort, BadCapsule):
            asked.help(first, ALL, sealed=wrong)
        with refused(asked.cohort, BadCapsule):
            asked.reveal(first, ALL, [second], sealed=wrong)
    asked.opens()


def test_every_label_comes_with_its_capsule(asked: Asked) -> None:
    """S25. A capsule is left out, or there is one without a label, or a label is left out whose capsule stays.

    Powers: relays what it likes. Control: one of each is answered.
    """
    helper = asked.helpers[0]
    right = asked.capsules(ALL, to=helper)
    for labels, sealed in (
        (asked.labels(ALL), {name: right[name] for name in "abc"}), (asked.labels("abc"), right),
        (asked.labels(ALL), {}), (asked.labels(ALL), {**right, "e": right["a"]}),
    ):  # fmt: skip
        with refused(asked.cohort, BadSumPaper):
            asked.help(helper, [], labels=labels, sealed=sealed)
        with refused(asked.cohort, BadSumPaper):
            asked.reveal(helper, [], asked.helpers[:1], labels=labels, sealed=sealed)
    asked.opens()


def test_a_paper_of_one_kind_is_none_of_another(asked: Asked) -> None:
    """S26. A signed partial sum or shares come in the place of an upload, and each in that of the others.

    Powers: all papers of a round, each truly signed. Control: each counts as what it is.
    """
    first, second, third = asked.helpers
    server = asked.server()
    partial, words = asked.help(first, ALL)
    shares = asked.reveal(first, ALL, [third])
    label = asked.uploads[first][0].label
    for line in (partial, shares):
        _refused_as_label(asked, line, MalformedSigned)
    for line in (label, shares):
        with pytest.raises(MalformedSigned):
            server.add_partial(first, statement=line, vector=memoryview(words))
    server.add_partial(first, statement=partial, vector=memoryview(words))
    statement, words = asked.help(second, ALL)
    server.add_partial(second, statement=statement, vector=memoryview(words))
    assert server.close_partials() == (third,)
    for line in (label, partial):
        with pytest.raises(MalformedSigned):
            server.add_shares(first, statement=line)
    for name in ALL[:3]:
        server.add_shares(name, statement=asked.reveal(name, ALL, [third]))
    assert np.array_equal(server.finish().words[:-TAIL_WORDS], asked.cohort.plain(ALL))


def test_a_label_in_my_name_is_the_one_that_i_sent(asked: Asked, parties: dict[str, Party]) -> None:
    """S27. A second label truly signed with the site's keys comes in its name: made before a restore, or by a thief.

    Powers: a label for this call with the site's own signatures. Control: the one in its ledger counts.
    """
    first, *_ = asked.helpers
    mine = resigned(asked.uploads[first][0].label, signer=parties[first].signer, vector_sha256="ab" * 32)
    labels = [*asked.labels([name for name in ALL if name != first]), mine]
    with refused(asked.cohort, BadSumPaper):
        asked.help(first, [], labels=labels, sealed=asked.capsules(ALL, to=first))
    with refused(asked.cohort, BadSumPaper):
        asked.reveal(first, [], asked.helpers[1:2], labels=labels, sealed=asked.capsules(ALL, to=first))
    asked.opens()


def test_labels_of_another_round_are_in_no_set(asked: Asked) -> None:
    """S28. Labels and capsules of an earlier round come with this round's call.

    Powers: keeps all that it was sent. Control: this round's own are summed.
    """
    old = dict(asked.uploads)
    call = asked.next_round(start=OTHER_START)
    newest = Asked(asked.cohort, asked.keys, call, dict(old)).upload_again(call, seed=2)
    helper = newest.helpers[0]
    for stale in ("a", "b", "abcd"):
        labels = [(old if name in stale else newest.uploads)[name][0].label for name in ALL]
        sealed = {name: (old if name in stale else newest.uploads)[name][0].capsules[helper] for name in ALL}
        with refused(asked.cohort, BadSumPaper):
            newest.help(helper, [], labels=labels, sealed=sealed)
    assert newest.helped().finish().weight == 4


def test_unlike_sets_at_two_helpers_give_noise(asked: Asked) -> None:
    """S29. One helper is shown a set, another helper another, to combine their answers.

    Powers: shows each helper what it likes; does any arithmetic with the answers. Control: like sets give the sum.
    """
    first, second, third = asked.helpers
    server = asked.server()
    for name, sites in ((first, ALL), (second, ALL[:3]), (third, ALL)):
        _, words = asked.help(name, sites)
        by_liar = partial_by_hand(asked, name, server, words)  # as if it had signed this set
        server.add_partial(name, statement=by_liar, vector=memoryview(words))
    with pytest.raises(MasksRemain):
        server.finish()
    left = server._total
    assert is_noise(left[:-TAIL_WORDS])
    for sites in (ALL, ALL[:3], ALL[3:]):
        assert is_noise(left[:-TAIL_WORDS] - asked.cohort.plain(sites))
    assert all(int(word) not in range(5) for word in left[-TAIL_WORDS:-1])


# -- recovery of lost helpers ------------------------------------------------------------------------------------------


def test_no_more_helpers_are_lost_than_the_plan_says(asked: Asked) -> None:
    """S31. More helpers are called lost than f, so that the shares of all of them come, and every mask opens.

    Powers: says of anybody that it is lost. Control: one may be.
    """
    for lost in (*combinations(asked.helpers, 2), tuple(asked.helpers)):
        for name in ALL:
            with refused(asked.cohort, BadSumPaper, sites=[name]):
                asked.reveal(name, ALL, sorted(lost))
    server = asked.server()
    statement, words = asked.help(asked.helpers[0], ALL)
    server.add_partial(asked.helpers[0], statement=statement, vector=memoryview(words))
    with pytest.raises(HelpersLost):
        server.close_partials()
    _opens_without(asked, asked.helpers[2])


def _opens_without(asked: Asked, lost: str) -> None:
    """The control of recovery: the sum comes out without that helper."""
    server = asked.server()
    for name in asked.helpers:
        if name != lost:
            statement, words = asked.help(name, ALL)
            server.add_partial(name, statement=statement, vector=memoryview(words))
    missing = server.close_partials()
    for name in [name for name in ALL if name != lost]:
        server.add_shares(name, statement=asked.reveal(name, ALL, missing))
    assert np.array_equal(server.finish().words[:-TAIL_WORDS], asked.cohort.plain(ALL))


def test_only_helpers_are_lost(asked: Asked) -> None:
    """S32. The list of the lost has somebody who carries no masks, is empty, names one twice, or a stranger.

    Powers: writes any list. Control: one helper of the call.
    """
    one = asked.helpers[0]
    for lost in ([], [one, one], [asked.others[0]], ["e"], [""], [one, asked.others[0]]):
        with refused(asked.cohort, BadSumPaper):
            asked.reveal("a", ALL, lost)
    _opens_without(asked, one)


def test_the_list_of_lost_helpers_is_sorted(parties: dict[str, Party], tmp_path: Path) -> None:
    """S32. The same lost helpers are named in another order, to count as another list.

    Powers: writes any list. Control: in their order, with two of five allowed.
    """
    plan = plan_of(NAMES[:5], collude=0, vanish=2)
    five = Asked.make(Cohort(plan=plan, parties=parties, folder=tmp_path / "sites"))
    lost = five.helpers[:2]
    with refused(five.cohort, BadSumPaper):
        five.reveal("a", NAMES[:5], list(reversed(lost)))
    five.reveal("a", NAMES[:5], lost)
    with refused(five.cohort, OtherSet):  # nor part of them afterwards
        five.reveal("a", NAMES[:5], lost[:1])


def test_a_site_reveals_for_one_list_of_lost_helpers(asked: Asked) -> None:
    """S33. After one lost helper another one is called lost: with both columns every mask would be open.

    Powers: says of anybody that it is lost, one after the other. Control: the first list's sum comes out.
    """
    first, second, third = asked.helpers
    for name in ALL:
        asked.reveal(name, ALL, [third])
        for other in (first, second):
            with refused(asked.cohort, OtherSet, sites=[name]):
                asked.reveal(name, ALL, [other])
    _opens_without(asked, third)


def test_help_and_shares_are_for_the_same_set(asked: Asked) -> None:
    """S34. Shares are asked for another set than help was, before it or after it.

    Powers: chooses order and set of all questions. Control: for the same set both are given.
    """
    first, second, third = asked.helpers
    asked.help(first, ALL)
    with refused(asked.cohort, OtherSet):
        asked.reveal(first, ALL[:3], [third])
    asked.reveal(second, ALL, [third])
    with refused(asked.cohort, OtherSet):
        asked.help(second, ALL[:3])
    for name in asked.others:
        asked.reveal(name, ALL, [third])
        with refused(asked.cohort, OtherSet):
            asked.reveal(name, ALL[:3], [third])
    _opens_without(asked, third)


def test_shares_without_the_uploads_are_not_given(asked: Asked) -> None:
    """S35. Shares are asked for without the labels of a set, or without what was sealed for this site.

    Powers: leaves out what it likes. Control: with the whole set they are given.
    """
    lost = asked.helpers[:1]
    for labels, sealed in (([], {}), ([], asked.capsules(ALL, to="a")), (asked.labels(ALL), {})):
        with refused(asked.cohort, BadSumPaper):
            asked.reveal("a", [], lost, labels=labels, sealed=sealed)
    asked.reveal("a", ALL, lost)


def test_a_helper_that_answered_may_be_called_lost(asked: Asked) -> None:
    """S36. A helper has answered, and is called lost all the same, so that its column is opened as well.

    Powers: keeps the helper's answer, and gets t sites' shares of its masks. Control: which is the point: the column is
    what the answer was the sum of, and the sum is the only thing that is learned.
    """
    first, second, third = asked.helpers
    server = asked.server()
    for name in (first, second):
        statement, words = asked.help(name, ALL)
        server.add_partial(name, statement=statement, vector=memoryview(words))
    _, answered = asked.help(third, ALL)
    missing = server.close_partials()
    assert missing == (third,)
    for name in ALL:
        server.add_shares(name, statement=asked.reveal(name, ALL, missing))
    with_masks = server._total.copy()
    total = server.finish()
    assert np.array_equal(with_masks - total.words, words_of(answered))
    for name in ALL:  # a single vector without its masks of the open column is still under the others
        own = words_of(asked.uploads[name][1])
        assert is_noise(own[:-TAIL_WORDS])
    for name in ALL:
        with refused(asked.cohort, OtherSet, sites=[name]):
            asked.reveal(name, ALL, [second])


def test_one_helper_less_leaves_noise(asked: Asked) -> None:
    """S37. All helpers but one answer, and the coordinator takes what it has.

    Powers: all but one of the partial sums, no share. Control: with the last one it is the sum.
    """
    for left_out in asked.helpers:
        server = asked.server()
        for name in asked.helpers:
            if name != left_out:
                statement, words = asked.help(name, ALL)
                server.add_partial(name, statement=statement, vector=memoryview(words))
        rest = server._total[:-TAIL_WORDS]
        assert is_noise(rest)
        assert is_noise(rest - asked.cohort.plain(ALL))
    asked.opens()


# -- rounds that are said to have failed -------------------------------------------------------------------------------


def test_a_round_said_to_have_failed_gets_no_second_set(asked: Asked) -> None:
    """S38. The sum is had, the round is called failed, and tried again from the same start without one of the sites.

    Powers: lies about what failed; new keys, new masks, a new round. Control: the same sites are summed again.
    """
    asked.opens()  # which nobody but the coordinator knows
    call = asked.next_round()
    again = asked.upload_again(call)
    assert again.helpers == asked.helpers
    for smaller in combinations(ALL, 3):
        for helper in again.helpers:
            with refused(asked.cohort, OtherSet, sites=[helper]):
                again.help(helper, smaller)
            with refused(asked.cohort, OtherSet, sites=[helper]):
                again.reveal(helper, smaller, again.helpers[:1])
    again.opens()


def test_a_round_said_to_have_failed_loses_no_other_helper(asked: Asked) -> None:
    """S33, S38. Two tries from one start each lose another helper, and sites told unlike sets give two sums.

    Powers: tells each site its own set (once), and calls a helper lost in the first try, another in the second. The
    strategy search found this: the two sums differ by one site. Control: the same helper may be lost again.
    """
    first, second, third = asked.helpers
    for name in ALL:
        asked.reveal(name, ALL, [third])
    again = asked.upload_again(asked.next_round())
    for name in ALL:
        for other in (first, second):
            with refused(asked.cohort, OtherSet, sites=[name]):
                again.reveal(name, ALL, [other])
    _opens_without(again, third)


def test_one_start_has_one_cohort(parties: dict[str, Party], tmp_path: Path) -> None:
    """S38. The same start is called with one site less: sites that never helped remember nothing but their upload.

    Powers: any cohort of the plan's sites; only helpers are asked for more than an upload. The strategy search found
    this too. Control: another start has a cohort of its own.
    """
    plan = plan_of(NAMES[:5], collude=1, vanish=0, min_sites=3)
    five = Asked.make(Cohort(plan=plan, parties=parties, folder=tmp_path / "sites"))
    five.opens()
    for left_out in NAMES[:5]:
        rest = [name for name in NAMES[:5] if name != left_out]
        keys = five.cohort.keys()
        call = five.cohort.call({name: keys[name] for name in rest}, round_number=2)
        for name in rest:
            with refused(five.cohort, OtherCohort, sites=[name]):
                five.cohort.upload(name, call, keys)
    call = five.next_round(start=OTHER_START)
    assert five.upload_again(call, seed=2).helped().finish().weight == 5


def test_the_same_update_enters_no_other_sum(asked: Asked) -> None:
    """S38. The same update is asked for again in a round from another start, where other sites may be summed.

    Powers: calls any number of rounds; the site has nothing new to send. Control: a newly trained one is taken.
    """
    call = asked.next_round(start=OTHER_START)
    sent: list[memoryview] = []
    with pytest.raises(UpdateReused):
        asked.cohort.site("a").upload(
            call, keys=asked.keys, change=[asked.cohort.update("a")], sink=sent.append, contribution=NOTHING_CLAIMED
        )
    assert asked.cohort.ledgers["a"].label_of(call) is None
    asked.upload_again(call, seed=2).helped().finish()


def test_a_key_of_another_round_opens_nothing(asked: Asked) -> None:
    """Own. Sites are called with a key that was used before, whose secret may be known by now.

    Powers: keeps every signed key; steals old ones. Control: with the keys that the sites offer now they answer.
    """
    old = dict(asked.keys)
    now = asked.cohort.keys()
    for reused in ("a", "abcd"):
        keys = {name: (old if name in reused else now)[name] for name in ALL}
        call = asked.cohort.call(keys, round_number=2, start=OTHER_START)
        with refused(asked.cohort, RoundKeyGone):
            asked.cohort.upload("a", call, keys)
    call = asked.next_round(start=OTHER_START)
    asked.upload_again(call, seed=2).helped().finish()


def test_a_site_seals_to_keys_that_their_sites_have_signed(fresh: Cohort, parties: dict[str, Party]) -> None:
    """Own. The coordinator puts a key of its own, or another site's, in the place of a site's key, as in SecAgg+.

    Powers: makes keys, calls and lines; one colluding site signs for it. Control: the sites' own keys are sealed to.
    """
    keys = fresh.keys()
    thief = Cohort(plan=fresh.plan, parties={**parties, "b": new_party("b")}, folder=fresh.folder / "thief")
    colluding = Cohort(plan=fresh.plan, parties=parties, folder=fresh.folder / "colluding").site("d").offer_key()
    for line, kind in (
        (thief.site("b").offer_key(), BadSignature), (colluding, (BadSignature, BadSumPaper)), (b"{}", MalformedSigned),
        (edited(keys["b"], payload=base64.b64encode(canonical.dumps(payload_of(keys["b"]) | {"number": 7})).decode()),
         BadSignature),
    ):  # fmt: skip
        wrong = {**keys, "b": line}
        kinds = kind if isinstance(kind, tuple) else (kind,)
        with refused(fresh, *kinds):
            called(fresh, fresh.call(wrong), wrong)
    with refused(fresh, BadSumPaper):  # named by the call, and not shown
        called(fresh, fresh.call(keys), {name: keys[name] for name in "acd"})
    with refused(fresh, BadSumPaper):  # shown, and another one named
        called(fresh, fresh.call(keys), {**keys, "b": thief.site("b").offer_key()})
    called(fresh, fresh.call(keys), keys)


def test_the_check_words_say_how_many_sites_were_summed(asked: Asked) -> None:
    """Own. A set is summed and passed off as one of more sites.

    Powers: the whole sum. Control: the check words are the number of sites, and the weight theirs.
    """
    total = asked.helped(ALL[:3]).finish()
    assert list(total.words[-TAIL_WORDS:]) == [3] * CHECK_WORDS + [3]
    assert list(total.contributions) == ALL[:3]
