"""The native step of whole groups: what it takes, and that it leaves the rest to torch, in time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functional_adamax as fa
from functional_adamax._execution.native import kernel
from functional_adamax.compat import Adamax, Optimizer

pytestmark = pytest.mark.skipif(kernel._native is None, reason="built without a compiler")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the kernel took each step so far."""
    answers: list[bool] = []
    real = kernel.advance

    def noted(*args: Any) -> Any:
        written = real(*args)
        answers.append(written is not None)
        return written

    monkeypatch.setattr(kernel, "advance", noted)
    return answers


def parameters(count: int = 3) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(4, 3, generator=generator)) for _ in range(count)]


def fill(params: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def run(
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    change: Callable[[int, list[nn.Parameter], torch.optim.Optimizer], None],
    steps: int = 6,
) -> list[Tensor]:
    params = parameters()
    optimizer = make(params)
    for i in range(steps):
        fill(params, i)
        change(i, params, optimizer)
        optimizer.step()
    state = [optimizer.state[p] for p in params if p in optimizer.state]
    return [p.detach() for p in params] + [x for entry in state for x in entry.values()]


def nothing(i: int, params: list[nn.Parameter], optimizer: Any) -> None:
    del i, params, optimizer


def reorder_state(i: int, params: list[nn.Parameter], optimizer: Any) -> None:
    if i == 3:
        items = list(optimizer.state.items())
        optimizer.state.clear()
        optimizer.state.update(reversed(items))


def drop_a_gradient(i: int, params: list[nn.Parameter], optimizer: Any) -> None:
    if i % 2:
        params[1].grad = None


def swap_data(i: int, params: list[nn.Parameter], optimizer: Any) -> None:
    if i == 2:
        params[0].data = params[0].data.clone()
    if i == 3:  # in another order of memory; the gradient and the state stay
        params[2].data = params[2].data.t().contiguous().t()


def change_dtype(i: int, params: list[nn.Parameter], optimizer: Any) -> None:
    if i == 3:
        for p in params:
            p.data, p.grad = p.data.double(), None
            optimizer.state[p] = {k: v.double() for k, v in optimizer.state[p].items()}
        for p in params:
            p.grad = torch.ones_like(p)


def replace_state(i: int, params: list[nn.Parameter], optimizer: Any) -> None:
    if i == 3:
        optimizer.state[params[1]]["exp_inf"] = torch.ones(4, 3)
    if i == 4:
        optimizer.load_state_dict(optimizer.state_dict())


def change_rates(i: int, params: list[nn.Parameter], optimizer: Any) -> None:
    optimizer.param_groups[0].update(lr=0.1 / (i + 1), betas=[0.8, 0.9], weight_decay=i * 0.01)
    if i == 4:
        optimizer.param_groups[0]["lr"] = torch.tensor(0.1)


def negative_gradient(i: int, params: list[nn.Parameter], optimizer: Any) -> None:
    assert params[0].grad is not None
    params[0].grad = torch._neg_view(params[0].grad)


CHANGES = [nothing, reorder_state, drop_a_gradient, swap_data, change_dtype, replace_state]
CHANGES += [change_rates, negative_gradient]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("grouped", [False, True], ids=["one group", "groups"])
def test_whatever_changes_between_steps_the_bits_are_torchs(
    change: Any, grouped: bool, taken: list[bool]
) -> None:
    def groups(params: list[nn.Parameter]) -> list[Any]:
        return [{"params": [p]} for p in reversed(params)] if grouped else params

    ours = run(lambda params: Adamax(groups(params), lr=0.01), change)
    theirs = run(lambda params: torch.optim.Adamax(groups(params), lr=0.01, foreach=False), change)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(ours, theirs, strict=True))
    assert not taken[0], "there is no state yet"
    if change is not negative_gradient:
        assert sum(taken) >= 2


@pytest.mark.parametrize("factory", [fa.adamax, fa.adamaxw])
@pytest.mark.parametrize("couple", ["group", "all"])
def test_wrapped_factories_take_it_too(factory: Any, couple: str, taken: list[bool]) -> None:
    wrapped = run(lambda ps: Optimizer(ps, factory, lr=0.01, couple=couple), nothing)
    assert taken == [False] + [True] * 5
    tx, params = factory(lr=0.01), [p.detach() for p in parameters()]
    state = tx.init(params)
    for i in range(6):
        twins = [nn.Parameter(p) for p in params]
        fill(twins, i)
        params, state = fa.step(tx, [p.grad for p in twins], state, params)
    assert all(torch.equal(a, b) for a, b in zip(wrapped[:3], params, strict=True))


@pytest.mark.parametrize(
    "options",
    [{"foreach": True}, {"lr": fa.cosine_decay_schedule(0.1, 10)}, {"couple": "all"}],
    ids=["foreach", "another method", "chain"],
)
def test_what_the_kernel_cannot_do_it_is_not_asked(options: Any, taken: list[bool]) -> None:
    if "foreach" in options:
        run(lambda params: Adamax(params, **options), nothing)
    elif "lr" in options:
        run(lambda params: Optimizer(params, fa.adamw, **options), nothing)
    else:
        tx = fa.chain(fa.clip_by_global_norm(1.0), fa.adamax())
        run(lambda params: Optimizer(params, tx, **options), nothing)
    assert not any(taken)


def test_one_group_that_does_not_fit_leaves_all_to_torch(taken: list[bool]) -> None:
    def make(cls: Any) -> Any:
        params = parameters(2)
        params[1].data = params[1].data.bfloat16()
        optimizer = cls([{"params": [p]} for p in params], lr=0.01, weight_decay=0.1)
        for i in range(4):
            fill(params, i)
            optimizer.step()
        return [p.detach() for p in params]

    ours, theirs = make(Adamax), make(torch.optim.Adamax)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not any(taken)


def test_memory_shared_between_groups_is_stepped_in_torchs_order(taken: list[bool]) -> None:
    def make(cls: Any) -> Tensor:
        (p,) = parameters(1)
        q = nn.Parameter(p.detach())
        optimizer = cls([{"params": [p]}, {"params": [q], "lr": 0.5}])
        for i in range(4):
            fill([p, q], i)
            optimizer.step()
        return p.detach()

    assert torch.equal(make(Adamax), make(torch.optim.Adamax))
    assert not any(taken)


def test_every_step_is_seen_by_autograd(taken: list[bool]) -> None:
    params = parameters(2)
    optimizer = Adamax(params)
    for i in range(4):
        fill(params, i)
        if i == 0:
            optimizer.step()
            continue
        entries = [x for p in params for x in (p, *optimizer.state[p].values())]
        before = [x._version for x in entries]
        product = params[0] @ torch.ones(3)
        loss = (product * params[0][:, 0]).sum()
        optimizer.step()
        assert [x._version for x in entries] == [v + 1 for v in before]
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
    assert taken == [False, True, True, True]


def test_a_tensor_made_in_inference_mode_is_refused_before_anything_is_written() -> None:
    params = parameters(2)
    optimizer = Adamax(params)
    fill(params, 0)
    optimizer.step()
    with torch.inference_mode():
        optimizer.state[params[1]]["exp_avg"] = torch.zeros(4, 3)
    before = params[0].detach().clone()
    with pytest.raises(RuntimeError, match="inference tensor"):
        optimizer.step()
    assert torch.equal(params[0].detach(), before)


def test_what_was_written_is_neither_pickled_nor_copied() -> None:
    params = parameters(2)
    optimizer = Adamax(params)
    for i in range(3):
        fill(params, i)
        optimizer.step()
    assert optimizer._written
    assert "_written" not in optimizer.__getstate__()
