"""What a strategy of selection is: a value that `interp.selection.select` asks, never a name that
it tests.

Source of the idea: a picker, how alike two picks are, what is needed, and the words are all that
strategies differ in; bounds, bootstrap, test and files are common to all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from interp.config import SelectConfig
from interp.selection.merging import Comparison
from interp.selection.pickers import Picker
from interp.selection.reasons import Finding
from interp.selection.support import Agreement
from interp.vocabulary import LOOKUP, Lookup, Role

Source = Literal["profile", "evidence", "sweep"]
"""A file of the run folder without its ending."""
Mix = Callable[[Sequence[np.ndarray]], np.ndarray]
Grouping = Callable[[np.ndarray, SelectConfig], tuple[list[tuple[int, ...]], list[Comparison]]]


@dataclass(frozen=True)
class Strategy:
    """A way to choose layers."""

    summary: str
    """The layers that it takes, in a few words; for the documentation and the command line."""
    picker: Callable[[SelectConfig], Picker]
    """Picks layers from mean profiles, by the settings (see `interp.selection.pickers`)."""
    explain: Callable[[Finding], str]
    """The first sentence of the reason: what the layers are, in numbers."""
    agreement: Agreement
    """Stability: how alike the picks of two halves of the rules are (`same` or `overlap` of
    `interp.selection.support`, or another)."""
    reads: tuple[Source, ...] = ("profile",)
    """What it chooses from."""
    size: Literal["width", "min_width"] | None = "width"
    """The setting that says how many layers are picked at least; None: it reads neither."""
    needs_outside: bool = False
    """Whether at least one candidate must be left that is not picked."""
    min_rules: int = 2
    """With fewer rules no choice is supported."""
    measures: tuple[str, ...] = ()
    """Of strategies that read evidence: the measures that they choose by
    (`interp.selection.evidence`)."""
    mix: Mix | None = None
    """The profile's effects and each measure, shape (rule, layer) each, as one array. None: where
    there is a measure, it is chosen by as it is, without the effects."""
    grouping: Grouping | None = None
    """Groups of forms from effects of shape (form, rule, layer), with the comparisons made; None:
    the groups of the settings."""
    by_rule: bool = False
    """Whether each rule gets a selection of its own, too (`interp.selection.adaptive`)."""
    role: Role | Literal["lookup"] = LOOKUP
    """The tokens whose effects it reads."""
    lookup: Lookup | None = None
    """The token that its measures must be of; None: any that they were made for."""
    route: "Callable[[SelectConfig], Strategy] | None" = None
    """Of a strategy that leaves the choice to another: which, by the settings. What its other
    fields say holds for the default settings."""
    name: str = ""
    """The name of its file, which the registry fills in."""
