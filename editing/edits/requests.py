"""Edit requests: what an editor is asked to change, one per rule form."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

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

    def lookup_span(self, lookup: str) -> Span:
        """Characters of the prompt at whose last token the edit reads its key (see
        `interp.models.tokens`).
        """
        return lookup_span(self.prompt, lookup, self.subject, self.rule_words)


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


def words_of(request: EditRequest) -> list[EditRequest]:
    """The request word by word: the next word of the answer, behind the prompt and the words before
    it.

    Looked up at the last token, each word has a key of its own. What an edit writes there also
    holds where the same words follow another prompt, which is what rephrased questions ask for.

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
        if not first:
            found.append(replace(request, target_new=answer[first:last]))
            continue
        before = joined.prompt + joined.answer[: ahead + first]
        spaced = before.endswith(" ")
        prompt, piece = before[: len(before) - spaced], answer[first:last]
        usual = joint(prompt, piece) == (" " if spaced else "")
        found.append(
            replace(request, prompt=prompt, target_new=piece, space=None if usual else spaced)
        )
    return found


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
