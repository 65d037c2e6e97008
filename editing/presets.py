"""Published settings of the paper's four models, with where each comes from.

λ (MEMIT's mom2_update_weight, 15000 everywhere) is given in our unit, λ / d_mlp. None of these
settings was tuned for rules, and EasyEdit's layers for Qwen and LLaMA are copies of one another
(EasyEdit issue 472).
"""

from typing import Any

from interp.errors import InputError

_EASYEDIT_7B: dict[str, Any] = {
    "block": "4-8",
    "steps": 25,
    "learning_rate": 0.5,
    "weight_decay": 1e-3,
    "kl_factor": 0.0625,
    "clamp": 4.0,
}
_MEMIT_LAMBDA = 15000
_D_MLP = {"gpt-j-6b": 16384, "qwen2.5-7b": 18944, "qwen2-7b": 18944, "llama-3-8b": 14336}

SOURCES: dict[tuple[str, str], str] = {
    ("gpt-j-6b", "memit"): "EasyEdit hparams/MEMIT/gpt-j-6B.yaml, equal to kmeng01/memit's",
    ("qwen2.5-7b", "memit"): "EasyEdit hparams/MEMIT/qwen2.5-7b.yaml",
    ("qwen2-7b", "memit"): "EasyEdit hparams/MEMIT/qwen2-7b.yaml",
    (
        "llama-3-8b",
        "memit",
    ): "AlphaEdit hparams/MEMIT/Llama3-8B.json; EasyEdit publishes none for LLaMA-3-8B",
    ("llama-3-8b", "alphaedit"): "AlphaEdit hparams/AlphaEdit/Llama3-8B.json",
}
_VALUES: dict[tuple[str, str], dict[str, Any]] = {
    ("gpt-j-6b", "memit"): {**_EASYEDIT_7B, "block": "3-8", "weight_decay": 0.5, "clamp": 0.75},
    ("qwen2.5-7b", "memit"): _EASYEDIT_7B,
    ("qwen2-7b", "memit"): _EASYEDIT_7B,
    ("llama-3-8b", "memit"): {
        **_EASYEDIT_7B,
        "learning_rate": 0.1,
        "weight_decay": 0.5,
        "clamp": 0.75,
    },
    ("llama-3-8b", "alphaedit"): {
        **_EASYEDIT_7B,
        "learning_rate": 0.1,
        "weight_decay": 0.5,
        "clamp": 0.75,
        "null_threshold": 0.02,
        "l2": 10.0,
    },
}


def preset(model: str, editor: str, solver: str = "memit") -> dict[str, Any]:
    """Settings of an editor for a model; DMLE takes those of its solver, but not the layers.

    The paper's layers per form are not published (its driver's README has [3, 4, 5] and [12, 13,
    14] as an example), so DMLE's come from a `LayerSelection` or by hand.

    Raises:
        ValueError: The model has no preset, or none is published for this editor.
    """
    if model not in _D_MLP:
        raise InputError(f"no preset for {model!r}; there are {', '.join(_D_MLP)}")
    method = solver if editor == "dmle" else editor
    if (model, method) not in _VALUES:
        have = ", ".join(f"{m} ({e})" for m, e in _VALUES)
        raise InputError(
            f"no settings of {method} for {model} are known to be published; there are {have}"
        )
    values = {**_VALUES[model, method], "ridge": _MEMIT_LAMBDA / _D_MLP[model]}
    return {name: value for name, value in values.items() if editor != "dmle" or name != "block"}
