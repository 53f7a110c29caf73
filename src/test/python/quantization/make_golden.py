"""Weights that bitsandbytes has quantized, and what PEFT computes with adapters on them.

    python make_golden.py ../../resources/golden/quantization

Needs torch, safetensors, transformers, accelerate, peft and bitsandbytes; versions.json records theirs. bitsandbytes must run without its native
library (delete libbitsandbytes_cpu.so, or use a checkout that was never built): the library of the CPU rounds the scales
of double quantization to a grid of 65536 steps before it looks for the nearest code, and with AVX-512 dequantizes with
the wrong scales where the length of rows is a multiple of 16 but not of the block.

weights.safetensors: for each case `<case>.original`, the tensors bitsandbytes stores for it, and `<case>.dequantized`.
qlora.safetensors and qlora_int8.safetensors: `base.<layer>.*` before and `merged.<layer>.*` after merging, `original.*`,
`lora_A.*`, `lora_B.*`, `x`, `y`, `grad_y`, and the gradients `grad_x`, `grad_A.*`, `grad_B.*`.
llama_nf4 and llama_int8: checkpoints transformers saves after quantizing ../golden/models/llama, with `logits` of
`input_ids`, and `adapter_logits` with the adapter of ../golden/adapters/llama_all_linear (of 4 bits only: with 8 bits
bitsandbytes quantizes activations too).
"""

import json
import os
import sys
import warnings
from pathlib import Path

os.environ["TORCHDYNAMO_DISABLE"] = "1"

import bitsandbytes
import bitsandbytes.functional as bnb
import peft
import torch
import transformers
from bitsandbytes.cextension import ErrorHandlerMockBNBNativeLibrary, lib
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

RANK, ALPHA = 3, 5


def four_bit(weight, **arguments):
    packed, state = bnb.quantize_4bit(weight, **arguments)
    tensors = {"original": weight, "weight": packed}
    tensors |= {f"weight.{name}": value for name, value in state.as_dict(packed=True).items()}
    # Read back as a checkpoint is, so that only stored values count.
    state = bnb.QuantState.from_dict(dict(state.as_dict(packed=True)), device="cpu")
    return tensors | {"dequantized": bnb.dequantize_4bit(packed, state)}


def eight_bit(weight):
    layer = Linear8bitLt(weight.shape[1], weight.shape[0], bias=False, has_fp16_weights=False)
    layer.weight = type(layer.weight)(weight.clone(), requires_grad=False, has_fp16_weights=False)
    layer = layer.to("cpu")
    tensors = layer.state_dict()
    return tensors | {"original": weight, "dequantized": bnb.int8_vectorwise_dequant(tensors["weight"], tensors["SCB"])}


def weights():
    torch.manual_seed(20230523)
    with_zeros = torch.randn(12, 37)
    with_zeros.view(-1)[64:128] = 0
    wide = torch.randn(48, 180) * torch.logspace(-3, 1, 48).unsqueeze(1)
    zero_row = torch.randn(5, 33)
    zero_row[3] = 0
    cases = {
        "nf4": four_bit(torch.randn(9, 64), quant_type="nf4"),
        "nf4_bf16_odd": four_bit(torch.randn(5, 33).bfloat16(), quant_type="nf4"),
        "nf4_double": four_bit(with_zeros, quant_type="nf4", compress_statistics=True),
        "nf4_double_f16": four_bit(wide.half(), quant_type="nf4", compress_statistics=True, blocksize=32),
        "nf4_as_bf16": four_bit(
            torch.randn(6, 128).bfloat16(),
            quant_type="nf4",
            compress_statistics=True,
            blocksize=128,
            quant_storage=torch.bfloat16,
        ),
        "fp4_odd": four_bit(torch.randn(7, 19), quant_type="fp4"),
        "fp4_double": four_bit(torch.randn(8, 96).bfloat16(), quant_type="fp4", compress_statistics=True),
        "int8": eight_bit(zero_row),
        "int8_bf16": eight_bit(torch.randn(6, 21).bfloat16()),
    }
    return {f"{case}.{name}": tensor for case, tensors in cases.items() for name, tensor in tensors.items()}


class Mlp(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.up = layer(10, 24, True)
        self.down = layer(24, 7, False)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


def qlora(layer, flag):
    torch.manual_seed(19)
    model = Mlp(layer)
    original = {f"original.{name}.weight": model.get_submodule(name).weight.data.clone() for name in ("up", "down")}
    model = model.to("cpu").requires_grad_(False)  # quantizes
    if not getattr(model.up.weight, "bnb_quantized", True):
        model.up.weight, model.down.weight = model.up.weight.to("cpu"), model.down.weight.to("cpu")
    setattr(model, flag, True)
    base = {f"base.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["up", "down"], init_lora_weights=False)
    model = peft.get_peft_model(model, config).train()
    assert "bnb" in type(model.base_model.model.up).__module__, type(model.base_model.model.up)
    x = torch.randn(2, 5, 10, requires_grad=True)
    y = model(x)
    grad_y = torch.randn_like(y)
    y.backward(grad_y)
    tensors = {"x": x.detach(), "y": y.detach(), "grad_y": grad_y, "grad_x": x.grad}
    for name in ("up", "down"):
        layer = model.base_model.model.get_submodule(name)
        for factor, module in (("A", layer.lora_A["default"]), ("B", layer.lora_B["default"])):
            tensors[f"lora_{factor}.{name}"] = module.weight.data.clone()
            tensors[f"grad_{factor}.{name}"] = module.weight.grad
    model.merge_adapter()
    merged = {
        "merged." + name.replace("base_layer.", ""): tensor
        for name, tensor in model.base_model.model.state_dict().items()
        if "lora_" not in name and "bias" not in name
    }
    return original | base | tensors | merged


def checkpoint(golden, out, **arguments):
    arguments = {"quantization_config": BitsAndBytesConfig(**arguments), "device_map": "cpu", "dtype": torch.float32}
    model = AutoModelForCausalLM.from_pretrained(golden / "models/llama", **arguments).eval()
    model.save_pretrained(out)
    (out / "generation_config.json").unlink()
    if arguments["quantization_config"].load_in_8bit:
        return
    ids = torch.tensor([[1, 5, 9, 3, 2, 7], [11, 4, 0, 52, 30, 8]])
    with torch.no_grad():
        tensors = {"input_ids": ids, "logits": model(ids).logits}
        adapted = peft.PeftModel.from_pretrained(model, golden / "adapters/llama_all_linear/adapter").eval()
        tensors["adapter_logits"] = adapted(ids).logits
    save_file(tensors, out / "expected.safetensors")


def main():
    warnings.filterwarnings("ignore")
    if not isinstance(lib, ErrorHandlerMockBNBNativeLibrary):
        sys.exit("bitsandbytes has found its native library: delete it, see above")
    folder = Path(sys.argv[1])
    files = {
        "weights": weights(),
        "qlora": qlora(
            lambda i, o, bias: Linear4bit(i, o, bias, quant_type="nf4", compress_statistics=True), "is_loaded_in_4bit"
        ),
        "qlora_int8": qlora(
            lambda i, o, bias: Linear8bitLt(i, o, bias, has_fp16_weights=False), "is_loaded_in_8bit"
        ),
    }
    for name, tensors in files.items():
        save_file({key: t.detach().clone().contiguous() for key, t in tensors.items()}, folder / f"{name}.safetensors")
    golden = folder.parent
    checkpoint(
        golden,
        folder / "llama_nf4",
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
    )
    checkpoint(golden, folder / "llama_int8", load_in_8bit=True)
    versions = {m.__name__: m.__version__ for m in (bitsandbytes, peft, torch, transformers)}
    (folder / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


if __name__ == "__main__":
    main()
