"""The table of addresses: shared memory is refused, and a graph keeps a table of its own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import executors
import pytest
import torch
from executors import bits, copy
from tritons import SIZE, cuda, interpreted, leaf, on_cuda, results

from functional_adamax._execution.adamax_rule import AdamaxLeaf
from functional_adamax._execution.triton import table
from functional_adamax._execution.triton.kernel import Kernels
from functional_adamax._execution.triton.table import Common, Leaf

WRITTEN: Any = SimpleNamespace(program=SimpleNamespace(of=[1, 2, 3], wide=[True]))
KERNELS = Kernels(WRITTEN, 7, [4] * 4, None, None)  # as far as a table asks


def as_taken(x: AdamaxLeaf) -> Leaf:
    return Leaf(KERNELS, [x.g, x.p, x.m, x.u], [x.t], [x.lr])


@interpreted
@pytest.mark.usefixtures("interpreter")
def test_shared_memory_is_left_alone() -> None:
    x, y = leaf((4, 3)), leaf((4, 3), weight_decay=0.1)
    for odd in (
        [x._replace(g=x.p)],
        [x._replace(u=x.m)],
        [x, y._replace(p=x.p)],
        [x, y._replace(t=x.t)],
        [x._replace(g=y.p), y],
    ):
        before = [copy(z) for z in odd]
        assert not executors.triton(odd, False, False)
        for z, old in zip(odd, before, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(z[:5], old[:5], strict=True))
    z = y._replace(g=x.p)
    assert executors.triton([x], False, False)  # each table is known, not both together
    assert executors.triton([z], False, False)
    assert not executors.triton([x, z], False, False)
    assert executors.triton([x, y._replace(g=x.g)], False, False)


@cuda
def test_a_graph_replays_the_step() -> None:
    """With other gradients than it was warmed up with, as in a graph of the whole training step."""
    lr = torch.tensor(0.1, device="cuda")
    leaves = [x._replace(lr=lr) for x in on_cuda(weight_decay=0.1)]
    eager = [copy(x)._replace(lr=0.0) for x in leaves]
    assert executors.triton([copy(x)._replace(lr=lr) for x in leaves], False, False)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        grads = [x.g * 0.5 for x in leaves]
        assert executors.triton(
            [x._replace(g=g) for x, g in zip(leaves, grads, strict=True)], False, False
        )
    for x, y in zip(leaves, eager, strict=True):  # a capture runs nothing
        assert torch.equal(bits(x.p), bits(y.p))
    table._tables.clear()
    for i in range(10):
        lr.fill_(0.1 / (i + 1))
        graph.replay()
        rate = lr.clone()
        assert executors.triton([x._replace(lr=rate, g=x.g * 0.5) for x in eager], False, False)
    for x, y in zip(leaves, eager, strict=True):
        for got, expected in zip(results(x), results(y), strict=True):
            assert torch.equal(bits(got), bits(expected))


@cuda
def test_a_graph_without_a_step_before_is_refused() -> None:
    x = leaf((4, 3), device="cuda")
    assert executors.triton([x], False, False)
    at_hand = x._replace(t=x.t.cpu())
    table._spares.clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x.p.add_(0)
        assert not executors.triton([x], False, False)
        assert not executors.triton([at_hand], False, False)


@cuda
def test_the_tables_kept_are_few() -> None:
    for _ in range(2 * table._LIMIT):
        assert executors.triton([leaf((3,), device="cuda")], False, False)
    assert len(table._tables) <= table._LIMIT


def test_a_row_says_where_the_tensors_lie_and_what_is_whole() -> None:
    x = leaf((2 * SIZE + 5,))
    found = table._row(as_taken(x))
    assert found[:5] == [x.g.data_ptr(), x.p.data_ptr(), *(y.data_ptr() for y in (x.m, x.u, x.t))]
    aligned = not any(address % 16 for address in found[:4])
    assert found[5:] == [2 * SIZE + 5, 2 * SIZE if aligned else 0]
    lr = torch.tensor(0.1)
    odd = table._row(as_taken(x._replace(g=x.g[1:], lr=lr)))
    assert odd[7] == 0, "a gradient of odd alignment is read one by one"
    assert odd[5] == lr.data_ptr()


def test_each_block_names_its_leaf_and_its_place() -> None:
    found = table._blocks((1, 0, SIZE, 2 * SIZE + 1)).tolist()
    assert [(x >> 32, x & 0xFFFFFFFF) for x in found] == [(0, 0), (2, 0), (3, 0), (3, 1), (3, 2)]
    assert table._blocks(()).tolist() == []


def test_rows_that_are_apart() -> None:
    memory = torch.zeros(64)
    x = leaf((8,))
    p, g, m, u = (memory[i : i + 8] for i in (0, 8, 16, 24))
    common = Common(torch.device("cpu"), KERNELS, False, (), ())

    def apart(*leaves: AdamaxLeaf) -> bool:
        some = [as_taken(y) for y in leaves]
        rows = [number for y in some for number in table._row(y)]
        return table._are_apart({common: some}, [tuple(rows)])

    tight = x._replace(p=p, g=g, m=m, u=u)
    assert apart(tight)
    assert apart(tight, leaf((8,))._replace(g=g)), "gradients are read only"
    for name, start in (("p", 1), ("g", 7), ("m", 23), ("u", 9)):
        assert not apart(tight._replace(**{name: memory[start : start + 8]})), name
    assert not apart(tight, leaf((8,))._replace(t=tight.t))
