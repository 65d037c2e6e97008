"""Float64 arithmetic where the tensors are, or in NumPy on the host if their device has no float64
(Apple's Metal).

`together` gives what is computed with: torch tensors, all on one device, or arrays. Both know
``@``, ``.T``, ``+`` and indexing, so that a formula is written once; the functions here are the
rest of what the formulas need. `as_tensor` gives back a float64 tensor, on the host if the device
has none.
"""

import contextlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

Exact = Any
"""Float64 numbers to compute with: a tensor, or a NumPy array. Those of one formula are of one
kind."""
ROWS = 128
"""Rows of a triangular system that are solved at once: NumPy solves general systems only, which
this keeps small."""


def together(first: Tensor, *others: Tensor | None) -> tuple:
    """The same numbers in float64, where the first of them are; None stays None."""
    tensors = (first, *others)
    with contextlib.suppress(_NoFloat64):
        return tuple(None if each is None else _double(each, first.device) for each in tensors)
    return tuple(None if each is None else _array(each) for each in tensors)


def exact(value: Tensor) -> Exact:
    """The numbers of one tensor in float64."""
    return together(value)[0]


def as_tensor(value: Exact) -> Tensor:
    """Float64 numbers as a tensor, where they are."""
    # Handed over, not converted: that would be an operation in float64, which not every torch
    # allows.
    return value if isinstance(value, Tensor) else torch.from_dlpack(np.ascontiguousarray(value))


def device_of_sums(device: torch.device) -> torch.device:
    """Where sums in float64 are kept: a device itself, or the host if it has none."""
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return torch.device("cpu")
    return device


class _NoFloat64(Exception):
    """A device has no float64."""


def _double(value: Tensor, device: torch.device) -> Tensor:
    try:
        return (value.detach() if value.requires_grad else value).to(device, torch.float64)
    except torch.OutOfMemoryError:
        raise
    except (TypeError, RuntimeError) as error:  # Metal raises the former, other devices the latter
        raise _NoFloat64 from error


def _array(value: Tensor) -> np.ndarray:
    value = value.detach() if value.requires_grad else value
    # NumPy has no bfloat16, and float32 holds all of it.
    value = value.float() if value.dtype.itemsize < torch.float32.itemsize else value
    return np.array(np.from_dlpack(value.cpu()), np.float64)


def cholesky(matrix: Exact) -> Exact | None:
    """Lower Cholesky factor; None if the matrix is not positive definite."""
    if isinstance(matrix, Tensor):
        factor, info = torch.linalg.cholesky_ex(matrix)
        return None if info.item() else factor
    try:
        return np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return None


def triangular(factor: Exact, right: Exact, *, transposed: bool = False) -> Exact:
    """The solution of ``L X = B`` for a lower triangular L; of ``Lᵀ X = B`` if transposed."""
    if isinstance(factor, Tensor):
        return torch.linalg.solve_triangular(
            factor.T if transposed else factor, right, upper=transposed
        )
    # Turned around in both axes, the transpose is lower triangular again.
    matrix = factor.T[::-1, ::-1] if transposed else factor
    solved = np.array(right[::-1] if transposed else right)
    for start in range(0, len(matrix), ROWS):
        end = start + ROWS
        rest = solved[start:end] - matrix[start:end, :start] @ solved[:start]
        solved[start:end] = np.linalg.solve(matrix[start:end, start:end], rest)
    return solved[::-1] if transposed else solved


def solve(matrix: Exact, right: Exact) -> Exact:
    """The solution of a general system."""
    if isinstance(matrix, Tensor):
        return torch.linalg.solve(matrix, right)
    return np.linalg.solve(matrix, right)


def pseudo_inverse(matrix: Exact, negligible: float) -> Exact:
    """Moore-Penrose inverse; singular values below a share of the largest are taken for zero."""
    if isinstance(matrix, Tensor):
        return torch.linalg.pinv(matrix, rtol=negligible)
    return np.linalg.pinv(matrix, negligible)


def span(vectors: Exact, negligible: float) -> Exact:
    """An orthonormal basis of the span of columns."""
    if isinstance(vectors, Tensor):
        basis, sizes, _ = torch.linalg.svd(vectors, full_matrices=False)
        return basis[:, sizes > negligible * sizes.max()] if sizes.numel() else basis
    basis, sizes, _ = np.linalg.svd(vectors, full_matrices=False)
    return basis[:, sizes > negligible * sizes.max()] if sizes.size else basis


def eigen(matrix: Exact) -> tuple[Exact, Exact]:
    """Eigenvalues, ascending, and eigenvectors of a symmetric matrix."""
    values, vectors = (
        torch.linalg.eigh(matrix) if isinstance(matrix, Tensor) else np.linalg.eigh(matrix)
    )
    return values, vectors


def with_diagonal(matrix: Exact, more: float) -> Exact:
    """A square matrix with a number added along its diagonal."""
    if isinstance(matrix, Tensor):
        return matrix + more * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return matrix + more * np.eye(len(matrix))


def beside(first: Exact, second: Exact) -> Exact:
    """The columns of two matrices."""
    if isinstance(first, Tensor):
        return torch.cat([first, second], 1)
    return np.concatenate([first, second], 1)


def finite(numbers: Exact) -> bool:
    """Whether none is NaN or infinite."""
    return bool((torch if isinstance(numbers, Tensor) else np).isfinite(numbers).all())


def lengths(vectors: Exact) -> Exact:
    """Euclidean length of each column."""
    return vectors.norm(dim=0) if isinstance(vectors, Tensor) else np.linalg.norm(vectors, axis=0)


def where_longer(vectors: Exact, bounds: Exact) -> Exact:
    """The columns that are longer than a bound, each its own; the others are zero."""
    if isinstance(vectors, Tensor):
        return torch.where(lengths(vectors) > bounds, vectors, 0)
    return np.where(lengths(vectors) > bounds, vectors, 0)


def frobenius(matrix: Exact) -> float:
    """Frobenius norm."""
    return (
        torch.linalg.matrix_norm(matrix).item()
        if isinstance(matrix, Tensor)
        else float(np.linalg.norm(matrix))
    )


def triangle(matrix: Exact) -> Exact:
    """The triangular factor of a QR decomposition."""
    return (
        torch.linalg.qr(matrix, mode="r").R
        if isinstance(matrix, Tensor)
        else np.linalg.qr(matrix, mode="r")
    )


def rank(matrix: Exact, negligible: float) -> int:
    """Number of singular values above a share of the largest."""
    if isinstance(matrix, Tensor):
        return int(torch.linalg.matrix_rank(matrix, rtol=negligible))
    sizes = np.linalg.svd(matrix, compute_uv=False)
    return int((sizes > negligible * sizes.max(initial=0.0)).sum())
