"""Stand-alone training: embedding, span, final norm and head, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from not_fed.organ.anatomy import FAMILIES, Span
from not_fed.organ.charging import PublicRecords
from not_fed.organ.checkpoint import Base, open_base
from not_fed.organ.organ import read_organ
from not_fed.organ.split import SplitModel, load_split
from not_fed.organ.steps import SpanData
from not_fed.organ.train import BodyBesideAlone, TrainSettings, train
from not_fed.organ.transplant import apply_transplant, plan_transplant
from not_fed.organ.writing import write_safetensors
from not_fed.privacy.accounting import DpPlan
from tests.support import tiny
from tests.support.folders import records, save_base

SPAN = Span(1, 3)
SETTINGS = TrainSettings(span=SPAN, mode="stand-alone", lr=5e-3, epochs=2, batch_tokens=60, max_tokens=32)
MODELS = [tiny.tiny_llama, tiny.tiny_gpt2, tiny.tiny_mistral, tiny.tiny_qwen3, tiny.tiny_gpt_oss, tiny.tiny_gemma3]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return save_base(tiny.tiny_llama(), tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def alone(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An organ trained stand-alone."""
    out = tmp_path_factory.mktemp("organs") / "alone.organ"
    return train(base, records=records(40), settings=SETTINGS, out=out).organ.path


def tensors(file: Path) -> dict[str, Tensor]:
    with safe_open(file, framework="pt") as found:
        return {name: found.get_tensor(name) for name in found.keys()}  # noqa: SIM118


def only_those_layers(model: PreTrainedModel, span: Span) -> PreTrainedModel:
    """The same model built by hand with the span's layers and no others."""
    layers = getattr(model.base_model, FAMILIES[model.config.model_type].list_name)
    kept = nn.ModuleList(list(layers)[span.start : span.stop])
    setattr(model.base_model, FAMILIES[model.config.model_type].list_name, kept)
    model.config.num_hidden_layers = len(span)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[span.start : span.stop]
    return model


@pytest.mark.parametrize("make", MODELS)
def test_a_span_alone_is_the_model_of_only_those_layers(make: Callable[[], PreTrainedModel]) -> None:
    """Every loss and every gradient, against a model that never had the other layers."""
    source = torch.Generator().manual_seed(1)
    texts = [torch.randint(3, tiny.VOCABULARY, (length,), generator=source) for length in (9, 5, 7)]
    model = make()
    cut = SplitModel(model, family=FAMILIES[model.config.model_type], span=SPAN, alone=True)
    for parameter in cut.parameters().values():
        parameter.requires_grad_()
    layout = cut.pack([text[:-1] for text in texts])
    losses = cut.losses(cut.prefix(layout), layout, torch.cat([text[1:] for text in texts]))
    losses.sum().backward()
    small = only_those_layers(make(), SPAN)
    logits = [small(input_ids=text[None], use_cache=False).logits[0, :-1] for text in texts]
    expected = [
        nn.functional.cross_entropy(mine, text[1:], reduction="none") for mine, text in zip(logits, texts, strict=True)
    ]
    assert torch.allclose(losses, torch.cat(expected), atol=1e-5)
    torch.cat(expected).sum().backward()
    theirs = dict(getattr(small.base_model, cut.family.list_name).named_parameters(prefix=cut.family.list_name))
    assert theirs.keys() == cut.parameters().keys()
    for name, parameter in cut.parameters().items():
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, theirs[name].grad, atol=1e-4), name
    named = {id(parameter) for parameter in cut.parameters().values()}
    assert all(id(weight) in named for weight in model.parameters() if weight.grad is not None)


def test_what_was_trained_alone_reads_better_alone_than_what_it_began_as(base: Base, alone: Path) -> None:
    """The loss of the organ between embedding and head, on records that it has not seen."""
    from not_fed.organ.prefix import compute_prefix, prefix_key, tokenise
    from not_fed.organ.split import load_tokenizer

    data = tokenise(load_tokenizer(base), records(30, seed=9), max_tokens=32)
    model = load_split(base, span=SPAN, alone=True)
    key = prefix_key(base, span=SPAN, data=data, alone=True)
    cache = compute_prefix(model, data, key=key, micro_tokens=2048, store=None)
    held = SpanData(model=model, tokens=data, cache=cache, micro_tokens=2048)
    layout = model.pack([data.inputs(i) for i in range(30)])
    with torch.no_grad():
        before = held.losses(range(30), layout).mean()
        model.load_organ(alone)
        after = held.losses(range(30), layout).mean()
    assert after < before - 0.1


def test_an_organ_trained_alone_is_put_in_as_it_was_trained(base: Base, alone: Path, tmp_path: Path) -> None:
    organ = read_organ(alone)
    assert (organ.manifest.training or {})["mode"] == "stand-alone"
    plan = plan_transplant(organ=organ, base=base)
    assert plan.exact
    model = open_base(apply_transplant(plan, out=tmp_path / "model"))
    for name, tensor in tensors(alone).items():
        place = model.span_places(SPAN)[name]
        assert place.read() == tensor.numpy().tobytes(), name


def test_the_two_modes_do_not_share_a_prefix(base: Base, tmp_path: Path) -> None:
    """Nor a resume point: each run gives what it gives where the other never was."""
    kept: dict[str, object] = {}

    class Store:
        def load(self, key: str) -> None:
            assert key not in kept

        def save(self, key: str, tensors: object) -> None:
            kept[key] = tensors

    in_place = replace(SETTINGS, mode="in-place")

    def stop(what: str, *, done: int, total: int, note: str = "") -> None:
        if what == "training" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(base, records=records(40), settings=in_place, out=tmp_path / "o", prefix_store=Store(), progress=stop)

    def watch(what: str, *, done: int, total: int, note: str = "") -> None:
        if what == "training":
            started.append(done)

    started: list[int] = []
    train(base, records=records(40), settings=SETTINGS, out=tmp_path / "o", prefix_store=Store(), progress=watch)
    assert started[0] == 0
    assert len(kept) == 2


def test_an_interrupted_stand_alone_run_goes_on_and_ends_with_the_same_organ(
    base: Base, alone: Path, tmp_path: Path
) -> None:
    def stop(what: str, *, done: int, total: int, note: str = "") -> None:
        if what == "training" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(base, records=records(40), settings=SETTINGS, out=tmp_path / "cut", progress=stop)
    assert train(base, records=records(40), settings=SETTINGS, out=tmp_path / "cut").organ.path.read_bytes() == (
        alone.read_bytes()
    )


def test_a_private_stand_alone_run_claims_what_any_private_run_does(base: Base, alone: Path, tmp_path: Path) -> None:
    """It begins with an organ that was adapted from one without a promise, and says so."""
    organ = read_organ(alone)
    how = {"mode": "adapted", "trained": "stand-alone", "dp": None}
    metadata = replace(organ.manifest, training=how).as_metadata()
    shapes = {name: (place.dtype, place.shape, place.end - place.begin) for name, place in organ.places.items()}
    write_safetensors(tmp_path / "adapted", shapes, metadata=metadata, blocks=lambda name: organ.places[name].blocks())
    plan = DpPlan(sample_rate=0.5, steps=2, noise_multiplier=1.0, max_grad_norm=1.0, divisor=20.0, delta=1e-5)
    warned: list[str] = []
    organ = train(
        base, records=records(40), settings=replace(SETTINGS, dp=plan), out=tmp_path / "o", charge=PublicRecords(),
        init=tmp_path / "adapted", warn=warned.append,
    ).organ  # fmt: skip
    training = organ.manifest.training or {}
    assert (training["mode"], training["dp"]["noise_multiplier"]) == ("stand-alone", 1.0)
    assert any("without privacy" in line for line in warned)


def test_organs_of_other_layers_have_no_place_beside_a_span_that_is_alone(base: Base, tmp_path: Path) -> None:
    with pytest.raises(BodyBesideAlone):
        train(base, records=records(40), settings=SETTINGS, out=tmp_path / "o", body=[tmp_path / "other"])
