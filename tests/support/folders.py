"""Tiny bases as real folders on disk: a model of the family, a tokenizer built in code, safetensors weights."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from not_fed.organ.checkpoint import Base, open_base
from tests.support.tiny import VOCABULARY

WORDS = [f"w{number}" for number in range(VOCABULARY - 4)]


def save_base(model: PreTrainedModel, folder: Path, *, max_shard_size: str = "5GB") -> Base:
    """Write a model and a word tokenizer as `save_pretrained` does, and open the folder."""
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer().save_pretrained(folder)
    return open_base(folder)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word: `w0` to `w123`."""
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def records(count: int, *, seed: int = 0, shortest: int = 3, longest: int = 12) -> list[str]:
    """Records with something to learn: each word is the one before plus a step that the record keeps to."""
    texts = []
    for number in range(count):
        start, step = (number * 7 + seed * 13) % 100, 1 + (number + seed) % 3
        length = shortest + (number * 5 + seed) % (longest - shortest + 1)
        texts.append(" ".join(WORDS[(start + step * place) % len(WORDS)] for place in range(length)))
    return texts
