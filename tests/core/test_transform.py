"""A transform is data: it compares, hashes, copies, pickles, prints and traces."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import torch

import functional_adamax as fa


def test_equality_is_by_value() -> None:
    assert fa.adamax(0.1) == fa.adamax(0.1)
    assert fa.adamax(0.1) != fa.adamax(0.2)
    assert fa.adamax(0.1, weight_decay=1e-2) != fa.adamaxw(0.1)
    assert fa.adamax(1) == fa.adamax(1.0)
    assert hash(fa.adamax(1)) == hash(fa.adamax(1.0))
    tensor = torch.tensor(0.1)
    assert fa.adamax(tensor) == fa.adamax(tensor.clone())
    assert fa.adamax(tensor) != fa.adamax(0.1)
    assert fa.adamax(tensor) != fa.adamax(tensor.double())
    assert fa.adamax(tensor) != fa.adamax(tensor.reshape(1))
    tree = {"a": 0.1, "b": [torch.ones(2), None]}
    assert fa.adamax(tree) == fa.adamax(copy.deepcopy(tree))
    assert fa.adamax(tree) != fa.adamax({**tree, "a": 0.2})
    assert hash(fa.adamax(tree)) == hash(fa.adamax(copy.deepcopy(tree)))
    assert fa.scale(2.0) != fa.scale_by_learning_rate(2.0)
    assert fa.chain(fa.scale(2.0)) != fa.chain(fa.scale(2.0), fa.identity())
    schedule = partial(torch.mul, torch.tensor(0.1))
    assert fa.adamax(schedule) == fa.adamax(partial(torch.mul, torch.tensor(0.1)))
    assert fa.adamax(schedule) != fa.adamax(partial(torch.mul, torch.tensor(0.2)))
    assert len({fa.adamax(), fa.adamax(), fa.adamaxw()}) == 2


def test_printing_shows_the_call_that_makes_it() -> None:
    assert repr(fa.adamax(lr=0.1, maximize=True)) == (
        "adamax(lr=0.1, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0, maximize=True, "
        "state_dtype=None, derivative_floor=None)"
    )
    assert repr(fa.chain(fa.scale(2.0), fa.identity())) == "chain(scale(factor=2.0), identity())"
    for tx in (fa.adamaxw(0.5), fa.chain(fa.scale_by_adamax(), fa.scale(-1.0)), fa.chain()):
        assert eval(repr(tx), vars(fa)) == tx


def test_copies_and_pickles_leave_the_graph_behind() -> None:
    leaf = torch.tensor(0.1, requires_grad=True)
    computed = leaf * 2
    tx = fa.chain(fa.scale_by_adamax((computed, 0.9)), fa.scale_by_learning_rate({"a": computed}))
    for twin in (copy.copy(tx), copy.deepcopy(tx), pickle.loads(pickle.dumps(tx))):
        assert twin == tx
    scheduled = fa.adamax(partial(torch.mul, computed))
    assert copy.deepcopy(scheduled) == scheduled
    twin = copy.deepcopy(tx)
    rate = twin.update.transform.links[1].update.transform.lr["a"]
    assert rate.grad_fn is None
    assert copy.deepcopy(fa.adamax(leaf)).update.transform.lr.requires_grad


def test_it_can_be_made_inside_traced_code() -> None:
    def once(lr: torch.Tensor, g: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        tx = fa.chain(
            fa.add_decayed_weights(0.1), fa.adamax(lr, state_dtype=torch.float64), fa.scale(0.5)
        )
        return fa.step(tx, g, tx.init(p), p)[0]

    compiled = torch.compile(once, fullgraph=True, backend="eager")
    args = torch.tensor(0.1), torch.randn(3), torch.randn(3)
    assert torch.equal(compiled(*args), once(*args))


def test_a_rate_given_as_a_number_settles_after_two_graphs() -> None:
    """A changing Python number is specialized once, then traced as a symbol."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph.forward

    @partial(torch.compile, fullgraph=True, backend=backend)
    def once(lr: float, g: torch.Tensor, state: object, p: torch.Tensor) -> object:
        return fa.step(fa.adamax(lr), g, state, p)

    torch._dynamo.reset()
    p, state = torch.randn(3), fa.adamax().init(torch.randn(3))
    q, other = p, state
    for i in range(6):
        g = torch.randn(3)
        p, state = once(0.1 / (i + 1), g, state, p)
        q, other = fa.step(fa.adamax(0.1 / (i + 1)), g, other, q)
        assert torch.equal(p, q)
    assert len(graphs) <= 2


def test_what_is_not_filled_in_yet_has_a_hash() -> None:
    """Compilers of some versions ask for it."""
    tx = fa.adamax()
    for kind in map(type, (tx.init, tx.update, tx.update.transform)):
        assert isinstance(hash(object.__new__(kind)), int)
