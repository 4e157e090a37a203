"""``step``: donated trees, and where nothing may be written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functionalize, grad, jvp, vmap
from torch.profiler import ProfilerActivity, profile
from trees import assert_equal, clone

import functional_adamax as fa
import functional_adamax.compat
from functional_adamax._execution.native import kernel

TRANSFORMS = {
    "fused": fa.adamax(0.1, weight_decay=0.1),
    "scheduled": fa.adamax(lambda count: 0.1 * 0.9**count),
    "fallback": fa.chain(fa.scale_by_adamax(), fa.scale_by_learning_rate(0.1)),
}
every = pytest.mark.parametrize("tx", TRANSFORMS.values(), ids=TRANSFORMS)


def start(tx: fa.GradientTransformation, requires_grad: bool = False) -> tuple[Any, Any, Any]:
    tree = {"w": torch.randn(4, 3, requires_grad=requires_grad), "b": torch.randn(3)}
    return {name: torch.randn_like(x) for name, x in tree.items()}, tx.init(tree), tree


def addresses(*trees: Any) -> list[int]:
    return [x.data_ptr() for x in torch.utils._pytree.tree_leaves(trees)]


@every
def test_donated_storage_is_the_storage_of_the_result(tx: Any) -> None:
    grads, state, tree = start(tx)
    before = addresses(state, tree)
    tree, state = fa.step(tx, grads, state, tree, donate=True)
    assert addresses(state, tree) == before


@every
@pytest.mark.parametrize("what", ["params", "grads"])
def test_nothing_is_written_while_autograd_records(tx: Any, what: str) -> None:
    grads, state, tree = start(tx, requires_grad=what == "params")
    if what == "grads":
        grads["w"].requires_grad_()
    before = clone((grads, state, tree))
    new, _ = fa.step(tx, grads, state, tree, donate=True)
    assert_equal(clone((grads, state, tree)), before)
    assert new["w"].grad_fn is not None
    with torch.no_grad():
        written, _ = fa.step(tx, grads, state, tree, donate=True)
    assert written["w"] is tree["w"]
    assert_equal(clone(written), clone(new))


@pytest.mark.parametrize("make", [fa.adamax, fa.adamaxw, lambda lr: fa.adamax(lambda count: lr)])
def test_nothing_is_written_where_a_hyperparameter_requires_grad(make: Any) -> None:
    lr = torch.tensor(0.1, requires_grad=True)
    tx = make(lr)
    grads, state, tree = start(tx)
    before = clone((grads, state, tree))
    new, _ = fa.step(tx, grads, state, tree, donate=True)
    assert_equal((grads, state, tree), before)
    assert torch.autograd.grad(new["w"].sum(), lr)[0] != 0
    chained = fa.chain(fa.scale_by_adamax(), fa.scale_by_learning_rate(lr))
    state = chained.init(tree)
    new, _ = fa.step(chained, grads, state, tree, donate=True)
    assert torch.autograd.grad(new["w"].sum(), lr)[0] != 0
    assert_equal(tree, before[2])


@every
def test_nothing_is_written_under_transforms(tx: Any) -> None:
    grads, state, tree = start(tx)
    before = clone((grads, state, tree))

    def once(w: torch.Tensor) -> torch.Tensor:
        new, _ = fa.step(tx, {**grads, "w": w}, state, tree, donate=True)
        return new["w"].sum()

    grad(once)(grads["w"])
    jvp(once, (grads["w"],), (grads["w"],))
    vmap(once)(torch.randn(2, 4, 3))
    functionalize(once)(grads["w"])
    torch.compile(once, backend="eager", fullgraph=True)(grads["w"])
    with forward_ad.dual_level():
        once(forward_ad.make_dual(grads["w"], grads["w"]))
    assert_equal((grads, state, tree), before)


@every
def test_inference_tensors(tx: Any) -> None:
    with torch.inference_mode():
        grads, state, tree = start(tx)
        before = addresses(tree)
        tree, state = fa.step(tx, grads, state, tree, donate=True)
        assert addresses(tree) == before
    kept = clone((state, tree))
    new, _ = fa.step(tx, grads, state, tree, donate=True)  # outside they must not be written
    assert_equal((state, tree), kept)
    assert not torch.equal(new["w"], tree["w"])


def test_autograd_notices_a_donated_parameter() -> None:
    tx, p = fa.adamax(), torch.ones(3, requires_grad=True)
    loss = (p**3).sum()
    with torch.no_grad():
        fa.step(tx, torch.ones(3), tx.init(p), p, donate=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("native", [True, False], ids=["native", "torch"])
def test_a_hyperparameter_among_the_donated_parameters(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:  # torch's operations read it leaf by leaf
        monkeypatch.setattr(kernel, "_native", None)
    lr = torch.tensor(0.1)
    tree = {"a": lr, "b": torch.ones(3)}
    tx = fa.adamax(lr)
    grads = {"a": torch.tensor(1.0), "b": torch.ones(3)}
    want = fa.step(tx, grads, tx.init(tree), tree)
    assert_equal(fa.step(tx, grads, tx.init(tree), tree, donate=True), want)


def test_tracing_a_donated_step() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    tx = fa.adamax(0.1)

    def three(p: torch.Tensor) -> torch.Tensor:
        state = tx.init(p)
        for _ in range(3):
            p, state = fa.step(tx, p * 2, state, p, donate=True)
        return p

    p = torch.tensor([1.0, 2.0])
    want = three(p.clone())
    for mode in ("real", "symbolic"):
        assert torch.equal(make_fx(three, tracing_mode=mode)(p)(p), want)


def test_any_pair_of_functions_is_a_transform() -> None:
    def update(updates: Any, state: Any, params: Any = None, *, factor: float = 1.0) -> Any:
        return -factor * updates, state + 1

    tx = fa.GradientTransformation(lambda params: torch.zeros(()), update)
    p = torch.ones(2)
    new, state = fa.step(tx, torch.ones(2), tx.init(p), p, donate=True, factor=3.0)
    assert new is p
    assert p.tolist() == [-2.0, -2.0]
    assert float(state) == 1.0
    init, again = tx  # a pair unpacks
    assert (init, again) == (tx.init, tx.update)
    assert repr(tx).startswith("GradientTransformation(init=<function")


def allocated(function: Any) -> int:
    """The bytes that a call takes from torch's allocator, all in all."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    events = record.profiler.kineto_results.events()
    return sum(max(x.nbytes(), 0) for x in events if x.name() == "[memory]")


@pytest.mark.skipif(kernel._native is None, reason="built without a compiler")
@pytest.mark.parametrize("factory", [fa.adamax, fa.adamaxw])
def test_a_donated_step_allocates_nothing_of_the_size_of_the_model(factory: Any) -> None:
    tx, p = factory(weight_decay=0.1), {"w": torch.randn(1 << 21), "b": torch.randn(3)}
    g, state = {k: torch.randn_like(x) for k, x in p.items()}, tx.init(p)
    fa.step(tx, g, state, p, donate=True)
    assert allocated(lambda: fa.step(tx, g, state, p)) > 3 * p["w"].nbytes
    assert allocated(lambda: fa.step(tx, g, state, p, donate=True)) == 0
    params = [torch.nn.Parameter(x) for x in p.values()]
    optimizer = fa.compat.Adamax(params)
    for _ in range(2):
        for x in params:
            x.grad = torch.randn_like(x)
        optimizer.step()
    assert allocated(optimizer.step) < 1 << 20


def test_nothing_is_written_where_the_count_of_a_schedule_cannot_be() -> None:
    tx, p = fa.adamax(fa.linear_schedule(0.1, 0.0, 10)), torch.ones(3)
    with torch.inference_mode():
        count = torch.zeros((), dtype=torch.int64)
    state = tx.init(p)._replace(count=count)
    new, after = fa.step(tx, torch.ones(3), state, p, donate=True)
    assert (after.count, count) == (1, 0)
    assert p.tolist() == [1.0] * 3
    assert new.tolist() == pytest.approx([0.9] * 3)
