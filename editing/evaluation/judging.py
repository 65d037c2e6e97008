"""The modes of an answer: how right it is by each way of asking (`editing.evaluation.evaluate`)."""

from collections.abc import Mapping

from editing.config import EvaluateConfig
from editing.evaluation.equivalence import equivalent
from editing.evaluation.free import FreeAnswer, same, says, says_word
from editing.evaluation.greedy import greedy_exact, greedy_prefix
from editing.evaluation.scoring import OVERLAPS, Forced, agreement, divergence, overlap
from editing.evaluation.statements import first_sentences
from editing.evaluation.yes_no import YesNo
from interp.results.scores import ADDED_MODES, MODES


def modes_of(config: EvaluateConfig) -> tuple[str, ...]:
    """Modes that are asked for."""
    asked = {
        "yes_no": "fact_check" in config.challenges,
        "free": config.free_tokens > 0,
        "free_gap": config.free_tokens > 0,
        **dict.fromkeys(OVERLAPS, config.overlap),
    }
    return (*MODES, *(mode for mode in ADDED_MODES if asked[mode]))


def forced_modes(
    metric: str, target: str, unedited: Forced, now: Forced, words: YesNo, config: EvaluateConfig
) -> dict[str, float]:
    """The teacher-forced modes."""
    if metric == "locality":
        agreed = agreement(unedited, now)
        kept = {mode: overlap(unedited, now, k) for mode, k in OVERLAPS.items() if config.overlap}
        kl = divergence(unedited, now)
        return {"token_accuracy": agreed, "exact": float(agreed == 1), "kl": kl, **kept}
    if metric == "fact_check":
        right = words.right(now, target)
        return {} if right is None else {"yes_no": right}
    return {"token_accuracy": now.token_accuracy, "exact": now.exact, "log_prob": now.log_prob}


def greedy_modes(metric: str, target: str, unedited: str, now: str) -> dict[str, float]:
    """The modes of a greedy answer; one that does not apply is left out."""
    target = first_sentences(unedited) if metric == "locality" else target
    judged = {
        "greedy_exact": greedy_exact(now, target),
        "greedy_prefix": greedy_prefix(now, target),
        "equivalent": equivalent(now, target),
    }
    return {mode: float(value) for mode, value in judged.items() if value is not None}


def free_modes(
    metric: str,
    target: str,
    unedited: FreeAnswer,
    now: FreeAnswer,
    forced: Mapping[str, float],
) -> dict[str, float]:
    """The modes of a free answer.

    Args:
        metric: What the question is asked for.
        target: The answer that is wanted.
        unedited: What the unedited model says.
        now: What is judged.
        forced: The teacher-forced modes of the same question.
    """
    if metric == "locality":
        free = float(same(now, unedited))
    elif metric == "fact_check":
        free = float(says_word(now, target))
    else:
        free = float(says(now, target))
    shares = [forced[mode] for mode in ("token_accuracy", "yes_no") if mode in forced]
    return {"free": free} | ({"free_gap": shares[0] - free} if shares else {})
