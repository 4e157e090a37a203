"""The native kernel; without a compiler it is left out, and torch's operations do."""

from __future__ import annotations

import sysconfig
from glob import glob

from setuptools import Extension, setup

SOURCES = "functional_adamax/_execution/native"
STABLE = not sysconfig.get_config_var("Py_GIL_DISABLED")  # else there is no stable interface

kernel = Extension(
    "functional_adamax._execution.native._native",
    sources=[f"{SOURCES}/native.c"],
    depends=sorted(glob(f"{SOURCES}/*.h")),
    libraries=["m"],
    extra_compile_args=["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"],
    py_limited_api=True,
    optional=True,
)

setup(
    ext_modules=[kernel] if STABLE else [],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if STABLE else {},
)
