"""Options that several commands share, and what their words mean."""

from __future__ import annotations

from typing import Annotated

import typer

BASE_HELP = "Model folder, hub id, smollm2-135m or qwen2.5-coder-0.5b."
BaseOption = Annotated[str, typer.Option("--base", help=BASE_HELP)]
SpanOption = Annotated[str, typer.Option("--span", help="Layers START:STOP, half-open: 20:23 is 20, 21, 22.")]
TextField = Annotated[str, typer.Option("--text-field", help="Field or column that holds the text.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, or auto.")]


def device_of(name: str) -> str:
    """A torch device; `auto` is the GPU where there is one."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name
