r"""ICE: in-context editing. The new facts are put before every prompt; the model stays as it is.

The text before a prompt is

    New Fact: {prompt} {target}\n            for every request
    Prompt:␣

Source: Zheng et al. 2023, whose format this keeps. Difference: several requests give several facts.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from editing.closed_form.workbench import Workbench
from editing.editors.registry import register
from editing.edits.protocol import View, check_model, damaged_edit, read_file, report_of, write_file
from editing.edits.report import EditReport
from editing.evaluation.scoring import ask, question_of
from interp.models.loading import LanguageModel
from interp.rules.joining import join


@dataclass(frozen=True)
class InContext:
    """Text that is put before every prompt.

    Attributes:
        before: The text.
        model_hash: Hash of the model it was made for.
        report: What made it: settings, requests, training rules.
    """

    schema: ClassVar[str] = "dmle.context/1"
    before: str
    model_hash: str
    report: EditReport = field(default_factory=EditReport)

    @contextmanager
    def edited(self, model: LanguageModel) -> Iterator[View]:
        """The model with the text before every prompt, as every edit gives it (see
        `editing.edits.protocol`).

        Raises:
            EditError: It was made for another model.
        """
        check_model(model, self.model_hash, "context")
        yield View(model, before=self.before)

    def with_report(self, **changes: Any) -> "InContext":
        """The same edit with other values in its report."""
        return replace(self, report=self.report.with_values(**changes))

    def save(self, path: Path) -> None:
        """Write safetensors that hold no tensors, with everything in the JSON header."""
        header = {
            "schema": self.schema,
            "model_hash": self.model_hash,
            "before": self.before,
            "about": self.report.to_json(),
        }
        write_file(path, {}, header)

    @classmethod
    def load(cls, path: Path) -> "InContext":
        """Read a context written by `save`.

        Raises:
            EditError: The file is missing, damaged, or no context.
        """
        what = "context"
        _, header = read_file(path, what, cls.schema)
        if not isinstance(before := header.get("before"), str):
            raise damaged_edit(path, what, "its header has no text")
        return cls(before, header["model_hash"], report_of(header))


@register("ice", makes=InContext, in_order=True)
def edit(bench: Workbench) -> InContext:
    """The new facts before every prompt.

    Raises:
        EditError: A request does not fit the model's context with the facts before it.
    """
    return in_context(bench, "")


def in_context(
    bench: Workbench, demonstrations: str, training_rules: Sequence[str] = ()
) -> InContext:
    """Demonstrations of some rules and the new facts before every prompt."""
    facts = "".join(fact(each.prompt, each.target_new, each.space) for each in bench.requests)
    before = f"{demonstrations}{facts}Prompt: "
    # Found out here rather than after an hour of other editors.
    ask(View(bench.model, before=before), [question_of(each) for each in bench.requests])
    return InContext(
        before, bench.model.weight_hash, bench.report(training_rules=list(training_rules))
    )


def fact(prompt: str, target: str, space: bool | None) -> str:
    """A line that states a new fact."""
    return f"New Fact: {join(prompt, target, space).text}\n"
