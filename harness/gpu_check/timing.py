"""How long the device was busy: the union of what the profiler saw on it, beside the wall time of the same work without
a profiler."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


class BusyTime(NamedTuple):
    """Milliseconds of one piece of work: the median wall time, and the time in which at least one of `n` kernels
    ran."""

    wall_ms: float
    busy_ms: float
    n: int

    @property
    def busy_share(self) -> float:
        return min(1.0, self.busy_ms / self.wall_ms)


def union(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of (start, end) spans."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def busy(work: Callable[[], Any], device: str, repeats: int) -> BusyTime:
    """Run `work` once unrecorded, `repeats` times on the clock, and once under the profiler, which slows the host and
    no kernel.

    On a CPU its operators stand in for kernels, which rehearses the way and measures nothing.
    """
    wait: Callable[[], Any] = torch.cuda.synchronize if device == "cuda" else lambda: None
    work()
    walls = []
    for _ in range(repeats):
        wait()
        began = time.perf_counter()
        work()
        wait()
        walls.append(1000 * (time.perf_counter() - began))
    activity, kind = (
        (ProfilerActivity.CUDA, DeviceType.CUDA) if device == "cuda" else (ProfilerActivity.CPU, DeviceType.CPU)
    )
    with profile(activities=[activity], acc_events=True) as seen:
        work()
        wait()
    spans = [(e.time_range.start, e.time_range.end) for e in seen.events() or () if e.device_type == kind]
    return BusyTime(statistics.median(walls), union(spans) / 1000, len(spans))


def bench_faults(result: Mapping[str, Any]) -> list[str]:
    """What is wrong with a result of `prunebench bench`: peaks that cannot be, caches that are not as the trace
    says."""
    said = []
    on_gpu = result["where"]["device_type"] == "cuda"
    for batch in result["batches"]:
        for row in batch["rows"]:
            label = f"{row['name']} {row['budget']}".strip() + f" at batch {batch['batch']}"
            least = result["weights_bytes"] + row["kv_bytes"]
            if on_gpu and not (row["peak_bytes"] or 0) > least:
                said.append(
                    f"{label}: expected a peak above weights and cache, {least} bytes, found {row['peak_bytes']}"
                )
            if row["kv_bytes"] != row["kv_bytes_closed_form"]:
                said.append(
                    f"{label}: the cache holds {row['kv_bytes']} bytes, the trace says {row['kv_bytes_closed_form']}"
                )
    return said
