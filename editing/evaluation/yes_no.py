"""Whether a model thinks yes or no likelier: the probability of either, in all its spellings.

A spelling is counted where yes and no are one token each, with or without a space before them, so
that neither has more ways to be said than the other.
"""

from dataclasses import dataclass

import torch

from editing.evaluation.scoring import Forced
from interp.models.loading import LanguageModel
from interp.rules.challenges import NO, YES

SPELLINGS = ((YES, NO), (YES.lower(), NO.lower()), (YES.upper(), NO.upper()))
BEFORE = "Answer:"
"""What stands before the word."""


@dataclass(frozen=True)
class YesNo:
    """Tokens that say yes, and those that say no; none where a tokenizer has them in no spelling
    as one token.
    """

    yes: tuple[int, ...]
    no: tuple[int, ...]

    def right(self, said: Forced, target: str) -> float | None:
        """1 if the right word is the likelier one as the answer's first token, else 0, also where
        both are equally likely; None if the tokenizer has no such tokens.
        """
        if not self.yes:
            return None
        first = said.log_probs[0]
        yes, no = (torch.logsumexp(first[list(ids)], 0).item() for ids in (self.yes, self.no))
        return float(yes > no if target == YES else no > yes)


def yes_no_of(model: LanguageModel) -> YesNo:
    """The tokens of a model for yes and no."""
    pairs = {
        (yes[0], no[0])
        for spelling in SPELLINGS
        for space in (True, False)
        for yes, no in [tuple(_tokens(model, word, space=space) for word in spelling)]
        if len(yes) == len(no) == 1 and yes != no
    }
    return YesNo(tuple(sorted({yes for yes, _ in pairs})), tuple(sorted({no for _, no in pairs})))


def _tokens(model: LanguageModel, word: str, *, space: bool) -> tuple[int, ...]:
    return model.encode_continuation(word, BEFORE, space)
