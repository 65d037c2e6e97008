"""The public names of `editing`, what their arguments may be, and statistics on demand."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import editing
from editing.config import CovarianceConfig
from editing.edits.delta import EditDelta
from interp.errors import InputError
from interp.models.loading import LanguageModel
from interp.rules.sources import Rule
from interp.selection.layers import parse_layers

QUICK = {"steps": 3, "contexts": 0, "lookup": "last"}
ROOM = Path(editing.__file__).parent


def test_every_name_is_there_and_none_is_hidden_by_a_module() -> None:
    assert editing.__doc__ is not None
    for name in editing.__all__:
        assert getattr(editing, name) is not None and f"`{name}`" in editing.__doc__, name
        assert not (ROOM / name).exists() and not (ROOM / f"{name}.py").exists(), name
    assert len(editing.__all__) <= 18 and set(editing.__all__) <= set(dir(editing))
    with pytest.raises(AttributeError, match="no attribute 'Memit'"):
        editing.Memit  # noqa: B018


def test_importing_loads_nothing_else() -> None:
    code = (
        "import sys, editing\n"
        "assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "assert {'edit', 'DMLE'} <= set(dir(editing))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOM.parent)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CovarianceConfig:
    """Statistics that are measured at once, in a cache of their own."""
    monkeypatch.setenv("DMLE_CACHE", str(tmp_path / "cache"))
    corpus = tmp_path / "corpus.txt"
    sides = [f"The {a} of a {b} is {n}." for n in range(20) for a in "pqr" for b in ("cube", "it")]
    corpus.write_text("\n".join(sides), encoding="utf-8")
    return CovarianceConfig(corpus=str(corpus), tokens=600, shrinkage=0.05)


def test_statistics_are_measured_when_needed_once_and_kept_in_the_cache(
    tiny_llama: LanguageModel, rule: Rule, small: CovarianceConfig, tmp_path: Path
) -> None:
    def files() -> list[str]:
        return sorted(path.name for path in tmp_path.glob("cache/statistics/*/*.safetensors"))

    statistics = editing.Statistics(tiny_llama, small)
    assert files() == []
    recipe = editing.DMLE(parse_layers("0,1/1", 3), **QUICK)
    first = editing.edit(tiny_llama, rule, recipe, statistics=statistics)
    assert files() == ["layer_0.safetensors", "layer_1.safetensors"]
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cache/statistics/*/layer*")}
    # Another process, or a later edit, reads them; the same layers as text are the same edit.
    again = editing.edit(
        tiny_llama,
        rule,
        editing.DMLE("0,1/1", **QUICK),
        statistics=editing.Statistics(tiny_llama, small),
    )
    assert isinstance(first, EditDelta) and isinstance(again, EditDelta)
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    for name, update in first.updates.items():
        other = again.updates[name]
        assert not isinstance(update, torch.Tensor) and not isinstance(other, torch.Tensor)
        assert torch.equal(update.dense(), other.dense())
    editing.edit(tiny_llama, rule, editing.MEMIT([2], **QUICK), statistics=statistics)
    assert len(files()) == 3
    assert sorted(statistics.need([0]).by_layer) == [0, 1, 2]
    assert statistics.need([0]).about["convergence"].keys() == {"0", "1", "2"}


def test_prompts_are_kept_by_editors_that_can(
    tiny_llama: LanguageModel, rule: Rule, small: CovarianceConfig
) -> None:
    kept = "The area of a circle is"
    given = {"statistics": editing.Statistics(tiny_llama, small), "keep": [kept]}
    # DMLE keeps what its solver keeps.
    made = editing.edit(tiny_llama, rule, editing.DMLE("0,1/1", **QUICK), **given)
    assert list(made.report.retained) == [("kept", "formula")]
    ids = torch.tensor([tiny_llama.encode(kept).ids])
    before = tiny_llama.logits(ids)
    with made.edited(tiny_llama) as view:
        torch.testing.assert_close(view.model.logits(ids), before, rtol=0, atol=1e-4)
    with pytest.raises(InputError, match="prompts that are kept: ice cannot honour it"):
        editing.edit(tiny_llama, rule, editing.InContext(), keep=[kept])


def test_statistics_are_of_the_unedited_model(
    make_model: Callable[..., LanguageModel], rule: Rule, small: CovarianceConfig
) -> None:
    model = make_model("llama")
    edit = editing.edit(model, rule, editing.FineTuning("1", ft={"steps": 1}))
    with edit.edited(model), pytest.raises(InputError, match="edited at the moment"):
        editing.Statistics(model, small).need([0])


def test_an_edit_is_of_a_rule_of_rules_or_of_requests(
    tiny_llama: LanguageModel, rules: tuple[Rule, ...]
) -> None:
    recipe = editing.FineTuning("1", ft={"steps": 1})
    requests = editing.requests_of(rules[0], "last")

    def forms(what: object) -> list[str]:
        report = editing.edit(tiny_llama, what, recipe).report  # type: ignore[arg-type]
        return [request["form"] for request in report.requests]

    assert forms(rules[0]) == ["formula", "description", "instance"]
    assert forms(rules) == [*forms(rules[0]), "formula", "description"]
    assert forms(requests[1:]) == ["description", "instance"]
    assert forms(requests[0]) == ["formula"]


def test_scores_are_of_the_editor_that_made_the_edit(
    tiny_llama: LanguageModel, rules: tuple[Rule, ...]
) -> None:
    edit = editing.edit(tiny_llama, rules[0], editing.GRACE("1", grace={"steps": 2}))
    scores = editing.evaluate(tiny_llama, rules[:1], edit, greedy=False)
    assert list(scores["editor"].values) == ["grace"] and scores.sizes["rule"] == 1
    with pytest.raises(InputError, match="no edit of cube-volume"):
        editing.evaluate(tiny_llama, rules, {rules[0].id: edit})
    with pytest.raises(InputError, match="did you mean 'greedy'"):
        editing.evaluate(tiny_llama, rules[:1], edit, greedi=False)


def test_recipes_are_refused_with_the_nearest_name() -> None:
    for make, said in (
        (lambda: editing.DMLE("1/2", stps=3), "'edit.stps': did you mean 'steps'"),
        (lambda: editing.LoRA(lora={"rnk": 3}), "'edit.lora.rnk': did you mean 'edit.lora.rank'"),
        (lambda: editing.ROME("5", ridge=-1), "edit.ridge = -1: Input should be greater than 0"),
        (lambda: editing.Recipe.of("memti"), "no editor 'memti': did you mean 'memit'"),
        (lambda: editing.DMLE(), "dmle needs layers: a LayerSelection"),
        (lambda: editing.MEMIT(parse_layers("1/2", 3)), "memit knows no groups of forms"),
    ):
        with pytest.raises(InputError, match=said):
            make()
    assert editing.EMMET(parse_layers("1-2", 3)).settings.block == "1,2"
    assert editing.AlphaEdit([1, 2], l2=10).settings.l2 == 10
    assert editing.InContext().settings.editor == "ice"
    told = editing.InContext(demonstrations=2).settings
    assert (told.editor, told.in_context.demonstrations) == ("ike", 2)
