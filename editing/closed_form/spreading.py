"""Write targets into blocks: the loop that MEMIT, AlphaEdit, EMMET and DMLE share. They differ in
the closed form.

Block by block, each on the model with the earlier blocks already updated: what a request still
lacks at the last of its blocks is divided by the number of blocks it has left, and the block's
down-projection is changed so that the requests' keys give their share.

Where a block normalises the MLP's output before adding it (Gemma 3), a change of that output is not
a change of the stream, and shares do not add up. There the target is the output of the
down-projection itself, in one block per request.

Source: Meng et al. 2023 (MEMIT), algorithm 1. Layers are 0-based.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from editing.closed_form.covariance import Covariances
from editing.closed_form.keys import find_keys, find_states, keys_of_prompts
from editing.closed_form.precision import as_tensor, together
from editing.closed_form.solvers import LowRank
from editing.closed_form.targets import Site, Targets, find_targets, state_hook
from editing.config import EditorSettings
from editing.edits.delta import DeltaError, EditDelta, merge
from editing.edits.requests import EditRequest
from interp.models.loading import LanguageModel
from interp.settings.sizes import parse_size

COLLINEAR = 0.999
NO_CHANGE = 1e-6
"""A target nearer to the state than this share of the state's norm is the state."""


Solve = Callable[[int, Tensor, Tensor, Tensor | None, Tensor | None], LowRank]
"""A closed form: (layer, residual (d_model, n), keys (d_mlp, n), protected keys (d_mlp, m), earlier
keys (d_mlp, e)) → update. Columns of `protected` must keep their outputs exactly, those of
`earlier` as far as the form can."""


@dataclass(frozen=True)
class Others:
    """Requests beside those that are edited."""

    protected: Sequence[EditRequest] = ()
    """Their prompts and new answers must be answered exactly as before (every token's key is
    kept)."""
    earlier: Sequence[EditRequest] = ()
    """Requests of earlier edits in a sequence, for closed forms that have a term for them."""


@dataclass
class _Report:
    collinear: list[dict[str, object]] = field(default_factory=list)
    served: dict[str, list[float]] = field(default_factory=dict)


def check_model(model: LanguageModel, covariances: Covariances) -> None:
    """Refuse statistics of another model.

    Raises:
        DeltaError: The covariances were measured on other weights.
    """
    if covariances.model_hash != model.weight_hash:
        raise DeltaError(
            f"the covariances are of weights {covariances.model_hash}, the model has"
            f" {model.weight_hash}; measure them again"
        )


def site_of(model: LanguageModel, plan: Sequence[Sequence[int]]) -> Site:
    """Where targets are: the output of a block, or of its down-projection for models with a norm
    behind the MLP.

    Raises:
        DeltaError: Such a model, and a request is spread over several blocks.
    """
    if model.check is None or not model.check.post_norm:
        return "resid"
    if any(len(layers) > 1 for layers in plan):
        middle, later = model.n_layers // 3, 2 * model.n_layers // 3
        raise DeltaError(
            f"{model.name} normalises the MLP output before adding it to the stream, so a residual"
            " cannot be spread over layers there; give one layer per request (--set"
            f" edit.block={middle}, or --set edit.layers={middle}/{later} for DMLE), or take"
            " --editors rome"
        )
    return "mlp"


def edit_block(
    name: str,
    model: LanguageModel,
    requests: Sequence[EditRequest],
    layers: Sequence[int],
    covariances: Covariances,
    contexts: Sequence[str],
    settings: EditorSettings,
    solve: Solve,
    *,
    targets: Targets | None = None,
    others: Others | None = None,
) -> EditDelta:
    """All requests into the same blocks; the model is as before on return, and on error.

    Args:
        name: Editor, for the record.
        model: The model, edited or not: the update is for it as it is now.
        requests: What to change.
        layers: Blocks, ascending.
        covariances: Second moments of the *unedited* model at (at least) these blocks.
        contexts: See `editing.closed_form.contexts`.
        settings: Settings.
        solve: The closed form.
        targets: Targets to write, if they are known already.
        others: Requests to protect, and earlier ones.

    Raises:
        DeltaError: The covariances are of another model, or the model's blocks do not allow it.
    """
    check_model(model, covariances)
    plan = [tuple(layers)] * len(requests)
    site = site_of(model, plan)
    targets = targets or find_targets(model, requests, layers[-1], contexts, settings, site=site)
    parts, about = spread(model, requests, plan, targets, contexts, settings, solve, others=others)
    return merge(
        parts,
        {
            "editor": name,
            "layers": list(layers),
            **described(requests, contexts, settings),
            "covariance": covariances.about,
            **about,
        },
    )


def spread(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    plan: Sequence[Sequence[int]],
    targets: Targets,
    contexts: Sequence[str],
    settings: EditorSettings,
    solve: Solve,
    *,
    others: Others | None = None,
) -> tuple[list[EditDelta], dict[str, Any]]:
    """One update per block that is in the plan of any request.

    Args:
        model: The model, edited or not.
        requests: What to change.
        plan: Blocks of each request, ascending; its target is at the last of them. At a block that
            is not in its plan a request takes part with a residual of zero: its output there should
            stay.
        targets: Targets of all requests.
        contexts: Texts before the prompts, for keys.
        settings: For the lookup.
        solve: The closed form.
        others: Requests to protect, and earlier ones.

    Returns:
        A delta for each block, and what there is to say: losses of the search, the share of the way
        that is left at the end (NaN: no change was wanted), what each block's update gives each
        request of its share, and colliding keys.
    """
    others, lookup, site = others or Others(), settings.lookup, site_of(model, plan)
    memory = parse_size(settings.memory)
    hooks = [state_hook(model, site, layers[-1]) for layers in plan]
    report, parts = _Report(), []
    with ExitStack() as stack:
        for layer in sorted({layer for layers in plan for layer in layers}):
            keys = find_keys(model, requests, layer, contexts, lookup, memory=memory)
            missing = targets.z - _states(model, requests, hooks, lookup, memory)
            share = torch.tensor([_share(layers, layer) for layers in plan], device=missing.device)
            residual = missing * share.unsqueeze(1)
            update = solve(
                layer,
                residual.T,
                keys.T,
                _optional(keys_of_prompts, model, others.protected, layer, memory),
                _optional(
                    find_keys, model, others.earlier, layer, contexts, lookup, "halves", memory
                ),
            )
            part = block_delta(model, layer, update)
            _describe(report, layer, requests, keys, residual, update)
            parts.append(part)
            stack.enter_context(part.applied(model))
        left = (targets.z - _states(model, requests, hooks, lookup, memory)).norm(dim=-1)
    wanted = (targets.z - targets.initial).norm(dim=-1)
    # A request that is served already wants no change, and there is no way of which a share could
    # be left.
    wants = wanted > NO_CHANGE * targets.initial.norm(dim=-1)
    return parts, {
        "losses": [list(one) for one in targets.losses],
        "residual_left": torch.where(wants, left / wanted, torch.nan).tolist(),
        "served": report.served,
        "collinear_keys": report.collinear,
    }


def described(
    requests: Sequence[EditRequest], contexts: Sequence[str], settings: EditorSettings
) -> dict[str, Any]:
    """What made an edit, for its header."""
    return {
        "requests": [asdict(request) for request in requests],
        "contexts": list(contexts),
        "settings": settings.model_dump(mode="json"),
    }


def collinear_keys(
    keys: Float[Tensor, "n d_mlp"],
    residual: Float[Tensor, "n d_model"],
    requests: Sequence[EditRequest],
) -> list[dict[str, object]]:
    """Pairs of requests whose keys point the same way while they want different changes.

    One linear map cannot serve both: the closed form averages them. Another lookup or separate
    layers help.
    """
    unit = normalize(keys, dim=-1)
    cosine = unit @ unit.T
    pairs = []
    for i, second in enumerate(requests):
        for j, first in enumerate(requests[:i]):
            if cosine[i, j] > COLLINEAR and not torch.allclose(residual[i], residual[j]):
                pairs.append(
                    {
                        "rules": [first.rule, second.rule],
                        "forms": [first.form, second.form],
                        "cosine": cosine[i, j].item(),
                    }
                )
    return pairs


def _states(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    hooks: Sequence[str],
    lookup: str,
    memory: int,
) -> Float[Tensor, "n d_model"]:
    found: dict[str, Tensor] = {
        hook: find_states(model, requests, hook, lookup, memory) for hook in sorted(set(hooks))
    }
    return torch.stack([found[hook][i] for i, hook in enumerate(hooks)])


def _share(layers: Sequence[int], layer: int) -> float:
    return 1 / sum(other >= layer for other in layers) if layer in layers else 0.0


def _optional(
    find: Any, model: LanguageModel, requests: Sequence[EditRequest], *rest: Any
) -> Tensor | None:
    return find(model, requests, *rest).T if requests else None


def _describe(
    report: _Report,
    layer: int,
    requests: Sequence[EditRequest],
    keys: Tensor,
    residual: Tensor,
    update: LowRank,
) -> None:
    report.collinear += [
        {"layer": layer, **pair} for pair in collinear_keys(keys, residual, requests)
    ]
    left, right, read = together(update.left, update.right, keys)
    given = as_tensor((left @ (right.T @ read.T)).T).to(residual.dtype).to(residual.device)
    size = residual.square().sum(-1)
    along = (given * residual).sum(-1) / size.clamp_min(1e-30)
    report.served[str(layer)] = torch.where(size > 0, along, torch.nan).tolist()


def block_delta(model: LanguageModel, layer: int, update: LowRank) -> EditDelta:
    """An update of one block's down-projection as a delta."""
    name = model.down_projection(layer).name
    # float32 factors: what is stored is what is applied, now and after loading.
    stored = LowRank(update.left.float(), update.right.float())
    return EditDelta({name: stored}, {name: layer}, model.weight_hash)
