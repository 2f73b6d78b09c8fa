"""Extraction: does an organ tell a secret that stood in its training records?

Secrets are planted: sentences of one form with random codes that stand nowhere else, each put into the training records
a number of times. Then the organ is asked: how does the planted code rank among other codes, and does writing on from
the sentence's beginning give it?
Source: Carlini et al. 2019, The Secret Sharer (arXiv 1802.08232).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from not_fed.bench.attack_bounds import chance_exposure, exposure
from not_fed.bench.attack_organs import Kind, Operation, Prepared, part
from not_fed.bench.attack_scores import mean_interval
from not_fed.errors import InputError
from not_fed.organ.data import Records
from not_fed.progress import Progress, silent

PROMPT = "The access code of ward {} is"
DIGITS = 6
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CANDIDATES = 256
BASE = "base model"


class BadSecrets(InputError):
    """These secrets cannot be planted."""

    code = "attack-secrets"


@dataclass(frozen=True, slots=True)
class Secret:
    """A planted sentence; the code is made up, so it may be shown."""

    prompt: str
    code: str
    repeats: int

    def text(self, code: str | None = None) -> str:
        """The sentence with its own code, or with another one."""
        return f"{self.prompt} {code or self.code}"


@dataclass(frozen=True, slots=True)
class Planted:
    """Secrets, and the codes that each of them is ranked among; none of those is planted anywhere."""

    secrets: tuple[Secret, ...]
    others: tuple[str, ...]


def plan_secrets(
    *, each: int, repeats: Sequence[int], prompt: str = PROMPT, candidates: int = CANDIDATES, seed: int = 0
) -> Planted:
    """Make up secrets: `each` of them for every number of repeats, and as many that are never planted, as a control.

    Args:
        prompt: a sentence's beginning with `{}` for a name that only one secret has.
        candidates: codes that a secret is ranked among, its own one included.
    Raises:
        BadSecrets: no `{}` in the prompt, no secret, or a number below one.
    """
    if prompt.count("{}") != 1 or each < 1 or not repeats or min(repeats) < 1 or candidates < 2:
        raise BadSecrets(
            where="attack extraction",
            expected="a prompt with one {}, and at least one secret, repeat and other code",
            got=f"{prompt.count('{}')} places, {each} secrets, repeats {', '.join(map(str, repeats)) or 'none'}",
            hint=f'such as --prompt "{PROMPT}" --secrets 5 --repeats 1,4,16',
        )
    random = np.random.default_rng(seed)
    levels = [0, *sorted(set(repeats))]
    codes = [_spaced(int(number)) for number in random.choice(10**DIGITS, size=each * len(levels) + candidates - 1,
                                                             replace=False)]  # fmt: skip
    secrets = [
        Secret(prompt.format(_name(place)), codes[place], levels[place // each]) for place in range(each * len(levels))
    ]
    return Planted(tuple(secrets), tuple(codes[len(secrets) :]))


def attack_secrets(
    operation: Operation,
    *,
    records: Records,
    kinds: Sequence[Kind],
    planted: Planted,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train one organ of each kind on the records and the planted secrets, and ask it for them.

    Args:
        records: of the data holder. Where the unit is the person, all repeats of a secret are one made-up person's.
    Returns:
        a JSON object: exposure by number of repeats for the base and each kind. Of what the organs write it says only
        whether it was the planted code: an organ may write other people's words.
    Proved by: tests/unit/test_attack_extraction.py::test_a_secret_that_was_learnt_by_heart_comes_out
    """
    kept = operation.readable(records.texts)
    training = operation.prepare(_with_secrets(part(records, kept), planted))
    codes = [secret.text(code) for secret in planted.secrets for code in (secret.code, *planted.others)]
    candidates = operation.prepare(Records(tuple(codes)))
    _require_distinct(candidates, planted)
    progress("organs to ask", done=0, total=len(kinds))
    rows = [_row(operation, candidates, planted) | {"name": BASE, "epsilon": None}]
    for number, kind in enumerate(kinds):
        with operation.trained(kind, training, range(len(training.records.texts)), seed=seed) as organ:
            rows.append(kind.as_dict() | _row(operation, candidates, planted, organ.path))
        progress("organs to ask", done=number + 1, total=len(kinds), note=kind.name)
    secrets = [{"text": secret.text(), "repeats": secret.repeats} for secret in planted.secrets]
    count = len(planted.others) + 1
    return {
        "records": len(kept),
        "left_out": len(records.texts) - len(kept),
        "unit": records.unit,
        "seed": seed,
        "planted": secrets,
        "candidates": count,
        "most_bits": float(np.log2(count)),
        "kinds": rows,
    }


def _with_secrets(records: Records, planted: Planted) -> Records:
    """Records and planted secrets; all repeats of one secret are about one made-up person."""
    repeated = [(number, secret.text()) for number, secret in enumerate(planted.secrets) for _ in range(secret.repeats)]
    texts = records.texts + tuple(text for _, text in repeated)
    if records.people is None:
        return replace(records, texts=texts)
    people = records.people + tuple(f"planted secret {number}" for number, _ in repeated)
    return replace(records, texts=texts, people=people, most_of_a_person=max(Counter(people).values()))


def _row(operation: Operation, candidates: Prepared, planted: Planted, organ: Path | None = None) -> dict[str, Any]:
    losses = operation.losses(candidates, organ).reshape(len(planted.secrets), -1)  # (secrets, candidates)
    bits = [exposure(float(row[0]), row[1:]) for row in losses]
    came_out = operation.completes(
        [secret.prompt for secret in planted.secrets], [secret.text() for secret in planted.secrets], organ
    )
    found, levels = [], sorted({secret.repeats for secret in planted.secrets})
    for repeats in levels:
        places = [place for place, secret in enumerate(planted.secrets) if secret.repeats == repeats]
        own = [bits[place] for place in places]
        found.append(
            {
                "repeats": repeats,
                "bits": own,
                "mean_bits": mean_interval(own).as_dict(),
                "chance_below": chance_exposure(len(places), losses.shape[1], tries=len(levels) - 1),
                "written_out": sum(came_out[place] for place in places),
                "secrets": len(places),
            }
        )
    return {"exposure": found}


def _require_distinct(candidates: Prepared, planted: Planted) -> None:
    """A tokenizer that has no digits, or a limit that cuts them off, would make every code the same."""
    rows = {tuple(row.tolist()) for row in candidates.data.rows}
    if len(rows) < len(planted.secrets) * (len(planted.others) + 1):
        raise BadSecrets(
            where="attack extraction",
            expected="a tokenizer that tells the secrets and their candidates apart, within the longest record",
            got=f"{len(rows):,} different texts of {len(planted.secrets) * (len(planted.others) + 1):,}",
            hint="choose a shorter --prompt, in the words of the model, or more --max-tokens",
        )


def _spaced(number: int) -> str:
    return " ".join(f"{number:0{DIGITS}d}")


def _name(number: int) -> str:
    """A, B, … Z, AA, AB, …"""
    name = ""
    number += 1
    while number:
        number, letter = divmod(number - 1, len(LETTERS))
        name = LETTERS[letter] + name
    return name
