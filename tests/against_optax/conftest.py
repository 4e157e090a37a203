"""optax computes in double precision here."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _float64() -> Any:
    jax = pytest.importorskip("jax", reason="jax is not installed")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)
