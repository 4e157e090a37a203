"""Gradient noise: the generator against its published answers, its numbers against statistics."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.func import vmap
from trees import assert_equal, leaves, params

import functional_adamax as fa
from functional_adamax._transforms import noise as _noise

N = 200_000


def tensor(x: int) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.int64)


# Random123 1.14, kat_vectors: philox4x32 10
KNOWN = [  # counter, key, answer
    "00000000 00000000 00000000 00000000 00000000 00000000 6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    "ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff 408f276d 41c83b0e a20bc7c6 6d5451fd",
    "243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0 d16cfe09 94fdcceb 5001e420 24126ea1",
]


@pytest.mark.parametrize("line", KNOWN)
def test_the_generator_gives_its_known_answers(line: str) -> None:
    words = [tensor(int(word, 16)) for word in line.split()]
    assert _noise.philox(tuple(words[:4]), tuple(words[4:6])) == tuple(words[6:])


def test_products_of_words_are_exact() -> None:
    b = torch.randint(2**32, (1000,))
    for a in (0xFFFFFFFF, 0xD2511F53, 1):
        high, low = _noise._product(a, b)
        for x, h, w in zip(b.tolist(), high.tolist(), low.tolist(), strict=True):
            assert (h << 32) + w == a * x


def draw(n: int = N, key: int = 0, stream: int = 0, step: int = 0) -> torch.Tensor:
    return _noise.normals(n, tensor(key), stream, tensor(step))


@pytest.mark.parametrize(
    ("key", "stream", "step"), [(0, 0, 0), (12345, 7, 1000), (2**62, 1, 2**40)]
)
def test_the_numbers_are_normal(key: int, stream: int, step: int) -> None:
    z = draw(key=key, stream=stream, step=step)
    assert z.shape == (N,)
    assert z.isfinite().all()
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
        deviation = math.sqrt(math.prod(range(1, 2 * power, 2)) / N)
        assert abs(float((z**power).mean()) - moment) < 4.5 * deviation
    sorted_z = z.sort().values  # Kolmogorov-Smirnov
    distribution = 0.5 * (1 + torch.erf(sorted_z / math.sqrt(2)))
    steps = (torch.arange(N, dtype=z.dtype) + 0.5) / N
    assert float((distribution - steps).abs().max()) * math.sqrt(N) < 1.95


def test_the_numbers_are_independent() -> None:
    z = draw()
    others = [draw(key=1), draw(key=2**32), draw(stream=1), draw(step=1), draw(step=2**32)]
    others += [z.roll(lag) for lag in (1, 2, 3, 4)]
    for other in others:
        assert abs(float((z * other).mean())) < 4.5 / math.sqrt(N)
        assert abs(float(((z**2 - 1) * (other**2 - 1)).mean())) < 4.5 * 2 / math.sqrt(N)


def test_a_prefix_is_a_prefix() -> None:
    for n in range(10):
        assert torch.equal(draw(n), draw(12)[:n])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
def test_the_variance_decays(dtype: torch.dtype) -> None:
    tx = fa.add_noise(eta=0.3, gamma=0.55, seed=4)
    tree = torch.zeros(N // 4, 4, dtype=dtype)
    state = tx.init(tree)
    for t in range(4):
        noise, state = tx.update(tree, state)
        assert noise.dtype == dtype
        want = 0.3 / (1 + t) ** 0.55
        assert float(noise.abs().square().mean()) == pytest.approx(want, rel=0.02)
        if dtype.is_complex:
            assert float(noise.real.square().mean()) == pytest.approx(want / 2, rel=0.02)
            assert abs(float((noise.real * noise.imag).mean())) < 0.01
    late = state._replace(count=tensor(10**6))
    noise, _ = tx.update(tree, late)
    assert float(noise.abs().square().mean()) == pytest.approx(0.3 / 1e6**0.55, rel=0.02)


def test_it_is_the_formula() -> None:
    tx, g = fa.add_noise(eta=0.3, gamma=0.7, seed=9), torch.randn(5, dtype=torch.float64)
    state = fa.NoiseState(tensor(3), tensor(9))
    got, after = tx.update([g, g], state)
    for i in range(2):
        want = g + math.sqrt(0.3 / 4**0.7) * draw(5, 9, i, 3)
        torch.testing.assert_close(got[i], want, rtol=1e-14, atol=1e-14)
    assert_equal(after, fa.NoiseState(tensor(4), tensor(9)))


def test_leaves_steps_and_seeds_differ_and_seeds_repeat() -> None:
    tree = [torch.zeros(8), torch.zeros(8)]

    def run(seed: Any) -> list[torch.Tensor]:
        tx = fa.add_noise(1.0, 0.0, seed)
        first, state = tx.update(tree, tx.init(tree))
        second, _ = tx.update(tree, state)
        return [*first, *second]

    assert_equal(run(5), run(5))
    assert_equal(run(5), run(torch.tensor([5], dtype=torch.int32)))
    assert_equal(run(2**40 + 5), run(tensor(2**40 + 5)))
    all_noise = torch.stack([*run(5), *run(6), *run(2**32 + 5)])
    assert (torch.cdist(all_noise, all_noise) + torch.eye(12) > 0.1).all()


def test_members_have_the_noise_of_their_keys() -> None:
    tree, seeds = torch.zeros(100), torch.tensor([3, 4, 3])

    def once(seed: Any, p: Any) -> Any:
        tx = fa.add_noise(1.0, 0.5, seed)
        return tx.update(torch.zeros_like(p), tx.init(p))[0]

    got = vmap(once, in_dims=(0, None))(seeds, tree)
    for i, seed in enumerate((3, 4, 3)):
        assert torch.equal(got[i], once(seed, tree))
    assert torch.equal(got[0], got[2])
    assert not torch.equal(got[0], got[1])

    tx = fa.add_noise(1.0, 0.5)
    state = vmap(tx.init)(torch.zeros(3, 100))
    assert torch.equal(state.key, torch.zeros(3, dtype=torch.int64))
    again, _ = vmap(tx.update)(torch.zeros(3, 100), state._replace(key=seeds))
    assert torch.equal(again, got)


def test_compiled_code_draws_the_same_words_and_numbers() -> None:
    torch._dynamo.reset()
    counter = (torch.arange(1000), 3, tensor(17), tensor(0))
    key = (tensor(0x89ABCDEF), tensor(0x01234567))
    compiled = torch.compile(_noise.philox, fullgraph=True)
    assert_equal(compiled(counter, key), _noise.philox(counter, key))
    tx, tree = fa.add_noise(0.5, 0.55, seed=2), [torch.zeros(1000), torch.zeros(30, 5)]
    state, compiled_state = tx.init(tree), tx.init(tree)
    update = torch.compile(tx.update, fullgraph=True)
    for _ in range(3):
        want, state = tx.update(tree, state)
        got, compiled_state = update(tree, compiled_state)
        assert_equal((got, compiled_state), (want, state))


def test_a_missing_gradient_stays_and_changes_no_other() -> None:
    tx, tree = fa.add_noise(1.0, 0.55), params()
    state = tx.init(tree)
    full, _ = tx.update(tree, state)
    got, _ = tx.update({**tree, "layers": [(None, None), (None,)]}, state)
    assert torch.equal(got["w"], full["w"])
    assert leaves(got["layers"]) == [None] * 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_are_rounded_once(dtype: torch.dtype) -> None:
    tx, g = fa.add_noise(1.0, 0.0, seed=1), torch.randn(50).to(dtype)
    got, _ = tx.update(g, tx.init(g))
    assert torch.equal(got, (g.double() + draw(50, 1)).to(dtype))


def test_no_variance_is_no_noise() -> None:
    tx, g = fa.add_noise(0.0, 0.55), torch.randn(5)
    assert torch.equal(tx.update(g, tx.init(g))[0], g)


def test_each_leaf_may_have_a_variance_of_its_own() -> None:
    tx, g = fa.add_noise({"a": 0.0, "b": torch.tensor([1.0, 0.0])}, 0.55), torch.zeros(2)
    got, _ = tx.update({"a": g, "b": g}, tx.init({"a": g, "b": g}))
    assert torch.equal(got["a"], g)
    assert got["b"][0] != 0
    assert got["b"][1] == 0


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    tx = fa.add_noise(1.0, 0.55)
    tx.update(torch.zeros(3), tx.init(torch.zeros(3)))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_seed_tensor_is_copied() -> None:
    seed = tensor(3)
    assert fa.add_noise(1.0, 0.0, seed).init(torch.zeros(2)).key.data_ptr() != seed.data_ptr()


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"eta must be in \[0, inf\), got -1"):
        fa.add_noise(-1.0, 0.55)
    with pytest.raises(ValueError, match=r"gamma must be in \[0, inf\), got nan"):
        fa.add_noise(1.0, float("nan"))
    with pytest.raises(ValueError, match=r"seed must be in \[0, 2\^63\), got -1"):
        fa.add_noise(1.0, 0.55, -1)
    with pytest.raises(TypeError, match=r"seed must be an integer or an integer tensor, got 1.5"):
        fa.add_noise(1.0, 0.55, 1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"seed must be .* got a torch.float32 tensor"):
        fa.add_noise(1.0, 0.55, torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"seed must be .* got a torch.int64 tensor of shape \(2"):
        fa.add_noise(1.0, 0.55, torch.tensor([1, 2]))
    with pytest.raises(TypeError, match="must be the NoiseState that init returned, got tuple"):
        fa.add_noise(1.0, 0.55).update(torch.zeros(2), ())
    with pytest.raises(TypeError, match=r"updates\['w'\] must be a tensor or None, got float"):
        fa.add_noise(1.0, 0.55).update({"w": 1.0}, fa.NoiseState(tensor(0), tensor(0)))
