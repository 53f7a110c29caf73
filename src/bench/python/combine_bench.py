"""Times l4_combine beside PEFT's own functions on the same random tensors, in one run.

    combine_bench.py PATH/libjnilora4j.so [--size N] [--runs N]

Needs torch and peft. Threads are torch's. PEFT's functions run once, for they take seconds. Results are compared too: float32 results of both must be equal, except where
equal magnitudes are cut (PEFT's choice among them is open) and where masks are random.
"""

import argparse
import ctypes
import pathlib
import statistics
import sys
import time

import peft
import torch
from peft.utils import merge_utils

sys.path.insert(0, str(pathlib.Path(__file__).parents[3] / "scripts" / "gpu"))
import lora4j

ALL, LARGEST, RANDOM = 0, 1, 2
NONE, TOTAL, FREQUENCY = 0, 1, 2


class TaskTensor(ctypes.Structure):
    _fields_ = [("x", lora4j.Matrix), ("weight", ctypes.c_double), ("pruning", ctypes.c_int64), ("kept", ctypes.c_int64)]
    _fields_ += [("density", ctypes.c_double), ("rescale", ctypes.c_int64)]
    _fields_ += [("seed", ctypes.c_uint64), ("stream", ctypes.c_uint64)]


def combine(library, y, tensors, weights, pruning=ALL, density=1.0, election=NONE):
    kept = int(density * y.numel())
    table = (TaskTensor * len(tensors))(
        *(
            TaskTensor(lora4j.matrix(t), w, pruning, kept, density, 1, 7, i)
            for i, (t, w) in enumerate(zip(tensors, weights))
        )
    )
    out, place = lora4j.matrix(y), lora4j.Place(0, 0, None)
    code = library.c.l4_combine(
        ctypes.byref(out), table, ctypes.c_int64(len(tensors)), ctypes.c_int64(election), None, ctypes.c_int64(0),
        ctypes.byref(place),
    )
    if code:
        raise RuntimeError(library.c.l4_last_error().decode())
    return y


def timed(run):
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def seconds(run, runs):
    run()
    return statistics.median(timed(run)[0] for _ in range(runs))


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("library")
    arguments.add_argument("--size", type=int, default=4096)
    arguments.add_argument("--runs", type=int, default=5)
    options = arguments.parse_args()
    library = lora4j.Library(options.library)
    library.c.l4_set_threads(torch.get_num_threads())
    print(f"{library.info()}; peft {peft.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    torch.manual_seed(1)
    n = options.size
    weights = [0.7, -1.1]
    for dtype in (torch.float32, torch.bfloat16):
        tensors = [torch.randn(n, n).to(dtype) for _ in weights]
        y = torch.empty(n, n, dtype=dtype)
        scales = torch.tensor(weights).to(dtype)
        cases = {
            "linear": (lambda: merge_utils.task_arithmetic(tensors, scales), dict()),
            "magnitude_prune": (
                lambda: merge_utils.magnitude_prune(tensors, scales, 0.3),
                dict(pruning=LARGEST, density=0.3),
            ),
            "ties total": (
                lambda: merge_utils.ties(tensors, scales, 0.3, "total"),
                dict(pruning=LARGEST, density=0.3, election=TOTAL),
            ),
            "ties frequency": (
                lambda: merge_utils.ties(tensors, scales, 0.3, "frequency"),
                dict(pruning=LARGEST, density=0.3, election=FREQUENCY),
            ),
            "dare_linear": (lambda: merge_utils.dare_linear(tensors, scales, 0.3), dict(pruning=RANDOM, density=0.3)),
            "dare_ties": (
                lambda: merge_utils.dare_ties(tensors, scales, 0.3, "total"),
                dict(pruning=RANDOM, density=0.3, election=TOTAL),
            ),
        }
        copied = seconds(lambda: y.copy_(tensors[0]), options.runs)
        print(f"two tensors of {n}^2, {str(dtype)[6:]}; copy of one {copied * 1e3:.1f} ms")
        for name, (theirs, ours) in cases.items():
            own = seconds(lambda: combine(library, y, tensors, weights, **ours), options.runs)
            peer, result = timed(theirs)
            note = ""
            if dtype == torch.float32 and "dare" not in name:
                different = int((result != combine(library, y, tensors, weights, **ours)).sum())
                note = f"{different} of {y.numel()} elements differ"
            print(f"  {name:16} {own * 1e3:8.1f} ms   PEFT {peer * 1e3:9.1f} ms   {peer / own:6.1f} x   {note}")


if __name__ == "__main__":
    main()
