"""What every part of the generator shares: random numbers, files, and the base models on disk."""

import contextlib
import hashlib
import io
import json
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import toys


def generator(name: str) -> torch.Generator:
    """A random stream that depends on the name alone, so one case can be made again without the others."""
    digest = hashlib.sha256(name.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def normal(rng: torch.Generator, shape, std: float) -> torch.Tensor:
    return torch.randn(tuple(shape), generator=rng) * std


def token_ids(rng: torch.Generator, shape, vocab: int) -> torch.Tensor:
    return torch.randint(0, vocab, tuple(shape), generator=rng)


def write_json(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_table(path: Path, tables: dict) -> None:
    """Named lists of rows, one row to a line."""
    parts = []
    for name, rows in tables.items():
        parts.append(f"{json.dumps(name)}: [\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def read_json(path: Path):
    return json.loads(path.read_text())


def write_tensors(path: Path, tensors: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().clone().contiguous() for k, v in sorted(tensors.items())}, path)


def load_base(base: str, dtype: torch.dtype = torch.float32):
    """The base at a path in the golden folder (the working directory): `models/x` or `toys/x.safetensors`."""
    if base.startswith("toys/"):
        model = toys.TOYS[Path(base).stem]()
        model.load_state_dict(load_file(base))
        return model.to(dtype).eval()
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, attn_implementation="eager")
    return model.eval()


@torch.no_grad()
def run(model, tensor: torch.Tensor, **kwargs) -> torch.Tensor:
    """The logits of a language model, or the output of a toy."""
    if "input_ids" in toys.arguments(model):
        return model(input_ids=tensor, use_cache=False, **kwargs).logits
    return model(tensor, **kwargs)


def require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def largest_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.double() - b.double()).abs().max().item()


@contextlib.contextmanager
def quiet():
    """Hides the progress bars and warnings of the libraries; failures still raise."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
