"""What torch's machinery expects of an optimizer: groups, hooks, schedulers, AMP, copies."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from twins import assert_twins, copies, parameters, set_grads

import compat
import functional_adamax.compat
from functional_adamax.compat import Adamax, Optimizer

BOTH = pytest.mark.parametrize("cls", [torch.optim.Adamax, Adamax], ids=["torch", "ours"])


def one(**options: Any) -> tuple[torch.nn.Parameter, Adamax]:
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    p.grad = torch.tensor([0.5, -0.1, 0.0])
    return p, Adamax([p], **options)


def test_it_is_an_optimizer_under_both_names() -> None:
    assert compat.Adamax is functional_adamax.compat.Adamax
    assert issubclass(Adamax, torch.optim.Optimizer)
    assert issubclass(Adamax, Optimizer), "it is an instance of the same machinery"
    assert compat.__all__ == functional_adamax.compat.__all__
    for name in compat.__all__:
        assert getattr(compat, name) is getattr(functional_adamax.compat, name)


# --- groups ---------------------------------------------------------------------------------


def test_defaults_have_torchs_keys_in_torchs_order() -> None:
    p = torch.zeros(2)
    theirs, ours = torch.optim.Adamax([p]), Adamax([p])
    assert list(ours.defaults.items()) == list(theirs.defaults.items())
    assert list(ours.param_groups[0]) == list(theirs.param_groups[0])
    assert repr(ours) == repr(theirs)
    assert "state_dtype" not in ours.defaults
    assert list(Adamax([p], state_dtype=torch.float32).defaults)[-1] == "state_dtype"


def bad_groups() -> dict[str, Any]:
    p, q = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
    return {
        "not a dict": (q, [p]),
        "set": ({"params": {q}}, [p]),
        "some names missing": ({"params": [("q", q), torch.zeros(1)]}, [("p", p)]),
        "not a tensor": ({"params": [1.0]}, [p]),
        "non-leaf": ({"params": [q * 2]}, [p]),
        "overlap": ({"params": [p]}, [p]),
        "names mixed": ({"params": [("q", q)]}, [p]),
        "no params": ({"lr": 1.0}, [p]),
    }


@pytest.mark.parametrize("case", bad_groups())
def test_add_param_group_fails_in_torchs_words(case: str) -> None:
    errors = []
    for cls in (torch.optim.Adamax, Adamax):
        group, params = bad_groups()[case]
        optimizer = cls(params)
        with pytest.raises((TypeError, ValueError, KeyError)) as caught:
            optimizer.add_param_group(group)
        errors.append((type(caught.value), str(caught.value)))
        assert len(optimizer.param_groups) == 1
    assert errors[0] == errors[1]


@pytest.mark.parametrize("params", [[], torch.zeros(2), None], ids=["empty", "tensor", "None"])
def test_bad_params_fail_in_torchs_words(params: Any) -> None:
    errors = []
    for cls in (torch.optim.Adamax, Adamax):
        with pytest.raises((TypeError, ValueError)) as caught:
            cls(params)
        errors.append((type(caught.value), str(caught.value)))
    assert errors[0] == errors[1]


def test_a_group_added_in_mid_run() -> None:
    source = parameters(torch.float32)
    a, b = copies(source), copies(source)
    theirs, ours = torch.optim.Adamax(a[:2]), Adamax(b[:2])
    for i in range(6):
        if i == 3:
            theirs.add_param_group({"params": a[2:], "lr": 0.1})
            ours.add_param_group({"params": b[2:], "lr": 0.1})
        set_grads(a, b)
        theirs.step()
        ours.step()
        assert_twins(theirs, ours)


def test_foreign_group_keys_are_ignored_kept_and_saved() -> None:
    p, optimizer = one()
    optimizer.param_groups[0].update(initial_lr=0.1, swa_lr=0.2, max_momentum=0.9, mine="text")
    optimizer.step()
    saved = optimizer.state_dict()["param_groups"][0]
    assert (saved["initial_lr"], saved["mine"]) == (0.1, "text")
    other = Adamax([p])
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["swa_lr"] == 0.2


def test_tensor_lr_is_kept_as_the_object_it_is() -> None:
    for lr in (torch.tensor(0.1), torch.tensor([0.1])):
        p, optimizer = one(lr=lr)
        optimizer.step()
        assert optimizer.param_groups[0]["lr"] is lr
        assert lr.item() == pytest.approx(0.1)
        assert p.shape == (3,)
        scalar = torch.nn.Parameter(torch.tensor(1.0))
        scalar.grad = torch.tensor(1.0)
        Adamax([scalar], lr=lr).step()
        assert scalar.shape == ()


def test_named_parameters() -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = Adamax(model.named_parameters())
    model(torch.randn(1, 2)).sum().backward()
    optimizer.step()
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]


def test_parameters_sharing_memory_are_reported_by_name() -> None:
    p = torch.zeros(3)
    with pytest.warns(UserWarning, match="a and b are the same memory") as first:
        Adamax([("a", p), ("b", p.view(3))])
    optimizer = Adamax([("z", torch.zeros(1))])
    with pytest.warns(UserWarning, match="a and b are the same memory") as second:
        optimizer.add_param_group({"params": [("a", p), ("b", p.view(3))]})
    assert first[0].filename == second[0].filename == __file__


def test_a_refused_group_is_not_added() -> None:
    _, optimizer = one()
    with pytest.raises(TypeError, match="state_dtype must be"):
        optimizer.add_param_group({"params": [torch.zeros(2)], "state_dtype": "float32"})
    assert len(optimizer.param_groups) == 1


# --- step -----------------------------------------------------------------------------------


def test_step_writes_in_place_and_leaves_gradients_alone() -> None:
    for options in ({}, {"weight_decay": 0.1, "maximize": True}, {"foreach": True}):
        p, optimizer = one(**options)
        grad, address, version = p.grad, p.data_ptr(), p._version
        kept = grad.clone()
        optimizer.step()
        state = {k: v.data_ptr() for k, v in optimizer.state[p].items()}
        optimizer.step()
        assert p.grad is grad
        assert torch.equal(grad, kept)
        assert p.data_ptr() == address
        assert p._version > version  # autograd notices a parameter changed under its feet
        assert state == {k: v.data_ptr() for k, v in optimizer.state[p].items()}


def test_backward_through_a_stepped_parameter_raises_as_with_torch() -> None:
    p, optimizer = one()
    loss = (p**3).sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_state_is_made_at_the_first_gradient() -> None:
    p, q = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = Adamax([p, q])
    assert optimizer.state_dict()["state"] == {}
    p.grad = torch.ones(2)
    optimizer.step()
    assert q not in optimizer.state
    assert list(optimizer.state[p]) == ["step", "exp_avg", "exp_inf"]
    assert optimizer.state[p]["step"].dtype == torch.float32


@BOTH
def test_closure_runs_with_gradients_and_its_loss_comes_back(cls: Any) -> None:
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = cls([p], lr=0.1)

    def closure() -> torch.Tensor:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert float(optimizer.step(closure)) == 2.0
    assert p.detach().tolist() == pytest.approx([0.9, 0.9])
    assert optimizer.step() is None


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none: bool) -> None:
    p, optimizer = one()
    optimizer.zero_grad(set_to_none=set_to_none)
    assert p.grad is None if set_to_none else torch.equal(p.grad, torch.zeros(3))


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
def test_create_graph_does_not_grow_a_graph() -> None:
    p, optimizer = one()
    for _ in range(3):
        optimizer.zero_grad()
        (p**3).sum().backward(create_graph=True)
        optimizer.step()
    assert p.grad_fn is None
    assert all(not x.requires_grad for x in optimizer.state[p].values())
    p.grad = None


def failing_in_the_second_group(kind: str) -> tuple[type[Exception], str, Any]:
    good = torch.nn.Parameter(torch.ones(3))
    bad = torch.nn.Parameter(torch.ones(3))
    good.grad = torch.ones(3)
    if kind == "sparse":
        bad.grad = torch.ones(3).to_sparse()
        return RuntimeError, "Adamax does not support sparse gradients", (good, bad, {})
    if kind == "dtype":
        bad.grad_dtype = torch.float64
        bad.grad = torch.ones(3, dtype=torch.float64)
        return (
            RuntimeError,
            "expected a gradient of the dtype.*float32.*float64",
            (good, bad, {}),
        )
    bad.grad = torch.ones(3)
    if kind == "capturable":
        return AssertionError, "If capturable=True", (good, bad, {"capturable": True})
    return (
        AssertionError,
        "_foreach ops don't support autograd",
        (
            good,
            bad,
            {"foreach": True, "differentiable": True},
        ),
    )


@pytest.mark.parametrize("kind", ["sparse", "dtype", "capturable", "foreach"])
def test_all_groups_are_checked_before_anything_is_written(kind: str) -> None:
    error, message, (good, bad, options) = failing_in_the_second_group(kind)
    optimizer = Adamax([{"params": [good]}, {"params": [bad], **options}])
    with pytest.raises(error, match=message):
        optimizer.step()
    assert torch.equal(good.detach(), torch.ones(3))
    assert len(optimizer.state) == 0


def test_bad_group_values_and_bad_state_are_found_before_anything_is_written() -> None:
    def broken_value(name: str, value: Any) -> Any:
        return lambda group, state: group.__setitem__(name, value)

    def broken_state(name: str, value: Any) -> Any:
        return lambda group, state: state.__setitem__(name, value)

    cases = [
        (broken_value("weight_decay", None), TypeError, "weight_decay of a parameter group"),
        (broken_value("lr", [0.1, 0.2]), TypeError, "lr of a parameter group must be a number"),
        (broken_value("lr", torch.ones(3)), TypeError, "lr of a parameter group"),
        (broken_value("betas", (0.9, 0.9, 0.9)), ValueError, "too many values"),
        (broken_state("exp_inf", torch.ones(7)), RuntimeError, r"have \(3,\) and \(7,\)"),
        (broken_state("step", 3), RuntimeError, "API has changed"),
        (
            broken_state("exp_avg", torch.ones(3, dtype=torch.float64)),
            RuntimeError,
            "expected a gradient of the dtype of the moments",
        ),
    ]
    for foreach in (False, True):
        for break_it, error, message in cases:
            good, bad = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
            optimizer = Adamax([{"params": [good]}, {"params": [bad]}], foreach=foreach)
            good.grad = bad.grad = torch.ones(3)
            optimizer.step()
            before = good.detach().clone()
            break_it(optimizer.param_groups[1], optimizer.state[bad])
            with pytest.raises(error, match=message):
                optimizer.step()
            assert torch.equal(good.detach(), before)
            assert optimizer.state[good]["step"].item() == 1.0


def test_state_made_in_inference_mode_is_refused_outside_before_anything_is_written() -> None:
    p, optimizer = one()
    with torch.inference_mode():
        optimizer.step()
    before = p.detach().clone()
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor outside"):
        optimizer.step()
    assert torch.equal(p.detach(), before)


@pytest.mark.parametrize("foreach", [False, True])
def test_another_default_device_does_not_matter(foreach: bool) -> None:
    p, optimizer = one(foreach=foreach)
    optimizer.step()
    with torch.device("meta"):
        optimizer.step()
    assert optimizer.state[p]["step"].item() == 2.0


def test_fake_tensors_and_traced_steps() -> None:
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    with FakeTensorMode():
        p = torch.nn.Parameter(torch.ones(3))
        p.grad = torch.ones(3)
        Adamax([p]).step()
        assert p.shape == (3,)

    def step(start: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        p = start.clone()
        p.grad = grad
        Adamax([p], lr=0.1).step()
        return p

    args = torch.ones(3), torch.tensor([1.0, -2.0, 0.5])
    assert torch.equal(make_fx(step)(*args)(*args), step(*args))


@BOTH
def test_float32_moments_beside_a_half_parameter(cls: Any) -> None:
    """torch steps them if the gradient is float32 too."""
    p = torch.nn.Parameter(torch.linspace(-1, 1, 9).bfloat16())
    p.grad_dtype = torch.float32
    p.grad = torch.linspace(1, 3, 9)
    optimizer = cls([p], lr=0.1)
    moments = {"exp_avg": torch.ones(9), "exp_inf": torch.full((9,), 2.0)}
    optimizer.state[p] = {"step": torch.tensor(3.0), **moments}
    optimizer.step()
    want = torch.linspace(-1, 1, 9).bfloat16()
    want.addcdiv_(moments["exp_avg"], moments["exp_inf"], value=-0.1 / (1 - 0.9**4))
    assert torch.equal(p.detach(), want)


def test_sliced_parameters_are_stepped_in_place_beside_dense_ones() -> None:
    results = []
    for cls in (torch.optim.Adamax, Adamax):
        torch.manual_seed(0)
        whole = torch.randn(4, 6)
        sliced, dense = whole[:, ::2], torch.randn(5)
        optimizer = cls([sliced, dense], lr=0.1)
        for _ in range(3):
            sliced.grad, dense.grad = torch.randn(4, 3), torch.randn(5)
            optimizer.step()
        results.append((whole, dense))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("foreach", [False, True])
def test_capturable_on_a_cpu_fails_in_torchs_words(foreach: bool) -> None:
    errors = []
    for cls in (torch.optim.Adamax, Adamax):
        p = torch.nn.Parameter(torch.ones(2))
        p.grad = torch.ones(2)
        with pytest.raises(AssertionError) as caught:
            cls([p], capturable=True, foreach=foreach).step()
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


# --- hooks ----------------------------------------------------------------------------------


@BOTH
def test_step_hooks_run_in_torchs_order(cls: Any) -> None:
    order: list[str] = []

    class Traced(cls):
        def _optimizer_step_code(self) -> None:
            order.append("step code")

    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optimizer = Traced([p])
    handles = [
        register_optimizer_step_pre_hook(lambda *_: order.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: order.append("global post")),
        optimizer.register_step_pre_hook(lambda *_: order.append("pre")),
        optimizer.register_step_post_hook(lambda *_: order.append("post")),
    ]
    optimizer.step()
    assert order == ["global pre", "pre", "step code", "post", "global post"]
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert order[5:] == ["step code"]


def test_a_step_pre_hook_may_replace_the_arguments_and_nothing_else() -> None:
    p, optimizer = one()
    seen = []
    handle = optimizer.register_step_pre_hook(
        lambda opt, args, kwargs: ((opt, lambda: 42), kwargs) if not seen else None
    )
    optimizer.register_step_post_hook(lambda opt, args, kwargs: seen.append((opt, len(args))))
    assert optimizer.step() == 42
    assert seen == [(optimizer, 2)]
    handle.remove()
    optimizer.register_step_pre_hook(lambda *_: "nonsense")
    with pytest.raises(RuntimeError, match="must return None or a tuple"):
        optimizer.step()


def test_state_dict_hooks_with_prepend_and_removal() -> None:
    p, optimizer = one()
    optimizer.step()
    order: list[str] = []
    handles = [
        optimizer.register_state_dict_pre_hook(lambda opt: order.append("pre 2")),
        optimizer.register_state_dict_pre_hook(lambda opt: order.append("pre 1"), prepend=True),
        optimizer.register_state_dict_post_hook(
            lambda opt, sd: {**sd, "late": order.append("post 2")}
        ),
        optimizer.register_state_dict_post_hook(
            lambda opt, sd: order.append("post 1"), prepend=True
        ),
    ]
    assert "late" in optimizer.state_dict()
    assert order == ["pre 1", "pre 2", "post 1", "post 2"]
    for handle in handles:
        handle.remove()
    assert "late" not in optimizer.state_dict()
    assert len(order) == 4


def test_load_state_dict_hooks_with_prepend_and_removal() -> None:
    p, optimizer = one(lr=0.1)
    optimizer.step()
    saved = optimizer.state_dict()
    order: list[str] = []

    def change(opt: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        order.append("pre 2")
        state_dict["state"][0]["exp_avg"] = torch.full((3,), 7.0)
        return state_dict

    def check(opt: Any) -> None:
        order.append("post 2")
        assert torch.equal(opt.state[p]["exp_avg"], torch.full((3,), 7.0))

    optimizer.register_load_state_dict_pre_hook(change)
    optimizer.register_load_state_dict_pre_hook(lambda *_: order.append("pre 1"), prepend=True)
    optimizer.register_load_state_dict_post_hook(check)
    optimizer.register_load_state_dict_post_hook(lambda *_: order.append("post 1"), prepend=True)
    optimizer.load_state_dict(copy.deepcopy(saved))
    assert order == ["pre 1", "pre 2", "post 1", "post 2"]
    assert len(optimizer._optimizer_load_state_dict_pre_hooks) == 2  # ours did not stay


@BOTH
def test_load_hooks_may_remove_themselves(cls: Any) -> None:
    optimizer = cls([torch.nn.Parameter(torch.ones(2))])
    calls, handles = [], []

    def once(*_: Any) -> None:
        calls.append(1)
        handles[0].remove()

    handles.append(optimizer.register_load_state_dict_pre_hook(once))
    for _ in range(2):
        optimizer.load_state_dict(optimizer.state_dict())
    assert calls == [1]


def test_a_subclass_that_calls_super_step_keeps_working() -> None:
    class Counting(Adamax):
        calls = 0

        def step(self, closure: Any = None) -> Any:
            self.calls += 1
            return super().step(closure)

    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optimizer = Counting([p], lr=0.1)
    optimizer.step()
    assert optimizer.calls == 1
    assert p.detach().tolist() == pytest.approx([0.9, 0.9])


# --- schedulers, AMP, SWA, profiler ---------------------------------------------------------

SCHEDULERS = {
    "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 2),
    "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda e: 0.9**e),
    "CosineAnnealingLR": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 8),
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=12),
    "CyclicLR": lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.1, 3),
    "ReduceLROnPlateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "SequentialLR": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [
            torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=3),
            torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
        ],
        [3],
    ),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 0.5, anneal_epochs=4),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("tensor", [False, True], ids=["number", "tensor"])
def test_schedulers_drive_both_alike(name: str, tensor: bool) -> None:
    source = parameters(torch.float32)
    a, b = copies(source), copies(source)
    rates = [torch.tensor(0.05) if tensor else 0.05 for _ in range(2)]
    theirs, ours = torch.optim.Adamax(a, lr=rates[0]), Adamax(b, lr=rates[1])
    schedulers = [SCHEDULERS[name](o) for o in (theirs, ours)]
    for i in range(10):
        set_grads(a, b)
        theirs.step()
        ours.step()
        for scheduler in schedulers:
            scheduler.step(*([float(i)] if name == "ReduceLROnPlateau" else []))
        assert float(theirs.param_groups[0]["lr"]) == float(ours.param_groups[0]["lr"])
        assert theirs.param_groups[0]["betas"] == ours.param_groups[0]["betas"]
        assert_twins(theirs, ours)


def test_grad_scaler_skips_a_bad_step_without_touching_state() -> None:
    p, optimizer = one()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = p.detach().clone()
    for bad in (True, False):
        optimizer.zero_grad()
        scaler.scale((p * (float("inf") if bad else 1.0)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert bad == torch.equal(p.detach(), before)
        assert bad == (len(optimizer.state) == 0)
    assert torch.equal(p.grad, torch.ones(3))


def test_averaged_model_and_profiler() -> None:
    model = torch.nn.Linear(2, 2)
    average = torch.optim.swa_utils.AveragedModel(model)
    optimizer = Adamax(model.parameters())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model(torch.randn(1, 2)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    average.update_parameters(model)
    names = {event.name for event in profile.events()}
    assert {"Optimizer.step#Adamax.step", "Optimizer.zero_grad#Adamax.zero_grad"} <= names


def test_optimizer_in_backward() -> None:
    model = torch.nn.Linear(2, 2)
    handles = []
    optimizers = {p: Adamax([p], lr=0.1) for p in model.parameters()}
    for p in model.parameters():
        handles.append(
            p.register_post_accumulate_grad_hook(lambda q: (optimizers[q].step(), None)[1])
        )
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.randn(1, 2)).sum().backward()
    assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


# --- copies ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("options", [{}, {"state_dtype": torch.float64}], ids=str)
def test_copies_go_on_with_the_same_bits(how: str, options: dict[str, Any]) -> None:
    p, optimizer = one(lr=torch.tensor(0.1), weight_decay=0.1, **options)
    optimizer.step()
    optimizer.register_step_post_hook(lambda *_: pytest.fail("hooks are not copied, as in torch"))
    twin = copy.deepcopy(optimizer) if how == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
    q = twin.param_groups[0]["params"][0]
    optimizer._optimizer_step_post_hooks.clear()
    assert twin.defaults.keys() == optimizer.defaults.keys()
    for _ in range(3):
        q.grad = p.grad = torch.randn(3)
        optimizer.step()
        twin.step()
        assert_twins(optimizer, twin)


def test_an_old_pickle_without_the_newer_flags_steps() -> None:
    p, optimizer = one()
    optimizer.step()
    state = optimizer.__getstate__()
    for name in ("foreach", "maximize", "differentiable", "capturable"):
        del state["param_groups"][0][name]
    state["state"][p]["step"] = 1
    old = Adamax.__new__(Adamax)
    old.__setstate__(state)
    old.step()
    assert old.state[p]["step"].item() == 2.0


def test_nothing_warns_in_an_ordinary_run() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p, optimizer = one()
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        for _ in range(3):
            optimizer.step()
            scheduler.step()


def test_parameters_and_state_swapped_in() -> None:
    """Only in-place edits come back, so the step must write over what it is given."""
    results = []
    for cls in (torch.optim.Adamax, Adamax):
        p = torch.nn.Parameter(torch.ones(3))
        p.grad = torch.ones(3)
        optimizer = cls([p], lr=0.1)
        optimizer.step()
        kept, state = p.detach().clone(), copy.deepcopy(optimizer.state_dict())
        other = torch.nn.Parameter(torch.full((3,), 5.0))
        with torch.optim.swap_in_optimizer_params_and_state(optimizer, {"p": other}, state):
            other.grad = torch.tensor([1.0, -2.0, 0.5])
            optimizer.step()
        assert torch.equal(p.detach(), kept)
        results.append([other.detach(), *state["state"][0].values()])
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))
    assert results[1][1].item() == 2.0
