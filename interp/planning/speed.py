"""How fast this machine runs a model: measured in a few seconds, on a few blocks of the model's own
shape with random numbers, at the number of threads in force.

A run costs a time for each block, which depends on how many tokens go through it (measured at a few
numbers, straight lines between), more for a long context. The rest of the run has a time of its
own, and so has each position whose logits are computed. Other work that the machine does at another
time is not known.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.models.arithmetic import ModelShape, Pass, block_flops
from interp.models.loading import LanguageModel
from interp.models.outline import Outline

ENTRIES = 2**25
"""Most entries of the vocabulary's matrix that is timed."""
WEIGHTS = 2**26
"""Bytes of blocks that are timed at least, if the model has so many: more than a cache holds."""
SIZES = ((1, 1), (1, 12), (5, 12), (20, 12), (60, 12))
"""Rows and tokens of a row that are timed."""
LONG = 240
"""Tokens of the one row that tells what a long context costs."""
SECONDS = 0.08
"""Least time of a measurement; its runs are at least two."""
MOST = 0.4
"""A run that would take longer is not made."""
KEPT = (1, 48)
"""Positions whose logits are timed."""


@dataclass(frozen=True)
class Speed:
    """Seconds of parts of a run.

    Attributes:
        points: Tokens that go through a block together, and seconds in it; ascending.
        context: Seconds in a block for each token, attention head and token of context.
        run: Seconds of a run beside blocks and logits.
        step: The same of one more token in a generation.
        logits: Seconds of the logits of one position more, and of any.
        back: Seconds that gradients take back through a block, per second of going through it.
    """

    points: tuple[tuple[float, float], ...]
    context: float
    run: float
    step: float
    logits: tuple[float, float]
    back: float

    def seconds(self, run: Pass, shape: ModelShape) -> float:
        """Expected time of a run."""
        rows = run.row_blocks / run.blocks if run.blocks else 0
        tokens = rows * run.tokens
        short = min(tokens, SIZES[-1][1])
        longer = max(0.0, run.context - short) * self.context * tokens * shape.heads
        forward = run.blocks * (self.block(tokens) + longer)
        back = forward * self.back * run.back_blocks / run.row_blocks if run.row_blocks else 0.0
        each, any_ = self.logits
        logits = (any_ + each * run.kept if run.kept else 0.0) * (2 if run.back_blocks else 1)
        return forward + back + logits + (self.step if run.tokens == 1 else self.run)

    def total(self, passes: Iterable[Pass], shape: ModelShape) -> float:
        """Expected time of several runs."""
        return sum(self.seconds(each, shape) for each in passes)

    def block(self, tokens: float) -> float:
        """Seconds of some tokens in a block; beyond the largest measurement the time grows with
        them.
        """
        numbers, seconds = zip(*self.points, strict=True)
        if tokens > numbers[-1]:
            return seconds[-1] * tokens / numbers[-1]
        return float(np.interp(tokens, numbers, seconds))


def measured(outline: Outline) -> Speed:
    """Time a few blocks of a model.

    Raises:
        ModelError: They cannot be made.
    """
    shape = outline.shape
    size = max(1, shape.block_matrix * outline.dtype.itemsize)
    model = outline.short_model(min(shape.n_layers, max(1, WEIGHTS // size)), ENTRIES)
    points: list[tuple[float, float]] = []
    rest, at_most = 0.0, MOST
    for rows, tokens in SIZES:
        number = rows * tokens
        if points and points[-1][1] * model.n_layers * number / points[-1][0] > at_most:
            break
        in_block, rest = _timed(model, rows, tokens)
        points.append((number, max(in_block, points[-1][1] if points else 0.0)))
    logits = _logits(model, shape)
    known = Speed(tuple(points), 0.0, 0.0, 0.0, logits, 0.0)
    run = max(0.0, rest - sum(logits))
    context = _context(model, known, shape)
    return Speed(tuple(points), context, run, _step(model, known), logits, _back(model, known))


def _timed(model: LanguageModel, rows: int, tokens: int) -> tuple[float, float]:
    """Seconds in one block, and of the rest of a run."""
    ids = torch.ones(rows, tokens, dtype=torch.long, device=model.device)
    inside: list[float] = []
    started: list[float] = []

    def enter(*call: Any) -> None:
        started.append(_now(model))

    def leave(*call: Any) -> None:
        inside.append(_now(model) - started.pop())

    handles = []
    for block in model.bridge.blocks:
        handles += [block.register_forward_pre_hook(enter), block.register_forward_hook(leave)]
    blocks: list[float] = []

    def once() -> None:
        inside.clear()
        with torch.inference_mode():
            model.logits(ids, keep=1)
        blocks.append(sum(inside))

    try:
        whole = _seconds(model, once)
    finally:
        for handle in handles:
            handle.remove()
    through = median(blocks[1:])
    return through / model.n_layers, max(0.0, whole - through)


def _logits(model: LanguageModel, shape: ModelShape) -> tuple[float, float]:
    """Seconds of one position more, and of any, scaled to the whole vocabulary."""
    entries = max(1, min(shape.vocabulary, ENTRIES // shape.d_model))
    size = (entries, shape.d_model)
    weight = torch.empty(size, dtype=model.dtype, device=model.device).uniform_(-0.1, 0.1)

    def of(kept: int) -> float:
        states = torch.ones(kept, shape.d_model, dtype=model.dtype, device=model.device)
        return _seconds(model, lambda: (states @ weight.T).float().log_softmax(-1))

    few, many = (of(kept) for kept in KEPT)
    scale = shape.vocabulary / entries
    each = max(0.0, (many - few) / (KEPT[1] - KEPT[0]))
    return each * scale, max(0.0, few - each) * scale


def _context(model: LanguageModel, known: Speed, shape: ModelShape) -> float:
    """Seconds of a block for each token, head and token of context beyond a short one."""
    if model.context_length < LONG or known.block(LONG) * model.n_layers > MOST:
        # By the products of attention alone, at the speed of the block's own.
        more = (block_flops(shape, LONG, LONG) - block_flops(shape, LONG, SIZES[-1][1])) / LONG
        speed = block_flops(shape, 1, 1) / (known.points[-1][1] / known.points[-1][0])
        return more / speed / (shape.heads * (LONG - SIZES[-1][1]))
    seconds, _ = _timed(model, 1, LONG)
    more = max(0.0, seconds - known.block(LONG))
    return more / (LONG * shape.heads * (LONG - SIZES[-1][1]))


def _step(model: LanguageModel, known: Speed, tokens: int = 4) -> float:
    """Seconds of a step of a generation beside blocks and logits."""
    prompt = [1] * SIZES[1][1]
    model.ends.clear()
    one, more = (_seconds(model, lambda n=n: model.generate([prompt], n)) for n in (1, 1 + tokens))
    return max(0.0, (more - one) / tokens - known.block(1) * model.n_layers - sum(known.logits))


def _back(model: LanguageModel, known: Speed) -> float:
    """Time back through blocks, per time through them."""
    number, _ = known.points[min(3, len(known.points) - 1)]
    rows, tokens = next(each for each in SIZES if each[0] * each[1] == number)
    ids = torch.ones(rows, tokens, dtype=torch.long, device=model.device)
    held: list[Tensor] = []

    def embed(value: Tensor, hook: Any) -> Tensor:
        held[:] = [value.detach().requires_grad_()]
        return held[0]

    def once() -> None:
        with torch.enable_grad():
            logits = model.logits(ids, keep=1, hooks=[(model.embedding_hook, embed)])
            torch.autograd.grad(logits.float().sum(), held)

    both = _seconds(model, once)
    forward = known.block(number) * model.n_layers
    return max(0.5, (both - forward) / forward)


def _now(model: LanguageModel) -> float:
    if model.device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


def _seconds(model: LanguageModel, work: Callable[[], object]) -> float:
    """Median time, after one time that is not counted."""
    work()
    spent: list[float] = []
    while len(spent) < 2 or sum(spent) < SECONDS:
        start = _now(model)
        work()
        spent.append(_now(model) - start)
    return median(spent)


def product_seconds(work: Callable[[Tensor, Tensor], object], width: int, rows: int) -> float:
    """Seconds of a product of keys that is summed in float64 (`work`), for one token and d_mlp²."""
    side = min(width, 2048)
    second, keys = torch.zeros(side, side, dtype=torch.float64), torch.ones(rows, side)
    return _host_seconds(lambda: work(second, keys)) / (rows * side**2)


def factor_seconds(width: int) -> float:
    """Seconds of a Cholesky factorisation in float64, for d_mlp³."""
    side = min(width, 1024)
    matrix = torch.eye(side, dtype=torch.float64)
    return _host_seconds(lambda: torch.linalg.cholesky_ex(matrix)) / side**3


def _host_seconds(work: Callable[[], object], numbers: Sequence[int] = range(3)) -> float:
    spent = []
    for _ in numbers:
        start = time.perf_counter()
        work()
        spent.append(time.perf_counter() - start)
    return median(spent)
