"""The search behind the claim that the server saw nothing: it finds windows at any offset, across blocks."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from not_fed.simulation import plaintext
from not_fed.simulation.plaintext import Search, Windows, search_plaintext, text_windows

NEEDLE = b"the patient walked home again"


@given(before=st.integers(0, 40), after=st.integers(0, 40))
def test_a_window_is_found_at_every_offset(before: int, after: int) -> None:
    windows = Windows()
    windows.add("text", NEEDLE)
    data = bytes(before) + NEEDLE + bytes(after)
    assert Search(windows).kinds_in(data) == {"text": before}


def test_a_window_across_two_blocks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plaintext, "BLOCK", 64)
    windows = Windows()
    windows.add("text", NEEDLE)
    search = Search(windows)
    for offset in range(30, 100):
        assert search.kinds_in(bytes(offset) + NEEDLE) == {"text": offset}


def test_windows_that_mean_nothing_are_not_searched_for() -> None:
    windows = Windows()
    for window in (bytes(32), b"\x00\x00\x80\x3f" * 8, b"short", b"ab" * 20):
        windows.add("x", window)
    assert windows.kinds == {}


def test_a_clean_result_needs_something_to_search_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(100))
    empty = search_plaintext([tmp_path], texts=[], organs=[], base=None, keys=[])
    assert not empty.clean


def test_every_part_of_a_long_text_has_a_window() -> None:
    windows = Windows()
    text = " ".join(f"word{number}" for number in range(200))
    text_windows([text], into=windows, per_text=6)
    starts = sorted(text.encode().find(window) for window, kind in windows.kinds.items() if kind == "text, utf-8")
    assert starts[0] == 0
    assert starts[-1] == len(text) - plaintext.TEXT_WINDOW
    assert max(np.diff(starts)) < len(text) / 4
