"""The Kronecker-factored (matrix normal) Gaussian for a matrix-shaped weight W of n rows and m columns:

    W = M + A E B^T,    E of standard normal numbers,    Cov(vec W) = A A^T (x) B B^T        (rows first)

n^2 + m^2 numbers instead of (n m)^2. A convolution's weight counts as (out channels) x (everything else). No closed-form
step: the gradient solver. Source: matrix normal variational posteriors, Louizos and Welling, arXiv 1603.04733.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from proxscore.inference.families.base import Family, State, Total
from proxscore.inference.families.full_covariance import lower

LARGEST = 20_000  # rows or columns: a factor of 1.6 GB


class Kronecker(Family):
    """Kronecker-factored Gaussian. State: ``mean`` (D,), ``rows`` A (n, n), ``columns`` B (m, m); D = n m."""

    kind = "kronecker"
    per_parameter = True

    def check(self, name: str, shape: torch.Size, size: int) -> None:
        if len(shape) < 2:
            raise ValueError(
                f"family kronecker: {name} has shape {tuple(shape)} and is no matrix; choose the matrices by name, for "
                "example families={'head.weight': Kronecker()}"
            )
        rows, columns = shape[0], size // max(shape[0], 1)
        if max(rows, columns) > LARGEST:
            raise ValueError(
                f"family kronecker: {name} is a matrix of {rows:,} x {columns:,}, and its factors would be {rows:,} x {rows:,} "
                f"and {columns:,} x {columns:,}; at most {LARGEST:,} each way: use low_rank or mean_field"
            )

    def initial(self, mean: Tensor, precision: Tensor, shape: torch.Size, noise: Callable[[int], Tensor]) -> State:
        # The factors of A A^T (x) B B^T nearest to independent coordinates: the geometric means of rows and of columns.
        logs = -0.5 * precision.log().view(shape[0], -1)
        rows, columns = logs.mean(1), logs.mean(0) - logs.mean()
        return {"mean": mean.clone(), "rows": rows.exp().diag(), "columns": columns.exp().diag()}

    def draw(self, state: State, noise: Tensor, extra: Tensor, sign: float = 1.0) -> Tensor:
        return state["mean"] + sign * _color(state, noise)

    def mean(self, state: State) -> Tensor:
        return state["mean"]

    def variance(self, state: State) -> Tensor:
        rows, columns = (state[side].square().sum(1) for side in ("rows", "columns"))
        return torch.outer(rows, columns).reshape(-1)

    def covariance(self, state: State) -> Tensor:
        return torch.kron(*(state[side] @ state[side].mT for side in ("rows", "columns")))

    def score(self, state: State, weights: Tensor, total: Total) -> Tensor:
        white = _whiten(state, weights - state["mean"])
        back = torch.linalg.solve(state["rows"].mT, white)
        return -torch.linalg.solve(state["columns"].mT, back.mT).mT.reshape(-1)

    def log_prob(self, state: State, weights: Tensor, total: Total) -> Tensor:
        white = _whiten(state, weights - state["mean"])
        return -0.5 * (white.square().sum() + white.numel() * math.log(2 * math.pi)) - _log_det(state)

    def norm(self, state: State, vector: Tensor, total: Total) -> Tensor:
        matrix = vector.view(len(state["rows"]), -1)
        return (state["rows"].mT @ matrix @ state["columns"]).square().sum()

    def parameters(self, anchor: State) -> State:
        """Whitened mean step, and Cholesky factors of the whitened row and column precisions."""
        names = {"step": "mean", "rows": "rows", "columns": "columns"}
        return {name: torch.zeros_like(anchor[entry]) for name, entry in names.items()}

    def candidate(self, anchor: State, parameters: Mapping[str, Tensor]) -> State:
        factors = {
            side: torch.linalg.solve_triangular(lower(parameters[side]), anchor[side].mT, upper=False).mT
            for side in ("rows", "columns")
        }
        return {"mean": anchor["mean"] + _color(anchor, parameters["step"]), **factors}

    def kl(self, p: State, q: State, total: Total) -> tuple[Tensor, Tensor]:
        traces = [torch.linalg.solve(q[side], p[side]).square().sum() for side in ("rows", "columns")]
        precision = 0.5 * (traces[0] * traces[1] - len(p["mean"])) + _log_det(q) - _log_det(p)
        return precision, 0.5 * _whiten(q, p["mean"] - q["mean"]).square().sum()


def _color(state: State, noise: Tensor) -> Tensor:
    return (state["rows"] @ noise.view(len(state["rows"]), -1) @ state["columns"].mT).reshape(-1)


def _whiten(state: State, offset: Tensor) -> Tensor:
    """A^-1 X B^-T, (n, m)."""
    half = torch.linalg.solve(state["rows"], offset.view(len(state["rows"]), -1))
    return torch.linalg.solve(state["columns"], half.mT).mT


def _log_det(state: State) -> Tensor:
    """log det of the square root A (x) B of the covariance."""
    rows, columns = (torch.linalg.slogdet(state[side]).logabsdet for side in ("rows", "columns"))
    return len(state["columns"]) * rows + len(state["rows"]) * columns
