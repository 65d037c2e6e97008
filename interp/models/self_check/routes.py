"""The faster ways of running several texts, against whole runs of each.

A way that fails here has a slower one that is taken instead. Padding on the right has none: a model
that fails there is refused.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.models.self_check.basis import (
    CHECK_TOKENS,
    SHORT,
    check_ids,
    check_rows,
    relative_error,
    tolerance,
)

if TYPE_CHECKING:
    from interp.models.loading import LanguageModel

Whole = Callable[[Int[Tensor, " place"], Int[Tensor, " place"]], Float[Tensor, "place d_vocab"]]
"""Rows and positions → logits of whole runs there."""
COMPARED = 4
"""Tokens at the end of a text at which logits are compared: all of them would take the memory of
a vocabulary each."""
ANSWER = 2
"""Tokens that are continued, and that a patched run is scored on."""


def right_error(
    model: "LanguageModel",
    ids: Int[Tensor, "batch pos"],
    expected: Float[Tensor, "batch pos d_vocab"],
) -> float:
    """A shorter text beside a longer one, padded on the right, logits at chosen places alone."""
    padded, mask = _pad_right([ids[0].tolist(), ids[1, :SHORT].tolist()], model.device)
    rows = torch.tensor([0] * ids.shape[1] + [1] * SHORT, device=model.device)
    places = torch.cat([torch.arange(ids.shape[1]), torch.arange(SHORT)]).to(model.device)
    got = model.logits(padded, mask=mask, only=(rows, places))[0]
    return relative_error(got, expected[rows, places])


def faster_errors(
    model: "LanguageModel",
    ids: Int[Tensor, "batch pos"],
    expected: Float[Tensor, "batch pos d_vocab"],
) -> dict[str, float]:
    """Relative errors of the faster ways, by their names in `SelfCheck`.

    Args:
        model: The wrapped model.
        ids: Two rows of tokens.
        expected: Their logits before wrapping.
    """

    def whole(rows: Tensor, positions: Tensor) -> Tensor:
        return expected[rows, positions]

    half = ids.shape[1] // 2
    return {
        "prefix_cache": _supported(_cache_error, model, ids, half, whole),
        "entry": _supported(_entry_error, model, ids.shape[1]),
        "left_padding": max(
            _supported(_padded_error, model, ids, half, whole),
            _supported(_continued_error, model, ids, expected),
        ),
    }


def check_long(model: "LanguageModel", switch: int) -> bool:
    """Whether a prefix computed once, and batches that grow, hold for texts longer than a length
    (`interp.models.lengths`).
    """
    length = min(switch + CHECK_TOKENS, model.context_length)
    if length <= switch:
        # No run is so long. Keys of other frequencies are known not to hold.
        return switch != model.lengths.rope
    ids = check_rows(model, length)

    def whole(rows: Tensor, positions: Tensor) -> Tensor:
        return model.logits(ids, only=(rows, positions))[0]

    # Beginnings that the switch comes behind, and such that it comes before.
    ways: list[tuple[Any, ...]] = [
        (_cache_error, ids, length // 2, whole),
        (_cache_error, ids, length - COMPARED, whole),
    ]
    if model.pads_left:
        ways.append((_padded_error, ids, length - COMPARED - 1, whole))
    if model.has_entry:
        ways.append((_entry_error, length))
    with torch.no_grad():
        # One after the other: the first that fails decides.
        return all(
            _supported(measure, model, *rest) <= tolerance(model.dtype) for measure, *rest in ways
        )


def _supported(measure: Any, *arguments: Any) -> float:
    """A relative error; infinite where the model does not do that at all, or gives numbers that
    are none.
    """
    try:
        return measure(*arguments)
    except Exception:  # whatever an architecture raises there: the slower way is taken, and said
        return float("inf")


def _cache_error(model: "LanguageModel", ids: Tensor, cut: int, whole: Whole) -> float:
    """Several rows behind a beginning of `cut` tokens, which is run once."""
    last = min(COMPARED, ids.shape[1] - cut)
    got = model.logits(
        ids[:1, cut:].repeat(2, 1), prefix=model.prefix_cache(ids[:1, :cut]), keep=last
    )
    ends = torch.arange(ids.shape[1] - last, ids.shape[1], device=model.device)
    return relative_error(got, whole(torch.zeros_like(ends), ends).repeat(2, 1, 1))


def _padded_error(model: "LanguageModel", ids: Tensor, cut: int, whole: Whole) -> float:
    """A beginning of `cut` tokens and a shorter one, padded on the left, each continued; the
    second ends earlier.
    """
    length = ids.shape[1]
    other, more = cut - 1 if cut < 6 else cut // 2, length - cut - 1
    prefix, before = model.prefixes([ids[0, :cut].tolist(), ids[1, :other].tolist()])
    rest, mask = _pad_right(
        [ids[0, cut:].tolist(), ids[1, other : other + more].tolist()], model.device
    )
    last = min(COMPARED, more)
    rows = torch.tensor([0] * last + [1] * last, device=model.device)
    back = torch.arange(last, device=model.device).repeat(2) - last
    ends = torch.tensor([length - cut, more], device=model.device)[rows]
    got = model.logits(
        rest, mask=torch.cat([before, mask], 1), prefix=prefix, only=(rows, ends + back)
    )[0]
    starts = torch.tensor([cut, other], device=model.device)[rows]
    return relative_error(got, whole(rows, starts + ends + back))


def _entry_error(model: "LanguageModel", length: int) -> float:
    """The fast route of patching against the generic one, with what it is used for: noise, every
    component, windows.
    """
    # Late, as patching itself imports the model.
    from interp.tracing.cases import CorruptedPrompt, Site
    from interp.tracing.patching import Patcher, SweepOptions

    row = check_ids(model, length)[0].tolist()
    n, middle = len(row) - ANSWER, (len(row) - ANSWER) // 2
    seen = model.capture(torch.tensor([row[:SHORT]], device=model.device), [model.embedding_hook])
    std = seen[model.embedding_hook].float().std().item()
    noise = std * torch.randn(2, 2, model.d_model, generator=torch.Generator().manual_seed(2))
    case = CorruptedPrompt(tuple(row[:n]), tuple(row[n:]), (middle - 1, middle), noise)
    low, high = model.n_layers // 3, 2 * model.n_layers // 3
    sites = [
        Site("resid", middle, range(low, low + 1), "mlp"),
        Site("mlp", middle, range(low, min(low + 2, model.n_layers))),
        Site("attn", middle, range(high, min(high + 2, model.n_layers))),
    ]

    def whole(logits: Tensor, target: Any) -> Tensor:
        return logits.float().flatten(1)

    fast = Patcher(model, case, sites, whole, options=SweepOptions(route="fast", unchecked=True))
    got, expected = (each.run(range(len(sites)), range(2)) for each in (fast, fast.generic()))
    return relative_error(got, expected)


def _continued_error(model: "LanguageModel", ids: Tensor, expected: Tensor) -> float:
    """Prompts of different length continued together, greedily, against whole runs of each."""
    prompts = [ids[0].tolist(), ids[1, :SHORT].tolist()]
    steps = list(model.continued_logits(prompts, ANSWER))
    error = max(
        relative_error(steps[0][0], expected[0, -1]),
        relative_error(steps[0][1], expected[1, SHORT - 1]),
    )
    # Of later steps that of the padded row, unless its text has ended.
    token = int(steps[0][1].argmax())
    if len(steps) > 1 and token not in model.ends:
        whole = model.logits(torch.tensor([[*prompts[1], token]], device=model.device), keep=1)[
            0, -1
        ]
        error = max(error, relative_error(steps[1][1], whole))
    return error


def _pad_right(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    # Late, as the module of tokens imports the model.
    from interp.models.tokens import pad_right

    return pad_right(rows, device)
