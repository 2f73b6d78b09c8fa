"""The secure sum: exact, and ended by a typed abort where it cannot be had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from not_fed.aggregation.secure.ring import CHECK_WORDS, TAIL_WORDS
from not_fed.aggregation.secure.server import HelpersLost, TooFewUploads
from tests.support.sums import NAMES, Cohort, Party, new_party, plan_of


@pytest.fixture(scope="module")
def parties() -> dict[str, Party]:
    return {name: new_party(name) for name in NAMES[:5]}


def cohort(parties: dict[str, Party], folder: Path, count: int, **plan: object) -> Cohort:
    names = NAMES[:count]
    return Cohort(plan=plan_of(names, **plan), parties={name: parties[name] for name in names}, folder=folder)


def test_the_sum_of_three_sites_is_the_plain_sum(parties: dict[str, Party], tmp_path: Path) -> None:
    three = cohort(parties, tmp_path, 3)
    total = three.run()
    assert np.array_equal(total.words[:-TAIL_WORDS], three.plain("abc"))
    assert total.weight == 3
    assert list(total.words[-TAIL_WORDS:-1]) == [3] * CHECK_WORDS


def test_a_lost_helper_is_stood_in_for(parties: dict[str, Party], tmp_path: Path) -> None:
    four = cohort(parties, tmp_path, 4, vanish=1)
    call_helpers = four.call(four.keys()).helpers(3)
    total = four.run(helpers=call_helpers[1:], revealers=[name for name in "abcd" if name != call_helpers[0]])
    assert np.array_equal(total.words[:-TAIL_WORDS], four.plain("abcd"))


def test_a_site_that_sends_nothing_is_left_out_of_the_sum(parties: dict[str, Party], tmp_path: Path) -> None:
    four = cohort(parties, tmp_path, 4)
    total = four.run(uploads="abd")
    assert np.array_equal(total.words[:-TAIL_WORDS], four.plain("abd"))


def test_too_few_uploads_and_too_many_lost_helpers_end_as_such(parties: dict[str, Party], tmp_path: Path) -> None:
    with pytest.raises(TooFewUploads):
        cohort(parties, tmp_path / "a", 3).run(uploads="ab")
    with pytest.raises(HelpersLost):
        cohort(parties, tmp_path / "b", 3).run(helpers="")


@pytest.mark.parametrize("word_bits", [16, 32])
def test_a_blind_sum_is_noise_until_a_site_takes_the_masks_off(
    parties: dict[str, Party], tmp_path: Path, word_bits: int
) -> None:
    three = cohort(parties, tmp_path, 3, blind=True, quorum=2, word_bits=word_bits, value_bits=12)
    keys = three.keys()
    call = three.call(keys)
    for name in "abc":
        three.upload(name, call, keys)
    server = three.server(call, "abc")
    labels = list(server.close_uploads().labels.values())
    total = three.finish(call)
    assert total.weight is None
    assert not np.array_equal(total.words[:-TAIL_WORDS], three.plain("abc"))
    for name in "abc":
        words = total.words.copy()
        three.site(name).unblind(call, labels=labels, capsules_to_me=server.capsules_for(name), total=words)
        assert np.array_equal(words[:-TAIL_WORDS], three.plain("abc"))
        assert int(words[-1]) == 3


def test_whole_number_weights_count_inside_the_sum(parties: dict[str, Party], tmp_path: Path) -> None:
    three = cohort(parties, tmp_path, 3, max_weight=64)
    keys = three.keys()
    call = three.call(keys)
    weights = {"a": 1, "b": 64, "c": 7}
    for name, weight in weights.items():
        three.upload(name, call, keys, weight=weight)
    total = three.finish(call)
    assert np.array_equal(total.words[:-TAIL_WORDS], three.plain("abc", weights=weights))
    assert total.weight == 72
