"""LoRA: low-rank adapters trained on the new answers, with `peft`.

Adapters are trained on a Hugging Face model that shares the parameters of ours
(`LanguageModel.clean_copy`), by Adam on the mean over requests of −(1/n) Σ log p(target token).
What comes back is their product (α/r)·B·A as a delta, so that applying and reverting it is that of
any weight edit.

Source: Hu et al. 2022; settings of EasyEdit's LoRA (r 8, α 32, 70 steps, learning rate 5e-3,
dropout 0.1, queries and values). Differences: EasyEdit's code makes AdaLoRA adapters (SVD form,
with a penalty on their orthogonality) under that name, trains on one request at a time and appends
"<|endoftext|>" to targets; here are plain LoRA, one batch and the target alone (with
`edit.end_token` an end token, too). As there, dropout acts in the adapters only: the model itself
is in evaluation mode.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from editing.closed_form.workbench import Workbench
from editing.config import EditorSettings
from editing.editors.registry import EXTRAS, register
from editing.edits.delta import EditDelta
from editing.edits.low_rank import LowRank
from editing.edits.protocol import EditError
from editing.evaluation.scoring import Asked
from editing.evaluation.training import REMEDY, Lesson, lessons
from interp.models.budget import one_batch
from interp.models.finite import cause
from interp.models.loading import LanguageModel, ModelError, Projection


@register("lora", blocks="all", honours=EXTRAS)
@one_batch(REMEDY)
def edit(bench: Workbench) -> EditDelta:
    """Train adapters on projections of some blocks; the model is as before on return, and on error.

    Args:
        bench: Model, requests, retained prompts, blocks; under `lora` rank, α, steps, learning
            rate, dropout and projections, and the seed of the adapters' first values and of
            dropout. The global random state is left as it was.

    Returns:
        A delta with factors of rank `lora.rank`, float32, for each projection.

    Raises:
        EditError: A block has no such projection with a matrix of its own, the loss became NaN or
            infinite, or `peft` is not installed.
    """
    model, layers, settings = bench.model, bench.layers, bench.settings
    try:
        places = [
            model.projection(layer, part) for layer in layers for part in settings.lora.targets
        ]
    except ModelError as error:
        raise EditError(
            f"LoRA cannot adapt {settings.lora.targets}: {error}; set edit.lora.targets, such as "
            "--set edit.lora.targets=[q,v]"
        ) from error
    (rows,) = lessons(model, bench.requests, bench.retained)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        clean = model.clean_copy()
        adapters = _adapt(clean, places, settings)
        losses = _train(model, clean, rows, settings)
    updates = {
        place.name: LowRank(
            (adapter.scaling["default"] * adapter.lora_B["default"].weight.detach()).float().cpu(),
            adapter.lora_A["default"].weight.detach().T.float().cpu(),
        )
        for place, adapter in zip(places, adapters, strict=True)
    }
    of_layer = {place.name: place.layer for place in places}
    return EditDelta(updates, of_layer, model.weight_hash, bench.report(losses=losses))


def _adapt(clean: Any, places: Sequence[Projection], settings: EditorSettings) -> list[Any]:
    """Put adapters into the module, and return them in the order of the places."""
    try:
        # Late: it takes seconds, and nothing else needs it.
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise EditError(
            f"LoRA needs the package peft ({error}): pip install 'peft>=0.21,<1'"
        ) from error
    config, names = settings.lora, [place.name.removesuffix(".weight") for place in places]
    adapter_config = LoraConfig(
        r=config.rank,
        # A factor: peft takes any number.
        lora_alpha=config.alpha,  # pyrefly: ignore[bad-argument-type]
        lora_dropout=config.dropout,
        target_modules=names,
        fan_in_fan_out=places[0].transposed,
    )
    inject_adapter_in_model(adapter_config, clean)
    adapters = [clean.get_submodule(name) for name in names]
    clean.eval()
    for adapter in adapters:
        adapter.lora_dropout.train()
    return adapters


def _train(model: LanguageModel, clean: Any, rows: Lesson, settings: EditorSettings) -> list[float]:
    """Train the adapters; the loss before each step."""
    config = settings.lora
    trained = [parameter for parameter in clean.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    losses: list[float] = []

    def run(which: Sequence[int], asked: Asked) -> Tensor:
        row, column = asked.places()
        said = clean(
            input_ids=asked.ids,
            attention_mask=asked.mask,
            logits_to_keep=asked.kept,
            use_cache=False,
        )
        return said.logits[row, column - asked.kept[0]]

    for step in range(config.steps):
        optimiser.zero_grad()
        loss, _ = rows.descend(trained, run)
        if not math.isfinite(loss):
            why = (
                "use a smaller lora.learning_rate, or model.dtype=float32" if step else cause(model)
            )
            raise EditError(f"LoRA diverged at step {step}: {why}")
        losses.append(loss)
        optimiser.step()
    return losses
