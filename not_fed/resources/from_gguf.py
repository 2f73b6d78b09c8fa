"""A GGUF file, as packages carry models, made into an ordinary Hugging Face folder once and kept in the cache.

A GGUF holds quantised weights. They are widened to float32: the base is that quantised model exactly, a little worse
than the original, and the same on every machine.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from not_fed import files
from not_fed.errors import InputError
from not_fed.progress import Progress, silent
from not_fed.resources.wheels import one_at_a_time

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

GGUF_FILE = "model.gguf"


class DemoExtraMissing(InputError):
    """The model needs a package that is not installed."""

    code = "demo-extra"


def keep_base(
    name: str, *, folder_name: str, fetch: Callable[[Path], None], tokenizer: Callable[[Path], Any],
    rebuild: Callable[[PreTrainedModel], PreTrainedModel], progress: Progress = silent,
) -> Path:  # fmt: skip
    """The base's folder in the cache; made out of its GGUF when it is not there yet.

    Args:
        folder_name: names the release and the conversion too, so that another one is made anew.
        fetch: puts the GGUF at the path that it is given.
        tokenizer: makes the tokenizer out of the folder with the GGUF.
        rebuild: the same weights under our own configuration; transformers saves no model out of a GGUF.
    Raises:
        DemoExtraMissing: the `gguf` package is missing.
    Guarantees:
        the folder appears whole or not at all.
    """
    bases = files.cache_folder() / "bases"
    folder = bases / folder_name
    if folder.is_dir():
        return folder
    if find_spec("gguf") is None:
        raise DemoExtraMissing(where=name, expected="the gguf package", got="not installed",
                               hint="pip install 'not-fed[demo]'; nothing was fetched")  # fmt: skip
    bases.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(bases / f".{folder_name}.lock", leftovers=f".{folder_name[:24]}.*.part"):
        if not folder.is_dir():  # another process may have made it meanwhile
            with files.new_folder(folder) as part:
                _convert(part, f"convert {name}", fetch, tokenizer, rebuild, progress)
    return folder


def _convert(
    part: Path, what: str, fetch: Callable[[Path], None], tokenizer: Callable[[Path], Any],
    rebuild: Callable[[PreTrainedModel], PreTrainedModel], progress: Progress,
) -> None:  # fmt: skip
    from not_fed.organ.split import quiet_transformers

    gguf = part / "gguf"
    gguf.mkdir()
    fetch(gguf / GGUF_FILE)
    with quiet_transformers():
        progress(what, done=0, total=3, note="tokenizer")
        tokenizer(gguf).save_pretrained(part)
        progress(what, done=1, total=3, note="weights")
        with _bar_of_ours(progress):
            quantised = load_gguf(gguf)
        progress(what, done=2, total=3, note="saving")
        rebuild(quantised).save_pretrained(part)
    shutil.rmtree(gguf)
    progress(what, done=3, total=3)


def load_gguf(folder: Path) -> PreTrainedModel:
    """The model as transformers reads it from `folder / GGUF_FILE`: float32 weights."""
    import torch
    from transformers import AutoModelForCausalLM

    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=GGUF_FILE, dtype=torch.float32, local_files_only=True
    )
    return model


def config_values(found: PretrainedConfig) -> dict[str, Any]:
    """What the GGUF says of the model, less what it says of itself."""
    values: dict[str, Any] = found.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path", "unk_token_id", "transformers_version"):
        values.pop(name, None)
    return values | {"dtype": "float32"}


@contextmanager
def _bar_of_ours(progress: Progress) -> Iterator[None]:
    """Our progress in place of the bar that transformers draws while it widens the weights."""
    from transformers import modeling_gguf_pytorch_utils as reading

    def shown(tensors: Sequence[object], **_: object) -> Iterator[object]:
        for number, tensor in enumerate(tensors):
            progress("widen the weights", done=number, total=len(tensors))
            yield tensor
        progress("widen the weights", done=len(tensors), total=len(tensors))

    before = reading.tqdm
    reading.tqdm = shown
    try:
        yield
    finally:
        reading.tqdm = before
