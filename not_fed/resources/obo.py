"""As much of the OBO flat file format as an ontology of definitions needs: id, name, def, is_a, is_obsolete."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from not_fed.errors import InputError

MAX_LINE = 1 << 20
_ESCAPES = {"n": "\n", "t": "\t", "W": " "}  # after any other character a backslash means that character
_QUOTED = re.compile(r'\s*"((?:[^"\\]|\\.)*)"', re.DOTALL)


class BadObo(InputError):
    """The text is not an ontology in OBO format."""

    code = "bad-obo"


@dataclass(frozen=True, slots=True)
class Term:
    """One term: `definition` is empty when it has none; its references are left out."""

    id: str
    name: str
    definition: str
    parents: tuple[str, ...]
    obsolete: bool


@dataclass(frozen=True, slots=True)
class Ontology:
    """Terms by id, in the file's order, and the release that the header names."""

    version: str
    terms: Mapping[str, Term]
    _ancestors: dict[str, frozenset[str]] = field(default_factory=dict, repr=False, compare=False)

    def ancestors(self, term: str) -> frozenset[str]:
        """The term and everything that it is a kind of; unknown parents and cycles end there."""
        if term not in self._ancestors:
            found: set[str] = set()
            waiting = [term]
            while waiting:
                current = waiting.pop()
                if current in self.terms and current not in found:
                    found.add(current)
                    waiting.extend(self.terms[current].parents)
            self._ancestors[term] = frozenset(found)
        return self._ancestors[term]


def parse_obo(lines: Iterable[str]) -> Ontology:
    """Read an ontology.

    Args:
        lines: text of an .obo file, with or without line ends. A line that ends in a backslash goes on in the next.
    Raises:
        BadObo: a term without id, an id twice, a definition without closing quote, or no term at all.
    """
    version, terms = "", {}
    for kind, stanza in _stanzas(_joined(lines)):
        if kind == "":
            version = next((value for tag, value in stanza if tag == "data-version"), "")
        elif kind == "Term":
            term = _term(stanza)
            if term.id in terms:
                raise _bad("each id once", f"{term.id[:40]} twice")
            terms[term.id] = term
    if not terms:
        raise _bad("terms", "none")
    return Ontology(version=version, terms=terms)


def _joined(lines: Iterable[str]) -> Iterator[str]:
    """Logical lines: continued ones put together, comments and blank ones left out."""
    begun = ""
    for line in lines:
        whole = begun + line.rstrip("\r\n")
        if len(whole) > MAX_LINE:
            raise _bad("lines of sensible length", f"more than {MAX_LINE:,} characters")
        escapes = len(whole) - len(whole.rstrip("\\"))
        if escapes % 2:  # an even number is escaped backslashes
            begun = whole[:-1]
            continue
        begun = ""
        if whole.strip() and not whole.lstrip().startswith("!"):
            yield whole
    if begun.strip():
        yield begun


def _stanzas(lines: Iterable[str]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    kind, pairs = "", list[tuple[str, str]]()
    for line in lines:
        if line.startswith("[") and line.rstrip().endswith("]"):
            yield kind, pairs
            kind, pairs = line.strip()[1:-1], []
        else:
            tag, _, value = line.partition(":")
            pairs.append((tag.strip(), value.strip()))
    yield kind, pairs


def _term(stanza: list[tuple[str, str]]) -> Term:
    values: dict[str, str] = {}
    parents = []
    for tag, value in stanza:
        if tag == "is_a":
            parents.append(re.split(r"[\s!{]", value, maxsplit=1)[0])
        else:
            values.setdefault(tag, value)
    name = values.get("id", "")
    if not name:
        raise _bad("an id in every term", "a term without one")
    label = _unescaped(_without_comment(values.get("name", "")))
    obsolete = values.get("is_obsolete", "").startswith("true")
    return Term(name, label, _definition(values.get("def", ""), name), tuple(parents), obsolete)


def _definition(value: str, term: str) -> str:
    if not value:
        return ""
    quoted = _QUOTED.match(value)
    if quoted is None:
        raise _bad("a definition in double quotes", f"another form in {term[:40]}")
    return _unescaped(quoted[1])


def _without_comment(value: str) -> str:
    """OBO allows ` ! a comment` after a value; an escaped exclamation mark is part of it."""
    return re.split(r"\s+(?<!\\)!", value, maxsplit=1)[0].strip()


def _unescaped(value: str) -> str:
    return re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[1]), value, flags=re.DOTALL)


def _bad(expected: str, got: str) -> BadObo:
    return BadObo(where="the ontology", expected=expected, got=got, hint="use the hp.obo of the pinned wheel")
