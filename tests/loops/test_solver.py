"""The solvers alone: systems whose solution is known, and those that have none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from inner_loops import D
from torch import Tensor
from torch.func import vmap

from functional_adamax._loops.solver import Solver, plus

CG = Solver("cg", 20, 1e-10, 0.0, 1.0)
NEUMANN = Solver("neumann", 2000, 1e-10, 0.0, 0.1)
H = torch.tensor([[4.0, 1.0, 0.0], [1.0, 3.0, 0.5], [0.0, 0.5, 2.0]], dtype=D)
B = torch.tensor([1.0, -2.0, 3.0], dtype=D)


def by(matrix: Tensor) -> Callable[[list[Tensor]], list[Tensor]]:
    """The product with a matrix, of a vector in two parts."""
    return lambda v: list((matrix @ torch.cat(v)).split([2, 1]))


def solved(solver: Solver, matrix: Tensor, b: Tensor) -> Tensor:
    return torch.cat(solver(by(matrix), list(b.split([2, 1]))))


@pytest.mark.parametrize("solver", [CG, NEUMANN], ids=["cg", "neumann"])
@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_it_solves(solver: Solver, damping: float) -> None:
    solver = Solver(solver.kind, solver.iterations, solver.tolerance, damping, solver.step_size)
    wanted = torch.linalg.solve(H + damping * torch.eye(3, dtype=D), B)
    torch.testing.assert_close(solved(solver, H, B), wanted)
    several = torch.stack([B, 2 * B, B.flip(0)])
    found = vmap(lambda b: solved(solver, H, b))(several)
    wanted = torch.linalg.solve(H + damping * torch.eye(3, dtype=D), several.T).T
    torch.testing.assert_close(found, wanted)


def test_halves_are_added_up_in_float32() -> None:
    """Of the terms of this series the last do not move a sum in float16."""
    solver = Solver("neumann", 2000, 1e-10, 0.0, 0.01)
    found = solved(solver, torch.eye(3).half(), B.half())
    torch.testing.assert_close(found, B.half(), rtol=2e-3, atol=0)


def test_cg_stops_at_the_tolerance() -> None:
    calls: list[int] = []

    def product(v: list[Tensor]) -> list[Tensor]:
        calls.append(1)
        return v

    assert CG(product, [B])[0].tolist() == B.tolist()
    assert len(calls) == 1


def test_cg_refuses_what_is_not_positive_definite() -> None:
    with pytest.raises(RuntimeError, match="Hessian of the loss is not positive definite"):
        solved(CG, -H, B)
    signs = torch.tensor([1.0, -1.0], dtype=D)
    found = vmap(lambda sign: solved(CG, sign * H, B))(signs)
    torch.testing.assert_close(found[0], torch.linalg.solve(H, B))
    assert found[1].isnan().all(), "a member of vmap alone"


def test_a_sum_of_vectors() -> None:
    x, y = [torch.ones(2), torch.ones(1)], [torch.full((2,), 3.0), torch.zeros(1)]
    assert [z.tolist() for z in plus(x, -2.0, y)] == [[-5.0, -5.0], [1.0]]
