"""Edit requests: what an editor is asked to change, one per rule form."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from interp.rules import Rule, RuleForm
from interp.tokens import Span, lookup_span

REWORDINGS: dict[RuleForm, tuple[str, ...]] = {
    "formula": ("State the formula for the {name}:", "What is the formula for the {name}?"),
    "description": ("State in one short sentence how to find the {name}:", "In words, the {name} is"),
    "instance": ("Compute the {name} for {numbers}:", "What is the {name} for {numbers}?"),
}
"""Further wordings of a request, made from what it knows anyway: the rule's name and the instance's numbers."""


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


def requests_of(rule: Rule, lookup: str, *, rewordings: bool = False) -> list[EditRequest]:
    """One request for each form of a rule, and its `REWORDINGS` if they are wanted.

    Raises:
        ValueError: A prompt has no place for the lookup.
    """
    requests = [
        EditRequest(rule.id, form, p.prompt, p.subject, rule.rule_words, p.target_new) for form, p in rule.forms.items()
    ]
    if rewordings:
        requests = [each for request in requests for each in (request, *_reworded(request, rule.name))]
    for request in requests:
        request.lookup_span(lookup)
    return requests


def _reworded(request: EditRequest, name: str) -> Iterator[EditRequest]:
    """The request in other words; none that do not name the subject as the prompt does."""
    numbers = re.findall(r"\d+(?:\.\d+)?", request.prompt)
    said = " and ".join([", ".join(numbers[:-1]), numbers[-1]] if len(numbers) > 1 else numbers)
    for wording in REWORDINGS[request.form]:
        prompt = wording.format(name=name.removeprefix("the "), numbers=said)
        if request.subject in prompt and (said or "{numbers}" not in wording):
            yield replace(request, prompt=prompt)


def of_forms(requests: Sequence[EditRequest], forms: Sequence[str]) -> list[EditRequest]:
    """The requests for some forms, in order."""
    return [request for request in requests if request.form in forms]
