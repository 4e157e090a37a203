"""Steps in torch's foreach operations: the bits of torch's foreach form."""

from __future__ import annotations

import executors
import pytest
import torch
from executors import bits, by_the_rule, leaf
from trees import DTYPES

from functional_adamax._execution import foreach


def test_foreach_groups_what_differs(ran: list[str]) -> None:
    leaves = [
        leaf((5,), dtype, 0.1, weight_decay, False)._replace(b1=b1)
        for dtype in (torch.float32, torch.float64)
        for weight_decay in (0.0, 0.1)
        for b1 in (0.5, 0.9)
    ]
    leaves[0] = leaves[0]._replace(t=torch.tensor(3.0))  # a float32 counter among float64 ones
    wanted = [by_the_rule(x, False) for x in leaves]
    executors.plan(leaves, False, False, foreach=True)()
    assert ran == ["foreach"]
    for x, want in zip(leaves, wanted, strict=True):
        for got, expected in zip((x.p, x.m, x.u, x.t), want, strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_leaves_are_stepped_as_torchs_foreach_form_steps_them(
    dtype: torch.dtype, maximize: bool, decay: float
) -> None:
    leaves = [leaf(shape, dtype, 0.1, decay, True) for shape in ((), (257, 3), (0, 2))]
    q = [torch.nn.Parameter(x.p.clone()) for x in leaves]
    optimizer = torch.optim.Adamax(q, 0.1, weight_decay=decay, maximize=maximize, foreach=True)
    for p, x in zip(q, leaves, strict=True):
        p.grad = x.g.clone()
        kept = {"step": x.t.float(), "exp_avg": x.m.clone(), "exp_inf": x.u.clone()}
        optimizer.state[p] = kept
    optimizer.step()
    before = [x.g.clone() for x in leaves]
    executors.foreach(leaves, maximize)
    for p, x, g in zip(q, leaves, before, strict=True):
        kept = optimizer.state[p]
        for got, want in ((x.p, p.detach()), (x.m, kept["exp_avg"]), (x.u, kept["exp_inf"])):
            assert torch.equal(bits(got), bits(want))
        assert x.t == kept["step"]
        assert torch.equal(bits(x.g), bits(g))


def test_a_counter_that_leaves_share_is_read_after_its_steps() -> None:
    x, y = (leaf((3,), torch.float32, 0.1, 0.0, False) for _ in range(2))
    t = torch.tensor(1.0, dtype=torch.float64)
    wanted = [by_the_rule(z._replace(t=t + 1), False) for z in (x, y)]
    leaves = [x._replace(t=t), y._replace(t=t)]
    executors.foreach(leaves, False)
    assert t == 3.0
    for z, want in zip(leaves, wanted, strict=True):
        assert torch.equal(z.p, want[0])


def test_what_it_does_not_take_is_left() -> None:
    x = leaf((3,), torch.float32, 0.1, 0.0, False)
    odd = leaf((3,), torch.float32, torch.rand(3), 0.0, False)
    before, count = odd.p.clone(), x.t.clone()
    taken, write = foreach.part(executors.work_of([odd, x]), [0, 1])
    assert taken == [1]
    assert x.t == count
    write()
    assert x.t == count + 1
    assert torch.equal(odd.p, before)
