"""What inner loops take for batches, and say where one batch was meant."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from inner_loops import D
from trees import assert_equal

import functional_adamax as fa

TX = fa.adamax(0.1, eps=0.1)


def unpacking(p: torch.Tensor, batch: Any) -> torch.Tensor:
    x, y = batch
    return (x @ p - y).square().mean()


@pytest.mark.parametrize("differentiate", [fa.unroll, fa.implicit])
def test_one_batch_given_for_all_steps_is_told_apart(differentiate: Any) -> None:
    p, x, y = torch.ones(2), torch.ones(5, 2), torch.ones(5)
    for batches in ((x, y), [x, y]):
        with pytest.raises(ValueError, match="too many values to unpack") as error:
            differentiate(unpacking, TX, p, batches)
        (note,) = error.value.__notes__
        assert note == (
            "batches were 2 tensors, each of them taken for the batch of one step. For K steps on "
            "one batch, give itertools.repeat(batch, K)"
        )
    with pytest.raises(TypeError, match=r"got a dict, .* give itertools\.repeat\(batch, K\)"):
        differentiate(unpacking, TX, p, {"x": x, "y": y})


def test_rows_taken_for_batches_are_told() -> None:
    with pytest.raises(RuntimeError) as error:
        fa.unroll(unpacking, TX, torch.ones(2), torch.ones(5, 2))
    (note,) = error.value.__notes__
    assert note.startswith("batches were the rows of a torch.float32 tensor of shape (5, 2), each")


def test_errors_of_losses_over_batches_of_other_kinds_have_no_note() -> None:
    for batches in ([(torch.ones(()),) * 3], range(2), iter([torch.ones(3)])):
        with pytest.raises((ValueError, TypeError)) as error:
            fa.unroll(unpacking, TX, torch.ones(2), batches)
        assert not hasattr(error.value, "__notes__")


def test_tensors_as_batches_are_legal() -> None:
    p, batches = torch.tensor(0.0, dtype=D), torch.arange(3.0, dtype=D)
    ends = [
        fa.unroll(lambda p, x: (p - x) ** 2, fa.sgd(0.1), p, given)
        for given in (batches, list(batches), batches.unbind(), iter(batches))
    ]
    for end in ends:
        assert_equal(end, ends[0])
