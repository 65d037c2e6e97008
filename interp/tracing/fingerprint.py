"""What the numbers of a trace depend on, as a hash and as text."""

import json

from interp.config import TraceConfig
from interp.models.loading import LanguageModel
from interp.results import effects
from interp.results.provenance import fingerprint
from interp.rules.joining import SAID, join
from interp.rules.sources import Rule, RulePrompt
from interp.tracing.corruption import NoiseRule, noise_of
from interp.vocabulary import RuleForm


def trace_fingerprint(
    model: LanguageModel,
    rule: Rule,
    form: RuleForm,
    config: TraceConfig,
    noise: NoiseRule | None = None,
) -> str:
    """Changes with everything that determines the numbers of a trace, and with nothing else.

    `noise` is that of the run; by default that of this rule alone.
    """
    prompt = rule.forms[form]
    noise = noise or noise_of(model, config, [rule])
    by_noise = config.corruption == "noise"
    return fingerprint(
        schema=effects.SCHEMA,
        weights=model.weight_hash,
        dtype=str(model.dtype),
        config=config.model_dump(exclude=set(config.neutral)),
        # The scale depends on the other rules of a run; rounding keeps it the same on every
        # machine.
        noise=f"{noise.std:.4g}" if by_noise else "",
        prompt=[prompt.prompt, prompt.subject, prompt.target_true, sorted(prompt.values)],
        twins=[] if by_noise else [(twin.prompt, twin.answer) for twin in prompt.twins],
        rule_words=rule.rule_words,
        **_joints(prompt, by_noise),
    )


def config_text(config: TraceConfig) -> str:
    """The settings that make the numbers, as JSON."""
    return json.dumps(config.model_dump(mode="json", exclude=set(config.neutral)))


def _joints(prompt: RulePrompt, by_noise: bool) -> dict[str, list[str]]:
    """How answers continue their prompts where it is not by a space, which goes without saying."""
    pairs = [(prompt.prompt, truth, prompt.space) for truth in prompt.target_true[:1]]
    pairs += [] if by_noise else [(twin.prompt, twin.answer, twin.space) for twin in prompt.twins]
    joints = [join(*pair).said for pair in pairs]
    return {"joints": joints} if set(joints) - {SAID[" "]} else {}
