"""One look for every figure: sizes, fonts, colours, literal text, and how a figure is saved.

Figures are plain `matplotlib.figure.Figure` objects, never registered with pyplot, so nothing has
to be closed and no state is shared. In a notebook, show one with ``ax.figure`` (or the figure
itself) as the last expression of a cell. Settings apply inside `paper_style` only.

Text from data (tokens, answers, names of rules and editors) is drawn literally: never as
mathematics, with white space made visible and characters that the font lacks written as escapes.
"""

import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Annotation
from matplotlib.ticker import MaxNLocator

from interp.results.files import writing

SINGLE_COLUMN = 3.4
"""Width of a figure in one column, inches."""
DOUBLE_COLUMN = 7.0
"""Width of a figure across both columns, inches."""
SMALL = 6.0
"""Size of captions, token labels and annotations, points at print size."""
CHARACTER_WIDTH = 0.6
"""Width of a mean character as a share of the font size, on the safe side."""
AXES_SHARE = 0.75
"""Share of its cell's width that axes have beside their labels, on the safe side."""
PNG_DPI = 200
DIVERGING = "RdBu_r"
"""Zero-centred scale that stays readable for colour-blind readers; red: restoring helps."""
UNTRACED_COLOUR = "0.85"
WARNING_COLOUR = "#a33b00"

FORM_STYLES: dict[str, Any] = {"formula": "-", "description": "--", "instance": "-."}
COMPONENT_NAMES = {
    "resid": "residual stream",
    "mlp": "MLP output",
    "attn": "attention output",
    "mlp_single": "MLP, one layer",
    "attn_single": "attention, one layer",
    "resid_mlp_frozen": "stream, MLP frozen",
    "resid_attn_frozen": "stream, attn. frozen",
}
ROLE_NAMES = {
    "prefix": "before the subject",
    "subject_first": "first subject token",
    "subject_middle": "middle subject tokens",
    "subject_last": "last subject token",
    "rule_word": "rule words",
    "number": "numbers and variables",
    "after": "after the subject",
    "last": "last prompt token",
    "lookup": "lookup tokens",
}
UNIT_NAMES = {"nats": "nats per answer token"}

_RC: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],  # ships with matplotlib, so that every machine draws the same
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    "patch.linewidth": 0.6,
    "hatch.linewidth": 0.5,
}
WHITE_SPACE = {"\n": "↵", "\r": "␍", "\t": "⇥", "\u00a0": "⍽"}


@contextmanager
def paper_style() -> Iterator[None]:
    """Apply the look of the paper inside the block (or, as a decorator, inside the function)."""
    settings: Any = {**sns.axes_style("ticks"), **_RC}
    with mpl.rc_context(settings):
        yield


def new_axes(width: float = SINGLE_COLUMN, height: float = 2.4) -> Axes:
    """Axes in a new figure of `width` × `height` inches that is not registered with pyplot."""
    return Figure(figsize=(width, height), layout="constrained").add_subplot()


def form_colours(forms: Iterable[str]) -> dict[str, Any]:
    """Colour per rule form; the three known forms keep theirs in every figure."""
    return _colours(forms, tuple(FORM_STYLES), sns.color_palette("colorblind"))


def component_colours(components: Iterable[str]) -> dict[str, Any]:
    """Colour per model component."""
    return _colours(components, tuple(COMPONENT_NAMES), sns.color_palette("deep"))


def editor_colours(editors: Iterable[str]) -> dict[str, Any]:
    """Colour per editor; the known editors keep theirs in every figure."""
    known = ("dmle", "memit", "alphaedit", "rome", "finetune", "lora", "grace", "in_context")
    return _colours(editors, known, sns.color_palette("colorblind"))


def unit_name(unit: str) -> str:
    """Unit as written on an axis."""
    return UNIT_NAMES.get(unit, unit)


def component_name(component: str, window: int | None) -> str:
    """Component in words; `window` is the number of neighbouring layers restored together (mlp,
    attn).
    """
    name = COMPONENT_NAMES.get(component, component)
    if window is None or component == "resid" or "_" in component:
        return name
    return f"{name} ({window} layer{'s' if window != 1 else ''})"


def visible(text: str) -> str:
    r"""Text that the current font can draw: white space visible, missing characters as ``\u``
    escapes.

    A single leading space, which most tokenizers put before a word, is left out.

    >>> visible(" perimeter"), visible("\n"), visible("  ")
    ('perimeter', '↵', '␣␣')
    """
    text = text.removeprefix(" ") if text.strip() else text.replace(" ", "␣")
    known = _characters(findfont(FontProperties()))
    text = "".join(WHITE_SPACE.get(c, c) for c in text)
    return "".join(c if ord(c) in known and c.isprintable() else _escape(c) for c in text)


def shorten(text: str, characters: int) -> str:
    """Visible text of at most so many characters; what is cut is marked by an ellipsis."""
    text = visible(text)
    return text if len(text) <= characters else text[: characters - 1] + "…"


def caption(ax: Axes, text: str) -> Annotation:
    """Write a small caption under the label of the x axis, wrapped to the width of the axes."""
    note = ax.annotate(
        textwrap.fill(text, _characters_in(AXES_SHARE * _width(ax))),
        xy=(0, 0),
        xycoords=("axes fraction", ax.xaxis.label),
        xytext=(0, -3),
        textcoords="offset points",
        va="top",
        fontsize=SMALL,
        color="0.25",
        parse_math=False,
        gid="caption",
    )
    note.set_annotation_clip(False)
    return note


def figure_caption(fig: Figure, text: str) -> None:
    """Write a small caption along the bottom of the figure, wrapped to its width."""
    wrapped = textwrap.fill(text, _characters_in(fig.get_figwidth()))
    fig.supxlabel(wrapped, fontsize=SMALL, color="0.25", x=0.01, ha="left", parse_math=False)


def layer_axis(ax: Axes, layers: Iterable[int]) -> None:
    """Label the x axis with whole layers, few enough to read for any depth."""
    layers = list(layers)
    ax.set_xlim(layers[0] - 0.5, layers[-1] + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    ax.set_xlabel("layer")


def save(fig: Figure, stem: Path) -> list[Path]:
    """Write ``<stem>.pdf`` and ``<stem>.png`` (see `save_as`).

    Returns:
        The paths written.
    """
    # Layout takes most of the time of drawing, and is the same in both files. It settles in the
    # second pass.
    for _ in range(2):
        fig.draw_without_rendering()
    fig.set_layout_engine("none")
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("pdf", "png")]
    for path in paths:
        save_as(fig, path)
    return paths


def save_as(fig: Figure, path: Path) -> None:
    """Write one file, PDF or PNG by its suffix, atomically and equal for equal figures.

    Fonts are embedded as TrueType, so that text in the PDF can be searched; no dates are written.
    """
    kind = path.suffix[1:].lower()
    with writing(path) as file, mpl.rc_context({"pdf.fonttype": 42}):
        metadata = {"CreationDate": None} if kind == "pdf" else {}
        fig.savefig(file, format=kind, dpi=PNG_DPI, metadata=metadata)


def _colours(names: Iterable[str], known: tuple[str, ...], palette: Any) -> dict[str, Any]:
    """Known names keep their place in the palette; others get new hues in order of appearance."""
    names = list(dict.fromkeys(names))
    fixed = dict(zip(known, palette, strict=False))
    others = [name for name in names if name not in fixed]
    extra = dict(
        zip(others, [*palette[len(fixed) :], *sns.husl_palette(max(1, len(others)))], strict=False)
    )
    return {name: {**fixed, **extra}[name] for name in names}


@lru_cache(maxsize=8)
def _characters(font: str) -> frozenset[int]:
    return frozenset(get_font(font).get_charmap())


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _characters_in(inches: float) -> int:
    """How many characters of a caption fit."""
    return max(20, int(inches * 72 / (CHARACTER_WIDTH * SMALL)))


def _width(ax: Axes) -> float:
    """Width in inches of the cell that the axes stand in, label margins included."""
    figure = ax.figure
    spec = ax.get_subplotspec()
    columns = spec.get_gridspec().ncols if spec is not None else 1
    whole = figure.get_figure(root=True) if isinstance(figure, SubFigure) else figure
    return (whole.get_figwidth() if isinstance(whole, Figure) else SINGLE_COLUMN) / columns
