"""Go on after an interruption: span weights, AdamW's moments and the loss so far, in a private file.

It holds no text and no activations. Under DP everything in it was made from noised gradients; a step that was cut off
is drawn again with fresh randomness, and its first attempt was never shown to anybody.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from not_fed import files

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Resume:
    """The resume point of one run; a file left by any other run is ignored and replaced."""

    path: Path
    run: str

    @classmethod
    def beside(cls, out: Path, *, run: str) -> Resume:
        """The resume point of the run that writes `out`; `run` is a digest of all that the result depends on."""
        return cls(out.with_name(f".{out.name}.resume"), run)

    def save(
        self, parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer, curve: list[float]
    ) -> None:
        """Write the state after a finished step, whole or not at all."""
        tensors = {f"weight/{name}": parameter.detach().cpu() for name, parameter in parameters.items()}
        for name, parameter in parameters.items():
            for moment in MOMENTS:
                tensors[f"{moment}/{name}"] = optimiser.state[parameter][moment].cpu()
        metadata = {"run": self.run, "curve": json.dumps(curve)}
        files.write_atomic(self.path, save(tensors, metadata=metadata), overwrite=True)

    def restore(self, parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer) -> list[float]:
        """Load the state if it is this run's; returns the losses of the steps already done, or an empty list."""
        if not self.path.exists() or self.path.is_symlink():
            return []
        try:
            with safe_open(self.path, framework="pt") as saved:
                metadata = saved.metadata() or {}
                if metadata.get("run") != self.run:
                    return []
                curve: list[float] = json.loads(metadata["curve"])
                for name, parameter in parameters.items():
                    with torch.no_grad():
                        parameter.copy_(saved.get_tensor(f"weight/{name}"))
                    moments = {moment: saved.get_tensor(f"{moment}/{name}").to(parameter.device) for moment in MOMENTS}
                    optimiser.state[parameter] = {"step": torch.tensor(float(len(curve))), **moments}
        except (SafetensorError, KeyError, ValueError):
            return []
        return curve

    def forget(self) -> None:
        """The run is finished."""
        with suppress(FileNotFoundError):
            self.path.unlink()
