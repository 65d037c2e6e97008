"""The evidence that fits the edits: which of tracing and gradients, by editor and lookup.

The rule is the table `TABLE`, read from above: the first row that fits decides. Its numbers are
rank correlations with edit success of `dmle regret` in docs/layers.md (formula and description,
then instances). They are of one model, and of MEMIT's closed form at the last mention. A better
rank correlation over all windows need not give a better first window: the table of regrets there
says what each choice costs, and is why this strategy is not the default.
"""

from dataclasses import dataclass, replace

from interp.config import SelectConfig
from interp.errors import InputError
from interp.selection.reasons import Finding, sentences
from interp.selection.strategies import changepoint, lga, reach
from interp.selection.strategy import Strategy
from interp.vocabulary import Lookup

GRADIENT_EDITORS = ("ft", "ft_whitened", "lora", "ultraedit")
"""They move weights by gradients of the answer, over all tokens, and look no token up."""
AT_LAST_TOKEN = ("grace",)
"""They act at the last token of a prompt, whatever `select.lookup` says."""
WITHOUT_LAYERS = ("ice", "ike")
"""They change no block."""


@dataclass(frozen=True)
class Row:
    """Which evidence is taken for some edits."""

    editors: tuple[str, ...]
    """None named: all others."""
    lookup: Lookup | None
    """None: any."""
    evidence: str
    """In words."""
    reason: str
    """Why, in words behind "since"."""
    strategy: Strategy
    """How layers are chosen by that evidence."""
    of_lookup: bool = False
    """Whether the evidence is of one token, which must be that of the edits."""

    def fits(self, config: SelectConfig) -> bool:
        """Whether it is for the edits that the settings name."""
        by_editor = not self.editors or config.editor in self.editors
        return by_editor and self.lookup in (None, config.lookup)


TABLE: tuple[Row, ...] = (
    Row(
        GRADIENT_EDITORS,
        None,
        "the inner products of gradients (lga)",
        "this editor steps along gradients over all tokens, and looks no token up (no sweep has"
        " tested that evidence for it)",
        lga.STRATEGY,
    ),
    Row(
        AT_LAST_TOKEN,
        None,
        "the profile of tracing at the last token",
        "this editor acts at that token alone (no sweep has tested that evidence for it)",
        replace(changepoint.STRATEGY, role="last"),
    ),
    Row(
        (),
        "last",
        "the profile of tracing at the last token",
        "edits word by word write there, and not at the subject or the rule's words (no sweep has"
        " tested that evidence for them)",
        replace(changepoint.STRATEGY, role="last"),
    ),
    Row(
        (),
        None,
        "the reach of edits",
        "gradients told best at which windows of SmolLM2 closed forms succeed (rank correlation"
        " +0.82 and +0.94, that of tracing's profile +0.55 and +0.80)",
        reach.STRATEGY,
        of_lookup=True,
    ),
)


def row_of(config: SelectConfig) -> Row:
    """The row that decides for the edits that the settings name.

    Raises:
        InputError: The editor writes no layers.
    """
    if config.editor in WITHOUT_LAYERS:
        raise InputError(
            f"the editor {config.editor} changes no block, so that there are no layers to select;"
            " name another with --set select.editor=NAME"
        )
    return next(row for row in TABLE if row.fits(config))


def route(config: SelectConfig) -> Strategy:
    """The strategy that reads the evidence of the row, with a sentence that says which and why."""
    row = row_of(config)

    def explain(finding: Finding) -> str:
        edits = f"edits by {config.editor}"
        if config.editor not in (*GRADIENT_EDITORS, *AT_LAST_TOKEN):
            edits += f" at {config.lookup}"
        evidence = f"The evidence for {edits} is {row.evidence}, since {row.reason}."
        return sentences(row.strategy.explain(finding), evidence)

    lookup = config.lookup if row.of_lookup else None
    return replace(row.strategy, explain=explain, lookup=lookup)


STRATEGY = replace(
    route(SelectConfig()),
    summary="by the evidence that fits select.editor and select.lookup (see its table)",
    route=route,
)
