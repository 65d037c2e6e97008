r"""IKE: in-context editing with demonstrations before the new facts.

Demonstrations are made of edits of training rules, each of three kinds: the edited prompt is
answered anew (copy), so is a rephrasing of it (update), and a neighbour keeps its own answer
(retain). The text before a prompt is

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

from collections.abc import Iterator, Sequence

from editing.closed_form.workbench import Workbench
from editing.editors.ice import InContext, fact, in_context
from editing.editors.registry import register
from editing.edits.protocol import EditError
from editing.edits.requests import EditRequest
from editing.edits.retention import other_rules
from interp.rules.joining import join
from interp.rules.scripts import words as words_of
from interp.rules.sources import Rule, RulePrompt


@register("ike", needs=("training rules",), makes=InContext, in_order=True)
def edit(bench: Workbench) -> InContext:
    """Demonstrations and the new facts before every prompt.

    A rule demonstrates nothing about itself: rules with the id or the subject of a request are left
    out, and so are neighbours that ask about a requested rule.

    Args:
        bench: Model, requests and rules to demonstrate with, as many of them as
            `in_context.demonstrations`, or fewer where there are fewer. Each shows its form whose
            prompt is most like a requested one.

    Raises:
        EditError: There is no training rule, or a request does not fit the model's context.
    """
    ids = {request.rule for request in bench.requests}
    chosen = _most_alike(_usable(bench), bench.requests)[: bench.settings.in_context.demonstrations]
    texts = [text for _, form in reversed(chosen) for text in _demonstrations(form, ids)]
    shown = [rule.id for rule, _ in reversed(chosen)]
    return in_context(bench, "".join(texts), training_rules=shown)


def _usable(bench: Workbench) -> list[Rule]:
    """Rules with another id and subject than the requests.

    Raises:
        EditError: There is none.
    """
    rules = bench.training_rules
    usable = other_rules(rules, bench.requests)
    if not usable:
        raise EditError(
            f"IKE has no rules to demonstrate with: {len(rules)} training rules, none with another"
            " id and subject than the edited rule; add rules of the split train, or use ice"
        )
    return usable


def _most_alike(
    rules: Sequence[Rule], requests: Sequence[EditRequest]
) -> list[tuple[Rule, RulePrompt]]:
    """Rules, each with its form that is most like a request, the most alike first."""
    ranked: list[tuple[float, Rule, RulePrompt]] = []
    for rule in rules:
        likeness, form = max(
            ((_likeness(form.prompt, requests), form) for form in rule.forms.values()),
            key=lambda pair: pair[0],
        )
        ranked.append((likeness, rule, form))
    ranked.sort(key=lambda entry: -entry[0])
    return [(rule, form) for _, rule, form in ranked]


def overlap(first: str, second: str) -> float:
    """Share of the words of two texts that both have (Jaccard), upper or lower case.

    >>> overlap("The area of a square is", "the area of a circle")
    0.5714285714285714
    """
    words, others = (set(words_of(text.casefold())) for text in (first, second))
    return len(words & others) / len(words | others) if words | others else 0.0


def _likeness(prompt: str, requests: Sequence[EditRequest]) -> float:
    return max(overlap(prompt, request.prompt) for request in requests)


def _demonstrations(form: RulePrompt, edited: set[str]) -> Iterator[str]:
    """Copy, update and retain, as far as the form has what they need."""
    stated = fact(form.prompt, form.target_new, form.space)
    asked = [(form.prompt, form.target_new, form.space)]
    asked += [(prompt, form.target_new, form.space) for prompt in form.rephrasings[:1]]
    others = [
        probe for probe in (*form.neighborhood, *form.distracting) if probe.rule not in edited
    ]
    asked += [(probe.prompt, probe.answer, probe.space) for probe in others[:1]]
    for prompt, answer, space in asked:
        yield f"{stated}Prompt: {join(prompt, answer, space).text}\n\n"
