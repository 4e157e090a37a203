"""Programs under ``vmap``: the bits of a loop over the members, whatever they share.

The file is longer than others: all that members may share is tried on the same transforms.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.utils._pytree import tree_leaves, tree_map

import functional_adamax as fa
from functional_adamax._execution.program import batched, machine, proof, whole

pytestmark = pytest.mark.skipif(not machine.is_there(), reason="built without a compiler")

MEMBERS = 5
SHAPES = [(4, 3), (7,), (), (2, 0), (130, 3)]
SPREAD = torch.linspace(0.5, 0.9, MEMBERS, dtype=torch.float64)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the executor took each of the steps inside of a ``vmap``."""
    answers: list[bool] = []

    def noted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            found = real(*args)
            if torch._C._functorch.maybe_current_level():
                answers.append(found is not None)
            return found

        return call

    for name in ("compute", "into_new"):
        monkeypatch.setattr(batched, name, noted(getattr(batched, name)))
    return answers


def tensors(dtype: torch.dtype, seed: int = 0, members: int = MEMBERS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn((members, *x), generator=generator).to(dtype) for x in SHAPES]


def member(tree: Any, i: int) -> Any:
    return tree_map(lambda x: x[i], tree)


def same(a: Any, b: Any) -> bool:
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=True)
    return all(
        x.dtype == y.dtype and x.shape == y.shape and torch.equal(x.nan_to_num(7), y.nan_to_num(7))
        for x, y in pairs
    )


def stacked_state(tx: Any, p: Any, g: Any) -> Any:
    """The states of members that took different numbers of steps."""
    states = []
    for i in range(MEMBERS):
        params, state = member(p, i), tx.init(member(p, i))
        for _ in range(1 + i % 2):
            params, state = fa.step(tx, member(g, i), state, params)
        states.append(state)
    return tree_map(lambda *x: torch.stack(x), *states)


def is_exact(name: str, dtype: torch.dtype) -> bool:
    """Whether torch's root, if there is one, is that of the machine."""
    return "adamax" in name or not name.startswith("ad") or proof.is_proven("ROOT", dtype)


METHODS: dict[str, Callable[[Any], Any]] = {
    "adamax": lambda x: fa.adamax(x, (x, 0.99), weight_decay=x),
    "adamaxw": lambda x: fa.adamaxw(x, (0.9, x), eps=x),
    "adam": lambda x: fa.adam(x, (x, x)),
    "adamw": lambda x: fa.adamw(0.1, (0.9, x), weight_decay=x),
    "lion": lambda x: fa.lion(x, (x, 0.9)),
    "nadamax": lambda x: fa.nadamax(x, (x, 0.9)),
    "sgd": lambda x: fa.sgd(x, momentum=x),
}
CHAINS: dict[str, Callable[[Any], Any]] = {
    "norm": lambda x: fa.chain(
        fa.clip_by_global_norm(1.0),
        fa.scale_by_adamax(),
        fa.add_decayed_weights(x),
        fa.scale_by_learning_rate(x),
    ),
    "own bound": lambda x: fa.chain(fa.clip_by_global_norm(x), fa.scale_by_lion((x, 0.9))),
    "norm of each leaf": lambda x: fa.chain(fa.clip_by_block_rms(x), fa.scale_by_adamax()),
    "schedule": lambda x: fa.chain(
        fa.scale_by_adamax(),
        fa.scale_by_learning_rate(fa.cosine_decay_schedule(0.1, decay_steps=10)),
        fa.scale(x),
    ),
    "accumulated": lambda x: fa.multi_steps(fa.adamax(x), 2),
    "if finite": lambda x: fa.apply_if_finite(fa.adamax(x), 3),
    "injected": lambda x: fa.inject_hyperparams(fa.adamax)(x),
    "masked": lambda x: fa.chain(
        fa.masked(fa.clip_by_global_norm(x), [True, False, True, True, False]), fa.sgd(x)
    ),
    "lookahead": lambda x: fa.lookahead(fa.adamax(x), 2, 0.5),
    "tree": lambda x: fa.chain(fa.scale_by_adamax(), fa.scale([0.1, 0.2, 0.3, 0.4, 0.5])),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", [*METHODS, *CHAINS])
def test_members_have_their_own_of_everything(
    name: str, dtype: torch.dtype, taken: list[bool], without: Any
) -> None:
    make = (METHODS | CHAINS)[name]
    p, g = tensors(dtype), tensors(dtype, 1)
    g[0][2, 1, 1] = torch.nan if name == "if finite" else 9.0
    state = stacked_state(make(0.7), p, g)

    def one(p: Any, g: Any, state: Any, x: Any) -> Any:
        tx = make(x)
        p, state = fa.step(tx, g, state, p)
        return p, tx.update(g, state, p)

    found = vmap(one)(p, g, state, SPREAD)
    assert taken == [is_exact(name, dtype)] * 2
    for i in range(MEMBERS):
        given = (*member((p, g, state), i), SPREAD[i])
        assert same(member(found, i), without(one, *given))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64], ids=str)
def test_other_dtypes_are_taken_where_the_machine_takes_them(
    dtype: torch.dtype, taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    tx, p, g = fa.sgd(0.1, momentum=0.9), tensors(dtype), tensors(dtype, 1)
    state = stacked_state(tx, p, g)
    found = vmap(lambda *x: fa.step(tx, *x))(g, state, p)
    wanted = [fa.step(tx, *member((g, state, p), i)) for i in range(MEMBERS)]
    assert all(same(member(found, i), x) for i, x in enumerate(wanted))
    assert taken == [fa.explain(tx, member(p, 0)).leaves[0].executor == "program"]


@pytest.mark.parametrize("fused", [False, True], ids=["update", "step"])
def test_members_at_the_same_step_have_each_their_own_bias(fused: bool, taken: list[bool]) -> None:
    p, g = tensors(torch.float64)[0], tensors(torch.float64)[0].flip(0)
    b1 = torch.tensor([0.5, 0.9, 0.9, 0.99, 0.5], dtype=torch.float64)
    t = torch.tensor([3.0, 3.0, 4.0, 4.0, 3.0], dtype=torch.float64)
    state = vmap(fa.adamax().init)(p)._replace(step=t)

    def one(p: Any, g: Any, state: Any, b1: Any) -> Any:
        tx = fa.adamax(lr=0.1, betas=(b1, 0.999))
        return fa.step(tx, g, state, p) if fused else tx.update(g, state, p)

    found = vmap(one)(p, g, state, b1)
    assert taken == [True]
    for i in range(MEMBERS):
        assert same(member(found, i), one(*member((p, g, state, b1), i)))


TX = fa.chain(fa.clip_by_global_norm(1.0), fa.scale_by_adamax(), fa.scale(-0.1))
EVERY = pytest.mark.parametrize("tx", [fa.adamax(0.1), fa.sgd(0.1), TX], ids=["1", "2", "chain"])


@EVERY
@pytest.mark.parametrize("batch", [(0, 0, 0), (None, None, 0), (0, None, None), (None, 0, None)])
def test_what_all_members_share(tx: Any, batch: Any, taken: list[bool]) -> None:
    p, g = tensors(torch.float32), tensors(torch.float32, 1)
    trees = [
        x if at == 0 else member(x, 0)
        for x, at in zip((g, stacked_state(tx, p, g), p), batch, strict=True)
    ]
    found = vmap(lambda *x: fa.step(tx, *x), in_dims=batch)(*trees)
    assert taken == [True]
    for i in range(MEMBERS):
        own = (member(x, i) if at == 0 else x for x, at in zip(trees, batch, strict=True))
        assert same(member(found, i), fa.step(tx, *own))


def test_a_rate_that_alone_differs(taken: list[bool]) -> None:
    p = {"w": torch.randn(3), "b": torch.randn(())}

    def first(lr: Any) -> Any:
        tx = fa.adamax(lr)
        return fa.step(tx, p, tx.init(p), p)

    found = vmap(first)(SPREAD)
    assert all(same(member(found, i), first(x)) for i, x in enumerate(SPREAD))
    assert taken == [True]


@EVERY
def test_tensors_that_belong_to_no_member(tx: Any, taken: list[bool]) -> None:
    """The step is that of one, and so are its results."""
    p = {"w": torch.randn(3), "b": torch.randn(2, 2)}
    found: list[Any] = []
    vmap(lambda x: found.append(fa.step(tx, p, tx.init(p), p)) or x)(torch.ones(2))
    assert same(found[0], fa.step(tx, p, tx.init(p), p))
    assert taken == [True]


def test_counters_that_are_shared_stay_so(taken: list[bool]) -> None:
    rate = fa.cosine_decay_schedule(0.1, decay_steps=10)
    chain = fa.chain(fa.scale_by_adamax(), fa.scale_by_learning_rate(rate))
    p, g = (torch.randn(3, MEMBERS, 4) for _ in range(2))
    for tx, counters in ((fa.adamax(0.1), 1), (chain, 2)):
        state = tx.init([p[:, 0]])

        def one(p: Any, g: Any, tx: Any = tx, state: Any = state) -> Any:
            (new,), after = fa.step(tx, [g], state, [p])
            return new, [x for x in tree_leaves(after) if not x.dim()]

        found, counts = vmap(one, (1, 1), (0, None))(p, g)
        assert counts == [1] * counters
        for i in range(MEMBERS):
            assert torch.equal(found[i], one(p[:, i], g[:, i])[0])
    assert taken == [True, True]


@EVERY
def test_members_in_any_dimension(tx: Any, taken: list[bool]) -> None:
    p, g = torch.randn(3, MEMBERS, 4), torch.randn(3, 4, 2 * MEMBERS)[..., ::2]
    state = stacked_state(tx, [p.movedim(1, 0)], [g.movedim(2, 0)])
    found = vmap(lambda p, g, s: fa.step(tx, [g], s, [p]), (1, 2, 0))(p, g, state)
    assert taken == [True]
    for i in range(MEMBERS):
        assert same(member(found, i), fa.step(tx, [g[..., i]], member(state, i), [p[:, i]]))


@EVERY
@pytest.mark.parametrize("inner", [0, 1])
def test_vmaps_of_vmaps(tx: Any, inner: int, taken: list[bool]) -> None:
    """The gradients have members of both, parameters of the inner, the state of the outer one."""
    p, g = torch.randn(3, 4), torch.randn(2, 4, 3) if inner else torch.randn(2, 3, 4)
    state = tree_map(lambda x: torch.stack([x, x + 1]), tx.init([p[0]]))
    outer = vmap(lambda g, s: vmap(lambda g, p: fa.step(tx, [g], s, [p]), (inner, 0))(g, p))
    found = outer(g, state)
    assert taken == [True]
    for i in range(2):
        for j in range(3):
            grads = g[i].select(inner, j)
            one = fa.step(tx, [grads], member(state, i), [p[j]])
            assert same(member(member(found, i), j), one)


@EVERY
@pytest.mark.parametrize("members", [1, 3])
def test_few_members_and_odd_leaves(tx: Any, members: int, taken: list[bool]) -> None:
    shapes = [(), (1,), (0,), (1, 1), (2, 0, 3), (129,)]
    p, g = ([torch.randn(members, *x) for x in shapes] for _ in range(2))
    state = vmap(tx.init)(p)
    found = vmap(lambda *x: fa.step(tx, *x))(g, state, p)
    assert taken == [True]
    for i in range(members):
        assert same(member(found, i), fa.step(tx, *member((g, state, p), i)))


def test_many_members_with_the_same_numbers(taken: list[bool]) -> None:
    """Their rows are one."""
    p, g = torch.randn(3000, 50), torch.randn(3000, 50)
    tx = fa.nadamax(0.1, weight_decay=0.1)
    state = vmap(tx.init)(p)._replace(step=(torch.arange(3000) % 1000 // 999).double())
    found = vmap(lambda *x: fa.step(tx, *x))(g, state, p)
    assert taken == [True]
    for i in (0, 1, 998, 999, 1000, 1500, 2999):
        assert same(member(found, i), fa.step(tx, *member((g, state, p), i)))


@EVERY
def test_leaves_without_gradients(tx: Any, taken: list[bool]) -> None:
    p, g = tensors(torch.float32), tensors(torch.float32, 1)
    state = stacked_state(tx, p, g)
    found = vmap(lambda g, s, p: fa.step(tx, [g, None, *p[2:]], s, p))(g[0], state, p)
    assert taken == [True]
    for i in range(MEMBERS):
        own_g, own_s, own_p = member((g[0], state, p), i)
        assert same(member(found, i), fa.step(tx, [own_g, None, *own_p[2:]], own_s, own_p))


def test_a_donated_step_is_a_pure_one(taken: list[bool]) -> None:
    p, g = tensors(torch.float32), tensors(torch.float32, 1)
    state, before = vmap(TX.init)(p), tree_map(torch.clone, p)
    found = vmap(lambda *x: fa.step(TX, *x, donate=True))(g, state, p)
    assert taken == [True]
    assert same(p, before)
    assert same(found, vmap(lambda *x: fa.step(TX, *x))(g, state, p))


def test_a_vector_as_long_as_the_batch_is_no_rate_for_each_member(taken: list[bool]) -> None:
    """A rate for each element that happens to have as many elements as there are members."""
    p, g = (torch.randn(MEMBERS, MEMBERS) for _ in range(2))
    tx = fa.adamax(lr=[torch.rand(MEMBERS)])
    state = vmap(tx.init)([p])
    found = vmap(lambda p, g, s: fa.step(tx, [g], s, [p]))(p, g, state)
    for i in range(MEMBERS):
        assert same(member(found, i), fa.step(tx, [g[i]], member(state, i), [p[i]]))
    assert taken[0] is False


def loss(tx: Any, g: Any, s: Any, p: Any) -> Any:
    return fa.step(tx, g, s, p)[0].square().sum()


@EVERY
@pytest.mark.parametrize(
    "case", ["no gradient", "recorded", "learned", "grad", "outer grad", "jvp"]
)
def test_what_is_left_to_the_rule(tx: Any, case: str, taken: list[bool]) -> None:
    p, g = torch.randn(MEMBERS, 3), torch.randn(MEMBERS, 3)
    state = vmap(tx.init)(p)
    many = partial(vmap(lambda *x: fa.step(tx, *x)[0]), g, state)
    one = vmap(partial(loss, tx))
    wanted = torch.stack([fa.step(tx, *member((g, state, p), i))[0] for i in range(MEMBERS)])
    if case == "no gradient":
        found, wanted = vmap(lambda s, p: fa.step(tx, None, s, p)[0])(state, p), p
    elif case == "recorded":
        p.requires_grad_()
        found = many(p)
        assert torch.autograd.grad(found.sum(), p)[0].shape == p.shape
    elif case == "learned":
        rates = torch.full((MEMBERS,), 0.1, dtype=torch.float64, requires_grad=True)
        step = vmap(
            lambda lr, p: fa.step(fa.chain(fa.scale(-lr)), p, fa.chain(fa.scale(1.0)).init(p), p)
        )
        found, wanted = step(rates, p)[0], p - 0.1 * p
        assert torch.autograd.grad(found.sum(), rates)[0].shape == rates.shape
    elif case == "grad":
        found = vmap(grad(partial(loss, tx), 2))(g, state, p)
        wanted = 2 * wanted
    elif case == "outer grad":
        found = grad(lambda p: one(g, state, p).sum())(p)
        wanted = 2 * wanted
    else:
        found = jvp(many, (p,), (torch.zeros_like(p),))[0]
    torch.testing.assert_close(found, wanted)
    assert case == "recorded" or not any(taken)  # what is added to parameters is not recorded


def test_a_tensor_of_a_vmap_that_has_ended_is_left_to_torch(taken: list[bool]) -> None:
    kept: list[Any] = []
    vmap(vmap(lambda x: kept.append(x) or x))(torch.ones(2, 3))

    def one(p: Any) -> Any:
        return fa.step(fa.sgd(0.1), p, fa.sgd(0.1).init(p), kept[0])

    with pytest.raises(RuntimeError):
        vmap(one)(torch.ones(4))
    assert not any(taken)


@pytest.mark.parametrize("make", [lambda x: fa.sgd(x), lambda x: fa.chain(fa.scale(x))])
def test_the_first_use_may_be_inside_of_a_vmap(make: Any, taken: list[bool]) -> None:
    """Programs are held against the rule with random numbers, which ``vmap`` forbids."""
    whole.forget()
    tx = fa.chain(fa.scale(0.5), make(0.1))
    p = torch.randn(MEMBERS, 3)
    found = vmap(lambda p, x: make(x).update(p, make(x).init(p), p)[0])(p, SPREAD)
    assert taken == [True]
    for i in range(MEMBERS):
        assert same(found[i], make(SPREAD[i]).update(p[i], tx.init(p[i])[1], p[i])[0])


@EVERY
def test_any_allocation_may_fail(tx: Any) -> None:
    p, g = tensors(torch.float32), tensors(torch.float32, 1)
    state = vmap(tx.init)(p)
    step = vmap(lambda *x: fa.step(tx, *x))
    wanted, failures = step(g, state, p), 0
    try:
        while True:
            machine._machine.fail_allocation(failures + 1)
            try:
                found = step(g, state, p)
            except MemoryError:
                failures += 1
                continue
            break
    finally:
        machine._machine.fail_allocation(0)
    assert failures > 20
    assert same(found, wanted)
