"""``step``: donated buffers, where nothing may be written, and what must not be donated."""

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


@every
def test_scattered_memory_is_left_alone(tx: Any) -> None:
    matrix = torch.randn(4, 6)
    tree = {"left": matrix[:, :3], "right": matrix[:, 3:], "row": torch.ones(1).expand(5)}
    state = tx.init(tree)
    grads = {name: torch.randn(x.shape) for name, x in tree.items()}
    kept = matrix.clone()
    got = fa.step(tx, grads, state, tree, donate=True)
    assert torch.equal(matrix, kept)
    assert_equal(got, fa.step(tx, grads, state, tree))


LONG = torch.randn(16)
SHARED = {
    "params": (lambda g, s, p: (g, s, {**p, "v": p["w"]}), r"params\['v'\] and params\['w'\]"),
    "views": (
        lambda g, s, p: (g, s, {**p, "w": p["w"].view(-1)[:12].view(4, 3), "v": p["w"].view(4, 3)}),
        r"params\['v'\] and params\['w'\]",
    ),
    "overlap": (
        lambda g, s, p: (g, s, {"v": LONG[:12].view(4, 3), "w": LONG[4:].view(4, 3)}),
        r"params\['v'\] and params\['w'\]",
    ),
    "gradient": (lambda g, s, p: ({**g, "w": p["w"]}, s, p), r"\w+\['w'\] and \w+\['w'\] do"),
    "state": (
        lambda g, s, p: (g, s, {**p, "w": s.exp_avg["w"]}),
        r"(params\['w'\]|state\.exp_avg\['w'\]) and ",
    ),
    "moments": (
        lambda g, s, p: (g, s._replace(exp_inf=s.exp_avg), p),
        r"state\.exp_avg\['.'\] and state\.exp_inf\['.'\]",
    ),
}


@pytest.mark.parametrize("case", SHARED)
def test_shared_memory_is_refused_with_both_paths(case: str) -> None:
    tx = fa.adamax()
    tree = {name: torch.randn(4, 3) for name in "vw"}
    grads = {name: torch.randn(4, 3) for name in "vw"}
    change, message = SHARED[case]
    grads, state, tree = change(grads, tx.init(tree), tree)
    before = clone((grads, state, tree))
    with pytest.raises(ValueError, match=f"donated tensors must not share memory, but {message}"):
        fa.step(tx, grads, state, tree, donate=True)
    assert_equal((grads, state, tree), before)
    fa.step(tx, grads, state, tree)  # without donation it is nobody's business


def test_memory_shared_with_a_leaf_that_has_no_gradient_is_refused() -> None:
    """By the kernel too, which by then has been proven and takes donated trees as they are."""
    tx = fa.adamax(0.1)
    apart = [torch.ones(4), torch.ones(3)]
    for _ in range(2):
        grads, state = [torch.ones(4), None], tx.init(apart)
        new, _ = fa.step(tx, grads, state, apart, donate=True)
        assert new[1] is apart[1]
        base = torch.arange(6.0)
        for view in (torch.float32, torch.int32):
            params = [base[:4], base[2:].view(view)]
            with pytest.raises(ValueError, match="share memory"):
                fa.step(tx, grads, tx.init(params), params, donate=True)
            assert base.tolist() == list(range(6))


def test_gradients_may_share_memory_among_themselves() -> None:
    tx, g = fa.adamax(), torch.randn(3)
    tree = {name: torch.randn(3) for name in "abc"}
    grads = {"a": g, "b": g, "c": g[:1].expand(3)}
    want = fa.step(tx, grads, tx.init(tree), tree)
    assert_equal(fa.step(tx, grads, tx.init(tree), tree, donate=True), want)


def test_a_parameter_in_the_memory_of_a_gradient_is_found_behind_a_shorter_one() -> None:
    memory = torch.ones(16)
    grads = {"long": memory[:12], "short": memory[2:4], "there": torch.ones(2)}
    tree = {"long": torch.ones(12), "short": torch.ones(2), "there": memory[8:10]}
    tx = fa.adamax()
    with pytest.raises(ValueError, match=r"grads\['long'\] and params\['there'\] do"):
        fa.step(tx, grads, tx.init(tree), tree, donate=True)


def test_autograd_notices_a_donated_parameter() -> None:
    tx, p = fa.adamax(), torch.ones(3, requires_grad=True)
    loss = (p**3).sum()
    with torch.no_grad():
        fa.step(tx, torch.ones(3), tx.init(p), p, donate=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_donated_state_may_hand_its_tensors_on() -> None:
    """A state of the last two gradients: what one field was, the other becomes."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        del params
        return updates, (updates, state[0])

    tx = fa.GradientTransformation(lambda p: (p * 0, p * 1), update)
    state = tx.init(torch.zeros(2))
    for g in (1.0, 2.0, 3.0):
        _, state = fa.step(tx, torch.full((2,), g), state, torch.zeros(2), donate=True)
    assert [x.tolist() for x in state] == [[3.0, 3.0], [2.0, 2.0]]


@pytest.mark.parametrize(
    "change", [lambda s: s.repeat(2) + 1, lambda s: s.double() + 1], ids=["shape", "dtype"]
)
def test_a_state_that_changes_is_returned_and_not_written(change: Any) -> None:
    tx = fa.GradientTransformation(lambda p: torch.zeros(1), lambda g, s, p=None: (g, change(s)))
    p = torch.ones(1)
    old = torch.zeros(1)
    new, state = fa.step(tx, torch.ones(1), old, p, donate=True)
    assert_equal(state, change(old))
    assert (new.item(), p.item(), old.item()) == (2.0, 1.0, 0.0)


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


def test_subclasses_that_share_memory_are_refused() -> None:
    class Tagged(torch.Tensor):
        pass

    w = torch.ones(2)
    tree = {"a": w.as_subclass(Tagged), "b": w.view(2).as_subclass(Tagged)}
    tx = fa.adamax()
    with pytest.warns(UserWarning, match="are the same tensor"):
        state = tx.init(tree)
    with pytest.raises(ValueError, match="must not share memory"):
        fa.step(tx, {"a": torch.ones(2), "b": torch.ones(2)}, state, tree, donate=True)


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


@pytest.mark.skipif(kernel._native is None, reason="built without a compiler")
@pytest.mark.parametrize(
    "case", ["plain", "no gradient", "integer", "tensor rate", "schedule", "shared"]
)
def test_which_donated_steps_the_kernel_takes_at_once(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = []
    real = kernel.overwrite
    monkeypatch.setattr(kernel, "overwrite", lambda *a: answers.append(real(*a)) or answers[-1])
    lr = torch.tensor(0.1) if case == "tensor rate" else 0.1
    tx = fa.adamax(lr=fa.constant_schedule(0.1) if case == "schedule" else lr)
    p = [torch.ones(3), torch.ones(2)]
    g = [torch.ones(3), None if case == "no gradient" else torch.ones(2)]
    if case == "shared":
        g[0] = p[0]
    if case == "integer":
        p[1], g[1] = torch.tensor([1, 1]), None
    state = tx.init(p)
    if case == "shared":
        with pytest.raises(ValueError, match=r"params\[0\] and grads\[0\] do"):
            fa.step(tx, g, state, p, donate=True)
    else:
        new, after = fa.step(tx, g, state, p, donate=True)
        assert new is p
        assert p[0].tolist() == pytest.approx([0.9] * 3)
        assert p[1].tolist() == pytest.approx([0.9 if g[1] is not None else 1.0] * 2)
    assert answers == [case not in ("tensor rate", "schedule", "shared")]


@pytest.mark.skipif(kernel._native is None, reason="built without a compiler")
@pytest.mark.parametrize(
    ("case", "taken"),
    {
        "plain": True,
        "update": True,
        "no params": True,
        "no gradient": True,
        "no gradient, wrong parameter": False,
        "no gradient, halves": True,
        "no state": True,
        "tensor rate": True,
        "rate per leaf": False,
        "recorded rate": False,
        "recorded parameter": False,
        "recorded parameter, not read": True,
        "recorded, but not in no_grad": True,
        "floor": False,
        "other layout": False,
        "missing parameter": False,
    }.items(),
)
def test_which_pure_steps_the_kernel_takes_at_once(
    case: str, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have the bits of the rule, and what has no gradient stays the same tensor."""
    answers = []
    real = kernel.stepped
    lr: Any = {
        "tensor rate": torch.tensor([0.1]),
        "rate per leaf": [0.1, 0.2],
        "recorded rate": torch.tensor(0.1, requires_grad=True),
    }.get(case, 0.1)
    reads_none = case in ("no params", "recorded parameter, not read")
    tx = fa.adamax(lr, weight_decay=0.0 if reads_none else 0.1)
    if case == "floor":
        tx = fa.adamax(lr, derivative_floor=0.1)
    p: list[Any] = [torch.randn(4, 3), torch.randn(2)]
    g: list[Any] = [torch.randn(4, 3), torch.randn(2)]
    if case == "no gradient, halves":
        tx = fa.adamax(lr, state_dtype=torch.float32)
        p, g = ([x.bfloat16() for x in tree] for tree in (p, g))
    if case == "no state":
        p[1], g[1] = torch.tensor([1, 2]), None
    state = tx.init(p)
    if case.startswith("no gradient"):
        g[1] = None
    if case == "no gradient, wrong parameter":
        p[1] = torch.randn(3)
    if case == "missing parameter":
        p[1] = None
    if case == "other layout":
        g[0] = g[0].t().contiguous().t()
    if case.startswith("recorded") and case != "recorded rate":
        p[0].requires_grad_()

    def run() -> Any:
        with torch.set_grad_enabled("no_grad" not in case):
            if case in ("update", "recorded parameter, not read"):
                return tx.update(g, state, p)
            if case == "no params":
                return tx.update(g, state)
            return fa.step(tx, g, state, p)

    monkeypatch.setattr(kernel, "stepped", lambda *a: None)
    if case in ("no gradient, wrong parameter", "missing parameter"):
        monkeypatch.setattr(kernel, "stepped", lambda *a: answers.append(real(*a)) or answers[-1])
        with pytest.raises(ValueError, match=r"params\[1\] must fit its state"):
            run()
    else:
        wanted = run()  # which also proves the kernel for such leaves
        monkeypatch.setattr(kernel, "stepped", lambda *a: answers.append(real(*a)) or answers[-1])
        found = run()
        if g[1] is None:
            assert found[0][1] is p[1]
            assert all(found[1][k][1] is state[k][1] for k in range(3))
        a, b = (torch.utils._pytree.tree_leaves(x) for x in (found, wanted))
        assert all(x is y or torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert any(x is not None for x in answers) == taken


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("bad", [[torch.zeros(2)], torch.zeros(3)], ids=["structure", "shape"])
def test_what_has_no_gradient_is_checked_too(bad: Any, donate: bool) -> None:
    tx = fa.adamax()
    p = [torch.ones(3), torch.ones(2)]
    state = tx.init(p)
    state.exp_inf[1] = bad
    before = p[0].clone()
    with pytest.raises((TypeError, ValueError), match=r"state\.exp_inf\[1\] must"):
        fa.step(tx, [torch.ones(3), None], state, p, donate=donate)
    assert torch.equal(p[0], before)


def test_a_donated_tensor_whose_elements_overlap_is_not_written() -> None:
    x = torch.arange(8.0).as_strided((2, 2, 2), (1, 1, 5))
    before, grads, tx = x.clone(), torch.ones(2, 2, 2), fa.sgd(0.1)
    wanted, _ = fa.step(tx, grads, tx.init(before), before)
    found, _ = fa.step(tx, grads, tx.init(x.clone()), x, donate=True)
    assert torch.equal(found, wanted)
    assert torch.equal(x, before)


def test_nothing_is_written_where_the_count_of_a_schedule_cannot_be() -> None:
    tx, p = fa.adamax(fa.linear_schedule(0.1, 0.0, 10)), torch.ones(3)
    with torch.inference_mode():
        count = torch.zeros((), dtype=torch.int64)
    state = tx.init(p)._replace(count=count)
    new, after = fa.step(tx, torch.ones(3), state, p, donate=True)
    assert (after.count, count) == (1, 0)
    assert p.tolist() == [1.0] * 3
    assert new.tolist() == pytest.approx([0.9] * 3)
