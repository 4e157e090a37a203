"""The kernel under ``vmap``: the bits of a loop over the members, whatever they share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

import functional_adamax as fa
from functional_adamax._execution import batched
from functional_adamax._execution.native import kernel

pytestmark = pytest.mark.skipif(kernel._native is None, reason="built without a compiler")

MEMBERS = 5
SHAPES = [(4, 3), (7,), ()]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the executor took each of the steps inside of a ``vmap``."""
    answers: list[bool] = []
    real = batched.compute

    def noted(*args: Any) -> Any:
        rows = real(*args)
        if torch._C._functorch.maybe_current_level():
            answers.append(rows is not None)
        return rows

    monkeypatch.setattr(batched, "compute", noted)
    return answers


def tensors(dtype: torch.dtype, members: int | None = MEMBERS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = SHAPES if members is None else [(members, *shape) for shape in SHAPES]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def member(tree: Any, i: int) -> Any:
    return torch.utils._pytree.tree_map(lambda x: x[i], tree)


def assert_loop(one: Any, *inputs: Any) -> None:
    """``vmap(one)`` over the members has the bits of a loop, for two steps in a row."""
    found = vmap(one)(*inputs)
    for i in range(MEMBERS):
        wanted = one(*(member(x, i) for x in inputs))
        leaves = [torch.utils._pytree.tree_leaves(x) for x in (member(found, i), wanted)]
        for a, b in zip(*leaves, strict=True):
            assert torch.equal(a, b)
            assert a.dtype == b.dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("factory", [fa.adamax, fa.adamaxw], ids=["coupled", "decoupled"])
@pytest.mark.parametrize("fused", [False, True], ids=["update", "step"])
def test_every_member_has_its_own_hyperparameters(
    dtype: torch.dtype, factory: Any, fused: bool, taken: list[bool]
) -> None:
    params, grads = tensors(dtype), tensors(dtype)
    state_dtype = torch.float32 if dtype == torch.bfloat16 else None
    generator = torch.Generator().manual_seed(1)
    rates = [torch.rand(MEMBERS, generator=generator) for _ in range(4)]
    steps = torch.arange(MEMBERS, dtype=torch.float64)
    state = vmap(factory(state_dtype=state_dtype).init)(params)
    state = state._replace(step=[steps.clone() for _ in SHAPES])

    def one(params: Any, grads: Any, state: Any, lr: Any, b1: Any, b2: Any, decay: Any) -> Any:
        tx = factory(lr=lr, betas=(b1, b2), weight_decay=decay, state_dtype=state_dtype)
        for _ in range(2):
            if fused:
                params, state = fa.step(tx, grads, state, params)
            else:
                updates, state = tx.update(grads, state, params)
                params = fa.apply_updates(params, updates)
        return params, state

    assert_loop(one, params, grads, state, *rates)
    assert taken == [True, True]


@pytest.mark.parametrize("fused", [False, True], ids=["update", "step"])
def test_members_at_the_same_step_have_each_their_own_bias(fused: bool, taken: list[bool]) -> None:
    """What is kept of one member's 1 - b1^t serves another only where t and b1 are the same."""
    p, g = tensors(torch.float64)[0], tensors(torch.float64)[0].flip(0)
    b1 = torch.tensor([0.5, 0.9, 0.9, 0.99, 0.5], dtype=torch.float64)
    t = torch.tensor([3.0, 3.0, 4.0, 4.0, 3.0], dtype=torch.float64)
    state = vmap(fa.adamax().init)(p)._replace(step=t)

    def one(p: Any, g: Any, state: Any, b1: Any) -> Any:
        tx = fa.adamax(lr=0.1, betas=(b1, 0.999))
        if fused:
            return fa.step(tx, g, state, p)
        return tx.update(g, state, p)

    assert_loop(one, p, g, state, b1)
    assert taken == [True]


def test_a_dimension_in_the_middle_and_shared_counters(taken: list[bool]) -> None:
    tx = fa.adamax(lr=0.1)
    p, g = (torch.randn(3, MEMBERS, 4) for _ in range(2))
    state = tx.init(p[:, 0])
    m, u = (torch.rand(3, 4, MEMBERS) for _ in range(2))

    def one(p: Any, g: Any, m: Any, u: Any) -> Any:
        new, after = fa.step(tx, g, state._replace(exp_avg=m, exp_inf=u), p)
        return new, after.exp_avg, after.exp_inf, after.step

    found = vmap(one, in_dims=(1, 1, 2, 2), out_dims=(0, 0, 0, None))(p, g, m, u)
    assert taken == [True]
    for i in range(MEMBERS):
        wanted = one(p[:, i], g[:, i], m[..., i], u[..., i])
        assert all(torch.equal(a[i], b) for a, b in zip(found[:3], wanted[:3], strict=True))
    assert found[3] == 1


def test_a_vector_as_long_as_the_batch_is_no_rate_for_each_member(taken: list[bool]) -> None:
    """A rate for each element that happens to have as many elements as there are members."""
    p, g = (torch.randn(MEMBERS, MEMBERS) for _ in range(2))
    rates = torch.rand(MEMBERS)
    tx = fa.adamax(lr=[rates])
    state = vmap(tx.init)([p])
    assert_loop(lambda p, g, s: fa.step(tx, [g], s, [p]), p, g, state)
    assert taken[0] is False


@pytest.mark.parametrize("case", ["shared gradient", "no gradient", "recorded", "nested", "grad"])
def test_what_the_kernel_leaves_to_the_rule(case: str, taken: list[bool]) -> None:
    tx, p, g = fa.adamax(lr=0.1), torch.randn(MEMBERS, 3), torch.randn(MEMBERS, 3)
    state = vmap(tx.init)(p)
    if case == "shared gradient":
        found, _ = vmap(lambda p, s: fa.step(tx, g[0], s, p))(p, state)
        wanted = [fa.step(tx, g[0], member(state, i), p[i])[0] for i in range(MEMBERS)]
    elif case == "no gradient":
        found, _ = vmap(lambda p, s: fa.step(tx, None, s, p))(p, state)
        wanted = list(p)
    elif case == "recorded":
        g.requires_grad_()
        found, _ = vmap(lambda p, g, s: fa.step(tx, g, s, p))(p, g, state)
        assert torch.autograd.grad(found.sum(), g)[0].shape == g.shape
        wanted = [fa.step(tx, g[i], member(state, i), p[i])[0] for i in range(MEMBERS)]
    elif case == "nested":
        pairs = [x.expand(2, *x.shape) for x in (p, g)]
        found = vmap(vmap(lambda p, g, s: fa.step(tx, g, s, p)[0]), in_dims=(0, 0, None))(
            *pairs, state
        )[1]
        wanted = [fa.step(tx, g[i], member(state, i), p[i])[0] for i in range(MEMBERS)]
    else:

        def loss(p: Any, g: Any, s: Any) -> Any:
            return fa.step(tx, g, s, p)[0].square().sum()

        found = vmap(grad(loss))(p, g, state)
        wanted = [2 * fa.step(tx, g[i], member(state, i), p[i])[0] for i in range(MEMBERS)]
    torch.testing.assert_close(found, torch.stack(list(wanted)))
    assert not any(taken)


def test_the_first_use_may_be_inside_a_vmap() -> None:
    """The kernel proves itself with random numbers, which ``vmap`` forbids."""
    kernel.is_active.cache_clear()
    p = torch.randn(MEMBERS, 3)
    vmap(lambda p, s: fa.step(fa.adamax(), p, s, p))(p, vmap(fa.adamax().init)(p))
    assert kernel.is_active(torch.float32, torch.float32, 0)
