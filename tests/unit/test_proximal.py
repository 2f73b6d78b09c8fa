"""FedProx: a term that holds the span near its start, in plain and in private training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from not_fed.errors import InputError
from not_fed.organ import private_steps
from not_fed.organ.anatomy import Span
from not_fed.organ.charging import PublicRecords
from not_fed.organ.checkpoint import Base
from not_fed.organ.extract import extract
from not_fed.organ.steps import Proximal
from not_fed.organ.train import TrainSettings, train
from not_fed.privacy.accounting import DpPlan
from not_fed.privacy.dp_sgd import noisy_gradient
from tests.support import tiny
from tests.support.folders import records, save_base

SPAN = Span(1, 3)
SETTINGS = TrainSettings(span=SPAN, lr=5e-3, epochs=2, batch_tokens=60, max_tokens=32, seed=3)
PLAN = DpPlan(sample_rate=0.3, steps=3, noise_multiplier=1.5, max_grad_norm=1.0, divisor=10, delta=1e-5)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return save_base(tiny.tiny_llama(), tmp_path_factory.mktemp("base") / "base")


def moved(organ: Path, start: Path) -> float:
    """How far an organ is from where it began: the L2 norm over all tensors."""
    before, after = load_file(start), load_file(organ)
    return float(torch.stack([(after[name] - before[name]).double().square().sum() for name in after]).sum().sqrt())


def test_the_term_is_the_gradient_of_the_proximal_loss() -> None:
    weights = {"a": nn.Parameter(torch.randn(3, 4)), "b": nn.Parameter(torch.randn(5))}
    start = {name: weight.detach().clone() for name, weight in weights.items()}
    proximal = Proximal(weights, mu=0.3)
    with torch.no_grad():
        for weight in weights.values():
            weight.add_(torch.randn_like(weight))
    loss = 0.15 * torch.stack([(weight - start[name]).square().sum() for name, weight in weights.items()]).sum()
    expected = torch.autograd.grad(loss, list(weights.values()))
    weights["a"].grad = torch.ones(3, 4)  # what the records' loss left; b has nothing yet
    proximal.add_to_gradients(weights)
    torch.testing.assert_close(weights["a"].grad, expected[0] + 1)
    torch.testing.assert_close(weights["b"].grad, expected[1])


def test_a_larger_mu_stays_nearer_to_the_start_and_the_manifest_names_it(base: Base, tmp_path: Path) -> None:
    start, distances = extract(base, span=SPAN, out=tmp_path / "start").path, []
    for mu in (0.0, 0.1, 10.0):
        out = tmp_path / f"{mu}.organ"
        organ = train(base, records=records(40), settings=replace(SETTINGS, proximal=mu), out=out).organ
        distances.append(moved(out, start))
        assert (organ.manifest.training or {}).get("proximal", 0.0) == mu
    assert distances[0] > distances[1] > distances[2] > 0


def test_a_resumed_run_is_held_to_its_start_and_not_to_its_resume_point(base: Base, tmp_path: Path) -> None:
    settings = replace(SETTINGS, proximal=1.0)
    whole = train(base, records=records(40), settings=settings, out=tmp_path / "whole").organ

    def stop(what: str, *, done: int, total: int, note: str = "") -> None:
        if what == "training" and done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(base, records=records(40), settings=settings, out=tmp_path / "cut", progress=stop)
    again = train(base, records=records(40), settings=settings, out=tmp_path / "cut").organ
    assert again.sha256 == whole.sha256


def test_in_a_private_step_it_is_added_after_the_noise_and_outside_the_clip(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the optimiser gets is what was released, plus the term in full, however far it is beyond the clip."""
    mu, real_add = 1e3, Proximal.add_to_gradients
    released: list[Mapping[str, Tensor]] = []
    beyond: list[float] = []

    def watched_noise(*args: Any, **options: Any) -> Mapping[str, Tensor]:  # noqa: ANN401
        gradient = noisy_gradient(*args, **options)
        released.append({name: tensor.clone() for name, tensor in gradient.items()})
        return gradient

    def watched_add(self: Proximal, parameters: Mapping[str, nn.Parameter]) -> None:
        real_add(self, parameters)
        term = {name: mu * (weight.detach() - self._start[name]) for name, weight in parameters.items()}
        for name, weight in parameters.items():
            torch.testing.assert_close(weight.grad, released[-1][name] + term[name])
        beyond.append(float(torch.stack([tensor.norm() for tensor in term.values()]).norm()) / PLAN.max_grad_norm)

    monkeypatch.setattr(private_steps, "noisy_gradient", watched_noise)
    monkeypatch.setattr(Proximal, "add_to_gradients", watched_add)
    settings = replace(SETTINGS, dp=PLAN, proximal=mu)
    organ = train(base, records=records(30), settings=settings, out=tmp_path / "o", charge=PublicRecords()).organ
    how = organ.manifest.training or {}
    assert how["dp"] == PLAN.as_claim()  # it costs nothing
    assert how["audit"]["verdict"] == "consistent"  # and the probe, which saw what was released, has no complaint
    assert beyond[0] == 0  # the first step begins at the start
    assert beyond[-1] > 1  # control: later the term is larger than a clip would let through


@pytest.mark.parametrize("mu", [-0.1, float("nan"), float("inf")])
def test_a_mu_that_is_no_number_or_pushes_away_is_refused(mu: float) -> None:
    refused: Any = pytest.raises(InputError, match="proximal")
    with refused:
        TrainSettings(span=SPAN, proximal=mu)
