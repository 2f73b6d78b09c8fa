"""Engines agree with each other and with plain autograd, and refuse what they cannot bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from not_fed.errors import FitError
from not_fed.privacy.engine.book_keeping import BookKeeping
from not_fed.privacy.engine.engine import (
    COARSE_TOLERANCE,
    Engine,
    SentinelDisagrees,
    Wanted,
    check_against_autograd,
    choose_engine,
)
from not_fed.privacy.engine.experts import ExpertsTrace, SinksTrace
from not_fed.privacy.engine.opacus_hooks import OpacusHooks
from not_fed.privacy.engine.per_record import PerRecordLoop
from not_fed.privacy.engine.traces import MatrixTrace, NormTrace
from not_fed.privacy.engine.trainable import CannotClip, SpanInTraining, UnknownModule
from tests.support.spans import TinySpan, flat
from tests.support.tiny import (
    tiny_gemma2,
    tiny_gemma3,
    tiny_gpt2,
    tiny_gpt_oss,
    tiny_llama,
    tiny_mistral,
    tiny_olmo,
    tiny_olmo2,
    tiny_phi3,
    tiny_qwen2,
    tiny_qwen3,
)

FAMILIES = [tiny_llama, tiny_mistral, tiny_qwen2, tiny_qwen3, tiny_gpt2, tiny_gpt_oss]
LATER = [tiny_gemma2, tiny_gemma3, tiny_phi3, tiny_olmo, tiny_olmo2]  # Gemma's modules are Gemma 2's
ENGINES: list[type[BookKeeping | PerRecordLoop | OpacusHooks]] = [BookKeeping, PerRecordLoop, OpacusHooks]
Build = Callable[[], PreTrainedModel]
EXACT = 1e-5  # relative


def _never(line: str) -> None:
    raise AssertionError(line)


def _span(build: Build, unit: str) -> TinySpan:
    return TinySpan.of_people(build()) if unit == "person" else TinySpan(build())


@pytest.fixture(params=ENGINES, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> type[BookKeeping | PerRecordLoop | OpacusHooks]:
    found: type[BookKeeping | PerRecordLoop | OpacusHooks] = request.param
    return found


# choosing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [*FAMILIES, *LATER], ids=lambda build: build.__name__)
def test_every_family_is_trained_by_book_keeping_without_a_word(build: Build) -> None:
    assert choose_engine(TinySpan(build()).layers, warn=_never).name == "book-keeping"


def test_a_module_without_a_rule_is_trained_one_record_at_a_time_and_that_is_said() -> None:
    said: list[str] = []
    layers = [nn.Linear(8, 8).eval(), LoudLinear(8, 8).eval()]
    engine = choose_engine(layers, warn=said.append)
    assert engine.name == "per-record loop"
    assert len(said) == 1
    assert "LoudLinear" in said[0]
    assert "layer module 1" in said[0]
    with pytest.raises(UnknownModule, match="LoudLinear"):
        choose_engine(layers, wanted="book-keeping", warn=_never)


@pytest.mark.parametrize("wanted", ["book-keeping", "loop", "opacus"])
def test_the_engine_that_was_asked_for_is_the_one(wanted: Wanted) -> None:
    engine = choose_engine(TinySpan(tiny_llama()).layers, wanted=wanted, warn=_never)
    assert engine.name == {"loop": "per-record loop"}.get(wanted, wanted)


# agreement -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["record", "person"])
@pytest.mark.parametrize("build", FAMILIES, ids=lambda build: build.__name__)
def test_engines_agree(build: Build, unit: str) -> None:
    span = _span(build, unit)
    _require_right(_engines(span), span)


@pytest.mark.parametrize("build", LATER, ids=lambda build: build.__name__)
def test_book_keeping_clips_every_family_as_plain_autograd_would(build: Build) -> None:
    span = TinySpan(build())
    _require_right([BookKeeping(span.layers)], span)


def _require_right(engines: Sequence[Engine], span: TinySpan) -> None:
    plain = torch.stack([flat(grads) for grads in span.one_by_one()])
    clip = float(plain.norm(dim=1).median())  # some are clipped and some are not
    expected = (plain * (clip / plain.norm(dim=1, keepdim=True)).clamp(max=1.0)).sum(dim=0)
    for engine in engines:
        got = flat(span.clipped_sum(engine, span.units, max_grad_norm=clip, micro_batch=3))
        assert (got - expected).norm() <= 2 * EXACT * expected.norm(), engine.name


def _engines(span: TinySpan) -> list[Engine]:
    opacus: list[Engine] = [] if hasattr(span.model.config, "num_local_experts") else [OpacusHooks(span.layers)]
    return [BookKeeping(span.layers), PerRecordLoop(span.layers), *opacus]


def test_opacus_refuses_what_it_cannot_do() -> None:
    span = TinySpan(tiny_gpt_oss())
    with pytest.raises(UnknownModule, match="GptOssAttention with weights sinks"):
        OpacusHooks(span.layers)
    for layer in span.layers:
        layer.get_submodule("self_attn").get_parameter("sinks").requires_grad_(False)
    with pytest.raises(UnknownModule, match=r"GptOssTopKRouter|GptOssExperts"):
        OpacusHooks(span.layers)
    with pytest.raises(UnknownModule, match="OlmoAttention with clip_qkv"):
        OpacusHooks(TinySpan(tiny_olmo()).layers)


def test_an_engine_leaves_the_span_as_it_found_it(kind: type[Any]) -> None:
    span = TinySpan(tiny_llama())
    engine: Engine = kind(span.layers)
    for weight in engine.parameters.values():
        weight.grad = torch.full_like(weight, 7.0)
    before = [list(vars(module)) for layer in span.layers for module in layer.modules()]
    span.clipped_sum(engine, span.units, max_grad_norm=1.0)
    for weight in engine.parameters.values():
        assert weight.requires_grad
        assert weight.grad is not None
        assert (weight.grad == 7.0).all()
        assert not hasattr(weight, "grad_sample")
    modules = [module for layer in span.layers for module in layer.modules()]
    assert [list(vars(module)) for module in modules] == before
    assert not any(m.training or m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in modules)


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt_oss])
def test_the_span_is_as_it_was_after_a_pass_that_failed(kind: type[Any], build: Build) -> None:
    span = TinySpan(build())
    if kind is OpacusHooks and build is tiny_gpt_oss:
        pytest.skip("refused before any pass")
    engine: Engine = kind(span.layers)
    before = [list(vars(module)) for layer in span.layers for module in layer.modules()]

    def losses(units: Sequence[int]) -> Tensor:
        span.losses(units)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        engine.clip_into(engine.zero_sums(), losses=losses, units=2, max_grad_norm=1.0)
    modules = [module for layer in span.layers for module in layer.modules()]
    assert [list(vars(module)) for module in modules] == before
    assert not any(m.training or m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in modules)
    assert all(weight.requires_grad and weight.grad is None for weight in engine.parameters.values())


# refusals ------------------------------------------------------------------------------------------------------------


def _tied() -> list[nn.Module]:
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    return [first, second]


def _used_twice() -> list[nn.Module]:
    layer = nn.Linear(8, 8)
    return [layer, layer]


def _unregistered() -> list[nn.Module]:
    layer = nn.Linear(8, 8)
    layer.extra = torch.zeros(8, requires_grad=True)
    return [layer]


NEVER: dict[str, Callable[[], list[nn.Module]]] = {
    "batch normalisation": lambda: [nn.Linear(8, 8), nn.BatchNorm1d(8)],
    "batch normalisation without weights": lambda: [nn.Linear(8, 8), nn.BatchNorm1d(8, affine=False)],
    "tied weights": _tied,
    "one layer twice": _used_twice,
    "a tensor that nobody owns": _unregistered,
    "nothing to train": lambda: [nn.Linear(2, 2).requires_grad_(False)],
}


@pytest.mark.parametrize("layers", NEVER.values(), ids=NEVER)
def test_what_no_clip_can_exist_for_is_refused_by_every_engine(
    layers: Callable[[], list[nn.Module]], kind: type[Any]
) -> None:
    for layer in (made := layers()):
        layer.eval()
    with pytest.raises(CannotClip):
        kind(made)
    with pytest.raises(CannotClip):
        choose_engine(made, warn=_never)


def test_a_span_in_training_mode_is_refused_by_every_engine(kind: type[Any]) -> None:
    """GPT-2 drops activations out at random there."""
    span = TinySpan(tiny_gpt2())
    engine: Engine = kind(span.layers)
    span.model.train()
    with pytest.raises(SpanInTraining):
        span.clipped_sum(engine, span.units, max_grad_norm=1.0)


@pytest.mark.parametrize("shape", [(), (1,), (2, 1), (3,)], ids=str)
def test_anything_but_one_loss_for_each_unit_is_refused_by_every_engine(
    kind: type[Any], shape: tuple[int, ...]
) -> None:
    """A caller that counts otherwise than the engine would get another clip than it believes."""
    layer = nn.Linear(8, 8).eval()
    engine: Engine = kind([layer])

    def losses(_: Sequence[int]) -> Tensor:
        result: Tensor = layer(torch.ones(2, 3, 8, requires_grad=True)).sum().expand(shape)
        return result

    if kind is PerRecordLoop and shape == (1,):
        return  # right: it asks for one unit at a time
    with pytest.raises(CannotClip, match="one for each"):
        engine.clip_into(engine.zero_sums(), losses=losses, units=2, max_grad_norm=1.0)


class LoudLinear(nn.Linear):
    """A subclass that computes something else."""

    def forward(self, hidden: Tensor) -> Tensor:
        return 2 * super().forward(hidden)


class SquaredRMSNorm(nn.Module):
    """Called a norm, but its weight does not simply multiply."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * self.weight.square()


class MixingRMSNorm(SquaredRMSNorm):
    """Called a norm, but one record's result depends on the others."""

    def forward(self, hidden: Tensor) -> Tensor:
        return self.weight * (hidden - hidden.mean(dim=0, keepdim=True))


@pytest.mark.parametrize(
    "module",
    [LoudLinear(8, 8), SquaredRMSNorm(), MixingRMSNorm(), nn.Embedding(8, 8), nn.Conv1d(8, 8, 1), nn.GRU(8, 8),
     nn.LayerNorm([2, 8])],
    ids=lambda module: type(module).__name__,
)  # fmt: skip
def test_book_keeping_refuses_a_module_without_a_rule(module: nn.Module) -> None:
    with pytest.raises(UnknownModule):
        BookKeeping([nn.Linear(8, 8), module])


def test_sinks_of_another_attention_than_the_eager_one_are_refused() -> None:
    span = TinySpan(tiny_gpt_oss())
    span.model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UnknownModule, match="GptOssAttention"):
        BookKeeping(span.layers)


def test_frozen_weights_are_left_alone() -> None:
    """What is not trained needs no rule; what is trained beside a frozen bias is trained alone."""
    first, frozen = nn.Linear(8, 8), nn.Linear(8, 8)
    first.bias.requires_grad = False
    frozen.requires_grad_(False)
    conv = Conv1D(4, 8)
    conv.weight.requires_grad = False
    engine = BookKeeping([nn.Sequential(first, frozen, nn.Embedding(3, 3).requires_grad_(False), conv)])
    assert set(engine.parameters) == {"0.0.weight", "0.3.bias"}


# modules used in another way than book-keeping's rules are for -------------------------------------------------------


class Odd(nn.Module):
    """A layer that uses its parts in an odd way."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first, self.second, self.how = nn.Linear(8, 8), nn.Linear(8, 8), how

    def forward(self, hidden: Tensor) -> Any:  # noqa: ANN401  # what calling a module is typed as
        if self.how == "twice":
            return self.second(self.first(self.first(hidden)))
        if self.how == "never":
            return self.first(hidden)
        if self.how == "unused":
            return self.first(hidden) + 0 * self.second(hidden).detach()
        if self.how == "overwritten":
            result = self.first(inner := hidden.clone())
            inner.mul_(2)
            return self.second(result)
        if self.how == "one row for all":
            return hidden + self.second(self.first(hidden.mean(dim=0, keepdim=True)))
        if self.how == "keyword":
            return self.second(self.first(input=hidden))
        if self.how == "behind, then zeros":
            return hidden + self.second(self.first(hidden) + linear(hidden, self.first.weight))
        return self.second(self.first(hidden)) + linear(hidden, self.first.weight)  # "behind"

    def losses(self, units: Sequence[int]) -> Tensor:
        hidden = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(4))[list(units)].requires_grad_()
        result: Tensor = self(hidden)
        return result.square().sum(dim=(1, 2))


@pytest.mark.parametrize(
    ("how", "got"),
    [
        ("twice", "more than once"),
        ("never", "not run"),
        ("unused", "does not depend on it"),
        ("overwritten", "overwritten"),
        ("one row for all", "1 rows"),
        ("keyword", "other than one tensor"),
    ],
)
def test_a_module_used_in_an_odd_way_is_refused(how: str, got: str) -> None:
    layer = Odd(how).eval()
    engine = BookKeeping([layer])
    with pytest.raises(UnknownModule, match=f"layer module 0.*{got}"):
        engine.clip_into(engine.zero_sums(), losses=layer.losses, units=2, max_grad_norm=1.0)
    assert all(weight.requires_grad for weight in engine.parameters.values())


def test_a_second_backward_pass_is_refused() -> None:
    layer = Odd("behind").eval()
    engine = BookKeeping([layer])

    def losses(units: Sequence[int]) -> Tensor:
        each = layer.losses(units)
        torch.autograd.backward(each.sum(), retain_graph=True)
        return each

    with pytest.raises(UnknownModule, match="more than one backward"):
        engine.clip_into(engine.zero_sums(), losses=losses, units=2, max_grad_norm=1.0)


@pytest.mark.parametrize("how", ["twice", "never", "unused", "behind"])
def test_the_loop_takes_modules_used_in_any_way(how: str) -> None:
    layer = Odd(how).eval()
    check_against_autograd(PerRecordLoop([layer]), losses=layer.losses)


def test_a_pass_without_gradients_is_refused() -> None:
    layer = nn.Linear(8, 8).eval()
    engine = BookKeeping([layer])
    with pytest.raises(UnknownModule, match="input must require one"):
        engine.clip_into(
            engine.zero_sums(), losses=lambda _: layer(torch.zeros(2, 3, 8)).sum((1, 2)), units=2, max_grad_norm=1.0
        )


# the sentinel --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["record", "person"])
@pytest.mark.parametrize("build", FAMILIES, ids=lambda build: build.__name__)
def test_the_sentinel_is_silent_about_known_families(build: Build, unit: str) -> None:
    span = _span(build, unit)
    for engine in _engines(span):
        check_against_autograd(engine, losses=span.losses)
    span.autocast = True
    check_against_autograd(BookKeeping(span.layers), losses=span.losses, tolerance=COARSE_TOLERANCE)
    low = _span(lambda: build().bfloat16(), unit)
    check_against_autograd(BookKeeping(low.layers), losses=low.losses)


def test_the_sentinel_catches_a_module_that_is_not_what_its_name_says() -> None:
    """A weight used behind its module's back: no hook can see that, plain autograd does."""
    layer = Odd("behind").eval()
    with pytest.raises(SentinelDisagrees):
        check_against_autograd(BookKeeping([layer]), losses=layer.losses)


def test_the_sentinel_sees_what_lies_behind_weights_that_are_zero() -> None:
    """As low-rank factors begin, and layers that are put in from zero: what is behind has no gradient yet."""
    layer = Odd("behind, then zeros").eval()
    nn.init.zeros_(layer.second.weight)
    with pytest.raises(SentinelDisagrees):
        check_against_autograd(BookKeeping([layer]), losses=layer.losses)
    assert not layer.second.weight.any()


@pytest.mark.parametrize("part", ["squared_norms", "sums"])
@pytest.mark.parametrize(
    ("trace", "off"),
    [(MatrixTrace, 0.01), (ExpertsTrace, 0.01), (NormTrace, 1.0), (SinksTrace, 50.0)],
    ids=["matrices", "experts", "norms", "sinks"],
)
def test_the_sentinel_catches_a_rule_that_is_wrong(
    trace: type[Any], off: float, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one percent where the rule is for matrices; by much where weights are a small part of the whole gradient."""
    right = getattr(trace, part)
    if part == "squared_norms":
        monkeypatch.setattr(trace, part, lambda self: right(self) * (1 + 2 * off))
    else:
        monkeypatch.setattr(trace, part, lambda self, f: ((name, total * (1 + off)) for name, total in right(self, f)))
    span = TinySpan(tiny_gpt_oss())
    with pytest.raises(SentinelDisagrees):
        check_against_autograd(BookKeeping(span.layers), losses=span.losses)


def test_the_sentinel_catches_units_that_depend_on_each_other(kind: type[Any]) -> None:
    layer = nn.Linear(8, 8).eval()
    hidden = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(4))

    def losses(units: Sequence[int]) -> Tensor:
        result: Tensor = layer(hidden[list(units)].requires_grad_())
        return (result - result.mean(dim=0, keepdim=True) / 2).square().sum(dim=(1, 2))

    if kind is PerRecordLoop:
        check_against_autograd(kind([layer]), losses=losses)  # each unit is alone there
        return
    with pytest.raises(SentinelDisagrees):
        check_against_autograd(kind([layer]), losses=losses)


@pytest.mark.parametrize("rows", [2, 4])
def test_the_sentinel_catches_a_layout_that_does_not_put_units_first(rows: int) -> None:
    """Positions before units; and the rows of people that take turns instead of following each other."""
    layer = nn.Linear(8, 8).eval()
    hidden = torch.randn(2, rows, 8, generator=torch.Generator().manual_seed(4))

    def losses(units: Sequence[int]) -> Tensor:
        result: Tensor = layer(hidden[list(units)].transpose(0, 1).contiguous().requires_grad_())
        return result.square().sum(dim=(0, 2))

    with pytest.raises(SentinelDisagrees):
        check_against_autograd(BookKeeping([layer]), losses=losses)


def test_the_sentinel_refuses_weights_outside_the_span_that_would_learn_too(kind: type[Any]) -> None:
    """Their gradient would be nobody's to clip."""
    span = TinySpan(tiny_llama())
    engine: Engine = kind(span.layers)
    check_against_autograd(engine, losses=span.losses)
    span.model.base_model.norm.requires_grad_(requires_grad=True)
    with pytest.raises(CannotClip, match="alone"):
        check_against_autograd(engine, losses=span.losses)
    span.model.base_model.norm.requires_grad_(False)
    hidden: list[Tensor] = [torch.zeros((), requires_grad=True)]  # held where no engine can find it
    with pytest.raises(CannotClip):
        check_against_autograd(engine, losses=lambda units: span.losses(units) + hidden[0])


def test_what_an_engine_refuses_is_a_matter_of_parts_that_do_not_fit() -> None:
    assert {error.exit_code for error in (UnknownModule, CannotClip, SpanInTraining, SentinelDisagrees)} == {
        FitError.exit_code
    }
