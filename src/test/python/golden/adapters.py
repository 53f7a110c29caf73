"""Adapters saved by PEFT, and what PEFT computes after loading them again.

`adapters/<case>` and `other_methods/<case>` hold `adapter/` as PEFT wrote it, `expected.safetensors` and `case.json`;
README.md lists the tensors.
"""

import shutil
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import MultiheadAttention
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file

import adapter_cases
import variant_cases
from adapter_cases import Case
from common import generator, largest_difference, load_base, normal, quiet, read_json, require, run, token_ids
from common import write_json, write_tensors
from toys import SAMPLES

CASES = {"adapters/" + n: c for n, c in adapter_cases.CASES.items()}
CASES |= variant_cases.CASES
CASES |= {"other_methods/" + n: c for n, c in adapter_cases.OTHER_METHODS.items()}

LENGTH = 9


def generate(name: str) -> None:
    """Writes the folder of that name under the working directory."""
    case = CASES[name]
    folder = Path(name)
    rng = generator(name)
    shutil.rmtree(folder, ignore_errors=True)
    with quiet():
        saved, made = _save(case, folder / "adapter", rng)
        inputs = _inputs(case, rng)
        expected, layers = _expect(name, case, folder, inputs, made)
        if case.merge:
            expected |= _merged(name, case, folder, inputs, expected)
        if case.gradients:
            expected |= _gradients(case, folder, inputs)
    write_tensors(folder / "expected.safetensors", expected)
    write_json(folder / "case.json", _describe(name, case, saved, expected, layers))


def _save(case: Case, folder: Path, rng) -> tuple[dict, object]:
    base = load_base(case.base, getattr(torch, case.saved_from or case.dtype))
    names = list(case.adapters)
    configs = {n: LoraConfig(**arguments) for n, arguments in case.adapters.items()}
    model = get_peft_model(base, configs[names[0]], names[0], autocast_adapter_dtype=case.autocast)
    for other in names[1:]:
        model.add_adapter(other, configs[other], autocast_adapter_dtype=case.autocast)
    _randomise(model, rng)
    model.eval()
    model.save_pretrained(folder, **case.save)
    paths = {n: "adapter" if n == "default" else "adapter/" + n for n in names}
    (folder / "README.md").unlink()
    for path in paths.values():
        own = folder.parent / path
        if case.edit:
            write_json(own / "adapter_config.json", case.edit(read_json(own / "adapter_config.json")))
    return paths, model


def _randomise(model, rng) -> None:
    """New values for all that an adapter holds, as training would leave them: lora_A and lora_B both non-zero."""
    with torch.no_grad():
        for key, parameter in sorted(model.named_parameters()):
            if "lora_" in key or "trainable_tokens_delta" in key:
                parameter.copy_(normal(rng, parameter.shape, 0.3))
                if "magnitude" in key:
                    parameter.abs_().add_(0.5)
            elif "modules_to_save" in key or (parameter.requires_grad and key.endswith("bias")):
                parameter.add_(normal(rng, parameter.shape, 0.3).to(parameter.dtype))


def _load(case: Case, folder: Path, trains: bool = False):
    base = load_base(case.base, getattr(torch, case.dtype))
    names = list(case.adapters)
    where = {n: folder / "adapter" / ("" if n == "default" else n) for n in names}
    model = PeftModel.from_pretrained(
        base, where[names[0]].as_posix(), adapter_name=names[0], autocast_adapter_dtype=case.autocast, is_trainable=trains
    )
    for other in names[1:]:
        model.load_adapter(where[other].as_posix(), other, autocast_adapter_dtype=case.autocast, is_trainable=trains)
    if case.active:
        model.base_model.set_adapter(list(case.active))
    if case.halve_output:
        for module in model.modules():
            if isinstance(module, MultiheadAttention):
                scaling = module.base_layer.out_proj.scaling
                scaling.update({name: value / 2 for name, value in scaling.items()})
    return model.eval()


def _inputs(case: Case, rng) -> torch.Tensor:
    if case.base.startswith("models/"):
        ids = token_ids(rng, (case.batch, LENGTH), 53)
        tokens = next(iter(case.adapters.values())).get("alora_invocation_tokens")
        if tokens:
            ids[0, 4 : 4 + len(tokens)] = torch.tensor(tokens)
        return ids
    toy = Path(case.base).stem
    if toy == "embconv":
        return token_ids(rng, (case.batch, *SAMPLES[toy]), 100)
    return normal(rng, (case.batch, *SAMPLES[toy]), 1.0).to(getattr(torch, case.dtype))


def _names(case: Case) -> tuple[str, str, str]:
    if case.base.startswith("models/"):
        return "input_ids", "base_logits", "logits"
    return "input", "base_output", "output"


def _expect(name: str, case: Case, folder: Path, inputs: torch.Tensor, made) -> tuple[dict, dict]:
    model = _load(case, folder)
    extra = {"adapter_names": list(case.rows)} if case.rows else {}
    adapted = run(model, inputs, **extra)
    base = run(load_base(case.base, getattr(torch, case.dtype)), inputs)
    _check_difference(name, case, base, adapted)
    if case.same_after_reload and case.saved_from is None:
        if case.active:
            made.base_model.set_adapter(list(case.active))
        difference = largest_difference(run(made, inputs, **extra), adapted)
        require(difference < 1e-6, f"{name}: the loaded adapter differs from the saved one by {difference}")
    layers = {adapter: _layers(model, adapter) for adapter in case.adapters}
    return dict(zip(_names(case), (inputs, base, adapted))), layers


def _check_difference(name: str, case: Case, base: torch.Tensor, adapted: torch.Tensor) -> None:
    """Each row moves away from the base model, and rows of `__base__` do not move at all."""
    for row in range(len(base)):
        difference = largest_difference(base[row], adapted[row])
        if case.rows and case.rows[row] == "__base__":
            require(difference < 1e-6, f"{name}: row {row} is the base's but differs by {difference}")
        elif "alora" not in name:
            require(difference > 1e-3, f"{name}: row {row} moves by {difference} only")


def _layers(model, adapter: str) -> dict:
    """Rank and scaling of every adapted layer, and the modules saved whole."""
    lora, whole = {}, []
    for path, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer) and adapter in module.scaling:
            lora[path] = {"r": module.r[adapter], "scaling": float(module.scaling[adapter])}
        elif isinstance(module, ModulesToSaveWrapper) and adapter in module.modules_to_save:
            whole.append(path)
    return {"layers": lora, "modules_to_save": whole}


def _merged(name: str, case: Case, folder: Path, inputs: torch.Tensor, expected: dict) -> dict:
    model = _load(case, folder).merge_and_unload(safe_merge=False)
    difference = largest_difference(run(model, inputs), expected[_names(case)[2]])
    limit = {"float32": 1e-4, "float16": 0.05, "bfloat16": 0.5}[case.dtype]
    require(difference < limit, f"{name}: merged differs from unmerged by {difference}")
    state = model.state_dict()
    return {"merged." + key: state[key] for key in case.merged}


def _gradients(case: Case, folder: Path, inputs: torch.Tensor) -> dict:
    """The gradients of the active adapters' factors, named `gradient.<adapter>.<key in its file>`."""
    model = _load(case, folder, trains=True)
    (model(inputs).float().square().sum() / 2).backward()
    found = {}
    for key, parameter in model.named_parameters():
        if "lora_" in key and parameter.grad is not None:
            start, adapter, end = key.rsplit(".", 2)
            found[f"gradient.{adapter}.{start}.{end}"] = parameter.grad
    require(len(found) > 0, "no factor has a gradient")
    return found


def _describe(name: str, case: Case, saved: dict, expected: dict, layers: dict) -> dict:
    files = {n: load_file(Path(name) / path / "adapter_model.safetensors") for n, path in saved.items()}
    return {
        "name": Path(name).name,
        "description": case.text,
        "model": Path(case.base).stem,
        "base": case.base,
        "dtype": case.dtype,
        "adapters": [
            {"name": n, "path": path, **layers[n], "keys": len(files[n])} for n, path in saved.items()
        ],
        "active": list(case.active or list(case.adapters)[:1]) if not case.rows else None,
        "rows": list(case.rows) if case.rows else None,
        "tensors": sorted(expected),
        "roundings": case.roundings if case.merged else None,
        "deviations": list(case.deviations),
    }
