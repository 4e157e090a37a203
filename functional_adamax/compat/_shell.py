"""What every optimizer class here owns: the step's protocol, and loading without loss.

A subclass prepares its step, with all checks, and returns what remains to be run: nothing is
written before all of it is prepared.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import Optimizer as TorchOptimizer

from .._core.private import optim
from ._loading import shield

Run = Callable[[], None]


class Shell(TorchOptimizer):
    """A ``torch.optim.Optimizer`` without the arithmetic."""

    def _run(self, closure: Callable[[], Any] | None, extra: dict[str, Any]) -> Any:
        """Take one step and return what ``closure`` returned."""
        optim.check_capture(self)
        with torch.set_grad_enabled(self.defaults.get("differentiable", False)):
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            if not self._advance():
                for run in self._prepare(closure, loss, extra):
                    run()
        return loss

    @abstractmethod
    def _advance(self) -> bool:
        """Let the native kernel step all groups, or write nothing and return False."""

    @abstractmethod
    def _prepare(
        self, closure: Callable[[], Any] | None, loss: Any, extra: dict[str, Any]
    ) -> list[Run]:
        """Check everything, compute or plan the step, and return what then writes."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint, as in torch, except for three things.

        Its tensors are copied, never adopted. Where both sides have names, parameters are paired by
        name within their group. A load that raises leaves the optimizer as it was.

        Raises:
            ValueError: number, names or state of the parameters do not fit; in torch's words for
                what torch checks.
        """
        before = self.state, self.param_groups
        try:
            with optim.load_hook(self, shield):
                super().load_state_dict(state_dict)
        except BaseException:
            self.state, self.param_groups = before
            raise
