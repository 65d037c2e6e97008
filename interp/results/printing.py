r"""What commands say: text from users, models and files reaches the terminal as text, never as an
instruction to it.

Every command prints by `say`. Markup of the terminal library is off ("run[red]7" is a name,
":heart:" a word), and characters that move the cursor, change colours or turn the direction of
writing are shown as escapes (`\x1b`).
"""

import shlex
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path

# The direction of what follows (trojan source), and characters that look like nothing. The joiners
# U+200C and U+200D stay: Persian, Hindi and emoji are written with them.
_HIDDEN = frozenset(
    [
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
        0x061C,
        0x200B,
        0x200E,
        0x200F,
        0x2028,
        0x2029,
        0x2060,
        0xFEFF,
    ]
)
_KEPT = "\n\t"


def visible(text: str, *, keep: str = _KEPT) -> str:
    r"""A text in which control characters, direction marks and lone surrogates are shown as
    escapes.

    Args:
        text: Any text.
        keep: Control characters that stay: line ends and tabs by default.

    >>> visible("\x1b[31mred\x1b[0m"), visible("a\u202eb"), visible("x\ny", keep="")
    ('\\x1b[31mred\\x1b[0m', 'a\\u202eb', 'x\\ny')
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        _escaped(char) if _is_hidden(char) and char not in keep else char for char in text
    )


def one_line(error: BaseException) -> str:
    """What an error says, in one visible line: YAML and validation errors have several."""
    return visible(" ".join(str(error).split()) or type(error).__name__)


def command(*words: str | Path) -> str:
    """A command line that a shell reads as these words, whatever is in them.

    >>> command("dmle", "profile", "--run", "runs/my run[red]")
    "dmle profile --run 'runs/my run[red]'"
    """
    return shlex.join(str(word) for word in words)


def say(text: str, *, style: str | None = None, to_stdout: bool = False) -> None:
    """Print a text as it is, long lines whole; escapes stand for what a terminal would obey or
    cannot show.
    """
    from rich.console import Console

    stream = sys.stdout if to_stdout else sys.stderr
    console = Console(file=stream, emoji=False, markup=False, highlight=False)
    console.print(shown_by(stream, visible(text)), style=style, soft_wrap=True)


def heading(text: str) -> None:
    """A line across the screen with a title in it."""
    from rich.console import Console
    from rich.text import Text

    Console(file=sys.stderr, emoji=False, markup=False, highlight=False).rule(
        Text(visible(text, keep=""))
    )


def shown_by(stream: object, text: str) -> str:
    """The text with escapes for what the stream's encoding has no character for."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def listing(names: Iterable[str]) -> str:
    """Names in a row, each visible and on one line."""
    return ", ".join(visible(name, keep="") for name in names)


def _is_hidden(char: str) -> bool:
    category = unicodedata.category(char)
    return category in ("Cc", "Cs") or ord(char) in _HIDDEN or 0xE0000 <= ord(char) <= 0xE007F


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")
