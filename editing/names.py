"""Names of editors. No torch: settings are read by them."""

import importlib
import pkgutil

from interp.errors import InputError
from interp.settings.section import nearest


def editor_names() -> tuple[str, ...]:
    """Names of the editors: those of the files in their room. No file is opened for it."""
    room = importlib.import_module("editing.editors").__path__
    names = (module.name for module in pkgutil.iter_modules(room))
    return tuple(sorted(name for name in names if name != "registry"))


def known_editor(name: str) -> str:
    """The name of an editor.

    Raises:
        InputError: There is no such editor.
    """
    if name not in editor_names():
        raise InputError(f"there is no editor {name!r}: {nearest(name, [*editor_names()])}")
    return name
