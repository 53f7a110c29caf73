"""The C interface of lora4j.h on torch tensors."""

import contextlib
import ctypes
import os

import torch

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float8_e4m3fn: 3}


class Matrix(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p)] + [
        (n, ctypes.c_int64) for n in ("rows", "cols", "row_stride", "col_stride", "dtype")
    ]


class LowRank(ctypes.Structure):
    _fields_ = [("a", Matrix), ("b", Matrix), ("scale", ctypes.c_double)]


class Place(ctypes.Structure):
    _fields_ = [("device", ctypes.c_int64), ("ordinal", ctypes.c_int64), ("stream", ctypes.c_void_p)]


def matrix(t: torch.Tensor) -> Matrix:
    assert t.dim() == 2
    return Matrix(t.data_ptr(), t.shape[0], t.shape[1], t.stride(0), t.stride(1), DTYPES[t.dtype])


def place(t: torch.Tensor) -> Place:
    if not t.is_cuda:
        return Place(0, 0, None)
    return Place(1, t.device.index or 0, torch.cuda.current_stream(t.device).cuda_stream)


@contextlib.contextmanager
def kernels(library, variant):
    """Calls within use these CUDA kernels: exact, fast (merges only) or plain. The library reads the environment anew."""
    os.environ.pop("LORA4J_CUDA_PLAIN", None)
    if variant == "plain":
        os.environ["LORA4J_CUDA_PLAIN"] = "1"
    library.c.l4_set_merge(b"fast" if variant == "fast" else b"exact")
    try:
        yield
    finally:
        os.environ.pop("LORA4J_CUDA_PLAIN", None)
        library.c.l4_set_merge(None)


class Refused(Exception):
    """A call that gave an error code: the code and l4_last_error()."""


class Library:
    def __init__(self, path: str):
        self.c = ctypes.CDLL(path)
        for name in ("l4_build_info", "l4_cpu_isa", "l4_last_error", "l4_version"):
            getattr(self.c, name).restype = ctypes.c_char_p
        self.c.l4_merge.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_int64, ctypes.c_void_p]
        self.c.l4_merge_checked.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] + [ctypes.c_void_p] * 3
        self.c.l4_low_rank_update.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64, ctypes.c_void_p]

    def info(self) -> str:
        return self.c.l4_build_info().decode()

    def _done(self, code: int) -> None:
        if code:
            raise Refused(code, self.c.l4_last_error().decode())

    def prepare(self, updates):
        """An array of updates (a, b, scale); keep the tensors alive yourself."""
        return (LowRank * max(1, len(updates)))(*(LowRank(matrix(a), matrix(b), s) for a, b, s in updates))

    def merge(self, w, updates, table=None):
        table = table or self.prepare(updates)
        m, p = matrix(w), place(w)
        self._done(self.c.l4_merge(ctypes.byref(m), table, len(updates), ctypes.byref(p)))

    def merge_checked(self, w, source, updates, flag, table=None, row_factors=None):
        """source: a tensor like w, or None for w; flag: an int32 tensor on w's device, or None; row_factors: float32."""
        table = table or self.prepare(updates)
        m, p = matrix(w), place(w)
        f = ctypes.byref(matrix(source)) if source is not None else None
        to = flag.data_ptr() if flag is not None else None
        by = row_factors.data_ptr() if row_factors is not None else None
        self._done(self.c.l4_merge_checked(ctypes.byref(m), f, table, len(updates), by, to, ctypes.byref(p)))

    def low_rank_update(self, y, x, rows, adapters, table=None, index=None):
        table = table or self.prepare(adapters)
        index = index or (ctypes.c_int32 * max(1, len(rows)))(*rows)
        my, mx, p = matrix(y), matrix(x), place(y)
        self._done(
            self.c.l4_low_rank_update(ctypes.byref(my), ctypes.byref(mx), index, table, len(adapters), ctypes.byref(p))
        )
