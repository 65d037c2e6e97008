"""Tracing a prompt of one's own: what `dmle trace-prompt` checks, runs and says. Torch is
imported late.

A prompt is traced as a rule of one form whose name is the given rule words; it needs no rulebook
and no run folder.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.config import TraceConfig
from interp.errors import DmleError, TooLongError
from interp.results.plots import PLOT_SUFFIXES, check_place, check_plot
from interp.rules.scripts import checked, needed
from interp.rules.sources import Rule, RulePrompt
from interp.rules.spans import char_spans, check_phrases, subject_spans

if TYPE_CHECKING:
    import xarray as xr

    from interp.models.loading import LanguageModel

DEFAULT_MAP = Path("map.nc")
DEFAULTS: dict[str, Any] = {"positions": "all", "answer_tokens": 4}
"""Trace settings that differ for a single prompt: all its tokens can be afforded, and a fact is
a short answer."""
STRONGEST = 3
"""Tokens that are listed for each component."""
FORM = "description"
"""Rules have forms and a prompt has none; the name is written nowhere."""
SAID_OF_SOURCE = {"given": "given", "greedy": "the model's own greedy answer"}


@dataclass(frozen=True)
class PromptRequest:
    """A prompt to trace, and where its map and its figure go."""

    prompt: str
    subject: str
    """Corrupted wherever it stands in the prompt."""
    answer: str | None = None
    """What is scored. Default: the model's own greedy answer, up to the end of its first line."""
    words: tuple[str, ...] = ()
    """Further words of the prompt that name what is asked; corrupted with the subject."""
    plot: Path | None = None
    out: Path | None = None
    space: bool | None = None
    """Whether a space is between prompt and answer. Default: as `interp.rules.joining` decides."""

    @property
    def map_path(self) -> Path:
        """Where the effect map goes: `out`, or beside the figure, or `map.nc` here."""
        return self.out or (self.plot.with_suffix(".nc") if self.plot else DEFAULT_MAP)

    @property
    def rule(self) -> Rule:
        """The prompt as a rule."""
        # A blank answer may be the model's own, and is no answer of a rule.
        answers = (self.answer,) if self.answer and self.answer.strip() else ()
        prompt = RulePrompt(
            prompt=self.prompt,
            subject=self.subject,
            target_new="-",
            target_true=answers,
            space=self.space,
        )
        return Rule(
            id="prompt",
            name=" ".join(self.words) or self.subject,
            subject=self.subject,
            forms={FORM: prompt},
        )

    def check(self, config: TraceConfig, *, overwrite: bool = False) -> None:
        """See that the prompt can be traced and the files can be written, as far as that shows
        without a model.

        Raises:
            ValueError: It cannot; says what was given, what is needed, and how to mend it.
        """
        self._check_text(config)
        if self.plot is not None:
            check_plot("prompt", self.plot, "--plot")
        if self.map_path.suffix.lower() in PLOT_SUFFIXES:
            raise DmleError(
                f"--out {self.map_path} is for the effect map, a NetCDF file; give a name ending"
                " in .nc"
            )
        check_place(self.map_path, "--out")
        if self.map_path.exists() and not overwrite:
            _check_replaceable(self.map_path)

    def _check_text(self, config: TraceConfig) -> None:
        needed(self.prompt, "--prompt")
        needed(self.subject, "--subject")
        if self.answer is not None and not checked(self.answer, "--answer"):
            raise DmleError("--answer is ''; text is needed")
        for word in self.words:
            needed(word, "--words")
        subject_spans(self.prompt, self.subject)
        for word in self.words:
            if not char_spans(self.prompt, word, ignore_case=True):
                raise DmleError(
                    f"--words: {word!r} is no word of the prompt {self.prompt!r}; write it as it"
                    " stands there"
                )
            if word.lower() not in self.rule.rule_words:
                raise DmleError(
                    f"--words: {word!r} names nothing (a stop word, a single letter, part of the"
                    " subject, or several words); choose another, or corrupt exactly what you like"
                    " by --span WORD,WORD"
                )
        if config.corruption == "counterfactual":
            raise DmleError(
                "trace.corruption is counterfactual, which takes another rule's prompt from a"
                " rulebook; a single prompt is corrupted by noise: leave trace.corruption out, or"
                " trace rules with `dmle trace`"
            )
        if not isinstance(config.span, str):
            check_phrases(self.prompt, config.span)


def trace_one(
    model: "LanguageModel",
    request: PromptRequest,
    config: TraceConfig,
    *,
    advance: Callable[[float], object] = lambda share: None,
) -> "xr.Dataset":
    """The effect map of the prompt (see `interp.results.effects`).

    Args:
        model: The model.
        request: The prompt.
        config: Settings of the trace; which answer is scored is up to the request.
        advance: Called with the share of the work done since the last call.

    Raises:
        ValueError: The prompt has no token to corrupt, or the model's own answer is empty.
    """
    from interp.tracing.answers import given_answer, own_answer
    from interp.tracing.prompt import too_long, trace_prompt

    rule = request.rule
    config = config.model_copy(update={"answer": "greedy" if request.answer is None else "auto"})
    if reason := too_long(model, rule, FORM, config):
        raise TooLongError(reason)
    encoding, n_tokens = model.encode(request.prompt), config.answer_tokens
    if request.answer is None:
        answer = own_answer(model, encoding, n_tokens, one_line=True)
    else:
        given, space = request.answer, request.space
        answer = given_answer(model, encoding, given, "given", n_tokens, space=space, one_line=True)
    traced = trace_prompt(model, rule, FORM, config, answer=answer, advance=advance)
    del traced.attrs["rule_name"]  # it has none
    return traced


def report(effects: "xr.Dataset") -> list[str]:
    """What the map of one prompt (and one metric) shows, in a few lines."""
    from interp.results.effects import TRACEABLE_STANDARD_ERRORS, indirect_effect, total_effect

    te = total_effect(effects)
    total, error = float(te["total_effect"]), float(te["standard_error"])
    marks = zip(effects["token"].values, effects["is_corrupted"].values, strict=True)
    unit, attrs = str(effects.attrs["unit"]), effects.attrs
    lines = [
        (
            "tokens (* corrupted):"
            f" {' '.join(f'{str(token)!r}' + '*' * bool(corrupted) for token, corrupted in marks)}"
        ),
        (
            f"answer: {str(effects['answer'].item())!r}"
            f" ({SAID_OF_SOURCE[attrs['answer_source']]}){_joint(attrs)}"
        ),
        (
            f"score: clean {float(effects['clean']):.3f}, corrupted"
            f" {float(effects['corrupted'].mean()):.3f}; total effect {total:.3f} ± {error:.3f}"
            f" {unit} (standard error over {effects.sizes['sample']} noise samples)"
        ),
    ]
    if typed := attrs.get("typed_tokens"):
        lines.append(
            "special tokens written in the prompt, each taken as one token and none added twice:"
            f" {typed}"
        )
    bound = f"{TRACEABLE_STANDARD_ERRORS:g} standard errors"
    if bool(te["traceable"]):
        lines.append(f"traceable: yes, the total effect is above {bound}")
    else:
        lines.append(
            f"traceable: NO, the total effect is not above {bound}, so the map means nothing;"
            " corrupt more of what names the answer (--words), or take more samples (--samples)"
        )
    return lines + _strongest_cells(indirect_effect(effects), attrs)


def _joint(attrs: Mapping[str, Any]) -> str:
    joint = attrs.get("answer_joint", "")
    return f", {joint}" if joint and attrs["answer_source"] == "given" else ""


def _strongest_cells(effect: "xr.DataArray", attrs: Mapping[str, Any]) -> list[str]:
    """A line for each component."""
    lines = [f"strongest cells (indirect effect in {attrs['unit']}; the best layer of each token):"]
    for component in effect["component"].values:
        wide = component in ("mlp", "attn") and attrs["window"] > 1
        name = (
            f"{component} (windows of {attrs['window']} layers around)" if wide else str(component)
        )
        lines.append(f"  {name}: {'; '.join(_strongest(effect.sel(component=component)))}")
    return lines


def _strongest(effect: "xr.DataArray") -> list[str]:
    """The largest effects of one component, one for each token."""
    of_token = effect.max(
        "layer"
    )  # tokens that were not traced are NaN, those before the corrupted ones 0
    listed = []
    for pos in np.argsort(-of_token.values, kind="stable")[:STRONGEST]:
        if of_token.values[pos] > 0:
            column = effect.isel(pos=pos)
            token, mark = str(column["token"].item()), "*" * bool(column["is_corrupted"].item())
            layer = int(column["layer"].values[int(column.argmax("layer"))])
            listed.append(f"layer {layer} at {token!r}{mark} {of_token.values[pos]:+.3f}")
    return listed or ["none helps"]


def _check_replaceable(path: Path) -> None:
    """A map of one prompt may be replaced; other files are somebody's work."""
    from interp.results import effects

    with suppress(OSError, ValueError), effects.opened(path) as found:
        if (
            str(found.attrs.get("schema", "")).startswith("dmle.effects")
            and "rule" not in found.dims
        ):
            return
    raise DmleError(
        f"{path} is there and is no effect map of one prompt; give another by --out, or"
        " --overwrite it"
    )
