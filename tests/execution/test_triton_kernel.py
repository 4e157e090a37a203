"""Triton's compiler makes the kernels, by IEEE."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tritons import DTYPES, INTERPRETED, SIZE

import functional_adamax as fa
from functional_adamax._execution.program import programs
from functional_adamax._execution.triton import kernel, source


def test_it_knows_whether_it_is_interpreted() -> None:
    assert kernel.is_interpreted() == INTERPRETED


METHODS = {
    "adamax": fa.adamax(weight_decay=0.1),
    "adamaxw": fa.adamaxw(),
    "amsgrad": fa.adam(amsgrad=True),
    "lion": fa.lion(weight_decay=0.1),
    "nadamax": fa.nadamax(),
    "nesterov": fa.sgd(0.1, momentum=0.9, nesterov=True),
    "rmsprop": fa.rmsprop(momentum=0.9, centered=True),
}


def kernels_of(tx: Any, dtype: str) -> Any:
    of_p, of_g, of_m = DTYPES[dtype]
    transform = tx.update.transform
    if any(x.name == "state_dtype" for x in dataclasses.fields(transform)):
        transform = dataclasses.replace(transform, state_dtype=of_m)
    params = [torch.zeros(3, dtype=of_p)]
    work = transform.work([torch.zeros(3, dtype=of_g)], transform.init(params), params)
    work.check()
    rates = programs.rates_of(work, 0)
    lowered = programs.lowered_for(work, 0, rates, add=True, checked=True)[1]
    assert not isinstance(lowered, str), lowered
    made = kernel.made(lowered)
    assert not isinstance(made, str), made
    return made


@pytest.mark.skipif(INTERPRETED, reason="needs Triton's compiler")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_it_compiles(
    method: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No GPU is needed for that. Division and roots are by IEEE, and denormal numbers stay."""
    from triton import compiler
    from triton.backends.compiler import GPUTarget

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    made = kernels_of(METHODS[method], dtype)
    places = {"table": "*i64", "blocks": "*i64", "scales": "*fp64", "n": "i32"}
    forms = [(made.count, {"leaves": kernel.LEAVES})]
    forms += [(made.step, {"counted": counted, "size": SIZE}) for counted in (False, True)]
    for function, constants in forms:
        types = places | dict.fromkeys(constants, "constexpr")
        signature = {name: types.get(name, "fp64") for name in function.arg_names}
        values = {(function.arg_names.index(name),): x for name, x in constants.items()}
        source = compiler.ASTSource(function, signature, values)
        target = GPUTarget("cuda", 80, 32)
        compiled = compiler.compile(source, target=target, options=kernel.OPTIONS)
        assert compiled.asm["cubin"]
        if function is made.step:
            assert "approx" not in compiled.asm["ptx"]
            assert "ftz" not in compiled.asm["ptx"]


@pytest.mark.parametrize("method", METHODS)
def test_kernels_are_made_once(method: str) -> None:
    assert kernels_of(METHODS[method], "float32") is kernels_of(METHODS[method], "float32")


def test_what_triton_cannot_make_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel.made.cache_clear()
    monkeypatch.delitem(source.INSTRUCTIONS, "LERP")
    with pytest.raises(AssertionError, match="Triton makes no kernel of it: 'LERP'"):
        kernels_of(fa.adamax(), "float32")
    kernel.made.cache_clear()


def test_types_are_named_as_triton_does() -> None:
    names = [str(kernel.named(dtype)) for dtype in (torch.float32, torch.bfloat16, torch.float64)]
    assert names == ["fp32", "bf16", "fp64"]
