"""Prompts that are like the edited ones, and ask about something else: what an edit should leave.

An edited prompt becomes one of its neighbours when the subject of a training rule stands in the
place of its subject, or the rule words of one in the place of its rule words, or both. What the
model says there now should stay. So a neighbour is a hard negative: it shares the wording of the
edited prompt, and an edit that only learns the wording changes it.

Nothing but the request and training rules is read. No neighbour asks about what a locality prompt
of an evaluated rule asks about: the same subject and rule words.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

from editing.config import EditorSettings
from editing.edits.requests import EditRequest
from editing.edits.retention import other_rules, probe_words
from interp.errors import InputError
from interp.models.loading import LanguageModel
from interp.rules.scripts import words
from interp.rules.sources import Rule

ANSWER_TOKENS = 8
"""Tokens of the model's own answer along which a neighbour is retained: an edit that reaches it
shows in the first ones."""
KINDS = ("subject", "rule words", "both")


def neighbours(
    model: LanguageModel,
    settings: EditorSettings,
    rules: Sequence[Rule],
    requests: Sequence[EditRequest],
    evaluated: Sequence[Rule],
) -> list[EditRequest]:
    """As many neighbours with the model's own answers as the settings say: of each edited prompt in
    turn, of each kind in turn, with training rules in a random order of the seed.

    Args:
        model: The model as it is before the edit.
        settings: How many, and the seed.
        rules: Training rules, whose subjects and rule words are put in.
        requests: What is edited, in the rule's own wording.
        evaluated: Rules that are evaluated under the edit.

    Raises:
        InputError: There are fewer.
    """
    every = {each.prompt: each for each in _prompts(settings, rules, requests, evaluated)}
    prompts = iter(every.values())
    found: list[EditRequest] = []
    while some := list(islice(prompts, settings.neighbours - len(found))):
        found += _answered(model, some)
    if len(found) < settings.neighbours:
        raise InputError(
            f"edit.neighbours is {settings.neighbours}, and {len(found)} could be made: a prompt"
            " needs its subject or its rule words, and training rules others; take a smaller"
            " number, or name the words of the prompt that are its subject"
        )
    return found


def kept_prompts(model: LanguageModel, texts: Sequence[str]) -> list[EditRequest]:
    """Prompts of one's own, with what the model says there now.

    Raises:
        InputError: The model ends the text at once behind one of them.
    """
    prompts = [EditRequest("kept", "formula", text, text, (), "") for text in texts]
    found = _answered(model, prompts)
    if silent := set(texts) - {each.prompt for each in found}:
        raise InputError(
            f"the model says nothing behind {sorted(silent)}, so that there is nothing to keep;"
            " leave it out, or give the beginning of a sentence"
        )
    return found


def _answered(model: LanguageModel, prompts: Sequence[EditRequest]) -> list[EditRequest]:
    """The prompts with the model's own answers; without those behind which it says nothing."""
    texts = [model.encode(each.prompt).ids for each in prompts]
    found = []
    for each, ids in zip(prompts, model.generate(texts, ANSWER_TOKENS), strict=True):
        answer = model.decode(ids)
        if answer.strip():
            space = answer.startswith(" ")
            found.append(replace(each, target_new=answer.strip(), space=space))
    return found


def _prompts(
    settings: EditorSettings,
    rules: Sequence[Rule],
    requests: Sequence[EditRequest],
    evaluated: Sequence[Rule],
) -> Iterator[EditRequest]:
    """Every neighbour, without an answer."""
    others = [rule for rule in other_rules(rules, requests) if rule not in evaluated]
    random.Random(settings.seed).shuffle(others)
    probes = probe_words(evaluated)
    for turn in range(len(others) * len(KINDS)):
        kind = KINDS[turn % len(KINDS)]
        for at, request in enumerate(requests):
            other = others[(turn + at) % len(others)]
            made = _with_words_of(request, other, kind)
            asked = frozenset(words(" ".join((made.subject, *made.rule_words)).casefold()))
            if made.prompt != request.prompt and not any(asked <= probe for probe in probes):
                yield made


def _with_words_of(request: EditRequest, other: Rule, kind: str) -> EditRequest:
    """The request about another rule's subject, rule words, or both."""
    text, subject, rule_words = request.prompt, request.subject, request.rule_words
    if kind != "rule words":
        text, subject = _replaced(text, subject, other.subject), other.subject
    if kind != "subject" and other.rule_words:
        for word in rule_words:
            text = _replaced(text, word, other.rule_words[0])
        rule_words = other.rule_words[:1]
    return replace(
        request, rule=other.id, prompt=text, subject=subject, rule_words=rule_words, ends=False
    )


def _replaced(text: str, old: str, new: str) -> str:
    r"""The text with other words, with a capital letter where they had one.

    >>> _replaced("The area of a circle. Circles are round.", "circle", "cube")
    'The area of a cube. Circles are round.'
    """

    def word(match: re.Match[str]) -> str:
        return new[:1].upper() + new[1:] if match[0][:1].isupper() else new

    return re.sub(rf"(?<!\w){re.escape(old)}(?!\w)", word, text, flags=re.IGNORECASE)
