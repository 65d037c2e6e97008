"""What draws for the commands of `interp`, which imports no figures: entry points `dmle.plots`."""

from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from interp.errors import DmleError

PLOT_SUFFIXES = (".png", ".pdf")


def find_plot(name: str) -> EntryPoint:
    """What draws something into a file, by its name among the entry points.

    Raises:
        DmleError: No installed package has it.
    """
    known = list(entry_points(group="dmle.plots", name=name))
    if not known:
        raise DmleError(
            f"no installed package draws {name!r}; install this one again (pip install -e .)"
        )
    return known[0]


def check_plot(name: str, path: Path, flag: str) -> None:
    """See that a figure can be drawn into a file, before any work.

    Args:
        name: What draws it.
        path: The file.
        flag: The flag that names the file, for the error.

    Raises:
        DmleError: It cannot.
    """
    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise DmleError(
            f"{flag} {path} ends in {path.suffix!r}; give a file ending in .png or .pdf"
        )
    find_plot(name)
    check_place(path, flag)


def check_place(path: Path, flag: str) -> None:
    """See that a file has a folder, and is none.

    Raises:
        DmleError: It has none, or is one.
    """
    if not path.parent.is_dir():
        raise DmleError(
            f"{flag} {path}: there is no folder {path.parent}; make it, or give another"
        )
    if path.is_dir():
        raise DmleError(f"{flag} {path} is a folder; give the name of a file")
