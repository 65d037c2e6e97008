"""Fine-tuning in whitened coordinates: against Adam on A itself, one unpadded run per row of a
plain model, and against plain fine-tuning where keys have the identity as second moment.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from editing.closed_form.covariance import Covariances
from editing.closed_form.workbench import Workbench
from editing.config import EditorSettings
from editing.editors.registry import edit
from editing.edits.delta import EditDelta
from editing.edits.low_rank import LowRank
from editing.edits.protocol import EditError
from editing.edits.requests import EditRequest, requests_of
from interp.errors import InputError
from interp.models.loading import LanguageModel
from interp.rules.sources import Rule
from tests.unit.editing_making import edit_with

LAYERS = (1, 2)
D_MODEL = 32
CONTEXTS = ("", "A cube. ", "It is twice. ")


@pytest.fixture
def requests(rule: Rule) -> list[EditRequest]:
    return requests_of(rule, "last")


def settings_of(**options: Any) -> EditorSettings:
    options = {"steps": 5, "learning_rate": 5e-2, "stop_loss": 0.0, **options}
    return EditorSettings.model_validate({"editor": "ft_whitened", "options": options})


def moments(d_mlp: int, model_hash: str) -> Covariances:
    """Two different positive definite matrices."""
    generator = torch.Generator().manual_seed(0)
    keys = [torch.randn(3 * d_mlp, d_mlp, generator=generator) for _ in LAYERS]
    by_layer = {layer: k.T @ k / len(k) for layer, k in zip(LAYERS, keys, strict=True)}
    gradients = [torch.randn(99, D_MODEL, generator=generator) ** 3 for _ in LAYERS]
    outputs = {layer: g.T @ g / 99 for layer, g in zip(LAYERS, gradients, strict=True)}
    return Covariances(by_layer, model_hash, 3 * d_mlp, {}, outputs=outputs)


def damped(outputs: Tensor, damping: float | None) -> Tensor:
    """G with a mean eigenvalue of one, pulled towards the identity; the identity without
    damping."""
    share = 1.0 if damping is None else damping
    identity = torch.eye(len(outputs))
    return (1 - share) * outputs * len(outputs) / outputs.trace() + share * identity


def nll(
    hf: Any,
    tokenizer: Any,
    edited: dict[str, Tensor],
    requests: Sequence[EditRequest],
    prefixes: int,
) -> Tensor:
    """Mean over prompts, alone and behind texts, of −log p per token of the new answer."""
    each = []
    for context in CONTEXTS[: prefixes + 1]:
        for request in requests:
            prompt = tokenizer(context + request.prompt)["input_ids"]
            target = tokenizer(" " + request.target_new, add_special_tokens=False)["input_ids"]
            run = functional_call(hf, edited, (torch.tensor([prompt + target]),))
            said = run.logits[0, len(prompt) - 1 : -1]
            each.append(torch.nn.functional.cross_entropy(said, torch.tensor(target)))
    return torch.stack(each).mean()


def reference(
    model: LanguageModel,
    hf: Any,
    tokenizer: Any,
    requests: Sequence[EditRequest],
    statistics: Covariances,
    options: dict[str, Any],
    groups: Sequence[tuple[Sequence[int], slice]] = ((LAYERS, slice(None)),),
    batches: Sequence[Sequence[EditRequest]] = (),
) -> tuple[dict[str, Tensor], list[float]]:
    """ΔW = M⁻ᵀ A L⁻¹ of each block and the losses, by autograd through the whole plain model; each
    group is (blocks, the requests whose loss trains them), of all requests or of batches in turn.
    """
    batches = batches or (requests,)
    names = [model.down_projection(layer).name for layer in LAYERS]
    places = [model.linear(name) for name in names]
    inverses = [torch.linalg.inv(torch.linalg.cholesky(statistics.by_layer[i])) for i in LAYERS]
    output_sides = [damped(statistics.outputs[i], options.get("output_damping")) for i in LAYERS]
    left = [torch.linalg.inv(torch.linalg.cholesky(each)).T for each in output_sides]
    weights = {name: hf.get_parameter(name).detach() for name in names}
    factors = [
        torch.zeros_like(place.orient(weights[place.name])).requires_grad_() for place in places
    ]
    optimiser = torch.optim.Adam(factors, lr=options["learning_rate"])
    losses: list[float] = []
    for _ in range(options["steps"]):
        updates = [m @ a @ inverse for m, a, inverse in zip(left, factors, inverses, strict=True)]
        edited = {
            place.name: weights[place.name] + place.orient(update)
            for place, update in zip(places, updates, strict=True)
        }
        batch = batches[len(losses) % len(batches)]
        means = [
            nll(hf, tokenizer, edited, batch[which], options["prefixes"]) for _, which in groups
        ]
        loss = torch.stack(means).mean()
        losses.append(loss.item())
        if len(losses) == options["steps"]:
            break
        optimiser.zero_grad()
        # tr(G ΔW C ΔWᵀ), from the updates themselves; without G, E‖ΔW k‖².
        on_text = sum(
            ((update @ statistics.by_layer[layer]) * (outputs @ update)).sum()
            for layer, update, outputs in zip(LAYERS, updates, output_sides, strict=True)
        )
        for mean, (layers, _) in zip(means, groups, strict=True):
            mean.backward(inputs=[factors[LAYERS.index(i)] for i in layers], retain_graph=True)
        if options["penalty"]:
            (options["penalty"] * on_text).backward()
        optimiser.step()
    final = [
        m @ a.detach() @ inverse for m, a, inverse in zip(left, factors, inverses, strict=True)
    ]
    return dict(zip(names, final, strict=True)), losses


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma3_text"])
@pytest.mark.parametrize(
    "more",
    [{}, {"penalty": 0.5, "prefixes": 2}, {"penalty": 0.5, "output_damping": 0.3}],
    ids=["plain", "full", "outputs"],
)
def test_it_is_adam_on_the_whitened_change(
    family: str,
    more: dict[str, Any],
    make_model: Callable[..., LanguageModel],
    make_hf: Callable[..., Any],
    tokenizer: Any,
    requests: list[EditRequest],
) -> None:
    model = make_model(family)
    settings = settings_of(**more)
    statistics = moments(48, model.weight_hash)
    made = edit_with(
        "ft_whitened", model, requests, LAYERS, statistics, CONTEXTS, settings=settings
    )
    assert isinstance(made, EditDelta)
    options = {"penalty": 0.0, "prefixes": 0, **settings.options}
    expected, losses = reference(model, make_hf(family), tokenizer, requests, statistics, options)
    assert made.report.losses == pytest.approx(losses, rel=1e-4)
    assert len(losses) == 5 and losses[-1] < losses[0]
    for name, update in expected.items():
        got = made.updates[name]
        assert isinstance(got, Tensor)
        assert (got - update).norm() < 2e-3 * update.norm()
    for layer, name in zip(LAYERS, expected, strict=True):
        update, moment = made.updates[name], statistics.by_layer[layer]
        assert isinstance(update, Tensor)
        on_text = ((update @ moment) * update).sum().item()
        assert made.report.own["change_on_text"][str(layer)] == pytest.approx(on_text, rel=1e-4)


def test_batches_take_turns(
    tiny_llama: LanguageModel,
    make_hf: Callable[..., Any],
    tokenizer: Any,
    requests: list[EditRequest],
) -> None:
    options = {"steps": 3, "batch_size": 1, "penalty": 0.0, "prefixes": 0}
    settings, statistics = settings_of(**options), moments(48, tiny_llama.weight_hash)
    given = tiny_llama, requests, LAYERS, statistics, CONTEXTS[:1], settings
    made = edit_with("ft_whitened", *given)
    order = list(range(3))
    random.Random(settings.seed).shuffle(order)
    expected, losses = reference(
        tiny_llama,
        make_hf("llama"),
        tokenizer,
        requests,
        statistics,
        {**settings.options, "steps": 9},
        batches=[[requests[i]] for i in order],
    )
    assert made.report.losses == pytest.approx(losses, rel=1e-4)
    for name, update in expected.items():
        assert (made.updates[name] - update).norm() < 2e-3 * update.norm()
    # It stops when the last loss of every batch is small, on average over the batches.
    stop = sum(losses[3:6]) / 3 + 1e-4
    assert all(sum(losses[i : i + 3]) / 3 > stop for i in range(3))
    assert min(losses[:5]) < stop
    sooner = settings_of(**options, stop_loss=stop)
    assert len(edit_with("ft_whitened", *given[:-1], sooner).report.losses) == 6


def test_wordings_end_token_and_retained_prompts_are_in_the_loss(
    make_model: Callable[..., LanguageModel],
    make_hf: Callable[..., Any],
    tokenizer: Any,
    rules: tuple[Rule, ...],
) -> None:
    """Two steps by hand, on rows that are written out."""
    model, hf, (rule, other) = make_model("llama"), make_hf("llama"), rules
    settings = settings_of(steps=3).model_copy(
        update={"end_token": True, "wordings": 2, "retained": 1}
    )
    statistics = moments(48, model.weight_hash)
    given = model, requests_of(rule, "last"), LAYERS, statistics, CONTEXTS, settings
    made = edit_with("ft_whitened", *given, given_rules=[other])
    end, described = [tokenizer.eos_token_id], other.forms["description"]
    rows = [
        (prompt, tokenizer(" " + form.target_new, add_special_tokens=False)["input_ids"] + end)
        for form in rule.forms.values()
        for prompt in (
            form.prompt,
            f"Complete the sentence: {form.prompt}",
            f"Question: {form.prompt} ...?\nAnswer:",
        )
    ]
    truth = tokenizer(" " + described.target_true[0], add_special_tokens=False)["input_ids"]

    def said(edited: dict[str, Tensor], prompt: str, target: list[int]) -> Tensor:
        ids = tokenizer(prompt)["input_ids"]
        run = functional_call(hf, edited, (torch.tensor([ids + target]),))
        return run.logits[0, len(ids) - 1 : -1].log_softmax(-1)

    names = [model.down_projection(layer).name for layer in LAYERS]
    inverses = [torch.linalg.inv(torch.linalg.cholesky(statistics.by_layer[i])) for i in LAYERS]
    weights = [hf.get_parameter(name).detach() for name in names]
    factors = [torch.zeros_like(weight).requires_grad_() for weight in weights]
    optimiser = torch.optim.Adam(factors, lr=settings.options["learning_rate"])
    before = said({}, described.prompt, truth).detach()
    losses, divergences = list[float](), list[float]()
    for step in range(3):
        updates = [a @ inverse for a, inverse in zip(factors, inverses, strict=True)]
        edited = {n: w + u for n, w, u in zip(names, weights, updates, strict=True)}
        each = [-said(edited, *row)[range(len(row[1])), row[1]].mean() for row in rows]
        now = said(edited, described.prompt, truth)
        divergence = (before.exp() * (before - now)).sum(-1).mean()
        loss = torch.stack(each).mean()
        losses.append(loss.item())
        divergences.append(divergence.item())
        if step < 2:
            optimiser.zero_grad()
            (loss + divergence).backward()
            optimiser.step()
    assert made.report.losses == pytest.approx(losses, rel=1e-4)
    assert divergences[-1] > 1e-3
    for name, factor, inverse in zip(names, factors, inverses, strict=True):
        update = factor.detach() @ inverse
        assert (made.updates[name] - update).norm() < 2e-3 * update.norm()
    assert made.report.retained == (("cube-volume", "description"),)
    assert [each["wording"] for each in made.report.requests][-3:] == [None] * 3
    # The new answers alone do not end the training: what is retained must be back, too.
    whole = [loss + divergence for loss, divergence in zip(losses, divergences, strict=True)]
    for stop_loss, steps in (((losses[1] + whole[1]) / 2, 3), (whole[1] + 1e-3, 2)):
        stopping = settings.model_copy(
            update={"options": settings.options | {"stop_loss": stop_loss}}
        )
        again = edit_with("ft_whitened", *given[:-1], stopping, given_rules=[other])
        assert len(again.report.losses) == steps


def test_with_the_identity_it_is_plain_fine_tuning(
    tiny_llama: LanguageModel, requests: list[EditRequest]
) -> None:
    identity = Covariances({1: torch.eye(48)}, tiny_llama.weight_hash, 0, {"identity": True})
    whitened = edit_with(
        "ft_whitened", tiny_llama, requests, 1, identity, CONTEXTS, settings=settings_of()
    )
    # Its last evaluation takes no step, that of plain fine-tuning does.
    ft = {"steps": 4, "learning_rate": 5e-2, "stop_loss": 0.0}
    plain = edit_with(
        "ft", tiny_llama, requests, 1, settings=EditorSettings.model_validate({"ft": ft})
    )
    for name, update in plain.updates.items():
        torch.testing.assert_close(whitened.updates[name], update, rtol=1e-4, atol=1e-5)


def test_a_penalty_keeps_the_change_on_text_small(
    tiny_llama: LanguageModel, requests: list[EditRequest]
) -> None:
    statistics = moments(48, tiny_llama.weight_hash)

    def change(penalty: float) -> float:
        made = edit_with(
            "ft_whitened",
            tiny_llama,
            requests,
            LAYERS,
            statistics,
            CONTEXTS,
            settings=settings_of(penalty=penalty, steps=30),
        )
        return sum(made.report.own["change_on_text"].values())

    assert change(10.0) < 0.5 * change(0.0)


def test_training_stops_below_the_loss_that_is_asked_for(
    tiny_llama: LanguageModel, requests: list[EditRequest]
) -> None:
    made = edit_with(
        "ft_whitened",
        tiny_llama,
        requests,
        LAYERS,
        moments(48, tiny_llama.weight_hash),
        CONTEXTS,
        settings=settings_of(steps=200, stop_loss=0.5),
    )
    losses = made.report.losses
    assert losses[-1] < 0.5 <= min(losses[:-1]) and len(losses) < 200


def test_what_it_cannot_do_is_said(tiny_llama: LanguageModel, requests: list[EditRequest]) -> None:
    statistics = moments(48, tiny_llama.weight_hash)
    singular = Covariances({1: torch.zeros(48, 48)}, tiny_llama.weight_hash, 0, {})
    given = tiny_llama, requests
    with pytest.raises(InputError, match="not positive definite"):
        edit_with("ft_whitened", *given, 1, singular, CONTEXTS, settings=settings_of())
    with pytest.raises(InputError, match="prefixes is 3, and there are 2 sampled texts"):
        settings = settings_of(prefixes=3)
        edit_with("ft_whitened", *given, 1, statistics, CONTEXTS, settings=settings)
    with pytest.raises(EditError, match=r"diverged at step 1: use a smaller edit.options"):
        settings = settings_of(learning_rate=3e37)
        edit_with("ft_whitened", *given, 1, statistics, CONTEXTS, settings=settings)


# As the solver of DMLE: formula and description in block 1, the instance in block 2.

TWO_GROUPS = [((1,), slice(0, 2)), ((2,), slice(2, 3))]


def grouped(protection: str, **options: Any) -> EditorSettings:
    values = settings_of(**options).options
    return EditorSettings.model_validate(
        {
            "editor": "dmle",
            "solver": "ft_whitened",
            "layers": "1/2",
            "protection": protection,
            "options": values,
        }
    )


def edit_of_groups(
    model: LanguageModel, requests: list[EditRequest], protection: str, **options: Any
) -> EditDelta:
    statistics, settings = moments(48, model.weight_hash), grouped(protection, **options)
    bench = Workbench(model, requests, settings, statistics=statistics, given_contexts=CONTEXTS)
    made = edit(bench)
    assert isinstance(made, EditDelta)
    return made


def test_jointly_each_block_is_trained_on_its_own_group(
    make_model: Callable[..., LanguageModel],
    make_hf: Callable[..., Any],
    tokenizer: Any,
    requests: list[EditRequest],
) -> None:
    model = make_model("llama")
    made = edit_of_groups(model, requests, "joint")
    statistics = moments(48, model.weight_hash)
    options = {"penalty": 0.0, "prefixes": 0, **settings_of().options}
    given = model, make_hf("llama"), tokenizer, requests, statistics, options
    expected, losses = reference(*given, TWO_GROUPS)
    assert made.report.losses == pytest.approx(losses, rel=1e-4)
    for name, update in expected.items():
        got = made.updates[name]
        assert isinstance(got, Tensor) and (got - update).norm() < 2e-3 * update.norm()


@pytest.mark.parametrize("protection", ["staged", "protected"])
def test_stages_are_trained_one_after_the_other(
    protection: str, tiny_llama: LanguageModel, requests: list[EditRequest]
) -> None:
    made = edit_of_groups(tiny_llama, requests, protection)
    statistics, settings = moments(48, tiny_llama.weight_hash), settings_of()

    def alone(some: Sequence[EditRequest], layer: int) -> EditDelta:
        return edit_with(
            "ft_whitened", tiny_llama, some, layer, statistics, CONTEXTS, settings=settings
        )

    first = alone(requests[:2], 1)
    with first.applied(tiny_llama):
        # Protected, the answers of the first stage stay in the loss of the second.
        kept = [*requests[2:], *requests[:2]] if protection == "protected" else requests[2:]
        second = alone(kept, 2)
    expected = {**first.updates, **second.updates}
    assert set(made.updates) == set(expected)
    for name, update in expected.items():
        torch.testing.assert_close(made.updates[name], update, rtol=1e-5, atol=1e-6)
    assert [stage.editor for stage in made.report.stages] == ["ft_whitened", "ft_whitened"]


@pytest.mark.parametrize("energy", [0.5, 0.9, 1.0])
def test_stored_factors_are_the_best_of_their_rank_on_text(
    energy: float, tiny_llama: LanguageModel, requests: list[EditRequest]
) -> None:
    statistics = moments(48, tiny_llama.weight_hash)

    def made(**options: Any) -> EditDelta:
        delta = edit_with(
            "ft_whitened",
            tiny_llama,
            requests,
            LAYERS,
            statistics,
            CONTEXTS,
            settings=settings_of(**options),
        )
        assert isinstance(delta, EditDelta)
        return delta

    whole, stored = made(), made(stored_energy=energy)
    assert stored.report.losses == whole.report.losses
    for name, layer in whole.layers.items():
        update, factors = whole.updates[name], stored.updates[name]
        assert isinstance(update, Tensor) and isinstance(factors, LowRank)
        moment = statistics.by_layer[layer]

        def on_text(change: Tensor, moment: Tensor = moment) -> float:
            return ((change @ moment) * change).sum().item()

        # Singular values by another way: eigenvalues of ΔW C ΔWᵀ = A Aᵀ.
        squares = torch.linalg.eigvalsh(update.double() @ moment.double() @ update.double().T)
        squares = squares.flip(0).clamp_min(0)
        rank = factors.left.shape[1]
        lost = on_text(update - factors.dense()) / on_text(update)
        assert lost == pytest.approx((squares[rank:].sum() / squares.sum()).item(), abs=1e-5)
        assert lost <= 1 - energy + 1e-6
        if energy < 1:
            assert squares[: rank - 1].sum() < energy * squares.sum()


def test_moments_of_outputs_must_be_there(
    tiny_llama: LanguageModel, requests: list[EditRequest]
) -> None:
    statistics = Covariances(moments(48, "").by_layer, tiny_llama.weight_hash, 144, {})
    given = tiny_llama, requests, LAYERS, statistics, CONTEXTS[:1]
    with pytest.raises(InputError, match=r"covariance\.output_tokens=10000"):
        edit_with("ft_whitened", *given, settings_of(output_damping=0.1))


def test_full_damping_leaves_the_outputs_alone(
    tiny_llama: LanguageModel, requests: list[EditRequest]
) -> None:
    given = tiny_llama, requests, LAYERS, moments(48, tiny_llama.weight_hash), CONTEXTS[:1]
    plain = edit_with("ft_whitened", *given, settings_of())
    whole = edit_with("ft_whitened", *given, settings_of(output_damping=1.0))
    for name, update in plain.updates.items():
        torch.testing.assert_close(whole.updates[name], update, rtol=1e-5, atol=1e-7)
