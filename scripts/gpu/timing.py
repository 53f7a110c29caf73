"""Time on the device, without what Python needs to launch the work."""

import torch


def _median(values):
    return sorted(values)[len(values) // 2]


def _events(work):
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def device_ms(work, buffers=1, calls=24, repeats=7):
    """Milliseconds of a call, in a CUDA graph of many that is replayed. work(i) gets a turning index, so that buffers
    larger than the L2 cache in all are cold. Nothing in work may wait for the device."""
    calls = (calls + buffers - 1) // buffers * buffers
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for i in range(buffers if buffers > 2 else 2):
            work(i % buffers)
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(calls):
            work(i % buffers)
    graph.replay()
    torch.cuda.synchronize()
    ms = _median([_events(graph.replay) for _ in range(repeats)]) / calls
    del graph
    return ms


def kernels_ms(work, calls=4):
    """Milliseconds of a call's kernels and copies, added up by the profiler: for calls that wait for the device, which
    no graph can hold. None where the profiler sees no device."""
    work(0)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(calls):
            work(0)
        torch.cuda.synchronize()
    total = sum(e.time_range.elapsed_us() for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA)
    return total / 1000 / calls or None


def wall_ms(work, calls=4, repeats=3):
    """Milliseconds of a call as a caller sees it, launches included."""
    work(0)
    torch.cuda.synchronize()
    return _median([_events(lambda: [work(0) for _ in range(calls)]) for _ in range(repeats)]) / calls
