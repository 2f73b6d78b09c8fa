"""Go on after an interruption: span weights, AdamW's moments and what else a run must know, in a private file.

It holds no text and no activations. Under DP everything in it was made from noised gradients: a step that was cut off
is drawn again with fresh randomness, and charged again, although its first attempt was never shown to anybody.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from not_fed import files

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a resumed run finds, besides the weights and moments that were put back.

    Attributes:
        done: steps taken.
        facts: plain values of the run's own, such as its losses; JSON.
        tensors: the same for larger ones.
    """

    done: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Resume:
    """The resume point of one run; a file left by any other run is ignored and replaced.

    Attributes:
        run: a digest of all that the result depends on.
    """

    path: Path
    run: str

    @classmethod
    def beside(cls, out: Path, *, run: str) -> Resume:
        """The resume point of the run that writes `out`."""
        return cls(out.with_name(f".{out.name}.resume"), run)

    @property
    def exists(self) -> bool:
        """Whether there is one of this run."""
        return bool(self._metadata())

    def attempt(self) -> str:
        """A random name for this run from its first start to its last step, kept in the file from now on.

        Guarantees: a run whose file is lost or replaced gets another name, and so pays again for all it does.
        """
        found = self._metadata()
        if found.get("attempt"):
            return found["attempt"]
        name = secrets.token_hex(16)
        self._write({}, {"attempt": name, "done": "0", "facts": "{}"})
        return name

    def save(self, parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer, *, kept: Kept) -> None:
        """Write the state after a finished step, whole or not at all."""
        tensors = {f"own/{name}": tensor.cpu() for name, tensor in kept.tensors.items()}
        tensors |= {f"weight/{name}": parameter.detach().cpu() for name, parameter in parameters.items()}
        for name, parameter in parameters.items():
            for moment in MOMENTS:
                tensors[f"{moment}/{name}"] = optimiser.state[parameter][moment].cpu()
        attempt = self._metadata().get("attempt", "")
        self._write(tensors, {"attempt": attempt, "done": str(kept.done), "facts": json.dumps(dict(kept.facts))})

    def restore(self, parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer) -> Kept:
        """Put the state back if it is this run's; returns the rest of it, or an empty one where there is none."""
        metadata = self._metadata()
        try:
            kept = Kept(done=int(metadata["done"]), facts=json.loads(metadata["facts"]))
            return self._load(parameters, optimiser, kept) if kept.done else kept
        except (SafetensorError, KeyError, ValueError, OSError):
            return Kept()

    def forget(self) -> None:
        """The run is finished."""
        with suppress(FileNotFoundError):
            self.path.unlink()

    def _load(self, parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer, kept: Kept) -> Kept:
        with safe_open(self.path, framework="pt") as saved:
            weights = {name: saved.get_tensor(f"weight/{name}") for name in parameters}
            moments = {name: {part: saved.get_tensor(f"{part}/{name}") for part in MOMENTS} for name in parameters}
            own = {name.removeprefix("own/"): saved.get_tensor(name) for name in saved.keys() if name[:4] == "own/"}  # noqa: SIM118
        for name, parameter in parameters.items():  # all of it was there: nothing is put back by halves
            with torch.no_grad():
                parameter.copy_(weights[name])
            placed = {part: tensor.to(parameter.device) for part, tensor in moments[name].items()}
            step = torch.tensor(float(kept.done), device=parameter.device)
            optimiser.state[parameter] = {"step": step, **placed}
        return Kept(done=kept.done, facts=kept.facts, tensors=own)

    def _metadata(self) -> dict[str, str]:
        """What the file says beside its tensors, if it is this run's; else nothing."""
        if not self.path.exists() or self.path.is_symlink():
            return {}
        try:
            with safe_open(self.path, framework="pt") as saved:
                metadata: dict[str, str] = saved.metadata() or {}
        except (SafetensorError, OSError):
            return {}
        return metadata if metadata.get("run") == self.run else {}

    def _write(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        files.write_atomic(self.path, save(dict(tensors), metadata={"run": self.run, **metadata}), overwrite=True)
