"""Whether the kernels of ``executor.py`` agree with the rule on the device they find themselves on.

They step a few thousand random elements of all magnitudes, special values among them, in whole
blocks and beside them. The bounds are those that ``executor.py`` states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product

import torch
from torch import Tensor

from ..._core import numerics
from .. import adamax_rule, bounded, rule
from ..adamax_rule import AdamaxLeaf
from .table import Common

_SPECIAL = (0.0, -0.0, 1e-45, 1e-30, 1e30, torch.inf, -torch.inf, torch.nan, 1.0, -1.0)


def holds(kind: Common, maximize: bool, step: Callable[[AdamaxLeaf], bool]) -> bool:
    """Whether ``step`` steps leaves of ``kind``, in place, as the rule does.

    Not if it raises, for want of a compiler for example. The numbers of ``kind`` do not matter.
    """
    try:
        with torch.no_grad(), _waiting(kind.device):
            for leaf in _trials(kind, maximize):
                old = leaf._replace(**{k: getattr(leaf, k).clone() for k in "pmut"})
                if not (step(leaf) and _near(old, leaf)):
                    return False
            return True
    except Exception:  # whatever it is, torch's own kernels are there
        return False


@contextmanager
def _waiting(device: torch.device) -> Iterator[None]:
    """Wait for the device, where that is made an error too."""
    if device.type != "cuda":
        yield
        return
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("default")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def _trials(kind: Common, maximize: bool) -> Iterator[AdamaxLeaf]:
    generator = torch.Generator("cpu").manual_seed(0)
    x, magnitude = torch.randn(2, 4, 3000, generator=generator, dtype=torch.float64, device="cpu")
    pairs = torch.tensor(list(product(_SPECIAL, _SPECIAL)), dtype=x.dtype, device="cpu")
    g, m = pairs.unbind(1)
    rows = torch.cat([x * 10 ** (4 * magnitude), torch.stack([m.flip(0), g, m, g.flip(0)])], 1)
    decay = 0.1 if kind.decays else 0.0
    for b1, count, start in ((0.9, 0.0, 0), (0.3, 7.0, 1)):  # the second is not aligned
        p, g, m, u = (
            x.to(kind.device, dtype, copy=True)[start:]
            for x, dtype in zip(rows, (kind.p, kind.g, kind.m, kind.m), strict=True)
        )
        at_t = "cpu" if kind.t is None else kind.device
        t = torch.tensor(count, dtype=kind.t or torch.float64, device=at_t)
        rate = None if kind.lr_type is None else t.new_full((), 0.01, dtype=kind.lr_type)
        lr = 0.01 if rate is None else rate
        rates = (lr, b1, 0.999, 1e-8, decay)
        yield AdamaxLeaf(p, g, m, u.abs(), t, *rates, None, maximize, kind.decays == 2)


def _near(old: AdamaxLeaf, new: AdamaxLeaf) -> bool:
    """Whether ``new`` is near what the rule makes of ``old``."""
    _, t, m, u = adamax_rule.step(old)
    terms = [old.g] if old.decoupled else [old.g, old.p.to(m.dtype) * old.weight_decay]
    update = bounded.quotient(new.m, adamax_rule.scale(old, t), new.u, None)
    if old.decoupled:
        update = rule.decayed(update, old.p, old.lr, old.weight_decay)
    return (
        torch.equal(new.t, t)
        and _within(1, new.m, m, old.m, *terms)
        and _within(1, new.u, u, old.u, *terms)
        and _within(2, new.p, numerics.add(old.p, update), old.p, update)
    )


def _within(ulp: int, x: Tensor, want: Tensor, *terms: Tensor) -> bool:
    """Whether ``x`` is ``want``, to some ulp of the largest of ``terms``."""
    sizes = torch.stack([y.double().abs().nan_to_num(0, 0, 0) for y in terms]).amax(0)
    bound = ulp * torch.finfo(x.dtype).eps * sizes.clamp_min(torch.finfo(x.dtype).tiny)
    same = (x == want) | (x.isnan() & want.isnan())
    return bool((same | ((x.double() - want.double()).abs() <= bound)).all())
