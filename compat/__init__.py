"""The short name of ``functional_adamax.compat``: the same objects."""

from functional_adamax.compat import *  # noqa: F403
from functional_adamax.compat import __all__ as __all__
