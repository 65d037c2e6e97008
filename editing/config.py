"""Settings of the `editing` steps, checked before any work starts."""

from typing import Literal

from pydantic import Field

from interp.config import Section
from interp.rules import Split

EditorName = Literal["dmle", "memit"]
Lookup = Literal["subject_last", "rule_word_last", "last"]


class CovarianceConfig(Section):
    """Second moments of keys, measured on the unedited model over plain text."""

    corpus: str = "embedded"
    """"embedded" (an excerpt of Wikipedia), or a text file with one paragraph per line."""
    tokens: int = Field(default=100_000, ge=1)
    max_length: int = Field(default=256, ge=2)
    """Longest piece of text run at once, in tokens."""
    batch_size: int = Field(default=8, ge=1)


class EditConfig(Section):
    """Editing with MEMIT's closed form. Source of the defaults: EasyEdit's MEMIT settings for 7B models."""

    editors: tuple[EditorName, ...] = ("dmle", "memit")
    layers: str = "auto"
    """Layers of DMLE: "auto" (the run's selection), a selection.json, or "3,4,5/12,13,14"."""
    memit_layers: str = "auto"
    """The one block of MEMIT: "auto" (the published 4-8 of a 28 to 32 block model, scaled to the depth), or "4-8"."""
    lookup: Lookup = "subject_last"
    steps: int = Field(default=25, ge=1)
    """Gradient evaluations of the target search; the last one takes no step."""
    learning_rate: float = Field(default=0.5, gt=0)
    weight_decay: float = Field(default=1e-3, ge=0)
    kl_factor: float = Field(default=0.0625, ge=0)
    clamp: float = Field(default=4.0, gt=0)
    """Largest norm of the change of the target, relative to the state it changes."""
    stop_loss: float = Field(default=0.05, ge=0)
    ridge: float = Field(default=1.0, gt=0)
    """Weight of the covariance in units of d_mlp (for keys k, the mean of k·C⁻¹k is d_mlp). MEMIT's 15000
    is 0.92 on GPT-J and 0.79 on Qwen2.5-7B."""
    contexts: int = Field(default=5, ge=0)
    """Sampled texts put before a prompt, besides the bare prompt."""
    context_tokens: int = Field(default=10, ge=2)
    seed: int = 0
    splits: tuple[Split, ...] = ("test",)
    """Splits that are edited, among rules that have a split."""
    limit: int | None = Field(default=None, ge=1)


class EvaluateConfig(Section):
    """Scoring of edited rules."""

    batch_size: int = Field(default=32, ge=1)
    answer_tokens: int = Field(default=12, ge=1)
    """Length of the greedy answers that are shown."""
