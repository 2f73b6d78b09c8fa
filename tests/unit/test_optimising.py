"""The coordinator's step in a round: which moments it goes on from, and how they are kept."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from not_fed.coordinator.optimising import FOLDER, Began, take_step
from not_fed.coordinator.plan import FederationPlan
from not_fed.home import Home
from not_fed.keys import Opener, Secret, create_keys
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import Base, Place
from not_fed.organ.extract import extract
from not_fed.organ.organ import OrganInfo, read_organ
from tests.support import tiny
from tests.support.folders import save_base

SPANS = [(1, 3), (0, 1)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return save_base(tiny.tiny_llama(), tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    create_keys(folder / "keys", name="hub", passphrase=Secret(b"passphrase"), work_factor=2)
    (folder / "passphrase").write_bytes(b"passphrase\n")
    (folder / "passphrase").chmod(0o600)
    return folder


class Run:
    """The rounds of one run at one coordinator; each round's mean is its start moved by the round's own noise."""

    def __init__(self, folder: Path, base: Base, keys: Path, *, optimiser: str = "adam") -> None:
        shutil.copytree(keys, folder / "home")
        self.folder, self.base, self.home = folder, base, Home(folder / "home")
        self.opener: Opener = self.home.opener()
        self.organs: dict[int, OrganInfo] = {}
        self.plan = FederationPlan.model_validate(
            {
                "name": "hub", "federation": "tiny", "run": "first", "mode": "trusted", "sites": ["a", "b"],
                "rounds": 9, "base_sha256": base.sha256, "base": str(base.folder), "spans": SPANS,
                "training": {"lr": 1e-2, "epochs": 1, "batch_tokens": 64, "max_tokens": 32},
                "optimiser": {"name": optimiser},
            }
        )  # fmt: skip

    def take(self, number: int, *, after: int | None) -> OrganInfo:
        """Aggregate a round that began from the aggregate of round `after`; it may be taken again."""
        work = self.folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        start = self._start(number, after)
        source = torch.Generator().manual_seed(number)
        tensors = {
            name: torch.frombuffer(bytearray(place.read()), dtype=torch.float32).reshape(place.shape)
            for name, place in start.items()
        }
        whole = extract(self.base, span=Span(*self.plan.span_of(number)), out=work / "whole")
        moved = {name: tensor + 1e-3 * torch.randn(tensor.shape, generator=source) for name, tensor in tensors.items()}
        save_file(moved, work / "mean", metadata=whole.manifest.as_metadata())
        began = None if after is None else Began(round=after, organ_sha256=self.organs[after].sha256)
        out = take_step(
            work / "mean", start=start, began=began, plan=self.plan, round_number=number, home=self.home,
            opener=self.opener, work=work,
        )  # fmt: skip
        self.organs[number] = read_organ(out.rename(self.folder / f"{number}.organ"))
        return self.organs[number]

    def _start(self, number: int, after: int | None) -> dict[str, Place]:
        if after is None:
            return self.base.span_places(Span(*self.plan.span_of(number)))
        return dict(self.organs[after].places)

    def kept(self) -> set[str]:
        """Which moments lie in the home."""
        folder = self.home.folder / FOLDER
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_round_that_was_rolled_back_leaves_no_moments_behind(base: Base, keys: Path, tmp_path: Path) -> None:
    """Rounds 1, 3, 5, 7 train one span; 5 is voted down, so that 7 begins from 3 as if 5 had never been."""
    digests = []
    for name, rolled_back in (("with", True), ("without", False)):
        (tmp_path / name).mkdir()
        run = Run(tmp_path / name, base, keys)
        run.take(1, after=None)
        run.take(3, after=1)
        if rolled_back:
            assert run.take(5, after=3).sha256
        digests.append(run.take(7, after=3).sha256)
    assert digests[0] == digests[1]
    other = Run(tmp_path, base, keys)
    for number, after in ((1, None), (3, 1), (5, 3), (7, 5)):
        other.take(number, after=after)
    assert other.organs[7].sha256 != digests[0]  # control: the moments of round 5 would have shown


def test_a_step_taken_again_after_a_crash_gives_the_same_bytes(base: Base, keys: Path, tmp_path: Path) -> None:
    run = Run(tmp_path, base, keys)
    run.take(1, after=None)
    first = run.take(3, after=1).sha256
    assert run.take(3, after=1).sha256 == first
    assert run.take(5, after=3).sha256 != first


def test_moments_are_kept_by_span_and_round_and_only_as_long_as_a_round_may_begin_from_them(
    base: Base, keys: Path, tmp_path: Path
) -> None:
    run = Run(tmp_path, base, keys)
    for number, after in ((1, None), (2, None), (3, 1), (4, 2), (5, 3)):
        run.take(number, after=after)
    assert run.kept() == {"first/1-3/3.age", "first/1-3/5.age", "first/0-1/2.age", "first/0-1/4.age"}


def test_moments_are_ciphertext_and_private(base: Base, keys: Path, tmp_path: Path) -> None:
    run = Run(tmp_path, base, keys, optimiser="momentum")
    organ = run.take(1, after=None)
    before = base.span_places(Span(1, 3))
    (kept,) = (run.home.folder / FOLDER).rglob("*.age")
    assert kept.stat().st_mode & 0o777 == 0o600
    assert kept.read_bytes().startswith(b"age-encryption.org/")
    name, tensor = max(load_file(organ.path).items(), key=lambda item: item[1].numel())
    start = torch.frombuffer(bytearray(before[name].read()), dtype=torch.float32).reshape(tensor.shape)
    moment = (tensor.double() - start.double()).float().numpy().tobytes()
    assert moment[:16] not in kept.read_bytes()
    plain = (tmp_path / "work" / "moments").read_bytes()
    assert plain[:8] not in kept.read_bytes()


@pytest.mark.parametrize("damage", ["gone", "junk"])
def test_moments_that_cannot_be_read_begin_anew_and_the_log_says_so(
    base: Base, keys: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path, base, keys)
    run.take(1, after=None)
    whole = run.take(3, after=1).sha256
    kept = run.home.folder / FOLDER / "first" / "1-3" / "1.age"
    kept.unlink() if damage == "gone" else kept.write_bytes(b"x" * 400)
    with caplog.at_level(logging.WARNING):
        assert run.take(3, after=1).sha256 != whole
    assert "begin anew" in caplog.text
