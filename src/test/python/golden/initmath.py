"""Writes src/test/resources/golden/initmath: what PEFT's initialisations make of small layers.

    python initmath.py [--only NAME ...] [--old-loftq FILE]

Needs, beside requirements.txt, the packages `attrs` (for CorDA) and `bitsandbytes` (for LoftQ). PEFT computes LoftQ on a
GPU alone; here its requests for one are answered with the CPU. `--old-loftq` is `src/peft/utils/loftq_utils.py` of PEFT
0.19, the last with a 2 bit quantiser; without it the 2 bit case is kept as it is.

Every `<name>.safetensors` holds tensors called `<case>.<tensor>`, and `<name>.json` the settings of the cases. All
matrices are (out, in), also where the layer stores (in, out).
"""

import argparse
import importlib.util
import os
import tempfile
from importlib.metadata import version
from pathlib import Path

import generate
from common import generator, normal, quiet, read_json, write_json, write_tensors

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

FOLDER = "initmath"

# name: (out, in, rank, alpha, rslora, dtype, stored as (in, out))
SHAPES = {
    "tall": (13, 7, 3, 5, False, torch.float32, False),
    "wide_rank1": (6, 11, 1, 3, False, torch.float32, False),
    "full_rslora": (8, 8, 8, 6, True, torch.float32, False),
    "bf16": (9, 12, 4, 10, False, torch.bfloat16, False),
    "transposed": (5, 10, 2, 3, True, torch.float32, True),
    "square_transposed": (8, 8, 2, 5, False, torch.float32, True),
}


def one_layer(name: str, out: int, inner: int, dtype, transposed: bool, spectrum: float = 0.7) -> nn.Module:
    """A layer whose weight has singular values 3 * spectrum^i, so that no two lie close together."""
    rng = generator(name)
    k = min(out, inner)
    u = torch.linalg.qr(normal(rng, (out, k), 1))[0]
    v = torch.linalg.qr(normal(rng, (inner, k), 1))[0]
    weight = (u * (3 * spectrum ** torch.arange(k))) @ v.T
    layer = Conv1D(out, inner) if transposed else nn.Linear(inner, out, bias=False)
    layer.weight.data = (weight.T if transposed else weight).contiguous()
    net = nn.Sequential()
    net.add_module("layer", layer)
    return net.to(dtype)


def matrix(layer) -> torch.Tensor:
    weight = layer.weight.detach()
    return weight.T if isinstance(layer, Conv1D) else weight


def adapted(net: nn.Module, init, rank, alpha, rslora, transposed, **settings):
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        use_rslora=rslora,
        target_modules=["layer"],
        init_lora_weights=init,
        fan_in_fan_out=transposed,
        **settings,
    )
    return get_peft_model(net, config)


def result(layer) -> dict:
    return {
        "a": layer.lora_A["default"].weight,
        "b": layer.lora_B["default"].weight,
        "residual": matrix(layer.base_layer),
    }


class Cases:
    def __init__(self, name: str):
        self.name = name
        self.tensors = {}
        self.cases = []

    def add(self, case: str, tensors: dict, **settings) -> None:
        self.tensors |= {f"{case}.{key}": value for key, value in tensors.items()}
        self.cases.append({"name": case} | settings)

    def write(self) -> None:
        write_tensors(Path(FOLDER, self.name + ".safetensors"), self.tensors)
        write_json(Path(FOLDER, self.name + ".json"), {"cases": self.cases})


def seeded(method: str, seed: int):
    """Seeds the global generator where LoraLayer's `method` begins, as the Java test does before its function."""
    from peft.tuners.lora.layer import LoraLayer

    original = getattr(LoraLayer, method)

    def start(self, *args):
        torch.manual_seed(seed)
        return original(self, *args)

    class Patch:
        def __enter__(self):
            setattr(LoraLayer, method, start)

        def __exit__(self, *_):
            setattr(LoraLayer, method, original)

    return Patch()


def split_weights(name: str, inits: dict, shapes=SHAPES) -> None:
    """Inits that look at the weight alone."""
    cases = Cases(name)
    method = {"pissa": "pissa_init", "olora": "olora_init", "mica": "mica_init"}[name]
    for init, suffix in inits.items():
        for shape, (out, inner, rank, alpha, rslora, dtype, transposed) in shapes.items():
            if name == "olora" and transposed and out != inner:
                continue  # PEFT makes factors of the wrong shape
            net = one_layer(f"{name}.{shape}", out, inner, dtype, transposed)
            weight = matrix(net.layer).clone()
            with quiet(), seeded(method, 7):
                layer = adapted(net, init, rank, alpha, rslora, transposed).base_model.model.layer
            made = result(layer)
            if name == "mica":
                del made["residual"]
            cases.add(
                shape + suffix,
                {"weight": weight} | made,
                rank=rank,
                scale=layer.scaling["default"],
                init=init,
                seed=7,
                transposed=transposed,
            )
    cases.write()


def pissa(_) -> None:
    split_weights("pissa", {"pissa": "", "pissa_niter_4": "_niter_4", "pissa_niter_0": "_niter_0"})


def olora(_) -> None:
    split_weights("olora", {"olora": ""})


def mica(_) -> None:
    split_weights("mica", {"mica": ""})


def conversion(_) -> None:
    """PiSSA through PEFT's whole way: save the start, train, save with the start subtracted."""
    cases = Cases("conversion")
    settings = {
        "plain": dict(r=3, lora_alpha=5),
        "rslora": dict(r=3, lora_alpha=5, use_rslora=True),
        "patterns": dict(r=3, lora_alpha=5, rank_pattern={"second": 2}, alpha_pattern={"first": 7}),
    }
    for case, fields in settings.items():
        rng = generator("conversion." + case)
        net = nn.Sequential()
        net.add_module("first", nn.Linear(9, 6))
        net.add_module("second", nn.Linear(6, 7))
        for parameter in net.parameters():
            parameter.data = normal(rng, parameter.shape, 0.5)
        original = {k: v.clone() for k, v in net.state_dict().items()}
        x = normal(rng, (4, 9), 1)
        config = LoraConfig(target_modules=["first", "second"], init_lora_weights="pissa", **fields)
        with quiet(), tempfile.TemporaryDirectory() as folder, torch.no_grad():
            model = get_peft_model(net, config)
            model.peft_config["default"].init_lora_weights = True
            model.save_pretrained(f"{folder}/start")
            model.peft_config["default"].init_lora_weights = "pissa"
            for key, parameter in model.named_parameters():
                if "lora_" in key:
                    parameter += normal(rng, parameter.shape, 0.1)
            model.save_pretrained(f"{folder}/trained")
            # A copy in memory keeps its start outside the state it saves.
            model.save_pretrained(f"{folder}/plain", path_initial_model_for_weight_conversion=f"{folder}/start")
            tensors = {}
            for part in ("start", "trained", "plain"):
                for key, value in load_file(f"{folder}/{part}/adapter_model.safetensors").items():
                    tensors[f"{part}.{key.removeprefix('base_model.model.').removesuffix('.weight')}"] = value
            written = {part: read_json(Path(folder, part, "adapter_config.json")) for part in ("trained", "plain")}
            expected = model(x)
            net = nn.Sequential()
            net.add_module("first", nn.Linear(9, 6))
            net.add_module("second", nn.Linear(6, 7))
            net.load_state_dict(original)
            loaded = PeftModel.from_pretrained(net, f"{folder}/plain")
            assert torch.allclose(loaded(x), expected, atol=1e-5)
        keys = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights")
        cases.add(
            case,
            tensors,
            before={k: written["trained"][k] for k in keys},
            after={k: written["plain"][k] for k in keys},
            layers=["first", "second"],
        )
    cases.write()


def on_cpu():
    """Answers `to("cuda")` with the CPU."""
    import bitsandbytes as bnb

    kept = {cls: cls.to for cls in (torch.Tensor, bnb.nn.Params4bit, bnb.nn.Int8Params)}

    def patched(original):
        def to(self, *args, **kwargs):
            args = tuple("cpu" if isinstance(a, str) and a == "cuda" else a for a in args)
            kwargs = {k: "cpu" if isinstance(v, str) and v == "cuda" else v for k, v in kwargs.items()}
            return original(self, *args, **kwargs)

        return to

    class Patch:
        def __enter__(self):
            for cls, original in kept.items():
                cls.to = patched(original)

        def __exit__(self, *_):
            for cls, original in kept.items():
                cls.to = original

    return Patch()


def loftq(arguments) -> None:
    # Widths of 16 and 32 are left out: bitsandbytes 0.50.1 takes the wrong scales for them on the CPU.
    cases = Cases("loftq")
    shapes = {
        "tall": (13, 7, 3, 5, False, torch.float32),
        "wide_rank1": (6, 33, 1, 3, False, torch.float32),
        "blocks": (16, 12, 4, 4, True, torch.float32),
        "bf16": (9, 20, 4, 10, False, torch.bfloat16),
    }
    for bits in (4, 8):
        for shape, (out, inner, rank, alpha, rslora, dtype) in shapes.items():
            for iterations in (1, 3):
                net = one_layer("loftq." + shape, out, inner, dtype, False)
                weight = matrix(net.layer).clone()
                settings = dict(loftq_config={"loftq_bits": bits, "loftq_iter": iterations})
                with quiet(), on_cpu():
                    layer = adapted(net, "loftq", rank, alpha, rslora, False, **settings).base_model.model.layer
                cases.add(
                    f"{shape}_{bits}_{iterations}",
                    {"weight": weight} | result(layer),
                    rank=rank,
                    scale=layer.scaling["default"],
                    bits=bits,
                    iterations=iterations,
                )
    name = "blocks_2_2"
    if arguments.old_loftq:
        spec = importlib.util.spec_from_file_location("old_loftq", arguments.old_loftq)
        old = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(old)
        weight = matrix(one_layer("loftq.blocks", 16, 12, torch.float32, False).layer).clone()
        with quiet():
            quantizer = old.NFQuantizer(num_bits=2, device="cpu", method="normal", block_size=64)
        remaining = weight
        for _ in range(2):
            quantised = quantizer.dequantize_block(*quantizer.quantize_block(remaining))
            parts = old._low_rank_decomposition(weight - quantised, reduced_rank=4)
            remaining = weight - parts["L"] @ parts["R"]
        tensors = {"weight": weight, "a": parts["R"], "b": parts["L"], "residual": quantised}
    else:
        held = load_file(Path(FOLDER, "loftq.safetensors"))
        tensors = {key.removeprefix(name + "."): value for key, value in held.items() if key.startswith(name + ".")}
    cases.add(name, tensors, rank=4, scale=1.0, bits=2, iterations=2)
    cases.write()


class Tokens(nn.Module):
    """Two projections of the same input and one of another, over token ids."""

    def __init__(self, decay: float, width: int = 12):
        super().__init__()
        self.decay = decay
        rng = generator("eva")
        self.embed = nn.Embedding(40, width)
        self.other = nn.Embedding(40, 10)
        self.query = nn.Linear(width, 9)
        self.key = nn.Linear(width, 7)
        self.down = nn.Linear(10, 5)
        for parameter in self.parameters():
            parameter.data = normal(rng, parameter.shape, 0.5)
        self.embed.weight.data *= 0.7 ** torch.arange(width)

    def forward(self, input_ids, attention_mask=None, labels=None):
        x = self.embed(input_ids)
        self.seen = {"query": x, "key": x}
        hidden = self.other(input_ids) * self.decay ** torch.arange(10)
        self.seen["down"] = hidden
        return self.down(hidden), self.key(x), self.query(x)


def eva(_) -> None:
    from peft import initialize_lora_eva_weights
    from peft.tuners.lora.config import EvaConfig

    cases = Cases("eva")
    settings = {
        "plain": (dict(r=2, lora_alpha=5), {}, True),
        "rho1": (dict(r=3, lora_alpha=4), {"rho": 1.0, "tau": 0.95}, True),
        "unscaled": (dict(r=3, lora_alpha=4), {"rho": 3.0, "adjust_scaling_factors": False}, False),
        "no_label_mask": (dict(r=2, lora_alpha=5), {"use_label_mask": False}, True),
        "label_value": (dict(r=2, lora_alpha=5), {"label_mask_value": 3}, True),
        "patterns": (
            dict(r=2, lora_alpha=5, rank_pattern={"down": 4}, alpha_pattern={"key": 3}),
            {"rho": 1.5},
            True,
        ),
        "whiten": (dict(r=2, lora_alpha=5, target_modules=["query", "down"]), {"whiten": True}, True),
        "dropped": (dict(r=1, lora_alpha=2), {"rho": 3.0}, True),
    }
    inputs = {"query": "query", "key": "query", "down": "down"}
    for case, (fields, eva_fields, masked) in settings.items():
        fields = {"target_modules": ["query", "key", "down"]} | fields
        rng = generator("eva." + case)
        batches = []
        for _ in range(3):
            batch = {"input_ids": torch.randint(0, 40, (3, 12), generator=rng)}
            if masked:
                batch["attention_mask"] = (torch.arange(12) < torch.tensor([[12], [10], [11]])).long()
                labels = torch.randint(0, 8, (3, 12), generator=rng)
                labels[:, :2] = -100
                batch["labels"] = labels
            batches.append(batch)
        config = LoraConfig(init_lora_weights="eva", eva_config=EvaConfig(**eva_fields), **fields)
        net = Tokens(1 if case == "dropped" else 0.3)
        names = [n for n, _ in net.named_modules() if n in fields["target_modules"]]
        modules = dict(net.named_modules())
        tensors = {}
        with quiet():
            for i, batch in enumerate(batches):
                net(**batch)
                tensors |= {f"batch{i}.{k}": v for k, v in batch.items() if k != "input_ids"}
                tensors |= {f"batch{i}.{name}": net.seen[name] for name in set(inputs[n] for n in names)}
            model = get_peft_model(net, config)
            initialize_lora_eva_weights(model, batches, show_progress_bar=False)
        ranks = {}
        for name in names:
            layer = getattr(model.base_model.model, name)
            ranks[name] = layer.r["default"] if hasattr(layer, "r") else 0
            if ranks[name]:
                tensors[f"{name}.a"] = layer.lora_A["default"].weight
                assert not layer.lora_B["default"].weight.any()
        made = model.peft_config["default"]
        cases.add(
            case,
            tensors,
            config=fields | {"eva_config": eva_fields},
            layers=[{"name": n, "shape": list(matrix(modules[n]).shape), "input": inputs[n]} for n in names],
            batches=len(batches),
            ranks=ranks,
            target_modules=sorted(made.target_modules),
            rank_pattern=made.rank_pattern,
            alpha_pattern=made.alpha_pattern,
        )
    cases.write()


def corda(_) -> None:
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    cases = Cases("corda")
    settings = {
        "ipm": ("tall", {}, torch.float32),
        "kpm": ("tall", {"corda_method": "kpm"}, torch.float32),
        "wide": ("wide_rank1", {}, torch.float32),
        "wide_kpm": ("wide_rank1", {"corda_method": "kpm"}, torch.float32),
        "full": ("full_rslora", {}, torch.float32),
        "bf16": ("bf16", {}, torch.bfloat16),
        "bf16_half": ("bf16", {"use_float16_for_covariance": True}, torch.bfloat16),
        "transposed": ("transposed", {}, torch.float32),
        "few_rows": ("tall", {}, torch.float32),
    }
    for case, (shape, fields, _) in settings.items():
        out, inner, rank, alpha, rslora, dtype, transposed = SHAPES[shape]
        net = one_layer("corda." + shape, out, inner, dtype, transposed)
        weight = matrix(net.layer).clone()
        rng = generator("corda." + case)
        rows = 2 if case == "few_rows" else 9
        inputs = [(normal(rng, (1, rows + i, inner), 1) * 0.8 ** torch.arange(inner)).to(dtype) for i in range(3)]
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            use_rslora=rslora,
            target_modules=["layer"],
            fan_in_fan_out=transposed,
            init_lora_weights="corda",
            corda_config=CordaConfig(prune_temporary_fields=False, **fields),
        )
        with quiet():
            preprocess_corda(net, config, run_model=lambda: [net(x) for x in inputs])
            covariance = net.layer.covariance_matrix
            layer = get_peft_model(net, config).base_model.model.layer
        tensors = {f"input{i}": x for i, x in enumerate(inputs)}
        tensors |= {"weight": weight, "covariance": covariance}
        cases.add(
            case, tensors | result(layer), rank=rank, scale=layer.scaling["default"], inputs=len(inputs), config=fields
        )
    cases.write()


def lora_ga(_) -> None:
    from peft.tuners.lora.config import LoraGAConfig
    from peft.tuners.lora.loraga import preprocess_loraga

    shapes = {
        "tall": (13, 9, 3, 5, False, torch.float32, False),
        "wide_rank1": (6, 11, 1, 3, False, torch.float32, False),
        "half_rslora": (8, 8, 4, 6, True, torch.float32, False),
        "bf16": (9, 12, 4, 10, False, torch.bfloat16, False),
        "transposed": (8, 8, 2, 3, False, torch.float32, True),
        "sampled": (24, 20, 2, 3, False, torch.float32, False),
    }
    combinations = [(d, s) for d in ("ArBr", "A2rBr", "ArB2r", "random") for s in ("stable", "unit")]
    combinations += [("ArB2r", "weight_svd"), ("ArB2r", "gd_scale"), ("random", "weight_svd")]
    cases = Cases("lora_ga")
    for shape, (out, inner, rank, alpha, rslora, dtype, transposed) in shapes.items():
        chosen = combinations if shape == "tall" else [("ArB2r", "stable"), ("random", "weight_svd")]
        for direction, scale in chosen:
            net = one_layer("lora_ga." + shape, out, inner, dtype, transposed)
            weight = matrix(net.layer).clone()
            rng = generator("lora_ga." + shape)
            data = [(normal(rng, (40, inner), 1).to(dtype), normal(rng, (40, out), 1).to(dtype)) for _ in range(2)]
            settings = LoraGAConfig(direction=direction, scale=scale, stable_gamma=9)
            config = LoraConfig(
                r=rank,
                lora_alpha=alpha,
                use_rslora=rslora,
                target_modules=["layer"],
                fan_in_fan_out=transposed,
                init_lora_weights="lora_ga",
                lora_ga_config=settings,
            )

            def train_step():
                for x, y in data:
                    x.requires_grad_()
                    ((net(x) - y) ** 2).sum().backward()

            with quiet(), seeded("lora_ga_init", 11):
                preprocess_loraga(net, config, train_step)
                gradient = net.layer._peft_loraga_grad
                gradient = (gradient.T if transposed else gradient).clone()
                layer = get_peft_model(net, config).base_model.model.layer
            cases.add(
                f"{shape}_{direction}_{scale}",
                {"weight": weight, "gradient": gradient} | result(layer),
                rank=rank,
                scale=layer.scaling["default"],
                seed=11,
                config={"direction": direction, "scale": scale, "stable_gamma": 9},
            )
    cases.write()


def delta(_) -> None:
    """LoHa adapters, converted."""
    from peft import LoHaConfig, convert_to_lora

    cases = Cases("delta")
    for case, (out, inner, rank, dtype) in {
        "rank": (13, 7, 3, torch.float32),
        "rank1": (6, 11, 1, torch.float32),
        "full": (6, 11, 6, torch.float32),
        "energy": (13, 7, 0.9, torch.float32),
        "all_energy": (5, 9, 1.0, torch.float32),
        "bf16": (9, 12, 4, torch.bfloat16),
    }.items():
        net = one_layer("delta." + case, out, inner, dtype, False)
        rng = generator("delta." + case)
        with quiet(), torch.no_grad():
            model = get_peft_model(
                net, LoHaConfig(r=4, alpha=3, target_modules=["layer"]), autocast_adapter_dtype=False
            )
            for key, parameter in model.named_parameters():
                if "hada_" in key:
                    parameter.copy_(normal(rng, parameter.shape, 0.7))
            dense = model.base_model.model.layer.get_delta_weight("default")
            config, tensors = convert_to_lora(model, rank)
        made = {key.split(".")[-2][-1].lower(): value for key, value in tensors.items()}
        cases.add(case, {"delta": dense} | made, rank=rank, effective_rank=made["a"].shape[0])
    cases.write()


PARTS = {f.__name__: f for f in (pissa, olora, conversion, loftq, eva, corda, lora_ga, delta, mica)}


def main() -> None:
    generate.fix_environment()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS)
    parser.add_argument("--old-loftq", type=os.path.abspath)
    arguments = parser.parse_args()
    generate.prepare(generate.GOLDEN)
    for name in arguments.only or PARTS:
        PARTS[name](arguments)
        print(name, flush=True)
    names = ("torch", "peft", "transformers", "safetensors", "bitsandbytes", "attrs", "scipy")
    write_json(Path(FOLDER, "versions.json"), {n: version(n) for n in names})


if __name__ == "__main__":
    main()
