"""Are prompts too long for a model? Asked before any work, of every text that a command will
run.
"""

from collections.abc import Iterable, Sequence

from editing.config import EditorSettings, EvaluateConfig
from editing.editors.registry import needs
from editing.edits.protocol import View
from editing.edits.requests import in_wordings, requests_of
from editing.evaluation.items import items_of
from editing.evaluation.scoring import Question, question_of
from interp.errors import TooLongError
from interp.models.loading import LanguageModel
from interp.rules.sources import Rule

SHOWN = 5


def check_edits(
    model: LanguageModel, rules: Sequence[Rule], arms: Iterable[EditorSettings]
) -> None:
    """See that prompts with their new answers fit into the model's positions, in the wordings and
    behind the contexts of the arms.

    Raises:
        TooLongError: Some do not; names them.
    """
    arms = list(arms)
    sampled = [each.context_tokens for each in arms if needs(each, "statistics") and each.contexts]
    longest = max(sampled, default=0)
    what = f" behind contexts of {longest} tokens (edit.context_tokens)" if longest else ""
    wordings = max((each.wordings for each in arms), default=0)
    requests = in_wordings([each for rule in rules for each in requests_of(rule, "last")], wordings)
    end = int(any(each.end_token for each in arms))
    view = View(model)
    taken = [
        (f"{each.rule}/{each.form}", _tokens(view, question_of(each), 1) + longest + end)
        for each in requests
    ]
    _refuse(model, taken, what)


def check_rules(
    model: LanguageModel, rules: Sequence[Rule], config: EvaluateConfig, before: str = ""
) -> None:
    """See that every question that evaluates some rules fits into the model's positions, with
    target and answer.

    Args:
        model: The model.
        rules: The rules.
        config: Length of the answers.
        before: What an edit puts before every prompt.

    Raises:
        TooLongError: Some do not; names them.
    """
    what = f" behind the {len(before)} characters of an in-context edit" if before else ""
    view, answer_tokens = View(model, before=before), config.answer_tokens if config.greedy else 1
    questions = {
        item.question: f"{rule.id}/{item.form} {item.metric}"
        for rule in rules
        for item in items_of(rule, config.challenges)
    }
    _refuse(
        model,
        [(where, _tokens(view, one, answer_tokens)) for one, where in questions.items()],
        what,
    )


def _tokens(view: View, question: Question, answer_tokens: int) -> int:
    prompt = len(view.model.encode(view.before + question.prompt).ids)
    target = len(view.model.encode_continuation(question.target, question.prompt, question.space))
    return prompt + max(target, answer_tokens) - 1


def _refuse(model: LanguageModel, taken: Sequence[tuple[str, int]], what: str) -> None:
    longer = [
        f"{name} ({tokens} tokens)" for name, tokens in taken if tokens > model.context_length
    ]
    if longer:
        more = f" and {len(longer) - SHOWN} more" if len(longer) > SHOWN else ""
        raise TooLongError(
            f"{len(longer)} of {len(taken)} prompts with their answers{what} are longer than the"
            f" {model.context_length} tokens that {model.name} was made for:"
            f" {', '.join(longer[:SHOWN])}{more}; shorten them, leave these rules out (rules.ids),"
            " or use a model with a longer context"
        )
