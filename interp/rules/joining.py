"""How an answer continues a prompt: the one place that decides it, on text alone. No torch.
The joined text is tokenised in `interp.models.text`.

===================================================  ============================================
the prompt ends in white space                       as it stands; a last space is the answer's
the answer begins with white space                   as it stands
the rule file, or --no-space, says so                as said
either side is of a script that writes no spaces     nothing between (東京, กรุงเทพ;
                                                     full-width signs)
after an opening bracket or quote, or a prefix sign  nothing between: "(", "$", "post-"
before closing punctuation                           nothing between: ".", ")", "'s"
otherwise                                            one space
===================================================  ============================================

The last space of a prompt is the answer's, since tokenizers write a word with the space before it:
the tokens of "It is " and those of "It is" are the same, and so are those of the answer. Line
breaks and tabs stay in the prompt.
"""

import re
import unicodedata
from typing import NamedTuple

from interp.rules.scripts import TextError, checked, in_word, unspaced

_CLOSING = re.compile(r"[.,;:!?…%]+(?![\w.,])|['’](?:s|t|re|ll|ve|d|m)\b|n['’]t\b", re.IGNORECASE)
_QUOTES = "\"'`"
_ATTACHED = "-/_\\@#~^"
SAID = {" ": "after a space", "": "directly after the prompt"}


class Joined(NamedTuple):
    """A prompt and its answer as one text: `prompt + answer`.

    `prompt` lacks the last space of what was given, which stands at the beginning of `answer`
    instead.
    """

    prompt: str
    answer: str

    @property
    def text(self) -> str:
        """The whole."""
        return self.prompt + self.answer

    @property
    def said(self) -> str:
        """How they are joined, in words."""
        space = len(self.answer) - len(self.answer.lstrip())
        if self.prompt[-1:].isspace() and not space:
            return f"after {self.prompt[-1]!r}"
        return SAID.get(self.answer[:space], f"after {self.answer[:space]!r}")


def joint(prompt: str, answer: str, space: bool | None = None) -> str:
    r"""What stands between a prompt and its answer: "" or " ".

    Args:
        prompt: The prompt.
        answer: The answer; white space at its end does not count.
        space: Whether a space is between them, where neither has one there. Default: as the module
            says.

    >>> [joint(prompt, "Paris") for prompt in ("The capital is", "The capital is ", "A:\n")]
    [' ', '', '']
    >>> [joint(prompt, "Paris") for prompt in ("The capital (", "首都は")]
    ['', '']
    >>> [joint("It is", answer) for answer in ("18", " 18", "北京", ").", "-5", ".5")]
    [' ', '', '', '', ' ', ' ']
    """
    if not prompt or prompt[-1].isspace() or answer[:1].isspace():
        return ""
    if space is not None:
        return " " if space else ""
    if unspaced(prompt[-1]) or unspaced(answer[:1]) or _opens(prompt) or _closes(answer):
        return ""
    return " "


def join(prompt: str, answer: str, space: bool | None = None) -> Joined:
    """A prompt and its answer as one text (see the module).

    White space at the end of the answer is left out, and several spaces at its beginning are one. A
    prompt's last space and that of the answer are the same space: a model's own answer begins with
    it.

    Raises:
        TextError: One of them is no Unicode text, or the answer is blank.
    """
    checked(prompt, "the prompt")
    said = checked(answer, "the answer").rstrip()
    if not said:
        raise TextError(f"the answer is {answer!r}; text is needed")
    if said[0] == " ":
        said = f" {said.lstrip(' ')}"
    body = without_last_space(prompt)
    if body != prompt:
        return Joined(body, said if said[0] == " " else f" {said}")
    return Joined(prompt, joint(prompt, said, space) + said)


def without_last_space(prompt: str) -> str:
    """The part of a prompt whose tokens are the prompt's: without one space at its end, if
    something is before it.
    """
    return prompt[:-1] if prompt.endswith(" ") and prompt.strip() else prompt


def _opens(prompt: str) -> bool:
    """Whether what follows a prompt is written on to its last sign: an opening bracket or quote,
    a prefix.
    """
    sign = prompt[-1]
    before = prompt.rstrip(sign)[-1:] if sign in _QUOTES else prompt[-2:-1]
    kind = unicodedata.category(sign)
    if kind == "Ps" or sign in "¿¡":
        return True
    starts = (
        not before
        or before.isspace()
        or unicodedata.category(before) in ("Ps", "Pi")
        or unspaced(before)
    )
    if (
        kind in ("Pi", "Pf") or sign in _QUOTES
    ):  # "»" and "“" open in one language and close in another
        return starts
    if kind == "Sc":
        return starts and not prompt[:-1].rstrip()[-1:].isdigit()
    return sign in _ATTACHED and in_word(before)


def _closes(answer: str) -> bool:
    """Whether an answer begins with what is written on to the word before it."""
    sign, after = answer[0], answer[1:2]
    if unicodedata.category(sign) == "Pe" or _CLOSING.match(answer):
        return True
    quote = unicodedata.category(sign) == "Pf" or sign in _QUOTES
    return quote and (not after or after.isspace() or after in ".,;:!?)")
