"""Matplotlib's SVG made fit for a page: colours of the reader's theme, text that can be selected, no links out.

Pictures are drawn in stand-in colours, and each stand-in becomes a CSS variable of the page. The tree is then rebuilt
without metadata, style sheets and namespaces, with ids of its own, so that several pictures can share a page.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree  # our own output is parsed, nobody else's
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

THEME = {
    "ink": "#0a0b01", "soft": "#0a0b02", "line": "#0a0b03", "accent": "#0a0b04", "base": "#0a0b05", "card": "#0a0b06",
    "s1": "#0a0b11", "s2": "#0a0b12", "s3": "#0a0b13", "s4": "#0a0b14", "s5": "#0a0b15", "s6": "#0a0b16",
}  # fmt: skip
SERIES = ("s1", "s2", "s3", "s4", "s5", "s6")
SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "not-fed", "font.family": "DejaVu Sans", "text.parse_math": False}
POINTS_PER_INCH = 72
LARGEST = 1.2  # how far a picture may grow with its column
_DROPPED = ("metadata", "style")
_VARIABLES = {stand_in: f"var(--{name})" for name, stand_in in THEME.items()}
_STAND_IN = re.compile("|".join(_VARIABLES))
_FONT = re.compile(r"font: (?P<weight>(?:bold |\d+ )?)(?P<size>[\d.]+px) [^;]*")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def to_svg(figure: Figure, *, name: str, label: str) -> Markup:
    """A figure as an inline picture.

    Args:
        name: prefix of its ids; once per page.
        label: what a screen reader says instead of it.
    Guarantees:
        no script, link, style sheet or address in it; equal figures give equal text.
    """
    written = io.StringIO()
    figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(written.getvalue())  # noqa: S314  written two lines above
    _rebuild(root, name)
    width = float(root.get("viewBox", "0 0 1 1").split()[2])
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.attrib |= {"role": "img", "aria-label": label, "style": f"max-width: {width * LARGEST:.0f}px"}
    return Markup(ElementTree.tostring(root, encoding="unicode", short_empty_elements=False))  # noqa: S704  escaped by it


def _rebuild(element: ElementTree.Element, name: str) -> None:
    element.tag = _local(element.tag)
    for key in list(element.attrib):
        element.attrib[_local(key)] = _attribute(_local(key), element.attrib.pop(key), name)
    element.attrib.pop("version", None)
    for child in list(element):
        if not isinstance(child.tag, str) or _local(child.tag) in _DROPPED:
            element.remove(child)
        else:
            _rebuild(child, name)


def _attribute(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return f"#{name}-{value.removeprefix('#')}"
    value = _REFERENCE.sub(lambda found: f"url(#{name}-{found[1]})", value)
    if key == "style":
        value = _FONT.sub(
            lambda found: f"font-size: {found['size']}; font-weight: {found['weight'].strip() or 400}", value
        )
        value = _STAND_IN.sub(lambda found: _VARIABLES[found[0]], value)
    return value


def _local(name: str) -> str:
    return name.rpartition("}")[2]
