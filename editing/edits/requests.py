"""Edit requests: what an editor is asked to change, one per rule form."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from editing.config import EditorSettings
from editing.edits.wordings import TEMPLATES, around
from interp.models.text import ModelText
from interp.models.tokens import Span, lookup_span
from interp.rules.joining import join, joint
from interp.rules.scripts import clusters, in_word, unspaced
from interp.rules.sources import Rule
from interp.vocabulary import RuleForm


@dataclass(frozen=True)
class EditRequest:
    """Make the model continue `prompt` with `target_new`."""

    rule: str
    form: RuleForm
    prompt: str
    subject: str
    rule_words: tuple[str, ...]
    target_new: str
    space: bool | None = None
    """Whether a space is between prompt and answer (see `interp.rules.joining`)."""
    wording: str | None = None
    """Template that the rule's own prompt stands in; None: `prompt` is that prompt."""
    ends: bool = False
    """Whether the end-of-text token follows the answer."""
    behind: tuple["EditRequest", ...] = field(default=(), repr=False)
    """Further words of the same answer, on which the target is searched too."""

    def lookup_span(self, lookup: str) -> Span:
        """Characters of the prompt at whose last token the edit reads its key (see
        `interp.models.tokens`).
        """
        if self.wording is None or lookup == "last":
            return lookup_span(self.prompt, lookup, self.subject, self.rule_words)
        # Words of the template are no mention of the rule.
        before, behind = around(self.wording)
        own = self.prompt[len(before) : len(self.prompt) - len(behind)]
        first, last = lookup_span(own, lookup, self.subject, self.rule_words)
        return first + len(before), last + len(before)

    def target_ids(self, model: ModelText, context: str = "") -> tuple[int, ...]:
        """Tokens of the new answer as an editor trains on it, behind a text before the prompt.

        Raises:
            InputError: The end-of-text token is wanted, and the tokenizer has none.
        """
        ids = model.encode_continuation(self.target_new, context + self.prompt, self.space)
        return (*ids, model.end_token) if self.ends else ids

    def record(self) -> dict[str, Any]:
        """What is kept of the request; words behind it are requests of the edit themselves."""
        kept = asdict(replace(self, behind=()))
        del kept["behind"]
        return kept


def requests_of(rule: Rule, lookup: str) -> list[EditRequest]:
    """One request for each form of a rule.

    Raises:
        ValueError: A prompt has no place for the lookup.
    """
    requests = [
        EditRequest(rule.id, form, p.prompt, p.subject, rule.rule_words, p.target_new, p.space)
        for form, p in rule.forms.items()
    ]
    for request in requests:
        request.lookup_span(lookup)
    return requests


def of_forms(requests: Sequence[EditRequest], forms: Sequence[str]) -> list[EditRequest]:
    """The requests for some forms, in order."""
    return [request for request in requests if request.form in forms]


def as_trained(
    requests: Sequence[EditRequest], model: ModelText, settings: EditorSettings, *, by_word: bool
) -> list[EditRequest]:
    """Requests as an editor gets them: in other wordings too, with the end-of-text token, and each
    word as a request, as the settings say.

    Raises:
        InputError: The end-of-text token is wanted, and the tokenizer has none.
    """
    found = in_wordings(requests, settings.wordings)
    if settings.end_token and model.end_token is not None:
        found = [replace(each, ends=True) for each in found]
    if not by_word:
        return found
    rest = settings.words_loss == "rest"
    return [word for each in found for word in words_of(each, rest=rest)]


def in_wordings(requests: Sequence[EditRequest], n: int) -> list[EditRequest]:
    """The requests in `n` other wordings, and as they are.

    The prompts themselves come last: an editor that takes requests one by one ends with them.

    >>> request = EditRequest("r", "formula", "The area is", "area", (), "4 s")
    >>> [each.prompt for each in in_wordings([request], 1)]
    ['Complete the sentence: The area is', 'The area is']
    """
    return [
        *(_worded(request, template) for template in TEMPLATES[:n] for request in requests),
        *requests,
    ]


def _worded(request: EditRequest, template: str) -> EditRequest:
    before, behind = around(template)
    # What is between prompt and answer is the prompt's affair only where the prompt stands last.
    space = None if behind else request.space
    prompt = before + (request.prompt.rstrip() if behind else request.prompt) + behind
    return replace(request, prompt=prompt, space=space, wording=template)


def words_of(request: EditRequest, *, rest: bool = False) -> list[EditRequest]:
    """The request word by word: the next word of the answer, behind the prompt and the words before
    it.

    Looked up at the last token, each word has a key of its own. What an edit writes there also
    holds where the same words follow another prompt, which is what rephrased questions ask for.
    An end-of-text token follows the last word alone. With `rest` each knows the words behind it.

    Source: the chunks of AnyEdit (Jiang et al. 2025, arXiv 2502.05628), here with one closed form
    for all of them.
    """
    answer = request.target_new
    joined = join(request.prompt, answer, request.space)
    ahead = len(joined.answer) - len(
        answer.rstrip()
    )  # what was put between them, less what both have
    found = []
    for first, last in _pieces(answer):
        ends = request.ends and last == len(answer.rstrip())
        if not first:
            found.append(replace(request, target_new=answer[first:last], ends=ends))
            continue
        before = joined.prompt + joined.answer[: ahead + first]
        spaced = before.endswith(" ")
        prompt, piece = before[: len(before) - spaced], answer[first:last]
        usual = joint(prompt, piece) == (" " if spaced else "")
        space = None if usual else spaced
        found.append(replace(request, prompt=prompt, target_new=piece, space=space, ends=ends))
    if not rest:
        return found
    return [replace(word, behind=tuple(found[i:])) for i, word in enumerate(found, start=1)]


def _pieces(answer: str) -> list[tuple[int, int]]:
    """Character ranges of the words of an answer; in scripts that write no spaces, of its signs.

    >>> _pieces("2 times l"), _pieces("東京都")
    ([(0, 1), (2, 7), (8, 9)], [(0, 1), (1, 2), (2, 3)])
    """
    found: list[tuple[int, int]] = []
    for word in re.finditer(r"\S+", answer):
        start = word.start()
        for first, _ in clusters(word.group()):
            # A new piece behind each such sign, but for marks that follow it.
            begins = word.start() + first
            if (
                begins > start
                and (unspaced(answer[begins - 1]) or unspaced(answer[begins]))
                and in_word(answer[begins])
            ):
                found.append((start, begins))
                start = begins
        found.append((start, word.end()))
    return found
