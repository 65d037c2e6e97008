"""Edit requests: what an editor is asked to change, one per rule form."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from interp.rules import Rule, RuleForm
from interp.tokens import Span, lookup_span


@dataclass(frozen=True)
class EditRequest:
    """Make the model continue `prompt` with `target_new`."""

    rule: str
    form: RuleForm
    prompt: str
    subject: str
    rule_words: tuple[str, ...]
    target_new: str

    def lookup_span(self, lookup: str) -> Span:
        """Characters of the prompt at whose last token the edit reads its key (see `interp.tokens`)."""
        return lookup_span(self.prompt, lookup, self.subject, self.rule_words)


def requests_of(rule: Rule, lookup: str) -> list[EditRequest]:
    """One request for each form of a rule.

    Raises:
        ValueError: A prompt has no place for the lookup.
    """
    requests = [
        EditRequest(rule.id, form, p.prompt, p.subject, rule.rule_words, p.target_new) for form, p in rule.forms.items()
    ]
    for request in requests:
        request.lookup_span(lookup)
    return requests


def of_forms(requests: Sequence[EditRequest], forms: Sequence[str]) -> list[EditRequest]:
    """The requests for some forms, in order."""
    return [request for request in requests if request.form in forms]


def words_of(request: EditRequest) -> list[EditRequest]:
    """The request word by word: the next word of the answer, behind the prompt and the words before it.

    Looked up at the last token, each word has a key of its own. What an edit writes there also holds where the same
    words follow another prompt, which is what rephrased questions ask for.

    Source: the chunks of AnyEdit (Jiang et al. 2025, arXiv 2502.05628), here with one closed form for all of them.
    """
    answer = request.target_new
    return [
        replace(
            request,
            prompt=f"{request.prompt} {answer[: word.start()].rstrip()}" if word.start() else request.prompt,
            target_new=word.group(),
        )
        for word in re.finditer(r"\S+", answer)
    ]
