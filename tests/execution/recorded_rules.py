"""Methods whose rules are recorded, or declined with a reason, and two steps of each.

The file is longer than others: most of it is one table of rules.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import optree
import torch
from torch import Tensor, nn

import functional_adamax as fa
from functional_adamax._core.node import public_node
from functional_adamax._core.numerics import add_scaled, average, cast
from functional_adamax._execution.program.executor import why_not
from functional_adamax._methods.method import Method


@public_node
class RecordedState(NamedTuple):
    step: Any
    exp_avg: Any


Rule = Callable[[Any, Tensor, Tensor, Tensor, dict[str, Any]], Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class Recorded(Method):
    """A method of one moment, whose update is ``rule_of(self, t, g, m, h)``."""

    name: ClassVar[str] = "recorded"
    state: ClassVar[type[Any]] = RecordedState
    rule_of: ClassVar[Rule]

    lr: Any = 0.1
    weight_decay: Any = 0.0
    beta: Any = 0.9
    count: int = 3
    maximize: bool = False
    state_dtype: Any = None

    def moments(self) -> tuple[str, ...]:
        return ("exp_avg",)

    def hyper(self) -> dict[str, Any]:
        return {"beta": self.beta}

    def rule(self, t: Tensor, g: Tensor, moments: Any, h: dict[str, Any]) -> tuple[Tensor, Any]:
        m = average(moments["exp_avg"], g, h["beta"])
        return self.rule_of(t, g, m, h), {"exp_avg": m}


def method(rule: Rule, **fields: Any) -> fa.GradientTransformation:
    return type("Recorded", (Recorded,), {"rule_of": rule})(**fields).made()


STATE: dict[str, Any] = {"scale": 1.0, "calls": 0}


SEEN = [0]


FACTOR = 2.0


TENSOR = torch.tensor(3.0)


def plain(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m * -h["lr"]


def by_first_size(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m * m.shape[0] if m.dim() else m


def by_ndim(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m * 0.1 if m.ndim > 1 else m * 0.3


def by_dim(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m * m.dim()


def by_numel(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m / m.numel()


def by_length(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m * len(m) if m.dim() else m


def by_stride(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m * (2.0 if m.dim() > 1 and m.stride(0) == 1 else 1.0)


def by_contiguity(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m * 2 if m.is_contiguous() else m * 3


def by_dtype(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m * 2 if m.dtype == torch.float32 else m * 3


def by_device(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m * 2 if m.is_cpu and m.device.type == "cpu" else m * 3


def by_shape_of_zeros(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m * (torch.zeros_like(m).numel() + 1)


def by_the_step(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m * 0.5 if t > 1 else m


def by_the_number_of_the_step(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m * float(t.item())


def by_a_gradient(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m if g.sum() > 0 else -m


def by_an_equal_gradient(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m if torch.equal(g, m) else -m


def by_a_rate(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m * 0.5 if h["lr"] > 0.05 else m


def by_a_zero_rate(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    decay = h["weight_decay"]
    return m if isinstance(decay, float) and decay == 0.0 else m * decay


def by_the_kind_of_a_rate(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m * 0.5 if isinstance(h["lr"], Tensor) else m * h["lr"]


def by_a_swallowed_error(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    try:
        return m * float(t)
    except Exception:
        return m * 7


def by_a_field(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m * self.count


def by_its_own_rate(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m * self.lr


def a_tensor_as_alpha(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return torch.add(m, g, alpha=t * 0.5)


def a_tensor_as_value(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return torch.addcmul(m, g, g, value=t * 0.5)


def a_number_as_alpha(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return torch.add(m, g, alpha=0.3) + torch.sub(g, m, alpha=0.7)


def a_rate_as_alpha(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return torch.add(m, g, alpha=h["lr"])


def a_rate_beside_a_number(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return h["lr"] / (m.abs() + 1) + (1 - g)


def a_decay_in_the_rule(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return add_scaled(m, g, h["lr"])


def a_counter(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    STATE["calls"] += 1
    return m * STATE["calls"]


def a_mutable_global(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m * STATE["scale"]


def a_changed_global(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m * FACTOR


def a_global_by_its_name(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m * globals()["FACTOR"]


def a_set_global(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    global FACTOR
    FACTOR += 1.0
    return m * FACTOR


def a_helper_of_a_global(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return _helped(m)


def _helped(x: Tensor) -> Tensor:
    return x * FACTOR


def a_default_that_changes(
    self: Any, t: Any, g: Tensor, m: Tensor, h: Any, seen: Any = SEEN
) -> Tensor:
    seen[0] += 1
    return m * seen[0]


def a_global_tensor(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m * TENSOR


def a_new_tensor(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m * torch.tensor(0.5)


def a_module(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m * random.random()


def noise(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return m + torch.randn(m.shape, generator=generator, dtype=m.dtype)


def dropout(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return nn.functional.dropout(m, 0.5)


def written_fresh(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    x = m * 2
    x.add_(g).mul_(0.5)
    x += m
    return x


def written_input(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    g = g.detach()
    return g.mul_(1.0)


def written_step(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    x = m * 2
    t.add_(0.0)
    return x * cast(t, x)


def written_view(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    x = m * 2
    x.detach().mul_(3)
    return x


def written_after_a_view(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    x = m * 2
    y = x.detach()
    x.mul_(3)
    return y


def written_copy(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    x = g * 2
    x.copy_(m)
    return x


def written_out(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    x = m * 2
    torch.mul(m, 3, out=x)
    return x


def written_in_part(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    x = m * 2
    if x.dim():
        x[:1] = 0.0
    return x


def written_to_float(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return (m * 1).mul_(g.double())


def mean(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m - m.mean()


def largest(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m / (1 + m.max(-1, keepdim=True)[0])


def ordered(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m.reshape(-1).sort()[0].reshape(m.shape)


def product(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m @ m.T @ m if m.dim() == 2 else m


def flipped(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m.flip(0) if m.dim() else m


def outer(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return (m.reshape(-1, 1) * g.reshape(1, -1)).sum(1).reshape(m.shape)


def powers(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m.abs() ** 0.7


def squares(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m**2 + g.square() + m.pow(2)


def sigmoids(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m.sigmoid() + m.exp()


def eager_roots(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m.abs().sqrt()


def bounds(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m.clamp(-0.5, 0.5) + g.clamp(min=0.0) + g.clamp_max(0.1)


def choices(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    agree = (m * g > 0) & ~(m <= -1) | (g >= 2)
    return torch.where(agree, m, 0.0) + g.masked_fill(g != g, 0.5) * agree


def choices_by_the_step(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return torch.where(t == 1, g, m) + torch.where(t > 1, 0.5, 2.0).to(m.dtype)


def constants(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m * torch.full_like(m, 0.1) + torch.zeros_like(m) + torch.ones_like(g)


def wide(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return (m.double() * 3 + g.double()).to(m.dtype)


def uniforms(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    rate = cast(0.9 ** t.to(torch.float64), m) + cast(t, m) / 3
    return m * rate + t.float() * 0.1


def promoted(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return (m * t).to(m.dtype)


def the_gradient(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return g


def nothing_read(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return torch.zeros_like(g)


def lists(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m * str(m.tolist()).count(",")


def addresses(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m * (1 + (m.data_ptr() == 0))


def arrays(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m * float(m.detach().numpy().size)


def grad_mode(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m * (2.0 if torch.is_grad_enabled() else 3.0)


def default_dtype(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return m * (2.0 if torch.get_default_dtype() == torch.float32 else 3.0)


def subclass(self: Any, t: Any, g: Tensor, m: Tensor, h: Any) -> Tensor:
    return (m.as_subclass(nn.Parameter) * 2).as_subclass(Tensor)


TAKEN = [
    plain,
    by_ndim,
    by_dim,
    by_dtype,
    by_device,
    by_a_zero_rate,
    by_a_field,
    a_number_as_alpha,
    a_decay_in_the_rule,
    a_rate_as_alpha,
    a_rate_beside_a_number,
    by_the_kind_of_a_rate,
    a_changed_global,
    a_helper_of_a_global,
    written_fresh,
    written_step,
    written_copy,
    squares,
    bounds,
    choices,
    choices_by_the_step,
    constants,
    uniforms,
    the_gradient,
    nothing_read,
    grad_mode,
    default_dtype,
]
"""Rules that the machine takes, of one-dimensional leaves in float32."""


SHAPED = [
    by_first_size,
    by_numel,
    by_length,
    by_stride,
    by_contiguity,
    by_shape_of_zeros,
    flipped,
    product,
]
"""Rules that it takes for a leaf of one shape, or declines."""


DECLINED = {
    by_the_step: "reads the value",
    by_the_number_of_the_step: "calls item",
    by_a_gradient: "sum, which is no instruction",
    by_an_equal_gradient: "reads the value",
    by_a_rate: "compares a hyperparameter",
    by_a_swallowed_error: "reads the value",
    by_its_own_rate: "no input",
    a_tensor_as_alpha: "reads the value",
    a_tensor_as_value: "reads the value",
    a_counter: "reads STATE, whose value may change",
    a_mutable_global: "reads STATE, whose value may change",
    a_global_by_its_name: "calls globals",
    a_set_global: "sets the global FACTOR",
    a_default_that_changes: "default, whose value may change",
    a_global_tensor: "reads TENSOR, whose value may change",
    a_new_tensor: "lift_fresh",
    a_module: "reads the module random",
    noise: "randn",
    dropout: "no instruction",
    written_input: "writes to an input",
    written_view: "view",
    written_after_a_view: "writes through a view",
    written_out: "no instruction",
    written_in_part: "no instruction",
    written_to_float: "rounds to another dtype",
    mean: "mean, which is no instruction",
    largest: "no instruction",
    ordered: "no instruction",
    outer: "no instruction",
    powers: "power",
    sigmoids: "sigmoid, which is no instruction",
    eager_roots: "square root in float32",
    wide: "in float32, and in float64",
    promoted: None,
    lists: "tolist",
    addresses: "data_ptr",
    arrays: "numpy",
    subclass: "no input",
}


RULES = [*TAKEN, *SHAPED, *DECLINED]


def trees() -> list[Any]:
    """Two trees, of all numbers of dimensions."""
    torch.manual_seed(0)
    column = torch.randn(3, 5).t()
    return [
        {"a": torch.randn(6), "b": torch.randn(4, 3), "c": torch.randn(()), "d": torch.randn(1)},
        {"a": torch.randn(33), "b": column, "c": torch.randn(2, 2, 2), "d": torch.randn(0, 2)},
    ]


def clone(tree: Any) -> Any:
    return optree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, tree)


def steps(tx: Any, tree: Any, donate: bool = False, between: Any = None) -> list[Any]:
    """The parameters and the state after each of two steps."""
    p = clone(tree)
    state = tx.init(p)
    found = []
    for step in range(2):
        torch.manual_seed(step)
        grads = optree.tree_map(torch.randn_like, p)
        p, state = fa.step(tx, grads, state, p, donate=donate)
        found.append(clone((p, state)))
        if between is not None:
            between()
    return found


def bits(tree: Any) -> list[Any]:
    flat = [x for x in optree.tree_leaves(tree) if isinstance(x, Tensor)]
    return [(x.dtype, x.shape, x.stride(), x.nan_to_num(0.71).tolist()) for x in flat]


def begin() -> None:
    """Set what rules change to what it was."""
    STATE["calls"], globals()["FACTOR"] = 0, 2.0
    SEEN[0] = 0
    random.seed(0)


def reason(tx: Any, p: Tensor) -> str | None:
    """Why the machine does not take a leaf."""
    state = tx.init(p)
    work = tx.update.transform.work(torch.randn_like(p), state, p)
    work.check()
    return why_not(work, 0)
