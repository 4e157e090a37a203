"""Numbers that stand for hyperparameters while a rule is recorded.

A rule is given them where it would be given numbers, so that it does what it does with numbers.
They are found again by their values, which no other number has, where they reach an operation of
torch. What Python computes of them is computed by the program, too.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch

from .graph import Declined, Maker, Node


class Numbers(Maker):
    """A maker that knows the numbers which stand for others."""

    def __init__(self) -> None:
        super().__init__()
        self._by_value: dict[str, Node] = {}

    def stand_in(self, value: float, node: Node) -> Number:
        """A number whose value stands for a node."""
        self._by_value[value.hex()] = node
        number = Number(value)
        number.maker, number.node = self, node
        return number

    def known(self, value: float) -> Node | None:
        """What a number stands for, if it stands for another."""
        return self._by_value.get(value.hex())

    def constant(self, value: float) -> Node:
        return self.known(value) or super().constant(value)

    def computed(self, op: str, value: Any, *given: Any) -> Any:
        """The result of arithmetic on numbers."""
        if not isinstance(value, float) or not all(isinstance(x, (int, float)) for x in given):
            return NotImplemented
        if value == 0:  # whose sign may depend on numbers; and it would stand for every other zero
            raise Declined("it computes a number that is zero")
        operands = [self.constant(float(x)) for x in given]
        return self.stand_in(value, self.of(torch.float64, torch.float64)(op, *operands))


class Number(float):
    """A number that stands for one which is not zero."""

    maker: Numbers
    node: Node

    def __neg__(self) -> Any:
        return self.maker.computed("NEGATE", -float(self), self)

    def __add__(self, other: Any) -> Any:
        return self.maker.computed("ADD", float.__add__(self, other), self, other)

    def __radd__(self, other: Any) -> Any:
        return self.maker.computed("ADD", float.__radd__(self, other), other, self)

    def __sub__(self, other: Any) -> Any:
        return self.maker.computed("SUBTRACT", float.__sub__(self, other), self, other)

    def __rsub__(self, other: Any) -> Any:
        return self.maker.computed("SUBTRACT", float.__rsub__(self, other), other, self)

    def __mul__(self, other: Any) -> Any:
        return self.maker.computed("MULTIPLY", float.__mul__(self, other), self, other)

    def __rmul__(self, other: Any) -> Any:
        return self.maker.computed("MULTIPLY", float.__rmul__(self, other), other, self)

    def __truediv__(self, other: Any) -> Any:
        return self.maker.computed("DIVIDE", float.__truediv__(self, other), self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return self.maker.computed("DIVIDE", float.__rtruediv__(self, other), other, self)

    def __eq__(self, other: object) -> bool:
        if other is self or (isinstance(other, (int, float)) and other == 0):
            return other is self
        raise Declined("it compares a hyperparameter")

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return id(self)

    def __bool__(self) -> bool:
        return True

    def _refuse(self, *_: Any) -> NoReturn:
        raise Declined("it compares a hyperparameter, or takes another function of it")

    __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __mod__ = __rmod__ = __floordiv__ = __rfloordiv__ = _refuse
    __abs__ = __int__ = __round__ = __trunc__ = __floor__ = __ceil__ = _refuse
