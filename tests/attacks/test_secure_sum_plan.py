"""What is tried with the plan of a secure sum, and with the parser of its papers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from not_fed.aggregation.secure.server import ServerSum
from not_fed.envelope.dsse import MalformedSigned
from not_fed.envelope.summing import MAX_UPLOAD_BYTES, Upload, verify_paper
from not_fed.keys import dsse
from not_fed.trust.plans import UnsafePlan
from tests.support.strategies import patterns
from tests.support.sums import NAMES, NOW, Cohort, Party, new_party, plan_of


@pytest.fixture(scope="module")
def parties() -> dict[str, Party]:
    return {name: new_party(name) for name in NAMES[:3]}


def test_a_sum_that_could_overflow_is_never_planned() -> None:
    """S62. Values so wide, or weights so large, that a sum of honest updates wraps round and hides a lie.

    Powers: writes the plan that the stewards are asked to sign. Control: one bit less is a plan.
    """
    for change in ({"value_bits": 31}, {"value_bits": 24, "max_weight": 100}, {"word_bits": 16, "value_bits": 16}):
        with pytest.raises(UnsafePlan):
            plan_of(NAMES[:3], **change).thresholds()
    assert plan_of(NAMES[:3], value_bits=30).thresholds().sites == 3


@pytest.mark.parametrize("change", [{"collude": 2}, {"collude": 3}, {"min_sites": 2}, {"vanish": 1}, {"min_sites": 4}])
def test_a_plan_that_protects_nobody_or_cannot_end_is_never_used(
    parties: dict[str, Party], tmp_path: Path, change: dict[str, int]
) -> None:
    """S63. A plan allows for more colluding sites than leave anybody honest, or for a sum of one honest site.

    Powers: writes any plan, and gets it past whoever makes plans. Control: the least that the rule asks for is used.
    """
    three = Cohort(plan=plan_of(NAMES[:3]), parties=parties, folder=tmp_path)
    call = three.call(three.keys())
    assert three.site("a").check(call).min_sites == 3
    unsafe = three.plan.model_copy(update=change)
    asked = three.call(three.keys(), plan_sha256=unsafe.sha256)
    with pytest.raises(UnsafePlan):
        three.site("a", plan=unsafe).check(asked)
    with pytest.raises(UnsafePlan):
        ServerSum(plan=unsafe, call=asked, roster=three.roster, now=NOW)


def test_a_paper_is_strict_json_of_bounded_size(parties: dict[str, Party], tmp_path: Path) -> None:
    """S64. A signed upload nests deeply, has numbers of five thousand digits, a key twice, NaN, or a megabyte.

    Powers: an insider, who signs any bytes with the site's own keys. Control: the same upload in its one spelling.
    """
    three = Cohort(plan=plan_of(NAMES[:3]), parties=parties, folder=tmp_path)
    keys = three.keys()
    call = three.call(keys)
    honest, _ = three.upload("a", call, keys)
    kind = "application/vnd.not-fed.sum-upload.v1+json"
    payload = dsse.parse(honest.label, payload_type=kind, where="test", max_bytes=MAX_UPLOAD_BYTES).payload
    value = json.loads(payload)
    evil = [
        b'{"a":' * 4000 + b"1" + b"}" * 4000, payload[:-1] + b',"round":' + b"9" * 5000 + b"}",
        payload[:-1] + b',"from":"b"}', payload.replace(b'"blind":null', b'"blind":NaN'),
        json.dumps({**value, "vector_sha256": "0" * (1 << 20)}).encode(), json.dumps({**value, "extra": 1}).encode(),
        json.dumps({**value, "capsules": list(value["capsules"])}).encode(), b"[]", b"", b"\xff\xfe",
    ]  # fmt: skip
    for data in evil:
        line = dsse.sign(data, payload_type=kind, signer=parties["a"].signer)
        with pytest.raises(MalformedSigned):
            verify_paper(line, Upload, call=call, site="a", roster=three.roster, now=NOW)
    assert verify_paper(honest.label, Upload, call=call, site="a", roster=three.roster, now=NOW).sender == "a"


def test_every_story_that_a_coordinator_can_tell_three_sites_shows_one_sum_or_none() -> None:
    """S65. All ways to show each honest site another set, and to call helpers lost, are tried, one after the other.

    Powers: a coordinator with c of the sites. Control: with one share less than the rule, two stories show a site.
    """
    for shares, expected in ((3, 0), (2, 2)):
        (call,) = patterns(sites=3, collude=1, helpers=3, shares=shares, vanish=1, min_sites=3)
        assert call.breaks() == expected
