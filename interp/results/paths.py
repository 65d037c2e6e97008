"""Paths that somebody else chose, kept inside a folder."""

import os
from pathlib import Path, PurePath

from interp.errors import DmleError


def inside(folder: Path, *names: str | PurePath) -> Path:
    """The path of a name below a folder, which may have been chosen by somebody else.

    Raises:
        DmleError: It leaves the folder: absolute, with "..", or through a link; or it is no name.
    """
    written = "/".join(str(name) for name in names)
    for name in names:
        part = PurePath(str(name))
        if (
            not part.parts
            or part.anchor
            or ".." in part.parts
            or "\0" in str(name)
            or "\\" in str(name)
        ):
            raise DmleError(
                f"{written!r} is no name of a file below {folder}; use a name without '..', '/' in"
                " front and '\\'"
            )
    path = folder.joinpath(*names)
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise DmleError(
            f"{path} leads out of {folder} through a link; replace the link by a folder"
        )
    return path


def check_links(folder: Path) -> None:
    """See that no link inside a folder leads what is written there to a place outside.

    Raises:
        DmleError: A link to a folder, or of a lock, does; nothing was written.
    """
    root = folder.resolve()
    for where, folders, names in os.walk(folder):
        # Other files are replaced, not written into; a lock is opened as it is.
        for name in (*folders, *(name for name in names if name.endswith(".lock"))):
            path = Path(where, name)
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                raise DmleError(
                    f"{path} is a link to {path.resolve()}, outside the run folder, where nothing"
                    " is written; put what it leads to in its place, or delete the link"
                )
