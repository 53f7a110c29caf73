"""Adapters combined by PEFT's `add_weighted_adapter`.

`combine/sources/<setup>/<name>` holds adapters as PEFT saved them, `combine/<type>_<setup>_<variant>` a combination:
`case.json` (sources, weights, options, rank, the PeftCompat switches that give PEFT's numbers) and
`expected.safetensors`:

| tensor | meaning |
|---|---|
| `delta.<module>` | scaling times B A of the new adapter, as a matrix (out, in) |
| `mask.<module>.<what>.<i>` | uint8, which elements of adapter i DARE kept: of A, of B, or of the update (out, in) |
| `magnitude.<module>`, `bias.<module>` | the other parts of the new adapter |

Singular vectors get their signs from the largest element of each row of Vh, so that `svd_clamp` does not depend on the
library's.
"""

import contextlib
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer

from common import generator, load_base, normal, quiet, require, write_json, write_tensors

FACTORS = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
TYPES = (*FACTORS, "cat", "svd", "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd")
SOURCES = "combine/sources"


def _mlp(**extra):
    return {"target_modules": ["lin0"]} | extra


SETUPS = {
    "mlp": ("mlp", {"a": _mlp(r=4, lora_alpha=6), "b": _mlp(r=4, lora_alpha=3)}),
    "three": ("mlp", {"a": _mlp(r=4, lora_alpha=6), "b": _mlp(r=4, lora_alpha=3), "c": _mlp(r=4, lora_alpha=5)}),
    "mixed": ("mlp", {"a": _mlp(r=2, lora_alpha=3), "b": _mlp(r=5, lora_alpha=4)}),
    "hf": ("hfmlp", {n: {"r": 3, "lora_alpha": a, "target_modules": ["c_fc", "c_proj"]} for n, a in (("a", 5), ("b", 2))}),
    "conv": ("conv2d", {n: {"r": 3, "lora_alpha": a, "target_modules": ["conv2d"]} for n, a in (("a", 5), ("b", 2))}),
    "emb": ("embconv", {n: {"r": 3, "lora_alpha": a, "target_modules": ["emb"]} for n, a in (("a", 5), ("b", 2))}),
    "patterns": (
        "mlp",
        {
            n: {"r": 4, "lora_alpha": a, "target_modules": ["lin0", "lin1"], "rank_pattern": {"lin1": 2},
                "alpha_pattern": {"lin0": 7}}
            for n, a in (("a", 5), ("b", 3))
        },
    ),
    "targets": (
        "mlp",
        {"a": {"r": 2, "lora_alpha": 3, "target_modules": ["lin0"]},
         "b": {"r": 2, "lora_alpha": 5, "target_modules": ["lin0", "lin1"]}},
    ),
    "rslora": ("mlp", {n: _mlp(r=4, lora_alpha=a, use_rslora=True) for n, a in (("a", 6), ("b", 3))}),
    "dora": ("mlp", {n: _mlp(r=4, lora_alpha=a, use_dora=True) for n, a in (("a", 6), ("b", 3))}),
    "bias": ("mlp", {n: _mlp(r=4, lora_alpha=a, lora_bias=True) for n, a in (("a", 6), ("b", 3))}),
}

WEIGHTS = {"plus": [0.7, 0.4], "minus": [1.1, -0.6]}


def _cases() -> dict:
    cases = {}

    def add(kind, setup, variant, weights, density=None, **extra):
        options = dict(extra)
        if kind.removesuffix("_svd") not in ("svd", "linear", "cat"):
            options["density"] = density
        cases[f"combine/{kind}_{setup}_{variant}"] = (kind, setup, weights, options)

    for kind in TYPES:
        add(kind, "mlp", "plus", WEIGHTS["plus"], 0.5)
        add(kind, "mlp", "minus", WEIGHTS["minus"], 0.3, majority_sign_method="frequency")
        add(kind, "hf", "minus", WEIGHTS["minus"], 0.6)
        add(kind, "conv", "plus", WEIGHTS["plus"], 0.4)
        add(kind, "emb", "minus", WEIGHTS["minus"], 0.7)
        add(kind, "three", "minus", [0.5, -0.3, 0.8], 0.8)
        if kind not in FACTORS:
            add(kind, "mixed", "minus", WEIGHTS["minus"], 0.5)
    for kind in ("cat", "linear", "ties", "dare_linear"):
        add(kind, "patterns", "minus", WEIGHTS["minus"], 0.5)
        add(kind, "targets", "plus", WEIGHTS["plus"], 0.5)
    for kind in ("cat", "linear", "svd", "ties_svd"):
        add(kind, "rslora", "plus", WEIGHTS["plus"], 0.5)
        add(kind, "dora", "plus", WEIGHTS["plus"], 0.5)
        add(kind, "bias", "minus", WEIGHTS["minus"], 0.5)
    add("svd", "mlp", "clamp", WEIGHTS["plus"], svd_clamp=0.9)
    add("ties_svd", "conv", "clamp", WEIGHTS["minus"], 0.5, svd_clamp=0.8, svd_rank=5)
    add("svd", "mlp", "rank", WEIGHTS["minus"], svd_rank=2)
    add("svd", "hf", "rank", WEIGHTS["plus"], svd_rank=6)
    add("ties_svd", "mlp", "whole", WEIGHTS["plus"], 1.0, svd_rank=7)
    add("magnitude_prune_svd", "emb", "rank", WEIGHTS["plus"], 0.25, svd_rank=5)
    return cases


CASES = _cases()
NAMES = [SOURCES, *CASES]


def generate(name: str) -> None:
    """Writes the folder of that name under the working directory."""
    shutil.rmtree(name, ignore_errors=True)
    with quiet():
        if name == SOURCES:
            for setup in SETUPS:
                _sources(setup)
        else:
            _combination(name)


def _sources(setup: str) -> None:
    base, configs = SETUPS[setup]
    rng = generator("combine/" + setup)
    for name, arguments in configs.items():
        model = get_peft_model(load_base(f"toys/{base}.safetensors"), LoraConfig(**arguments))
        with torch.no_grad():
            for key, parameter in sorted(model.named_parameters()):
                if "magnitude" in key:
                    parameter.mul_(1 + 0.3 * normal(rng, parameter.shape, 1.0).clamp(-2, 2))
                elif "lora_" in key:
                    parameter.copy_(normal(rng, parameter.shape, 0.3))
        folder = Path(SOURCES) / setup / name
        model.save_pretrained(folder)
        (folder / "README.md").unlink()


def _load(setup: str):
    base, configs = SETUPS[setup]
    model = None
    for name in configs:
        path = (Path(SOURCES) / setup / name).as_posix()
        if model is None:
            model = PeftModel.from_pretrained(load_base(f"toys/{base}.safetensors"), path, name)
        else:
            model.load_adapter(path, name)
    return model


def _combination(name: str) -> None:
    kind, setup, weights, options = CASES[name]
    torch.manual_seed(int(torch.randint(0, 2**31, (1,), generator=generator(name))))
    model = _load(setup)
    names = list(SETUPS[setup][1])
    layers = {m: p for p, m in model.get_base_model().named_modules() if isinstance(m, LoraLayer)}
    with _masks(model, layers, names) as tensors, _signed():
        model.add_weighted_adapter(names, weights, "sum", combination_type=kind, **options)
    for layer, path in layers.items():
        if "sum" in layer.scaling:
            tensors["delta." + path] = _delta(layer)
            bias = layer.lora_B["sum"].bias if "sum" in layer.lora_B else None
            if bias is not None:
                tensors["bias." + path] = bias
            if "sum" in layer.lora_magnitude_vector:
                tensors["magnitude." + path] = layer.lora_magnitude_vector["sum"].weight
    require(all(t.float().isfinite().all() for t in tensors.values()), name + ": not finite")
    folder = Path(name)
    write_tensors(folder / "expected.safetensors", tensors)
    base = SETUPS[setup][0]
    about = {
        "name": folder.name, "base": f"toys/{base}.safetensors", "model": base, "dtype": "float32", "type": kind,
        "adapters": [{"name": n, "path": f"../sources/{setup}/{n}"} for n in names],
        "weights": weights, "options": options, "r": model.peft_config["sum"].r, "switches": _switches(kind, setup),
    }
    write_json(folder / "case.json", about)


def _switches(kind: str, setup: str) -> list:
    switches = []
    if kind in FACTORS:
        switches.append("COMBINES_FACTORS")
    if "ties" in kind:
        switches.append("ELECTION_IGNORES_WEIGHTS")
    if setup == "rslora":
        switches.append("COMBINATION_KEEPS_RSLORA")
    if setup in ("dora", "bias"):
        switches.append("COMBINATION_DROPS_PARTS")
    return switches


def _delta(layer) -> torch.Tensor:
    if "sum" in layer.lora_embedding_A:
        a, b = layer.lora_embedding_A["sum"], layer.lora_embedding_B["sum"]
    else:
        a, b = layer.lora_A["sum"].weight, layer.lora_B["sum"].weight
    return b.double().flatten(1) @ a.double().flatten(1) * layer.scaling["sum"]


@contextlib.contextmanager
def _masks(model, layers, names):
    """Collects what torch.bernoulli draws while an adapter is added."""
    masks, current = {}, {}
    draw = torch.bernoulli
    tuner = model.base_model

    def recorded(densities):
        mask = draw(densities)
        layer, turn = current["layer"], current["turn"]
        own = current["adapters"]
        what = "delta" if current["svd"] else "AB"[turn // len(own)]
        matrix = mask
        if current["svd"] and (getattr(layer, "fan_in_fan_out", False) or layer.lora_embedding_A):
            matrix = matrix.T
        key = f"mask.{layers[layer]}.{what}.{names.index(own[turn % len(own)])}"
        require(key not in masks, "drawn twice: " + key)
        masks[key] = matrix.flatten(1).to(torch.uint8)
        current["turn"] += 1
        return mask

    def watch(method, svd, position):
        original = getattr(tuner, method)

        def watched(*arguments, **keywords):
            layer = arguments[position]
            own = [n for n in names if n in layer.lora_A or n in layer.lora_embedding_A]
            current.update(layer=layer, turn=0, svd=svd, adapters=own)
            return original(*arguments, **keywords)

        setattr(tuner, method, watched)

    watch("_svd_generalized_task_arithmetic_weighted_adapter", True, 4)
    watch("_generalized_task_arithmetic_weighted_adapter", False, 3)
    torch.bernoulli = recorded
    try:
        yield masks
    finally:
        torch.bernoulli = draw


@contextlib.contextmanager
def _signed():
    """The largest element of every right singular vector is positive."""
    original = torch.linalg.svd

    def signed(matrix, full_matrices=True, driver=None):
        u, s, vh = original(matrix, full_matrices=full_matrices, driver=driver)
        signs = vh.gather(1, vh.abs().argmax(1, keepdim=True)).sign()
        vh = vh * signs
        k = len(s)
        u = torch.cat([u[:, :k] * signs[:k].T, u[:, k:]], 1)
        return u, s, vh

    torch.linalg.svd = signed
    try:
        yield
    finally:
        torch.linalg.svd = original
