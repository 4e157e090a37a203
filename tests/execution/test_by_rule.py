"""The rule as an executor: leaf by leaf, of any method, out of place or written over."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from trees import assert_equal, clone

import functional_adamax as fa
from functional_adamax._core import numerics
from functional_adamax._execution import by_rule, rule

METHODS = [fa.adamax, fa.adamaxw, fa.adam, fa.nadamax, fa.lion, fa.rmsprop, fa.sgd]


def work(make: Any, grads: Any, params: Any) -> Any:
    tx = make(0.1, weight_decay=0.1)
    found = tx.update.transform.work(grads, tx.init(params), params)
    found.check()
    return found


def trees() -> tuple[list[Any], list[Any]]:
    params = [torch.randn(3), torch.randn(2, 2), torch.randn(4)]
    return [torch.randn(3), torch.randn(2, 2), None], params


@pytest.mark.parametrize("make", METHODS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("add", [False, True])
def test_a_row_is_a_step_of_the_rule(make: Any, add: bool) -> None:
    x = work(make, *trees())
    before = clone((x.p, x.g[:2], x.t, x.moments))
    rows = by_rule.part(x, [1], add)
    assert list(rows) == [1]
    update, t, moments = rule.step(x.method.rule, x.leaf(1))
    first = numerics.add(x.p[1], update) if add else update
    assert_equal(list(rows[1]), [first, t, *moments.values()])
    assert_equal(clone((x.p, x.g[:2], x.t, x.moments)), before)


@pytest.mark.parametrize("make", METHODS, ids=lambda f: f.__name__)
def test_what_is_written_is_the_row_and_only_when_asked(make: Any) -> None:
    x = work(make, *trees())
    before, rows = clone((x.p, x.t, x.moments)), by_rule.part(x, [0, 1], True)
    writes = by_rule.written(x, [0, 1])
    assert_equal(clone((x.p, x.t, x.moments)), before)
    writes[1]()
    assert torch.equal(x.p[0], before[0][0])
    writes[0]()
    for i, row in rows.items():
        assert_equal([x.p[i], x.t[i], *(m[i] for m in x.moments.values())], list(row))
    assert torch.equal(x.p[2], before[0][2])
