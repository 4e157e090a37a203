"""Any transform as a ``torch.optim.Optimizer``.

A group's parameters are a list, or a dict by their names, and that is a tree: the transform runs on
it as on any other. Its state lies in ``optimizer.state`` as torch keeps state, see ``_layout.py``.
Here is torch's protocol: construction, groups, checkpoints, and the order of a step. How groups are
stepped that are one tree is in ``_unit.py``. The file is longer than others: torch wants all of the
protocol in one class, and a public class is documented.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from operator import is_
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer as TorchOptimizer
from torch.optim.optimizer import ParamsT

from .._core import checks, context, hyper, memory, pytree
from .._core.private import optim
from .._core.pytree import Tree
from .._core.spelling import explains_misfits
from .._core.transform import GradientTransformation, Transform
from .._execution import choice
from .._execution.program import machine, steps
from .._execution.program.steps import Entry, Trees
from .._transforms.arguments import arguments
from .._transforms.masked import goes_by_path
from . import _loading, _schedules
from ._entries import titles_of
from ._factory import Factory, check_factory
from ._shown import Said
from ._unit import Run, Unit, known_as, transform_in
from ._values import advice_on, held


class Optimizer(TorchOptimizer):
    """A transform, or a factory of transforms, as a ``torch.optim.Optimizer``.

    Args:
        params: an iterable of parameters, of (name, parameter) pairs, or of dicts that define
            parameter groups.
        factory: a transform; or a function from hyperparameters to one, such as
            ``functional_adamax.adamaxw``. The parameters of such a function are keys of the
            parameter groups, obeyed at every step, so that schedulers of torch drive them. It is
            called when one of them changes, or a number or function that its code reads; and in
            every step where it cannot be told what it depends on.
        couple: "group" runs the transform on each parameter group by itself, "all" on the
            parameters of all groups at once. That matters to transforms that couple parameters,
            such as ``clip_by_global_norm``, or tell them apart, such as ``add_noise``, which
            gives groups by themselves the same noise. Default: "group".
        **hyperparameters: of the factory, with its defaults. Of one that is a schedule, ``lr``
            for example, the group shows the value of the last step, as ``lr`` and as
            ``scheduled_lr``; while you set another ``lr`` there, that rules instead. So does a
            scheduler of torch, with a warning, unless it leaves the rate alone.

    Raises:
        TypeError: ``factory`` is neither, or a hyperparameter is missing or unknown.
        ValueError: a hyperparameter out of its range.

    The state of a parameter holds the leaves of the transform's state by their names
    (``exp_avg``), or by their paths where a name comes twice (``1.exp_avg``). ``step`` takes
    extra keyword arguments and hands them to the transform; with a closure the transform is
    also given ``value``, the loss, and ``grad_fn``, which evaluates the closure at other
    parameters and returns their gradients.

    Example:
        >>> import functional_adamax as fa
        >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = Optimizer([w], fa.adamaxw, lr=0.1)
        >>> (w**2).sum().backward()
        >>> optimizer.step()
        >>> w.data
        tensor([0.8990, 1.8980])
    """

    _unit: ClassVar[type[Unit]] = Unit
    """What steps groups whose parameters are one tree."""

    @explains_misfits
    def __init__(
        self,
        params: ParamsT,
        factory: GradientTransformation | Factory,
        *,
        couple: str = "group",
        **hyperparameters: Any,
    ) -> None:
        if couple not in ("group", "all"):
            raise ValueError(f"couple must be 'group' or 'all', got {couple!r}")
        self._factory: Factory = check_factory(factory)
        if isinstance(factory, tuple) and hyperparameters:
            raise TypeError(
                f"a transform has its hyperparameters, got {sorted(hyperparameters)} beside it: "
                "give its factory instead"
            )
        self._couple = couple
        given = arguments(self._factory, (), hyperparameters)[1]
        _schedules.check_names(given)
        self._names = list(given)  # of the hyperparameters
        self._evaluates = False  # the schedules, for a factory that takes no functions
        self._forget()
        with advice_on(params):
            super().__init__(params, given)

    def __getstate__(self) -> dict[str, Any]:
        ours = ("_factory", "_couple", "_names", "_evaluates")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in ours}}

    def state_dict(self) -> dict[str, Any]:
        """Return a checkpoint, as in torch; of schedules it has what they left in the groups."""
        with optim.state_hook(self, _schedules.without_functions):
            return super().state_dict()

    def __setstate__(self, state: dict[str, Any]) -> None:
        before = self.__dict__.get("param_groups")
        if before is not None:
            _schedules.take_over(state["param_groups"], before, self._names)
        super().__setstate__(state)
        self._forget()
        recording = torch.is_grad_enabled()  # which leaving inference mode would switch on
        with torch.inference_mode(False), torch.set_grad_enabled(recording):
            self._restore(before)  # what it makes is written outside of inference mode

    def _forget(self) -> None:
        """Forget what was kept of other state."""
        self._kept: list[Unit] = []
        self._said = Said()  # in the last step
        self._written: list[Tensor] = []  # by the native kernel in the last step
        if not hasattr(self, "_known_as"):
            self._known_as = known_as(self)

    def _restore(self, before: list[dict[str, Any]] | None) -> None:
        """Make a loaded state that of live parameters, and loaded groups complete.

        ``before`` are the groups before the load, None for an unpickled optimizer.
        """
        self._complete_groups()
        _loading.rename_whole(self.state)
        _loading.make_steps_tensors(self.state)
        if before is not None:
            self._check_entries(before)
        _loading.restore(self.state, self.param_groups, self._place)

    def _complete_groups(self) -> None:
        for group in self.param_groups:  # a checkpoint may be older than a hyperparameter
            for name in self._names:
                group.setdefault(name, self.defaults[name])

    @staticmethod
    def _place(x: Tensor, name: Any, p: Tensor, group: dict[str, Any]) -> _loading.Place:
        """The device and the dtype of a loaded tensor."""
        del name, group
        return p.device, x.dtype

    def _check_entries(self, before: list[dict[str, Any]]) -> None:
        """Check that loaded entries are what the transforms of the loaded groups keep.

        Or of the groups before: the saved run may have switched a stage on or off by a
        hyperparameter, and an optimizer made as that one was knows both.

        Raises:
            ValueError: an entry is neither.
        """
        problems = self._misfits(self.param_groups)
        if not problems:
            return
        try:
            others = self._misfits([dict(group) for group in before])
        except Exception:  # those groups make no transform, and this load may be the cure
            others = problems
        for p, problem in problems.items():
            if p in others:
                raise ValueError(
                    f"{problem}; load the state dict of an optimizer made as this one, or take the "
                    "entry out of 'state', and the parameter starts with fresh state"
                )

    def _misfits(self, param_groups: list[dict[str, Any]]) -> dict[Tensor, str]:
        """What sets entries apart from what the transforms of ``param_groups`` keep."""
        titles = titles_of(param_groups)
        found: dict[Tensor, str] = {}
        for unit in self._divided(param_groups):
            found |= unit.misfits(titles, self._names)
        return {p: found[p] for p in titles if p in found}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, as ``torch.optim.Optimizer.add_param_group`` does."""
        with advice_on(param_group.get("params") if isinstance(param_group, dict) else None):
            super().add_param_group(param_group)
        group = self.param_groups[-1]
        group.update({k: self.plain(v) for k, v in self._values(group).items()})
        try:
            values = self._values(group)
            _schedules.take(group, self._factory, values)
            self._evaluates |= not _schedules.takes_functions(self._factory, values)
            if "param_names" not in group and goes_by_path(self._factory(**self._values(group))):
                checks.warn(
                    "by_path is asked for the names of parameters, but a group has none, so it "
                    "gets their positions, '0' for example: give the optimizer "
                    "model.named_parameters()"
                )
        except Exception:
            self.param_groups.pop()
            raise

    def step(self, closure: Callable[[], Any] | None = None, **extra: Any) -> Any:
        """Take one step. Nothing is written unless all groups pass their checks.

        Args:
            closure: reevaluates the model, under grad mode, and returns the loss.
            **extra: handed to the transform, for example ``value=`` for ``reduce_on_plateau``.

        Returns:
            What ``closure`` returned, or None.
        """
        return self._run(closure, extra)

    def _run(self, closure: Callable[[], Any] | None, extra: dict[str, Any]) -> Any:
        """Take one step and return what ``closure`` returned."""
        optim.check_capture(self)
        with torch.set_grad_enabled(self.defaults.get("differentiable", False)):
            loss, said = None, Said()
            if not torch.compiler.is_compiling():
                said.before, self._said = tuple(self._said), said
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            units = self._units()
            if not self._advance(units, said):
                for run in self._prepare(units, closure, loss, extra, said):
                    run()
        return loss

    def _advance(self, units: list[Unit], said: Said) -> bool:
        """Let one executor step all groups, or write nothing and return False."""
        if torch.is_grad_enabled() or context.traced():
            return False
        groups = []
        for unit in units:
            offered = unit.offered(said)
            if offered is None:
                return False
            groups += offered
        written = choice.advance(groups, self.state, self._written)
        self._written = written or []
        if written is None:
            return False
        for unit in units:
            unit.taken(said)
        return True

    @staticmethod
    def plain(value: Any) -> Any:
        """Return a hyperparameter with Python's numbers for those of NumPy."""
        return hyper.plain(value)

    def transform_of(self, group: dict[str, Any]) -> Transform | None:
        """The transform of a group, where it is one of the library's."""
        return transform_in(self._factory(**self._values(group)))

    def _prepare(
        self,
        units: list[Unit],
        closure: Callable[[], Any] | None,
        loss: Any,
        extra: dict[str, Any],
        said: Said,
    ) -> list[Run]:
        """Check everything, compute or plan the step, and return what then writes."""
        if closure is not None:
            extra = {"value": loss, **extra}
        given = closure, extra, said
        if torch.compiler.is_compiling():  # which makes state, and compares memory, beforehand
            apart = self._init_group()
            if len(units) > 1 and not apart:
                return [partial(unit.step, *given) for unit in units]
            alone = apart and closure is None and not extra
            runs = [unit.operated(said) if alone else None for unit in units]
            pairs = zip(units, runs, strict=True)
            return [unit.prepare(None, *given) if run is None else run for unit, run in pairs]
        known = len(self.state)
        try:
            self._make_state()
            alone = closure is None and not extra
            found = [unit.found(said) if alone else None for unit in units]
            at_once = [x for x in found if x is not None and x[1].at_once is not None]
            if len(at_once) < len(units) or not (len(units) == 1 or self._rates_are_apart()):
                return self._planned(units, given, found)
            return [partial(self._take, at_once, units, given)]
        except Exception:
            for p in list(self.state)[known:]:
                del self.state[p]
            raise

    def _take(self, found: list[tuple[Trees, Entry]], units: list[Unit], given: Any) -> None:
        """Check and write the step of all units in one call, or else in parts."""
        counts = [unit.count() for unit in units]
        if not steps.overwrite(found):
            for run in self._planned(units, given, [None] * len(units)):
                run()
            return
        for unit, count in zip(units, counts, strict=True):
            unit.show(count, given[-1])

    def _planned(self, units: list[Unit], given: Any, found: Sequence[Any]) -> list[Run]:
        """Plan the steps of units, which may be found already; return what takes them."""
        plans = [unit.prepare(x, *given) for unit, x in zip(units, found, strict=True)]
        if len(units) == 1 or (self._params_are_apart() and self._rates_are_apart()):
            return plans
        return [partial(unit.step, *given) for unit in units]

    def _units(self) -> list[Unit]:
        """The groups, those whose parameters are one tree together; a unit stays while they do."""
        groups = self.param_groups
        if torch.compiler.is_compiling():  # which would compile anew for what is kept
            return self._divided(groups)
        kept = [group for unit in self._kept for group in unit.groups]
        if len(kept) != len(groups) or not all(map(is_, kept, groups)):
            self._kept = self._divided(groups)
        return self._kept

    def _divided(self, groups: list[dict[str, Any]]) -> list[Unit]:
        """Units of ``groups``, which do not keep the optimizer from being freed."""
        owner = self if torch.compiler.is_compiling() else weakref.proxy(self)
        if self._couple == "all":
            return [self._unit(owner, groups[:], 0)] if groups else []
        return [self._unit(owner, [group], i) for i, group in enumerate(groups)]

    def _params_are_apart(self) -> bool:
        """Whether no group is written where another reads parameters."""
        params = [p for group in self.param_groups for p in group["params"]]
        return machine.are_apart(params) or memory.are_apart(params)

    def _rates_are_apart(self) -> bool:
        """Whether no group is written where another reads rates that are tensors."""
        rates = pytree.tensors([self._values(group) for group in self.param_groups])
        if not rates:
            return True
        params = [p for group in self.param_groups for p in group["params"]]
        states = pytree.tensors([self.state.get(p, {}) for p in params])
        return memory.storages(rates).isdisjoint(memory.storages(params + states))

    def _make_state(self) -> None:
        """Make state that is not the transform's to make, before any group is looked at."""

    def _init_group(self) -> bool:
        """Make all state, and return whether a step may write over it, one group after the other.

        Under this name ``torch.compile`` runs it eagerly, and takes the answer for a constant.
        """
        with context.eager():
            self._make_state()
            for unit in self._divided(self.param_groups):
                unit.complete()
        return self._params_are_apart() and self._rates_are_apart()

    def functional_state(self, group: int = 0) -> tuple[Tree, Any]:
        """Return the parameters of a group, and their state as the functional form has it.

        So ``params, state = optimizer.functional_state()`` is what ``averaged``,
        ``schedule_free_eval_params``, ``tree_get`` and others take.

        Args:
            group: which group; of all together if they are coupled. Default: the first.

        Returns:
            ``(params, state)``: a dict by their names, or a list, of the parameters, and a state of
            their transform. They are detached, and share the memory that the optimizer steps. A
            parameter without a first gradient has no state.

        Example:
            >>> import functional_adamax as fa
            >>> w = torch.nn.Parameter(torch.tensor([1.0]))
            >>> optimizer = Optimizer([w], fa.schedule_free(fa.sgd(0.5), 0.5))
            >>> w.grad = torch.ones(1)
            >>> optimizer.step()
            >>> params, state = optimizer.functional_state()
            >>> fa.schedule_free_eval_params(state, params)
            [tensor([0.5000])]
        """
        found = self.param_groups[group]
        unit = next(unit for unit in self._units() if any(x is found for x in unit.groups))
        return unit.functional()

    def _values(self, group: dict[str, Any]) -> dict[str, Any]:
        values = {name: group[name] for name in self._names if name in group}
        return {**values, "lr": held(group, "lr")} if "lr" in values else values

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
            with optim.load_hook(self, _loading.shield):
                super().load_state_dict(state_dict)
        except BaseException:
            self.state, self.param_groups = before
            raise
