"""Settings of edits and their evaluation, checked before any work starts."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from editing.names import editor_names, known_editor
from editing.presets import preset
from interp.config import Section, Seed, nearest
from interp.errors import InputError
from interp.settings.names import NAME_RULE, name_fault, same_on_some_disks
from interp.settings.section import explained, nested_section, short
from interp.settings.sizes import parse_size
from interp.vocabulary import ChallengeKind, Lookup, Split

Protection = Literal["staged", "protected", "joint"]


class CovarianceConfig(Section):
    """Second moments of keys, measured on the unedited model over plain text."""

    neutral: ClassVar[frozenset[str]] = frozenset({"batch_size"})

    corpus: str = "embedded"
    """"embedded" (an excerpt of Wikipedia), "embedded+rules" (with sentences of training rules
    between its paragraphs, see `editing.closed_form.rule_text`), a text file with one paragraph per
    line, or a Hugging Face dataset: "hf:NAME" or "hf:NAME@CONFIGURATION" (NAME may be
    "organisation/name"; split "train", column "text")."""
    tokens: int = Field(default=100_000, ge=1, le=10**10)
    max_length: int = Field(default=256, ge=2, le=1_000_000)
    """Longest piece of text run at once, in tokens."""
    batch_size: int = Field(default=8, ge=1, le=1_000_000)
    """Texts of full length run at once (shorter ones: as many as have as many tokens)."""
    skip_first: bool = False
    """Leave the first token of each text out (an attention sink whose keys are unlike all others);
    `tokens` then counts those that are left."""
    shrinkage: Literal["none", "ledoit-wolf"] | float = "none"
    """Pull C towards a multiple of the identity: by a given share, or by the Ledoit-Wolf estimate
    of the best one. For corpora of fewer tokens than a few times d_mlp."""
    identity: bool = False
    """Use the identity in place of C (ROME's settings as EasyEdit ships them)."""
    output_tokens: int = Field(default=0, ge=0, le=10**10)
    """Tokens of the same text over which the second moments of output gradients are measured, too
    (for `output_damping` of ft_whitened); each costs a run forwards and backwards. 0: none."""

    @model_validator(mode="after")
    def _measured(self) -> "CovarianceConfig":
        if self.identity and self.output_tokens:
            raise InputError(
                "covariance.identity measures nothing, so that there are no moments of outputs:"
                " leave out covariance.identity or covariance.output_tokens"
            )
        return self


class TargetConfig(Section):
    """Search of the target z (v* in ROME). Source of the defaults: EasyEdit's MEMIT settings for
    7B models.
    """

    lookup: Lookup = "subject_last"
    steps: int = Field(default=25, ge=1, le=1_000_000)
    """Gradient evaluations of the target search; the last one takes no step."""
    learning_rate: float = Field(default=0.5, gt=0)
    weight_decay: float = Field(default=1e-3, ge=0)
    kl_factor: float = Field(default=0.0625, ge=0)
    clamp: float = Field(default=4.0, gt=0)
    """Largest norm of the change of the target, relative to the state it changes."""
    stop_loss: float = Field(default=0.05, ge=0)
    memory: str = "1GiB"
    """Memory that a batch of the search may take; changes memory and speed only."""

    @model_validator(mode="after")
    def _is_size(self) -> "TargetConfig":
        parse_size(self.memory)
        return self


class FineTuneConfig(Section):
    """Constrained fine-tuning (FT). Source of the defaults: EasyEdit's for 7B models."""

    steps: int = Field(default=25, ge=1, le=1_000_000)
    """Steps on every batch."""
    learning_rate: float = Field(default=5e-4, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    norm_constraint: float | None = Field(default=None, gt=0)
    """Largest change of any single weight (FT-L); None: unconstrained."""
    stop_loss: float = Field(default=1e-2, ge=0)
    batch_size: int | None = Field(default=None, ge=1, le=1_000_000)
    """Most requests of a step: batches take turns, drawn with `edit.seed`. None: all at once."""


class LoraConfig(Section):
    """LoRA with peft. Source of the defaults: EasyEdit's LoRA settings for 7B models."""

    rank: int = Field(default=8, ge=1, le=65_536)
    alpha: float = Field(default=32.0, gt=0)
    steps: int = Field(default=70, ge=1, le=1_000_000)
    learning_rate: float = Field(default=5e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    targets: tuple[Literal["q", "k", "v", "o", "in", "gate", "out"], ...] = ("q", "v")
    """Projections of every block that get an adapter."""


class GraceConfig(Section):
    """GRACE: a codebook at one layer. Source of the defaults: EasyEdit's for 7B models."""

    steps: int = Field(default=50, ge=1, le=1_000_000)
    learning_rate: float = Field(default=1.0, gt=0)
    epsilon: float = Field(default=1.0, gt=0)
    """Radius of a new key's ball, in units of the keys."""


class InContextConfig(Section):
    """In-context editing: ICE puts the new facts before a prompt, IKE demonstrations from
    training rules as well.
    """

    demonstrations: int = Field(default=4, ge=1, le=10_000)
    """IKE: training rules whose edits are demonstrated (each with an edited prompt, a
    rephrasing, a neighbour)."""


class EditorSettings(TargetConfig):
    """Everything that one editor needs to know."""

    editor: str = "dmle"
    layers: str = "auto"
    """Layers of DMLE: "auto" (the run's selection), "adaptive" (each rule's own, of the run's
    selection-rules.json), a file of either kind, or "3,4,5/12,13,14"."""
    block: str = "auto"
    """Layers of every other editor, such as "4-8". "auto": the published ones, scaled to the depth
    (see the editor's file)."""
    solver: str = "memit"
    """Closed form of DMLE's stages."""
    protection: Protection = "staged"
    """DMLE: what keeps a later stage from undoing an earlier one (see `editing.editors.dmle`)."""
    ridge: float = Field(default=1.0, gt=0)
    """MEMIT: weight of the covariance in units of d_mlp (for keys k, the mean of k·C⁻¹k is d_mlp).
    MEMIT's 15000 is 0.92 on GPT-J and 0.79 on Qwen2.5-7B."""
    null_threshold: float = Field(default=0.02, gt=0)
    """AlphaEdit: directions of C with a smaller singular value are free to write."""
    null_relative: bool = False
    """AlphaEdit: the threshold is relative to the mean singular value; the original's is
    absolute."""
    l2: float = Field(default=1.0, gt=0)
    """AlphaEdit: weight of the penalty on the update's norm (EasyEdit: 1 or 10)."""
    damping: float = Field(default=0.1, ge=0)
    """EMMET: how far the equality constraint gives way; 0 is exact."""
    targets: Literal["last", "replayed"] = "last"
    """Closed forms: a target is searched at the last block, and what is missing is divided among
    the blocks; or it is searched at the first, the later ones' targets are read off a run with it
    in place, and every block writes its whole residual (see `editing.closed_form.replay`)."""
    rounds: int = Field(default=1, ge=1, le=1000)
    """Closed forms: edit so many times, each time from the model as the round before left it. What
    the requests did to one another in a round is mended in the next."""
    answer: Literal["whole", "words"] = "whole"
    """Closed forms: an answer is one request, or each of its words is one, behind the prompt and
    the words before it (see `editing.edits.requests.words_of`; needs lookup last)."""
    words_loss: Literal["own", "rest"] = "own"
    """Word by word: a word's target is searched on that word alone, or on it and the words behind
    it (see `editing.closed_form.targets`; needs answer words)."""
    end_token: bool = False
    """The answers that an editor trains on end with the model's end-of-text token, so that an
    edited answer stops where it should (LocFT-BF, arXiv 2509.22072). Of an answer that is edited
    word by word the last word ends with it. Evaluation stays as it is. ICE and IKE train nothing,
    and refuse it."""
    wordings: int = Field(default=0, ge=0, le=9)
    """Each request is also trained behind its prompt in so many other wordings (see
    `editing.edits.wordings`): further rows of a training, and requests with keys of their own for
    closed forms and GRACE. ICE and IKE train nothing, and refuse it."""
    retained: int = Field(default=0, ge=0, le=100_000)
    """So many prompts of training rules keep what the model says now at each token of their true
    answers (see `editing.edits.retention`): closed forms leave the outputs of all their tokens
    exactly as they are, fine-tuning and LoRA add the KL divergence to the loss. GRACE, ICE and IKE
    write no weights, and refuse it."""
    neighbours: int = Field(default=0, ge=0, le=10_000)
    """So many prompts that are like the edited ones and ask about something else keep what the
    model says there now (see `editing.edits.neighbours`), in the way of `retained`."""
    rome_keys: Literal["consistent", "original"] = "consistent"
    """ROME: the averaged key everywhere (r-ROME), or the original's bare prompt in one place."""
    ft: FineTuneConfig = FineTuneConfig()
    lora: LoraConfig = LoraConfig()
    grace: GraceConfig = GraceConfig()
    in_context: InContextConfig = InContextConfig()
    options: dict[str, Any] = Field(default_factory=dict)
    """Settings of an editor that declares some of its own (see CONTRIBUTING.md)."""
    contexts: int = Field(default=5, ge=0, le=10_000)
    """Sampled texts put before a prompt, besides the bare prompt."""
    context_tokens: int = Field(default=10, ge=2, le=4096)
    seed: Seed = 0
    preset: str | None = None
    """Published settings of a model and editor, taken wherever nothing else is set (see
    `editing.presets`)."""

    @field_validator("editor", "solver")
    @classmethod
    def _is_editor(cls, value: str) -> str:
        return known_editor(value)

    @field_validator("layers", "block", mode="before")
    @classmethod
    def _list_is_layers(cls, value: Any) -> Any:
        """[3, 4, 5] is "3,4,5", and [[3, 4], [12]] is "3,4/12"."""
        if not isinstance(value, list | tuple) or not value:
            return value
        parts = value if all(isinstance(part, list | tuple) for part in value) else [value]
        whole = all(
            isinstance(layer, int | str) and not isinstance(layer, bool)
            for part in parts
            for layer in part
        )
        return "/".join(",".join(map(str, part)) for part in parts) if whole else value

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or not (name := values.get("preset")):
            return values
        return {
            **preset(name, str(values.get("editor", "dmle")), str(values.get("solver", "memit"))),
            **values,
        }

    @model_validator(mode="after")
    def _words_are_looked_up_last(self) -> "EditorSettings":
        if self.words_loss == "rest" and self.answer != "words":
            raise InputError(
                f"edit.words_loss is rest and edit.answer {self.answer}: only an answer that is"
                " edited word by word has words behind a word; take --set edit.answer=words"
            )
        if self.answer == "words" and self.lookup != "last":
            raise InputError(
                f"edit.answer is words and edit.lookup {self.lookup}: the words of an answer have"
                " their own keys only at the last token; take --set edit.lookup=last"
            )
        return self


class EditConfig(EditorSettings):
    """Which editors edit which rules, and the settings that they share."""

    neutral: ClassVar[frozenset[str]] = frozenset({"memory", "splits", "limit"})

    editors: tuple[str, ...] = ("dmle", "memit")
    """Names of editors, or of `arms`."""
    arms: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Named variants: `{early: {editor: memit, block: 2-4}}`; what an arm does not say is as for
    all."""
    mode: Literal["single", "batch", "sequential"] = "single"
    """`single`: every rule alone on the unedited model; `batch`: all rules in one edit;
    `sequential`: one rule after the other, each on the model as the earlier ones left it."""
    splits: tuple[Split, ...] = ("test",)
    """Splits that are edited, among rules that have a split."""
    limit: int | None = Field(default=None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        # A preset is of one editor: each takes its own in `settings_of`.
        return values

    @model_validator(mode="after")
    def _arms_are_valid(self) -> "EditConfig":
        # Names become folders and files of the run.
        for name in self.arms:
            if fault := name_fault(name):
                raise InputError(
                    f"edit.arms: the name {short(name)} cannot be used: {fault}; a name has"
                    f" {NAME_RULE}"
                )
        if alike := same_on_some_disks(
            [*self.arms, *(name for name in self.editors if name in editor_names())]
        ):
            raise InputError(
                f"edit.arms: {alike[0]!r} and {alike[1]!r} differ in upper and lower case only, and"
                " some disks keep one file for both; rename one"
            )
        if len(set(self.editors)) < len(self.editors):
            raise InputError(f"edit.editors names one twice: {', '.join(self.editors)}")
        for name in (*self.editors, *self.arms):
            self.settings_of(name)
        return self

    def settings_of(self, name: str) -> EditorSettings:
        """Settings of an editor or arm: the shared ones, and on top what the arm says.

        Raises:
            ValueError: There is no such editor or arm, or one of its settings is wrong.
        """
        shared = self.model_dump(include=self.model_fields_set & set(EditorSettings.model_fields))
        # An arm with the name of an editor is a variant of that editor.
        own: dict[str, Any] = {"editor": name} if name in editor_names() else {}
        if name in self.arms:
            own |= self.arms[name]
        elif not own:
            raise InputError(
                f"edit.editors: no editor or arm {name!r}:"
                f" {nearest(name, [*editor_names(), *self.arms])}"
            )
        if name in editor_names() and own["editor"] != name:
            raise InputError(
                f"edit.arms.{name}: this is the name of an editor, but the arm's editor is"
                f" {own['editor']!r}; give the arm another name"
            )
        try:
            return EditorSettings.model_validate(_over(shared, own))
        except ValidationError as error:
            raise InputError(
                explained(
                    f"edit.arms.{name}" if name in self.arms else "edit", EditorSettings, error
                )
            ) from error


def _over(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Shared settings with an arm's own on top: part by part inside `ft` and its like; null is
    the default.
    """
    found = dict(shared)
    for name, value in own.items():
        if value is None and name in EditorSettings.model_fields:
            found.pop(name, None)
        elif nested_section(EditorSettings, name) and isinstance(value, Mapping):
            found[name] = {**found.get(name, {}), **value}
        else:
            found[name] = value
    return found


class EvaluateConfig(Section):
    """Scoring of edited rules."""

    neutral: ClassVar[frozenset[str]] = frozenset({"batch_size"})

    batch_size: int = Field(default=32, ge=1, le=1_000_000)
    answer_tokens: int = Field(default=12, ge=1, le=4096)
    """Least length of the greedy answers, those that are shown and those that are scored; none is
    cut before the length of its target."""
    greedy: bool = True
    """Ask for greedy answers and score them; they are most of the cost. Without, their modes
    have no items."""
    challenges: tuple[ChallengeKind, ...] = ()
    """Further items, as metrics of their own: `fact_check`, `distractor`, `multi_step`
    (`interp.rules.challenges`). The rulebook's rules have them, RuleEdit's have none."""
    free_tokens: int = Field(default=0, ge=0, le=4096)
    """Most tokens of free answers, which end where the model ends them (modes `free` and
    `free_gap`); one that goes on is wrong. 64 are enough for a sentence. 0: none are asked for."""
    overlap: bool = False
    """Locality: also the share of the 5 and 10 most likely tokens that stay (modes `top_5` and
    `top_10`)."""

    @field_validator("challenges")
    @classmethod
    def _once(cls, value: tuple[ChallengeKind, ...]) -> tuple[ChallengeKind, ...]:
        if len(set(value)) < len(value):
            raise InputError(f"evaluate.challenges names one twice: {', '.join(value)}")
        return value

    @property
    def teacher_forced(self) -> "EvaluateConfig":
        """The same without anything that is not teacher-forced, and without further items."""
        return EvaluateConfig(
            batch_size=self.batch_size, answer_tokens=self.answer_tokens, greedy=False
        )

    def about(self) -> dict[str, Any]:
        """What scores depend on. What is asked on top is left out where it is not asked, so that
        scores from before it could be asked are those of equal settings.
        """
        added = EvaluateConfig().model_dump(include={"challenges", "free_tokens", "overlap"})
        values = self.model_dump(exclude=set(self.neutral))
        return {key: value for key, value in values.items() if added.get(key) != value}
