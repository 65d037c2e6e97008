"""The folder for everything that can be made again."""

import os
from pathlib import Path

import platformdirs

CACHE_VARIABLE = "DMLE_CACHE"


def cache_dir() -> Path:
    """Folder for everything that can be made again; it need not exist yet.

    The environment variable DMLE_CACHE names it; if that is unset or empty, the system's convention
    does.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    return (
        Path(chosen).expanduser().absolute()
        if chosen
        else Path(platformdirs.user_cache_dir("dmle"))
    )
