"""A unit: some groups whose parameters are one tree, which one transform steps.

An optimizer divides its groups into units, and asks each for its step. A unit is kept from step to
step, and with it what need not be asked again: where its state lies, and the transform, as long as
it is bound to be the same. The file is longer than others: a unit has two ways to step, by programs
and by a plan over trees, which share what it keeps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain, count
from operator import is_
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from .. import _step
from .._core import context, pytree
from .._core.plans import Plan
from .._core.pytree import EmptyState, Tree
from .._core.transform import GradientTransformation, Transform, Update, same
from .._execution import operator
from .._execution.native import kernel
from .._execution.native.kernel import Group
from .._execution.program import machine, steps, whole
from .._execution.program.steps import Entry, Trees
from .._methods.method import Method
from .._schedules.scheduled import Scheduled, ask
from . import _loading, _schedules
from ._closure import Gradients
from ._entries import misfits
from ._factory import Factory, Reads, are_constant
from ._groups import check_writable, names_of
from ._layout import Layout, outline_of, with_memory, without_memory
from ._shown import Said
from ._values import tree_of

Run = Callable[[], None]


class Owner(Protocol):
    """What a unit knows of its optimizer."""

    state: defaultdict[Tensor, Any]
    param_groups: list[dict[str, Any]]
    defaults: dict[str, Any]
    _factory: Factory
    _evaluates: bool
    _known_as: str

    def _values(self, group: dict[str, Any]) -> dict[str, Any]: ...


class Unit:
    """Groups of ``owner`` whose parameters are one tree, and the number of the first of them."""

    def __init__(self, owner: Owner, groups: list[dict[str, Any]], first: int) -> None:
        self.owner, self.groups, self.first = owner, groups, first
        self._layout: Layout | None = None
        self._checked: dict[int, Any] = {}  # by the group, what was set over its schedules
        self._given: list[Any] | None = None  # parameters and names, while their tree is known
        self._said: Said | None = None  # of the step for which the transform was made
        self._count: Tensor | None = None  # of the schedule, in the step that is offered
        self._reads = Reads(owner._factory)
        self._made_of: tuple[dict[str, Any], Any] | None = None  # while it need not be made again

    def offered(self, said: Said) -> list[Group] | None:
        """The groups as the executors take whole groups; None where they know no such step."""
        values, one = self.owner._values, len(self.groups) == 1
        if not one:
            if any(map(_schedules.of, self.groups)):
                return None
            self._values(said)  # which checks that they fit
        found, self._count = [], None
        for group in self.groups:
            tx = self._transform(said) if one else self.owner._factory(**values(group))
            transform = transform_in(tx)
            method = transform.transform if isinstance(transform, Scheduled) else transform
            taken = isinstance(method, Method) and kernel.group_of(method, group["params"])
            if not taken:
                return None
            if method is not transform:
                self._count = self._own_count() if machine.is_there() else None
                if self._count is None:
                    return None
                taken = taken._replace(lr=ask(taken.lr, self._count))
            found.append(taken)
        return found

    def taken(self, said: Said) -> None:
        """Count a step that was offered, and taken."""
        if self._count is not None:
            self.show(self._count.clone(), said)
            self._count.add_(1)

    def _own_count(self) -> Tensor | None:
        """The count of all parameters, if it can be written in its place."""
        layout, compiling = self._layout, torch.compiler.is_compiling()
        if layout is None or layout.outline != self._outline or compiling:
            return None
        params = self.groups[0]["params"]
        count: Any = machine.shared(params, self.owner.state, layout.counts[0].name)
        return count if isinstance(count, Tensor) and steps.may_write([count]) else None

    def prepare(
        self,
        found: tuple[Trees, Entry] | None,
        closure: Callable[[], Any] | None,
        extra: dict[str, Any],
        said: Said,
    ) -> Run:
        """Check and plan the step, which may be ``found`` already; return what takes it."""
        write = None if found is None else steps.planned(*found)
        if write is None:
            return self._planned(closure, extra, said)
        return partial(self._written, write, self.count(), said)

    def count(self) -> Any:
        """The count of the schedules, as it is now; None where there are none."""
        layout, state = self._layout, self.owner.state
        if layout is None or not layout.counts:
            return None
        return layout.read(layout.counts[0], state, self._leaves()[0]).clone()

    def found(self, said: Said) -> tuple[Trees, Entry] | None:
        """The step as the machine takes it, which finds the state in the entries; or None."""
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or not machine.is_there():
            return None
        transform, (leaves, spec) = transform_in(self._transform(said)), self._leaves()
        layout, state = self._layout, self.owner.state
        if layout is None or (layout.outline, layout.params) != (self._outline, spec):
            return None
        found = machine.gathered(leaves, state, *layout.columns)
        if found is None or transform is None:
            return None
        return whole.over(transform, *found, spec, layout.spec)

    def complete(self) -> Layout | None:
        """Return where the state lies, and make what there is not yet; None where that fails."""
        try:
            return self._complete(self._transform(Said()), *self._leaves())
        except Exception:  # of whatever kind; the step raises it
            return None

    def operated(self, said: Said) -> Run | None:
        """The step as the operator that a compiler sees, or None."""
        transform, (leaves, spec) = self._whole(said), self._leaves()
        lies = _lies(self.owner._known_as, self.first, len(self.groups))
        if transform is None or lies is None or torch.is_grad_enabled():
            return None
        names, shared, outline, count = lies
        entries, empty = [self.owner.state.get(p) or {} for p in leaves], EmptyState()
        state: list[Any] = []
        for name, is_shared in zip(names, shared, strict=True):
            if is_shared:
                state.append(next((x[name] for x in entries if name in x), empty))
            else:
                state += [x.get(name, empty) for x in entries]
        used = [p if x else None for p, x in zip(leaves, entries, strict=True)]
        grads = [None if p is None else p.grad for p in used]
        trees = operator.Trees(grads, used, state, (operator.outline(spec), outline))
        write = operator.over(transform, trees)
        if write is None:
            return None
        before = next(x[count] for x in entries if x).clone() if count else None
        return partial(self._take_operated, write, before, said)

    def _take_operated(self, write: Callable[[], None], before: Any, said: Said) -> None:
        write()
        self.show(before, said)

    def _whole(self, said: Said) -> Transform | None:
        """The transform of a step, where it is one of the library's."""
        return transform_in(self._transform(said))

    def _written(self, write: Callable[[], bool], before: Any, said: Said) -> None:
        """Step, and show what schedules said at the count ``before``."""
        if not write():
            self._planned(None, {}, said)()
        else:
            self.show(before, said)

    def show(self, count: Any, said: Said) -> None:
        """Leave in the groups what schedules say at ``count``, if there is one."""
        for group in self.groups if count is not None else ():
            _schedules.show(group, count, said)

    def _planned(self, closure: Callable[[], Any] | None, extra: dict[str, Any], said: Said) -> Run:
        """Check and plan the step of any transform over trees; return what takes it.

        It is not handed the trees: a compiler that gives up on a whole step compiles this alone,
        and would take the trees of one unit for those of another.
        """
        tx = self._transform(said)
        leaves, spec = self._leaves()
        compiling, state = torch.compiler.is_compiling(), self.owner.state
        layout = self._complete(tx, leaves, spec)
        used = self._stepped(leaves)
        if all(p is None for p in used):
            return _nothing
        for group in () if compiling else self.groups:  # a compiler cannot ask
            named = zip(names_of(group), group["params"], strict=True)
            check_writable((name, p) for name, p in named if p.grad is not None)
        if closure is not None:
            everyone = [p for group in self.owner.param_groups for p in group["params"]]
            extra = {"grad_fn": Gradients(closure, used, everyone), **extra}
        grads = spec.unflatten([None if p is None else p.grad for p in used])
        trees = grads, layout.gather(state, leaves), spec.unflatten(used)
        plan = self._plan(tx, trees, extra)
        plan.check()
        if plan.new is not None:
            layout.check(plan.new[1])
        count = layout.read(layout.counts[0], state, used) if layout.counts else None
        before = count.clone() if isinstance(count, Tensor) else None
        return partial(self._take, plan, layout, used, before, said)

    def step(self, closure: Callable[[], Any] | None, extra: dict[str, Any], said: Said) -> None:
        """Step after the units before, whose parameters may be the same memory."""
        alone = closure is None and not extra
        self.prepare(self.found(said) if alone else None, closure, extra, said)()

    def functional(self) -> tuple[Tree, Any]:
        """The parameters and the state as trees, of the memory that the optimizer steps."""
        leaves, spec = self._leaves()
        layout = self._fresh(self._stepped(leaves), spec)[1]
        params = spec.unflatten([p.detach() for p in leaves])
        return params, layout.gather(self.owner.state, leaves)

    def misfits(self, titles: Mapping[Tensor, str], names: Sequence[str]) -> dict[Tensor, str]:
        """What sets loaded entries apart from what the transform keeps."""
        leaves, spec = self._leaves()
        state, stepped = self.owner.state, self._stepped(leaves)
        entries = {p: _loading.opened(state[p]) for p in stepped if p is not None}
        if not entries:
            return {}
        fresh, layout = self._fresh(stepped, spec)
        return misfits(layout, fresh, stepped, entries, titles, names)

    def _leaves(self) -> tuple[list[Tensor], Any]:
        """The parameters as the leaves of a tree, and its structure, the same while they are."""
        columns = [group["params"] for group in self.groups]
        if torch.compiler.is_compiling():  # which would compile anew for what is kept
            return pytree.flatten(tree_of(self.groups, columns))
        given = [*chain(*columns), *chain(*(group.get("param_names", ()) for group in self.groups))]
        known = self._given
        if known is None or len(known) != len(given) or not all(map(is_, given, known)):
            self._flat = pytree.flatten(tree_of(self.groups, columns))
            self._given = given
        return self._flat

    def _transform(self, said: Said) -> GradientTransformation:
        """The transform of the hyperparameters as they are now, made once in a step."""
        if self._said is not said:
            values = self._values(said)
            if not self._is_made_of(values):
                factory, names = self.owner._factory, chain(*map(_schedules.of, self.groups))
                evaluated = dict.fromkeys(names if self.owner._evaluates else ())
                self._made = _schedules.transform(factory, values, evaluated)
                self._outline = outline_of(values)
                read = self._reads.now() if are_constant(values) else None
                self._made_of = None if read is None else (values, read)
            self._said = said
        return self._made

    def _is_made_of(self, values: dict[str, Any]) -> bool:
        """Whether these are the hyperparameters of a transform that need not be made again."""
        if self._made_of is None:
            return False
        known, read = self._made_of
        same = known.keys() == values.keys() and all(map(is_, known.values(), values.values()))
        return same and self._reads.now() is read

    def _values(self, said: Said) -> dict[str, Any]:
        """The values for the factory; a tree with one for each parameter where groups differ."""
        groups, values = self.groups, self.owner._values(self.groups[0])
        if len(groups) > 1:
            values = {name: _schedules.together(groups, name, said) for name in values}
        else:
            found = _schedules.of(groups[0])
            values |= {name: _schedules.value(groups[0], name, said) for name in found}
            if not found:
                return values
        for place in range(0 if torch.compiler.is_compiling() else len(groups)):
            self._check_overriding(place)
        return values

    def _check_overriding(self, place: int) -> None:
        """Check what somebody set over the schedules of a group, which the factory takes for one.

        A value that was checked is not checked again, so that a step calls the factory once.
        """
        group = self.groups[place]
        found = _schedules.overriding(group)
        if found and not same(found, self._checked.get(place)):
            self.owner._factory(**self.owner._values(group))
            self._checked[place] = found
        _schedules.warn_of_schedulers(group, self.first + place, found)

    def _stepped(self, params: Sequence[Tensor]) -> list[Tensor | None]:
        """Those of the parameters that have state, each in its place."""
        return [p if self.owner.state.get(p) else None for p in params]

    def _fresh(self, stepped: Sequence[Tensor | None], spec: Any) -> tuple[Tree, Layout]:
        """A first state, without memory where possible, to read dtypes off; and its layout."""
        tx = self._transform(Said())
        fresh = without_memory(tx, stepped, spec)
        if fresh is None:
            fresh = with_memory(tx, stepped, spec)
        return fresh, Layout.of(fresh, spec, self._outline)

    def _complete(self, tx: GradientTransformation, params: list[Tensor], spec: Any) -> Layout:
        """Return where the state lies, and make what of it there is not yet.

        State is made for parameters that have a first gradient, and for all when a change of the
        hyperparameters switched a stage of the transform on.
        """
        state, outline, layout = self.owner.state, self._outline, self._layout
        new: list[Tensor | None]
        new = [p if p.grad is not None and not state.get(p) else None for p in params]
        if layout is None or (layout.outline, layout.params) != (outline, spec):
            used = [p if state.get(p) else q for p, q in zip(params, new, strict=True)]
            layout, shapes = None, None
            if not torch.compiler.is_compiling():
                shapes = without_memory(tx, used, spec)
            if shapes is None:
                new = used
            else:
                layout = Layout.of(shapes, spec, outline)
                new = layout.incomplete(pytree.flatten(shapes)[0], state, used)
        if layout is None or any(p is not None for p in new):
            fresh = with_memory(tx, new, spec)
            layout = Layout.of(fresh, spec, outline)
            layout.complete(pytree.flatten(fresh)[0], state, params, new)
        self._layout = layout
        return layout

    def _plan(
        self, tx: GradientTransformation, trees: tuple[Tree, Any, Tree], extra: dict[str, Any]
    ) -> Plan:
        """The step. What shares memory steps from the old values; the last stays."""
        return _step.plan(tx, *trees, donate=True, **extra)

    def _take(
        self, plan: Plan, layout: Layout, used: list[Tensor | None], before: Any, said: Said
    ) -> None:
        """Take the step, and put its results where they belong; ``before`` is the count."""
        new_params, new_state = plan()
        if not plan.in_place:
            for p, new in zip(used, pytree.flatten(new_params)[0], strict=True):
                if p is not None and new is not p:
                    p.copy_(new)
        # what autograd recorded is never written over; what a compiler traces stays in its place
        replace = self.owner.defaults.get("differentiable", False) or not context.traced()
        leaves = pytree.flatten(new_state)[0]
        layout.keep(leaves, self.owner.state, used, replace, plan.in_place)
        self.show(before, said)


def transform_in(tx: GradientTransformation) -> Transform | None:
    """The transform of a pair, where it is one of the library's."""
    return tx.update.transform if isinstance(tx.update, Update) else None


_owners: WeakValueDictionary[str, Owner] = WeakValueDictionary()
_numbers = count()


def known_as(owner: Owner) -> str:
    """Return a new name for an optimizer, which a compiler of any version takes for a constant."""
    name = f"optimizer {next(_numbers)}"
    _owners[name] = owner
    return name


@context.constant
def _lies(name: str, first: int, size: int) -> tuple[Any, ...] | None:
    """Where the state of some groups lies, for a compiler; None where the step is not for it."""
    with context.eager():
        owner = _owners[name]
        unit = Unit(owner, owner.param_groups[first : first + size], first)
        layout = unit.complete()
        if layout is None:
            return None
        names, shared = layout.columns
        entries = [x for p in unit._leaves()[0] if (x := owner.state.get(p))]
        together = (name for name, is_shared in zip(names, shared, strict=True) if is_shared)
        if not entries or any(x.get(n) is not entries[0].get(n) for n in together for x in entries):
            return None
        outline = operator.outline_of(layout.spec.unflatten([None] * layout.spec.num_leaves))
    return names, shared, outline, layout.counts[0].name if layout.counts else ""


def _nothing() -> None:
    """The step of parameters without gradients."""
