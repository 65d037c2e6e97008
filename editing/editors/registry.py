"""Every editor behind one function: a workbench in, an edit out.

An editor is one file of this room, named like the editor, that registers a function:

    @register("noop")
    def edit(bench: Workbench) -> EditDelta: ...

Nothing else has to be written: settings, commands, comparisons and loading ask here what there is.
What must hold of every editor is tested for all of them (`tests/unit/editing/editors`).
"""

import importlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from editing.closed_form.chosen_layers import with_layers
from editing.closed_form.spreading import (
    ClosedForm,
    Problem,
    Report,
    edit_block,
    edit_jointly,
    nothing_to_say,
)
from editing.closed_form.workbench import Workbench
from editing.config import EditorSettings
from editing.edits.delta import EditDelta, merge
from editing.edits.low_rank import LowRank
from editing.edits.protocol import Edit, EditError, damaged_edit, read_file
from editing.edits.remarks import doubtful
from editing.edits.report import EditReport
from editing.evaluation.scoring import question_of, teacher_forced
from editing.names import editor_names
from interp.errors import InputError
from interp.selection.layers import parse_layers
from interp.settings.section import Section, explained

Need = Literal["statistics", "lookup", "groups", "training rules", "earlier requests"]
Extra = Literal["end_token", "wordings", "retained", "neighbours"]
"""A setting that any editor may honour; one that does not refuses it."""
EXTRAS: tuple[Extra, ...] = ("end_token", "wordings", "retained", "neighbours")
Blocks = tuple[int, ...] | Literal["all"]
Joint = Callable[[Workbench, Sequence[Sequence[int]], EditReport], EditDelta]
"""Workbench, blocks of each request, what made the edit → one edit."""
Made = TypeVar("Made", bound=Edit)

PUBLISHED_DEPTH = 30
"""Published blocks are of models of 28 to 32 blocks."""
BATCH = 8
"""Questions asked at once of an edited model."""


@dataclass(frozen=True)
class Editor:
    """An editor as the rest sees it.

    Attributes:
        name: What settings call it; the name of its file.
        make: Workbench → edit. The model is as before on return, and on error.
        needs: What it asks the workbench for, besides model, requests and settings: `statistics`
            of keys; a token at which each rule is looked up (`lookup`: a closed form); layers by
            `groups` of forms; `training rules`; `earlier requests` of a sequence. An editor by
            groups needs, besides, what its solver needs.
        makes: Class of its edits (an `Edit`).
        blocks: Blocks that it writes in published settings, for a model of `PUBLISHED_DEPTH`
            blocks; none if it writes none, or knows groups.
        one_block: It writes a single block.
        in_order: It takes requests one by one anyway: a sequence of edits is one edit with all
            requests.
        options: Class of the settings that it alone has, given under `edit.options` and read from
            `Workbench.options`.
        joint: Edits requests that each have blocks of their own (see `Joint`), for editors that
            DMLE can have as solver. As a stage of DMLE such an editor also keeps what
            `Workbench.protected` asks for.
        honours: Which of `EXTRAS` it honours. For `end_token` it trains on
            `EditRequest.target_ids`, for `retained` it keeps `Workbench.retained`, and for
            `wordings` it trains on each of several requests for one form. DMLE honours what its
            solver does.
    """

    name: str
    make: Callable[..., Edit]
    needs: frozenset[Need] = frozenset()
    makes: type[Any] = EditDelta
    blocks: Blocks = ()
    one_block: bool = False
    in_order: bool = False
    options: type[Section] | None = None
    joint: Joint | None = None
    honours: frozenset[Extra] = frozenset()


_EDITORS: dict[str, Editor] = {}


def register(
    name: str,
    *,
    needs: Sequence[Need] = (),
    makes: type[Any] = EditDelta,
    blocks: Blocks = (),
    one_block: bool = False,
    in_order: bool = False,
    options: type[Section] | None = None,
    joint: Joint | None = None,
    honours: Sequence[Extra] = (),
) -> Callable[[Callable[..., Made]], Callable[..., Made]]:
    """Decorator: the function is the editor of a name (see `Editor`)."""

    def kept(make: Callable[..., Made]) -> Callable[..., Made]:
        _EDITORS[name] = Editor(
            name,
            make,
            frozenset(needs),
            makes,
            blocks,
            one_block=one_block,
            in_order=in_order,
            options=options,
            joint=joint,
            honours=frozenset(honours),
        )
        return make

    return kept


def closed_form(
    name: str, *, blocks: Blocks, report: Report = nothing_to_say, needs: Sequence[Need] = ()
) -> Callable[[Callable[[Problem], LowRank]], Callable[[Problem], LowRank]]:
    """Decorator: the function solves a block's problem, and the editor is MEMIT's loop around
    it (see `editing.closed_form.spreading`).
    """

    def kept(solve: Callable[[Problem], LowRank]) -> Callable[[Problem], LowRank]:
        form = ClosedForm(name, solve, report)
        _EDITORS[name] = Editor(
            name,
            partial(edit_block, form=form),
            frozenset({"statistics", "lookup", *needs}),
            blocks=blocks,
            joint=partial(edit_jointly, form=form),
            honours=frozenset(EXTRAS),
        )
        return solve

    return kept


def editor(name: str) -> Editor:
    """The editor of a name.

    Raises:
        InputError: There is none.
        ValueError: Its file registers no editor of that name.
    """
    if name not in editor_names():
        raise InputError(f"there is no editor {name!r}; there are {', '.join(editor_names())}")
    module = importlib.import_module(f"editing.editors.{name}")
    if name not in _EDITORS:
        raise ValueError(
            f"{module.__file__} registers no editor {name!r}; an editor has the name of its file"
        )
    return _EDITORS[name]


def editors() -> dict[str, Editor]:
    """Every editor, by name."""
    return {name: editor(name) for name in editor_names()}


def needs(settings: EditorSettings, need: Need) -> bool:
    """Whether the editor of some settings, or its solver, needs something."""
    if need == "training rules" and (settings.retained or settings.neighbours):
        return True
    return need in editor(settings.editor).needs or need in _solving(settings).needs


def check_honours(
    settings: EditorSettings, extra: Extra, asked: str, *, remedy: str = "leave it out"
) -> None:
    """See that the editor of some settings, or its solver, honours one of `EXTRAS`.

    Args:
        settings: Which editor.
        extra: What it must honour.
        asked: What asks for it, as the user gave it.
        remedy: What to do for an editor that does not.

    Raises:
        InputError: It does not.
    """
    kind = _solving(settings)
    if extra not in kind.honours:
        able = ", ".join(each.name for each in editors().values() if extra in each.honours)
        raise InputError(
            f"{asked}: {kind.name} cannot honour it; {able} can. For {kind.name} {remedy}"
        )


def _solving(settings: EditorSettings) -> Editor:
    """The editor that does the work: of one that knows groups, its solver."""
    kind = editor(settings.editor)
    return editor(settings.solver) if "groups" in kind.needs else kind


def solver(name: str) -> tuple[Callable[..., Any], Joint]:
    """How an editor edits one group of forms, and several jointly.

    Raises:
        InputError: There is no such editor, or it cannot edit by groups.
    """
    kind = editor(name)
    if kind.joint is None:
        names = [each.name for each in editors().values() if each.joint is not None]
        raise InputError(f"edit.solver is {name!r}; solvers are {', '.join(names)}")
    return kind.make, kind.joint


def edit(bench: Workbench, **more: Any) -> Edit:
    """One editor's edit for all the requests together; the model is as before on return, and on
    error.

    Args:
        bench: The model, what to change, and which editor does it how.
        more: What this editor takes besides, such as `targets`.

    Raises:
        EditError: There is no request, or the model or a request does not suit the editor.
        InputError: Something that the editor needs is missing, or a setting does not fit.
    """
    bench = ready(bench)
    if not needs(bench.settings, "lookup"):
        return editor(bench.settings.editor).make(bench, **more)
    made = _rounds(bench, **more)
    return made.with_report(unanswered=_unanswered(bench, made))


def _rounds(bench: Workbench, **more: Any) -> EditDelta:
    """The edits of a closed form, each on the model as the rounds before leave it, as one."""
    make = editor(bench.settings.editor).make
    parts: list[EditDelta] = []
    with ExitStack() as stack:
        for _ in range(bench.settings.rounds):
            part = make(bench, **more)
            assert isinstance(part, EditDelta)
            parts.append(part)
            stack.enter_context(part.applied(bench.model))
    if len(parts) == 1:
        return parts[0]
    # What is said of an edit is what the last round leaves; the searches of all are kept.
    return merge(parts, parts[-1].report.with_values(rounds=[part.report for part in parts[:-1]]))


def _unanswered(bench: Workbench, made: EditDelta) -> list[tuple[str, str]]:
    """Rules and forms that may not be served, and are not: the edited model answers otherwise."""
    asked = doubtful(made.report)
    doubted = [
        each for each in bench.requests if each.wording is None and (each.rule, each.form) in asked
    ]
    if not doubted:
        return []
    questions = [question_of(request) for request in doubted]
    with made.edited(bench.model) as view:
        answers = list(teacher_forced(view, questions, batch_size=BATCH))
    wrong = (
        (request.rule, request.form)
        for request, answer in zip(doubted, answers, strict=True)
        if not answer.exact
    )
    return list(dict.fromkeys(wrong))


def ready(bench: Workbench) -> Workbench:
    """The workbench with everything resolved that an editor reads, after all checks that need no
    work.

    Raises:
        EditError, InputError: As in `edit`.
    """
    settings, n_layers = bench.settings, bench.model.n_layers
    if not bench.requests:
        raise EditError(f"{settings.editor} needs at least one request, got none")
    bench = replace(bench, options=options_of(settings))
    if bench.retained:
        check_honours(settings, "retained", "prompts that are kept")
    if needs(settings, "groups"):
        solver(settings.solver)
        bench = with_layers(bench)
    elif not bench.layers:
        bench = replace(bench, layers=block_of(settings, n_layers))
    if not needs(settings, "earlier requests"):
        # Their keys take a pass over all of them for each block and round.
        bench = replace(bench, earlier=())
    bench = bench.as_trained(solved=needs(settings, "lookup"))
    if needs(settings, "statistics"):
        _check_statistics(bench)
    return bench


def _check_statistics(bench: Workbench) -> None:
    """See that there are statistics and contexts of the model before the edit, and that each
    request has a token at which it is looked up.

    Raises:
        EditError, InputError: As in `edit`.
    """
    settings = bench.settings
    closed = needs(settings, "lookup")
    for request in bench.requests if closed else ():
        request.lookup_span(settings.lookup)
    # Now, since both are of the model as it is before the edit.
    groups = bench.chosen.groups if bench.chosen is not None else ()
    bench.covariances(sorted({*bench.layers, *(layer for g in groups for layer in g.layers)}))
    if not bench.contexts or bench.contexts[0]:
        raise InputError(
            f"the first context must be empty (the bare prompt), got {bench.contexts[:1]}"
        )


def options_of(settings: EditorSettings) -> Section | None:
    """The settings that the editor alone has, or its solver.

    Raises:
        InputError: There is no such setting, or its value is out of range; or the editor does not
            honour one of `EXTRAS` that is set.
    """
    kind = _solving(settings)
    for name in EXTRAS:
        if getattr(settings, name):
            arm = f"{{editor: {kind.name}, {name}: null}}"
            remedy = f"leave it out, as an arm such as {arm} does"
            check_honours(settings, name, f"edit.{name}", remedy=remedy)
    options = kind.options
    if options is None:
        if settings.options:
            names = ", ".join(settings.options)
            raise InputError(f"edit.options: {settings.editor} has no settings of its own: {names}")
        return None
    try:
        return options.model_validate(settings.options)
    except ValidationError as error:
        raise InputError(explained("edit.options", options, error)) from error


def block_of(settings: EditorSettings, n_layers: int) -> tuple[int, ...]:
    """Layers of an editor that knows no groups; none if it writes none.

    Raises:
        InputError: They are outside the model, or more than one where one is needed.
    """
    kind = editor(settings.editor)
    if not kind.blocks:
        return ()
    if settings.block != "auto":
        groups = parse_layers(settings.block, n_layers).groups
        if len(groups) != 1:
            raise InputError(
                f"edit.block is {settings.block!r}: {kind.name} knows no groups of forms;"
                " give one list, such as 4-8 (layers by group are DMLE's, edit.layers)"
            )
        block = groups[0].layers
    elif kind.blocks == "all":
        block = tuple(range(n_layers))
    else:
        # The width stays as published; only the place scales with the depth.
        first = min(round(kind.blocks[0] * n_layers / PUBLISHED_DEPTH), n_layers - 1)
        block = tuple(range(first, min(first + len(kind.blocks), n_layers)))
    if kind.one_block and len(block) != 1:
        raise InputError(
            f"{kind.name} writes one block, edit.block gives {list(block)}; give one layer"
        )
    return block


def load_edit(path: Path) -> Edit:
    """Read an edit of any kind that an editor makes.

    Raises:
        EditError: The file is missing, damaged, or of another schema.
    """
    readers = {kind.schema: kind for kind in (each.makes for each in editors().values())}
    _, header = read_file(path, "edit")
    if (schema := header["schema"]) not in readers:
        raise damaged_edit(
            path, "edit", f"its schema is {schema!r}, one of {list(readers)} is needed"
        )
    return readers[schema].load(path)
