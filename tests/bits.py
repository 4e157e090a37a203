"""Fingerprints of results, to hold one commit against another bit for bit.

Run as ``python tests/bits.py FILE`` at the commit before to write the file, and after a change to
compare with it. What raises has its type and its message for a fingerprint.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optree
import torch
from recipes import RATES, RECIPES, adamax
from trees import DTYPES, grads_like, params, with_gaps

import functional_adamax as fa
from functional_adamax.compat import Adamax, Optimizer

STEPS = 3
MEMBERS = 3


def fingerprint(x: Any) -> str:
    """The bits of a tensor, with its dtype and its shape; the words of anything else."""
    if not isinstance(x, torch.Tensor):
        return repr(x)
    flat = x.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    data = bytes(flat.view(torch.uint8).tolist()) if flat.numel() else b""
    return hashlib.sha1(f"{x.dtype}{tuple(x.shape)}".encode() + data).hexdigest()[:16]


def prints(tree: Any) -> dict[str, str]:
    """The fingerprint of each leaf by its path."""
    paths, leaves, _ = optree.tree_flatten_with_path(tree, none_is_leaf=True)
    return {"/".join(map(str, p)): fingerprint(x) for p, x in zip(paths, leaves, strict=True)}


def gradients(tree: Any, step: int) -> Any:
    """Gradients of a step; in the second one some are missing."""
    grads = grads_like(tree)
    if step != 1:
        return grads
    leaves, spec = optree.tree_flatten(grads, none_is_leaf=True)
    return optree.tree_unflatten(spec, [None if i % 3 == 1 else g for i, g in enumerate(leaves)])


def pure(tx: Any, dtype: torch.dtype) -> Iterator[Any]:
    p = with_gaps(params(dtype))
    state = tx.init(p)
    for step in range(STEPS):
        updates, state = tx.update(gradients(p, step), state, p)
        p = fa.apply_updates(p, updates)
        yield updates, state, p


def whole(tx: Any, dtype: torch.dtype, donate: bool) -> Iterator[Any]:
    p = with_gaps(params(dtype))
    state = tx.init(p)
    for step in range(STEPS):
        p, state = fa.step(tx, gradients(p, step), state, p, donate=donate)
        yield optree.tree_map(torch.clone, (p, state))


def recorded(tx: Any, dtype: torch.dtype) -> Iterator[Any]:
    p = params(dtype)
    first = [x.requires_grad_() for x in optree.tree_leaves(p)]
    new, state = p, tx.init(p)
    for _ in range(STEPS):
        grads = optree.tree_map(lambda x: x * x.detach().abs() + 0.3, new)
        new, state = fa.step(tx, grads, state, new)
    yield new, state
    loss = sum((x.abs() ** 2).sum() for x in optree.tree_leaves(new))
    yield torch.autograd.grad(loss, first, allow_unused=True)


def batched(tx: Any, dtype: torch.dtype) -> Iterator[Any]:
    p = optree.tree_map(lambda x: torch.stack([x, 2 * x, -x]), params(dtype))
    state = torch.func.vmap(tx.init)(p)
    for _ in range(STEPS):
        grads = grads_like(p)
        p, state = torch.func.vmap(lambda g, s, q: fa.step(tx, g, s, q))(grads, state, p)
        yield p, state


def classic(make: Callable[[Any], Any], dtype: torch.dtype) -> Iterator[Any]:
    ps = [torch.nn.Parameter(x) for x in optree.tree_leaves(params(dtype))]
    optimizer = make([{"params": ps[:2]}, {"params": ps[2:]}])
    for step in range(STEPS):
        for p, g in zip(ps, gradients(ps, step), strict=True):
            p.grad = g
        optimizer.step()
        state = [dict(optimizer.state.get(p, {})) for p in ps]
        yield optree.tree_map(torch.clone, ([p.detach() for p in ps], state))


def compiled(tx: Any, dtype: torch.dtype) -> Iterator[Any]:
    torch._dynamo.reset()
    step = torch.compile(lambda g, s, p: fa.step(tx, g, s, p), fullgraph=True, backend="aot_eager")
    p = params(dtype)
    state = tx.init(p)
    for _ in range(STEPS):
        p, state = step(grads_like(p), state, p)
        yield p, state


def options() -> Iterator[tuple[str, dict[str, Any]]]:
    """Adamax with each combination of its options."""
    rates = {
        "number": 0.1,
        "tensor": torch.tensor(0.1, dtype=torch.float64),
        "schedule": fa.linear_schedule(0.1, 0.01, 3),
    }
    for (kind, lr), decay, make, maximize, dtype, floor in itertools.product(
        rates.items(),
        (0.0, 0.1),
        (fa.adamax, fa.adamaxw),
        (False, True),
        (None, torch.float32),
        (None, 1.0),
    ):
        name = f"{make.__name__}-{kind}-{decay}-{maximize}-{dtype}-{floor}"
        yield (
            name,
            {
                **RATES,
                "lr": lr,
                "weight_decay": decay,
                "make": make,
                "maximize": maximize,
                "state_dtype": dtype,
                "derivative_floor": floor,
            },
        )


def cases() -> Iterator[tuple[str, Callable[[], Iterator[Any]]]]:
    """Each case by its name."""
    transforms = {str(recipe): recipe.default for recipe in RECIPES}
    transforms |= {name: (lambda given=given: adamax(**given)) for name, given in options()}
    for (name, make), dtype in itertools.product(transforms.items(), DTYPES):
        ways: dict[str, Callable[[], Iterator[Any]]] = {
            "pure": lambda m=make, d=dtype: pure(m(), d),
            "step": lambda m=make, d=dtype: whole(m(), d, False),
            "donated": lambda m=make, d=dtype: whole(m(), d, True),
            "recorded": lambda m=make, d=dtype: recorded(m(), d),
            "batched": lambda m=make, d=dtype: batched(m(), d),
            "classic": lambda m=make, d=dtype: classic(lambda ps: Optimizer(ps, m()), d),
            "coupled": lambda m=make, d=dtype: classic(
                lambda ps: Optimizer(ps, m(), couple="all"), d
            ),
        }
        for way, case in ways.items():
            yield f"{name} {dtype} {way}", case
    for dtype, foreach, decay, maximize in itertools.product(
        DTYPES, (None, False, True), (0.0, 0.1), (False, True)
    ):
        yield (
            f"Adamax {dtype} {foreach} {decay} {maximize}",
            lambda d=dtype, f=foreach, w=decay, m=maximize: classic(
                lambda ps: Adamax(ps, 0.1, foreach=f, weight_decay=w, maximize=m), d
            ),
        )
    for name in ("adamax", "adamax-schedule", "adam", "chain-coupled"):
        for dtype in DTYPES[:3]:
            yield f"{name} {dtype} compiled", lambda m=transforms[name], d=dtype: compiled(m(), d)


def collected() -> dict[str, str]:
    """All fingerprints by the case, the step and the path."""
    found: dict[str, str] = {}
    for name, case in cases():
        torch.manual_seed(0)
        try:
            for step, result in enumerate(case()):
                found |= {f"{name} {step} {path}": x for path, x in prints(result).items()}
        except Exception as error:
            found[f"{name} error"] = f"{type(error).__name__}: {error}"[:300]
    return found


def main() -> int:
    torch.set_num_threads(2)
    path = Path(sys.argv[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collected()
    print(f"{len(found)} fingerprints, {sum(' error' in name for name in found)} of them of errors")
    if not path.exists():
        path.write_text(json.dumps(found, indent=0))
        return 0
    before = json.loads(path.read_text())
    names = sorted(found.keys() | before.keys())
    differing = [name for name in names if found.get(name) != before.get(name)]
    print(f"{len(differing)} differ from {path}")
    for name in differing[:40]:
        print(f"{name}: {before.get(name)} became {found.get(name)}")
    return bool(differing)


if __name__ == "__main__":
    sys.exit(main())
