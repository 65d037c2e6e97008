"""Paper figures from labelled data; knows nothing of models.

Draw
    - `draw_effect_map`, `effect_panel`, `prompt_panel`: where a rule is kept, layer × token.
    - `draw_layer_profile`, `profile_panel`: the mean effect of each layer, with its interval.
    - `draw_layer_selection`, `selection_panel`: the chosen layers on their profile.
    - `draw_edit_scores`, `scores_panel`, `difference_panel`: scores before and after edits.
    - `draw_before_after`: each rule before and after its edit.
    - `sequence_panel`: what many edits in one model keep, and what they cost elsewhere.
    - `draw_trade_off`: what an edit costs elsewhere against what it brings.

Write
    - `score_table`: scores as a table (Markdown, LaTeX or CSV).
    - `draw_all`: every figure and table of a run folder.
    - `write_report`: a run folder as one HTML page.
    - `save`: a figure as PDF and PNG, in the style of the paper.

After `import figures.accessors` datasets draw themselves: `maps.dmle.plot()`.

Importing this package loads nothing else: each name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from figures.before_after import draw_before_after
    from figures.edit_scores import difference_panel, draw_edit_scores, scores_panel
    from figures.effect_map import draw_effect_map, effect_panel, prompt_panel
    from figures.layer_profile import draw_layer_profile, profile_panel
    from figures.layer_selection import draw_layer_selection, selection_panel
    from figures.paper import draw_all
    from figures.report import write_report
    from figures.score_tables import score_table
    from figures.sequence import sequence_panel
    from figures.style import save
    from figures.trade_off import draw_trade_off

__all__ = [
    "difference_panel",
    "draw_all",
    "draw_before_after",
    "draw_edit_scores",
    "draw_effect_map",
    "draw_layer_profile",
    "draw_layer_selection",
    "draw_trade_off",
    "effect_panel",
    "profile_panel",
    "prompt_panel",
    "save",
    "score_table",
    "scores_panel",
    "selection_panel",
    "sequence_panel",
    "write_report",
]
_HOMES = {
    "difference_panel": "edit_scores",
    "draw_all": "paper",
    "draw_before_after": "before_after",
    "draw_edit_scores": "edit_scores",
    "draw_effect_map": "effect_map",
    "draw_layer_profile": "layer_profile",
    "draw_layer_selection": "layer_selection",
    "draw_trade_off": "trade_off",
    "effect_panel": "effect_map",
    "profile_panel": "layer_profile",
    "prompt_panel": "effect_map",
    "save": "style",
    "score_table": "score_tables",
    "scores_panel": "edit_scores",
    "selection_panel": "layer_selection",
    "sequence_panel": "sequence",
    "write_report": "report",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
