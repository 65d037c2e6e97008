"""Strategy `auto`: each row of its table, by profiles whose layers are known by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xarray as xr

from interp.config import SelectConfig
from interp.errors import InputError
from interp.selection import strategies
from interp.selection.evidence import EVIDENCE_SCHEMA
from interp.selection.layers import LayerSelection
from interp.selection.select import select_layers
from interp.selection.strategies import auto
from interp.vocabulary import FORMS, LOOKUP

N_RULES, N_LAYERS = 6, 12
AT_LOOKUP, AT_LAST, OF_REACH, OF_LGA = (3, 4, 5), (7, 8), (1, 2, 3), (8, 9, 10)


def peak(layers: tuple[int, ...]) -> np.ndarray:
    """Half in these layers and none elsewhere, shape (layer,)."""
    return np.where(np.isin(np.arange(N_LAYERS), layers), 0.5, 0.0)


def profile(roles: tuple[str, ...] = ("last", LOOKUP)) -> xr.Dataset:
    by_role = {"last": peak(AT_LAST), LOOKUP: peak(AT_LOOKUP)}
    effect = np.stack([by_role[role] for role in roles])
    return xr.Dataset(
        {
            "effect": (
                ("rule", "form", "component", "role", "layer"),
                np.broadcast_to(effect, (N_RULES, 3, 1, *effect.shape)).copy(),
            ),
            "te": ("form", np.full(3, 2.0)),
        },
        {
            "rule": [f"r{i}" for i in range(N_RULES)],
            "form": list(FORMS),
            "component": ["mlp"],
            "role": list(roles),
            "layer": range(N_LAYERS),
        },
        {"window": 1, "unit": "nats per answer token"},
    )


def evidence(**attrs: str) -> xr.Dataset:
    dims = ("rule", "form", "layer")
    return xr.Dataset(
        {
            name: (dims, np.broadcast_to(peak(layers), (N_RULES, 3, N_LAYERS)).copy())
            for name, layers in (("reach", OF_REACH), ("lga", OF_LGA))
        },
        {"rule": [f"r{i}" for i in range(N_RULES)], "form": list(FORMS)},
        {"schema": EVIDENCE_SCHEMA, **attrs},
    )


def selected(held: xr.Dataset | None = None, **settings: Any) -> LayerSelection:
    given = {"strategy": "auto", "identity_blocks": 0, "bootstrap": 50, **settings}
    return select_layers(profile(), SelectConfig.model_validate(given), evidence=held)


@pytest.mark.parametrize(
    ("settings", "layers", "words"),
    [
        ({}, OF_REACH, "for edits by dmle at subject_last is the reach of edits, since gradients"),
        (
            {"editor": "memit", "lookup": "mention_last"},
            OF_REACH,
            "for edits by memit at mention_last is the reach",
        ),
        ({"lookup": "last"}, AT_LAST, "dmle at last is the profile of tracing at the last token"),
        ({"editor": "rome", "lookup": "last"}, AT_LAST, "edits word by word write there, and not"),
        ({"editor": "grace"}, AT_LAST, "for edits by grace is the profile of tracing at the last"),
        ({"editor": "ft_whitened"}, OF_LGA, "by ft_whitened is the inner products of gradients"),
        ({"editor": "lora", "lookup": "last"}, OF_LGA, "steps along gradients over all tokens"),
        ({"editor": "my-own"}, OF_REACH, "for edits by my-own at subject_last is the reach"),
    ],
)
def test_each_row_takes_its_evidence_and_says_so(
    settings: dict[str, Any], layers: tuple[int, ...], words: str
) -> None:
    token = settings.get("lookup", "subject_last")
    selection = selected(evidence(lookup=token), **settings)
    assert selection.strategy == "auto"
    assert selection.role == ("last" if layers == AT_LAST else LOOKUP)
    for group in selection.groups:
        assert group.layers == layers and group.supported and group.n_rules == N_RULES
        assert group.score == pytest.approx(0.5)
        assert words in group.reason and group.reason.count("The evidence for") == 1


def test_a_row_gives_what_its_strategy_alone_gives() -> None:
    by_reach, as_auto = (
        selected(evidence(), strategy=name).groups[0].model_dump(exclude={"reason"})
        for name in ("reach", "auto")
    )
    assert by_reach == as_auto


@pytest.mark.parametrize(
    ("held", "settings", "message"),
    [
        (None, {}, "auto reads evidence, and no evidence .* `dmle evidence` measures it"),
        (
            evidence(lookup="mention_last"),
            {},
            "of the token mention_last, and the edits look up subject_last .*"
            " run `dmle evidence --set edit.lookup=subject_last`",
        ),
        (evidence().drop_vars("lga"), {"editor": "ft"}, "no lga, .* run `dmle evidence` again"),
        (None, {"editor": "ft"}, "no evidence of edits was given; `dmle evidence` measures it"),
        (None, {"editor": "ike"}, "ike changes no block, so that there are no layers to select"),
    ],
)
def test_what_is_missing_is_named_with_its_command(
    held: xr.Dataset | None, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        selected(held, **settings)


def test_a_profile_without_the_last_token_is_refused_with_the_commands() -> None:
    config = SelectConfig(strategy="auto", lookup="last", identity_blocks=0)
    empty = profile()
    empty["effect"].loc[{"role": "last"}] = np.nan
    for without in (profile((LOOKUP,)), empty):
        with pytest.raises(InputError, match=r"`dmle trace --positions .*,last`, then `dmle prof"):
            select_layers(without, config)


def test_evidence_that_a_row_does_not_need_is_left_aside() -> None:
    assert selected(evidence(), lookup="last") == selected(None, lookup="last")
    with pytest.raises(InputError, match="does not read it"):
        selected(evidence(), strategy="window")


def test_the_table_decides_for_all_edits_and_is_not_the_default() -> None:
    last = auto.TABLE[-1]
    assert last.editors == () and last.lookup is None
    assert len({(row.editors, row.lookup) for row in auto.TABLE}) == len(auto.TABLE)
    assert SelectConfig().strategy != "auto"
    assert strategies.chosen(SelectConfig()) == strategies.get("changepoint")
    named = replace(strategies.get("reach"), name="auto")
    chosen = strategies.chosen(SelectConfig(strategy="auto"))
    assert (chosen.name, chosen.measures) == (named.name, named.measures)
