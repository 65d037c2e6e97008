"""Float64 on devices that have none: a stand-in that raises what torch raises there, against
torch in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from editing.closed_form import solvers
from editing.closed_form.covariance import Covariances
from editing.edits import precision
from editing.edits.delta import EditDelta, merge
from editing.edits.low_rank import LowRank
from editing.edits.report import EditReport
from interp.errors import NotFiniteError
from interp.models.loading import LanguageModel


class NoFloat64(TorchDispatchMode):
    """Every operation that gives float64 raises, as on Apple's Metal."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.dtype == torch.float64:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support"
                " float64"
            )
        return out


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


# More columns than the rows that are solved at once, so that several are.
D = precision.ROWS + 40
RESIDUAL, KEYS, PROTECTED, EARLIER = (
    draw(*size, seed=i) for i, size in enumerate([(32, 3), (D, 3), (D, 2), (D, 4)])
)
SAMPLES = draw(D, 3 * D, seed=9)
COVARIANCE = SAMPLES @ SAMPLES.T / (3 * D)
DIRECTIONS = torch.linalg.qr(draw(D, D, seed=5)).Q[:, :60]
SOLVERS: dict[str, Callable[[], LowRank]] = {
    "ridge": lambda: solvers.ridge(RESIDUAL, KEYS, solvers.factorise(COVARIANCE), 10.0),
    "ridge, protected": lambda: solvers.ridge(
        RESIDUAL, KEYS, solvers.factorise(COVARIANCE), 1.0, PROTECTED
    ),
    "equality": lambda: solvers.equality(RESIDUAL, KEYS, solvers.factorise(COVARIANCE)),
    "equality, damped": lambda: solvers.equality(
        RESIDUAL, KEYS, solvers.factorise(COVARIANCE), 0.3, PROTECTED
    ),
    "null space": lambda: solvers.null_space(
        RESIDUAL, KEYS, DIRECTIONS @ DIRECTIONS.T, 10.0, EARLIER, PROTECTED
    ),
    "rank one": lambda: solvers.rank_one(
        RESIDUAL[:, 0], KEYS[:, 0], solvers.factorise(COVARIANCE), KEYS[:, 1]
    ),
    "half": lambda: solvers.ridge(
        RESIDUAL.bfloat16(), KEYS.half(), solvers.factorise(COVARIANCE), 10.0
    ),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_are_exact_without_float64(name: str) -> None:
    expected = SOLVERS[name]()
    with NoFloat64():
        got = SOLVERS[name]()
        stored = got.left.float()
    assert got.left.dtype == got.right.dtype == torch.float64 and stored.dtype == torch.float32
    torch.testing.assert_close(got.dense(), expected.dense(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("relative", [True, False])
def test_factors_and_projectors_are_exact_without_float64(relative: bool) -> None:
    held = Covariances({0: COVARIANCE}, "hash", 1, {})
    with NoFloat64():
        other = Covariances({0: COVARIANCE}, "hash", 1, {})
        factor, free = other.factor(0), other.null_space(0, 0.6, relative)
    torch.testing.assert_close(factor, held.factor(0), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(free, held.null_space(0, 0.6, relative), rtol=0, atol=1e-9)
    assert 0 < free.trace() < D


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deltas_are_applied_measured_and_merged_without_float64(
    family: str, dtype: torch.dtype, make_hf: Callable[..., Any], tokenizer: Any
) -> None:
    model = LanguageModel(make_hf(family).to(dtype), tokenizer, "there", check=False)
    name = model.down_projection(1).name
    low = EditDelta(
        {name: LowRank(draw(32, 2, seed=1), draw(48, 2, seed=2))}, {name: 1}, model.weight_hash
    )
    whole = EditDelta({name: draw(32, 48, seed=3)}, {name: 1}, model.weight_hash)

    def measured() -> list[Any]:
        both = merge([low, whole], EditReport())
        found: list[Any] = []
        for delta in (low, whole, both):
            found += [delta.cast_loss(model), delta.norms(), delta.rank()]
            with delta.applied(model):
                found.append(model.parameters[name].detach().clone())
        return found

    before, expected = model.parameters[name].detach().clone(), measured()
    with NoFloat64():
        got = measured()
    for one, other in zip(got, expected, strict=True):
        if isinstance(one, Tensor):
            assert one.equal(other)
        else:
            assert one == pytest.approx(other, rel=1e-9)
    assert model.parameters[name].equal(before)


def test_where_sums_are_kept() -> None:
    here = torch.empty(0).device
    assert precision.device_of_sums(here) == here
    with NoFloat64():
        assert precision.device_of_sums(torch.empty(0, device="meta").device) == here


def test_running_out_of_memory_is_not_taken_for_a_device_without_float64(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Full(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError), Full():
        precision.exact(KEYS)


# Numbers that are none.


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_never_an_update(
    value: float, tiny_llama: LanguageModel, tmp_path: Any
) -> None:
    name = tiny_llama.down_projection(1).name
    left = draw(32, 2)
    left[3, 1] = value
    for update in (LowRank(left, draw(48, 2)), left @ draw(2, 48)):
        with pytest.raises(NotFiniteError, match=f"the update of {name} is not finite"):
            EditDelta({name: update}, {name: 1}, tiny_llama.weight_hash)
    bad = COVARIANCE.clone()
    bad[4, 4] = value
    with pytest.raises(NotFiniteError, match="holds NaN or infinity; delete its file"):
        solvers.factorise(bad)
    keys = KEYS.clone()
    keys[0, 0] = value
    with pytest.raises(NotFiniteError, match="the update is not finite"):
        solvers.ridge(RESIDUAL, keys, solvers.factorise(COVARIANCE), 10.0)
    with pytest.raises(NotFiniteError, match="a key is zero"):
        solvers.rank_one(RESIDUAL[:, 0], torch.zeros(D), solvers.factorise(COVARIANCE))


def test_an_edit_that_overflows_the_models_type_changes_nothing(
    make_hf: Callable[..., Any], tokenizer: Any
) -> None:
    model = LanguageModel(make_hf("llama").half(), tokenizer, "half")
    names = [model.down_projection(layer).name for layer in (0, 1)]
    before = [model.parameters[name].detach().clone() for name in names]
    updates: dict[str, LowRank | Tensor] = {
        names[0]: torch.ones(32, 48),
        names[1]: torch.full((32, 48), 1e6),
    }
    delta = EditDelta(updates, {names[0]: 0, names[1]: 1}, model.weight_hash)
    with pytest.raises(
        NotFiniteError, match=r"with the edit is not finite in torch\.float16; use model"
    ):
        delta.apply(model)
    assert all(model.parameters[name].equal(old) for name, old in zip(names, before, strict=True))
