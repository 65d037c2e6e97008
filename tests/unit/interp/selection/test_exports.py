"""Selected layers in the files of other drivers, and the command that writes them."""

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaml

from interp.app import commands as cli
from interp.errors import InputError
from interp.results import effects
from interp.selection.exports import METHODS, easyedit_yaml
from interp.selection.layers import LayerGroup, LayerSelection, load_for_rules, parse_layers
from interp.vocabulary import LOOKUP, ROLES
from tests.unit.records import known, recorded, with_means


def test_dmle_config_has_the_published_driver_s_stages() -> None:
    assert parse_layers("3,4,5/12,13,14", 30).to_dmle_config() == [
        {"name": "f_d", "layers": [3, 4, 5]},
        {"name": "ins", "layers": [12, 13, 14]},
    ]
    assert parse_layers("4-5", 30).to_dmle_config() == [
        {"name": "f_d", "layers": [4, 5]},
        {"name": "ins", "layers": [4, 5]},
    ]


def test_dmle_config_takes_groups_in_any_order() -> None:
    selection = parse_layers("3/7", 30)
    turned = selection.model_copy(update={"groups": selection.groups[::-1]})
    assert turned.to_dmle_config() == selection.to_dmle_config()


def grouped(**layers: tuple[int, ...]) -> LayerSelection:
    groups = tuple(
        LayerGroup(name=form, forms=(form,), layers=chosen) for form, chosen in layers.items()
    )
    return parse_layers("1", 30).model_copy(update={"groups": groups})


def test_dmle_config_refuses_groups_that_are_not_its_stages() -> None:
    assert grouped(formula=(1,), description=(1,), instance=(2,)).to_dmle_config()[0]["layers"] == [
        1
    ]
    for wrong in (
        grouped(formula=(1,), description=(2,), instance=(3,)),
        grouped(formula=(1,), instance=(3,)),
    ):
        with pytest.raises(
            ValueError,
            match=r"one stage for formula and description .* the selection has \{'formula'",
        ):
            wrong.to_dmle_config()


# The rows of EasyEdit's table: layers are ours, the rest as published.
PUBLISHED = {
    "EleutherAI/gpt-j-6B": (28, 0.75, 0.5, 25, 0.5, 15000),
    "Qwen/Qwen2.5-7B-Instruct": (28, 4, 0.5, 25, 1e-3, 15000),
    "Qwen/Qwen2-7B": (28, 4, 0.5, 25, 1e-3, 15000),
    "meta-llama/Meta-Llama-3-8B": (32, 0.75, 0.1, 25, 0.5, 15000),
    "./hugging_cache/llama3-8b": (32, 0.75, 0.1, 25, 0.5, 15000),
    "meta-llama/Llama-2-7b-hf": (32, 4, 0.5, 25, 1e-3, 15000),
    "meta-llama/Llama-3.2-3B": (28, 4, 0.5, 25, 1e-3, 15000),
    "gpt2-xl": (48, 0.75, 0.5, 20, 0.5, 20000),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_easyedit_values_are_the_published_ones(model: str) -> None:
    depth, *expected = PUBLISHED[model]
    text = easyedit_yaml([3, 4], int(depth), model)
    read = yaml.safe_load(text)
    names = (
        "clamp_norm_factor",
        "v_lr",
        "v_num_grad_steps",
        "v_weight_decay",
        "mom2_update_weight",
    )
    assert [read[name] for name in names] == expected
    assert read["v_loss_layer"] == depth - 1 and read["kl_factor"] == 0.0625
    assert (read["layers"], read["model_name"], read["alg_name"]) == ([3, 4], model, "MEMIT")
    assert text.startswith("# Layers: dmle's selection. Other settings: ")
    with pytest.raises(
        ValueError, match=f"has {depth} blocks, but the layers were selected in a model of 30"
    ):
        easyedit_yaml([3, 4], 30, model)


def test_easyedit_names_the_modules_of_each_architecture() -> None:
    def read(model: str, depth: int) -> tuple[str, ...]:
        values = yaml.safe_load(easyedit_yaml([0], depth, model))
        return values["rewrite_module_tmp"], values["ln_f_module"], values["lm_head_module"]

    assert read("gpt-j-6b", 28) == ("transformer.h.{}.mlp.fc_out", "transformer.ln_f", "lm_head")
    assert read("gpt2-xl", 48) == (
        "transformer.h.{}.mlp.c_proj",
        "transformer.ln_f",
        "transformer.wte",
    )
    assert read("qwen2.5-7b", 28) == ("model.layers.{}.mlp.down_proj", "model.norm", "lm_head")
    assert read("llama-3.2-3b", 28)[2] == "model.embed_tokens"


def test_easyedit_alphaedit_has_its_own_fields() -> None:
    memit, alphaedit = (
        yaml.safe_load(easyedit_yaml([4], 28, "Qwen/Qwen2.5-7B", method)) for method in METHODS
    )
    more = {"P_loc": "./null_space_project.pt", "nullspace_threshold": 0.02, "L2": 1}
    assert alphaedit == {**memit, **more, "alg_name": "AlphaEdit"}
    assert yaml.safe_load(easyedit_yaml([4], 32, "llama-3-8b", "AlphaEdit"))["L2"] == 10


@pytest.mark.parametrize(
    "model", ["HuggingFaceTB/SmolLM2-135M", "Qwen/Qwen2-57B-A14B", "meta-llama/Llama-3.1-8B"]
)
def test_easyedit_says_when_nothing_is_published_for_a_model(model: str) -> None:
    selection = parse_layers("3,4,5/12", 30)
    text = selection.to_easyedit_yaml("instance", model, tied=True)
    assert text.splitlines()[0].startswith(
        "# Layers: dmle's selection. Other settings: nothing is published for this"
    )
    read = yaml.safe_load(text)
    assert (read["layers"], read["v_loss_layer"], read["lm_head_module"]) == (
        [12],
        29,
        "model.embed_tokens",
    )
    assert (
        yaml.safe_load(selection.to_easyedit_yaml("formula+description", model))["lm_head_module"]
        == "lm_head"
    )
    with pytest.raises(InputError, match="form 'rule' is in no group"):
        selection.to_easyedit_yaml("rule", model)


# The command.


def save_profile(path: Path) -> None:
    effect = np.random.default_rng(0).normal(0, 0.1, (6, 3, 1, 1, 10))
    effect[:, :2, ..., 3:6] += 1
    effect[:, 2, ..., 6:9] += 1
    forms = ["formula", "description", "instance"]
    profile = xr.Dataset(
        {
            "effect": (("rule", "form", "component", "role", "layer"), effect),
            "te": ("form", np.ones(3)),
            "total_effect": (("rule", "form"), np.ones((6, 3))),
            "traceable": (("rule", "form"), np.ones((6, 3), dtype=bool)),
        },
        coords={
            "rule": list("abcdef"),
            "form": np.array(forms, dtype=object),
            "component": np.array(["mlp"], dtype=object),
            "role": np.array([LOOKUP], dtype=object),
            "layer": np.arange(10),
        },
        attrs={"model": "smollm2-135m"},
    )
    profile = profile.reindex(role=np.array([*ROLES, LOOKUP], dtype=object))
    effects.save(recorded(with_means(profile), "profile", "profile"), path)


def test_export_writes_the_files_of_other_drivers(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, config, folder = tmp_path / "run", tmp_path / "data" / "config.json", tmp_path / "hparams"
    save_profile(run / "profile.nc")
    known(run)
    cli.main(["select", "--run", str(run)])
    cli.main(["export", "--run", str(run), "--for", "dmle", "--out", str(config)])
    assert json.loads(config.read_text(encoding="utf-8")) == [
        {"name": "f_d", "layers": [3, 4, 5]},
        {"name": "ins", "layers": [6, 7, 8]},
    ]
    line = ["export", "--run", str(run), "--for", "easyedit", "--out", str(folder)]
    cli.main(line)
    written = {
        path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in folder.iterdir()
    }
    groups = ("formula-description", "instance")
    assert set(written) == {f"{method}-{group}.yaml" for method in METHODS for group in groups}
    assert written["AlphaEdit-instance.yaml"]["layers"] == [6, 7, 8]
    assert written["AlphaEdit-instance.yaml"]["model_name"] == "smollm2-135m"
    assert f"exported: {config}" in capfd.readouterr().err
    cli.main([*line, "--model", "some/model"])
    named = yaml.safe_load((folder / "AlphaEdit-instance.yaml").read_text(encoding="utf-8"))
    assert named["model_name"] == "some/model"


def test_export_of_an_entry_of_the_atlas_needs_no_run(tmp_path: Path) -> None:
    out = tmp_path / "config.json"
    cli.main(["export", "--atlas", "smollm2-135m", "--for", "dmle", "--out", str(out)])
    assert json.loads(out.read_text(encoding="utf-8")) == [
        {"name": "f_d", "layers": [4, 5, 6, 7, 8, 9]},
        {"name": "ins", "layers": [4, 5, 6, 7, 8, 9, 10]},
    ]


def test_export_says_what_is_missing_or_cannot_be_exported(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = ["export", "--run", str(tmp_path), "--for", "dmle", "--out", str(tmp_path / "c.json")]
    with pytest.raises(SystemExit):
        cli.main(line)
    assert f"run `dmle select --run {tmp_path}` first" in capfd.readouterr().err
    save_profile(tmp_path / "profile.nc")
    known(tmp_path)
    forms = "select.groups=[[formula], [instance]]"
    cli.main(["select", "--run", str(tmp_path), "--set", forms])
    with pytest.raises(SystemExit):
        cli.main(line)
    assert (
        "error: the published driver has one stage for formula and description"
        in capfd.readouterr().err
    )
    assert not (tmp_path / "c.json").exists()


@pytest.mark.slow
def test_select_adaptive_writes_a_selection_for_each_rule(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_profile(tmp_path / "profile.nc")
    known(tmp_path)
    cli.main(["select", "--run", str(tmp_path), "--strategy", "adaptive"])
    own = load_for_rules(tmp_path / "selection-rules.json")
    assert sorted(own) == list("abcdef")
    assert all(selection.layers_of("instance") == (6, 7, 8) for selection in own.values())
    assert "selections rule by rule" in capfd.readouterr().err
    cli.main(["select", "--run", str(tmp_path), "--strategy", "window"])
    assert not (tmp_path / "selection-rules.json").exists()
