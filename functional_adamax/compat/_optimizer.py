"""Any transform as a ``torch.optim.Optimizer``.

A group's parameters are a list, or a dict by their names, and that is a tree: the transform runs on
it as on any other. Its state lies in ``optimizer.state`` as torch keeps state, see ``_layout.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .. import _step
from .._core import checks, context, hyper, memory, pytree
from .._core.plans import Plan
from .._core.private import optim
from .._core.pytree import Tree
from .._core.spelling import explains_misfits
from .._core.transform import GradientTransformation, Transform, Update, same
from .._execution.native import kernel
from .._execution.native.kernel import Group
from .._methods.method import Method
from .._transforms.arguments import arguments
from .._transforms.masked import goes_by_path
from . import _loading, _schedules
from ._closure import Gradients
from ._compiled import advance_compiled
from ._entries import misfits, titles_of
from ._factory import Factory, check_factory
from ._groups import check_writable, names_of
from ._layout import Layout, outline_of, with_memory, without_memory
from ._shell import Run, Shell
from ._shown import Said
from ._values import advice_on, held, tree_of

Made = dict[tuple[int, ...], GradientTransformation]
"""Transforms by the groups, each by its id, that they step."""


class Optimizer(Shell):
    """A transform, or a factory of transforms, as a ``torch.optim.Optimizer``.

    Args:
        params: an iterable of parameters, of (name, parameter) pairs, or of dicts that define
            parameter groups.
        factory: a transform; or a function from hyperparameters to one, such as
            ``functional_adamax.adamaxw``. The parameters of such a function are keys of the
            parameter groups, obeyed at every step, so that schedulers of torch drive them.
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

    _in_turn = False
    """Whether parameters that share memory are stepped one after the other."""

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
        self._layouts: dict[int, Layout] = {}  # by the first group of a unit
        self._written: list[Tensor] = []  # by the native kernel in the last step
        self._checked: dict[int, Any] = {}  # by the group, what was set over its schedules
        self._begin()
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
        self._layouts, self._written, self._checked = {}, [], {}
        self._begin()
        recording = torch.is_grad_enabled()  # which leaving inference mode would switch on
        with torch.inference_mode(False), torch.set_grad_enabled(recording):
            self._restore(before)  # what it makes is written outside of inference mode

    def _restore(self, before: list[dict[str, Any]] | None) -> None:
        """Make a loaded state that of live parameters, and loaded groups complete.

        ``before`` are the groups before the load, None for an unpickled optimizer.
        """
        self._complete_groups()
        _loading.rename_whole(self.state)
        _loading.make_steps_tensors(self.state)
        if before is not None:
            self._check_entries(before)
        self._copy_loaded()

    def _complete_groups(self) -> None:
        for group in self.param_groups:  # a checkpoint may be older than a hyperparameter
            for name in self._names:
                group.setdefault(name, self.defaults[name])

    def _copy_loaded(self) -> None:
        _loading.restore_exactly(self.state)

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
        loaded, self.param_groups = self.param_groups, param_groups
        titles = titles_of(param_groups)
        found: dict[Tensor, str] = {}
        try:
            for groups in self._units():
                if any(self.state.get(p) for i in groups for p in param_groups[i]["params"]):
                    leaves, spec, tx, outline = self._unit(groups)
                    stepped = [p if self.state.get(p) else None for p in leaves]
                    fresh = self._init(tx, stepped, spec)
                    layout = Layout.of(fresh, spec, outline)
                    entries = {p: _loading.opened(self.state[p]) for p in stepped if p is not None}
                    found |= misfits(layout, fresh, stepped, entries, titles, self._names)
        finally:
            self.param_groups = loaded
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
        self._layouts = {}

    def step(self, closure: Callable[[], Any] | None = None, **extra: Any) -> Any:
        """Take one step. Nothing is written unless all groups pass their checks.

        Args:
            closure: reevaluates the model, under grad mode, and returns the loss.
            **extra: handed to the transform, for example ``value=`` for ``reduce_on_plateau``.

        Returns:
            What ``closure`` returned, or None.
        """
        return self._run(closure, extra)

    def _begin(self) -> None:
        """Forget what was made and said in the last step."""
        self._made: Made = {}
        self._said = Said()

    def _advance(self) -> bool:
        compiling = torch.compiler.is_compiling()
        if not compiling:
            self._begin()
        apart = self._init_group() if compiling else True
        traced = not compiling and context.traced()
        if torch.is_grad_enabled() or traced or any(map(_schedules.of, self.param_groups)):
            return False
        if self._couple == "all" and self.param_groups:
            self._hyperparameters(list(range(len(self.param_groups))))  # which checks that they fit
        groups = []
        for group in self.param_groups:
            native = self._native(group)
            if native is None:
                return False
            groups.append(native)
        if compiling:
            return (apart or self._in_turn) and advance_compiled(groups, self.state)
        written = kernel.advance(groups, self.state, self._written)
        self._written = written or []
        return written is not None

    @staticmethod
    def plain(value: Any) -> Any:
        """Return a hyperparameter with Python's numbers for those of NumPy."""
        return hyper.plain(value)

    def transform_of(self, group: dict[str, Any]) -> Transform | None:
        """The transform of a group, where it is one of the library's."""
        return _transform_in(self._factory(**self._values(group)))

    def _native(self, group: dict[str, Any]) -> Group | None:
        """The step of a group as the native kernel takes it, if its transform has one."""
        tx = self._factory(**self._values(group))
        if not torch.compiler.is_compiling():
            self._made[(id(group),)] = tx  # for the step that is taken without one
        transform = _transform_in(tx)
        if not isinstance(transform, Method):
            return None
        return kernel.group_of(transform, group["params"])

    def _prepare(
        self, closure: Callable[[], Any] | None, loss: Any, extra: dict[str, Any]
    ) -> list[Run]:
        if closure is not None:
            extra = {"value": loss, **extra}
        units = self._units()
        if torch.compiler.is_compiling():  # which makes state, and compares memory, beforehand
            if len(units) > 1 and not self._init_group():
                return [partial(self._step_unit, unit, closure, extra) for unit in units]
            return [self._prepare_unit(unit, closure, extra) for unit in units]
        known = set(self.state)
        try:
            self._make_state()
            plans = [self._prepare_unit(unit, closure, extra) for unit in units]
            if len(units) > 1 and not self._are_apart():
                return [partial(self._step_unit, unit, closure, extra) for unit in units]
            return plans
        except Exception:
            for p in set(self.state) - known:
                del self.state[p]
            raise

    def _units(self) -> list[list[int]]:
        """The groups whose parameters are one tree, together."""
        everything = list(range(len(self.param_groups)))
        return [everything] if self._couple == "all" and everything else [[i] for i in everything]

    def _are_apart(self) -> bool:
        """Whether no group is written where another reads parameters, or rates that are tensors."""
        params = [p for group in self.param_groups for p in group["params"]]
        if not memory.are_apart(params):
            return False
        rates = pytree.tensors([self._values(group) for group in self.param_groups])
        if not rates:
            return True
        states = pytree.tensors([self.state.get(p, {}) for p in params])
        return memory.storages(rates).isdisjoint(memory.storages(params + states))

    def _step_unit(
        self, groups: list[int], closure: Callable[[], Any] | None, extra: dict[str, Any]
    ) -> None:
        """Step some groups after those before them, whose parameters may be the same memory."""
        self._prepare_unit(groups, closure, extra)()

    def _make_state(self) -> None:
        """Make state that is not the transform's to make, before any group is looked at."""

    def _init_group(self) -> bool:
        """Make that state, and return whether no two parameters share memory.

        Under this name ``torch.compile`` runs it eagerly, and takes the answer for a constant.
        """
        self._make_state()
        return memory.are_apart([p for group in self.param_groups for p in group["params"]])

    def _prepare_unit(
        self, groups: list[int], closure: Callable[[], Any] | None, extra: dict[str, Any]
    ) -> Run:
        """Plan the step of some groups, whose parameters are one tree."""
        made = None if torch.compiler.is_compiling() else self._made
        leaves, spec, tx, outline = self._unit(groups, made)
        layout = self._layout(groups, tx, outline, leaves, spec)
        used = [p if self.state.get(p) else None for p in leaves]
        if all(p is None for p in used):
            return _nothing
        if not torch.compiler.is_compiling():  # which cannot ask
            names = [name for i in groups for name in names_of(self.param_groups[i])]
            for name, p in zip(names, leaves, strict=True):
                if p.grad is not None:
                    check_writable(p, name)
        if closure is not None:
            everyone = [p for group in self.param_groups for p in group["params"]]
            extra = {"grad_fn": Gradients(closure, used, everyone), **extra}
        grads = pytree.unflatten(spec, [None if p is None else p.grad for p in used])
        state = layout.gather(self.state, leaves)
        tree = pytree.unflatten(spec, used)
        run = self._plan(groups, tx, grads, state, tree, extra)
        run.check()
        if run.new is not None:
            layout.check(run.new[1])
        count = None if layout.clock is None else layout.read(layout.clock, self.state, used)
        before = count.clone() if isinstance(count, Tensor) else None
        return partial(self._store, run, layout, used, groups, before)

    def _unit(
        self, groups: list[int], made: Made | None = None
    ) -> tuple[list[Tensor], Any, GradientTransformation, Any]:
        """Parameters and structure of some groups as one tree, their transform, its outline.

        The transform is taken from those that were ``made`` for this step, if it is there.
        """
        members = [self.param_groups[i] for i in groups]
        params = tree_of(members, [group["params"] for group in members])
        values = self._hyperparameters(groups)
        scheduled = [name for group in members for name in _schedules.of(group)]
        evaluated = dict.fromkeys(scheduled if self._evaluates else ())
        place = () if made is None else tuple(map(id, members))
        tx = (made or {}).get(place)
        if tx is None:
            tx = _schedules.transform(self._factory, values, evaluated)
            if made is not None:
                made[place] = tx
        return *pytree.flatten(params), tx, outline_of(values)

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
        place = range(len(self.param_groups))[group]
        groups = next(unit for unit in self._units() if place in unit)
        leaves, spec, tx, outline = self._unit(groups)
        stepped = [p if self.state.get(p) else None for p in leaves]
        layout = Layout.of(self._init(tx, stepped, spec), spec, outline)
        state = layout.gather(self.state, leaves)
        return pytree.unflatten(spec, [p.detach() for p in leaves]), state

    def _init(self, tx: GradientTransformation, params: Sequence[Tensor | None], spec: Any) -> Any:
        """A first state, to read its structure and dtypes off; without memory where possible."""
        state = without_memory(tx, params, spec)
        return with_memory(tx, params, spec) if state is None else state

    def _plan(
        self,
        groups: list[int],
        tx: GradientTransformation,
        grads: Tree,
        state: Any,
        params: Tree,
        extra: dict[str, Any],
    ) -> Plan:
        """The step of some groups. What shares memory steps from the old values; the last stays."""
        del groups
        return _step.plan(tx, grads, state, params, donate=True, **extra)

    def _values(self, group: dict[str, Any]) -> dict[str, Any]:
        values = {name: group[name] for name in self._names if name in group}
        return {**values, "lr": held(group, "lr")} if "lr" in values else values

    def _hyperparameters(self, groups: list[int]) -> dict[str, Any]:
        """The values for the factory; a tree with one for each parameter where groups differ."""
        members = [self.param_groups[i] for i in groups]
        if len(members) == 1 and not _schedules.of(members[0]):
            return self._values(members[0])
        values = {
            name: _schedules.together(members, name, self._said)
            for name in self._values(members[0])
        }
        for i in groups if not torch.compiler.is_compiling() else []:
            self._check_overriding(i)
        return values

    def _check_overriding(self, place: int) -> None:
        """Check what somebody set over the schedules of a group, which the factory takes for one.

        A value that was checked is not checked again, so that a step calls the factory once.
        """
        group = self.param_groups[place]
        found = _schedules.overriding(group)
        if found and not same(found, self._checked.get(place)):
            self._factory(**self._values(group))
            self._checked[place] = found
        _schedules.warn_of_schedulers(group, place, found)

    def _layout(
        self,
        groups: list[int],
        tx: GradientTransformation,
        outline: Any,
        params: list[Tensor],
        spec: Any,
    ) -> Layout:
        """Return where the state lies, and make what of it there is not yet.

        State is made for parameters that have a first gradient, and for all when a change of the
        hyperparameters switched a stage of the transform on.
        """
        compiling = torch.compiler.is_compiling()  # which knows other structures of trees
        layout: Layout | None = None if compiling else self._layouts.get(groups[0])
        if layout is not None and (layout.outline != outline or layout.params != spec):
            layout = None
        new: list[Tensor | None]
        new = [p if p.grad is not None and not self.state.get(p) else None for p in params]
        if layout is None:
            used = [p if self.state.get(p) else q for p, q in zip(params, new, strict=True)]
            shapes = None if compiling else without_memory(tx, used, spec)
            if shapes is None:
                new = used
            else:
                layout = Layout.of(shapes, spec, outline)
                new = layout.incomplete(pytree.flatten(shapes)[0], self.state, used)
        if layout is None or any(p is not None for p in new):
            fresh = with_memory(tx, new, spec)
            layout = Layout.of(fresh, spec, outline)
            layout.complete(pytree.flatten(fresh)[0], self.state, params, new)
        if not compiling:  # which would compile anew for what is kept
            self._layouts[groups[0]] = layout
        return layout

    def _store(
        self,
        run: Plan,
        layout: Layout,
        used: list[Tensor | None],
        groups: list[int],
        before: Tensor | None,
    ) -> None:
        """Run the step, and put its results where they belong; ``before`` is the count."""
        new_params, new_state = run()
        leaves = pytree.flatten(new_state)[0]
        for p, new in zip(used, pytree.flatten(new_params)[0], strict=True):
            if p is not None and new is not p:
                p.copy_(new)
        # what autograd recorded is never written over; what a compiler traces stays in its place
        replace = self.defaults.get("differentiable", False) or not context.traced()
        layout.keep(leaves, self.state, used, replace, run.in_place)
        if before is not None:
            for i in groups:
                _schedules.show(self.param_groups[i], before, self._said)


def _transform_in(tx: GradientTransformation) -> Transform | None:
    return tx.update.transform if isinstance(tx.update, Update) else None


def _nothing() -> None:
    """The step of parameters without gradients."""
