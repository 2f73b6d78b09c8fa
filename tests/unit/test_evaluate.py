"""Perplexity is token-weighted and its interval covers what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from not_fed.organ.anatomy import Span
from not_fed.organ.evaluate import Evaluator, perplexity_of
from not_fed.organ.extract import extract
from not_fed.organ.fit import OtherBase
from not_fed.organ.split import load_tokenizer
from tests.support import tiny
from tests.support.folders import records, save_base


def test_perplexity_is_that_of_the_whole_model_over_all_tokens(tmp_path: Path) -> None:
    model, texts = tiny.tiny_llama(), records(25)
    base = save_base(model, tmp_path / "base")
    total, count = 0.0, 0
    for text in texts:
        tokens = torch.tensor([load_tokenizer(base)(text)["input_ids"]])
        with torch.no_grad():
            logits = model(input_ids=tokens).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum"))
        count += tokens.shape[1] - 1
    for span in (Span(0, 1), Span(2, 4)):
        measured = Evaluator(base, records=texts, span=span).perplexity()
        assert measured.value == pytest.approx(np.exp(total / count), rel=1e-4)
        assert measured.tokens == count
        assert measured.ci_low < measured.value < measured.ci_high


def test_an_evaluator_goes_back_to_the_base_after_an_organ(tmp_path: Path) -> None:
    base = save_base(tiny.tiny_llama(), tmp_path / "base")
    other = save_base(tiny.tiny_llama(seed=1), tmp_path / "other")
    own = extract(base, span=Span(1, 3), out=tmp_path / "own.organ").path
    evaluator = Evaluator(base, records=records(10), span=Span(1, 3))
    before = evaluator.perplexity().value
    with pytest.raises(OtherBase):
        evaluator.perplexity(extract(other, span=Span(1, 3), out=tmp_path / "o.organ").path)
    assert evaluator.perplexity(own).value == pytest.approx(before)
    assert evaluator.perplexity().value == pytest.approx(before)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """300 data sets drawn from one population: about 95 % of the intervals hold its perplexity."""
    source = np.random.default_rng(5)
    hits = 0
    for _ in range(300):
        tokens = source.integers(5, 60, size=80)
        losses = tokens * (3.0 + source.normal(0, 0.5, size=80))
        measured = perplexity_of(losses, tokens)
        hits += measured.ci_low <= np.exp(3.0) <= measured.ci_high
    assert 0.90 <= hits / 300 <= 0.985
