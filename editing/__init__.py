"""Change a rule of a model in all its forms, and nothing else: editors, edits as values, scores.

Edit
    - `edit`: the edit of a rule, some rules, or requests by an editor, as a value. The model itself
      is not changed: `with edit.edited(model) as view: ...`.
    - `DMLE`: layers by group of forms (a `LayerSelection` of `interp.select_layers`).
    - `MEMIT`, `AlphaEdit`, `EMMET`, `ROME`: closed forms in a block of layers.
    - `FineTuning`, `LoRA`: trained weights. `GRACE`: a codebook.
    - `InContext`: the new facts before every prompt, with demonstrations or without.
    - `Recipe`: any editor by its name, with settings and layers; what the ones above give.
    - `Statistics`: statistics of keys for many edits. Without, they are measured when they are
      first needed, and kept in the user's cache.

Use
    - `evaluate`: reliability, generality, locality and the rest, before and after (xarray).
    - `load_edit`: an edit that was saved.
    - `remarks`: what a reader of an edit should know.
    - `requests_of`: what an editor is asked for a rule.
    - `EditError`: an edit cannot be made, does not fit the model, or its file is damaged.

Importing this package loads nothing else: each name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from editing.closed_form.statistics import Statistics
    from editing.doors import (
        DMLE,
        EMMET,
        GRACE,
        MEMIT,
        ROME,
        AlphaEdit,
        FineTuning,
        InContext,
        LoRA,
        Recipe,
        edit,
        evaluate,
    )
    from editing.editors.registry import load_edit
    from editing.edits.protocol import EditError
    from editing.edits.remarks import remarks
    from editing.edits.requests import requests_of

__all__ = [
    "DMLE",
    "EMMET",
    "GRACE",
    "MEMIT",
    "ROME",
    "AlphaEdit",
    "EditError",
    "FineTuning",
    "InContext",
    "LoRA",
    "Recipe",
    "Statistics",
    "edit",
    "evaluate",
    "load_edit",
    "remarks",
    "requests_of",
]
_HOMES = {
    "EditError": "edits.protocol",
    "Statistics": "closed_form.statistics",
    "load_edit": "editors.registry",
    "remarks": "edits.remarks",
    "requests_of": "edits.requests",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'doors')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
