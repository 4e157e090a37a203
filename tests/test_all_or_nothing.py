"""A step that raises has written nothing: each way to step, each fault, the first leaf or the last.

What needs another way of planning a step is a strict expected failure with the word "plan". The
file is longer than others: it has a table of faults.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from failing import Scarce, Way, executors, of, restless, ways
from runs import SIZES, Classic, Functional, Run

import functional_adamax as fa
from functional_adamax._execution.native import kernel
from functional_adamax._execution.program import machine
from functional_adamax.compat import Adamax, Optimizer

Fault = Callable[[Run, int], Any]


ASKING = {"__get__", "size", "dim", "numel", "stride", "storage_offset", "untyped_storage"}
ASKING |= {"is_inference", "is_floating_point", "is_complex", "data_ptr", "is_contiguous"}


class Raising(torch.Tensor):
    """A gradient whose operations raise."""

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        if function.__name__ in ASKING:
            return super().__torch_function__(function, types, arguments, keywords or {})
        raise ArithmeticError(f"{function.__name__} of a gradient that raises")


def gradient_of_another_shape(run: Run, i: int) -> Any:
    if isinstance(run, Classic):
        run.set_parameter(i, torch.ones(7))
    else:
        run.set_gradient(i, torch.ones(7))
    return (RuntimeError, ValueError)


def sparse_gradient(run: Run, i: int) -> Any:
    run.set_gradient(i, torch.ones(SIZES[i]).to_sparse())
    return RuntimeError


def gradient_of_integers(run: Run, i: int) -> Any:
    run.set_gradient(i, torch.ones(SIZES[i], dtype=torch.int64))
    return (RuntimeError, TypeError)


def gradient_whose_operations_raise(run: Run, i: int) -> Any:
    run.set_gradient(i, torch.ones(SIZES[i]).as_subclass(Raising))
    return ArithmeticError


def parameter_that_was_expanded(run: Run, i: int) -> Any:
    run.set_parameter(i, torch.zeros(1).expand(SIZES[i]))
    return RuntimeError


def parameter_of_inference_mode(run: Run, i: int) -> Any:
    with torch.inference_mode():
        run.set_parameter(i, torch.zeros(SIZES[i]))
    return RuntimeError


def float8(run: Run, i: int) -> Any:
    run.set_gradient(i, None)
    run.set_parameter(i, torch.ones(SIZES[i]).to(torch.float8_e4m3fn))
    run.set_gradient(i, torch.ones(SIZES[i]).to(torch.float8_e4m3fn))
    for name in run.state(i):
        if name.split(".")[-1] not in ("step", "count"):
            run.set_state(i, name.split(".")[-1], torch.ones(SIZES[i]).to(torch.float8_e4m3fn))
    return (RuntimeError, TypeError)


def quantized_gradient(run: Run, i: int) -> Any:
    run.set_gradient(i, torch.quantize_per_tensor(torch.ones(SIZES[i]), 0.1, 0, torch.qint8))
    return (RuntimeError, TypeError)


def quantized_leaf(run: Run, i: int) -> Any:
    quantized = torch.quantize_per_tensor(torch.ones(SIZES[i]), 0.1, 0, torch.qint8)
    run.exchange(i, quantized)
    run.set_gradient(i, quantized.clone())
    return (RuntimeError, TypeError, ValueError)


def moment_of_integers(run: Run, i: int) -> Any:
    run.set_state(i, "exp_avg", torch.ones(SIZES[i], dtype=torch.int64))
    return (RuntimeError, TypeError)


def moment_of_complex_numbers(run: Run, i: int) -> Any:
    run.set_state(i, "exp_avg", torch.ones(SIZES[i], dtype=torch.complex64))
    return (RuntimeError, TypeError, ValueError)


def moment_of_another_shape(run: Run, i: int) -> Any:
    run.set_state(i, "exp_avg", torch.ones(7))
    return (RuntimeError, ValueError)


def moment_that_was_expanded(run: Run, i: int) -> Any:
    run.set_state(i, "exp_avg", torch.ones(1).expand(SIZES[i]))
    return RuntimeError


def counter_of_another_shape(run: Run, i: int) -> Any:
    run.set_state(i, "step", torch.ones(2))
    return (RuntimeError, ValueError)


def decay_larger_than_a_half(run: Run, i: int) -> Any:
    run.spoil_decay(i)
    return RuntimeError


def rate_out_of_range(run: Run, i: int) -> Any:
    run.group_of(i)["lr"] = -1.0
    return ValueError


def rate_that_is_no_number(run: Run, i: int) -> Any:
    run.group_of(i)["lr"] = "fast"
    return (TypeError, ValueError)


def hook_before_the_step(run: Run, i: int) -> Any:
    run.optimizer.register_step_pre_hook(raising)
    return ArithmeticError


def memory_of_another_leaf(run: Run, i: int) -> Any:
    whole = torch.zeros(sum(SIZES))
    run.set_parameter(i, whole[: SIZES[i]])
    run.set_parameter((i + 1) % 3, whole[1 : 1 + SIZES[(i + 1) % 3]])
    return ValueError


def raising(*arguments: Any) -> Any:
    raise ArithmeticError("a hook of the user's")


FUNCTIONAL: list[Fault] = [
    gradient_of_another_shape,
    sparse_gradient,
    gradient_of_integers,
    gradient_whose_operations_raise,
    float8,
    quantized_gradient,
    quantized_leaf,
    moment_of_integers,
    moment_of_complex_numbers,
    moment_of_another_shape,
    counter_of_another_shape,
    decay_larger_than_a_half,
]
CLASSIC: list[Fault] = [
    *FUNCTIONAL,
    parameter_that_was_expanded,
    parameter_of_inference_mode,
    rate_that_is_no_number,
    hook_before_the_step,
]


def cells() -> Iterator[Any]:
    for way in ways():
        run = way.make()
        faults = list(CLASSIC if isinstance(run, Classic) else FUNCTIONAL)
        if isinstance(run, Classic) and not isinstance(run.optimizer, Adamax):
            faults.append(rate_out_of_range)
        if isinstance(run, Classic) and isinstance(run.optimizer, Adamax):
            faults.append(moment_that_was_expanded)
        if isinstance(run, Functional) and run.donate:
            faults.append(memory_of_another_leaf)
        for fault in faults:
            if fault is decay_larger_than_a_half and not decays_by_a_half(way):
                continue
            for i in (0, 2):
                yield pytest.param(way, fault, i, id=f"{way}-{fault.__name__}-{i}")


def decays_by_a_half(way: Way) -> bool:
    """Whether the decay is coupled, so that torch hands it to an operation on halves."""
    return "adamaxw" not in way.name


@pytest.mark.filterwarnings("ignore:eps=", "ignore:.*quantized")
@pytest.mark.parametrize(("way", "fault", "i"), list(cells()))
def test_a_step_that_raises_writes_nothing(
    way: Way, fault: Fault, i: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with executors(way, monkeypatch) as ran:
        way.make().step()  # which records what is to be a program
        run = way.make()
        ran.clear()
        run.step()
        assert ran == way.ran
        run = way.make()
        wanted = fault(run, i)
        before = run.snapshot()
        with pytest.raises(wanted):
            run.step()
        assert run.snapshot() == before


def scarce_cells() -> Iterator[Any]:
    for way in ways():
        for error in (MemoryError, KeyboardInterrupt):
            if way.executor == "torch":
                yield pytest.param(way, error, id=f"{way}-{error.__name__}")


@pytest.mark.parametrize(("way", "error"), list(scarce_cells()))
def test_a_step_without_the_memory_for_a_tensor_writes_nothing(
    way: Way, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    with executors(way, monkeypatch):
        for k in range(1000):
            run = way.make()
            before = run.snapshot()
            try:
                with Scarce(k, error):
                    run.step()
            except error:
                assert run.snapshot() == before
                continue
            break
        assert 1 <= k < 1000


def classic(name: str) -> Any:
    """Each optimizer, of one group and of several."""
    found = [way for way in ways() if isinstance(way.make(), Classic)]
    return pytest.mark.parametrize(name, found, ids=str)


@classic("way")
def test_a_closure_that_raises_lets_nothing_be_written(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closure() -> Any:
        raise ArithmeticError("a closure of the user's")

    with executors(way, monkeypatch):
        run = way.make()
        before = run.snapshot()
        with pytest.raises(ArithmeticError):
            run.optimizer.step(closure)
        assert run.snapshot() == before


@classic("way")
def test_a_hook_that_raises_after_the_step_finds_all_of_it_done(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    with executors(way, monkeypatch):
        run, twin = way.make(), way.make()
        run.optimizer.register_step_post_hook(raising)
        with pytest.raises(ArithmeticError):
            run.step()
        twin.step()
        for i, (p, q) in enumerate(zip(run.params, twin.params, strict=True)):
            assert torch.equal(p, q)
            got, wanted = run.state(i), twin.state(i)
            assert all(torch.equal(got[k], wanted[k]) for k in wanted)


@classic("way")
def test_a_first_step_that_raises_leaves_no_state(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    with executors(way, monkeypatch):
        run = way.make()
        run.optimizer.state.clear()
        run.set_gradient(2, torch.ones(SIZES[2]).to_sparse())
        before = run.snapshot()
        with pytest.raises(RuntimeError):
            run.step()
        assert run.snapshot() == before
        assert not run.optimizer.state


@pytest.mark.parametrize("way", [way for way in ways() if way.executor != "torch"], ids=str)
def test_a_step_without_the_memory_of_the_kernel_writes_nothing(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    with executors(way, monkeypatch):
        code = kernel._native if way.executor == "native" else machine._machine
        fail = code.fail_allocation
        for k in range(1, 1000):
            run = way.make()
            before = run.snapshot()
            fail(k)
            try:
                run.step()
            except MemoryError:
                assert run.snapshot() == before
            finally:
                left = fail(0)
            if left:
                break
        assert 3 < k < 1000


@pytest.mark.parametrize("fails", [True, False], ids=["raises", "changes the state"])
def test_an_update_of_the_users_that_fails_in_a_later_group_writes_none(fails: bool) -> None:
    params = [torch.nn.Parameter(torch.ones(n)) for n in SIZES]
    optimizer = Optimizer([{"params": [p]} for p in params], restless(fails))
    for p in params:
        p.grad = torch.ones_like(p)
    with pytest.raises(ArithmeticError if fails else ValueError, match="update"):
        optimizer.step()
    assert all(torch.equal(p.detach(), torch.ones_like(p)) for p in params)
    assert not optimizer.state


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [Adamax, of(fa.adam)], ids=["Adamax", "Optimizer"])
def test_a_compiled_step_that_raises_writes_nothing(make: Any) -> None:
    run = Classic(make, several=True)
    moment_of_another_shape(run, 2)
    before = run.snapshot()
    with pytest.raises(Exception, match="shape|size|broadcast"):
        torch.compile(run.optimizer.step)()
    assert run.snapshot() == before
