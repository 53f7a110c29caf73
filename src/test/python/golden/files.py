"""Writes files of torch.save and what torch.load(weights_only=True) makes of them, and adapters in the layouts of kohya's
scripts and of diffusers."""

import collections
import io
import os
import pickle
import zipfile
from pathlib import Path

import peft
import torch

from common import generator, load_base, normal, quiet, require, write_json, write_tensors

FOLDER = Path("format")


class Holder:
    """A class of its own, and one whose pickle runs a command."""

    def __init__(self, reduced=None):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced or (Holder, ())


def dtypes(rng) -> dict:
    tensors = {}
    for name in ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"):
        tensors[name] = normal(rng, (3, 5), 2.0).to(getattr(torch, name))
    for name in ("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64"):
        tensors[name] = torch.randint(0, 100, (7, 3), generator=rng).to(getattr(torch, name))
    tensors["bool"] = torch.randint(0, 2, (9,), generator=rng).bool()
    tensors["complex64"] = torch.complex(normal(rng, (2, 3), 1.0), normal(rng, (2, 3), 1.0))
    tensors["scalar"] = torch.tensor(2.5)
    tensors["empty"] = torch.empty(0, 4, dtype=torch.bfloat16)
    tensors["one"] = normal(rng, (1, 1, 1, 1), 1.0)
    return tensors


def views(rng) -> dict:
    whole = normal(rng, (6, 10), 1.0)
    half = normal(rng, (5, 3), 1.0).to(torch.bfloat16)
    return {
        "whole": whole,
        "again": whole,
        "rows": whole[2:5],
        "columns": whole[:, 3:7],
        "transposed": whole.t(),
        "steps": whole[::2, 1::3],
        "scalar": whole[3, 4],
        "expanded": whole[1:2].expand(4, 10),
        "none": whole[6:],
        "half": half,
        "half_transposed": half.t(),
        "permuted": normal(rng, (2, 3, 4), 1.0).to(torch.float64).permute(2, 0, 1),
        "complex": torch.complex(whole[:2], whole[2:4]).t(),
        "bytes": torch.arange(24, dtype=torch.uint8).reshape(4, 6).t(),
        "words": torch.arange(12, dtype=torch.int16).reshape(3, 4).t(),
        "eights": torch.arange(12, dtype=torch.float32).reshape(3, 4).t().to(torch.float8_e4m3fn),
        "channels_last": normal(rng, (2, 3, 2, 2), 1.0).to(memory_format=torch.channels_last),
    }


def module(rng) -> dict:
    """The state of a module as an OrderedDict with attributes, its values still Parameters."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5))
    for parameter in net.parameters():
        parameter.data = normal(rng, parameter.shape, 1.0)
    state = net.state_dict(keep_vars=True)
    require(isinstance(state, collections.OrderedDict) and state._metadata, "a state dict with attributes")
    return state


def typed(tensors: dict) -> dict:
    """Those whose storages have a type. PyTorch cannot load others from the older form, and of a big-endian file it
    leaves their bytes as they are."""
    storages = torch.storage._dtype_to_storage_type_map()
    return {name: tensor for name, tensor in tensors.items() if tensor.dtype in storages}


READ = {
    "dtypes": (dtypes, True),
    "views": (views, True),
    "module": (module, True),
    "nothing": (lambda rng: {}, True),
    "legacy_dtypes": (lambda rng: typed(dtypes(rng)), False),
    "legacy_views": (lambda rng: typed(views(rng)), False),
    "legacy_module": (module, False),
}


def saved(value, zipped: bool = True, **kwargs) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, _use_new_zipfile_serialization=zipped, **kwargs)
    return out.getvalue()


def big_endian(data: bytes, tensors: dict) -> bytes:
    """What a big-endian machine would save: every storage with the bytes of its elements reversed."""
    sizes = {"data/" + str(i): size for i, size in enumerate(storage_units(tensors))}
    source = zipfile.ZipFile(io.BytesIO(data))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as target:
        for info in source.infolist():
            content = source.read(info)
            name = info.filename.split("/", 1)[1]
            if name == "byteorder":
                content = b"big"
            if name in sizes:
                unit = sizes[name]
                content = b"".join(content[i : i + unit][::-1] for i in range(0, len(content), unit))
            target.writestr(zipfile.ZipInfo(info.filename), content)
    return out.getvalue()


def storage_units(tensors: dict) -> list[int]:
    """The bytes that are reversed together, of each storage in the order torch.save numbers them."""
    units = {}
    for tensor in tensors.values():
        unit = 4 if tensor.dtype == torch.complex64 else tensor.element_size()
        units.setdefault(tensor.untyped_storage()._cdata, unit)
    return list(units.values())


def refused() -> dict:
    torch.manual_seed(0)
    plain = {"w": torch.ones(2, 3)}
    attribute = torch.ones(2)
    attribute.note = 7
    with quiet():
        quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    script = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), script)
    return {
        "command": saved({"w": torch.ones(2), "x": Holder((os.system, ("echo lora4j-was-here > lora4j-was-here",)))}),
        "legacy_command": saved({"x": Holder((os.system, ("echo lora4j-was-here > lora4j-was-here",)))}, False),
        "evaluation": saved({"x": Holder((eval, ("1 + 1",)))}),
        "class": saved({"x": Holder()}),
        "nested": saved({"state_dict": plain, "epoch": 3}),
        "list": saved([torch.ones(2)]),
        "tensor": saved(torch.ones(2)),
        "number": saved({"w": torch.ones(2), "epoch": 3}),
        "text": saved({"w": "weights"}),
        "none": saved({"w": None}),
        "number_key": saved({3: torch.ones(2)}),
        "whole_module": saved(torch.nn.Linear(2, 2)),
        "sparse": saved({"w": torch.eye(3).to_sparse()}),
        "quantized": saved({"w": quantized}),
        "complex128": saved({"w": torch.ones(2, dtype=torch.complex128)}),
        "conjugated": saved({"w": torch.ones(2, dtype=torch.complex64).conj()}),
        "attribute": saved({"w": attribute}),
        "protocol4": saved(plain, pickle_protocol=4),
        "script": script.getvalue(),
        "pickle": pickle.dumps({"w": [1.0, 2.0]}, protocol=2),
        "text_file": b"version https://git-lfs.github.com/spec/v1\n",
    }


def torch_reads(data: bytes) -> bool:
    try:
        with quiet():
            torch.load(io.BytesIO(data), weights_only=True)
        return True
    except Exception:
        return False


def write_read(name: str) -> None:
    make, zipped = READ[name]
    tensors = make(generator("format/" + name))
    data = saved(tensors, zipped)
    write_pair(name, data, tensors)
    if name in ("dtypes", "views"):
        tensors = typed(tensors)
        write_pair("big_endian_" + name, big_endian(saved(tensors), tensors), tensors)


def write_pair(name: str, data: bytes, tensors: dict) -> None:
    (FOLDER / "bin").mkdir(parents=True, exist_ok=True)
    (FOLDER / "bin" / f"{name}.bin").write_bytes(data)
    loaded = torch.load(io.BytesIO(data), weights_only=True)
    require(all(same(loaded[k], v) for k, v in tensors.items()), f"{name} arrives as it was")
    write_tensors(FOLDER / "bin" / f"{name}.safetensors", {k: v.detach() for k, v in loaded.items()})


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    bits = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)


def write_refused(_: str) -> None:
    (FOLDER / "refused").mkdir(parents=True, exist_ok=True)
    rows = {}
    for name, data in refused().items():
        (FOLDER / "refused" / f"{name}.bin").write_bytes(data)
        rows[name] = torch_reads(data)
    require(not Path("lora4j-was-here").exists(), "a pickle ran")
    write_json(FOLDER / "refused" / "torch.json", rows)


def write_adapter(_: str) -> None:
    """An adapter of PEFT in the form it writes without safetensors, and the same with."""
    rng = generator("format/adapter")
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=["lin0", "lin1"], bias="all")
    model = peft.get_peft_model(load_base("toys/mlp.safetensors"), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name or name.endswith("bias"):
            parameter.data = normal(rng, parameter.shape, 0.3)
    with quiet():
        model.save_pretrained(FOLDER / "adapter_bin", safe_serialization=False)
        model.save_pretrained(FOLDER / "adapter_safetensors")
    for folder in ("adapter_bin", "adapter_safetensors"):
        (FOLDER / folder / "README.md").unlink()
    back = peft.PeftModel.from_pretrained(load_base("toys/mlp.safetensors"), FOLDER / "adapter_bin")
    x = normal(rng, (4, 10), 1.0)
    write_tensors(FOLDER / "adapter_bin_expected.safetensors", {"input": x, "output": back(x)})


CASES = {name: write_read for name in READ} | {"refused": write_refused, "adapter": write_adapter}


def generate(name: str) -> None:
    CASES[name](name)
