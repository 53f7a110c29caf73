"""Loads adapters that lora4j has written with PEFT, and writes what PEFT computes with them.

    python check_lora4j.py FOLDER [CASE ...]

A case is a folder FOLDER/<case> with
  adapter/            adapter_config.json and adapter_model.safetensors as lora4j writes them
  input.safetensors   `input_ids` of a language model, or `input` of a toy
  case.json           {"model": "llama", "base": "models/llama"}: the base, a path in the golden folder;
                      "dtype" of the base if not float32; "autocast" false for adapters in the base's type
and, if lora4j's own result is there, lora4j.safetensors with `logits` or `output`: the largest difference is printed.

Writes peft.safetensors beside them: `logits` (or `output`), `base_logits` (or `base_output`), and `merged.<parameter>`
for every parameter of the base that a merge changes. A tensor in the file that PEFT has no place for, a place that
the file leaves empty, a wrong shape, a value that PEFT holds otherwise, or a key of adapter_config.json that PEFT does
not know is an error, and the exit status is 1.
"""

import argparse
import sys
from pathlib import Path

import generate


def main() -> None:
    generate.fix_environment()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("cases", nargs="*")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    cases = [folder / c for c in arguments.cases] or sorted(p.parent for p in folder.glob("*/case.json"))
    if not cases:
        sys.exit(f"{folder}: no folder in it has a case.json")
    generate.prepare(generate.GOLDEN)
    failed = 0
    for case in cases:
        try:
            print(f"{case.name}: {check(case)}", flush=True)
        except Exception as error:
            failed += 1
            print(f"{case.name}: FAILED: {type(error).__name__}: {error}", flush=True)
    print(f"{len(cases)} adapters, {failed} failed")
    sys.exit(1 if failed else 0)


def check(case: Path) -> str:
    """Writes <case>/peft.safetensors; returns a line of figures."""
    import torch
    from safetensors.torch import load_file

    from common import largest_difference, load_base, quiet, read_json, require, run, write_tensors

    about = read_json(case / "case.json")
    dtype = getattr(torch, about.get("dtype", "float32"))
    inputs = load_file(case / "input.safetensors")
    key = "input_ids" if "input_ids" in inputs else "input"
    name = "logits" if key == "input_ids" else "output"
    _require_known_keys(read_json(case / "adapter" / "adapter_config.json"))
    with quiet():
        model = _load(case / "adapter", load_base(about["base"], dtype), about.get("autocast", True))
        tensors = _require_whole(model, load_file(case / "adapter" / "adapter_model.safetensors"))
        adapted = run(model, inputs[key])
        fresh = load_base(about["base"], dtype)
        base = run(fresh, inputs[key])
        merged = _merge(model, fresh)
    expected = {name: adapted, "base_" + name: base} | merged
    write_tensors(case / "peft.safetensors", expected)
    moved = largest_difference(adapted, base)
    require(moved > 0, "the adapter changes nothing")
    line = f"{tensors} tensors, moves the base by {moved:.3g}"
    if (case / "lora4j.safetensors").exists():
        own = load_file(case / "lora4j.safetensors")[name]
        require(own.shape == adapted.shape, f"lora4j's {name} is {tuple(own.shape)}, PEFT's {tuple(adapted.shape)}")
        line += f", lora4j differs by {largest_difference(own, adapted):.3g}"
    return line


def _require_known_keys(config: dict) -> None:
    from dataclasses import fields

    from common import require
    from peft import LoraConfig

    unknown = sorted(config.keys() - {f.name for f in fields(LoraConfig) if f.name != "runtime_config"})
    require(not unknown, f"adapter_config.json: unknown keys {unknown}")


def _load(folder: Path, base, autocast: bool):
    from peft import PeftModel

    return PeftModel.from_pretrained(base, folder.as_posix(), autocast_adapter_dtype=autocast).eval()


def _require_whole(model, file: dict) -> int:
    """The file holds exactly the tensors PEFT would write for this model, and PEFT has taken their values."""
    from peft import get_peft_model_state_dict

    from common import require

    embeddings = any(k.endswith(".base_layer.weight") for k in file)
    held = get_peft_model_state_dict(model, save_embedding_layers=embeddings)
    missing, unexpected = sorted(held.keys() - file.keys()), sorted(file.keys() - held.keys())
    require(not missing and not unexpected, f"missing tensors {missing}, unexpected tensors {unexpected}")
    for key, value in file.items():
        require(value.shape == held[key].shape, f"{key}: {tuple(value.shape)}, PEFT wants {tuple(held[key].shape)}")
        require(bool((value.to(held[key].dtype) == held[key]).all()), f"{key}: PEFT holds other values")
    return len(file)


def _merge(model, fresh) -> dict:
    import torch

    if any(getattr(m, "groups", 1) > 1 for m in model.modules()):
        return {}
    before = fresh.state_dict()
    after = model.merge_and_unload().state_dict()
    return {"merged." + k: v for k, v in after.items() if not torch.equal(v, before[k])}


if __name__ == "__main__":
    main()
