"""Where does a language model keep each form of a rule? Tracing, layer profiles, layer selection.

Load
    - `load_model`: the embedded model, a Hugging Face folder, or a name on the hub.
    - `load_rules`: rules of the embedded rulebook, of a rule file, or of RuleEdit.
    - `load_maps`: effect maps and layer profiles that were saved (xarray).

Trace
    - `trace`: effect maps of rules, layer × token per rule form.
    - `trace_prompt`: the effect map of one form of one rule.
    - `TraceConfig`: the settings of both.
    - `indirect_effect`, `total_effect`: effects of a map, in nats per answer token.

Select
    - `layer_profile`: the mean effect of each layer, per rule form (settings: `ProfileConfig`).
    - `select_layers`: the layers to edit, a `LayerSelection` (settings: `SelectConfig`).
    - `parse_layers`: a `LayerSelection` of layers that you name yourself.
    - `atlas`: models whose profile and layers ship with this package.

Run
    - `Run`: a run folder, on which every step of the command `dmle` can be called.
    - `DmleError`: every error that input can cause, with what to do.

Importing this package loads nothing else: each name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.app.run import Run
    from interp.config import ProfileConfig, SelectConfig, TraceConfig
    from interp.errors import DmleError
    from interp.models.loading import load as load_model
    from interp.results.effects import indirect_effect, total_effect
    from interp.results.effects import load as load_maps
    from interp.rules.sources import load_rules
    from interp.selection.atlas.entry import atlas
    from interp.selection.layers import LayerSelection, parse_layers
    from interp.selection.profiles import layer_profile
    from interp.selection.select import select_layers
    from interp.tracing.prompt import trace_prompt
    from interp.tracing.trace import trace

__all__ = [
    "DmleError",
    "LayerSelection",
    "ProfileConfig",
    "Run",
    "SelectConfig",
    "TraceConfig",
    "atlas",
    "indirect_effect",
    "layer_profile",
    "load_maps",
    "load_model",
    "load_rules",
    "parse_layers",
    "select_layers",
    "total_effect",
    "trace",
    "trace_prompt",
]
_HOMES = {
    "DmleError": "errors:DmleError",
    "LayerSelection": "selection.layers:LayerSelection",
    "ProfileConfig": "config:ProfileConfig",
    "Run": "app.run:Run",
    "SelectConfig": "config:SelectConfig",
    "TraceConfig": "config:TraceConfig",
    "atlas": "selection.atlas.entry:atlas",
    "indirect_effect": "results.effects:indirect_effect",
    "layer_profile": "selection.profiles:layer_profile",
    "load_maps": "results.effects:load",
    "load_model": "models.loading:load",
    "load_rules": "rules.sources:load_rules",
    "parse_layers": "selection.layers:parse_layers",
    "select_layers": "selection.select:select_layers",
    "total_effect": "results.effects:total_effect",
    "trace": "tracing.trace:trace",
    "trace_prompt": "tracing.prompt:trace_prompt",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
