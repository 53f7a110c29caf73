"""Times l4_row_norms, l4_gram, l4_dequantize and l4_scatter beside torch on the same random tensors, in one run.

    dense_bench.py PATH/libjnilora4j.so [--size N] [--runs N]

Row norms are compared with PEFT's own DoRA norm, copies and dequantizing with a copy of as many bytes as they write.
"""

import argparse
import ctypes
import pathlib
import statistics
import sys
import time

import peft
import torch
from peft.tuners.lora.dora import DoraLinearLayer

sys.path.insert(0, str(pathlib.Path(__file__).parents[3] / "scripts" / "gpu"))
import lora4j


class Quantized(ctypes.Structure):
    _fields_ = [("packed", ctypes.c_void_p)] + [(n, ctypes.c_int64) for n in ("bits", "rows", "cols")]
    _fields_ += [("values", ctypes.c_void_p), ("block_size", ctypes.c_int64)]
    _fields_ += [(n, ctypes.c_void_p) for n in ("scales", "scale_codes", "scale_map")]
    _fields_ += [("scale_block", ctypes.c_int64), ("offset", ctypes.c_double), ("reserved", ctypes.c_int64)]


class Pool(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p)] + [(n, ctypes.c_int64) for n in ("pages", "page_size", "dtype")]


def seconds(run, runs):
    run()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def show(name, own, other, peer):
    print(f"  {name:34} {own * 1e3:8.2f} ms   {other:12} {peer * 1e3:8.2f} ms   {peer / own:6.2f} x")


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("library")
    arguments.add_argument("--size", type=int, default=4096)
    arguments.add_argument("--runs", type=int, default=9)
    options = arguments.parse_args()
    library = lora4j.Library(options.library)
    c, runs, n = library.c, options.runs, options.size
    c.l4_set_threads(torch.get_num_threads())
    print(f"{library.info()}; peft {peft.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    torch.manual_seed(1)
    place = ctypes.byref(lora4j.Place(0, 0, None))
    i64 = ctypes.c_int64

    def done(code):
        assert code == 0, c.l4_last_error()

    dora = DoraLinearLayer(fan_in_fan_out=False)
    for dtype in (torch.float32, torch.bfloat16):
        w = torch.randn(n, n).to(dtype)
        for rank in (16, 64):
            a, b = torch.randn(rank, n).to(dtype), torch.randn(n, rank).to(dtype)
            norms = torch.empty(n, 1, dtype=dtype)
            views = lora4j.matrix(norms), lora4j.matrix(w)
            table = library.prepare([(a, b, 0.5)])
            own = seconds(lambda: done(c.l4_row_norms(*map(ctypes.byref, views), table, None, i64(0), place)), runs)
            peer = seconds(lambda: dora.get_weight_norm(w, b @ a, 0.5), runs)
            show(f"row norms {n}^2 {str(dtype)[6:]} r {rank}", own, "PEFT", peer)
    x = torch.randn(64, n)
    g = torch.empty(64, 64, dtype=torch.float64)
    view = lora4j.matrix(x)
    gram = lambda: done(c.l4_gram(ctypes.c_void_p(g.data_ptr()), ctypes.byref(view), ctypes.byref(view), place))
    show(f"gram (64, {n})", seconds(gram, runs), "torch f64", seconds(lambda: x.double() @ x.double().T, runs))
    out = torch.empty(n, n, dtype=torch.bfloat16)
    copied = seconds(lambda: out.copy_(w), runs)
    packed = torch.randint(0, 256, (n * n,), dtype=torch.uint8)
    values, scales = torch.randn(16), torch.randn(n * n // 64)
    view = lora4j.matrix(out)
    for bits in (4, 8):
        q = Quantized(packed.data_ptr(), bits, n, n, values.data_ptr(), 64, scales.data_ptr(), None, None, 0, 0.0, 0)
        own = seconds(lambda: done(c.l4_dequantize(ctypes.byref(view), ctypes.byref(q), i64(0), place)), runs)
        show(f"dequantize {bits} bits {n}^2 to bfloat16", own, "copy", copied)
    pool = torch.empty(1024, 16 * n, dtype=torch.bfloat16)
    factors = [torch.randn(16, n).to(torch.bfloat16) for _ in range(448)]
    table = (lora4j.Matrix * len(factors))(*map(lora4j.matrix, factors))
    pages = (ctypes.c_int32 * len(factors))(*torch.randperm(1024)[: len(factors)].tolist())
    whole = Pool(pool.data_ptr(), 1024, 16 * n, 1)
    size = i64(len(factors))
    own = seconds(lambda: done(c.l4_scatter(ctypes.byref(whole), pages, size, table, size, place)), runs)
    flat = torch.cat(factors)
    show("scatter 448 factors", own, "copy", seconds(lambda: pool[: len(factors)].view(-1).copy_(flat.view(-1)), runs))


if __name__ == "__main__":
    main()
