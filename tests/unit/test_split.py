"""A model cut at its span computes what the whole model computes, for every family."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from not_fed.organ.anatomy import FAMILIES, Span
from not_fed.organ.layout import pack, stack
from not_fed.organ.split import SplitModel
from tests.support import tiny

MODELS = [
    tiny.tiny_llama, tiny.tiny_gpt2, tiny.tiny_mistral, tiny.tiny_qwen2, tiny.tiny_qwen3, tiny.tiny_gpt_oss,
    tiny.tiny_gemma, tiny.tiny_gemma2, tiny.tiny_gemma3, tiny.tiny_gemma3_with_vision, tiny.tiny_phi3, tiny.tiny_olmo,
    tiny.tiny_olmo2,
]  # fmt: skip
SPANS = [Span(0, 2), Span(1, 3), Span(3, 4)]


def split(model: PreTrainedModel, span: Span) -> SplitModel:
    return SplitModel(model, family=FAMILIES[model.config.model_type], span=span)


def some_records(*lengths: int) -> list[Tensor]:
    source = torch.Generator().manual_seed(1)
    return [torch.randint(3, tiny.VOCABULARY, (length,), generator=source) for length in lengths]


@pytest.mark.parametrize("span", SPANS, ids=str)
@pytest.mark.parametrize("make", MODELS)
def test_prefix_and_finish_together_are_the_model(make: Callable[[], PreTrainedModel], span: Span) -> None:
    model, records = make(), some_records(9, 5, 7, 2, 9, 1)
    cut = split(model, span)
    for layout in (cut.pack(records), cut.stack(records)):
        with torch.no_grad():
            output = layout.gather(cut.finish(cut.prefix(layout), layout))
            whole = torch.cat([model.base_model(input_ids=record[None]).last_hidden_state[0] for record in records])
        assert torch.allclose(output, whole, atol=1e-5), (output - whole).abs().max()


@pytest.mark.parametrize("make", MODELS)
def test_a_record_does_not_depend_on_its_neighbours_in_a_row(make: Callable[[], PreTrainedModel]) -> None:
    cut, records = split(make(), Span(1, 3)), some_records(6, 4, 8, 3)
    together, alone = cut.pack(records), [cut.pack([record]) for record in records]
    assert (len(together.tokens) < len(records)) == cut.family.packs  # they do share rows
    packed = torch.split(together.gather(cut.prefix(together)), together.lengths.tolist())
    for rows, layout in zip(packed, alone, strict=True):
        assert torch.allclose(rows, layout.gather(cut.prefix(layout)), atol=1e-5)


def test_only_the_span_gets_gradients_and_they_are_those_of_the_whole_model() -> None:
    model, records = tiny.tiny_llama(), some_records(9, 5, 7)
    cut = split(model, Span(1, 3))
    for parameter in cut.parameters().values():
        parameter.requires_grad_()
    layout = cut.pack([record[:-1] for record in records])
    cut.losses(cut.prefix(layout), layout, torch.cat([record[1:] for record in records])).sum().backward()
    ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    for record in records:
        logits = model(input_ids=record[None]).logits[0, :-1]
        nn.functional.cross_entropy(logits, record[1:], reduction="sum").backward()
    trained = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert ours.keys() == trained.keys()
    assert all(name.startswith(("model.layers.1.", "model.layers.2.")) for name in ours)
    for name, gradient in ours.items():
        assert torch.allclose(gradient, trained[name], atol=1e-5), name


def test_every_family_is_tested_here() -> None:
    assert {make().config.model_type for make in MODELS} == set(FAMILIES)


def test_scatter_puts_back_what_gather_took() -> None:
    for lay in (pack, stack):
        layout = lay(some_records(3, 70, 5), filler=0, device=torch.device("cpu"))
        rows = torch.arange(78 * 2, dtype=torch.float32).reshape(78, 2)
        assert torch.equal(layout.gather(layout.scatter(rows)), rows)


@pytest.mark.parametrize("make", MODELS)
def test_a_layer_whose_outputs_are_all_zero_changes_nothing(make: Callable[[], PreTrainedModel]) -> None:
    model, (record,) = make(), some_records(9)
    cut = split(model, Span(1, 2))
    with torch.no_grad():
        for name, parameter in cut.parameters().items():
            if name.partition(".")[2].partition(".")[2].startswith(cut.family.outputs):
                parameter.zero_()
    reached = [split(model, span).prefix(cut.stack([record])) for span in (Span(1, 2), Span(2, 3))]
    assert torch.equal(*reached)
