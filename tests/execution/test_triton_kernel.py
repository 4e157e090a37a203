"""Triton's compiler makes the kernels, by IEEE."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tritons import DTYPES, INTERPRETED, SIZE

from functional_adamax._execution.triton import kernel


def test_it_knows_whether_it_is_interpreted() -> None:
    assert kernel.is_interpreted() == INTERPRETED


@pytest.mark.skipif(INTERPRETED, reason="needs Triton's compiler")
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_compiles(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is needed for that. Division is by IEEE, and denormal numbers stay."""
    from triton import compiler
    from triton.backends.compiler import GPUTarget

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    count, step = kernel.compiled()
    p, g, m = map(kernel.named, DTYPES[dtype])
    addresses = {"table": "*i64", "scales": "*fp64", "n": "i32"}
    of_step = dict.fromkeys(("scale", "decay", "w", "b2", "eps"), "fp64") | {"blocks": "*i64"}
    of_count = dict.fromkeys(("lr", "b1", "weight_decay"), "fp64")
    kinds = {"p_type": p, "g_type": g, "m_type": m, "size": SIZE}
    forms = [
        (step, of_step, kinds | {"decays": decays, "counted": decays != 0, "maximize": decays == 1})
        for decays in range(3)
    ]
    for lr_type, decoupled in ((None, False), (m, True)):
        kinds = {"t_type": m, "lr_type": lr_type, "decoupled": decoupled, "leaves": 128}
        forms.append((count, of_count, kinds))
    for function, numbers, constants in forms:
        types = addresses | numbers | dict.fromkeys(constants, "constexpr")
        signature = {name: types[name] for name in function.arg_names}
        places = {(function.arg_names.index(name),): x for name, x in constants.items()}
        source = compiler.ASTSource(function, signature, places)
        target = GPUTarget("cuda", 80, 32)
        made = compiler.compile(source, target=target, options=kernel.OPTIONS)
        assert made.asm["cubin"]
        if function is step:
            assert "approx" not in made.asm["ptx"]
            assert "ftz" not in made.asm["ptx"]


def test_types_are_named_as_triton_does() -> None:
    kernel.compiled()
    names = [str(kernel.named(dtype)) for dtype in (torch.float32, torch.bfloat16, torch.float64)]
    assert names == ["fp32", "bf16", "fp64"]
    assert kernel.named(None) is None
