"""Selected layers in the files of other people's drivers.

Source of the layout and values: EasyEdit hparams/MEMIT and hparams/AlphaEdit (gpt-j-6B, qwen2.5-7b,
qwen2-7b, llama-7b, llama3.2-3b, gpt2-xl; AlphaEdit's llama3-8b), and AlphaEdit
hparams/MEMIT/Llama3-8B.json, since EasyEdit has no MEMIT file for LLaMA-3-8B. Only the layers are
ours.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from interp.errors import InputError

Method = Literal["MEMIT", "AlphaEdit"]
METHODS: tuple[Method, ...] = ("MEMIT", "AlphaEdit")
_LLAMA = ("model.layers.{}", "mlp.down_proj", "self_attn", "model.norm")
_GPT_J = ("transformer.h.{}", "mlp.fc_out", "attn", "transformer.ln_f")
_GPT_2 = ("transformer.h.{}", "mlp.c_proj", "attn", "transformer.ln_f")


@dataclass(frozen=True)
class _Published:
    """Settings of one model: the target search, λ of MEMIT, module names."""

    source: str
    depth: int
    clamp: float = 4.0
    learning_rate: float = 0.5
    steps: int = 25
    weight_decay: float = 1e-3
    ridge: int = 15000
    modules: tuple[str, str, str, str] = _LLAMA
    head: str = "lm_head"
    l2: float = 10.0


_MODELS = {
    "gpt-j-6b": _Published(
        "EasyEdit hparams/MEMIT/gpt-j-6B.yaml", 28, 0.75, weight_decay=0.5, modules=_GPT_J
    ),
    "qwen2.5-7b": _Published("EasyEdit hparams/MEMIT/qwen2.5-7b.yaml", 28, l2=1.0),
    "qwen2-7b": _Published("EasyEdit hparams/MEMIT/qwen2-7b.yaml", 28),
    "llama-3-8b": _Published(
        "AlphaEdit hparams/MEMIT/Llama3-8B.json", 32, 0.75, 0.1, weight_decay=0.5
    ),
    "llama-2-7b": _Published("EasyEdit hparams/MEMIT/llama-7b.yaml", 32),
    "llama-3.2-3b": _Published(
        "EasyEdit hparams/MEMIT/llama3.2-3b.yaml", 28, head="model.embed_tokens"
    ),
    "gpt2-xl": _Published(
        "EasyEdit hparams/MEMIT/gpt2-xl.yaml",
        48,
        0.75,
        steps=20,
        weight_decay=0.5,
        ridge=20000,
        modules=_GPT_2,
        head="transformer.wte",
    ),
}
_TEMPLATE = "qwen2.5-7b"


def easyedit_yaml(
    layers: Sequence[int],
    n_layers: int,
    model_name: str,
    method: Method = "MEMIT",
    *,
    tied: bool = False,
) -> str:
    """Settings for EasyEdit's MEMIT or AlphaEdit with these layers, as YAML text.

    A model without published settings gets those of Qwen2.5-7B, which the comment in the first line
    says.

    Args:
        layers: Blocks to write.
        n_layers: Blocks of the model.
        model_name: Hub name or folder, such as "Qwen/Qwen2.5-7B".
        method: Which of EasyEdit's editors.
        tied: Whether a model without published settings uses one matrix to embed and to unembed;
            EasyEdit then needs the embedding's name.

    Raises:
        InputError: The named model has another depth.
    """
    values, source = _settings(model_name, n_layers, method, tied=tied)
    block, write, attention, norm = values.modules
    lines = [
        f"# Layers: dmle's selection. Other settings: {source}.",
        f'alg_name: "{method}"',
        f'model_name: "{model_name}"',
        'stats_dir: "./data/stats"',
        *(['P_loc: "./null_space_project.pt"'] if method == "AlphaEdit" else []),
        "device: 0",
        f"layers: [{', '.join(map(str, layers))}]",
        f"clamp_norm_factor: {values.clamp}",
        'layer_selection: "all"',
        'fact_token: "subject_last"',
        f"v_num_grad_steps: {values.steps}",
        f"v_lr: {values.learning_rate}",
        f"v_loss_layer: {values.depth - 1}",
        f"v_weight_decay: {values.weight_decay}",
        "kl_factor: 0.0625",
        "mom2_adjustment: true",
        f"mom2_update_weight: {values.ridge}",
        f'rewrite_module_tmp: "{block}.{write}"',
        f'layer_module_tmp: "{block}"',
        f'mlp_module_tmp: "{block}.mlp"',
        f'attn_module_tmp: "{block}.{attention}"',
        f'ln_f_module: "{norm}"',
        f'lm_head_module: "{values.head}"',
        'mom2_dataset: "wikipedia"',
        "mom2_n_samples: 100000",
        'mom2_dtype: "float32"',
        "model_parallel: false",
    ]
    if method == "AlphaEdit":
        lines += ["nullspace_threshold: 0.02", f"L2: {values.l2:g}"]
    return "\n".join(lines) + "\n"


def _settings(
    model_name: str, n_layers: int, method: Method, *, tied: bool
) -> tuple[_Published, str]:
    """Settings for a model, and where they are from."""
    known = next((key for key in _MODELS if _key(key) in _key(model_name)), None)
    values = _MODELS[known or _TEMPLATE]
    if known is None:
        source = f"nothing is published for this model; settings of {_TEMPLATE} ({values.source})"
        values = replace(values, depth=n_layers, head="model.embed_tokens" if tied else "lm_head")
    else:
        source = values.source
    if values.depth != n_layers:
        raise InputError(
            f"{model_name} has {values.depth} blocks, but the layers were selected in a model of"
            f" {n_layers}; name the model that the selection is of"
        )
    if method == "AlphaEdit":
        l2_source = (
            "EasyEdit hparams/AlphaEdit/qwen2.5-7b.yaml"
            if values.l2 == 1
            else "AlphaEdit hparams/AlphaEdit"
        )
        source += f"; null space and L2: {l2_source}"
    return values, source


def _key(name: str) -> str:
    # What spellings differ in goes; a dot tells Qwen2.5-7B from Qwen2-57B.
    return re.sub(r"[^a-z0-9.]", "", name.lower())
