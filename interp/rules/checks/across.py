"""Rules beside other rules: duplicates, and edits that contradict one another."""

from collections import Counter, defaultdict
from collections.abc import Iterator

from interp.rules.checks.registry import Finding, across_rules, finding
from interp.rules.sources import Rule
from interp.vocabulary import FORMS


@across_rules(
    duplicate_rule=("warning", "rules with the same edits in every form"),
    duplicate_forms=("warning", "rules with the same edits of formula and description"),
    same_quantity=("warning", "rules of the same quantity of the same subject"),
)
def _duplicates(rules: list[Rule]) -> Iterator[Finding]:
    for check, forms in (("duplicate_rule", FORMS), ("duplicate_forms", FORMS[:2])):
        groups: dict[tuple[tuple[str, str], ...], list[str]] = defaultdict(list)
        for rule in rules:
            if edits := tuple(
                (rule.forms[f].prompt, rule.forms[f].target_new) for f in forms if f in rule.forms
            ):
                groups[edits].append(rule.id)
        for ids in groups.values():
            if len(ids) > 1:
                yield finding(check, ids[0], f"the same as {', '.join(ids[1:])}", "different rules")
    quantities: dict[tuple[str, str], list[str]] = defaultdict(list)
    for rule in rules:
        if rule.expression_true:
            quantities[rule.subject.lower(), rule.name.lower()].append(rule.id)
    for (_, name), ids in quantities.items():
        if len(ids) > 1:
            yield finding(
                "same_quantity", ids[0], f"{name}, as {', '.join(ids[1:])}", "one rule of it"
            )


@across_rules(
    locality_is_edited_elsewhere=(
        "info",
        "a locality prompt that is an edited prompt of another rule",
    ),
    conflicting_edits=("warning", "one edit prompt with different targets in different rules"),
)
def _conflicts(rules: list[Rule]) -> Iterator[Finding]:
    """What matters when rules are edited one after another."""
    targets: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for rule in rules:
        for form, prompt in rule.forms.items():
            targets[prompt.prompt][prompt.target_new].append(f"{rule.id}/{form}")
    for prompt, wanted in targets.items():
        if len(wanted) > 1:
            said = "; ".join(
                f"{answer!r} in {', '.join(places)}" for answer, places in wanted.items()
            )
            yield finding(
                "conflicting_edits",
                next(iter(wanted.values()))[0],
                f"{prompt!r}: {said}",
                "one target",
            )
    for rule in rules:
        own = {prompt.prompt for prompt in rule.forms.values()}
        for form, prompt in rule.forms.items():
            probes = [*prompt.neighborhood, *prompt.distracting]
            elsewhere = [
                probe.prompt
                for probe in probes
                if probe.prompt in targets and probe.prompt not in own
            ]
            if elsewhere:
                where, found = (
                    f"{rule.id}/{form}/locality",
                    f"{len(elsewhere)} of {len(probes)}: {elsewhere[0]!r}",
                )
                yield finding(
                    "locality_is_edited_elsewhere", where, found, "prompts that no rule edits"
                )


@across_rules(
    locality_sizes=("info", "locality lists that are not as long as those of other rules"),
)
def _sizes(rules: list[Rule]) -> Iterator[Finding]:
    for kind in ("neighborhood", "distracting"):
        lengths = {
            (rule.id, form): len(getattr(p, kind))
            for rule in rules
            for form, p in rule.forms.items()
        }
        usual = Counter(lengths.values()).most_common(1)[0][0] if lengths else 0
        for (id_, form), length in lengths.items():
            if length != usual:
                yield finding(
                    "locality_sizes",
                    f"{id_}/{form}/{kind}",
                    f"{length} items",
                    f"{usual}, as elsewhere",
                )
