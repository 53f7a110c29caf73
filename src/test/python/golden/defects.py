"""What PEFT computes where it is wrong, beside what is right: lora4j repeats the former only with a PeftCompat switch.

`defects/<case>` holds adapters as PEFT saved them, `case.json` (the base, its type, the names of the adapters, the
switch) and `expected.safetensors` with the input, `peft.<what>` and `correct.<what>`; README.md lists what.
"""

import shutil
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model

import toys
from common import generator, largest_difference, load_base, normal, quiet, require, run, token_ids
from common import write_json, write_tensors

MLP = {"r": 3, "lora_alpha": 5, "target_modules": ["lin0", "lin1"]}


def _made(base: str, dtype: str, configs: dict, folder: Path, rng):
    """Adapters with random factors, saved; a function that loads them into a new base."""
    names = list(configs)
    model = get_peft_model(load_base(base, getattr(torch, dtype)), LoraConfig(**configs[names[0]]), names[0])
    for name in names[1:]:
        model.add_adapter(name, LoraConfig(**configs[name]))
    with torch.no_grad():
        for key, parameter in sorted(model.named_parameters()):
            if "lora_" in key:
                parameter.copy_(normal(rng, parameter.shape, 0.3))
    model.save_pretrained(folder)
    for readme in [folder / "README.md", *(folder / name / "README.md" for name in names)]:
        readme.unlink(missing_ok=True)

    def load(**options):
        fresh = load_base(base, getattr(torch, dtype))
        loaded = PeftModel.from_pretrained(fresh, (folder / names[0]).as_posix(), names[0], **options)
        for name in names[1:]:
            loaded.load_adapter((folder / name).as_posix(), name, **options)
        return loaded.eval()

    return load


def _active(model, names):
    model.base_model.set_adapter(list(names))
    return model


def _write(folder: Path, base: str, dtype: str, configs: dict, switch: str | None, tensors: dict) -> None:
    write_tensors(folder / "expected.safetensors", tensors)
    about = {"name": folder.name, "base": base, "model": Path(base).stem, "dtype": dtype, "switch": switch}
    write_json(folder / "case.json", about | {"adapters": [{"name": n, "path": n} for n in configs]})


def _weights(model) -> dict:
    return {k: v for k, v in model.state_dict().items() if k.endswith("weight")}


def safe_merge(folder: Path, rng) -> None:
    """safe_merge rounds every update to bfloat16 before adding it."""
    configs = {"a": MLP, "b": MLP | {"r": 2}}
    load = _made("toys/mlp.safetensors", "bfloat16", configs, folder, rng)
    peft = _weights(_active(load(), configs).merge_and_unload(safe_merge=True))
    wide = load_base("toys/mlp.safetensors", torch.float32)
    exact = {k: v.clone() for k, v in _weights(wide.to(torch.bfloat16).to(torch.float32)).items()}
    model = load()
    for path in ("lin0", "lin1"):
        layer = getattr(model.base_model.model, path)
        for name in configs:
            exact[path + ".weight"] += layer.get_delta_weight(name).detach()
    tensors = {"peft." + k: v for k, v in peft.items()}
    tensors |= {"correct." + k: v.to(torch.bfloat16) for k, v in exact.items()}
    require(not peft["lin0.weight"].equal(tensors["correct.lin0.weight"]), "no double rounding")
    _write(folder, "toys/mlp.safetensors", "bfloat16", configs, "MERGE_ROUNDS_TWICE", tensors)


def partial_merge(folder: Path, rng) -> None:
    """With one of two active adapters merged, the other does not apply."""
    configs = {"a": MLP, "b": MLP | {"r": 2}}
    load = _made("toys/mlp.safetensors", "float32", configs, folder, rng)
    x = normal(rng, (4, 10), 1.0)
    model = _active(load(), configs)
    correct = run(model, x)
    model.merge_adapter(["a"])
    tensors = {"input": x, "peft.output": run(model, x), "correct.output": correct}
    _write(folder, "toys/mlp.safetensors", "float32", configs, "PARTIAL_MERGE_DROPS_OTHERS", tensors)


def padding(folder: Path, rng) -> None:
    """A convolution that pads by wrapping around; its adapter pads with zeros."""
    configs = {"a": {"r": 3, "lora_alpha": 5, "target_modules": ["conv2d"]}}
    load = _made("toys/conv2d_circular.safetensors", "float32", configs, folder, rng)
    x = normal(rng, (2, *toys.SAMPLES["conv2d_circular"]), 1.0)
    model = load()
    peft = run(model, x)
    correct = run(model.merge_and_unload(), x)
    require(largest_difference(peft, correct) > 0.1, "padding has no effect")
    tensors = {"input": x, "peft.output": peft, "correct.output": correct}
    _write(folder, "toys/conv2d_circular.safetensors", "float32", configs, "CONVOLUTION_IGNORES_OPTIONS", tensors)


def low_memory(folder: Path, rng) -> None:
    """Loading with low_cpu_mem_usage rounds float32 factors to the type of a bfloat16 base."""
    configs = {"a": MLP}
    load = _made("toys/mlp.safetensors", "bfloat16", configs, folder, rng)
    keys = [f"{path}.lora_{part}" for path in ("lin0", "lin1") for part in "AB"]

    def factors(model):
        layers = model.base_model.model
        return {k: getattr(getattr(layers, k[:4]), k[5:])["a"].weight for k in keys}

    tensors = {"peft." + k: v for k, v in factors(load(low_cpu_mem_usage=True)).items()}
    tensors |= {"correct." + k: v for k, v in factors(load()).items()}
    require(not tensors["peft.lin0.lora_A"].equal(tensors["correct.lin0.lora_A"]), "nothing is rounded")
    _write(folder, "toys/mlp.safetensors", "bfloat16", configs, "LOW_MEMORY_ROUNDS", tensors)


def tied(folder: Path, rng) -> None:
    """Merging into an embedding that the output layer shares changes the output layer too."""
    configs = {"a": {"r": 3, "lora_alpha": 5, "target_modules": ["embed_tokens"]}}
    load = _made("models/llama_tied", "float32", configs, folder, rng)
    ids = token_ids(rng, (2, 7), 53)
    model = load()
    correct = run(model, ids)
    peft = run(model.merge_and_unload(), ids)
    require(largest_difference(peft, correct) > 0.1, "merging keeps the output")
    tensors = {"input_ids": ids, "peft.logits": peft, "correct.logits": correct}
    _write(folder, "models/llama_tied", "float32", configs, None, tensors)


CASES = {"defects/" + f.__name__: f for f in (safe_merge, partial_merge, padding, low_memory, tied)}


def generate(name: str) -> None:
    """Writes the folder of that name under the working directory."""
    folder = Path(name)
    shutil.rmtree(folder, ignore_errors=True)
    with quiet():
        CASES[name](folder, generator(name))
