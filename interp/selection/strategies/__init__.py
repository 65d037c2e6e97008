"""The ways to choose layers: one file each, and the file's name is the strategy's name.

A file of this folder holds `STRATEGY`, an `interp.selection.strategy.Strategy`. Nothing else lists
it: the setting `select.strategy`, the commands, the comparison of `dmle regret` and the generated
documentation ask this registry.
"""

from dataclasses import replace
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from interp.errors import InputError
from interp.settings.section import nearest

if TYPE_CHECKING:
    from interp.config import SelectConfig
    from interp.selection.strategy import Strategy


def names() -> tuple[str, ...]:
    """Names of all strategies, in alphabetical order; imports none of them."""
    return tuple(sorted(module.name for module in iter_modules(__path__)))


def get(name: str) -> "Strategy":
    """The strategy of a name.

    Raises:
        InputError: There is none.
    """
    if name not in names():
        raise InputError(f"no such strategy {name!r}; {nearest(name, list(names()))}")
    return replace(import_module(f"{__name__}.{name}").STRATEGY, name=name)


def chosen(config: "SelectConfig") -> "Strategy":
    """The strategy that settings name; one that leaves the choice to another as these settings have
    it.

    Raises:
        InputError: There is none, or none for these settings.
    """
    strategy = get(config.strategy)
    if strategy.route is None:
        return strategy
    return replace(strategy.route(config), name=strategy.name)


def every() -> "tuple[Strategy, ...]":
    """All strategies, in the order of `names`."""
    return tuple(get(name) for name in names())
