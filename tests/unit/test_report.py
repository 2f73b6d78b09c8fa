"""The report says what the numbers say, shows whatever it is given as text, and needs nothing but itself."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import not_fed.report
from not_fed.errors import NotFedError
from not_fed.report import terminal_summary, write_report
from not_fed.report.claims import headline, verdict
from not_fed.report.figures import PicturesMissing
from not_fed.report.shape import BadResult, Score, read_result
from not_fed.report.words import perplexity
from tests.support.federated import SITES, federated

HOSTILE = "$x^{$<script>alert(1)</script>\"'& https://evil.example/\u202e\x1b[2J"
LOADERS = set("script link img iframe object embed audio video base form image foreignobject".split())  # noqa: SIM905
ALL_THREE = "cardiology, neurology and orthopaedics"
VOID = {"meta", "br", "hr", "img", "link", "base", "input"}


class Page(HTMLParser):
    """What a browser would make of it: tags, attributes, words and headings; tags must close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in {tag}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def headings(self) -> list[str]:
        return [tag for tag, _ in self.tags if re.fullmatch(r"h[1-6]", tag)]

    def sections(self) -> list[str | None]:
        return [attributes.get("id") for tag, attributes in self.tags if tag == "section"]


def page_of(result: dict[str, Any], tmp_path: Path) -> Page:
    write_report(result, out=tmp_path / "report.html", overwrite=True)
    return Page((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_the_page_has_every_section_and_says_its_conclusion_first(tmp_path: Path) -> None:
    page = page_of(federated(), tmp_path)
    assert page.sections() == [
        "perplexity", "losses", "traffic", "server", "privacy", "passports", "refused", "time", "again",
    ]  # fmt: skip
    assert page.headings()[0] == "h1"
    assert page.headings().count("h2") == 9
    assert headline(read_result(federated())) in page.text


def test_every_number_of_the_perplexity_table_is_in_the_page_and_in_the_terminal(tmp_path: Path) -> None:
    result = federated()
    page, screen = page_of(result, tmp_path), terminal_summary(result)
    scores = [score for row in result["perplexity"].values() for score in row.values()]
    assert len(scores) == 36
    for score in scores:
        interval = f"{perplexity(score['ci_low'])} to {perplexity(score['ci_high'])}"
        assert f"{perplexity(score['value'])} {interval}" in page.text
        assert f"{perplexity(score['value'])} ({math.floor(score['ci_low'])}-{math.ceil(score['ci_high'])})" in screen


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [
        (0.55, "reads all three specialities better than the base model: mean perplexity 38.8 instead of 70.5"),
        (
            0.99,
            f"reads no speciality better than the base model ({ALL_THREE} about the same)",
        ),
        (1.30, f"reads no speciality better than the base model ({ALL_THREE} worse)"),
        (math.inf, f"reads no speciality better than the base model ({ALL_THREE} worse)"),
    ],
)
def test_the_conclusion_follows_the_numbers(aggregate: float, expected: str, tmp_path: Path) -> None:
    result = federated(aggregate=aggregate)
    assert expected in headline(read_result(result))
    assert expected in page_of(result, tmp_path).text


def test_a_partial_gain_is_told_as_one() -> None:
    result = federated()
    result["perplexity"]["non-private: aggregate"]["neurology"] = {"value": 90.0, "ci_low": 88.0, "ci_high": 92.0}
    assert "reads cardiology and orthopaedics better than the base model, neurology worse" in headline(
        read_result(result)
    )


def test_better_needs_intervals_that_do_not_touch() -> None:
    base = Score(value=70, ci_low=66, ci_high=75)
    assert verdict(Score(value=60, ci_low=56, ci_high=65.9), base) == "better"
    assert verdict(Score(value=60, ci_low=56, ci_high=66), base) == "about the same"
    assert verdict(Score(value=80, ci_low=75.1, ci_high=85), base) == "worse"
    assert verdict(Score(value=math.nan), base) == "worse"
    assert verdict(Score(value=60), base) == "better"  # without an interval the value stands for it


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "no piece of a record was found on the server"),
        ({"found": ["text, utf-8: run 1, message 7"]}, "one piece of plaintext found on the server"),
        ({"planted_found": False}, "whether the server saw plaintext is not known"),
        ({"planted": ["text", "key"], "planted_found": ["text"]}, "whether the server saw plaintext is not known"),
    ],
)
def test_a_search_that_proves_nothing_is_not_called_clean(
    change: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    result = federated()
    result["plaintext_check"] |= change
    assert expected in headline(read_result(result))
    page = page_of(result, tmp_path)
    assert ("no text, organ or key was found in it" in page.text) == (not change)


def test_an_attack_that_got_through_is_told(tmp_path: Path) -> None:
    result = federated()
    assert "Three attempts at cheating, and each was refused" in page_of(result, tmp_path).text
    result["refused"][1] |= {"code": "OPENED", "exit_code": 0}
    assert "Three attempts at cheating; one got through" in page_of(result, tmp_path).text
    assert "one got through" in terminal_summary(result)


def test_hostile_names_are_shown_as_text(tmp_path: Path) -> None:
    """Powers: names sites, runs, kinds and machines, writes passports. Wants: a tag, a link, a loaded address."""
    plain = json.dumps(federated())
    for victim in ("cardiology", "non-private", "sealed organ", "a processor", "smollm2-135m", "hospitals"):
        plain = plain.replace(victim, json.dumps(HOSTILE + victim)[1:-1])
    result = json.loads(plain)
    page = page_of(result, tmp_path)
    assert "<script>alert(1)</script>" in page.text, "it is there, as text"
    tags = {tag.lower() for tag, _ in page.tags}
    assert not tags & LOADERS
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        assert all((attributes.get(name) or "#").startswith("#") for name in ("href", "src", "action")), tag
        assert "evil" not in (attributes.get("style") or "")
        assert "evil" not in (attributes.get("id") or "")
    for text in (page.text, terminal_summary(result)):
        assert "\x1b" not in text
        assert "\u202e" not in text, "it would turn the words that follow"


def test_the_page_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    write_report(federated(), out=tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not re.search(r"https?:|//\w|@import|@font-face|javascript:|url\((?!#)", text)
    assert not {tag for tag, _ in page.tags} & LOADERS
    policies = [attributes["content"] or "" for tag, attributes in page.tags if "http-equiv" in attributes]
    assert [text.startswith("default-src 'none'; style-src 'unsafe-inline';") for text in policies] == [True]


def test_the_page_shows_promise_audit_and_account_of_every_private_site(tmp_path: Path) -> None:
    """And says so where an audit contradicts its promise."""
    result = federated()
    text = page_of(result, tmp_path).text
    assert "epsilon 8.00 at delta 1e-05 (one record added or removed)" in text
    assert "at least 0.84 (95% confidence), f-DP 1.01, noise 1.002 times the claimed: consistent" in text
    assert "mean_loss 2.414, noised" in text
    for number in ("9.04", "10.00", "0.96"):  # enforced, budget, left
        assert number in text
    assert "CONTRADICTS" not in text
    result["runs"][1]["passports"][0]["contradicted"] = True
    assert "CONTRADICTS THE PROMISE" in page_of(result, tmp_path).text


def test_a_reader_without_eyes_gets_the_same_page(tmp_path: Path) -> None:
    page = page_of(federated(), tmp_path)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert dict(page.tags)["html"]["lang"] == "en"
    pictures = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(pictures) == 4 + 1 + 1  # a private run keeps no loss
    assert all(picture["role"] == "img" and len(picture["aria-label"] or "") > 30 for picture in pictures)
    tables = [tag for tag, _ in page.tags if tag in ("table", "caption")]
    assert tables == ["table", "caption"] * (len(tables) // 2)
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in page.tags if tag == "th")


def palettes() -> list[dict[str, str]]:
    template = Path(not_fed.report.__file__).parent / "page.html.j2"
    blocks = re.findall(r":root \{(.*?)\}", template.read_text(encoding="utf-8"), re.DOTALL)
    found = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in blocks]
    return [palette for palette in found if "ink" in palette]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_every_colour_can_be_read_on_every_ground(theme: int) -> None:
    """WCAG 2.2 AA: 4.5 to 1 for text; the pictures' colours are names of sites too."""
    palette = palettes()[theme]
    grounds = {"paper", "card"}
    for name in palette.keys() - grounds - {"line", "tint"}:
        for ground in grounds:
            assert contrast(palette[name], palette[ground]) >= 4.5, f"{name} on {ground}"
    assert contrast(palette["ink"], palette["tint"]) >= 4.5


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def in_runs(**change: object) -> Callable[[dict[str, Any]], None]:
    def apply(result: dict[str, Any]) -> None:
        for run in result["runs"]:
            run.update(change)

    return apply


PARTS: list[tuple[str, Callable[[dict[str, Any]], None]]] = [
    ("perplexity", lambda result: result.update(perplexity={})),
    ("losses", in_runs(loss_curves={})),
    ("traffic", in_runs(deliveries=[])),
    ("passports", in_runs(passports=None)),
    ("refused", lambda result: result.update(refused=[])),
    ("time", lambda result: result.update(timeline=None)),
    ("server", lambda result: result.update(server_saw=[], plaintext_check=None)),
]


@pytest.mark.parametrize(("section", "remove"), PARTS, ids=[name for name, _ in PARTS])
def test_a_section_without_content_is_left_out(
    section: str, remove: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    result = federated()
    remove(result)
    page = page_of(result, tmp_path)
    assert section not in page.sections()
    assert len(page.sections()) == 8
    assert f"#{section}" not in {attributes.get("href") for _, attributes in page.tags}


def test_the_smallest_result_is_still_a_page(tmp_path: Path) -> None:
    page = page_of({"schema": "not-fed/federated/1"}, tmp_path)
    assert page.sections() == ["again"]
    assert terminal_summary({}) == "The sites trained a model together"


def test_one_site_one_run_and_no_interval_still_make_a_page(tmp_path: Path) -> None:
    result = {
        "sites": ["a"], "rounds": 1, "runs": [{"name": "run", "loss_curves": {"a": [[1, 0, 3.0]]}}],
        "perplexity": {"base": {"a": {"value": 9.5}}, "run: aggregate": {"a": {"value": 8.25}}},
    }  # fmt: skip
    page = page_of(result, tmp_path)
    assert "The aggregated organ reads its speciality better than the base model" in page.text
    assert "8.25" in page.text


def test_both_ways_of_writing_the_result_are_read_alike() -> None:
    long, short = federated(), federated()
    short["sites"] = list(SITES)
    short["site_titles"] = {"cardiology": "Heart and vessels"}
    short["perplexity"] = {model.replace(": ", "/"): scores for model, scores in long["perplexity"].items()}
    short["server_saw"] = {"sealed organs": {"count": 12, "bytes": 1000}}
    short["runs"][1]["epsilon"] = {"cardiology": 7.9, "neurology": 8.0, "orthopaedics": None}
    short["runs"][0]["deliveries"][0]["to"] = "cardiology"
    short["runs"][0]["loss_curves"] = {"cardiology": [4.0, None, 3.0]}
    read = read_result(short)
    assert read.perplexity == read_result(long).perplexity
    assert [site.name for site in read.sites] == list(SITES)
    assert read.titles == {"cardiology": "Heart and vessels"}
    assert (read.server_saw[0].kind, read.server_saw[0].count) == ("sealed organs", 12)
    assert read.runs[1].epsilon == 8.0, "the weakest promise holds for all"
    assert read.runs[0].deliveries[0].to == ["cardiology"]
    assert terminal_summary(short).splitlines()[0] == terminal_summary(long).splitlines()[0]


def test_many_sites_are_summed_up_instead_of_drawn(tmp_path: Path) -> None:
    result = federated()
    names = [f"site-{number}" for number in range(40)]
    result["sites"] = names
    result["runs"][0]["deliveries"] = [
        {"round": 1, "from": name, "to": names, "bytes": 9, "kind": "sealed organ"} for name in names
    ]
    page = page_of(result, tmp_path)
    assert "First round" not in page.text
    assert "What travelled" in page.text


def test_the_same_result_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_report(federated(), out=tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_report_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    write_report(federated(), out=tmp_path / "report.html")
    with pytest.raises(NotFedError):
        write_report(federated(), out=tmp_path / "report.html")
    write_report(federated(), out=tmp_path / "report.html", overwrite=True)


@pytest.mark.parametrize(
    "wrong",
    [{"schema": "not-fed/federated/9"}, {"rounds": "many"}, {"runs": [{"epsilon": 8}]}, {"perplexity": {"base": 3}}],
)
def test_another_shape_is_refused_by_name(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(BadResult) as error:
        write_report(federated() | wrong, out=tmp_path / "report.html")
    assert next(iter(wrong)) in error.value.where
    assert not (tmp_path / "report.html").exists()


def test_without_matplotlib_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(PicturesMissing) as error:
        write_report(federated(), out=tmp_path / "report.html")
    assert "not-fed[demo]" in error.value.hint


@pytest.mark.parametrize("aggregate", [0.55, 1.3, 40.0])
def test_the_summary_fits_a_small_terminal(aggregate: float) -> None:
    report = Path("out") / "report.html"
    lines = terminal_summary(federated(aggregate=aggregate), report=report).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert lines[-1].split() == ["report", str(report)]
    assert all(char.isprintable() for line in lines for char in line)
    assert any(line.startswith("privacy    Epsilon 8.00 at delta 1e-05 (one record added") for line in lines)


def test_a_summary_of_many_models_keeps_the_base_and_the_aggregates() -> None:
    result = federated()
    result["perplexity"] |= {f"non-private: site-{number}": result["perplexity"]["base"] for number in range(40)}
    lines = terminal_summary(result, report=Path("report.html")).splitlines()
    assert len(lines) <= 24
    assert sum(line.startswith("  aggregate") for line in lines) == 2
