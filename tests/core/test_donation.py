"""Donated trees: which may be written, which share memory, and what is copied over them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from trees import assert_equal, clone

import functional_adamax as fa
import functional_adamax.compat
from functional_adamax._core import donation

TRANSFORMS = {
    "fused": fa.adamax(0.1, weight_decay=0.1),
    "scheduled": fa.adamax(lambda count: 0.1 * 0.9**count),
    "fallback": fa.chain(fa.scale_by_adamax(), fa.scale_by_learning_rate(0.1)),
}
every = pytest.mark.parametrize("tx", TRANSFORMS.values(), ids=TRANSFORMS)


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


def test_a_donated_tensor_whose_elements_overlap_is_not_written() -> None:
    x = torch.arange(8.0).as_strided((2, 2, 2), (1, 1, 5))
    before, grads, tx = x.clone(), torch.ones(2, 2, 2), fa.sgd(0.1)
    wanted, _ = fa.step(tx, grads, tx.init(before), before)
    found, _ = fa.step(tx, grads, tx.init(x.clone()), x, donate=True)
    assert torch.equal(found, wanted)
    assert torch.equal(x, before)


def test_who_may_be_written() -> None:
    g, p = torch.ones(2), torch.ones(2)
    assert donation.may_write(g, {"n": None, "s": p}, p)
    assert donation.may_write(g, None, torch.ones(2, 3, 4).permute(2, 0, 1))
    assert donation.may_write(g, None, torch.ones(0))
    for odd in (torch.ones(4)[::2], torch.ones(1).expand(2), torch.ones(2, requires_grad=True)):
        assert not donation.may_write(g, None, odd)
        assert not donation.may_write(g, odd, p)
    assert donation.may_write(torch.ones(4)[::2], None, p), "a gradient is only read"
    with torch.inference_mode():
        made = torch.ones(2)
        assert donation.may_write(g, None, made)
    assert not donation.may_write(g, None, made)
    found = []
    torch.func.vmap(lambda x: found.append(donation.may_write(x, None, p)) or x)(g)
    assert found == [False]


def test_alike_is_every_tensor_in_its_place() -> None:
    old = {"a": torch.ones(2), "n": None, "e": fa.EmptyState()}
    assert donation.are_alike({**old, "a": torch.zeros(2)}, old)
    for new in (
        {**old, "a": torch.ones(3)},
        {**old, "a": torch.ones(2).double()},
        {**old, "a": torch.ones(2, device="meta")},
        {**old, "a": None},
        {**old, "n": torch.ones(2)},
        {"a": old["a"]},
    ):
        assert not donation.are_alike(new, old)


def test_what_is_copied_is_what_was_computed() -> None:
    """Also where a result is one of the tensors written before it."""
    a, b, c = torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([3.0])
    write = donation.write_over([a, b, c], [b, a + 0, c])
    assert [x.item() for x in (a, b, c)] == [1.0, 2.0, 3.0], "nothing before it is called"
    versions = c._version
    write()
    assert [x.item() for x in (a, b, c)] == [2.0, 1.0, 3.0]
    assert c._version == versions, "what stays is not written"
