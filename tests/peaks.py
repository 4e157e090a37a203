"""The peak of the memory that a call takes."""

from __future__ import annotations

import gc
from collections.abc import Callable
from itertools import accumulate
from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak_of(run: Callable[[], Any]) -> int:
    """The peak of the memory that ``run`` takes from torch's allocator, in bytes."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    events = [x for x in record.profiler.kineto_results.events() if x.name() == "[memory]"]
    sizes = [x.nbytes() for x in sorted(events, key=lambda x: x.start_ns())]
    return max(accumulate(sizes), default=0)
