"""The second real model: a GGUF in parts becomes an ordinary folder that computes the same."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quants
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from not_fed import files
from not_fed.resources import qwen
from not_fed.resources.bases import find_base
from not_fed.resources.from_gguf import GGUF_FILE, load_gguf
from not_fed.resources.wheels import PinnedWheel

WIDTH, INNER, HEADS, LAYERS = 64, 96, 4, 2
LETTERS = [
    *map(chr, range(33, 127)),
    *map(chr, range(161, 173)),
    *map(chr, range(174, 256)),
    *map(chr, range(256, 324)),
]
TOKENS = [*LETTERS, "th", "the", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def write_gguf(path: Path) -> None:
    """A Qwen2 of two layers as Q4_K_M files have it: quantised, with an embedding and a head that differ a little."""
    random = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        return random.normal(scale=0.1, size=shape).astype(np.float32)

    writer = GGUFWriter(path, "qwen2")
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([TokenType.NORMAL] * (len(TOKENS) - 3) + [TokenType.CONTROL] * 3)
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(len(TOKENS) - 3)
    writer.add_eos_token_id(len(TOKENS) - 1)
    writer.add_pad_token_id(len(TOKENS) - 3)
    embedding = weight(len(TOKENS), WIDTH)
    matrices = {"output": embedding, "token_embd": embedding + 0.01 * weight(len(TOKENS), WIDTH)}
    vectors = {"output_norm.weight": weight(WIDTH)}
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        for name, rows, columns in (
            ("attn_q", WIDTH, WIDTH), ("attn_k", WIDTH // 2, WIDTH), ("attn_v", WIDTH // 2, WIDTH),
            ("attn_output", WIDTH, WIDTH), ("ffn_gate", INNER, WIDTH), ("ffn_up", INNER, WIDTH),
            ("ffn_down", WIDTH, INNER),
        ):  # fmt: skip
            matrices[f"{block}.{name}"] = weight(rows, columns)
        for name, rows in (("attn_q", WIDTH), ("attn_k", WIDTH // 2), ("attn_v", WIDTH // 2)):
            vectors[f"{block}.{name}.bias"] = weight(rows)
        vectors |= {f"{block}.{name}.weight": 1 + weight(WIDTH) for name in ("attn_norm", "ffn_norm")}
    for name, matrix in matrices.items():
        kind = GGMLQuantizationType.Q5_0 if name == "token_embd" else GGMLQuantizationType.Q8_0
        writer.add_tensor(f"{name}.weight", quants.quantize(matrix, kind), raw_dtype=kind)
    for name, vector in vectors.items():
        writer.add_tensor(name, vector)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[PinnedWheel, ...]:
    """Two pinned wheels in the cache with the halves of a small GGUF; it lies in this test's folder whole, too."""
    monkeypatch.setenv("NOT_FED_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / GGUF_FILE)
    whole = (tmp_path / GGUF_FILE).read_bytes()
    folder = tmp_path / "cache" / "wheels"
    folder.mkdir(parents=True)
    wheels = []
    for number, data in enumerate((whole[:5000], whole[5000:]), start=1):
        path = folder / f"tiny_part{number}-1-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"tiny_part{number}/data/part{number:02d}.bin", data)
        wheels.append(PinnedWheel(project=f"tiny-part{number}", version="1", file_name=path.name,
                                 sha256=files.sha256(path), size_bytes=path.stat().st_size))  # fmt: skip
    return tuple(wheels)


@pytest.fixture
def served(parts: tuple[PinnedWheel, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with the GGUF that stands for the real one."""
    monkeypatch.setattr(qwen, "QWEN_PARTS", parts)
    return tmp_path


def test_the_parts_are_joined_in_their_order(parts: tuple[PinnedWheel, ...], tmp_path: Path) -> None:
    qwen.join_parts(parts, out=tmp_path / "joined")
    assert (tmp_path / "joined").read_bytes() == (tmp_path / GGUF_FILE).read_bytes()


def test_a_converted_qwen_computes_what_its_gguf_computes(served: Path) -> None:
    """To the last bit, with the head's copy of the embedding for both."""
    base = find_base(qwen.QWEN_CODER_05B)
    assert base.config["rms_norm_eps"] == 1e-6 and base.config["tie_word_embeddings"]
    assert "quantization_config" not in base.config
    assert not (base.folder / "gguf").exists()
    ours = AutoModelForCausalLM.from_pretrained(base.folder, local_files_only=True).eval()
    theirs = load_gguf(served).eval()
    tokens = torch.arange(40, 72).reshape(1, -1)
    with torch.no_grad():
        assert not torch.equal(ours(tokens).logits, theirs(tokens).logits)  # the coarser embedding does count
        theirs.get_input_embeddings().weight.copy_(theirs.get_output_embeddings().weight)
        assert torch.equal(ours(tokens).logits, theirs(tokens).logits)


def test_a_converted_tokenizer_composes_letters_and_splits_digits(served: Path) -> None:
    folder = find_base(qwen.QWEN_CODER_05B).folder
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert tokenizer("cafe\u0301").input_ids == tokenizer("caf\u00e9").input_ids
    alone = Tokenizer.from_file(str(folder / "tokenizer.json"))  # without what transformers adds on reading
    assert alone.encode("cafe\u0301 the12").ids == tokenizer("caf\u00e9 the12").input_ids
    assert tokenizer.convert_ids_to_tokens(tokenizer("the12<|im_end|>").input_ids) == ["the", "1", "2", "<|im_end|>"]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer.model_max_length == qwen.CONTEXT_TOKENS


@pytest.mark.faults
def test_the_second_base_is_an_ordinary_folder_that_speaks() -> None:
    """Of the real model, before releases: 478 MB to fetch and two minutes, more than every change can wait for."""
    folder = qwen.qwen_coder_05b()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    assert sum(weight.numel() for weight in model.parameters()) == 494_032_768  # as published
    text = "Ventricle.  12 mm, 10½ don't"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.convert_ids_to_tokens(ids)[4:8] == ["Ġ", "Ġ", "1", "2"]
    start = tokenizer("The heart is a muscular organ that", return_tensors="pt")
    said = model.generate(**start, max_new_tokens=20, do_sample=False)
    assert "pumping blood" in tokenizer.decode(said[0])
    question = [{"role": "user", "content": "What is the heart for? One sentence."}]
    asked = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    answer = model.generate(**asked, max_new_tokens=60, do_sample=False)
    assert answer[0, -1] == qwen.END_OF_TURN  # it knows when its turn is over
