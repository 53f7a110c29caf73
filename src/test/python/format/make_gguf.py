"""Writes an adapter in PEFT's layout and the same as GGUF, with the gguf package: its names, its container.

    python make_gguf.py FOLDER [FILE_TO_CHECK]

With a file to check, compares it with the GGUF adapter instead, tensor by tensor as the package reads it. Needs numpy,
torch, safetensors and gguf 0.19. The order of the rows of queries and keys is that of llama.cpp's converters: the two
halves of each head in turn.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

HEADS, KEY_HEADS, HIDDEN, INNER, RANK, LAYERS = 4, 2, 24, 10, 3, 2
SIZES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN * KEY_HEADS // HEADS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}


def in_turn(rows, heads):
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def make(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "num_attention_heads": HEADS, "num_key_value_heads": KEY_HEADS})
    )
    torch.manual_seed(3)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    writer = gguf.GGUFWriter(folder / "adapter.gguf", "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 7.0)
    modules = [f"model.layers.{i}.{name}" for i in range(LAYERS) for name in SIZES] + ["lm_head"]
    factors = {}
    for module in modules:
        out, inside = SIZES.get(module.split(".", 3)[-1], (13, HIDDEN))
        kind = torch.float16 if "mlp" in module else torch.float32
        a, b = torch.randn(RANK, inside).to(kind), torch.randn(out, RANK).to(kind)
        factors[f"base_model.model.{module}.lora_A.weight"] = a
        factors[f"base_model.model.{module}.lora_B.weight"] = b
        heads = HEADS if module.endswith("q_proj") else KEY_HEADS if module.endswith("k_proj") else 0
        name = names.get_name(module) + ".weight"
        writer.add_tensor(name + ".lora_a", a.numpy())
        writer.add_tensor(name + ".lora_b", in_turn(b.numpy(), heads) if heads else b.numpy())
    save_file(factors, folder / "adapter_model.safetensors", {"format": "pt"})
    targets = sorted({module.split(".")[-1] for module in modules})
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 7, "target_modules": targets})
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check(folder, file):
    ours, theirs = ({t.name: t for t in gguf.GGUFReader(path).tensors} for path in (file, folder / "adapter.gguf"))
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].tensor_type == tensor.tensor_type and np.array_equal(ours[name].data, tensor.data), name
    fields, wanted = gguf.GGUFReader(file).fields, gguf.GGUFReader(folder / "adapter.gguf").fields
    for key in (k for k in wanted if not k.startswith("GGUF.")):
        assert fields[key].contents() == wanted[key].contents(), key
    print(f"{file}: {len(theirs)} tensors are those of the gguf package {gguf.__file__}")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        check(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        make(Path(sys.argv[1]))
