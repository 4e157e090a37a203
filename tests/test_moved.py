"""Old modules are found by what pickles name, and hold nothing of their own."""

from __future__ import annotations

import importlib
import pickle
import sys
from importlib import util

import pytest

import functional_adamax as fa

OLD = {
    "_adam.Adam": "_methods.adam",
    "_method.Direction": "_methods.method",
    "_clip.Clip": "_transforms.clip",
    "_schedule.Scheduled": "_schedules.scheduled",
    "_schedules.Polynomial": "_schedules.formulas",
    "_join.Join": "_schedules.join",
    "_transform.Update": "_core.transform",
    "_variants.Cautious": "_transforms.cautious",
    "_variants.ScaleBySign": "_transforms.sign",
    "_variants.ScaleByAmsmax": "_methods.amsmax",
}


@pytest.mark.parametrize("old", OLD)
def test_what_an_old_module_had_is_what_the_new_one_has(old: str) -> None:
    module, _, name = old.partition(".")
    home = importlib.import_module(f"functional_adamax.{OLD[old]}")
    found = pickle.loads(f"cfunctional_adamax.{module}\n{name}\n.".encode())
    assert found is getattr(home, name)


def test_public_names_are_found_in_any_of_them() -> None:
    assert pickle.loads(b"cfunctional_adamax._pytree\nEmptyState\n.") is fa.EmptyState
    assert pickle.loads(b"cfunctional_adamax._adam\nadam\n.") is fa.adam


def test_what_was_never_there_is_not_there() -> None:
    with pytest.raises(AttributeError, match="Can't get attribute 'Nadam'"):
        pickle.loads(b"cfunctional_adamax._adam\nNadam\n.")
    for name in ("_nothing", "adam", "_methods.nothing", "_execution._adam"):
        assert util.find_spec(f"functional_adamax.{name}") is None
        assert f"functional_adamax.{name}" not in sys.modules
