"""Times l4_low_rank_backward beside torch's matrix products on the same random tensors, in one run.

    backward_bench.py PATH/libjnilora4j.so [--rows T] [--width N] [--runs N]

torch computes dx, dA and dB with the products a LoRA linear's autograd uses; h = A x is kept from the forward pass in both,
and computed in the case "without h". Threads are torch's.
"""

import argparse
import ctypes
import pathlib
import statistics
import sys
import time

import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[3] / "scripts" / "gpu"))
import lora4j


class Gradient(ctypes.Structure):
    _fields_ = [("a", lora4j.Matrix), ("b", lora4j.Matrix)]


def seconds(run, runs):
    run()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("library")
    arguments.add_argument("--rows", type=int, default=2048)
    arguments.add_argument("--width", type=int, default=2048)
    arguments.add_argument("--runs", type=int, default=9)
    options = arguments.parse_args()
    library = lora4j.Library(options.library)
    library.c.l4_set_threads(torch.get_num_threads())
    print(f"{library.info()}; torch {torch.__version__}, {torch.get_num_threads()} threads")
    torch.manual_seed(1)
    t, n = options.rows, options.width
    scale = 2.0
    for dtype in (torch.float32, torch.bfloat16):
        for rank in (8, 16, 64):
            x, dy = torch.randn(t, n).to(dtype), torch.randn(t, n).to(dtype)
            a, b = (torch.randn(rank, n) / n**0.5).to(dtype), torch.randn(n, rank).to(dtype)
            h = x @ a.T
            dx, da, db = torch.zeros(t, n, dtype=dtype), torch.zeros_like(a), torch.zeros_like(b)
            table = library.prepare([(a, b, scale)])
            targets = Gradient(lora4j.matrix(da), lora4j.matrix(db))
            rows = (ctypes.c_int32 * t)(*([0] * t))
            place = lora4j.Place(0, 0, None)
            views = [lora4j.matrix(m) for m in (dx, dy, x, h)]

            def ours(kept):
                at = [ctypes.byref(v) for v in views]
                code = library.c.l4_low_rank_backward(
                    at[0], at[1], at[2], at[3] if kept else None, rows, table, ctypes.byref(targets), ctypes.c_int64(1),
                    None, ctypes.c_int64(0), ctypes.byref(place),
                )
                assert code == 0, library.c.l4_last_error()

            def theirs(kept):
                products = h if kept else x @ a.T
                u = dy @ b
                if dtype == torch.float32:
                    dx.addmm_(u, a, alpha=scale)
                    da.addmm_(u.T, x, alpha=scale)
                    db.addmm_(dy.T, products, alpha=scale)
                else:
                    dx.add_(u @ a, alpha=scale)
                    da.add_(u.T @ x, alpha=scale)
                    db.add_(dy.T @ products, alpha=scale)

            for kept in (True, False):
                own = seconds(lambda: ours(kept), options.runs)
                peer = seconds(lambda: theirs(kept), options.runs)
                flops = (8 if kept else 10) * t * n * rank
                print(
                    f"  {str(dtype)[6:]:9} r {rank:3} {'with h   ' if kept else 'without h'} {own * 1e3:7.2f} ms"
                    f" ({flops / own / 1e9:5.0f} GFLOP/s)   torch {peer * 1e3:7.2f} ms   {peer / own:5.2f} x"
                )


if __name__ == "__main__":
    main()
