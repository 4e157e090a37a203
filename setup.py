"""The native kernel and the machine; without a compiler torch's operations do."""

from __future__ import annotations

import sysconfig
from glob import glob

from setuptools import Extension, setup

SOURCES = "functional_adamax/_execution/native"
STABLE = not sysconfig.get_config_var("Py_GIL_DISABLED")  # else there is no stable interface

extensions = [
    Extension(
        f"functional_adamax._execution.native.{name}",
        sources=[f"{SOURCES}/{source}"],
        depends=sorted(glob(f"{SOURCES}/*.h")),
        libraries=["m"],
        extra_compile_args=["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"],
        py_limited_api=True,
        optional=True,
    )
    for name, source in (("_native", "native.c"), ("_machine", "machine.c"))
]

setup(
    ext_modules=extensions if STABLE else [],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if STABLE else {},
)
