"""Steps in torch's in-place operations: the bits of torch, and which leaves they take."""

from __future__ import annotations

import executors
import pytest
import torch
from executors import bits, by_the_rule, copy, leaf
from trees import DTYPES

from functional_adamax._core import numerics
from functional_adamax._execution import inplace


@pytest.mark.parametrize("foreach", [False, True])
def test_torchs_operations_have_no_decoupled_decay(foreach: bool) -> None:
    x = leaf((4, 3), torch.float32, 0.1, 0.1, False)
    assert inplace.takes(x)
    assert not inplace.takes(x._replace(decoupled=True))
    want = by_the_rule(copy(x), True, decoupled=True)
    executors.plan([x], True, decoupled=True, foreach=foreach)()
    for got, expected in zip((x.p, x.m, x.u, x.t), want, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("name", ["t", "lr"])
def test_torchs_operations_wait_for_no_device(name: str) -> None:
    x = leaf((4, 3), torch.float32, torch.tensor(0.1), 0.1, False)
    assert inplace.takes(x)
    elsewhere = x._replace(**{name: getattr(x, name).to("meta")})
    assert not inplace.takes(elsewhere)


def test_scale_is_the_same_number_in_both_spellings() -> None:
    """``lr / (1 - b1^t)`` as Python computes it and as a float64 tensor does, at many t."""
    for b1 in (0.0, 0.3, 0.9, 0.95, 0.999, 0.9999999):
        for t in (*range(1, 300), 1000, 12345, 10**6):
            for lr in (0.002, 1e-8, torch.tensor(0.002), torch.tensor(0.002).bfloat16()):
                step = torch.tensor(float(t), dtype=torch.float64)
                assert inplace.scale(lr, b1, step) == numerics.bias_corrected(lr, b1, step).item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_leaves_are_stepped_as_torch_steps_them(
    dtype: torch.dtype, maximize: bool, decay: float
) -> None:
    leaves = [leaf(shape, dtype, 0.1, decay, True) for shape in ((), (257, 3), (0, 2))]
    q = [torch.nn.Parameter(x.p.clone()) for x in leaves]
    optimizer = torch.optim.Adamax(q, 0.1, weight_decay=decay, maximize=maximize, foreach=False)
    for p, x in zip(q, leaves, strict=True):
        p.grad = x.g.clone()
        kept = {"step": x.t.float(), "exp_avg": x.m.clone(), "exp_inf": x.u.clone()}
        optimizer.state[p] = kept
    optimizer.step()
    executors.inplace(leaves, maximize)
    for p, x in zip(q, leaves, strict=True):
        kept = optimizer.state[p]
        for got, want in ((x.p, p.detach()), (x.m, kept["exp_avg"]), (x.u, kept["exp_inf"])):
            assert torch.equal(bits(got), bits(want))
        assert x.t == kept["step"]


def test_gradients_are_read_only_and_share_one_buffer() -> None:
    leaves = [leaf((n,), torch.float32, 0.1, 0.1, False) for n in (3, 1000, 50)]
    before = [x.g.clone() for x in leaves]
    work = executors.work_of(leaves, maximize=True)
    writes = inplace.part(work, [0, 1, 2])
    buffers = {write.args[1].untyped_storage().data_ptr() for write in writes.values()}
    assert len(buffers) == 1
    for write in writes.values():
        write()
    assert all(torch.equal(x.g, g) for x, g in zip(leaves, before, strict=True))


def test_a_counter_before_the_first_step_has_the_scale_of_a_tensor() -> None:
    """Where Python would divide by zero."""
    for lr, want in ((0.1, torch.inf), (torch.tensor(0.1), torch.inf)):
        assert inplace.scale(lr, 0.9, torch.zeros((), dtype=torch.float64)) == want
