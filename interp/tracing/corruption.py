"""Corruptions: how the prompt is damaged so that exchanging one state can show where the rule is
kept.

Noise on the embeddings of some tokens, drawn by a *noise rule*, or a *counterfactual prompt*: the
same wording about another rule, of as many tokens. Rules are written as ROME writes them:

=======  ===========================================================================================
``e3``   Gaussian, 3 standard deviations of all token embeddings (the default)
``s3``   Gaussian, 3 standard deviations of the embeddings of the rules' subjects (ROME's default)
``0.1``  Gaussian, of that standard deviation in embedding units
``m``    multivariate Gaussian with mean and covariance of the embeddings of running text
``t5``   Student's t with 5 degrees of freedom (more than 2) and the mean and covariance of ``m``
``u2``   uniform between -2 and 2
=======  ===========================================================================================

Source: ROME, causal_trace.py.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.config import NOISE_RULE, TraceConfig
from interp.errors import InputError, NotTraceableError
from interp.models import corpus
from interp.models.loading import Encoding, LanguageModel
from interp.models.tokens import word_positions
from interp.rules.sources import Rule, Twin
from interp.rules.spans import check_phrases
from interp.tracing.cases import CorruptedPrompt
from interp.vocabulary import CorruptedSpan

SPAN_ROLES: dict[str, tuple[str, ...]] = {
    "subject": ("subject_first", "subject_middle", "subject_last"),
    "subject+rule": ("subject_first", "subject_middle", "subject_last", "rule_word"),
    "numbers": ("number",),
    "content": ("subject_first", "subject_middle", "subject_last", "rule_word", "number"),
}
TEXT_TOKENS = 20_000
"""Tokens of running text whose embeddings give the covariance of `m` and `t`."""


def corrupted_positions(roles: Sequence[str], span: CorruptedSpan) -> list[int]:
    """Positions of the tokens that a span names, by their roles.

    Raises:
        ValueError: The prompt has no such token.
    """
    positions = [i for i, role in enumerate(roles) if role in SPAN_ROLES[span]]
    if not positions:
        raise NotTraceableError(
            f"no token to corrupt: span {span!r} needs a role of {SPAN_ROLES[span]}, "
            f"the prompt has {sorted(set(roles))}"
        )
    return positions


def phrase_positions(encoding: Encoding, phrases: Iterable[str]) -> list[int]:
    """Positions of the tokens of given words or phrases (an explicit span).

    Raises:
        TextError: One of them is not in the prompt, or there is none.
    """
    phrases = tuple(phrases)
    check_phrases(encoding.text, phrases)
    return sorted({p for span in word_positions(encoding, phrases) for p in span})


@dataclass(frozen=True)
class NoiseRule:
    """How noise vectors are drawn; `text` is the rule in words, `std` its deviation per entry
    where it has one.
    """

    text: str
    std: float
    mean: Float[Tensor, " d_model"] | None = None
    root: Float[Tensor, "d_model d_model"] | None = None
    """Square root of the covariance: root @ root.T."""
    degrees: float | None = None

    def draw(
        self, samples: int, n_tokens: int, d_model: int, *, seed: int, stream: int = 0
    ) -> Float[Tensor, "sample corrupted d_model"]:
        """Noise for the embeddings of the corrupted tokens.

        The same draws serve every site of a prompt (common random numbers), so differences between
        sites are not differences in noise, whatever the batching. More samples begin with the same
        ones.

        Args:
            samples: Number of noise samples.
            n_tokens: Number of corrupted tokens.
            d_model: Width of the embeddings.
            seed: The user's seed.
            stream: Distinguishes prompts, so that their draws are independent.
        """
        generator = torch.Generator().manual_seed((seed * 1_000_003 + stream) % 2**63)
        if self.text.startswith("u"):
            uniform = torch.stack(
                [torch.rand(n_tokens, d_model, generator=generator) for _ in range(samples)]
            )
            return self.std * 3**0.5 * (2 * uniform - 1)
        # Sample by sample, so that the first ones do not depend on how many there are.
        noise = torch.stack(
            [torch.randn(n_tokens, d_model, generator=generator) for _ in range(samples)]
        )
        if self.root is None or self.mean is None:
            return self.std * noise
        noise = noise @ self.root.T
        if self.degrees is not None:
            # Student's t is a Gaussian over the root of an independent chi-squared over its
            # degrees; with degrees - 2 in their place it has the Gaussian's covariance.
            squares = np.random.default_rng([seed % 2**63, stream]).chisquare(
                self.degrees, (samples, n_tokens, 1)
            )
            noise = noise * torch.from_numpy(((self.degrees - 2) / squares) ** 0.5).float()
        return noise + self.mean


def gaussian_noise(
    samples: int, n_tokens: int, d_model: int, *, std: float, seed: int, stream: int = 0
) -> Float[Tensor, "sample corrupted d_model"]:
    """Gaussian noise of a standard deviation in embedding units (see `NoiseRule.draw`).

    Source: ROME, causal tracing (3 embedding standard deviations, 10 samples).
    """
    return NoiseRule(f"{std:g}", std).draw(samples, n_tokens, d_model, seed=seed, stream=stream)


def noise_rule(
    text: str,
    model: LanguageModel,
    subjects: Iterable[str] = (),
    corpus: Callable[[], Iterable[str]] = tuple,
) -> NoiseRule:
    """Make a noise rule for a model.

    Args:
        text: The rule, as in the module's table.
        model: Whose embeddings give the scale.
        subjects: The subjects of all rules of a run (`s`).
        corpus: Gives paragraphs of running text (`m`, `t`); called only if they are needed.

    Raises:
        ValueError: The rule is none of the table, or what it needs is missing.
    """
    if not re.fullmatch(NOISE_RULE, text):
        raise InputError(
            f"noise {text!r}: give e3, s3, m, t5, u2 (any numbers) or a standard deviation such"
            " as 0.1"
        )
    kind, number = (text[0], text[1:]) if text[0].isalpha() else ("", text)
    scale = float(number or 1)
    if kind == "":
        return NoiseRule(text, scale)
    if kind == "u":
        return NoiseRule(text, scale / 3**0.5)
    if kind == "e":
        return NoiseRule(text, scale * model.embedding_std())
    if kind == "s":
        return NoiseRule(text, scale * _subjects_std(text, model, subjects))
    if kind == "t" and scale <= 2:
        raise InputError(
            f"noise {text!r}: Student's t has a covariance only above 2 degrees of freedom"
        )
    return _text_noise(text, model.embeddings(_some_text(model, corpus())), scale)


def _subjects_std(text: str, model: LanguageModel, subjects: Iterable[str]) -> float:
    ids = [i for subject in dict.fromkeys(subjects) for i in model.encode(subject).ids]
    if not ids:
        raise InputError(
            f"noise {text!r} takes its scale from the rules' subjects, and there is none"
        )
    return model.embeddings(ids).std().item()


def _text_noise(text: str, embeddings: Float[Tensor, "token d_model"], scale: float) -> NoiseRule:
    """`m` and `t`: mean and covariance of the embeddings of running text."""
    vectors = embeddings.double()
    covariance = torch.cov(vectors.T)
    values, directions = torch.linalg.eigh(covariance)
    root = (directions * values.clamp_min(0).sqrt()).float()
    std = (covariance.trace() / len(covariance)).sqrt().item()
    degrees = scale if text.startswith("t") else None
    return NoiseRule(text, std, vectors.mean(0).float(), root, degrees)


def noise_of(model: LanguageModel, config: TraceConfig, rules: Iterable[Rule]) -> NoiseRule:
    """The noise rule of a run; its scale may depend on the subjects of all its rules. None for
    counterfactual prompts.

    Raises:
        ValueError: It needs subjects or text that are not there.
    """
    if config.corruption == "counterfactual":
        return NoiseRule("none", 0.0)
    subjects = [prompt.subject for rule in rules for prompt in rule.forms.values()]
    return noise_rule(config.noise, model, subjects, lambda: corpus.paragraphs()[1])


def counterfactual(
    model: LanguageModel,
    encoding: Encoding,
    answer: Sequence[int],
    twins: Iterable[Twin],
    roles: Sequence[str],
) -> tuple[CorruptedPrompt, str]:
    """The case of the first twin whose tokens align with the prompt's, and that twin's prompt.

    Aligned means: as many words, each of as many tokens as the prompt's, and among the words that
    differ is one that names the rule (subject, rule word, number). Others may differ too, such as
    the symbol of the result.

    Args:
        model: The model.
        encoding: The prompt.
        answer: Its answer.
        twins: Counterfactual prompts with their answers, best first.
        roles: Token roles of the prompt.

    Raises:
        ValueError: No twin aligns; says why each does not.
    """
    reasons = []
    for twin in twins:
        prompt, other = twin.prompt, model.encode(twin.prompt)
        if reason := _misalignment(encoding, other, roles):
            reasons.append(f"{prompt!r} {reason}")
            continue
        alternative = model.encode_continuation(twin.answer, prompt, twin.space)
        model.need_room(
            len(other.ids) + len(alternative) - 1,
            f"the counterfactual prompt {prompt!r} with its answer",
        )
        case = CorruptedPrompt(
            encoding.ids,
            tuple(answer),
            tuple(_differing(encoding, other)),
            counterfactual=other.ids,
            alternative=alternative,
        )
        return case, prompt
    why = "; ".join(reasons) or "it has none"
    raise NotTraceableError(f"no counterfactual prompt aligns with {encoding.text!r}: {why}")


def _misalignment(encoding: Encoding, other: Encoding, roles: Sequence[str]) -> str:
    """Why another prompt does not align with a prompt; "" if it does."""
    if len(other.ids) != len(encoding.ids):
        return f"has {len(other.ids)} tokens, not {len(encoding.ids)}"
    if _words(other) != _words(encoding):
        return "has words of other lengths, so that its tokens stand against other words"
    positions = _differing(encoding, other)
    if not positions:
        return "has the same tokens"
    if not {"rule_word", "number", *SPAN_ROLES["subject"]} & {roles[i] for i in positions}:
        return "differs at no token that names the rule"
    return ""


def _differing(encoding: Encoding, other: Encoding) -> list[int]:
    """Positions at which two prompts of as many tokens differ."""
    pairs = zip(encoding.ids, other.ids, strict=True)
    return [i for i, (token, twin) in enumerate(pairs) if token != twin]


def _words(encoding: Encoding) -> list[int]:
    """The word that each token belongs to, counted by the white space before its end."""
    return [len(encoding.text[:end].split()) for _, end in encoding.offsets]


def _some_text(model: LanguageModel, paragraphs: Iterable[str]) -> list[int]:
    ids: list[int] = []
    for paragraph in paragraphs:
        ids += model.encode(paragraph).ids
        if len(ids) >= TEXT_TOKENS:
            break
    if len(ids) < 2:
        raise InputError("noise m and t take their covariance from running text, and there is none")
    return ids[:TEXT_TOKENS]
