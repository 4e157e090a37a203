"""The operations of torch that a record knows, each by what it computes for one element.

The words are those of ``native/instructions.h``, and a few that ``lower.py`` takes away. At the end
stands what each instruction is, in operations of torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..._core import numerics
from ..._core.private import dispatch
from .graph import Declined, Make, Node, fits


def _simple(op: str, count: int) -> Callable[..., Node]:
    def build(make: Make, *given: Any) -> Node:
        if any(x is not None for x in given[count:]):  # a rounding mode
            raise Declined(f"it calls {op.lower()} with {given[count:]}")
        return make(op, *given[:count])

    return build


def _turned(op: str) -> Callable[..., Node]:
    return lambda make, a, b: make(op, b, a)


def _is_one(x: Node) -> bool:
    return x.op == "CONSTANT" and x.value == 1


def _add(make: Make, a: Node, b: Node, alpha: Node) -> Node:
    return make("ADD", a, b) if _is_one(alpha) else make("ADD_PRODUCT", a, b, alpha)


def _subtract(make: Make, a: Node, b: Node, alpha: Node) -> Node:
    if _is_one(alpha):
        return make("SUBTRACT", a, b)
    opposite = make.number(-alpha.value) if alpha.op == "CONSTANT" else make("NEGATE", alpha)
    return make("ADD_PRODUCT", a, b, opposite)


def _subtract_from(make: Make, a: Node, b: Node, alpha: Node) -> Node:
    return _subtract(make, b, a, alpha)


def _addcmul(make: Make, x: Node, a: Node, b: Node, value: Node) -> Node:
    return make("ADD_PRODUCT", x, a if _is_one(value) else make("MULTIPLY", value, a), b)


def _addcdiv(make: Make, x: Node, a: Node, b: Node, value: Node) -> Node:
    return make("ADD", x, make("DIVIDE", make("MULTIPLY", value, a), b))


def _compare(op: str) -> Callable[..., Node]:
    def build(make: Make, a: Node, b: Node) -> Node:
        return make("IS_NAN", a) if op == "UNEQUAL" and a is b else make(op, a, b)

    return build


def _root(make: Make, x: Node) -> Node:
    if make.single:
        raise Declined("it takes a square root in float32, which is not the processor's")
    return make("SQRT", x)


def _power(make: Make, x: Node, exponent: Node) -> Node:
    if exponent.op == "CONSTANT" and exponent.value == 2:
        return make("MULTIPLY", x, x)
    if x.vector or exponent.vector or (exponent.op == "CONSTANT" and x.op != "CONSTANT"):
        raise Declined("it takes a power, whose bits depend on the place of the element")
    return make("POWER", x, exponent)


def _clamp(make: Make, x: Node, low: Node | None, high: Node | None = None) -> Node:
    if any(y is not None and y.vector for y in (low, high)):
        raise Declined("it calls clamp with bounds for each element")
    x = x if low is None else make("AT_LEAST", x, low)
    return x if high is None else make("AT_MOST", x, high)


def _clamp_max(make: Make, x: Node, high: Node) -> Node:
    return _clamp(make, x, None, high)


def _masked_fill(make: Make, x: Node, mask: Node, value: Node) -> Node:
    return make("WHERE", mask, value, x)


def _full(make: Make, value: Node) -> Node:
    """A tensor of one number, which torch treats otherwise than a number at some places."""
    if value.vector:
        raise Declined("it fills a tensor with what is no number")
    return make.rounded(value) if make.single else make("MOVE", value)


def _zeros(make: Make) -> Node:
    return _full(make, make.number(0.0))


def _ones(make: Make) -> Node:
    return _full(make, make.number(1.0))


def _same(make: Make, x: Node) -> Node:
    del make
    return x


def _cast(make: Make, x: Node) -> Node:
    """In another dtype, or a copy."""
    if x.dtype == make.dtype or x.dtype == torch.bool:
        return x
    if make.dtype == torch.bool:
        raise Declined("it casts numbers to bool")
    if not x.vector:
        return _full(make, x)
    return make("WIDEN" if fits(x, make.dtype) else "NARROW", x)


BUILDERS: dict[str, Callable[..., Node]] = {
    "add": _add,
    "sub": _subtract,
    "rsub": _subtract_from,
    "addcmul": _addcmul,
    "addcdiv": _addcdiv,
    "mul": _simple("MULTIPLY", 2),
    "div": _simple("DIVIDE", 2),
    "maximum": _simple("MAXIMUM", 2),
    "minimum": _simple("MINIMUM", 2),
    "lerp": _simple("LERP", 3),
    "where": _simple("WHERE", 3),
    "neg": _simple("NEGATE", 1),
    "abs": _simple("ABS", 1),
    "sign": _simple("SIGN", 1),
    "sgn": _simple("SIGN", 1),
    "isnan": _simple("IS_NAN", 1),
    "logical_not": _simple("NOT", 1),
    "bitwise_not": _simple("NOT", 1),
    "logical_and": _simple("AND", 2),
    "bitwise_and": _simple("AND", 2),
    "logical_or": _simple("OR", 2),
    "bitwise_or": _simple("OR", 2),
    "eq": _compare("EQUAL"),
    "ne": _compare("UNEQUAL"),
    "lt": _compare("LESS"),
    "le": _compare("LESS_EQUAL"),
    "gt": _turned("LESS"),
    "ge": _turned("LESS_EQUAL"),
    "reciprocal": lambda make, x: make("DIVIDE", make.number(1.0), x),
    "sqrt": _root,
    "pow": _power,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": _clamp_max,
    "masked_fill": _masked_fill,
    "full_like": _full,
    "scalar_tensor": _full,
    "fill": _full,
    "zeros_like": _zeros,
    "zero": _zeros,
    "ones_like": _ones,
    "detach": _same,
    "alias": _same,
    "clone": _same,
    dispatch.CAST: _cast,
    "copy": _cast,
}
"""By the name of the operation in torch; what is done in place has the same with an underscore."""

TAKEN: dict[str, tuple[int, ...]] = {
    "full_like": (1,),
    "scalar_tensor": (0,),
    "fill": (1,),
    "zeros_like": (),
    "zero": (),
    "ones_like": (),
    "detach": (0,),
    "alias": (0,),
    "clone": (0,),
    dispatch.CAST: (0,),
    "copy": (1,),
}
"""Of some, the arguments that count; the others say of which kind the result is, and where."""


def _exact(x: Tensor) -> Tensor:
    return x.double().sqrt().to(x.dtype)


def _sign_or_nan(x: Tensor) -> Tensor:
    return torch.where(x.isnan(), x, x.sign())


TORCH: dict[str, Callable[..., Tensor]] = {
    "MOVE": torch.clone,
    "NEGATE": torch.neg,
    "ABS": torch.abs,
    "SQRT": _exact,
    "SIGN": torch.sign,
    "IS_NAN": torch.isnan,
    "NOT": torch.logical_not,
    "ADD": torch.add,
    "SUBTRACT": torch.sub,
    "MULTIPLY": torch.mul,
    "DIVIDE": torch.div,
    "MAXIMUM": torch.maximum,
    "MINIMUM": torch.minimum,
    "AT_LEAST": lambda a, b: torch.where(b.isnan(), a, a.clamp_min(b)),
    "AT_MOST": lambda a, b: torch.where(b.isnan(), a, a.clamp_max(b)),
    "EQUAL": torch.eq,
    "UNEQUAL": torch.ne,
    "LESS": torch.lt,
    "LESS_EQUAL": torch.le,
    "AND": torch.logical_and,
    "OR": torch.logical_or,
    "WHERE": lambda a, b, c: torch.where(a != 0, b, c),
    "ADD_PRODUCT": torch.addcmul,
    "LERP": torch.lerp,
    "ROOT": lambda a: torch.where(a == 0, 0.0, _exact(torch.where(a == 0, 1.0, a))),
    "SIGN_OR_NAN": _sign_or_nan,
    "ABS_ADD": lambda a, b: a.abs() + b,
    "MULTIPLY_ADD": lambda a, b, c: a * b + c,
    "DIVIDE_ADD": lambda a, b, c: a / b + c,
    "MULTIPLY_DIVIDE": lambda a, b, c: a * b / c,
    "MULTIPLY_MAXIMUM": lambda a, b, c: torch.maximum(a * b, c),
    "MULTIPLY_DIVIDE_ADD": lambda a, b, c, e: a * b / c + e,
    "ADD_PRODUCT_ADD": lambda a, b, c, e: torch.addcmul(a, b, c) + e,
    "AVERAGE_SQUARE": lambda a, b, c, e: torch.addcmul(a * c, b * e, b),
    "SUM_OF_PRODUCTS": lambda a, b, c, e: a * b + c * e,
    "OVER_TWICE_ROOT": lambda a, b: (a.double() / (b.double().sqrt() * 2)).to(a.dtype),
    "POWER": torch.pow,
    "EXACT_ROOT": numerics.exact_root,
    "TO_FLOAT": lambda a: a.float(),
    "ROUND_F32": lambda a: a.float().to(a.dtype),
    "ROUND_BF16": lambda a: a.bfloat16().to(a.dtype),
    "ROUND_F16": lambda a: a.half().to(a.dtype),
    **{
        f"{op}_{dtype}": torch.clone for op in ("LOAD", "STORE") for dtype in ("F32", "BF16", "F16")
    },
}
"""What each instruction stands for, in operations of torch."""
