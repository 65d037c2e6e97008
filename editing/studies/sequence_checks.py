"""What arms must be to edit many rules into one model."""

from collections.abc import Collection, Mapping

from editing.closed_form.chosen_layers import one_plan
from editing.config import EditorSettings
from editing.editors.registry import editor
from editing.edits.delta import EditDelta
from editing.studies.config import SequenceConfig
from interp.errors import InputError


def check_arms(
    settings: Mapping[str, EditorSettings], config: SequenceConfig, by_rule: Collection[str] = ()
) -> None:
    """See that arms change weights, and that a batch has one plan of layers.

    Args:
        settings: By the name of the arm.
        config: In which orders they edit.
        by_rule: Arms with layers of each rule's own.

    Raises:
        InputError: One is not so.
    """
    for name, each in settings.items():
        if editor(each.editor).makes is not EditDelta:
            raise InputError(
                f"edit.editors: {name} ({each.editor}) changes no weights, and `dmle sequence` is"
                " about edits that do; leave it out"
            )
    batch = [name for name in by_rule if name not in config.without_batch]
    if batch and "batch" in config.orders:
        names = ", ".join(batch)
        raise InputError(
            one_plan(
                f"the order batch is one edit of all rules by {names}",
                f"edit them in sequence alone (--set sequence.orders=[sequence], or --set"
                f" sequence.without_batch=[{names}])",
            )
        )
