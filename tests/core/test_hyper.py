"""Hyperparameters: ranges, tensors, trees, prefixes and schedules."""

from __future__ import annotations

import re
from typing import Any

import optree
import pytest
import torch
from trees import assert_close, assert_equal, grads_like

import functional_adamax as fa
from functional_adamax._core import hyper, pytree

TREE = {"enc": {"w": torch.randn(4, 3), "b": torch.randn(3)}, "dec": [torch.randn(3), None]}


def steps(tx: fa.GradientTransformation, tree: Any, grads: list[Any]) -> Any:
    state = tx.init(tree)
    for g in grads:
        tree, state = fa.step(tx, g, state, tree)
    return tree


@pytest.mark.parametrize("make", [fa.adamax, fa.adamaxw], ids=["adamax", "adamaxw"])
def test_trees_of_rates_are_a_loop_over_leaves(make: Any) -> None:
    grads = [grads_like(TREE) for _ in range(3)]
    rates = {"enc": {"w": 0.1, "b": torch.tensor(0.2)}, "dec": [torch.tensor([0.3]), None]}
    b1 = {"enc": {"w": 0.5, "b": 0.9}, "dec": [torch.tensor(0.0), None]}
    decay = {"enc": {"w": 0.1, "b": 0.0}, "dec": [0.3, None]}
    got = steps(make(rates, (b1, 0.9), weight_decay=decay), TREE, grads)
    for pick in (lambda x: x["enc"]["w"], lambda x: x["enc"]["b"], lambda x: x["dec"][0]):
        tx = make(pick(rates), (pick(b1), 0.9), weight_decay=pick(decay))
        assert_equal(pick(got), steps(tx, pick(TREE), [pick(g) for g in grads]))


def test_a_prefix_means_everything_below_it() -> None:
    grads = [grads_like(TREE) for _ in range(3)]
    short = {"enc": 0.1, "dec": [torch.tensor(0.2), None]}
    full = {"enc": {"w": 0.1, "b": 0.1}, "dec": [torch.tensor(0.2), None]}
    assert_equal(steps(fa.adamax(short), TREE, grads), steps(fa.adamax(full), TREE, grads))
    reordered = {"dec": short["dec"], "enc": 0.1}
    assert_equal(steps(fa.adamax(reordered), TREE, grads), steps(fa.adamax(full), TREE, grads))


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.complex64], ids=str)
def test_a_rate_for_each_element(dtype: torch.dtype, donate: bool) -> None:
    p = torch.randn(4, 3, dtype=dtype)
    grads = [torch.randn_like(p) for _ in range(3)]
    hyper = {name: torch.rand(4, 3, dtype=torch.float64) / 2 for name in ("lr", "b1", "b2", "wd")}
    eps = torch.rand(3, dtype=torch.float64)  # broadcasts over rows

    def run(p: Any, grads: Any, lr: Any, b1: Any, b2: Any, eps: Any, wd: Any) -> Any:
        tx = fa.adamax(lr, (b1, b2), eps, wd)
        state, p = tx.init(p), p.clone()
        for g in grads:
            p, state = fa.step(tx, g, state, p, donate=donate)
        return p, state

    got, _ = run(p, grads, hyper["lr"], hyper["b1"], hyper["b2"], eps, hyper["wd"])
    for i in range(4):
        for j in range(3):
            one = {name: x[i, j] for name, x in hyper.items()}
            want, _ = run(
                p[i, j],
                [g[i, j] for g in grads],
                one["lr"],
                one["b1"],
                one["b2"],
                eps[j],
                one["wd"],
            )
            if dtype.is_complex:
                torch.testing.assert_close(got[i, j], want)
            else:
                assert_close(got[i, j], want, (p, grads))


@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
def test_a_tensor_gives_the_bits_of_the_number_and_keeps_every_shape(shape: Any) -> None:
    tree = [torch.randn(()), torch.randn(1), torch.randn(5, 2)]
    grads = [[torch.randn_like(x) for x in tree] for _ in range(4)]
    numbers = {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}
    tensors = optree.tree_map(lambda x: torch.full(shape, x, dtype=torch.float64), numbers)
    for make in (fa.adamax, fa.adamaxw):
        want, got = steps(make(**numbers), tree, grads), steps(make(**tensors), tree, grads)
        assert [x.shape for x in got] == [x.shape for x in tree]
        assert_close(got, want, (tree, grads))
    only_lr = fa.adamax(**{**numbers, "lr": tensors["lr"]})
    assert_equal(steps(only_lr, tree, grads), steps(fa.adamax(**numbers), tree, grads))


def test_number_tensor_and_schedule_walk_the_same_path() -> None:
    p, grads = torch.randn(50), [torch.randn(50) for _ in range(6)]
    want = steps(fa.adamax(0.1), p, grads)
    for lr in (torch.tensor(0.1, dtype=torch.float64), lambda count: 0.1):
        assert_equal(steps(fa.adamax(lr), p, grads), want)


def test_a_schedule_sees_the_number_of_updates_starting_at_zero() -> None:
    seen = []

    def schedule(count: torch.Tensor) -> float:
        seen.append((int(count), count.dtype, count.shape))
        return 0.1

    tx, p = fa.adamax(schedule), torch.zeros(2)
    state = tx.init(p)
    assert isinstance(state, fa.ScheduledState)
    for i in range(3):  # a missing gradient is an update call all the same
        p, state = fa.step(tx, None if i == 1 else torch.ones(2), state, p, donate=i == 2)
    assert seen == [(i, torch.int64, torch.Size([])) for i in range(3)]
    assert int(state.count) == 3
    assert float(state.inner.step) == 2.0


def test_a_container_that_can_be_called_is_a_tree() -> None:
    class Rates(dict):
        def __call__(self, count: Any) -> float:
            raise AssertionError("taken for a schedule")

    optree.register_pytree_node(
        Rates,
        lambda r: (list(r.values()), list(r), list(r)),
        lambda keys, values: Rates(zip(keys, values, strict=True)),
        namespace=optree.registry.__GLOBAL_NAMESPACE,
    )
    tree = Rates(a=torch.ones(2), b=torch.ones(2))
    grads = Rates(a=torch.ones(2), b=torch.ones(2))
    new = steps(fa.adamax(Rates(a=0.1, b=0.2)), tree, [grads])
    assert new["a"].tolist() == pytest.approx([0.9, 0.9])
    assert new["b"].tolist() == pytest.approx([0.8, 0.8])


def test_dtype_and_device_of_a_rate_do_not_leak_into_results() -> None:
    for lr in (0.1, torch.tensor(0.1), torch.tensor(0.1).double(), torch.tensor([0.1]).half(), 1):
        for p in (torch.ones(()), torch.ones(2), torch.ones((), dtype=torch.bfloat16)):
            for tx in (
                fa.adamax(lr),
                fa.chain(fa.scale_by_adamax(), fa.scale_by_learning_rate(lr)),
            ):
                updates, _ = tx.update(torch.ones_like(p), tx.init(p), p)
                want = torch.float32 if p.dtype == torch.bfloat16 else p.dtype
                assert (updates.dtype, updates.shape) == (want, p.shape)


BAD = {
    "lr": (lambda: fa.adamax(-1.0), ValueError, "lr must be in [0, inf), got -1.0"),
    "lr nan": (lambda: fa.adamax(float("nan")), ValueError, "lr must be in [0, inf), got nan"),
    "lr inf": (lambda: fa.adamax(float("inf")), ValueError, "lr must be in [0, inf), got inf"),
    "lr text": (lambda: fa.adamax("0.1"), TypeError, "lr must be a real number or a real tensor"),
    "lr None": (lambda: fa.adamax(None), TypeError, "lr must be a real number or a real tensor"),
    "lr complex": (
        lambda: fa.adamax(torch.tensor(1j)),
        TypeError,
        "lr must be a real number or a real tensor, got a torch.complex64 tensor",
    ),
    "lr tree": (
        lambda: fa.adamax({"a": [0.1, -2]}),
        ValueError,
        "lr['a'][1] must be in [0, inf), got -2",
    ),
    "b1": (lambda: fa.adamax(betas=(1.2, 0.9)), ValueError, "betas[0] must be in [0, 1), got 1.2"),
    "b2": (lambda: fa.adamax(betas=(0.9, 1.0)), ValueError, "betas[1] must be in [0, 1), got 1.0"),
    "betas": (lambda: fa.adamax(betas=0.9), TypeError, "betas must be a pair of hyperparameters"),
    "three": (lambda: fa.adamax(betas=(0.1,) * 3), TypeError, "betas must be a pair"),
    "eps": (lambda: fa.scale_by_adamax(eps=-1e-8), ValueError, "eps must be in [0, inf)"),
    "decay": (
        lambda: fa.adamaxw(weight_decay=-1),
        ValueError,
        "weight_decay must be in [0, inf), got -1",
    ),
    "dtype": (
        lambda: fa.adamax(state_dtype=torch.int32),
        TypeError,
        "state_dtype must be a real floating dtype or None, got torch.int32",
    ),
    "factor": (lambda: fa.scale(float("nan")), ValueError, "factor must be finite, got nan"),
    "rate": (lambda: fa.scale_by_learning_rate(-0.1), ValueError, "lr must be in [0, inf)"),
    "decayed": (
        lambda: fa.add_decayed_weights(-0.1),
        ValueError,
        "weight_decay must be in [0, inf), got -0.1",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_values_are_refused_where_the_transform_is_made(case: str) -> None:
    make, error, message = BAD[case]
    with pytest.raises(error, match=re.escape(message)):
        make()


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("rate", [{"a": 0.1, "b": None}, None, "0.1", 1j], ids=str)
def test_what_is_no_number_is_found_before_anything_is_written(rate: Any, donate: bool) -> None:
    tree = {"a": torch.ones(2), "b": torch.ones(2)}
    tx = fa.adamax(rate if isinstance(rate, dict) else lambda count: rate)
    state = tx.init(tree)
    with pytest.raises(TypeError, match=r"lr.* must be a real number or a real tensor, got"):
        fa.step(tx, grads_like(tree), state, tree, donate=donate)
    assert tree["a"].tolist() == [1.0, 1.0]


def test_an_enormous_rate_gives_infinity_donated_or_not() -> None:
    tx, p = fa.adamax(1e38), torch.ones(2)
    want = fa.step(tx, torch.ones(2), tx.init(p), p)
    assert want[0].isinf().all()
    assert_equal(fa.step(tx, torch.ones(2), tx.init(p), p, donate=True), want)


def test_rates_that_do_not_fit_the_tree() -> None:
    tree = {"a": torch.ones(2, 3), "b": torch.ones(3)}
    state = fa.adamax().init(tree)
    grads = grads_like(tree)
    for lr, message in (
        (
            {"a": 0.1},
            r"lr must have the structure of params, or be a prefix of it: lr\['b'\] is mis",
        ),
        ({"a": 0.1, "b": 0.1, "c": 0.1}, r"lr\['c'\] is unexpected"),
        (torch.ones(4), r"lr must be a number.*for params\['a'\] of shape \(2, 3\).*\(4,\)"),
        ({"a": torch.ones(2, 1), "b": torch.ones(2, 3)}, r"for params\['b'\] of shape \(3,\)"),
        ({"a": [0.1], "b": 0.1}, r"lr\['a'\] must be one value, got a list"),
    ):
        with pytest.raises(ValueError, match=message):
            fa.adamax(lr).update(grads, state, tree)


def test_paths_are_for_errors_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = pytree.paths, []
    monkeypatch.setattr(pytree, "paths", lambda *x: asked.append(1) or real(*x))
    tree = dict.fromkeys("abc", 0.1)
    hyper.check("weight_decay", tree)
    assert not asked
    with pytest.raises(ValueError, match=r"weight_decay\['b'\] must be in \[0, inf\), got -1"):
        hyper.check("weight_decay", tree | {"b": -1.0})
    with pytest.raises(ValueError, match=r"factor\['b'\] must be finite, got inf"):
        hyper.check("factor", tree | {"b": float("inf")}, signed=True)
