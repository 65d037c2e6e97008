r"""In-context editing: the new facts are put before every prompt; the model stays as it is.

ICE puts the facts alone. IKE puts demonstrations before them, made of edits of training rules, each
of three kinds: the edited prompt is answered anew (copy), so is a rephrasing of it (update), and a
neighbour keeps its own answer (retain). The text before a prompt is

    New Fact: {prompt} {target}\nPrompt: {prompt} {target}\n\n            } for every training rule
    New Fact: {prompt} {target}\nPrompt: {rephrasing} {target}\n\n        }
    New Fact: {prompt} {target}\nPrompt: {neighbour} {its answer}\n\n     }
    New Fact: {prompt} {target}\n                                         for every request
    Prompt:␣

Source: Zheng et al. 2023 (IKE), whose format and order this keeps: the most similar demonstrations
stand last, next to the question. Differences: several requests give several facts, similarity is
the overlap of the prompts' words (there the cosine of a sentence encoder), and every training rule
gives all three kinds (there 32 demonstrations, one kind from each of 32 facts).
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from editing.config import EditorSettings
from editing.edits.protocol import EditError, View, check_model, damaged_edit, read_file, write_file
from editing.edits.requests import EditRequest
from editing.evaluation.scoring import ask, question_of
from interp.models.loading import LanguageModel
from interp.rules.joining import join
from interp.rules.scripts import words as words_of
from interp.rules.sources import Rule, RulePrompt

SCHEMA = "dmle.context/1"


@dataclass(frozen=True)
class InContext:
    """Text that is put before every prompt.

    Attributes:
        before: The text.
        model_hash: Hash of the model it was made for.
        about: Settings, requests, training rules.
    """

    before: str
    model_hash: str
    about: Mapping[str, Any] = field(default_factory=dict)

    @contextmanager
    def edited(self, model: LanguageModel) -> Iterator[View]:
        """The model with the text before every prompt, as every edit gives it (see
        `editing.edits.protocol`).

        Raises:
            EditError: It was made for another model.
        """
        check_model(model, self.model_hash, "context")
        yield View(model, before=self.before)

    def with_about(self, **more: Any) -> "InContext":
        """The same edit with more said about it."""
        return replace(self, about={**self.about, **more})

    def save(self, path: Path) -> None:
        """Write safetensors that hold no tensors, with everything in the JSON header."""
        header = {
            "schema": SCHEMA,
            "model_hash": self.model_hash,
            "before": self.before,
            "about": dict(self.about),
        }
        write_file(path, {}, header)

    @classmethod
    def load(cls, path: Path) -> "InContext":
        """Read a context written by `save`.

        Raises:
            EditError: The file is missing, damaged, or no context.
        """
        what = "context"
        _, header = read_file(path, what, SCHEMA)
        if not isinstance(before := header.get("before"), str):
            raise damaged_edit(path, what, "its header has no text")
        return cls(before, header["model_hash"], header["about"])


def ice(
    model: LanguageModel, requests: Sequence[EditRequest], settings: EditorSettings
) -> InContext:
    """The new facts before every prompt.

    Args:
        model: The model that will be asked.
        requests: What to change.
        settings: Kept with the edit.

    Raises:
        EditError: There is no request, or a request does not fit the model's context with the facts
            before it.
    """
    return _context(model, requests, settings, "ice", ())


def ike(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    settings: EditorSettings,
    training_rules: Sequence[Rule],
) -> InContext:
    """Demonstrations and the new facts before every prompt.

    A rule demonstrates nothing about itself: rules with the id or the subject of a request are left
    out, and so are neighbours that ask about a requested rule.

    Args:
        model: The model that will be asked.
        requests: What to change.
        settings: Number of training rules under `in_context.demonstrations`; fewer are taken where
            there are fewer.
        training_rules: Rules to demonstrate with. Each shows its form whose prompt is most like a
            requested one.

    Raises:
        EditError: There is no request or no training rule, or a request does not fit the model's
            context.
    """
    edited = {request.rule for request in requests}
    subjects = {request.subject.casefold() for request in requests}
    usable = [
        rule
        for rule in training_rules
        if rule.id not in edited and rule.subject.casefold() not in subjects
    ]
    if not usable:
        raise EditError(
            f"IKE has no rules to demonstrate with: {len(training_rules)} training rules, none with"
            " another id and subject than the edited rule; add rules of the split train, or"
            " use ice"
        )
    ranked: list[tuple[float, Rule, RulePrompt]] = []
    for rule in usable:
        likeness, form = max(
            ((_likeness(form.prompt, requests), form) for form in rule.forms.values()),
            key=lambda pair: pair[0],
        )
        ranked.append((likeness, rule, form))
    ranked.sort(key=lambda entry: -entry[0])
    chosen = ranked[: settings.in_context.demonstrations]
    return _context(
        model, requests, settings, "ike", [(rule, form) for _, rule, form in reversed(chosen)]
    )


def overlap(first: str, second: str) -> float:
    """Share of the words of two texts that both have (Jaccard), upper or lower case.

    >>> overlap("The area of a square is", "the area of a circle")
    0.5714285714285714
    """
    words, others = (set(words_of(text.casefold())) for text in (first, second))
    return len(words & others) / len(words | others) if words | others else 0.0


def _likeness(prompt: str, requests: Sequence[EditRequest]) -> float:
    return max(overlap(prompt, request.prompt) for request in requests)


def _context(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    settings: EditorSettings,
    editor: str,
    demonstrations: Sequence[tuple[Rule, RulePrompt]],
) -> InContext:
    if not requests:
        raise EditError("in-context editing needs at least one request, got none")
    edited = {request.rule for request in requests}
    shown = "".join(text for _, form in demonstrations for text in _demonstrations(form, edited))
    facts = "".join(
        _fact(request.prompt, request.target_new, request.space) for request in requests
    )
    before = f"{shown}{facts}Prompt: "
    # Found out here rather than after an hour of other editors.
    ask(View(model, before=before), [question_of(request) for request in requests])
    about = {
        "editor": editor,
        "requests": [dataclasses.asdict(request) for request in requests],
        "settings": settings.model_dump(mode="json"),
        "training_rules": [rule.id for rule, _ in demonstrations],
    }
    return InContext(before, model.weight_hash, about)


def _fact(prompt: str, target: str, space: bool | None) -> str:
    return f"New Fact: {join(prompt, target, space).text}\n"


def _demonstrations(form: RulePrompt, edited: set[str]) -> Iterator[str]:
    """Copy, update and retain, as far as the form has what they need."""
    fact = _fact(form.prompt, form.target_new, form.space)
    asked = [(form.prompt, form.target_new, form.space)]
    asked += [(prompt, form.target_new, form.space) for prompt in form.rephrasings[:1]]
    others = [
        probe for probe in (*form.neighborhood, *form.distracting) if probe.rule not in edited
    ]
    asked += [(probe.prompt, probe.answer, probe.space) for probe in others[:1]]
    for prompt, answer, space in asked:
        yield f"{fact}Prompt: {join(prompt, answer, space).text}\n\n"
