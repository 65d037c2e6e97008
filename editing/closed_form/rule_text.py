"""Plain text mixed with what is said of training rules: a corpus for statistics of keys where rules
are asked for.

A closed form leaves alone what the statistics have seen. Running text hardly has a prompt that asks
for a formula, so an edit by its statistics alone also changes how other rules are answered;
sentences of rules that are only trained on, with their true answers, tell it what to leave.
"""

import hashlib
from collections.abc import Iterator, Sequence

from interp.rules.joining import join
from interp.rules.sources import Rule


def sentences(rules: Sequence[Rule]) -> list[str]:
    """Prompts, rephrasings and locality prompts with their true answers, each once, in an order
    that is no rule's.
    """
    found: set[str] = set()
    for rule in rules:
        for form in rule.forms.values():
            if form.target_true:
                truth, space = form.target_true[0], form.space
                found |= {
                    join(prompt, truth, space).text for prompt in (form.prompt, *form.rephrasings)
                }
            others = (*form.neighborhood, *form.distracting)
            found |= {join(probe.prompt, probe.answer, probe.space).text for probe in others}
    return sorted(found, key=lambda text: hashlib.sha256(text.encode()).digest())


def mixed(paragraphs: Sequence[str], said: Sequence[str]) -> Iterator[str]:
    """Each paragraph followed by as many characters of sentences, until these are used up.

    >>> list(mixed(["one two", "three"], ["a b c", "d e", "f"]))
    ['one two', 'a b c', 'd e', 'three', 'f']
    """
    rest = iter(said)
    for paragraph in paragraphs:
        yield paragraph
        length = 0
        while length < len(paragraph) and (sentence := next(rest, None)) is not None:
            yield sentence
            length += len(sentence)
