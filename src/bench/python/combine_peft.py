"""Makes the inputs of the combination bench and times PEFT on them.

    python combine_peft.py FOLDER

Writes FOLDER/inputs.safetensors, FOLDER/seven/<name> (adapters with the shapes of a 7B model), FOLDER/base and
FOLDER/tuned (checkpoints of one layer), and FOLDER/peft.json with seconds and singular values. Every time is the best of
the runs stated; a full decomposition runs once.
"""

import json
import sys
import time
from pathlib import Path

import peft
import torch
from peft import LoraConfig, get_peft_model
from peft.utils.merge_utils import ties
from safetensors.torch import save_file

SIDE = 4096
RANK = 32


def best(runs, work):
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = torch.nn.Linear(SIDE, SIDE, bias=False)


def combination(inputs):
    """PEFT's svd of two adapters of one layer: the whole of add_weighted_adapter."""
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["lin"])
    model = get_peft_model(Net(), config, "a")
    model.add_adapter("b", config)
    layer = model.base_model.model.lin
    with torch.no_grad():
        for name in "ab":
            layer.lora_A[name].weight.copy_(inputs[name + ".A"])
            layer.lora_B[name].weight.copy_(inputs[name + ".B"])
    combine = lambda: model.add_weighted_adapter(["a", "b"], [0.7, -0.4], "sum", combination_type="svd", svd_rank=RANK)
    seconds, _ = best(1, combine)
    values = layer.lora_B["sum"].weight.detach().double().norm(dim=0)
    return seconds, values.tolist()


def change():
    """A change as fine-tuning makes it: a spectrum that falls, over noise."""
    scales = 1 / torch.arange(1, 257).float().sqrt()
    low = torch.randn(SIDE, 256) * scales @ torch.randn(256, SIDE)
    return 1e-3 * (low / 16 + 0.1 * torch.randn(SIDE, SIDE))


def seven(folder):
    """Adapters of 32 layers with 7 modules, r=16."""
    shapes = {"self_attn.q_proj": (4096, 4096), "self_attn.k_proj": (4096, 4096), "self_attn.v_proj": (4096, 4096),
              "self_attn.o_proj": (4096, 4096), "mlp.gate_proj": (11008, 4096), "mlp.up_proj": (11008, 4096),
              "mlp.down_proj": (4096, 11008)}
    config = LoraConfig(r=16, lora_alpha=32, target_modules=sorted(n.split(".")[1] for n in shapes))
    for name in "abc":
        tensors = {}
        for layer in range(32):
            for module, (out, width) in shapes.items():
                key = f"base_model.model.model.layers.{layer}.{module}"
                tensors[key + ".lora_A.weight"] = torch.randn(16, width) / 64
                tensors[key + ".lora_B.weight"] = torch.randn(out, 16) / 64
        own = folder / "seven" / name
        own.mkdir(parents=True)
        config.save_pretrained(own)
        save_file(tensors, own / "adapter_model.safetensors", {"format": "pt"})


def main(folder):
    torch.manual_seed(1)
    torch.set_num_threads(2)
    inputs = {}
    for name in "ab":
        inputs[name + ".A"] = torch.randn(RANK, SIDE) / 64
        inputs[name + ".B"] = torch.randn(SIDE, RANK) / 64
        inputs[name + ".dense"] = torch.randn(SIDE, SIDE)
    save_file(inputs, folder / "inputs.safetensors")
    seven(folder)
    before = torch.randn(SIDE, SIDE) / 64
    delta = change()
    after = before + delta
    for kind, weight in (("base", before), ("tuned", after)):
        (folder / kind).mkdir()
        save_file({"layer.weight": weight}, folder / kind / "model.safetensors", {"format": "pt"})
    results = {"peft": peft.__version__, "torch": torch.__version__}
    results["svd_seconds"], results["svd_values"] = combination(inputs)
    dense = [inputs["a.dense"], inputs["b.dense"]]
    weights = torch.tensor([0.7, 0.4])
    results["ties_seconds"], _ = best(2, lambda: ties(dense, weights, 0.3, "total"))
    results["full_svd_seconds"], (_, values, _) = best(
        1, lambda: torch.linalg.svd(after - before, full_matrices=False))
    results["optimal_error"] = values[64:].double().square().sum().sqrt().item()
    results["change_norm"] = (after - before).double().norm().item()
    (folder / "peft.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
