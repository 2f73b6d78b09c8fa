"""A server's step from where a round began towards the mean: on tensors against Flower's, on files against itself."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedYogi
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from not_fed import canonical, files
from not_fed.aggregation.optimisers import BadOptimiser, ServerOptimiser
from not_fed.envelope.header import MAX_METADATA_BYTES
from not_fed.envelope.manifest import KEY
from not_fed.organ import optimise as optimising
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import Base
from not_fed.organ.extract import extract
from not_fed.organ.optimise import NotAState, Overshot, StartDiffers, optimise
from not_fed.organ.organ import OrganInfo, read_organ
from tests.support import tiny
from tests.support.folders import save_base

ADAM = ServerOptimiser(name="adam", rate=0.05)
KINDS = [ServerOptimiser(name="fedavg", rate=0.5), ServerOptimiser(name="momentum"), ADAM, ServerOptimiser(name="yogi")]
NAMED = [one.name for one in KINDS]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return save_base(tiny.tiny_llama(), tmp_path_factory.mktemp("base") / "base")


@pytest.fixture
def start(base: Base, tmp_path: Path) -> OrganInfo:
    return extract(base, span=Span(1, 3), out=tmp_path / "start.organ")


def moved(start: OrganInfo, out: Path, *, seed: int, weights: int = 2) -> Path:
    """A mean of a round: the start with noise, and a manifest as a mean has it."""
    source = torch.Generator().manual_seed(seed)
    tensors = {name: t + 1e-3 * torch.randn(t.shape, generator=source) for name, t in load_file(start.path).items()}
    parents = {f"{number:064x}": 1.0 for number in range(weights)}
    how = {"mode": "mean", "dp": None, "weights": parents}
    manifest = canonical.loads(start.manifest.as_metadata()[KEY].encode(), where="test")
    manifest |= {"training": how, "parents": sorted(parents)}
    save_file(tensors, out, metadata={KEY: canonical.dumps(manifest).decode()})
    return out


def described(organ: Path) -> str:
    """What an organ file says of itself."""
    with safe_open(organ, framework="pt") as tensors:
        return str(tensors.metadata()[KEY])


def stepped(
    mean: Path, start: OrganInfo, optimiser: ServerOptimiser, folder: Path, *, state: Path | None = None
) -> OrganInfo:
    """One step into a folder of its own, whose `state` is the new one."""
    folder.mkdir(exist_ok=True)
    return optimise(
        mean, start=start.places, parents=(start.sha256,), optimiser=optimiser, state=state,
        new_state=folder / "state", out=folder / "organ",
    )  # fmt: skip


# against Flower ------------------------------------------------------------------------------------------------------


def rounds(optimiser: ServerOptimiser, start: NDArray[np.float32], means: list[NDArray[np.float32]]) -> Tensor:
    """Ours over some rounds, on one tensor."""
    at = torch.tensor(start).double()
    moments: dict[str, Tensor] = {}
    for mean in means:
        difference = torch.tensor(mean).double() - at
        moments = {which: optimiser.moment(which, difference, moments.get(which)) for which in optimiser.moments}
        at = optimiser.step(at, difference, moments).float().double()
    return at


def test_momentum_steps_as_flowers_fedavgm_does(monkeypatch: pytest.MonkeyPatch) -> None:
    start, means = a_run()
    strategy = FedAvgM(server_learning_rate=0.7, server_momentum=0.8)
    strategy.current_arrays = ArrayRecord({"w": Array(start)})
    for mean in means:
        monkeypatch.setattr(FedAvg, "aggregate_train", lambda *_, mean=mean: (ArrayRecord({"w": Array(mean)}), None))
        strategy.aggregate_train(1, [])
    theirs = strategy.current_arrays["w"].numpy()
    ours = rounds(ServerOptimiser(name="momentum", rate=0.7, momentum=0.8), start, means)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize(("name", "kind"), [("adam", FedAdam), ("yogi", FedYogi)])
def test_adam_and_yogi_step_as_flowers_do_but_for_what_is_stated(
    name: str, kind: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower begins v at 0 and its Adam corrects the bias; both are undone here, and all else has to agree."""
    start, means = a_run()
    ours = ServerOptimiser(name=name, rate=0.03, beta1=0.8, beta2=0.95, tau=1e-2)  # type: ignore[arg-type]
    strategy = kind(eta=0.03, beta_1=0.8, beta_2=0.95, tau=1e-2)
    strategy.v_t = {"w": np.full_like(start, 1e-4)}
    strategy.current_arrays = {"w": start}
    for number, mean in enumerate(means, start=1):
        monkeypatch.setattr(FedAvg, "aggregate_train", lambda *_, mean=mean: (ArrayRecord({"w": Array(mean)}), None))
        if name == "adam":
            strategy.eta = 0.03 * (1 - 0.8 ** (number + 1)) / np.sqrt(1 - 0.95 ** (number + 1))
        arrays, _ = strategy.aggregate_train(number, [])
        strategy.current_arrays = {"w": arrays["w"].numpy()}
    theirs = strategy.current_arrays["w"]
    np.testing.assert_allclose(rounds(ours, start, means).numpy(), theirs, rtol=2e-6, atol=2e-7)
    with pytest.raises(AssertionError):  # control: one other setting is another result
        other = ServerOptimiser(name=name, rate=0.03, beta1=0.8, beta2=0.9, tau=1e-2)  # type: ignore[arg-type]
        np.testing.assert_allclose(rounds(other, start, means).numpy(), theirs, rtol=2e-6, atol=2e-7)


def a_run() -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
    """A start and the means of four rounds; some coordinates never move."""
    source = np.random.default_rng(0)
    start = source.normal(size=(40, 7)).astype(np.float32)
    still = source.random(start.shape) < 0.1
    means = [(start + np.where(still, 0, source.normal(0, 0.1, start.shape))).astype(np.float32) for _ in range(4)]
    return start, means


# on files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plain", [ServerOptimiser(), ServerOptimiser(name="momentum", rate=1.0, momentum=0.0)])
def test_rate_one_without_momentum_is_plain_fedavg_bit_for_bit(
    plain: ServerOptimiser, start: OrganInfo, tmp_path: Path
) -> None:
    mean = moved(start, tmp_path / "mean", seed=1)
    before = files.sha256(mean)
    assert stepped(mean, start, plain, tmp_path / "out").sha256 == before
    assert not (tmp_path / "out" / "state").exists()
    again = moved(start, tmp_path / "mean", seed=1)
    assert stepped(again, start, ADAM, tmp_path / "adam").sha256 != before  # control


@pytest.mark.parametrize("optimiser", KINDS, ids=NAMED)
def test_two_rounds_on_files_are_the_formulas_on_tensors(
    optimiser: ServerOptimiser, start: OrganInfo, tmp_path: Path
) -> None:
    at, state = start, None
    want = {name: tensor.double() for name, tensor in load_file(start.path).items()}
    moments: dict[str, dict[str, Tensor]] = {name: {} for name in want}
    for number in (1, 2):
        mean = moved(start, tmp_path / f"mean-{number}", seed=number)
        means = load_file(mean)
        at = stepped(mean, at, optimiser, tmp_path / f"round-{number}", state=state)
        state = tmp_path / f"round-{number}" / "state" if optimiser.moments else None
        for name, tensor in want.items():
            difference = means[name].double() - tensor
            moments[name] = {
                which: optimiser.moment(which, difference, moments[name].get(which)) for which in optimiser.moments
            }
            want[name] = optimiser.step(tensor, difference, moments[name]).float().double()
    found = load_file(at.path)
    for name, tensor in want.items():
        torch.testing.assert_close(found[name], tensor.float(), rtol=0, atol=0)


@pytest.mark.parametrize("optimiser", KINDS, ids=NAMED)
def test_the_same_round_taken_again_gives_the_same_bytes(
    optimiser: ServerOptimiser, start: OrganInfo, tmp_path: Path
) -> None:
    digests = set()
    for attempt in "ab":
        organ = stepped(moved(start, tmp_path / "mean", seed=3), start, optimiser, tmp_path / attempt)
        kept = tmp_path / attempt / "state"
        digests.add((organ.sha256, files.sha256(kept) if kept.exists() else ""))
    assert len(digests) == 1
    assert bool(digests.pop()[1]) == bool(optimiser.moments)


def test_the_manifest_names_optimiser_start_and_organs(start: OrganInfo, tmp_path: Path) -> None:
    organ = stepped(moved(start, tmp_path / "mean", seed=1), start, ADAM, tmp_path / "out")
    how = organ.manifest.training or {}
    assert how["optimiser"] == {"name": "adam", "rate": 0.05, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3}
    assert organ.manifest.parents == (f"{0:064x}", f"{1:064x}", start.sha256)
    many = next(  # the most that a mean can name; a step beside them is too much
        count
        for count in range(250, 0, -1)
        if len(described(moved(start, tmp_path / "mean-2", seed=1, weights=count))) <= MAX_METADATA_BYTES
    )
    organ = stepped(tmp_path / "mean-2", start, ADAM, tmp_path / "out-2")
    how = organ.manifest.training or {}
    assert len(described(organ.path)) <= MAX_METADATA_BYTES
    assert (how.get("organs"), "weights" in how, len(organ.manifest.parents)) == (many, False, 2)
    assert organ.manifest.parents[1] == start.sha256


def test_a_state_of_anything_else_is_refused(start: OrganInfo, tmp_path: Path) -> None:
    mean = moved(start, tmp_path / "mean", seed=1)
    stepped(mean, start, ADAM, tmp_path / "one")
    state = tmp_path / "one" / "state"
    (tmp_path / "junk").write_bytes(b"no state")
    save_file({"m/x": torch.zeros(1)}, tmp_path / "foreign")
    for number, (optimiser, given) in enumerate(
        [
            (ServerOptimiser(name="adam", rate=0.1), state),
            (ServerOptimiser(name="yogi"), state),
            (ADAM, tmp_path / "junk"),
            (ADAM, tmp_path / "foreign"),
            (ADAM, start.path),
        ]
    ):
        with pytest.raises(NotAState):
            stepped(mean, start, optimiser, tmp_path / f"bad-{number}", state=given)
        assert not (tmp_path / f"bad-{number}" / "organ").exists()
    stepped(mean, start, ADAM, tmp_path / "two", state=state)  # control


def test_a_start_of_other_tensors_is_refused(base: Base, start: OrganInfo, tmp_path: Path) -> None:
    mean, other = moved(start, tmp_path / "mean", seed=1), extract(base, span=Span(0, 1), out=tmp_path / "other")
    with pytest.raises(StartDiffers):
        stepped(mean, other, ADAM, tmp_path / "out")


@pytest.mark.parametrize("name", ["fedavg", "adam"])
def test_a_step_that_overshoots_leaves_no_organ(name: str, start: OrganInfo, tmp_path: Path) -> None:
    mean = moved(start, tmp_path / "mean", seed=1)
    with pytest.raises(Overshot):
        stepped(mean, start, ServerOptimiser(name=name, rate=1e300), tmp_path / "out")  # type: ignore[arg-type]
    assert not (tmp_path / "out" / "organ").exists()
    assert read_organ(mean)  # the mean is still there


def test_memory_does_not_grow_with_the_number_of_tensors(
    start: OrganInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more than two whole tensors of an organ are ever alive at once."""
    alive: list[Any] = []
    real, most = optimising._tensor, 0

    def counted(place: Any) -> Tensor:  # noqa: ANN401
        nonlocal most
        tensor = real(place)
        alive.append(weakref.ref(tensor))
        most = max(most, sum(one() is not None for one in alive))
        return tensor

    monkeypatch.setattr(optimising, "_tensor", counted)
    stepped(moved(start, tmp_path / "mean", seed=1), start, ADAM, tmp_path / "out")
    assert len(alive) == 2 * 3 * len(start.places)  # two states and the organ, each from start and mean
    assert most <= 5  # of one tensor, and what the tensor before it has not let go yet


@pytest.mark.parametrize(
    "settings",
    [{"name": "sgd"}, {"rate": 0.0}, {"rate": float("nan")}, {"momentum": 1.0}, {"beta2": -0.1}, {"tau": 0.0}],
)
def test_a_setting_out_of_range_is_refused(settings: Mapping[str, Any]) -> None:
    with pytest.raises(BadOptimiser):
        ServerOptimiser(**settings)
