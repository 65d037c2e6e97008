"""The forms of a rule, made from the records of RuleEdit."""

from interp.rules.ruleedit.records import (
    LocalityItems,
    Record,
    UnderstandingItem,
    UnderstandingItems,
)
from interp.rules.schema import LocalityProbe, Probe, RulePrompt


def with_truth(instance: RulePrompt, formula: Record) -> RulePrompt:
    """The instance with the true answer that follows from the formula, if one does."""
    # SymPy, which this imports, takes most of a second.
    from interp.rules.derivation import instance_truth

    derived = instance_truth(
        formula.prompt,
        formula.target_new,
        formula.ground_truth,
        instance.prompt,
        instance.target_new,
    )
    if derived is None:
        return instance
    update = {
        "target_true": derived.answers,
        "target_true_source": "derived",
        "values": derived.values,
    }
    return instance.model_copy(update=update)


def form_of(record: Record, understanding: tuple[Probe, ...]) -> RulePrompt:
    """A form as its record says it.

    Args:
        record: Anything but its understanding is taken from it.
        understanding: The items about understanding.
    """
    instances = zip(record.instances.prompt, record.instances.target_new, strict=True)
    return RulePrompt(
        prompt=record.prompt,
        subject=record.subject,
        target_new=record.target_new,
        target_true=record.ground_truth,
        rephrasings=(record.rephrase_prompt,),
        instances=tuple(Probe(prompt=prompt, target_new=target) for prompt, target in instances),
        understanding=understanding,
        neighborhood=_locality_probes(record.locality.neighborhood),
        distracting=_locality_probes(record.locality.distracting),
    )


def understanding_of_form(item: UnderstandingItem, edited: set[str]) -> tuple[Probe, ...]:
    """Items of a formula or a description; `edited` are the prompts of all forms."""
    prompts = [item.prompt] if item.rephrase_prompt is None else [item.prompt, item.rephrase_prompt]
    return tuple(
        _understanding_probe(p, item.target_new, item.ground_truth, edited) for p in prompts
    )


def understanding_of_instance(items: UnderstandingItems, edited: set[str]) -> tuple[Probe, ...]:
    """Items of an instance; `edited` are the prompts of all forms."""
    triples = zip(items.prompt, items.target_new, items.ground_truth, strict=True)
    return tuple(
        _understanding_probe(prompt, new, (true,), edited) for prompt, new, true in triples
    )


def _understanding_probe(prompt: str, new: str, true: tuple[str, ...], edited: set[str]) -> Probe:
    wording = "verbatim" if prompt in edited else "paraphrase"
    return Probe(prompt=prompt, target_new=new, target_true=true, wording=wording)


def _locality_probes(items: LocalityItems) -> tuple[LocalityProbe, ...]:
    pairs = zip(items.prompt, items.ground_truth, strict=True)
    return tuple(LocalityProbe(prompt=prompt, answer=answer) for prompt, answer in pairs)
