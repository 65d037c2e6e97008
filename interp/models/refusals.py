"""What other people's code raises while a model is read, as one line that says how to mend it."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from interp.errors import DmleError, ModelError

UNQUANTISED = "load the unquantised checkpoint that it was made from"
AGAIN = "download or copy it again"

_SHOWN = 3


@contextmanager
def refusal(what: str, mend: str) -> Iterator[None]:
    """Turn whatever a library raises inside the block into one line: what failed, why, and how
    to mend it.
    """
    try:
        yield
    except DmleError:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ModelError(_no_memory(what)) from error
    except ImportError as error:
        raise ModelError(
            f"{what}: {one_line(error)}; install the package that it asks for, or {mend}"
        ) from error
    # Libraries raise KeyError, AttributeError, AssertionError and errors of their own.
    except BaseException as error:
        if not (isinstance(error, Exception) or panicked(error)):
            raise
        if "allocate memory" in str(error):
            raise ModelError(_no_memory(what)) from error
        raise ModelError(f"{what}: {one_line(error)}; {mend}") from error


def panicked(error: BaseException) -> bool:
    """Whether a library written in Rust (tokenizers, safetensors) came to a halt: what it raises
    then is no `Exception`.
    """
    return type(error).__module__ == "pyo3_runtime"


def one_line(error: BaseException, limit: int = 240) -> str:
    """The first sentence of an error, with its kind where the text alone says little."""
    text = " ".join(str(error).split())
    # Library texts go on with advice for its own programmers.
    text = re.split(r"(?<=[a-z0-9)'`\"])[.!?] (?=[A-Z\-(])", text, maxsplit=1)[0].rstrip(". :")
    if len(text) > limit:
        text = text[:limit].rsplit(" ", 1)[0] + " …"
    plain = isinstance(error, (OSError, ValueError, ImportError)) and text
    return text if plain else f"{type(error).__name__}: {text}".rstrip(": ")


def _no_memory(what: str) -> str:
    return (
        f"{what}: there is not enough memory for it; use a smaller type (model.dtype=bfloat16) or a"
        " smaller model"
    )


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
