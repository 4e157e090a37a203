"""Gradient noise from a counter-based generator.

The random numbers are a function of a key, the number of the update, the number of the leaf
and the place in it (Philox, in int64 arithmetic that never overflows), so that the transform
is pure: the same state gives the same noise, under ``vmap`` each member has that of its key,
and compiled code draws the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._core import checks, hyper, numerics, pytree, sharded
from .._core.hyper import Hyperparameter
from .._core.node import public_node
from .._core.pytree import Tree
from .._core.transform import GradientTransformation, Transform

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


@public_node
class NoiseState(NamedTuple):
    """State of ``add_noise``."""

    count: Tensor  # type: ignore[assignment]  # (), int64: number of update calls so far
    key: Tensor  # (), int64: the seed


@dataclass(frozen=True, eq=False, repr=False)
class AddNoise(Transform):
    """Add Gaussian noise whose variance decays."""

    eta: Hyperparameter
    gamma: Hyperparameter
    seed: int | Tensor

    def init(self, params: Tree) -> NoiseState:
        count = pytree.count(params)
        if isinstance(self.seed, Tensor):
            return NoiseState(count, self.seed.reshape(()).to(count, copy=True))
        return NoiseState(count, torch.full_like(count, self.seed))

    def update(
        self, updates: Tree, state: NoiseState, params: Tree = None, **extra: Any
    ) -> tuple[Tree, NoiseState]:
        del params, extra
        checks.state(state, NoiseState)
        leaves, spec = pytree.flatten(updates)
        checks.gradients(spec, leaves, leaves, self.name, "updates")
        etas = hyper.per_leaf("eta", self.eta, updates, leaves)
        gammas = hyper.per_leaf("gamma", self.gamma, updates, leaves)
        new = [
            None if u is None else _noisy(u, state, i, eta, gamma)
            for i, (u, eta, gamma) in enumerate(zip(leaves, etas, gammas, strict=True))
        ]
        return pytree.unflatten(spec, new), NoiseState(state.count + 1, state.key)


def _noisy(u: Tensor, state: NoiseState, leaf: int, eta: Any, gamma: Any) -> Tensor:
    """``u`` plus noise: in double precision, rounded once; a complex variance in equal parts."""
    key, count = state.key.to(u.device), state.count.to(u.device)
    if u.is_complex():
        (parts,) = numerics.real_views(u)
        z = torch.view_as_complex(_normals_like(parts, key, leaf, count)) * 0.5**0.5
    else:
        z = _normals_like(u, key, leaf, count)
    time = (count + 1).to(z.real.dtype)
    deviation = numerics.cast(eta, time) ** 0.5 * time ** (-numerics.cast(gamma, time) / 2)
    noisy: Tensor = u + deviation * z
    return noisy.to(u.dtype)


def _normals_like(x: Tensor, key: Tensor, leaf: int, count: Tensor) -> Tensor:
    """Standard normal numbers in the form of ``x``; of a DTensor only those that lie here."""
    if not sharded.is_sharded(x):
        return normals(x.numel(), key, leaf, count).reshape(x.shape)
    index = sharded.positions(x)
    fours = _fours(index // 4, key, leaf, count)
    return sharded.from_shard(fours.gather(-1, (index % 4).unsqueeze(-1)).squeeze(-1), x)


def normals(n: int, key: Tensor, stream: int, step: Tensor) -> Tensor:
    """``n`` standard normal numbers, by Box and Muller's transform of 32-bit uniform ones.

    ``key`` and ``step`` are 0-d int64 tensors; no number is larger than 6.8.
    """
    block = torch.arange((n + 3) // 4, device=key.device)
    return _fours(block, key, stream, step).reshape(-1)[:n]


def _fours(block: Tensor, key: Tensor, stream: int, step: Tensor) -> Tensor:
    """The four numbers of each block, in a last dimension."""
    words = philox((block, stream, step & _WORD, step >> 32), (key & _WORD, (key >> 32) & _WORD))
    dtype = numerics.step_dtype(key.device)
    a, b, c, d = ((word.to(dtype) + 0.5) * 2.0**-32 for word in words)
    r, s = (-2 * a.log()).sqrt(), (-2 * c.log()).sqrt()
    b, d = 2 * math.pi * b, 2 * math.pi * d
    return torch.stack([r * b.cos(), r * b.sin(), s * d.cos(), s * d.sin()], -1)


def philox(counter: tuple[Any, Any, Any, Any], key: tuple[Any, Any]) -> tuple[Any, Any, Any, Any]:
    """Philox-4x32-10: four words from a counter of four and a key of two, in int64 tensors.

    Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3.
    """
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(_ROUNDS):
        high0, low0 = _product(_MULTIPLIERS[0], c0)
        high2, low2 = _product(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high2 ^ c1 ^ k0, low2, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def _product(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """The high and the low word of ``a * b``, from two products of less than 49 bits."""
    low = (a & 0xFFFF) * b
    middle = (a >> 16) * b + (low >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)


def add_noise(
    eta: Hyperparameter, gamma: Hyperparameter, seed: int | Tensor = 0
) -> GradientTransformation:
    """Add Gaussian noise to the updates, less and less of it.

        update <- update + N(0, eta / (1 + t)^gamma),  t = 0 at the first update

    The noise depends on the state alone: the same seed gives the same noise, eager, compiled
    and under ``vmap``; two stages with one seed add equal noise. Ensemble members with noise of
    their own are made by ``init`` with a seed each, or by ``state._replace(key=...)``.

    Args:
        eta: the first variance, a number in [0, inf), a tensor, or a tree of them. The variance
            of a complex element is shared equally by its two components.
        gamma: how fast the variance decays, in the same form; the paper's is 0.55.
        seed: an integer in [0, 2^63), or an integer tensor of shape () or (1,), which ``vmap``
            may batch; it is read by ``init`` only. Default: 0.

    Returns:
        A transform with the state ``NoiseState(count, key)``.

    Raises:
        ValueError: a number is out of range.
        TypeError: ``seed`` is not an integer.

    Example:
        >>> tx = add_noise(eta=0.01, gamma=0.55, seed=1)
        >>> state = tx.init(torch.zeros(2))
        >>> first, after = tx.update(torch.zeros(2), state)
        >>> again, _ = tx.update(torch.zeros(2), state)
        >>> second, _ = tx.update(torch.zeros(2), after)
        >>> torch.equal(first, again), torch.equal(first, second)
        (True, False)

    Source: Neelakantan et al. 2015 (arXiv 1511.06807), equation 1.
    """
    hyper.check("eta", eta)
    hyper.check("gamma", gamma)
    if isinstance(seed, Tensor):
        floating = seed.is_floating_point() or seed.is_complex() or seed.dtype == torch.bool
        if floating or seed.shape not in ((), (1,)):
            kind = TypeError if floating else ValueError
            raise kind(
                "seed must be an integer or an integer tensor of shape () or (1,), "
                f"got {checks.describe(seed)}"
            )
    elif not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"seed must be an integer or an integer tensor, got {seed!r}")
    elif not 0 <= seed < 2**63:
        raise ValueError(f"seed must be in [0, 2^63), got {seed}")
    return AddNoise(eta, gamma, seed).pair()
