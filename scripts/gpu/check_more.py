"""Holds the CUDA kernels of lora4j.h that check.py does not know to the bits of the CPU's.

    check_more.py PATH/libjnilora4j.so [--small] [--device cuda]

Every operation runs on copies of the same random arguments, on the CPU and on the device; what they write must be equal
to the bit. The CPU kernels are held to their definitions and to double precision by ctest.
"""

import argparse
import ctypes
import random

import torch

import lora4j

TYPES = (torch.float32, torch.bfloat16, torch.float16)
i64 = ctypes.c_int64


class TaskTensor(ctypes.Structure):
    _fields_ = [("x", lora4j.Matrix), ("weight", ctypes.c_double), ("pruning", i64), ("kept", i64)]
    _fields_ += [("density", ctypes.c_double), ("rescale", i64), ("seed", ctypes.c_uint64), ("stream", ctypes.c_uint64)]


class Gradient(ctypes.Structure):
    _fields_ = [("a", lora4j.Matrix), ("b", lora4j.Matrix)]


class Quantized(ctypes.Structure):
    _fields_ = [("packed", ctypes.c_void_p), ("bits", i64), ("rows", i64), ("cols", i64), ("values", ctypes.c_void_p)]
    _fields_ += [("block_size", i64), ("scales", ctypes.c_void_p), ("scale_codes", ctypes.c_void_p)]
    _fields_ += [("scale_map", ctypes.c_void_p), ("scale_block", i64), ("offset", ctypes.c_double), ("reserved", i64)]


class Pool(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("pages", i64), ("page_size", i64), ("dtype", i64)]


class Side:
    """The library with everything on one device."""

    def __init__(self, library, device):
        self.c = library.c
        self.device = device
        self.place = ctypes.byref(lora4j.place(torch.empty(1, device=device)))

    def scratch(self, size):
        assert size >= 0, self.c.l4_last_error()
        return torch.empty(size, dtype=torch.uint8, device=self.device)

    def done(self, code):
        assert code == 0, self.c.l4_last_error().decode()
        if self.device != "cpu":
            torch.cuda.synchronize()


def matrix(rows, cols):
    """A random matrix on the CPU, of any type, with its rows apart, its columns apart, transposed or neither."""
    dtype, layout = random.choice(TYPES), random.randrange(4)
    if layout == 1:
        return torch.randn(rows, cols + 5).to(dtype)[:, 2 : 2 + cols]
    if layout == 2:
        return torch.randn(rows, 3 * cols + 1).to(dtype)[:, 1 : 1 + 3 * cols : 3]
    if layout == 3:
        return torch.randn(cols, rows).to(dtype).t()
    return torch.randn(rows, cols).to(dtype)


def like(tensor, device):
    """A copy of the same strides."""
    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    return copy.copy_(tensor)


def refs(*tensors):
    return [ctypes.byref(lora4j.matrix(t)) for t in tensors]


def combine(side, y, tensors, election):
    table = (TaskTensor * len(tensors))(*(TaskTensor(lora4j.matrix(t), *how) for t, how in tensors))
    scratch = side.scratch(side.c.l4_combine_scratch(i64(y.shape[0]), i64(y.shape[1]), side.place))
    address = ctypes.c_void_p(scratch.data_ptr())
    side.done(
        side.c.l4_combine(
            *refs(y), table, i64(len(tensors)), i64(election), address, i64(scratch.numel()), side.place
        )
    )


def check_combine(sides, shape):
    tensors = []
    for _ in range(random.randint(1, 4)):
        x = matrix(*shape)
        if random.random() < 0.4:
            x.copy_((x * 4).round() / 4)  # many equal magnitudes
        kept = random.choice((0, x.numel(), random.randint(0, x.numel())))
        how = (random.uniform(-2, 2), random.randrange(3), kept, random.random(), random.randrange(2))
        tensors.append((x, how + (random.getrandbits(64), random.getrandbits(64))))
    y, election = matrix(*shape), random.randrange(3)
    for side in sides:
        out = like(y, side.device)
        combine(side, out, [(like(t, side.device), how) for t, how in tensors], election)
        yield [out]


def check_backward(sides, shape):
    rows, width = shape
    out = random.choice((1, 7, 64, 130))
    adapters = [(matrix(r, width), matrix(out, r), random.uniform(-2, 2)) for r in random.sample((1, 3, 8, 16, 33), 2)]
    index = [random.randrange(-1, len(adapters)) for _ in range(rows)]
    dx, dy, x = matrix(rows, width), matrix(rows, out), matrix(rows, width)
    h = torch.randn(rows, 40) if random.random() < 0.5 else None
    gradients = [(matrix(*a.shape), matrix(*b.shape)) for a, b, _ in adapters]
    for side in sides:
        own = [(like(a, side.device), like(b, side.device), s) for a, b, s in adapters]
        table = (lora4j.LowRank * len(own))(*(lora4j.LowRank(lora4j.matrix(a), lora4j.matrix(b), s) for a, b, s in own))
        targets = [(like(a, side.device), like(b, side.device)) for a, b in gradients]
        list_of = (Gradient * len(own))(*(Gradient(lora4j.matrix(a), lora4j.matrix(b)) for a, b in targets))
        views = [like(m, side.device) for m in (dx, dy, x)]
        kept = None if h is None else like(h, side.device)
        scratch = side.scratch(side.c.l4_low_rank_backward_scratch(i64(width), i64(out), i64(33), side.place))
        side.done(
            side.c.l4_low_rank_backward(
                *refs(*views), None if kept is None else refs(kept)[0], (ctypes.c_int32 * rows)(*index), table, list_of,
                i64(len(own)), ctypes.c_void_p(scratch.data_ptr()), i64(scratch.numel()), side.place,
            )
        )
        yield views[:1] + [m for pair in targets for m in pair]


def check_norms(sides, shape):
    out, width = shape
    rank = random.choice((1, 5, 16, 64))
    w, a, b, norms = matrix(out, width), matrix(rank, width), matrix(out, rank), matrix(out, 1)
    for side in sides:
        own = [like(m, side.device) for m in (norms, w, a, b)]
        update = lora4j.LowRank(lora4j.matrix(own[2]), lora4j.matrix(own[3]), 0.7)
        scratch = side.scratch(max(16, side.c.l4_row_norms_scratch(i64(rank), side.place)))
        address = ctypes.c_void_p(scratch.data_ptr())
        size = i64(scratch.numel())
        side.done(side.c.l4_row_norms(*refs(own[0], own[1]), ctypes.byref(update), address, size, side.place))
        gram = torch.zeros(rank, out, dtype=torch.float64, device=side.device)
        side.done(side.c.l4_gram(ctypes.c_void_p(gram.data_ptr()), *refs(own[2], own[1]), side.place))
        yield [own[0], gram]


def check_dequantize(sides, shape):
    rows, cols = shape
    bits, nested = random.choice((4, 8)), random.random() < 0.5
    blocks = (rows * cols + 63) // 64
    packed = torch.randint(0, 256, (rows * cols,), dtype=torch.uint8)
    codes = torch.randint(0, 256, (blocks,), dtype=torch.uint8)
    values, scales, codebook = torch.randn(16), torch.randn(max(rows, blocks)), torch.randn(256)
    first = random.randrange(rows)
    w = matrix(rows - first, cols)
    for side in sides:
        at = [t.to(side.device) for t in (packed, scales, codes, codebook)]
        pointers = [t.data_ptr() for t in at]
        nest = pointers[2:] if nested and bits == 4 else [None, None]
        q = Quantized(pointers[0], bits, rows, cols, values.data_ptr(), 64, pointers[1], *nest, 256, 0.01, 0)
        out = like(w, side.device)
        side.done(side.c.l4_dequantize(*refs(out), ctypes.byref(q), i64(first), side.place))
        yield [out]


def check_pages(sides, shape):
    matrices = [matrix(random.randint(0, shape[0]), random.randint(1, shape[1])) for _ in range(4)]
    size = random.choice((3, 64, 1000))
    needed = (sum(m.numel() for m in matrices) + size - 1) // size
    pages = random.sample(range(needed + 3), needed)
    pool = torch.randn(needed + 3, size).to(random.choice(TYPES))
    for side in sides:
        own, buffer = [like(m, side.device) for m in matrices], pool.to(side.device)
        table = (lora4j.Matrix * 4)(*map(lora4j.matrix, own))
        view = Pool(buffer.data_ptr(), needed + 3, size, lora4j.DTYPES[pool.dtype])
        index = (ctypes.c_int32 * max(1, needed))(*pages)
        side.done(side.c.l4_scatter(ctypes.byref(view), index, i64(needed), table, i64(4), side.place))
        back = [torch.zeros_like(m) for m in own]
        table = (lora4j.Matrix * 4)(*map(lora4j.matrix, back))
        side.done(side.c.l4_gather(table, i64(4), ctypes.byref(view), index, i64(needed), side.place))
        yield [buffer] + back


CHECKS = {
    "combine": check_combine,
    "low_rank_backward": check_backward,
    "row_norms and gram": check_norms,
    "dequantize": check_dequantize,
    "scatter and gather": check_pages,
}


def bits(tensor):
    flat = torch.empty(tensor.numel(), dtype=tensor.dtype)
    return flat.copy_(tensor.reshape(-1)).view(torch.uint8)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("library")
    arguments.add_argument("--small", action="store_true", help="few and small cases, for compute-sanitizer")
    arguments.add_argument("--device", default="cuda")
    options = arguments.parse_args()
    library = lora4j.Library(options.library)
    for name in ("l4_combine_scratch", "l4_low_rank_backward_scratch", "l4_row_norms_scratch"):
        getattr(library.c, name).restype = i64
    sides = [Side(library, "cpu"), Side(library, options.device)]
    shapes = [(1, 1), (3, 5), (40, 33), (17, 130)] + ([] if options.small else [(300, 257), (700, 1024)])
    random.seed(1)
    torch.manual_seed(1)
    for name, check in CHECKS.items():
        count = 0
        for case in range(12 if options.small else 120):
            shape = shapes[case % len(shapes)]
            expected, got = check(sides, shape)
            for i, (left, right) in enumerate(zip(expected, got)):
                same = torch.equal(bits(left), bits(right))
                assert same, f"{name}, case {case}, shape {shape}: output {i} has other bits on {options.device}"
                count += 1
        print(f"{name}: {count} outputs, the same bits")


if __name__ == "__main__":
    main()
