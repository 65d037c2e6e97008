"""Benchmarks of tracing. They take about 50 minutes on one core.

Whole maps (resid, mlp and attn, every layer, every token from the first corrupted one) of three
prompts of the embedded rules, ten noise samples, SmolLM2-135M:

(a) loop: one `run_with_hooks` per site with all samples in its batch, as TransformerLens's
    `generic_activation_patch`
(b) rome: as (a) with the clean run as a further row of every batch, as ROME's causal_trace.py
(c) generic: our generic route
(d) fast: our fast route, in float32
(e) attribution: gradients, 1 and 3 integrated-gradient steps
(f) screen: gradients, then a share of the sites exactly with as many samples as needed
(g) bfloat16: (d) and (f) with the model in bfloat16 and scores in float32

(a), (b) and (c) cost the same for every site of a kind, so they run on a random sample of the
sites, and their times are scaled up to all sites; the scores that they give are compared with (d)
site by site.

Times are CPU-seconds of one thread in a process of its own: the machine may be shared, so read
ratios, not seconds. Errors are against (d): `missed` is the summed absolute error of the indirect
effects over their summed absolute value, `rank` their Spearman correlation, `profile within` the
share of the layer profile (mean over the tokens of a role) that lies inside the 95 % interval of
(d) over its noise samples. `noise` says how far (d) itself is from the truth because its noise
samples are ten: the summed standard errors over the summed absolute effects.
"""

import resource
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from interp.config import TraceConfig
from interp.models.loading import EMBEDDED, LanguageModel, load
from interp.tracing import prompt as tracing
from interp.tracing.cases import Site, target
from interp.tracing.metrics import mean_log_prob
from interp.tracing.patching import SweepOptions, sweep
from interp.tracing.screening import ScoringOptions, score_sites
from interp.tracing.windows import default_window
from interp.vocabulary import RuleForm
from tests.benchmarks.apart import apart as in_process

PROMPTS: tuple[tuple[str, RuleForm], ...] = (
    ("circle-area", "formula"),
    ("quadratic-equation-discriminant", "formula"),
    ("second-order-reaction-rate", "instance"),
)
"""11, 21 and 40 tokens."""
SCREENS = (0.2, 0.3)
COMPONENTS = ("resid", "mlp", "attn")
SEED = 0


class Size(NamedTuple):
    """Noise samples, sites of (a) and (b) and of (c), and how far the layers are apart."""

    samples: int = 10
    loop_sites: int = 24
    generic_sites: int = 96
    stride: int = 1


QUICK = Size(samples=2, loop_sites=3, generic_sites=15, stride=6)


class Bench:
    """One prompt's map, and ways to get it."""

    def __init__(
        self, prompt: tuple[str, RuleForm], dtype: str, size: Size, model: str = EMBEDDED
    ) -> None:
        from interp.rules.sources import load_rules

        torch.set_num_threads(1)
        rule_id, form = prompt
        self.size = size
        self.model = load(model, device="cpu", dtype=dtype)
        rule = load_rules(ids=[rule_id]).rules[0]
        ready = tracing.prepare(
            self.model, rule, form, TraceConfig(samples=size.samples, positions="all")
        )
        self.case, self.roles = ready.case, ready.roles
        width = default_window(self.model.n_layers)
        self.layers = range(0, self.model.n_layers, size.stride)
        self.sites = [
            tracing.site(component, layer, position, width, self.model.n_layers)
            for component in COMPONENTS
            for position in range(self.case.positions[0], len(self.case.prompt))
            for layer in self.layers
        ]
        rng = np.random.default_rng(SEED)
        self.loop_sites = sorted(
            rng.choice(len(self.sites), size.loop_sites, replace=False).tolist()
        )
        self.generic_sites = sorted(
            rng.choice(len(self.sites), size.generic_sites, replace=False).tolist()
        )

    # Each gives scores [site, sample] of some sites, and what else it measured.

    def loop(self) -> dict[str, Any]:
        return self._loop(clean_row=False)

    def rome(self) -> dict[str, Any]:
        return self._loop(clean_row=True)

    def _loop(self, *, clean_row: bool) -> dict[str, Any]:
        model, case = self.model, self.case
        names = sorted(
            {model.hook(c, layer) for c in COMPONENTS for layer in range(model.n_layers)}
        )
        clean = model.capture(torch.tensor([case.ids]), names)
        goal, first = target(case, model.device), int(clean_row)
        ids = torch.tensor([case.ids]).expand(self.size.samples + first, -1)
        assert case.noise is not None
        noise = case.noise

        def corrupt(value: Tensor, hook: Any) -> Tensor:
            value = value.clone()
            value[first:, list(case.positions)] += noise
            return value

        def one(site: Site) -> Tensor:
            def restore(value: Tensor, hook: Any, name: str) -> Tensor:
                value[first:, site.position] = (
                    value[0, site.position] if clean_row else clean[name][0, site.position]
                )
                return value

            hooks: list[Any] = [(model.embedding_hook, corrupt)]
            for layer in site.layers:
                name = model.hook(site.component, layer)
                hooks.append((name, lambda value, hook, name=name: restore(value, hook, name)))
            logits = model.bridge.run_with_hooks(ids, fwd_hooks=hooks)
            return mean_log_prob(logits[first:, len(case.prompt) - 1 :], goal)

        with torch.inference_mode():
            start = time.process_time()
            scores = torch.stack([one(self.sites[i]) for i in self.loop_sites])
            seconds = (time.process_time() - start) * len(self.sites) / self.size.loop_sites
        return {"scores": scores, "sites": self.loop_sites, "seconds": seconds}

    def generic(self) -> dict[str, Any]:
        some = [self.sites[i] for i in self.generic_sites]
        start = time.process_time()
        found = sweep(self.model, self.case, some, mean_log_prob, SweepOptions(route="generic"))
        seconds = (time.process_time() - start) * len(self.sites) / self.size.generic_sites
        return {"scores": found.restored, "sites": self.generic_sites, "seconds": seconds}

    def fast(self) -> dict[str, Any]:
        start = time.process_time()
        found = sweep(self.model, self.case, self.sites, mean_log_prob)
        return {
            "scores": found.restored,
            "corrupted": found.corrupted,
            "seconds": time.process_time() - start,
            "roles": self.roles,
            "first": self.case.positions[0],
        }

    def attribution(self, steps: int) -> dict[str, Any]:
        return self._scored(method="attribution", steps=steps)

    def screen(self, share: float) -> dict[str, Any]:
        return self._scored(method="screen", share=share, steps=3)

    def _scored(self, **options: Any) -> dict[str, Any]:
        start = time.process_time()
        found = score_sites(
            self.model, self.case, self.sites, ["mean_log_prob"], ScoringOptions(**options)
        )
        seconds = time.process_time() - start
        return {
            "scores": found.restored[..., 0],
            "corrupted": found.corrupted[:, 0],
            "seconds": seconds,
            "about": found.about,
        }

    def arithmetic(self) -> dict[str, Any]:
        """Operations of the fast route, counted by torch on one sample and scaled; the least
        needed; rates."""
        one = self.case.take([0])
        with FlopCounterMode(display=False) as counter:
            sweep(self.model, one, self.sites, mean_log_prob)
        some = [site for site in self.sites if site.position == self.case.positions[-1]]
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            sweep(self.model, self.case, some, mean_log_prob)
        events = profiler.key_averages()
        total = sum(event.self_cpu_time_total for event in events)
        shares = {event.key: event.self_cpu_time_total / total for event in events}
        return {
            "done": counter.get_total_flops() * self.size.samples,
            "needed": self._needed(),
            "rate": self._matmul_rate(),
            "profile": dict(sorted(shares.items(), key=lambda item: -item[1])[:12]),
        }

    def _needed(self) -> float:
        """Two operations a weight and token, behind the first block that a site changes and from
        its position on."""
        weights, context = _block_weights(self.model), len(self.case.ids)
        unembedding = 2 * self.model.d_model * self.model.config.vocab_size * len(self.case.answer)
        total = 0.0
        for site in self.sites:
            tokens = context - site.position
            attended = sum(
                range(site.position + 1, context + 1)
            )  # tokens that each of them attends to
            blocks = self.model.n_layers - site.layers.start - (site.component != "attn")
            total += (
                blocks * (2 * tokens * weights + 4 * attended * self.model.d_model) + unembedding
            )
        return total * self.size.samples

    def _matmul_rate(self) -> float:
        """Operations per second of plain products of the block's own shapes, at the rows of a
        batch."""
        block = self.model.bridge.blocks[0].original_component
        layers = [module for module in block.modules() if isinstance(module, nn.Linear)]
        inputs = [torch.randn(2000, layer.in_features) for layer in layers]

        def run() -> None:
            for layer, value in zip(layers, inputs, strict=True):
                nn.functional.linear(value, layer.weight)

        with torch.inference_mode():
            run()
            start = time.process_time()
            for _ in range(10):
                run()
            seconds = time.process_time() - start
        return (
            10
            * sum(
                2 * value.shape[0] * layer.weight.numel()
                for layer, value in zip(layers, inputs, strict=True)
            )
            / seconds
        )


def _block_weights(model: LanguageModel) -> int:
    block = model.bridge.blocks[0].original_component
    return sum(module.weight.numel() for module in block.modules() if isinstance(module, nn.Linear))


def measure(
    which: int, dtype: str, name: str, arguments: tuple[Any, ...], size: Size
) -> dict[str, Any]:
    """Run one case in this process, with its peak memory."""
    bench = Bench(PROMPTS[which], dtype, size)
    loaded = _peak_mb()
    start = time.perf_counter()
    found = getattr(bench, name)(*arguments)
    plain = {
        key: value.numpy() if isinstance(value, Tensor) else value for key, value in found.items()
    }
    return {
        **plain,
        "wall": time.perf_counter() - start,
        "peak_mb": _peak_mb(),
        "extra_mb": _peak_mb() - loaded,
        "n_sites": len(bench.sites),
        "tokens": len(bench.case.prompt),
        "answer_tokens": len(bench.case.answer),
        "n_layers": len(bench.layers),
    }


def bench_prompt(which: int, say: Callable[[dict[str, Any]], None], size: Size) -> None:
    """All cases of one prompt, as rows."""

    def apart(which: int, name: str, *arguments: Any, dtype: str = "float32") -> dict[str, Any]:
        return in_process(measure, which, dtype, name, arguments, size)

    loop, fast = apart(which, "loop"), apart(which, "fast")
    effects = fast["scores"] - fast["corrupted"]
    mean = effects.mean(1)
    mass = np.abs(mean).sum()
    noise = (effects.std(1, ddof=1) / size.samples**0.5).sum() / mass
    case = f"{fast['tokens']} tokens, {fast['n_sites']} sites, {size.samples} samples"

    def row(name: str, found: dict[str, Any], **more: Any) -> None:
        scores = found["scores"]
        there = found.get("sites", range(len(mean)))
        largest = float(np.abs(scores - fast["scores"][there]).max())
        guess = (scores - found.get("corrupted", fast["corrupted"])).mean(1)
        errors: dict[str, Any] = {"largest_difference": largest}
        if name[:3] in ("(e)", "(f)", "(g)"):
            errors |= {
                "missed": float(np.abs(guess - mean).sum() / mass),
                "rank": _spearman(guess, mean),
                "noise": float(noise),
                "profile_within": _profile_within(guess, fast, size.samples),
                **found.get("about", {}),
            }
        say(
            {
                "name": name,
                "case": case,
                "seconds": found["seconds"],
                "wall": found["wall"],
                "peak_mb": found["peak_mb"],
                "extra_mb": found["extra_mb"],
                "ratio": loop["seconds"] / found["seconds"],
                "baseline": "(a) loop",
                **errors,
                **more,
            }
        )

    row("(a) loop", loop, measured_sites=size.loop_sites)
    row("(b) rome", apart(which, "rome"), measured_sites=size.loop_sites)
    row("(c) generic", apart(which, "generic"), measured_sites=size.generic_sites)
    counted = apart(which, "arithmetic")
    row(
        "(d) fast",
        fast,
        gflop=counted["done"] / 1e9,
        gflop_needed=counted["needed"] / 1e9,
        gflops=counted["done"] / 1e9 / fast["seconds"],
        gflops_of_plain_products=counted["rate"] / 1e9,
        profile=counted["profile"],
    )
    for steps in (1, 3):
        row(f"(e) attribution, {steps} steps", apart(which, "attribution", steps))
    for share in SCREENS:
        row(f"(f) screen {share:.0%}", apart(which, "screen", share))
    row("(g) bfloat16 fast", apart(which, "fast", dtype="bfloat16"))
    row("(g) bfloat16 screen 20%", apart(which, "screen", 0.2, dtype="bfloat16"))


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    ranks = [np.argsort(np.argsort(values)) for values in (one, other)]
    return float(np.asarray(np.corrcoef(ranks))[0, 1])


def _profile_within(guess: np.ndarray, fast: dict[str, Any], samples: int) -> float:
    """Share of the layer profile (component × role × layer) inside the exact one's 95 % interval
    over noise samples."""
    shape = (len(COMPONENTS), -1, fast["n_layers"])
    effects = (fast["scores"] - fast["corrupted"]).reshape(*shape, samples)
    roles = np.array(fast["roles"][fast["first"] :])
    inside = []
    for role in sorted(set(roles)):
        exact = effects[:, roles == role].mean(1)
        # Where an effect is nothing (behind the last block, say) its error is rounding.
        error = np.maximum(exact.std(-1, ddof=1) / samples**0.5, 1e-4)
        inside.append(
            np.abs(guess.reshape(shape)[:, roles == role].mean(1) - exact.mean(-1)) < 1.96 * error
        )
    return float(np.mean(inside))


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def describe(row: dict[str, Any]) -> str:
    """One line about a row."""
    text = (
        f"{row['name']:24} {row['case']:38} {row['seconds']:9.1f} CPU-s  {row['ratio']:6.1f} x less"
        " than (a)"
    )
    text += f"  {row['extra_mb']:6.0f} MB more"
    if "missed" in row:
        text += f"  missed {row['missed']:.3f} (noise {row['noise']:.3f})  rank {row['rank']:.3f}"
        return text + f"  profile within {row['profile_within']:.0%}"
    if "gflop" in row:
        text += f"  {row['gflops']:.0f} of {row['gflops_of_plain_products']:.0f} GFLOP/s"
        return text + f", {row['gflop'] / row['gflop_needed']:.2f} of the least arithmetic"
    return text + f"  largest difference to (d) {row['largest_difference']:.1e}"


def run(
    say: Callable[[dict[str, Any]], None],
    *,
    prompts: Sequence[int] = (0, 1, 2),
    quick: bool = False,
) -> None:
    """All cases of the prompts, or of the first at small size; rows as they come."""
    for which in prompts[:1] if quick else prompts:
        bench_prompt(which, say, QUICK if quick else Size())
