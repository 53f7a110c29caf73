"""Writes the golden safetensors files: every element type of torch, a scalar, empty tensors, names of all kinds.

    pip install torch==2.13.0 safetensors==0.8.0 numpy
    python make_safetensors.py ../../resources/golden/safetensors

The bytes of tensor number k are (37 i + 11 k + 5) mod 256, or that mod 2 for booleans; SafetensorsGoldenTest makes the
same tensors by this rule and expects the same file.
"""

import pathlib
import sys

import torch
from safetensors.torch import save_file

TENSORS = [
    ("bool", torch.bool, (3, 5)),
    ("u8", torch.uint8, (7,)),
    ("i8", torch.int8, (2, 3)),
    ("f8_e5m2", torch.float8_e5m2, (5,)),
    ("f8_e4m3", torch.float8_e4m3fn, (5, 1)),
    ("f8_e8m0", torch.float8_e8m0fnu, (3,)),
    ("f8_e4m3fnuz", torch.float8_e4m3fnuz, (1, 2)),
    ("f8_e5m2fnuz", torch.float8_e5m2fnuz, (2, 2)),
    ("f4", torch.float4_e2m1fn_x2, (3, 2)),
    ("i16", torch.int16, (3,)),
    ("u16", torch.uint16, (2,)),
    ("f16", torch.float16, (2, 2, 3)),
    ("bf16", torch.bfloat16, (9,)),
    ("i32", torch.int32, (1, 1)),
    ("u32", torch.uint32, (2,)),
    ("f32", torch.float32, (4, 3)),
    ("c64", torch.complex64, (2,)),
    ("f64", torch.float64, (3,)),
    ("i64", torch.int64, ()),
    ("u64", torch.uint64, (1,)),
    ("empty", torch.float32, (0, 4)),
    ("base_model.model.layers.0.q_proj.lora_A.weight", torch.float32, (1, 3)),
    ("base_model.model.layers.10.q_proj.lora_A.weight", torch.float32, (1, 3)),
    ('quote " backslash \\ tab \t bell \x07 delete \x7f', torch.float32, (1,)),
    ("\u00e4 \u4e2d \U0001f600 \ue000", torch.float32, (1,)),
    ("\ue000", torch.float32, (1,)),
    ("\U0001f600", torch.float32, (1,)),
]


def tensor(number, dtype, shape):
    elements = int(torch.Size(shape).numel())
    size = torch.empty(0, dtype=dtype).element_size()
    data = torch.tensor([(37 * i + 11 * number + 5) % 256 for i in range(elements * size)], dtype=torch.uint8)
    if dtype == torch.bool:
        data = data % 2
    return data.view(dtype).reshape(shape) if elements else torch.empty(shape, dtype=dtype)


def main(folder):
    tensors = {name: tensor(k, dtype, shape) for k, (name, dtype, shape) in enumerate(TENSORS)}
    save_file(tensors, folder / "all_types.safetensors", metadata={"format": "pt"})
    save_file({"w": tensor(0, torch.float32, (2, 3))}, folder / "no_metadata.safetensors")
    save_file({}, folder / "no_tensors.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
