"""Every operation on the GPU: near float64, the bits of the CPU kernels, streams, graphs, refusals.

python check.py LIBRARY VARIANT [--small]     exact, fast or plain; --small leaves out what is slow
"""

import itertools
import sys

import torch

from lora4j import Library, Refused, kernels

TYPES = [torch.float32, torch.bfloat16, torch.float16]
STEP = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
FAST = sys.argv[2] == "fast"
done = 0


def random(rng, *shape, dtype=torch.float32, layout="plain"):
    """Random numbers on the CPU; strided: every second column of a wider matrix; transposed: columns contiguous."""
    if layout == "strided":
        return (torch.randn(shape[0], 2 * shape[1] + 3, generator=rng).to(dtype))[:, 3::2]
    if layout == "transposed":
        return torch.randn(shape[1], shape[0], generator=rng).to(dtype).t()
    return torch.randn(*shape, generator=rng).to(dtype)


def gpu(t):
    """A copy on the GPU with the same strides."""
    copy = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda")
    return copy.copy_(t)


def ok(condition, message):
    global done
    done += 1
    if not condition:
        sys.exit(f"FAILED: {message}")


def near(actual, exact, size, steps, message):
    """Within some roundings of the type at the size of the numbers summed."""
    error = (actual.double() - exact).abs()
    ok(bool((error <= steps * STEP[actual.dtype] * size + 1e-30).all()), f"{message}: off by {error.max().item()}")


def check_merge(l4, small):
    shapes = [(1, 1), (3, 5), (17, 33), (64, 64), (65, 130)] + ([] if small else [(257, 1023), (1024, 512)])
    rng = torch.Generator().manual_seed(1)
    for (rows, cols), dtype, layout in itertools.product(shapes, TYPES, ("plain", "strided", "transposed")):
        for ranks in ([1], [4, 17], [16, 1, 7]) if small else ([1], [8], [64], [4, 17], [16, 1, 7]):
            w = random(rng, rows, cols, dtype=dtype, layout=layout)
            updates = []
            for i, r in enumerate(ranks):
                kind = TYPES[(i + rows) % 3]
                a = random(rng, r, cols, dtype=kind, layout=("plain", "strided", "transposed")[i % 3])
                b = random(rng, rows, r, dtype=TYPES[(i + cols) % 3], layout=("transposed", "plain")[i % 2])
                updates.append((a, b, 0.37 * (i + 1) * (-1) ** i))
            exact = w.double()
            size = exact.abs()
            for a, b, s in updates:
                exact = exact + s * (b.double() @ a.double())
                size = size + abs(s) * (b.double().abs() @ a.double().abs())
            on_gpu = gpu(w)
            on_cpu = torch.empty_strided(w.shape, w.stride(), dtype=w.dtype).copy_(w)
            l4.merge(on_gpu, [(gpu(a), gpu(b), s) for a, b, s in updates])
            torch.cuda.synchronize()
            l4.merge(on_cpu, updates)
            what = f"merge {rows}x{cols} {dtype} {layout} ranks {ranks}"
            steps = 8 * sum((r + 15) // 16 for r in ranks) if FAST else 4
            near(on_gpu.cpu(), exact, size, steps if dtype == torch.float32 else 1.1, what)
            if FAST:
                again = gpu(w)
                l4.merge(again, [(gpu(a), gpu(b), s) for a, b, s in updates])
                ok(bool(on_gpu.equal(again)), what + ": other bits the second time")
            else:
                ok(bool(on_gpu.cpu().equal(on_cpu)), what + ": not the CPU's bits")
    w = random(rng, 4, 4).cuda()
    before = w.clone()
    l4.merge(w, [])
    ok(w.equal(before), "no update changes nothing")
    l4.merge(torch.empty(0, 5, device="cuda"), [(torch.randn(2, 5).cuda(), torch.empty(0, 2).cuda(), 1.0)])


def bits(t):
    return t.contiguous().view({4: torch.int32, 2: torch.int16, 1: torch.int8}[t.element_size()])


def check_special_values(l4):
    """Infinities, every kind of NaN, subnormals, signed zeros and overflow: the bits of the CPU kernels."""
    values = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), -float("nan"), 1e-41, -1e-41, 3.4e38, 65519.0]
    values += [65520.0, 5.9e-8, 1e-20, -1e-30, 3e-39, 1.0]
    special = torch.tensor(values)
    rng = torch.Generator().manual_seed(5)
    for dtype, kind, count in itertools.product(TYPES, TYPES, (1, 2)):
        w = special.repeat(72, 9)[:, :136].contiguous().to(dtype)
        updates = []
        for _ in range(count):
            a, b = random(rng, 8, 136, dtype=kind), random(rng, 72, 8, dtype=kind)
            b[:, 0] = special.repeat(5)[:72].to(kind)
            a[1, 5:21] = special.to(kind)
            updates.append((a, b, 0.75))
        on_gpu = gpu(w)
        l4.merge(on_gpu, [(gpu(a), gpu(b), s) for a, b, s in updates])
        l4.merge(w, updates)
        ok(bits(on_gpu.cpu()).equal(bits(w)), f"merge of special values, {dtype}, factors {kind}: not the CPU's bits")
        a, b, s = updates[0]
        x = special.repeat(20, 9)[:, :136].contiguous().to(dtype)
        y = random(rng, 20, 72, dtype=dtype)
        x[3:] = random(rng, 17, 136, dtype=dtype)
        on_gpu = gpu(y)
        l4.low_rank_update(on_gpu, gpu(x), [0] * 20, [(gpu(a), gpu(b), s)])
        l4.low_rank_update(y, x, [0] * 20, [(a, b, s)])
        ok(bits(on_gpu.cpu()).equal(bits(y)), f"update of special values, {dtype}, factors {kind}: not the CPU's bits")


def check_checked(l4):
    """A merge from another matrix, and the flag for what is not finite, wherever it is."""
    rng = torch.Generator().manual_seed(6)
    for dtype, (rows, cols), count in itertools.product(TYPES, [(130, 264), (65, 131)], (0, 1, 2)):
        updates = [(random(rng, 16, cols).cuda(), random(rng, rows, 16).cuda(), 0.5) for _ in range(count)]
        source = random(rng, rows, cols, dtype=dtype).cuda()
        expected = source.clone()
        l4.merge(expected, updates)
        for spoilt in (None, (0, 0), (rows - 1, cols - 1), (63, 129)):
            given = source.clone()
            if spoilt:
                given[spoilt] = float("inf") if spoilt[0] else float("nan")
            kept = given.clone()
            w = torch.zeros_like(given)
            flag = torch.zeros(1, dtype=torch.int32, device="cuda")
            l4.merge_checked(w, given, updates, flag)
            what = f"checked merge {rows}x{cols} {dtype}, {count} updates, spoilt at {spoilt}"
            ok(flag.item() == (1 if spoilt else 0), what + ": flag")
            ok(bits(given).equal(bits(kept)), what + ": the source changed")
            if not spoilt:
                ok(w.equal(expected), what + ": not what merge gives")
            flag.fill_(7)
            l4.merge_checked(given, None, updates, flag)
            ok(flag.item() == (1 if spoilt else 7), what + ": flag in place")
            ok(bits(given).equal(bits(w)), what + ": in place")


def check_row_factors(l4, variant):
    """Rows multiplied before the rounding, and weights of bytes: the bits of the CPU kernels, or near them when fast."""
    rng = torch.Generator().manual_seed(8)
    shapes = [(130, 264), (65, 131), (72, 136)]
    for dtype, (rows, cols), layout, scaled in itertools.product(
        [*TYPES, torch.float8_e4m3fn], shapes, ("plain", "transposed"), (True, False)
    ):
        w = random(rng, rows, cols, dtype=dtype, layout=layout)
        updates = [(random(rng, r, cols), random(rng, rows, r), 0.25) for r in (16, 5)]
        factors = torch.rand(rows, generator=rng) + 0.5 if scaled else None
        on_gpu = gpu(w)
        flag = torch.zeros(1, dtype=torch.int32, device="cuda")
        on_device = [(gpu(a), gpu(b), s) for a, b, s in updates]
        l4.merge_checked(on_gpu, None, on_device, flag, row_factors=factors.cuda() if scaled else None)
        l4.merge_checked(w, None, updates, None, row_factors=factors)
        what = f"merge {rows}x{cols} {dtype} {layout}, factors {scaled}"
        if variant != "fast":
            ok(bits(on_gpu.cpu()).equal(bits(w)), what + ": not the CPU's bits")
        else:
            step = {4: 2**-18, 2: 2**-7, 1: 2**-3}[w.element_size()]
            apart = (on_gpu.cpu().double() - w.double()).abs()
            ok(bool((apart <= step * (w.double().abs() + 1)).all()), what + f": {apart.max()} from the exact merge")
        ok(flag.item() == 0, what + ": flag")


def check_update(l4, small):
    rng = torch.Generator().manual_seed(2)
    grid = [(1, 5, 3), (7, 33, 65), (20, 128, 48), (130, 1104, 264)]
    grid += [] if small else [(64, 1024, 1025), (600, 256, 96), (3, 4096, 4104)]
    for (count, width, out), dtype, layout in itertools.product(grid, TYPES, ("plain", "strided")):
        x = random(rng, count, width, dtype=dtype, layout=layout)
        y = random(rng, count, out, dtype=TYPES[(TYPES.index(dtype) + 1) % 3], layout=layout)
        adapters = []
        for i, r in enumerate([1, 16, 5, 64, 136] if not small else [1, 16, 72]):
            a = random(rng, r, width, dtype=TYPES[i % 3], layout=("plain", "transposed")[i % 2])
            b = random(rng, out, r, dtype=TYPES[(i + 1) % 3])
            adapters.append((a, b, 0.5 + i))
        rows = [int(v) for v in torch.randint(-1, len(adapters), (count,), generator=rng)]
        exact, size = y.double(), y.double().abs()
        for t, which in enumerate(rows):
            if which >= 0:
                a, b, s = (adapters[which][0].double(), adapters[which][1].double(), adapters[which][2])
                exact[t] += s * (b @ (a @ x[t].double()))
                size[t] += s * (b.abs() @ (a.abs() @ x[t].double().abs()))
        on_gpu, held = gpu(y), [(gpu(a), gpu(b), s) for a, b, s in adapters]
        xg = gpu(x)
        l4.low_rank_update(on_gpu, xg, rows, held)
        torch.cuda.synchronize()
        on_cpu = torch.empty_strided(y.shape, y.stride(), dtype=y.dtype).copy_(y)
        l4.low_rank_update(on_cpu, x, rows, adapters)
        what = f"update {count}x{width}->{out} {dtype} {layout}"
        near(on_gpu.cpu(), exact, size, 16 if on_gpu.dtype == torch.float32 else 1.5, what)
        ok(on_gpu.cpu().equal(on_cpu), what + ": not the CPU's bits")
        untouched = [t for t, which in enumerate(rows) if which < 0]
        ok(on_gpu.cpu()[untouched].equal(y[untouched]), what + ": a row of -1 changed")
        for t in range(0, count, max(1, count // 5)):
            alone = gpu(y)[t : t + 1]
            l4.low_rank_update(alone, xg[t : t + 1], rows[t : t + 1], held)
            ok(alone.cpu().equal(on_gpu.cpu()[t : t + 1]), what + ": a row's bits depend on the batch")


def check_streams(l4):
    rng = torch.Generator().manual_seed(3)
    stream = torch.cuda.Stream()
    w = random(rng, 512, 512).cuda()
    a, b = random(rng, 8, 512).cuda(), random(rng, 512, 8).cuda()
    expected = w.clone()
    l4.merge(expected, [(a, b, 0.5)])
    late = w.clone()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        late.mul_(2).div_(2)
        l4.merge(late, [(a, b, 0.5)])
    stream.synchronize()
    ok(late.equal(expected), "a merge on a stream of its own")
    captured = w.clone()
    table = l4.prepare([(a, b, 0.5)])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        l4.merge(captured, [(a, b, 0.5)], table)
    ok(captured.equal(w), "capturing runs nothing")
    graph.replay()
    torch.cuda.synchronize()
    ok(captured.equal(expected), "a captured merge")
    y, x = random(rng, 8, 512).cuda(), random(rng, 8, 512).cuda()
    wanted = y.clone()
    l4.low_rank_update(wanted, x, [0] * 8, [(a, b, 0.5)])
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        l4.low_rank_update(y, x, [0] * 8, [(a, b, 0.5)], table)
    graph.replay()
    torch.cuda.synchronize()
    ok(y.equal(wanted), "a captured update")


def check_refusals(l4):
    w = torch.ones(4, 6, device="cuda")
    a, b = torch.ones(2, 6, device="cuda"), torch.ones(4, 2, device="cuda")
    wrong = {
        "shape of a": [(torch.ones(2, 5, device="cuda"), b, 1.0)],
        "rank of b": [(a, torch.ones(4, 3, device="cuda"), 1.0)],
        "scale": [(a, b, float("nan"))],
        "overlap": [(w[:2], b, 1.0)],
    }
    for what, updates in wrong.items():
        try:
            l4.merge(w, updates)
            ok(False, f"merge takes a wrong {what}")
        except Refused as refused:
            ok(len(str(refused)) > 20, f"no message for a wrong {what}")
    for rows in ([0, 1, 0, 0], [0, -2, 0, 0]):
        try:
            l4.low_rank_update(torch.ones(4, 4, device="cuda"), w, rows, [(a, b, 1.0)])
            ok(False, f"update takes rows {rows}")
        except Refused:
            ok(True, "")
    torch.cuda.synchronize()
    ok(bool((w == 1).all()), "a refused call wrote")


def check_far(l4):
    """Elements beyond 2^31."""
    if torch.cuda.mem_get_info()[0] < 12 << 30:
        print("less than 12 GiB free: offsets beyond 2^31 are not checked")
        return
    rows, cols = 70_000, 32_768
    w = torch.empty(rows, cols, dtype=torch.bfloat16, device="cuda").fill_(1.5)
    a = torch.randn(2, cols, device="cuda")
    b = torch.randn(rows, 2, device="cuda")
    l4.merge(w, [(a, b, 0.25)])
    for at in (0, 65_535, 65_536, rows - 1):
        wanted = 1.5 + 0.25 * (b[at].double() @ a.double())
        near(w[at].cpu(), wanted.cpu(), wanted.abs().cpu() + 2, 1.1, f"row {at} of 2^31 elements")


def main():
    l4 = Library(sys.argv[1])
    small = "--small" in sys.argv
    print(l4.info(), "on", torch.cuda.get_device_name())
    with kernels(l4, sys.argv[2]):
        check_merge(l4, small)
        if not FAST:
            check_special_values(l4)
        check_checked(l4)
        check_row_factors(l4, sys.argv[2])
        check_update(l4, small)
        check_refusals(l4)
        if not small:
            check_streams(l4)
            check_far(l4)
    print(f"{sys.argv[2]}: {done} checks passed")


main()
