"""`dmle edit --prompt`: an edit of one prompt of one's own, without rules and run folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from editing.config import CovarianceConfig, EditConfig, EditorSettings
from editing.names import editor_names
from interp.app.command_line import ModelOptions
from interp.app.run import raw_settings
from interp.app.steps import Context, load_steps, parse_settings
from interp.errors import InputError
from interp.results.run_folder import RunFolder

if TYPE_CHECKING:
    from editing.edits.protocol import Edit
    from editing.edits.requests import EditRequest
    from interp.models.loading import LanguageModel

EDITOR = "ft_whitened"
"""What edits a prompt if no editor is named: it makes new answers exact (docs/results.md)."""
OUT = Path("edit.safetensors")
MORE_TOKENS = 8
"""Tokens that are shown of an answer, beyond those of the new one."""


@dataclass(frozen=True)
class PromptEdit:
    """What is edited, and where the edit goes."""

    prompt: str | None
    new: str | None
    subject: str | None = None
    """For editors that look a rule up at one token."""
    space: bool | None = None
    keep: tuple[str, ...] | None = None
    """Prompts at which the model should go on saying what it says now."""
    out: Path | None = None
    export: Path | None = None
    adapter: Path | None = None

    @property
    def asked(self) -> bool:
        """Whether any of it is given."""
        return any(value is not None for value in vars(self).values())

    @property
    def path(self) -> Path:
        """Where the edit is saved."""
        return self.out or OUT

    def request(self) -> "EditRequest":
        """The prompt as a request."""
        from editing.edits.requests import EditRequest

        assert self.prompt is not None and self.new is not None
        subject = self.subject if self.subject is not None else self.prompt
        return EditRequest("prompt", "formula", self.prompt, subject, (), self.new, self.space)

    def check(self, settings: EditorSettings, *, overwrite: bool) -> None:
        """Refuse what cannot work, before the model is loaded.

        Raises:
            InputError: See `edit_prompt`.
        """
        from editing.editors.registry import needs, options_of

        options_of(settings)
        for flag, value in (("--prompt", self.prompt), ("--new", self.new)):
            if value is None or not value.strip():
                raise InputError(f"{flag} is missing or empty: give a prompt and its new answer")
        if self.subject is None and needs(settings, "lookup"):
            raise InputError(
                f"{settings.editor} looks a rule up at its subject: give --subject, words of the"
                " prompt"
            )
        if needs(settings, "lookup"):
            self.request().lookup_span(settings.lookup)
        self._check_editor(settings)
        for path, replaced, remedy in (
            (self.path, overwrite, "give another --out, or --overwrite"),
            (self.adapter, False, "give a new folder for the adapter"),
        ):
            if path is not None and path.exists() and not replaced:
                raise InputError(f"{path} is there already; {remedy}")

    def _check_editor(self, settings: EditorSettings) -> None:
        """Refuse an editor that cannot keep prompts or export, if that is asked for.

        Raises:
            InputError: It cannot.
        """
        from editing.editors.registry import check_honours, editor
        from editing.edits.delta import EditDelta

        if self.keep:
            check_honours(settings, "retained", "--keep")
        if (self.export or self.adapter) and editor(settings.editor).makes is not EditDelta:
            raise InputError(
                f"{settings.editor} writes no weights, so that there is no model to export; leave"
                " --export and --export-adapter out, or take another editor"
            )


def edit_prompt(
    edit: PromptEdit, editors: str | None, layers: str | None, options: ModelOptions
) -> list[str]:
    """Edit one prompt, save the edit, and say what the model answers before and after.

    Args:
        edit: The prompt with its new answer, and where things go.
        editors: Name of one editor; None: `EDITOR`.
        layers: Layers of the editor; None: those of its settings.
        options: Model and settings.

    Raises:
        InputError: Something is missing, is there already, or does not fit the editor; before the
            model is loaded.
        DmleError: As the editor.
    """
    settings, context = _settings(editors, layers, options)
    edit.check(settings, overwrite=options.overwrite)
    from editing.closed_form.statistics import Statistics
    from editing.closed_form.workbench import Workbench
    from editing.editors.registry import edit as edit_on
    from editing.editors.registry import needs
    from editing.edits.neighbours import kept_prompts
    from editing.edits.remarks import remarks

    model, request = context.model, edit.request()
    closed = needs(settings, "statistics")
    statistics = Statistics(model, context.settings(CovarianceConfig)) if closed else None
    kept = kept_prompts(model, edit.keep or ())
    made = edit_on(Workbench(model, [request], settings, statistics=statistics, retained=kept))
    before, after = _answers(model, request, made)
    made.save(edit.path)
    lines = [
        f"wanted: {request.target_new!r}",
        f"before: {before!r}",
        f"after: {after!r}",
        *remarks(made.report),
        f"edit by {settings.editor}: {edit.path}",
    ]
    return [*lines, *_exported(edit, made, model)]


def _settings(
    editors: str | None, layers: str | None, options: ModelOptions
) -> tuple[EditorSettings, Context]:
    """Settings of the one editor, and everything else that is set.

    Raises:
        InputError: Several editors are named.
    """
    flags = {"edit.editors": [EDITOR] if editors is None else editors.split(",")}
    if layers is not None:
        flags |= {"edit.layers": layers, "edit.block": layers}
    raw = raw_settings({}, config=options.config, settings=options.settings(flags))
    context = Context(RunFolder(Path()), parse_settings(load_steps(), raw), options.overwrite)
    config = context.settings(EditConfig)
    if len(config.editors) != 1:
        raise InputError(
            f"--prompt is edited by one editor, got {', '.join(config.editors)}; name one of"
            f" {', '.join(editor_names())}"
        )
    return config.settings_of(config.editors[0]), context


def _answers(model: "LanguageModel", request: "EditRequest", made: "Edit") -> tuple[str, str]:
    """What the model says by itself behind the prompt, before and after."""
    from editing.edits.protocol import View
    from editing.evaluation.greedy import greedy_answers

    target = model.encode_continuation(request.target_new, request.prompt, request.space)
    n_tokens = len(target) + MORE_TOKENS

    def answer(view: View) -> str:
        (text,) = greedy_answers(view, [request.prompt], n_tokens, batch_size=1)
        return text

    before = answer(View.of(model))
    with made.edited(model) as view:
        return before, answer(view)


def _exported(edit: PromptEdit, made: "Edit", model: "LanguageModel") -> list[str]:
    from editing.edits.adapter import save_adapter
    from editing.edits.delta import EditDelta

    if not isinstance(made, EditDelta):
        return []
    lines = []
    if edit.export is not None:
        made.export(model, edit.export)
        lines.append(f"edited model (Hugging Face): {edit.export}")
    if edit.adapter is not None:
        adapter = save_adapter(made, model, edit.adapter)
        lines.append(
            f"adapter (PEFT): {edit.adapter}, rank {adapter.rank}, which cuts off"
            f" {max(adapter.errors.values()):.1%} of an update at most"
        )
    return lines
