"""The loss of an inner loop: its value, gradients of what trains, and copies of its buffers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

import functional_adamax as fa
from functional_adamax._core import context
from functional_adamax._loops import inner_loss

EMPTY = fa.EmptyState()
TREE = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3), "none": None}


def cubes(params: Any, batch: Any) -> Tensor:
    return (params["w"] ** 3).sum() * batch


@pytest.mark.parametrize("mode", ["recording", "no_grad", "inference", "vmap"])
@pytest.mark.parametrize("first_order", [False, True])
def test_values_and_gradients(mode: str, first_order: bool) -> None:
    if mode == "inference" and not context.differentiates_in_inference_mode():
        pytest.skip("this version of torch has no gradients there")

    def call(batch: Any) -> Any:
        return inner_loss.gradients(cubes, first_order, TREE, EMPTY, batch)

    if mode == "vmap":
        found = vmap(
            lambda b: call(b)[:2], in_dims=0, out_dims=({"w": 0, "n": None, "none": None}, 0)
        )
        grads, value = found(torch.tensor([2.0]))
        grads, value = {**grads, "w": grads["w"][0]}, value[0]
    elif mode == "recording":
        grads, value, _ = call(2.0)
    else:
        with torch.no_grad() if mode == "no_grad" else torch.inference_mode():
            grads, value, _ = call(2.0)
        assert not value.requires_grad
    assert grads["w"].tolist() == [6.0, 24.0]
    assert grads["n"] is None
    assert grads["none"] is None
    assert value == 18.0


@pytest.mark.parametrize("first_order", [False, True])
def test_gradients_are_differentiated_again_unless_of_first_order(first_order: bool) -> None:
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    grads, value, _ = inner_loss.gradients(cubes, first_order, {**TREE, "w": w}, EMPTY, 1.0)
    assert grads["w"].requires_grad != first_order
    assert value.requires_grad
    if not first_order:
        assert torch.autograd.grad(grads["w"].sum(), w)[0].tolist() == [6.0, 12.0]

    def second(w: Tensor) -> Tensor:
        return inner_loss.gradients(cubes, first_order, {**TREE, "w": w}, EMPTY, 1.0)[0]["w"].sum()

    assert grad(second)(w.detach()).tolist() == ([0.0, 0.0] if first_order else [6.0, 12.0])


def test_a_parameter_that_is_not_used_has_zeros() -> None:
    def constant(params: Any, batch: Any) -> Tensor:
        return torch.tensor(5.0)

    grads, value, _ = inner_loss.gradients(constant, False, TREE, EMPTY, None)
    assert grads["w"].tolist() == [0.0, 0.0]
    assert value == 5.0


def test_buffers_are_written_in_copies() -> None:
    buffers = {"count": torch.zeros(()), "none": None}

    def counting(params: Any, buffers: Any, batch: Any) -> Tensor:
        buffers["count"] += batch
        return params["w"].sum() * buffers["count"]

    grads, _, after = inner_loss.gradients(counting, False, TREE, buffers, 4.0)
    assert buffers["count"] == 0
    assert after["count"] == 4
    assert after["none"] is None
    assert grads["w"].tolist() == [4.0, 4.0]
    assert inner_loss.given_buffers(EMPTY) == ()
    assert inner_loss.given_buffers(buffers) == (buffers,)
    copied = inner_loss.copied(buffers)
    assert copied["count"] is not buffers["count"]


@pytest.mark.parametrize("value", [1.0, torch.ones(1), torch.tensor(1), torch.tensor(1j)], ids=repr)
def test_a_loss_is_a_real_scalar(value: Any) -> None:
    with pytest.raises(ValueError, match="loss must return a real scalar tensor, got"):
        inner_loss.gradients(lambda p, b: value, False, TREE, EMPTY, None)


def test_a_hint_is_a_note_on_the_same_error() -> None:
    error = KeyError("x")

    def failing(batch: Any) -> Tensor:
        raise error

    with pytest.raises(KeyError) as caught:
        inner_loss.Hinting(failing, "3 tensors")(None)
    assert caught.value is error
    (note,) = error.__notes__
    assert note.startswith("batches were 3 tensors, each of them taken for the batch of one step")
    assert inner_loss.Hinting(lambda batch: torch.tensor(batch), "")(2.0) == 2.0


def test_a_version_without_gradients_in_inference_mode_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(context, "differentiates_in_inference_mode", lambda: False)
    refused = pytest.raises(NotImplementedError, match=r"torch .* mode: take torch.no_grad\(\)")
    with torch.inference_mode(), refused:
        inner_loss.gradients(cubes, False, TREE, EMPTY, 2.0)
