"""``state_dtype`` of ``compat.Adamax``: an option of groups, kept through checkpoints."""

from __future__ import annotations

import copy

import pytest
import torch
from saving import run, through_a_file
from twins import assert_twins, copies, parameters

from functional_adamax.compat import Adamax

pytestmark = pytest.mark.filterwarnings("ignore:eps=")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_float32_state_of_half_parameters_survives_a_checkpoint(dtype: torch.dtype) -> None:
    a = parameters(dtype)
    first = Adamax(a, lr=0.01, weight_decay=0.1, state_dtype=torch.float32)
    run([first], [a], 5)
    assert first.state[a[0]]["exp_avg"].dtype == torch.float32
    assert a[0].dtype == dtype
    b = copies(a)
    second = Adamax(b, state_dtype=torch.float32)
    second.load_state_dict(through_a_file(first.state_dict()))
    assert_twins(first, second)
    run([first, second], [a, b], 5)
    assert_twins(first, second)


def test_the_key_state_dtype_of_a_checkpoint() -> None:
    a = parameters(torch.bfloat16)
    theirs = torch.optim.Adamax(a)
    run([theirs], [a], 2)
    without = copy.deepcopy(theirs.state_dict())

    b = copies(a)
    ours = Adamax(b, state_dtype=torch.float32)
    ours.load_state_dict(without)  # no key: the constructor's value
    assert ours.param_groups[0]["state_dtype"] == torch.float32
    key = next(iter(theirs.state))
    q = b[[p is key for p in a].index(True)]
    assert ours.state[q]["exp_avg"].dtype == torch.float32
    assert torch.equal(ours.state[q]["exp_avg"], theirs.state[key]["exp_avg"].float())

    c = copies(a)
    plain = Adamax(c)
    plain.load_state_dict(ours.state_dict())  # the key: the checkpoint's value
    assert plain.param_groups[0]["state_dtype"] == torch.float32
    late = copies(a)
    plain.add_param_group({"params": late})  # a new group: the constructor's value again
    assert "state_dtype" not in plain.param_groups[1]
    torch.optim.Adamax(c).load_state_dict(ours.state_dict())  # torch casts as it always does


def test_state_dtype_is_a_group_option_and_is_checked() -> None:
    p, q = torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2)
    optimizer = Adamax([{"params": [p], "state_dtype": torch.float32}, {"params": [q]}])
    for x in (p, q):
        x.grad = torch.ones_like(x)
    optimizer.step()
    assert optimizer.state[p]["exp_inf"].dtype == torch.float32
    for wrong in ("float32", torch.int64, torch.complex64):
        with pytest.raises(TypeError, match="state_dtype must be a real floating dtype or None"):
            Adamax([q], state_dtype=wrong)


def test_float32_state_is_the_cure_for_half_precision() -> None:
    with pytest.warns(UserWarning, match=r"eps=1e-08 rounds to zero.*state_dtype=torch.float32"):
        Adamax([torch.zeros(2, dtype=torch.float16)])
    for dtype in (torch.float16, torch.bfloat16):
        p = torch.nn.Parameter(torch.ones(2, dtype=dtype))
        optimizer = Adamax([p], lr=0.0, state_dtype=torch.float32)
        p.grad = torch.tensor([0.0, 1.0], dtype=dtype)
        optimizer.step()
        assert p.isfinite().all()
        p.grad = torch.full((2,), 1e-3, dtype=dtype)
        for _ in range(500):
            optimizer.step()
        assert optimizer.state[p]["exp_inf"][1].item() == pytest.approx(0.999**500, rel=1e-3)


def test_state_dtype_of_complex_parameters() -> None:
    p = torch.nn.Parameter(torch.randn(3, dtype=torch.complex64))
    optimizer = Adamax([p], state_dtype=torch.float64)
    p.grad = torch.randn_like(p)
    optimizer.step()
    assert optimizer.state[p]["exp_avg"].dtype == torch.complex128
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state[p]["exp_avg"].dtype == torch.complex128
