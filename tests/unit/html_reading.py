"""Reads the HTML that notebooks show, and gives data whose texts would break it."""

from html.parser import HTMLParser

import numpy as np
import xarray as xr

from interp.results import effects

EVIL = "<script>alert('$x$')</script> & \"q\""


class Reader(HTMLParser):
    """The cells of every row, the text, and the names of all elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._open and self._open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    def names(self) -> set[str]:
        return {name for name, _ in self.elements}


def assert_is_text(shown: str) -> None:
    """What came from data is text, no element, and no formula."""
    read = Reader(shown)
    assert not read.names() & {"script", "i", "style", "img"}
    assert EVIL in read.text
    outermost = [attrs for name, attrs in read.elements if name == "div"]
    assert all("mathjax_ignore" in str(attrs["class"]) for attrs in outermost)


def one_map(noise: float = 0.1) -> xr.Dataset:
    """Two components, three layers, three tokens, of which the second is the first that was
    corrupted."""
    effect = np.array(
        [
            [[0.0, 0.5, 0.1], [0.0, 0.2, 0.3], [0.0, -0.1, 0.2]],  # resid: best at layer 0 and 1
            [[0.0, -0.3, 0.0], [0.0, -0.2, 0.1], [0.0, -0.1, 0.4]],  # mlp: best at layer 2 and 2
        ]
    )
    corrupted = np.array([-3 - noise, -3 + noise])
    return effects.effect_map(
        effect[..., None] + corrupted,
        -1.0,
        corrupted,
        components=("resid", "mlp"),
        tokens=(" The", EVIL, " is"),
        roles=("prefix", "subject_last", "last"),
        is_corrupted=(False, True, False),
        prompt=EVIL,
        answer=" <i>A</i>",
        attrs={"model": "toy", "window": 1},
    )
