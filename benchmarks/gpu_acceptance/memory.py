"""The peak memory of an update: what torch's allocator counts on a GPU; on CPU what its profiler sees."""

import gc
from collections.abc import Callable
from typing import Any

import torch


def live_bytes() -> int:
    """Bytes of all tensors on the CPU that Python can reach, each storage once."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def peak_bytes(action: Callable[[], Any]) -> int:
    """Most bytes on the CPU that `action` had allocated at a time, beyond those at its start."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        action()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def gpu_peak_bytes(action: Callable[[], Any]) -> int:
    """Most bytes of this process's tensors on its GPU while `action` runs, those that were there before included."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    action()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()
