"""Without what is private to torch: the same numbers, or a refusal that says why.

The file is longer than others: all that uses what is private to torch is run, without each of it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._C import _functorch
from torch._dynamo import callback, symbolic_convert
from torch._functorch import autograd_function, pyfunctorch
from torch._functorch import utils as functorch_utils
from torch.autograd import forward_ad
from torch.func import functionalize, grad, jvp, vmap
from torch.fx.experimental import symbolic_shapes
from torch.optim import optimizer as torch_optimizer
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode
from trees import assert_equal

import functional_adamax as fa
from functional_adamax._core.private import compiler, foreach, modes, optim, transforms, trees
from functional_adamax._execution.native import kernel
from functional_adamax._transforms import arguments
from functional_adamax.compat import Adamax, Optimizer, as_transform, inner_loop

GRAPH = torch.autograd.graph
OPTIMIZER = torch_optimizer.Optimizer
FOREACH = ("neg", "add", "abs", "lerp_", "mul_", "maximum_", "addcdiv_", "add_", "copy_")
NAMES: dict[ModuleType, list[tuple[Any, str]]] = {
    transforms: [
        *(
            (_functorch, name)
            for name in (
                *("peek_interpreter_stack", "get_interpreter_stack", "TransformType"),
                *("CVmapInterpreterPtr", "maybe_current_level", "maybe_get_level"),
                *("get_unwrapped", "unwrap_if_dead", "is_functorch_wrapped_tensor"),
                *("is_legacy_batchedtensor", "is_batchedtensor", "maybe_get_bdim"),
                *("_add_batch_dim", "_wrap_for_grad", "_unwrap_for_grad"),
            )
        ),
        (pyfunctorch, "temporarily_clear_interpreter_stack"),
        (pyfunctorch, "retrieve_current_functorch_interpreter"),
        (functorch_utils, "enable_single_level_autograd_function"),
        (torch.autograd.function, "_SingleLevelFunction"),
        (torch._C, "_functorch"),
    ],
    modes: [
        (torch._C, "_len_torch_dispatch_stack"),
        (torch._C, "_len_torch_function_stack"),
        (torch._C, "_get_tracing_state"),
        (torch._C, "_increment_version"),
        (forward_ad, "_current_level"),
        (torch.overrides, "_get_current_function_mode_stack"),
        (autograd_function, "custom_function_call"),
    ],
    trees: [(_pytree, name) for name in ("tree_iter", "tree_map", "_register_namedtuple")],
    foreach: [(torch, f"_foreach_{name}") for name in FOREACH],
    optim: [
        (torch_optimizer, "_default_to_fused_or_foreach"),
        (torch_optimizer, "_get_capturable_supported_devices"),
        (OPTIMIZER, "_accelerator_graph_capture_health_check"),
    ],
}
KNOWN = "2.13."  # the version of torch that has all of them; others may have gone without some
CASES = {name: (module, owner) for module, rows in NAMES.items() for owner, name in rows}
CLASSIC = ("Adamax", "Adamax, foreach", "Optimizer")
ASKED = {foreach: (*CLASSIC, "chain"), optim: CLASSIC}
"""The runs that ask what is in a module, where not all of them do."""
FOLLOWED = {"checkpoint", "checkpoint under vmap", "implicit"}
REFUSED = {  # what needs to know which tensors a loss closes over
    **dict.fromkeys(("maybe_get_level", "_functorch"), FOLLOWED),
    **dict.fromkeys(("tree_iter", "tree_map", "_get_current_function_mode_stack"), FOLLOWED),
    "custom_function_call": {"checkpoint"},
}


@contextmanager
def without(module: ModuleType, *gone: tuple[Any, str]) -> Iterator[None]:
    """Our ``module`` as it is where torch has not what is ``gone``; torch itself stays."""
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in gone:
            if hasattr(owner, name) or torch.__version__.startswith(KNOWN):
                patch.delattr(owner, name)
        importlib.reload(module)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernel, "_increment", modes.increment_version)
            kernel.is_active.cache_clear()
            yield
    finally:
        importlib.reload(module)
        kernel.is_active.cache_clear()


P = {"a": torch.linspace(-1, 1, 6).view(2, 3), "b": torch.linspace(1, 2, 4)}
G = {"a": torch.linspace(2, -1, 6).view(2, 3), "b": torch.linspace(-1, 1, 4)}
RATE = torch.tensor(0.1)


def stepped(tx: Any, g: Any = G, p: Any = P, donate: bool = False) -> Any:
    p = {name: x.clone() for name, x in p.items()}
    state = tx.init(p)
    for _ in range(2):
        p, state = fa.step(tx, g, state, p, donate=donate)
    return p, state


def looped(lr: Tensor, weight: Tensor, p: Any = P, **how: Any) -> Any:
    def loss(p: Any, batch: Tensor) -> Tensor:
        return sum((weight * x - batch).square().sum() for x in p.values())  # type: ignore[return-value]

    return fa.unroll(loss, fa.adamax(lr), p, [torch.tensor(1.0), torch.tensor(2.0)], **how)


def hypergradient(**how: Any) -> Any:
    lr, weight = RATE.clone().requires_grad_(), torch.tensor(0.5, requires_grad=True)
    value = looped(lr, weight, **how).values.sum()
    return torch.autograd.grad(value, (lr, weight), create_graph=True)


def solved() -> Any:
    weight = torch.tensor(0.5, requires_grad=True)
    start = {name: torch.zeros(2) for name in "ab"}
    batches = [torch.tensor(1.0)] * 5

    def loss(p: Any, batch: Tensor) -> Tensor:
        return sum((x - weight * batch).square().sum() for x in p.values())  # type: ignore[return-value]

    end = fa.implicit(loss, fa.adamax(0.1), start, batches).params
    return torch.autograd.grad(end["a"].sum(), weight)


def classic(make: Any) -> Any:
    params = [torch.nn.Parameter(x.clone()) for x in P.values()]
    opt = make(params)
    for _ in range(2):
        for p, g in zip(params, G.values(), strict=True):
            p.grad = g.clone()
        opt.step()
    other = make(params)
    other.load_state_dict(opt.state_dict())
    return params, [list(x.state[p].values()) for x in (opt, other) for p in params]


def traced() -> Any:
    tx = fa.adamax(0.1)
    step = torch.jit.trace(lambda p, g: fa.step(tx, g, tx.init(p), p)[0], (P["a"], G["a"]))
    return step(2 * P["a"], -G["a"])


def inner() -> Any:
    module = torch.nn.Linear(2, 1)
    torch.nn.init.constant_(module.weight, 0.5)
    torch.nn.init.constant_(module.bias, 0.5)
    lr = RATE.clone().requires_grad_()
    with inner_loop(module, fa.adamax(lr)) as (view, opt):
        for _ in range(2):
            opt.step(view(torch.ones(2)).square().sum())
        return torch.autograd.grad(view(torch.ones(2)).sum(), lr)


class LeafUpdate(TorchDispatchMode):
    """Counts what torch dispatches."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def seen() -> Any:
    with LeafUpdate() as mode:
        stepped(fa.adamax(0.1))
    return torch.tensor(mode.count)


def batch_of_gradients() -> Any:
    g = G["b"].clone().requires_grad_()
    tx = fa.adamax(0.1)
    new = fa.step(tx, g, tx.init(P["b"]), P["b"])[0]
    return torch.autograd.grad(new, g, torch.eye(4), is_grads_batched=True)


def members() -> Any:
    tx = fa.adamax(0.1)
    many = {name: torch.stack([x, -x, 2 * x]) for name, x in G.items()}
    return vmap(lambda g: fa.step(tx, g, tx.init(P), P))(many)


def members_of_a_chain() -> Any:
    tx = fa.chain(fa.clip_by_global_norm(0.1), fa.adamax(0.1))
    many = {name: torch.stack([x, -x, 2 * x]) for name, x in G.items()}
    return vmap(vmap(lambda g: fa.step(tx, g, tx.init(P), P)))(
        {name: torch.stack([x, 3 * x]) for name, x in many.items()}
    )


def hooked() -> Any:
    """What autograd saves comes back in another layout."""
    back = partial(torch.Tensor.mul, other=1)
    with GRAPH.saved_tensors_hooks(lambda x: x.flip(0), lambda x: back(x).flip(0)):
        g = G["a"].clone().requires_grad_()
        tx = fa.adamax(0.1)
        new = fa.step(tx, g, tx.init(P["a"]), P["a"])[0]
    return torch.autograd.grad(new.sum(), g)


JOURNEYS = {
    "pure": lambda: stepped(fa.adamax(0.1)),
    "donated": lambda: stepped(fa.adamax(0.1), donate=True),
    "chain": lambda: stepped(fa.chain(fa.clip_by_global_norm(1.0), fa.adam(0.1)), donate=True),
    "lifted": lambda: stepped(as_transform(torch.optim.SGD, lr=0.1)),
    "vmap": members,
    "vmap of vmap": members_of_a_chain,
    "grad": lambda: grad(lambda lr: looped(lr, RATE).values.sum())(RATE),
    "jvp": lambda: jvp(lambda lr: looped(lr, RATE).values.sum(), (RATE,), (RATE,)),
    "vmap of grad": lambda: vmap(grad(lambda lr: looped(lr, RATE).values.sum()))(RATE.expand(3)),
    "functionalize": lambda: functionalize(lambda g: stepped(fa.adamax(0.1), g)[0])(G),
    "unroll": hypergradient,
    "hooks": hooked,
    "batched by autograd": batch_of_gradients,
    "inner loop": inner,
    "Adamax": lambda: classic(partial(Adamax, lr=0.1)),
    "Adamax, foreach": lambda: classic(partial(Adamax, lr=0.1, maximize=True, foreach=True)),
    "Optimizer": lambda: classic(lambda p: Optimizer(p, fa.adam, lr=0.1)),
    "traced": traced,
    "seen by a mode": seen,
    "checkpoint": lambda: hypergradient(checkpoint=True),
    "checkpoint under vmap": lambda: vmap(
        grad(lambda lr: looped(lr, RATE, checkpoint=1).values.sum())
    )(RATE.expand(3)),
    "implicit": solved,
}


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    return {name: run() for name, run in JOURNEYS.items()}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", CASES)
def test_the_numbers_are_the_same_or_refused(name: str, known: dict[str, Any]) -> None:
    module, owner = CASES[name]
    with without(module, (owner, name)):
        for journey in ASKED.get(module, JOURNEYS):
            run = JOURNEYS[journey]
            if journey in REFUSED.get(name, ()):
                with pytest.raises(NotImplementedError, match="take unroll, without checkpoint"):
                    run()
            else:
                assert_equal(run(), known[journey])


@pytest.mark.parametrize("journey", sorted(FOLLOWED))
def test_nodes_without_numbers_are_refused(journey: str, monkeypatch: pytest.MonkeyPatch) -> None:
    number = modes.number
    monkeypatch.setattr(modes, "number", lambda node: number(object()))
    with pytest.raises(NotImplementedError, match="has no _sequence_nr, .* without checkpoint"):
        JOURNEYS[journey]()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_all_of_it_may_be_gone(known: dict[str, Any]) -> None:
    with ExitStack() as stack:
        for module, gone in NAMES.items():
            stack.enter_context(without(module, *gone))
        for journey in JOURNEYS.keys() - FOLLOWED:
            assert_equal(JOURNEYS[journey](), known[journey])


def test_hooks_of_one_load_without_the_lists_of_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = JOURNEYS["Optimizer"]()
    for name in ("load_hook", "state_hook"):
        real = getattr(optim, name)
        monkeypatch.setattr(optim, name, partial(real.func, "_gone", *real.args[1:]))
    assert_equal(JOURNEYS["Optimizer"](), wanted)


def test_a_graph_refuses_what_it_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    optimizer = Adamax([torch.nn.Parameter(torch.ones(1))])
    with without(optim, *NAMES[optim]), pytest.raises(RuntimeError, match="CUDA graph capture"):
        optimizer.step()


COMPILER = {
    "has_static_value": symbolic_shapes,
    "callback_handler": callback,
    "TensorifyState": symbolic_convert,
}


@pytest.mark.parametrize("name", [*COMPILER, "_foreach_copy_"])
def test_compiled_code_has_the_same_numbers(name: str) -> None:
    if name == "has_static_value" and not torch.__version__.startswith(KNOWN):
        pytest.skip("a compiler that has it need not do without")

    def step(lr: float, p: Any, state: Any) -> Any:
        return fa.step(fa.adamax(lr), G, state, p, donate=True)

    def run(step: Any) -> Any:
        p = {name: x.clone() for name, x in P.items()}
        state = fa.adamax().init(p)
        for lr in (0.1, 0.2, 0.3):
            p, state = step(lr, p, state)
        return p, state

    module = compiler if name in COMPILER else foreach
    torch._dynamo.reset()
    with without(module, (COMPILER.get(name, torch), name)), torch.no_grad():
        assert_equal(run(torch.compile(step, backend="aot_eager")), run(step))
    torch._dynamo.reset()


def test_a_compiler_that_does_not_know_the_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(arguments.declared, "_dynamo_marked_constant")

    def run(compiled: bool) -> Any:
        p = torch.nn.Parameter(P["a"].clone())
        optimizer = Optimizer([p], fa.adamaxw, lr=0.1)
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        for _ in range(2):
            p.grad = G["a"].clone()
            step()
        return p

    torch._dynamo.reset()
    assert_equal(run(compiled=True), run(compiled=False))
