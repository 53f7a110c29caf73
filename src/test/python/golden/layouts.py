"""Writes adapters in the layouts of PEFT, kohya's scripts and diffusers, and what diffusers makes of them.

    pip install -r requirements.txt diffusers
    python layouts.py FOLDER      default: ../../resources/golden/format/layouts

diffusers names and loads everything here but the tensors of kohya's, which are checked by what diffusers makes of them.
"""

import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parents[1] / "resources" / "golden" / "format" / "layouts"


def unet():
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        layers_per_block=1,
        block_out_channels=(4, 6),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        mid_block_type=None,
        cross_attention_dim=5,
        attention_head_dim=2,
        norm_num_groups=2,
    )


def text_encoder():
    """CLIP with the names it has in most files: transformers 5 leaves out the level text_model."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=11,
        hidden_size=6,
        intermediate_size=7,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=0,
        eos_token_id=1,
    )
    holder = torch.nn.Module()
    holder.text_model = CLIPTextModel(config)
    return holder


def configs() -> dict:
    from peft import LoraConfig

    return {
        "unet": LoraConfig(
            r=3,
            lora_alpha=6,
            target_modules=["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "proj_in", "conv1", "conv_in"],
            rank_pattern={"attn1.to_q": 2, "conv1": 1, "^conv_in": 4},
            alpha_pattern={"attn1.to_q": 0.75, "proj_in": 5, "^conv_in": 4},
        ),
        "text_encoder": LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "out_proj", "fc1"]),
    }


def adapters(name: str, parts: dict) -> dict:
    """An adapter of PEFT with random values for each part: its model, and its tensors without a prefix."""
    from common import generator, normal
    from peft import get_peft_model, get_peft_model_state_dict

    made = {}
    for part, (model, config) in parts.items():
        rng = generator(f"layouts/{name}/{part}")
        for _, parameter in sorted(model.named_parameters()):
            parameter.data = normal(rng, parameter.shape, 0.3)
        peft_model = get_peft_model(model, config)
        for key, parameter in sorted(peft_model.named_parameters()):
            if "lora_" in key:
                parameter.data = normal(rng, parameter.shape, 0.3)
        state = get_peft_model_state_dict(peft_model)
        made[part] = (peft_model, {key.removeprefix("base_model.model."): value for key, value in state.items()})
    return made


def save_peft(folder: Path, model) -> None:
    model.save_pretrained(folder)
    (folder / "README.md").unlink()


def scales(model) -> dict:
    """The scale of each adapted module."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {
        name.removeprefix("base_model.model."): next(iter(module.scaling.values()))
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }


def kohya(parts: dict, dtype) -> dict:
    """The names of kohya's scripts; factors and alphas have one type, as the scripts save them."""
    import torch

    tensors = {}
    for prefix, (model, state) in parts.items():
        for key, value in state.items():
            module, role = key.split(".lora_", 1)
            name = prefix + "_" + module.replace(".", "_")
            if role == "magnitude_vector":
                shape = (-1, 1) if value.dim() == 1 else (-1, 1, 1, 1)
                tensors[name + ".dora_scale"] = value.reshape(shape).to(dtype)
                continue
            tensors[name + {"A.weight": ".lora_down.weight", "B.weight": ".lora_up.weight"}[role]] = value.to(dtype)
            if role == "A.weight":
                alpha = scales(model)[module] * value.shape[0]
                tensors[name + ".alpha"] = torch.tensor(alpha).to(dtype)
    return tensors


def diffusers_reads(tensors: dict, alphas, metadata=None) -> dict:
    """What diffusers' loader of the U-Net makes of a file: the scale of each module."""
    model = unet()
    model.load_lora_adapter(dict(tensors), prefix="unet", network_alphas=alphas, metadata=metadata)
    return scales(model)


def from_kohya(tensors: dict) -> tuple[dict, dict]:
    """What diffusers makes of kohya's names: PEFT's names behind those of the parts, and alphas by module."""
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers
    from diffusers.utils.state_dict_utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft

    state, alphas = _convert_non_diffusers_lora_to_diffusers(dict(tensors))
    split = {p: {k: v for k, v in state.items() if k.startswith(p + ".")} for p in ("unet", "text_encoder")}
    text = convert_state_dict_to_peft(split["text_encoder"]) if split["text_encoder"] else {}
    return convert_unet_state_dict_to_peft(split["unet"]) | text, alphas


def old_spelling(state: dict) -> dict:
    """The names diffusers gave before it took those of PEFT, in two generations."""
    from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers

    result = {}
    for key, value in convert_state_dict_to_diffusers(dict(state)).items():
        for role in ("down", "up"):
            for name in ("to_q", "to_k", "to_v"):
                key = key.replace(f"attn2.{name}.lora.{role}", f"attn2.processor.{name}_lora.{role}")
            key = key.replace(f"attn2.to_out.0.lora.{role}", f"attn2.processor.to_out_lora.{role}")
        result[key.replace("lora_A", "lora.down").replace("lora_B", "lora.up")] = value
    return result


def write(target: Path) -> None:
    import torch
    from common import require, write_json, write_tensors
    from diffusers import StableDiffusionPipeline
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
    from peft import LoraConfig
    from safetensors import safe_open
    from safetensors.torch import save_file

    target.mkdir(parents=True, exist_ok=True)
    config = configs()
    made = adapters("plain", {"unet": (unet(), config["unet"]), "text_encoder": (text_encoder(), config["text_encoder"])})
    modules = {part: [name for name, _ in make().named_modules() if name] for part, make in PARTS.items()}
    write_json(target / "modules.json", modules)
    for part, (model, _) in made.items():
        save_peft(target / f"peft_{part}", model)
        write_json(target / f"scales_{part}.json", scales(model))

    layers = {f"{part}_lora_layers": state for part, (_, state) in made.items()}
    metadata = {f"{p}_lora_adapter_metadata": model.peft_config["default"].to_dict() for p, (model, _) in made.items()}
    StableDiffusionPipeline.save_lora_weights(target, **layers, **metadata, weight_name="diffusers.safetensors")
    plain = {"unet_lora_layers": made["unet"][1]}
    StableDiffusionPipeline.save_lora_weights(target, **plain, weight_name="diffusers_plain.safetensors")
    with safe_open(target / "diffusers.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        stored = json.loads(file.metadata()["lora_adapter_metadata"])
    require(diffusers_reads(tensors, None, stored) == scales(made["unet"][0]), "diffusers finds PEFT's scales")
    write_json(target / "scales_diffusers_plain.json", diffusers_reads(plain_tensors(made), None))

    old = {f"{p}.{k}": v for p, (_, state) in made.items() for k, v in old_spelling(state).items()}
    require(any("processor.to_q_lora" in k for k in old) and any("lora_linear_layer" in k for k in old), "old names")
    back = convert_unet_state_dict_to_peft({k: v for k, v in old.items() if k.startswith("unet.")})
    require(set(back) == {f"unet.{k}" for k in made["unet"][1]}, "diffusers knows the old names")
    write_tensors(target / "diffusers_old.safetensors", old)

    for name, dtype in (("kohya", torch.float32), ("kohya_f16", torch.float16), ("kohya_bf16", torch.bfloat16)):
        tensors = kohya({"lora_unet": made["unet"], "lora_te": made["text_encoder"]}, dtype)
        notes = {"ss_network_module": "networks.lora", "ss_network_dim": "3"} if dtype == torch.float32 else {}
        save_file({k: v.contiguous() for k, v in sorted(tensors.items())}, target / f"{name}.safetensors", notes)
        state, alphas = from_kohya(tensors)
        require(set(state) == {f"{p}.{k}" for p, (_, s) in made.items() for k in s}, "diffusers knows kohya's names")
        if dtype == torch.float32:
            torch.save(tensors, target / "kohya.pt")
            alphas = {convert_unet_state_dict_to_peft({k: 0}).popitem()[0]: v for k, v in alphas.items()}
            found = diffusers_reads(state, {k: v for k, v in alphas.items() if k.startswith("unet.")})
            require(found == scales(made["unet"][0]), "diffusers finds the same scales in kohya's file")

    dora = LoraConfig(r=2, lora_alpha=3, target_modules=["attn1.to_v", "conv_in", "proj_in"], use_dora=True)
    made = adapters("dora", {"unet": (unet(), dora)})
    save_peft(target / "peft_dora", made["unet"][0])
    tensors = kohya({"lora_unet": made["unet"]}, torch.float32)
    write_tensors(target / "kohya_dora.safetensors", tensors)
    names = set(from_kohya(tensors)[0])
    require(sum("magnitude" in name for name in names) == 3, "diffusers knows kohya's name of DoRA's magnitudes")
    write_versions(target)


def plain_tensors(made: dict) -> dict:
    return {f"unet.{k}": v for k, v in made["unet"][1].items()}


def write_versions(target: Path) -> None:
    from importlib.metadata import version

    import diffusers
    from common import write_json

    names = ("torch", "peft", "transformers", "safetensors")
    write_json(target / "versions.json", {n: version(n) for n in names} | {"diffusers": diffusers.__version__})


PARTS = {"unet": unet, "text_encoder": text_encoder}

if __name__ == "__main__":
    from generate import fix_environment

    fix_environment()
    os.chdir(HERE)
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN)
