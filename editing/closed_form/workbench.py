"""What an editor works with: one value from the command, or the notebook, down to the update.

A workbench belongs to a model. Everything that several edits share is measured or sampled on it
once, when an editor first asks for it; `asked` gives the same workbench with other requests and
settings on it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from editing.closed_form.contexts import sample_contexts
from editing.closed_form.covariance import Covariances
from editing.closed_form.statistics import Statistics
from editing.config import EditorSettings
from editing.edits.neighbours import neighbours
from editing.edits.protocol import EditError
from editing.edits.report import EditReport
from editing.edits.requests import EditRequest, as_trained
from editing.edits.retention import check_room, retained
from interp.errors import InputError
from interp.models.loading import LanguageModel
from interp.rules.sources import Rule, load_rules
from interp.selection.layers import LayerSelection


@dataclass(frozen=True)
class Workbench:
    """A model with what is asked of it, and everything that an editor may need.

    Attributes:
        model: The model, edited or not: an edit is for it as it is now.
        requests: What to change.
        settings: Which editor, and how.
        layers: Blocks that the editor writes; of an editor that knows groups, see `selection`.
        selection: Layers of each group of forms; what `layers: auto` stands for.
        chosen: Layers of each group of forms, whatever the settings say: found once, for all edits
            of an arm (see `editing.studies.arms.resolve`).
        of_rules: The same by a rule's id, where each rule has layers of its own. An edit is of one
            rule then.
        options: Settings that the editor alone has (see `editing.editors.registry`).
        statistics: Second moments of keys of the *unedited* model: measured already, or when they
            are first needed.
        given_contexts: Texts before the prompts, the first of them empty; None: sampled as the
            settings say.
        given_rules: Rules that may be demonstrated with, and retained; None: the training rules
            that ship here.
        earlier: Requests of earlier edits in a sequence, for closed forms that have a term for
            them.
        protected: Requests whose prompts and new answers must be answered exactly as they are.
        evaluated: Rules that are evaluated under the edit: what they ask about is not retained.
        retained: Prompts with answers that no edit should change (see `editing.edits.retention`);
            `as_trained` adds those of training rules, and neighbours of the requests.
    """

    model: LanguageModel
    requests: Sequence[EditRequest] = ()
    settings: EditorSettings = field(default_factory=EditorSettings)
    layers: tuple[int, ...] = ()
    selection: LayerSelection | None = None
    chosen: LayerSelection | None = None
    of_rules: Mapping[str, LayerSelection] | None = None
    options: Any = None
    statistics: Covariances | Statistics | None = None
    given_contexts: Sequence[str] | None = None
    given_rules: Sequence[Rule] | None = None
    earlier: Sequence[EditRequest] = ()
    protected: Sequence[EditRequest] = ()
    evaluated: Sequence[Rule] = ()
    retained: Sequence[EditRequest] = ()
    _sampled: dict[tuple[int, int, int], tuple[str, ...]] = field(default_factory=dict, repr=False)

    def asked(
        self,
        requests: Sequence[EditRequest],
        settings: EditorSettings,
        *,
        earlier: Sequence[EditRequest] = (),
        evaluated: Sequence[Rule] = (),
    ) -> "Workbench":
        """The same workbench with other requests and settings on it."""
        return replace(
            self, requests=requests, settings=settings, earlier=earlier, evaluated=evaluated
        )

    def as_trained(self, *, solved: bool) -> "Workbench":
        """The workbench with the requests as an editor trains on them, and with the prompts that it
        retains, as the settings say.

        Args:
            solved: Whether a closed form is solved.

        Raises:
            InputError: There is no end-of-text token, or the prompts cannot be retained.
        """
        settings, by_word = self.settings, solved and self.settings.answer == "words"
        requests, earlier = (
            as_trained(some, self.model, settings, by_word=by_word)
            for some in (self.requests, self.earlier)
        )
        kept = list(self.retained)
        asked = self.requests, self.evaluated
        if settings.retained:
            kept += retained(settings, self.training_rules, *asked)
        if settings.neighbours:
            kept += neighbours(self.model, settings, self.training_rules, *asked)
        if solved and kept:
            check_room(self.model, kept, settings)
        return replace(self, requests=requests, earlier=earlier, retained=kept)

    def sample(self) -> Sequence[str]:
        """Texts before the prompts: given, or sampled once, on the model as it is then."""
        if self.given_contexts is not None:
            return self.given_contexts
        settings = self.settings
        which = settings.contexts, settings.context_tokens, settings.seed
        if which not in self._sampled:
            self._sampled[which] = sample_contexts(self.model, *which)
        return self._sampled[which]

    @property
    def contexts(self) -> Sequence[str]:
        """Texts before the prompts (see `sample`)."""
        return self.sample()

    @property
    def training_rules(self) -> Sequence[Rule]:
        """Rules that may be demonstrated with, and retained."""
        if self.given_rules is not None:
            return self.given_rules
        return load_rules("embedded", split="train").rules

    def covariances(self, layers: Sequence[int]) -> Covariances:
        """Statistics of (at least) some blocks, measured now if they are not there.

        Raises:
            InputError: There are none of a block, or they have to be measured and the model is
                edited at the moment.
            EditError: They are of another model.
        """
        if self.statistics is None:
            raise InputError(
                f"{self.settings.editor} needs statistics of keys: give a Workbench those that"
                " editing.closed_form.covariance.measure returns, or Statistics(model)"
            )
        found = self.statistics.need(layers)
        if found.model_hash != self.model.weight_hash:
            raise EditError(
                f"the covariances are of weights {found.model_hash}, the model has"
                f" {self.model.weight_hash}; measure them again"
            )
        return found

    def report(self, **values: Any) -> EditReport:
        """What made an edit, with the values of other fields of the report."""
        made = EditReport(
            editor=self.settings.editor,
            layers=list(self.layers),
            requests=[request.record() for request in self.requests],
            settings=self.settings.model_dump(mode="json"),
            retained=tuple((each.rule, each.form) for each in self.retained),
        )
        return made.with_values(**values)
