"""Prompts that an edit keeps: of training rules, which are neither edited nor evaluated.

A prompt is followed by its true answer, and what the model says now at each of those tokens should
stay. So nothing new is learned, also where the model does not know the answer; and locality is
scored at such places, too, along the answers of other prompts.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

from editing.config import EditorSettings
from editing.edits.requests import EditRequest, requests_of
from interp.errors import InputError
from interp.models.loading import LanguageModel
from interp.rules.schema import LocalityProbe
from interp.rules.scripts import words
from interp.rules.sources import Rule


def other_rules(rules: Sequence[Rule], requests: Sequence[EditRequest]) -> list[Rule]:
    """Rules with another id and subject than those that are edited."""
    ids = {request.rule for request in requests}
    subjects = {request.subject.casefold() for request in requests}
    return [
        rule for rule in rules if rule.id not in ids and rule.subject.casefold() not in subjects
    ]


def retained(
    settings: EditorSettings,
    rules: Sequence[Rule],
    requests: Sequence[EditRequest],
    evaluated: Sequence[Rule],
) -> list[EditRequest]:
    """As many prompts with their true answers as the settings say, in a random order of their seed.

    With more prompts those of fewer are among them.

    Args:
        settings: How many, and the seed.
        rules: Rules to take them from.
        requests: What is edited: no rule of the same id or subject is taken.
        evaluated: Rules that are evaluated: neither they nor rules that their locality prompts ask
            about are taken.

    Raises:
        InputError: There are fewer.
    """
    prompts = [
        replace(request, target_new=truth[0])
        for rule in rules
        for request in requests_of(rule, "last")
        if (truth := rule.forms[request.form].target_true)
    ]
    random.Random(settings.seed).shuffle(prompts)
    usable = {rule.id for rule in other_rules(rules, requests)}
    usable -= {rule.id for rule in evaluated} | _asked_about(rules, evaluated)
    found = [prompt for prompt in prompts if prompt.rule in usable]
    if len(found) < settings.retained:
        raise InputError(
            f"edit.retained is {settings.retained}, and there are {len(found)} prompts of training"
            " rules that are neither edited nor asked about in an evaluation; take a smaller number"
        )
    return found[: settings.retained]


def check_room(
    model: LanguageModel, prompts: Sequence[EditRequest], settings: EditorSettings
) -> None:
    """See that a closed form can leave the outputs of all tokens of some prompts as they are.

    Raises:
        InputError: There are as many tokens as a block has directions.
    """
    # A token has one key behind one text.
    texts = [(*model.encode(each.prompt).ids, *each.target_ids(model)) for each in prompts]
    keys = {text[:end] for text in texts for end in range(1, len(text) + 1)}
    size = model.down_projection(0).weight.numel() // model.d_model
    if len(keys) >= size:
        raise InputError(
            f"edit.retained is {settings.retained} and edit.neighbours is {settings.neighbours}:"
            f" {settings.editor} leaves the outputs of all tokens of these prompts as they are, and"
            f" {len(keys)} tokens leave none of {size} directions to write; take smaller numbers"
        )


def probe_words(rules: Sequence[Rule]) -> set[frozenset[str]]:
    """The words of each locality prompt of some rules, in small letters."""
    return {frozenset(words(probe.prompt.casefold())) for probe in _probes(rules)}


def _probes(rules: Sequence[Rule]) -> list[LocalityProbe]:
    return [
        probe
        for rule in rules
        for form in rule.forms.values()
        for probe in (*form.neighborhood, *form.distracting)
    ]


def _asked_about(rules: Sequence[Rule], evaluated: Sequence[Rule]) -> set[str]:
    """Rules that a locality prompt asks about: by name, or it has all words of their name."""
    texts = probe_words(evaluated)
    found = {probe.rule for probe in _probes(evaluated) if probe.rule is not None}
    for rule in rules:
        named = frozenset(words(" ".join((rule.subject, *rule.rule_words)).casefold()))
        if any(named <= text for text in texts):
            found.add(rule.id)
    return found
