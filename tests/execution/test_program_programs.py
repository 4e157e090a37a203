"""What a program depends on, which leaves it serves, and how many are kept."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import recorded_rules
import torch
from recorded_rules import (
    a_changed_global,
    a_decay_in_the_rule,
    a_helper_of_a_global,
    bits,
    bounds,
    by_a_field,
    by_a_zero_rate,
    by_dtype,
    by_ndim,
    by_numel,
    choices_by_the_step,
    default_dtype,
    method,
    plain,
    reason,
    steps,
    trees,
    uniforms,
    wide,
)
from torch import Tensor

from functional_adamax._execution.program import machine, programs

pytestmark = pytest.mark.skipif(not machine.is_there(), reason="built without a compiler")


def test_a_leaf_of_another_shape_has_another_program(without: Any) -> None:
    tx = method(by_numel)
    for n in (3, 4, 5):
        p = torch.randn(n)
        assert reason(tx, p) is None
        assert bits(steps(tx, p)) == bits(without(steps, tx, p))


def test_a_number_of_dimensions_is_asked_of_each_leaf(without: Any) -> None:
    tx = method(by_ndim)
    tree = {"a": torch.randn(3), "b": torch.randn(3, 2), "c": torch.randn(()), "d": torch.randn(5)}
    assert bits(steps(tx, tree, donate=True)) == bits(without(steps, tx, tree, donate=True))


def test_a_changed_global_is_another_record(without: Any) -> None:
    def change() -> None:
        recorded_rules.FACTOR += 1.5

    for rule in (a_changed_global, a_helper_of_a_global):
        recorded_rules.FACTOR = 2.0
        want = without(steps, method(rule), torch.ones(3), between=change)
        recorded_rules.FACTOR = 2.0
        assert bits(steps(method(rule), torch.ones(3), between=change)) == bits(want)


def test_a_changed_closure_is_another_record(without: Any) -> None:
    scale = 2.0

    def scaled(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
        return m * scale

    def change() -> None:
        nonlocal scale
        scale += 1.5

    tx = method(scaled)
    want = without(steps, tx, torch.ones(3), between=change)
    scale = 2.0
    assert bits(steps(tx, torch.ones(3), between=change)) == bits(want)
    assert reason(tx, torch.ones(3)) is None


def test_a_closure_that_keeps_changing_is_given_up(without: Any) -> None:
    scale = 2.0

    def scaled(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
        return m * scale

    tx, p = method(scaled), torch.ones(3)
    reasons = []
    for _ in range(programs._CHANGES + 2):
        scale += 1.0
        assert bits(steps(tx, p)) == bits(without(steps, tx, p))
        reasons.append(reason(tx, p))
    assert reasons[0] is None
    assert "keep changing" in str(reasons[-1])


def test_one_program_serves_all_numbers() -> None:
    programs.families.clear()
    for lr in (0.1, 0.2, 0.3):
        for beta in (0.5, 0.9):
            steps(method(plain, lr=lr, beta=beta), torch.ones(3))
    kinds = [kind for kind in programs.families if kind.method.__name__ == "Recorded"]
    assert len({kind._replace(method=None) for kind in kinds}) == 1


def test_a_zero_decay_is_another_program(without: Any) -> None:
    for decay in (0.0, 0.1, torch.tensor(0.0)):
        tx = method(by_a_zero_rate, weight_decay=decay)
        assert bits(steps(tx, torch.ones(3))) == bits(without(steps, tx, torch.ones(3)))


def test_a_field_that_is_no_number_is_another_program(without: Any) -> None:
    for count in (2, 5):
        tx = method(by_a_field, count=count)
        assert bits(steps(tx, torch.ones(3))) == bits(without(steps, tx, torch.ones(3)))


@pytest.mark.parametrize(
    "lr",
    [torch.tensor(0.1), torch.tensor([0.1], dtype=torch.float64), torch.full((3,), 0.1)],
    ids=str,
)
def test_rates_that_are_tensors(lr: Tensor, without: Any) -> None:
    tx = method(a_decay_in_the_rule, lr=lr)
    assert bits(steps(tx, torch.ones(3))) == bits(without(steps, tx, torch.ones(3)))


def test_rates_of_each_leaf(without: Any) -> None:
    tree = {"a": torch.ones(3), "b": torch.ones(2, 2)}
    tx = method(plain, lr={"a": 0.1, "b": torch.tensor(0.2)})
    for donate in (False, True):
        assert bits(steps(tx, tree, donate)) == bits(without(steps, tx, tree, donate))


@pytest.fixture
def double() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_another_default_dtype_is_another_record(double: Any, without: Any) -> None:
    for rule in (default_dtype, choices_by_the_step):
        for tree in trees():
            tx = method(rule)
            assert bits(steps(tx, tree)) == bits(without(steps, tx, tree))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("rule", [plain, by_dtype, uniforms, wide], ids=lambda rule: rule.__name__)
def test_other_dtypes(rule: Any, dtype: torch.dtype, without: Any) -> None:
    tx, p = method(rule), torch.randn(5).to(dtype)
    assert bits(steps(tx, p)) == bits(without(steps, tx, p))


def test_records_of_several_threads_at_once() -> None:
    programs.families.clear()
    p, problems = torch.randn(5), []

    def run() -> None:
        try:
            steps(method(bounds), p)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


def test_what_is_kept_is_bounded_and_holds_no_tensor() -> None:
    import gc
    import weakref

    programs.families.clear()
    p = torch.randn(5)
    lr = torch.tensor(0.1)
    steps(method(plain, lr=lr), p)
    known = weakref.ref(p), weakref.ref(lr)
    del p, lr
    gc.collect()
    assert [x() for x in known] == [None, None]
    many: dict[int, int] = dict.fromkeys(range(programs._MOST + 5), 0)
    programs._forget(many)
    assert len(many) == programs._MOST
    assert 0 not in many
