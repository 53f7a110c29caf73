"""Runs PEFT and lora4j side by side on models and configurations neither was tested with, and prints where they differ.

    python parity.py FOLDER [--dtype float32|bfloat16|float16] [--work FOLDER] [--seed N]

FOLDER holds, at any depth, models in the transformers layout (folders with config.json and safetensors) and LoRA
configurations (other .json files with the fields of adapter_config.json). Every configuration is tried on every model:
PEFT makes an adapter, its tensors get random values, PEFT saves it and computes logits; lora4j loads it, computes the same
logits unmerged, switched off and merged, and saves it again; PEFT loads what lora4j saved. Where PEFT refuses, lora4j
must refuse, and the other way round. Exit status 1 if anything differs.

lora4j must be built: ./mvnw -DskipTests package
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
# Largest difference allowed, as a part of the largest logit. Half types round after every operation.
TOLERANCE = {"float32": 2e-5, "bfloat16": 12 / 256, "float16": 12 / 2048}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="float32", choices=list(TOLERANCE))
    parser.add_argument("--work", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    models, configs = find(arguments.folder.resolve())
    if not models or not configs:
        sys.exit(f"{arguments.folder}: {len(models)} models and {len(configs)} configurations; needs one of each at least")
    work = arguments.work or Path(tempfile.mkdtemp(prefix="parity"))
    jobs, ours = [], {}
    for model in models:
        for config in configs:
            name = f"{model.name}+{config.stem}"
            ours[name] = peft_side(model, config, work / name, arguments.dtype, arguments.seed)
            jobs.append(
                {
                    "model": str(model),
                    "adapter": str(work / name / "peft"),
                    "input": str(work / name / "input.safetensors"),
                    "dtype": arguments.dtype,
                    "out": str(work / name / "lora4j"),
                }
            )
    (work / "jobs.json").write_text(json.dumps(jobs))
    run_lora4j(work / "jobs.json")
    differing = 0
    for job, name in zip(jobs, ours):
        lines, differs = compare(job, Path(job["out"]), ours[name], arguments.dtype)
        differing += differs
        print(f"{'DIFFERS' if differs else 'same':8} {name}: {'; '.join(lines)}")
    print(f"{len(jobs)} pairs, {differing} differ (files in {work})")
    sys.exit(1 if differing else 0)


def find(folder: Path) -> tuple[list[Path], list[Path]]:
    models = sorted(p.parent for p in folder.rglob("config.json"))
    inside = set(models)
    configs = sorted(p for p in folder.rglob("*.json") if not inside & set(p.parents) and p.name != "config.json")
    return models, configs


@contextlib.contextmanager
def quiet():
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def load(model: Path, dtype: str):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype), attn_implementation="eager").eval()


def peft_side(model: Path, config: Path, out: Path, dtype: str, seed: int) -> dict:
    """Makes and saves an adapter; gives logits, or the error. What fails after saving is told apart: `merge_error`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    rng = torch.Generator().manual_seed(seed)
    fields = json.loads(config.read_text())
    with quiet():
        base = load(model, dtype)
        ids = torch.randint(0, base.config.vocab_size, (3, 11), generator=rng)
        tokens = fields.get("alora_invocation_tokens")
        if tokens:
            ids[1, 4 : 4 + len(tokens)] = torch.tensor(tokens)
        save_file({"input_ids": ids}, out / "input.safetensors")
        result = {"base": logits(base, ids)}
        try:
            adapted = get_peft_model(base, LoraConfig.from_peft_type(**({"peft_type": "LORA"} | fields)))
            randomise(adapted, rng)
            adapted.eval()
            result["adapted"] = logits(adapted, ids)
            with adapted.disable_adapter():
                result["disabled"] = logits(adapted, ids)
            adapted.save_pretrained(out / "peft")
        except Exception as error:
            # Still something for lora4j to refuse: the configuration alone.
            (out / "peft").mkdir(exist_ok=True)
            (out / "peft" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | fields))
            return {"error": f"{type(error).__name__}: {error}"}
        try:
            result["merged"] = logits(adapted.merge_and_unload(), ids)
        except Exception as error:
            result["merge_error"] = f"{type(error).__name__}: {error}"
    return result


def randomise(model, rng) -> None:
    """Random values for all that trains: factors of a size that moves the logits, the rest nudged."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=rng).to(parameter.dtype)
            if "lora_magnitude" in name:
                parameter.mul_(1 + 0.2 * noise)
            elif "lora_" in name:
                parameter.add_(noise * 0.1)
            elif "modules_to_save" in name or "trainable_tokens" in name or parameter.requires_grad:
                parameter.add_(noise * 0.02)


def logits(model, ids):
    import torch

    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits.float()


def run_lora4j(jobs: Path) -> None:
    classes = [ROOT / "target" / "test-classes", ROOT / "target" / "classes"]
    listed = ROOT / "target" / "classpath"
    if not listed.exists() or not all(p.is_dir() for p in classes):
        sys.exit(f"{ROOT} is not built: run ./mvnw -DskipTests package there first")
    path = ":".join([*map(str, classes), listed.read_text().strip()])
    java = os.path.join(os.environ["JAVA_HOME"], "bin", "java") if "JAVA_HOME" in os.environ else "java"
    options = ["-Dorg.bytedeco.javacpp.maxPhysicalBytes=0", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error"]
    subprocess.run([java, *options, "-cp", path, "org.lora4j.model.ParityRunner", str(jobs)], check=True)


def compare(job: dict, out: Path, theirs: dict, dtype: str) -> tuple[list[str], bool]:
    from safetensors.torch import load_file

    failed = (out / "error.txt").read_text() if (out / "error.txt").exists() else None
    if failed or "error" in theirs:
        both = bool(failed) and "error" in theirs
        return [f"PEFT: {theirs.get('error', 'accepts')}", f"lora4j: {failed or 'accepts'}"], not both
    lines, differs = [], False
    ours = load_file(out / "results.safetensors")

    def check(what, a, b):
        nonlocal differs
        largest = (a.float() - b.float()).abs().max().item() / b.float().abs().max().item()
        wrong = not largest <= TOLERANCE[dtype]
        differs |= wrong
        lines.append(f"{what} {largest:.1e}{' (!)' if wrong else ''}")

    check("base", ours["base"], theirs["base"])
    check("adapted", ours["adapted"], theirs["adapted"])
    moved = (theirs["adapted"] - theirs["base"]).abs().max().item()
    lines.append(f"moves {moved:.2g}")
    check("switched off", ours["disabled"], theirs["base" if residual(job) else "disabled"])
    refused = (out / "merge_error.txt").read_text() if (out / "merge_error.txt").exists() else None
    if "merged" in ours and "merged" in theirs:
        # Merged must be what the adapter gave unmerged; where PEFT's own merge is not, lora4j is held to that instead.
        own = (theirs["merged"] - theirs["adapted"]).abs().max().item() / theirs["adapted"].abs().max().item()
        if own <= max(1e-4, TOLERANCE[dtype]):
            check("merged", ours["merged"], theirs["merged"])
        else:
            lines.append(f"PEFT's merge is {own:.1e} off its own adapter")
            check("merged", ours["merged"], ours["adapted"])
    elif "merged" in ours or "merged" in theirs:
        lines.append(f"merge: PEFT {theirs.get('merge_error', 'merges')}, lora4j {refused or 'merges'}")
    else:
        lines.append("neither merges")
    saved = load_file(out / "saved" / "adapter_model.safetensors")
    wanted = load_file(Path(job["adapter"]) / "adapter_model.safetensors")
    for key in sorted(set(saved) | set(wanted)):
        if key not in saved and ("embed_tokens" in key or "lm_head" in key):
            continue  # PEFT repeats unchanged weights of adapted embeddings.
        if key not in saved or key not in wanted or not saved[key].float().equal(wanted[key].float()):
            differs = True
            lines.append(f"saved {key} differs (!)")
    check("loaded by PEFT", reload(job, out / "saved", dtype), theirs["adapted"])
    return lines, differs


def residual(job: dict) -> bool:
    """Whether PEFT leaves a changed base weight behind when it switches the adapter off."""
    init = json.loads((Path(job["adapter"]) / "adapter_config.json").read_text()).get("init_lora_weights")
    return isinstance(init, str) and init.startswith(("pissa", "olora", "corda", "loftq", "lora_ga"))


def reload(job: dict, folder: Path, dtype: str):
    from peft import PeftModel
    from safetensors.torch import load_file

    with quiet():
        model = PeftModel.from_pretrained(load(Path(job["model"]), dtype), folder).eval()
        return logits(model, load_file(job["input"])["input_ids"])


if __name__ == "__main__":
    main()
