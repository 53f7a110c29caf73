"""Writes the golden files under src/test/resources/golden with the libraries pinned in requirements.txt.

    python generate.py                      everything
    python generate.py --only models        one part: models, toys, adapters, matching, format, configs, status
    python generate.py --only llama_basic   one or more cases by name
    python generate.py --check              writes to a temporary folder and compares it byte for byte with the tree
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parents[1] / "resources" / "golden"

# PEFT writes sets in hash order; the hub is never asked.
ENVIRONMENT = {"PYTHONHASHSEED": "0", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}


# Made by lora4j, or by scripts of their own, which need bitsandbytes.
ELSEWHERE = ("written_by_lora4j", "initmath", "quantization")


def parts() -> dict:
    import adapters
    import configs
    import defects
    import files
    import matching
    import models
    import status
    import toybases

    return {
        "models": (list(models.MODELS) + list(models.EDITED), models.generate),
        "toys": (list(toybases.NAMES), toybases.generate),
        "adapters": (list(adapters.CASES), adapters.generate),
        "defects": (list(defects.CASES), defects.generate),
        "matching": (["matching"], matching.generate),
        "format": (list(files.CASES), files.generate),
        "configs": (["configs"], configs.generate),
        "status": (["status"], status.generate),
    }


def prepare(target: Path) -> None:
    """One thread, deterministic kernels, and the target as the working directory: base models are found there."""
    import torch
    import transformers

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.utils.logging.set_verbosity_error()
    target.mkdir(parents=True, exist_ok=True)
    os.chdir(target)


def write(target: Path, only: list[str] | None) -> None:
    prepare(target)
    todo = parts()
    groups = {name.split("/")[0] for names, _ in todo.values() for name in names}
    known = set(todo) | groups | {Path(name).name for names, _ in todo.values() for name in names}
    unknown = set(only or ()) - known
    if unknown:
        sys.exit(f"--only: unknown {sorted(unknown)}; known: {sorted(known)}")
    for part, (names, generate) in todo.items():
        for name in names:
            if not only or part in only or name.split("/")[0] in only or Path(name).name in only:
                generate(name)
                print(f"{part}: {Path(name).name}", flush=True)
    write_versions()


def write_versions() -> None:
    import platform
    from importlib.metadata import version

    from common import write_json

    names = ("torch", "peft", "transformers", "safetensors", "numpy")
    write_json(Path("versions.json"), {n: version(n) for n in names} | {"python": platform.python_version()})


def check() -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), None)
        made = {p.relative_to(folder): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
    held = {p.relative_to(GOLDEN): p.read_bytes() for p in GOLDEN.rglob("*") if p.is_file()}
    held = {p: data for p, data in held.items() if p.parts[0] not in ELSEWHERE and p.parts[:2] != ("format", "layouts")}
    # The older form of torch.save names storages by their addresses.
    made, held = ({p: d for p, d in side.items() if not p.name.startswith("legacy_")} for side in (made, held))
    bad = sorted(p for p in made.keys() | held.keys() if made.get(p) != held.get(p))
    for path in bad:
        print("differs:" if path in made and path in held else "only in one:", path)
    print(f"{len(made)} files made, {len(bad)} differ")
    sys.exit(1 if bad else 0)


def fix_environment() -> None:
    """Starts this script again where the hash seed and the hub's settings are not the ones wanted."""
    if any(os.environ.get(k) != v for k, v in ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ENVIRONMENT)


def main() -> None:
    fix_environment()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    if arguments.check:
        check()
    else:
        write(GOLDEN, arguments.only)


if __name__ == "__main__":
    main()
