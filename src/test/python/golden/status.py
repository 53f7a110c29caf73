"""status.json: what PEFT's get_layer_status and get_model_status say of models in many states, also inconsistent ones."""

from dataclasses import asdict
from pathlib import Path

from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer

from common import load_base, quiet, write_table

MLP, EMBCONV, CONV, TIED = "toys/mlp.safetensors", "toys/embconv.safetensors", "toys/conv2d.safetensors", "models/llama_tied"
TWO = (EMBCONV, {"target_modules": ["emb", "lin0"]}, {"target_modules": ["conv1d", "lin0"], "r": 3})
SAVED = {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}
TOKENS = {"target_modules": ["lin0"], "trainable_token_indices": {"emb": [1, 2, 7]}}

# (base, configuration of "default", configuration of "other" or none, steps)
STATES = [
    (MLP, {"target_modules": ["lin0"]}, None, []),
    (MLP, {"target_modules": ["lin1", "lin0"], "bias": "all"}, None, []),
    (MLP, {"target_modules": ["lin0"], "bias": "lora_only"}, None, []),
    (MLP, {"target_modules": ["lin0"], "use_dora": True}, None, []),
    (MLP, {"target_modules": ["lin0"], "lora_bias": True}, None, []),
    (MLP, {"target_modules": ["lin0"], "init_lora_weights": "pissa", "r": 2}, None, []),
    (MLP, {"target_modules": ["lin0", "lin1"], "init_lora_weights": "mica", "r": 2}, None, []),
    (MLP, {"target_modules": ["lin0"], "init_lora_weights": "mica", "r": 2}, {"target_modules": ["lin0", "lin1"]}, []),
    (CONV, {"target_modules": ["conv2d"], "r": 1}, None, []),
    (*TWO, []),
    (*TWO, [["activate", "other"]]),
    (*TWO, [["activate", "other", "default"]]),
    (*TWO, [["freeze", "default"]]),
    (*TWO, [["merge", "default"]]),
    (*TWO, [["merge", "other"]]),
    (*TWO, [["merge", "other"], ["merge", "default"]]),
    (*TWO, [["merge", "other"], ["merge", "default"], ["unmerge"]]),
    (*TWO, [["disable"]]),
    (*TWO, [["disable"], ["enable"]]),
    (*TWO, [["delete", "other"]]),
    # Before another is activated, get_model_status looks for the one that is deleted.
    (*TWO, [["delete", "default"], ["activate", "other"]]),
    (MLP, SAVED, None, []),
    (MLP, SAVED, {"target_modules": ["lin0"]}, []),
    (MLP, SAVED, {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}, [["activate", "other"]]),
    (MLP, SAVED, {"target_modules": ["lin0"]}, [["activate", "other"]]),
    (MLP, SAVED, None, [["disable"]]),
    (MLP, SAVED, None, [["merge", "default"]]),
    (EMBCONV, TOKENS, None, []),
    (EMBCONV, TOKENS, {"target_modules": ["lin0"]}, [["activate", "other"]]),
    (EMBCONV, TOKENS, None, [["merge", "default"]]),
    (TIED, {"target_modules": ["q_proj"], "layers_to_transform": [1], "trainable_token_indices": [2, 5]}, None, []),
    (TIED, {"target_modules": ["q_proj"], "modules_to_save": ["mlp"], "layers_to_transform": [1]}, None, []),
]

# (what is done to the second layer of TWO or of the model with SAVED): the model's layers then disagree
IRREGULAR = [
    (TWO, lambda layer: layer.enable_adapters(False)),
    (TWO, lambda layer: layer.set_adapter("other")),
    (TWO, lambda layer: layer.set_adapter(["default", "other"])),
    (TWO, lambda layer: layer.merge(adapter_names=["default"])),
    (TWO, lambda layer: layer.merge(adapter_names=["other"])),
    (TWO, lambda layer: layer.set_requires_grad("default", False)),
    (TWO, lambda layer: layer.set_requires_grad("other", True)),
    (TWO, lambda layer: layer.lora_B["default"].weight.requires_grad_(False)),
    ((MLP, SAVED, None), lambda layer: layer.enable_adapters(False)),
    ((MLP, SAVED, None), lambda layer: layer.set_adapter([])),
    ((MLP, SAVED, None), lambda layer: layer.modules_to_save["default"].weight.requires_grad_(False)),
]


def generate(name: str) -> None:
    """Writes <name>.json under the working directory."""
    with quiet():
        states = [_state(*row) for row in STATES]
        irregular = [_irregular(*row) for row in IRREGULAR]
    write_table(Path(f"{name}.json"), {"states": states, "irregular": irregular})


def _model(base: str, default: dict, other: dict | None):
    model = get_peft_model(load_base(base), LoraConfig(**default))
    if other is not None:
        model.add_adapter("other", LoraConfig(**other))
    return model


def _state(base: str, default: dict, other: dict | None, steps: list) -> dict:
    model = _model(base, default, other)
    tuner = model.base_model
    for step, *names in steps:
        {
            "activate": lambda: model.set_adapter(*names) if len(names) == 1 else tuner.set_adapter(names),
            "freeze": lambda: tuner.set_requires_grad(names, requires_grad=False),
            "merge": lambda: tuner.merge_adapter(names),
            "unmerge": tuner.unmerge_adapter,
            "disable": tuner.disable_adapter_layers,
            "enable": tuner.enable_adapter_layers,
            "delete": lambda: model.delete_adapter(*names),
        }[step]()
    return {"base": base, "default": default, "other": other, "steps": steps} | _status(model)


def _irregular(made: tuple, change) -> dict:
    model = _model(*made)
    found = [m for _, m in model.base_model.named_modules() if isinstance(m, BaseTunerLayer) or hasattr(m, "modules_to_save")]
    change(found[-1])
    return _status(model)


def _status(model) -> dict:
    layers = [asdict(each) for each in model.get_layer_status()]
    for each in layers:
        each["name"] = each["name"].removeprefix("model.")
    return {"layers": layers, "model": asdict(model.get_model_status())}
