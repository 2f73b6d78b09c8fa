"""Measure what an adapted organ is worth: the table of docs/adapters.md, between two tiny models trained here.

    python -m tools.adapters [--out FILE]

Both are Llamas over bytes, of 32 and 48 coordinates and four layers, trained on this repository's pages. The organ is
layers 1 and 2 of the narrow one, trained on Python sources; those that it is measured on it has not seen. No other two
real models of one tokenizer and two widths are at hand. About three CPU minutes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from not_fed.organ.adapt import plan_adaptation
from not_fed.organ.adapt_fit import FitSettings, adapt_by_least_squares
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import Base, open_base
from not_fed.organ.evaluate import Evaluator
from not_fed.organ.extract import extract
from not_fed.organ.organ import OrganInfo, read_organ
from not_fed.organ.recover import RecoverySettings, plan_recovery, recover
from not_fed.organ.train import TrainSettings, train
from not_fed.organ.transplant import apply_transplant, plan_transplant
from not_fed.organ.writing import write_safetensors

ROOT = Path(__file__).parent.parent
SPAN, CHARACTERS = Span(1, 3), 96
STEPS, BATCH = 300, 16
RECOVERY = RecoverySettings(what="neighbours", layers=(SPAN,), steps=32, batch_tokens=1024)


def main() -> None:
    """Train, adapt, measure, and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--out", type=Path, help="write the table here too")
    out: Path | None = arguments.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        table = "\n".join(_rows(Path(folder))) + "\n"
    sys.stdout.write(table)
    if out is not None:
        out.write_text(table)


def _rows(home: Path) -> Iterator[str]:
    pages, held_pages = _texts("docs/*.md")
    sources, held_sources = _texts("not_fed/organ/*.py")
    public_sources, _ = _texts("not_fed/trust/*.py")
    public_sources = public_sources[: len(pages) // 2]
    donor = _trained(32, pages, home / "donor", seed=1)
    recipient = _trained(48, pages, home / "recipient", seed=2)
    settings = TrainSettings(span=SPAN, lr=1e-3, batch_tokens=1536, epochs=1)
    organ = train(donor, records=sources[:640], settings=settings, out=home / "trained.organ").organ
    untouched = extract(donor, span=SPAN, out=home / "untouched.organ")

    def measured(what: str, base: Base, found: OrganInfo | None = None) -> str:
        numbers = [
            Evaluator(base, records=texts, span=SPAN).perplexity(None if found is None else found.path).value
            for texts in (held_pages, held_sources)
        ]
        return f"| {what} | {numbers[0]:.2f} | {numbers[1]:.2f} |"

    yield "| | pages | sources |"
    yield "| --- | --- | --- |"
    yield measured("donor", donor)
    yield measured("donor with the organ", donor, organ)
    yield measured("recipient", recipient)
    yield measured("recipient without these layers", recipient, _left_out(recipient, home / "left-out.organ"))
    texts = {"pages": pages, "pages and other sources": pages[: len(public_sources)] + public_sources}
    for name, public in texts.items():
        control = _recovered(recipient, public, home / f"own-{len(public)}")
        yield measured(f"recipient, recovered on {name}", control)
    for name, one, carry, public in (
        ("untouched layers", untouched, 1.0, "pages"),
        ("organ, `--carry 0`", organ, 0.0, "pages"),
        ("organ, `--carry 0.5`", organ, 0.5, "pages"),
        ("organ", organ, 1.0, "pages"),
        ("organ, `--carry 0`", organ, 0.0, "pages and other sources"),
        ("organ", organ, 1.0, "pages and other sources"),
    ):
        plan = plan_adaptation(one, donor=donor, recipient=recipient)
        path = home / f"{one.path.stem}-{carry:g}-{len(public)}.organ"
        adapted = adapt_by_least_squares(plan, texts=texts[public], out=path, settings=FitSettings(carry=carry)).organ
        what = f"recipient with the {name}, adapted on {public}"
        yield measured(what, recipient, adapted)
        model = apply_transplant(plan_transplant(organ=adapted, base=recipient), out=path.with_suffix(".model"))
        yield measured(f"{what}, recovered", _recovered(open_base(model), texts[public], path.with_suffix("")))


def _texts(pattern: str) -> tuple[list[str], list[str]]:
    """Pieces of the files, and every tenth one held out."""
    whole = "".join(path.read_text() for path in sorted(ROOT.glob(pattern)))
    pieces = [whole[start : start + CHARACTERS] for start in range(0, len(whole), CHARACTERS)]
    return [one for number, one in enumerate(pieces) if number % 10], pieces[::100]


def _trained(width: int, texts: Sequence[str], folder: Path, *, seed: int) -> Base:
    """A Llama of four layers and heads of 16, trained from nothing."""
    words = _tokenizer()
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=4, head_dim=16,
        num_attention_heads=width // 16, num_key_value_heads=width // 32, max_position_embeddings=512,
        tie_word_embeddings=True, pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model, source = LlamaForCausalLM(config), torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.02, generator=source)
    tokens = torch.cat([torch.tensor(row) for row in words(list(texts))["input_ids"]])
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(STEPS):
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / 20) * (1 - step / STEPS)
        starts = torch.randint(len(tokens) - CHARACTERS, (BATCH,), generator=source)
        batch = torch.stack([tokens[start : start + CHARACTERS] for start in starts])
        optimiser.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimiser.step()
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return open_base(folder)


def _tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte."""
    symbols = ["<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE({symbol: number for number, symbol in enumerate(symbols)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>")  # noqa: S106  no password


def _left_out(base: Base, path: Path) -> OrganInfo:
    """The base's own layers, adding nothing to the stream."""
    own = extract(base, span=SPAN, out=path.with_suffix(".own"))
    numbers = {
        name: tensor * 0 if name.split(".", 2)[2].startswith(base.family.outputs) else tensor
        for name, tensor in load_file(own.path).items()
    }
    shapes = {name: (place.dtype, place.shape, place.end - place.begin) for name, place in own.places.items()}
    metadata = own.manifest.as_metadata()
    write_safetensors(path, shapes, metadata=metadata, blocks=lambda name: [numbers[name].numpy().tobytes()])
    return read_organ(path)


def _recovered(base: Base, texts: Sequence[str], out: Path) -> Base:
    recover(plan_recovery(base, texts=texts, settings=RECOVERY), out=out, keep_worse=True)
    return open_base(out)


if __name__ == "__main__":
    main()
