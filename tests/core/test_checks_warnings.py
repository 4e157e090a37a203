"""What is warned of, and at which line."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch

import functional_adamax as fa
from functional_adamax._core import checks


def test_tied_tensors_are_reported_with_both_paths() -> None:
    shared = torch.ones(2)
    with pytest.warns(UserWarning, match=re.escape("params['a'] and params['b'][0] are the same")):
        fa.adamax().init({"a": shared, "b": [shared]})
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    module["b"].weight = module["a"].weight
    with pytest.warns(UserWarning, match="named_parameters"):
        fa.adamax().init(module.state_dict())
    fa.adamax().init(dict(module.named_parameters()))  # lists it once: no warning


def test_a_warning_is_at_the_line_of_the_user() -> None:
    with pytest.warns(UserWarning, match="rounds to zero") as caught:
        fa.adamax().init(torch.ones(2, dtype=torch.float16))
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("eps", "dtype", "state_dtype", "vanishes"),
    [
        (1e-8, torch.float16, None, True),
        (1e-8, torch.float16, torch.float32, False),
        (1e-8, torch.bfloat16, None, False),
        (1e-45, torch.float32, None, False),
        (0.0, torch.float16, None, False),
        ({"a": 1e-4, "b": 1e-9}, torch.float16, None, True),
        (torch.tensor(1e-8), torch.float16, None, False),
    ],
)
def test_an_eps_that_vanishes(eps: Any, dtype: Any, state_dtype: Any, vanishes: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        checks.warn_if_eps_vanishes(eps, [None, torch.ones(1, dtype=dtype)], state_dtype)
    assert len(caught) == vanishes
