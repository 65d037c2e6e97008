"""What tracing and editing rely on, measured on a model at load: a model that fails is refused.

The numbers are relative errors, the largest difference over the largest value. What is measured is
what is used, as it is used: values are read and written in some rows of a batch, batches grow from
block to block, texts are padded on the right and on the left, a common beginning is computed once,
and prompts of different length are continued together.

Three faster ways have a slower one that needs less (a prefix computed once, batches that grow,
padding on the left): where such a way fails, the slower one is taken. All else that fails refuses
the model.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.errors import DmleError, ModelError, NotFiniteError
from interp.models.finite import require_finite

if TYPE_CHECKING:
    from interp.models.base import ModelBase
    from interp.models.loading import LanguageModel

# A relative error above this is a hook that means something else, not rounding. Models compute
# norms, rotary angles and softmax in float32 whatever their type, so float64 is not much nearer.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-5}
TOLERANCE_HALF = 4e-2
CHECK_TOKENS = 12
ROW, SHORT = 8, 5
"""Tokens of the texts that are run, and of the shorter of two that are padded."""
Whole = Callable[[Int[Tensor, " place"], Int[Tensor, " place"]], Float[Tensor, "place d_vocab"]]
"""Rows and positions → logits of whole runs there."""
COMPARED = 4
"""Tokens at the end of a text at which logits are compared: all of them would take the memory of
a vocabulary each."""
ANSWER = 2
"""Tokens that are continued, and that a patched run is scored on."""
DEVICE_BLOCKS = 2
"""Blocks that are run on the CPU, too, to compare with the device."""
REFUSES = {
    "logits": "TransformerLens's bridge does not compute what the model computes",
    "additivity": (
        "resid_pre + attn_out + mlp_out is not resid_post: its blocks do more than add to the"
        " stream (some normalise the sum, as OPT-350m does)"
    ),
    "projection": "the MLP's output is not the down-projection of its key",
    "writing": (
        "what a hook writes into the embeddings, attention, MLP or stream of one row is not what"
        " the model goes on with, or another row sees it"
    ),
    "right_padding": "padding on the right changes what the tokens before it say",
}
"""What it means that an error is above the tolerance, for those that refuse a model."""


@dataclass(frozen=True)
class SelfCheck:
    """Relative errors (largest difference over largest value) of what tracing and editing rely on.

    An error is infinite where the way is not supported at all.
    """

    logits: float
    """Bridge against the Hugging Face model before wrapping."""
    additivity: float
    """resid_pre + attn_out + mlp_out against resid_post, worst block."""
    projection: float
    """key @ W_out (+ bias) against the MLP's raw output, worst block."""
    prefix_cache: float
    """Logits of rows behind one prefix, whose keys and values are computed once, against whole
    runs."""
    entry: float
    """Logits of sites patched in a batch that grows (the fast route) against whole runs (the
    generic one)."""
    post_norm: bool
    """Whether the block normalises the MLP output before adding it (Gemma 3)."""
    writing: float = 0.0
    """What goes on from a written value against that value: embeddings, attention, MLP and
    stream, one row of two."""
    right_padding: float = 0.0
    """Logits of a shorter text padded on the right, at chosen places, against those of the text
    alone."""
    left_padding: float = 0.0
    """Logits of texts padded on the left, behind kept keys and in greedy continuation, against
    whole runs of each."""
    device: float = 0.0
    """Logits of the first blocks on the device against those on the CPU; 0 on a CPU."""

    def __str__(self) -> str:
        """The errors, in one line."""
        names = [name for name in vars(self) if name != "post_norm"]
        return "relative errors " + ", ".join(
            f"{name.replace('_', ' ')} {getattr(self, name):.0e}" for name in names
        )


def tolerance(dtype: torch.dtype) -> float:
    """Largest relative error that is rounding in a number format."""
    return TOLERANCE.get(dtype, TOLERANCE_HALF)


def check_ids(model: "ModelBase", length: int = CHECK_TOKENS) -> Int[Tensor, "batch pos"]:
    """A row of random tokens, the same for every model of a vocabulary."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(model.config.get_text_config().vocab_size)
    return torch.randint(vocabulary, (1, length), generator=generator).to(model.device)


def check_rows(model: "LanguageModel", length: int = ROW) -> Int[Tensor, "batch pos"]:
    """Two rows of random tokens."""
    ids = check_ids(model, length)
    return torch.cat([ids, ids.flip(1)])


@contextmanager
def foreign_errors(name: str) -> Iterator[None]:
    """Make one line of whatever another library raises inside, for architectures fail in any
    way.
    """
    try:
        yield
    except NotFiniteError as error:
        raise ModelError(str(error)) from error
    except (DmleError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ModelError(
            f"{name}: self-check failed: the model does not run ({told(error)}). Its architecture"
            " is none that tracing and editing know how to use; use another model, or report this"
            " architecture"
        ) from error


def told(error: BaseException) -> str:
    """An error of another library in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def self_check(
    model: "LanguageModel",
    ids: Int[Tensor, "batch pos"],
    expected: Float[Tensor, "batch pos d_vocab"],
) -> SelfCheck:
    """Measure what the rest relies on and refuse a model that fails (see `SelfCheck`).

    Args:
        model: The wrapped model.
        ids: Two rows of tokens.
        expected: Their logits before wrapping.

    Raises:
        ModelError: A relative error is above the tolerance of the model's dtype, a state is NaN or
            infinite, or the model does not run.
    """
    with torch.no_grad(), foreign_errors(model.name):
        check, plain = _hooks(model, ids, expected)
        check = replace(check, writing=_writing_error(model, ids, plain, expected))
        check = replace(check, right_padding=_right_error(model, ids, expected))
        for what, why in REFUSES.items():
            if not (error := getattr(check, what)) <= tolerance(model.dtype):
                raise ModelError(
                    f"{model.name}: self-check failed, relative error of {what.replace('_', ' ')}"
                    f" is {error:.2g}, allowed {tolerance(model.dtype):.0e} in {model.dtype}:"
                    f" {why}. Tracing and editing would give wrong numbers; use another model, or"
                    " report this architecture"
                )

        def whole(rows: Tensor, positions: Tensor) -> Tensor:
            return expected[rows, positions]

        return replace(
            check,
            prefix_cache=_supported(_cache_error, model, ids, ids.shape[1] // 2, whole),
            entry=_supported(_entry_error, model, ids.shape[1]),
            left_padding=max(
                _supported(_padded_error, model, ids, ids.shape[1] // 2, whole),
                _supported(_continued_error, model, ids, expected),
            ),
        )


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


def check_device(model: "LanguageModel", hf_model: Any, ids: Int[Tensor, "batch pos"]) -> float:
    """Compare the first blocks on the device with the same on the CPU, once.

    Returns:
        The relative error; 0 on a CPU, infinite where they cannot be compared (no memory for a
        copy, say).

    Raises:
        ModelError: They differ by more than rounding: the device, or its driver, computes something
            else.
    """
    if model.device.type == torch.empty(0).device.type:
        return 0.0
    with torch.no_grad():
        try:
            error = device_error(hf_model, ids)
        except (
            Exception
        ):  # what runs on the device is no less right for it; the check's numbers say so
            return float("inf")
    if error > tolerance(model.dtype):
        raise ModelError(
            f"{model.name}: self-check failed, its first blocks on {model.device} differ from those"
            f" on the CPU by {error:.2g} (relative), allowed {tolerance(model.dtype):.0e} in"
            f" {model.dtype}; use another device (--device cpu), another number format, or another"
            " version of torch or of the driver"
        )
    return error


def device_error(hf_model: Any, ids: Int[Tensor, "batch pos"]) -> float:
    """Relative difference of the logits of a model's first blocks where it is, and on the CPU."""
    with _shortened(hf_model, DEVICE_BLOCKS):
        here = hf_model(ids).logits
        # Copies that are made on the host, so that the device needs no room for them.
        memo = {
            id(p): nn.Parameter(p.detach().cpu(), requires_grad=False)
            for p in hf_model.parameters()
        }
        memo |= {id(b): b.detach().cpu() for b in hf_model.buffers()}
        there = copy.deepcopy(hf_model, memo)(ids.cpu()).logits
    return _relative(here.cpu(), there)


@contextmanager
def _shortened(hf_model: Any, blocks: int) -> Iterator[None]:
    """The model with its first blocks alone."""
    config = hf_model.config.get_text_config()
    lists = [
        (parent, name, child)
        for parent in hf_model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == config.num_hidden_layers
    ]
    # Several lists of that length: what they are is not known, and the whole model is run.
    lists = lists if len(lists) == 1 else []
    for parent, name, child in lists:
        setattr(parent, name, child[:blocks])
    try:
        yield
    finally:
        for parent, name, child in lists:
            setattr(parent, name, child)


def _hooks(
    model: "LanguageModel", ids: Tensor, expected: Tensor
) -> tuple[SelfCheck, dict[str, Tensor]]:
    """What hooks read: its errors, and the values."""
    parts = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")
    names = {layer: [f"blocks.{layer}.{part}" for part in parts] for layer in range(model.n_layers)}
    if lacking := [part for part in ("attn", "mlp") if not hasattr(model.bridge.blocks[0], part)]:
        raise ModelError(_no_hook(model, f"block 0 has no {lacking[0]}."))
    for layer, of_block in names.items():
        model.down_projection(layer)  # refused here where there is none
        of_block += [model.key_hook(layer), model.value_hook(layer), f"blocks.{layer}.mlp.hook_out"]
    seen, logits = _watched(model, ids, [name for of_block in names.values() for name in of_block])
    check = SelfCheck(_relative(logits, expected), 0.0, 0.0, 0.0, 0.0, post_norm=False)
    for layer, of_block in names.items():
        pre, attn, mlp, post, key, raw, module = (seen[name] for name in of_block)
        down = model.down_projection(layer)
        value = key @ down.orient(down.weight).T if not down.transposed else key @ down.weight
        value = value if down.bias is None else value + down.bias
        check = replace(
            check,
            additivity=max(check.additivity, _relative(pre + attn + mlp, post)),
            # Behind it comes nothing, or the norm that what is added has gone through: an MLP that
            # adds the stream itself (Bloom) says what it adds at the block, others at the MLP.
            projection=max(
                check.projection,
                _relative(value, raw),
                min(_relative(value, module), _relative(value, mlp)),
            ),
            post_norm=check.post_norm or _relative(raw, mlp) > tolerance(model.dtype),
        )
    return check, seen


def _watched(
    model: "LanguageModel",
    ids: Tensor,
    names: Sequence[str],
    writes: Sequence[tuple[str, Any]] = (),
) -> tuple[dict[str, Tensor], Tensor]:
    """Values at hooks in one run, before what is written there, and logits."""
    seen: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: Any, name: str) -> None:
        seen[name] = value.detach().clone()

    hooks = [(name, lambda value, hook, name=name: keep(value, hook, name)) for name in names]
    try:
        logits = model.logits(ids, hooks=[*hooks, *writes])
    except KeyError as error:
        raise ModelError(_no_hook(model, str(error.args[0]))) from error
    if missing := [name for name in names if name not in seen]:
        raise ModelError(_no_hook(model, f"nothing is seen at {missing[0]}."))
    for name, value in seen.items():
        require_finite(value, name, model)
    return seen, logits


def _no_hook(model: "LanguageModel", why: str) -> str:
    return (
        f"{model.name}: self-check failed: {why} Tracing and editing need blocks of attention and"
        " MLP that add to a residual stream (blocks that normalise the sum, as GPT-1's, have"
        " none); use another model"
    )


def _writing_error(
    model: "LanguageModel", ids: Tensor, plain: dict[str, Tensor], before: Tensor
) -> float:
    """What goes on from values written in the second row, at one token, as patching and editors
    write them.

    `plain` and `before` are the values and logits of the same rows without.
    """
    at = (torch.tensor([1], device=model.device), torch.tensor([2], device=model.device))
    generator = torch.Generator().manual_seed(1)
    n, places = model.n_layers, (model.n_layers // 3, 2 * model.n_layers // 3)
    written: dict[str, Tensor] = {}

    def write(value: Tensor, hook: Any, name: str) -> Tensor:
        change = torch.randn(value.shape[-1], generator=generator).to(
            value
        ) * value.float().std().to(value.dtype)
        value = value.index_put_(at, (value[at] + change))
        written[name] = value.detach().clone()
        return value

    def embed(value: Tensor, hook: Any) -> Tensor:
        return write(value.clone(), hook, model.embedding_hook)

    changed = [
        model.hook("attn", places[0]),
        model.hook("mlp", places[1]),
        model.hook("resid", places[0]),
    ]
    # The last block's MLP as editors write it; the one above writes what a norm behind the MLP has
    # left of it.
    changed += [model.value_hook(n - 1)] if places[1] != n - 1 else []
    parts = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")
    names = [f"blocks.{layer}.{part}" for layer in range(n) for part in parts]
    seen, after = _watched(
        model,
        ids,
        names,
        [
            (model.embedding_hook, embed),
            *((name, lambda value, hook, name=name: write(value, hook, name)) for name in changed),
        ],
    )
    if set(written) != {model.embedding_hook, *changed}:
        return float("inf")
    first = names[0]
    moved = (seen[first] - plain[first]).abs().amax(-1)
    # The token that was written is another one, and no other is.
    errors = [_relative(after[:1], before[:1]), float("inf") if float(moved[1, 2]) == 0 else 0.0]
    moved[1, 2] = 0
    errors.append(float(moved.max() / plain[first].abs().max()))
    stream = seen[first]
    for layer in range(n):
        pre, attn, mlp, post = (f"blocks.{layer}.{part}" for part in parts)
        attn_out, mlp_out = (written.get(name, seen[name]) for name in (attn, mlp))
        errors += [
            _relative(seen[pre], stream),
            _relative(seen[pre] + attn_out + mlp_out, seen[post]),
        ]
        stream = written.get(post, seen[post])
    raw, mlp = model.value_hook(n - 1), f"blocks.{n - 1}.hook_mlp_out"
    if raw in written and seen[mlp][1, 2].equal(plain[mlp][1, 2]):
        return float("inf")
    return max(errors)


def _right_error(model: "LanguageModel", ids: Tensor, expected: Tensor) -> float:
    """A shorter text beside a longer one, logits at chosen places alone."""
    padded, mask = _pad_right([ids[0].tolist(), ids[1, :SHORT].tolist()], model.device)
    rows = torch.tensor([0] * ids.shape[1] + [1] * SHORT, device=model.device)
    at = torch.cat([torch.arange(ids.shape[1]), torch.arange(SHORT)]).to(model.device)
    return _relative(model.logits(padded, mask=mask, only=(rows, at))[0], expected[rows, at])


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
    at = torch.arange(ids.shape[1] - last, ids.shape[1], device=model.device)
    return _relative(got, whole(torch.zeros_like(at), at).repeat(2, 1, 1))


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
    return _relative(got, whole(rows, starts + ends + back))


def _entry_error(model: "LanguageModel", length: int) -> float:
    """The fast route of patching against the generic one, with what it is used for: noise, every
    component, windows.
    """
    # Late, as patching itself imports the model.
    from interp.tracing.cases import CorruptedPrompt, Site
    from interp.tracing.patching import Patcher, SweepOptions

    row = check_ids(model, length)[0].tolist()
    n, at = len(row) - ANSWER, (len(row) - ANSWER) // 2
    seen = model.capture(torch.tensor([row[:SHORT]], device=model.device), [model.embedding_hook])
    std = seen[model.embedding_hook].float().std().item()
    noise = std * torch.randn(2, 2, model.d_model, generator=torch.Generator().manual_seed(2))
    case = CorruptedPrompt(tuple(row[:n]), tuple(row[n:]), (at - 1, at), noise)
    low, high = model.n_layers // 3, 2 * model.n_layers // 3
    sites = [
        Site("resid", at, range(low, low + 1), "mlp"),
        Site("mlp", at, range(low, min(low + 2, model.n_layers))),
        Site("attn", at, range(high, min(high + 2, model.n_layers))),
    ]

    def whole(logits: Tensor, target: Any) -> Tensor:
        return logits.float().flatten(1)

    fast = Patcher(model, case, sites, whole, options=SweepOptions(route="fast", unchecked=True))
    got, expected = (each.run(range(len(sites)), range(2)) for each in (fast, fast.generic()))
    return _relative(got, expected)


def _continued_error(model: "LanguageModel", ids: Tensor, expected: Tensor) -> float:
    """Prompts of different length continued together, greedily, against whole runs of each."""
    prompts = [ids[0].tolist(), ids[1, :SHORT].tolist()]
    steps = list(model.continued_logits(prompts, ANSWER))
    error = max(
        _relative(steps[0][0], expected[0, -1]), _relative(steps[0][1], expected[1, SHORT - 1])
    )
    # Of later steps that of the padded row, unless its text has ended.
    said = int(steps[0][1].argmax())
    if len(steps) > 1 and said not in model.ends:
        whole = model.logits(torch.tensor([[*prompts[1], said]], device=model.device), keep=1)[
            0, -1
        ]
        error = max(error, _relative(steps[1][1], whole))
    return error


def _relative(got: Tensor, expected: Tensor) -> float:
    """Largest difference over largest value; infinite if a number is none."""
    got, expected = got.float(), expected.float()
    error = ((got - expected).abs().max() / expected.abs().max().clamp_min(1e-12)).item()
    # NaN compares as false with everything and would pass where a maximum is taken.
    return error if error < float("inf") else float("inf")


def _pad_right(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    # Late, as the module of tokens imports the model.
    from interp.models.tokens import pad_right

    return pad_right(rows, device)
