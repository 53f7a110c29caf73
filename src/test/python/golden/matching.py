"""matching.json: which modules PEFT's rules choose, with which rank, computed by PEFT's own functions."""

from pathlib import Path

from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import Linear, LoraLayer, ParamWrapper
from peft.tuners.tuners_utils import (
    _ExcludedModule,
    _find_minimal_target_modules,
    _maybe_include_all_linear_layers,
    check_target_module_exists,
)
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, ModulesToSaveWrapper
from peft.utils.other import get_pattern_key
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

import matching_rows
import small_models
from common import load_base, quiet, require, write_table


PATTERN_KEYS = ("rank_pattern", "alpha_pattern")


def generate(name: str) -> None:
    """Writes <name>.json under the working directory."""
    write_table(
        Path(f"{name}.json"),
        {
            "default_targets": _default_targets(),
            "targets": [_target(*row) for row in matching_rows.TARGETS],
            "patterns": [_pattern(*row) for row in matching_rows.PATTERNS],
            "nested_patterns": [_nested(row, key) for row in matching_rows.NESTED_PATTERNS for key in PATTERN_KEYS],
            "small_models": [_names(name) for name in matching_rows.MODELS],
            "targeted": [_targeted(*row) for row in matching_rows.TARGETED],
            "all_linear": [_all_linear(*row) for row in matching_rows.ALL_LINEAR],
            "minimal": [_minimal(*row) for row in matching_rows.MINIMAL],
            "parameters": [_parameters(*row) for row in matching_rows.PARAMETERS],
            "injection": [_injection(*row) for row in matching_rows.INJECTION],
            "refused": [_refused(*row) for row in matching_rows.REFUSED],
        },
    )


def _default_targets() -> list:
    table = sorted(TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.items())
    return [{"model_type": model_type, "target_modules": targets} for model_type, targets in table]


def _target(key: str, target_modules, rules: dict | None = None) -> dict:
    fields = {"exclude_modules": None, "layers_to_transform": None, "layers_pattern": None, "modules_to_save": None}
    fields |= rules or {}
    with quiet():
        found = check_target_module_exists(LoraConfig(target_modules=target_modules, **fields), key)
    result = "excluded" if isinstance(found, _ExcludedModule) else "matched" if found else "not"
    return {"key": key, "target_modules": target_modules, **fields, "result": result}


def _pattern(key: str, patterns: dict) -> dict:
    """The value of the first pattern that fits, or null where the adapter's own value holds."""
    value = patterns.get(get_pattern_key(patterns.keys(), key))
    return {"key": key, "patterns": [[k, v] for k, v in patterns.items()], "value": value}


def _nested(patterns: dict, key: str) -> dict:
    """Rank and scale of every linear layer of the nested model."""
    config = {key: patterns}
    with quiet():
        model = get_peft_model(small_models.nested(), LoraConfig(target_modules="all-linear", **config))
    layers = {
        path: {"r": module.r["default"], "scaling": module.scaling["default"]}
        for path, module in model.get_base_model().named_modules()
        if isinstance(module, LoraLayer)
    }
    return {"config": config, "layers": layers}


def _targeted(name: str, config: dict) -> dict:
    """The modules that get an adapter, and the targets PEFT would save."""
    model = getattr(small_models, name)()
    row = {"model": name, "config": config}
    with quiet():
        adapted = get_peft_model(model, LoraConfig(**config))
    saved = adapted.peft_config["default"].target_modules
    saved = saved if isinstance(saved, str) else sorted(saved)
    return row | {"targeted": adapted.targeted_module_names, "saved_targets": saved}


def _model(name: str) -> nn.Module:
    return getattr(small_models, name)() if hasattr(small_models, name) else small_models.transformer(name)


def _names(name: str) -> dict:
    """The modules of a model, the linear ones, the one that gives its output, and its parameters."""
    model = _model(name)
    modules = [(path, module) for path, module in model.named_modules() if path]
    output = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    return {
        "name": name,
        "modules": [path for path, _ in modules],
        "linear": [path for path, module in modules if isinstance(module, (nn.Linear, Conv1D))],
        "output": next((path for path, module in modules if module is output), None),
        "parameters": [path for path, _ in model.named_parameters()] if name == "experts" else None,
    }


def _all_linear(name: str, config: dict) -> dict:
    model = _model(name)
    made = LoraConfig(target_modules="all-linear", **config)
    targets = sorted(_maybe_include_all_linear_layers(made, model).target_modules)
    return {"model": name, "task_type": made.task_type, "targets": targets}


def _minimal(targets: list[str], others: list[str]) -> dict:
    try:
        minimal = sorted(_find_minimal_target_modules(targets, others))
    except ValueError as error:
        return {"targets": targets, "others": others, "error": str(error)}
    return {"targets": targets, "others": others, "minimal": minimal}


def _parameters(name: str, config: dict) -> dict:
    """The parameters in the order they are wrapped, and rank and scale of each at the path that its keys begin with."""
    model = getattr(small_models, name)()
    row = {"model": name, "config": config}
    with quiet():
        try:
            adapted = get_peft_model(model, LoraConfig(**config))
        except ValueError as error:
            return row | {"error": str(error).splitlines()[0]}
    wrapped = {}
    for path, module in adapted.get_base_model().named_modules():
        if isinstance(module, ParamWrapper):
            wrapped[path] = {
                "parameter": module.parameter_name,
                "r": module.r["default"],
                "scaling": module.scaling["default"],
            }
    require(set(wrapped) == _saved_paths(adapted), f"{config}: the keys of the file")
    return row | {"targeted": adapted.targeted_parameter_names, "wrapped": wrapped}


def _saved_paths(adapted) -> set[str]:
    """Where the keys of parameters begin in the file."""
    keys = get_peft_model_state_dict(adapted)
    plain = [path for path, module in adapted.get_base_model().named_modules() if isinstance(module, Linear)]
    paths = {key.removeprefix("base_model.model.").partition(".lora_")[0] for key in keys if ".lora_" in key}
    return paths - set(plain)


def _injection(base: str, config: dict) -> dict:
    """The modules that get an adapter or are saved whole, and the targets PEFT would save."""
    with quiet():
        model = get_peft_model(load_base(base), LoraConfig(**config))
    lora, whole = {}, []
    for path, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            lora[path] = {"r": module.r["default"], "scaling": float(module.scaling["default"])}
        elif isinstance(module, ModulesToSaveWrapper):
            whole.append(path)
    targets = model.peft_config["default"].target_modules
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "base": base,
        "config": config,
        "layers": lora,
        "modules_to_save": whole,
        "saved_targets": targets if isinstance(targets, str) else sorted(targets),
        "trainable": trainable,
    }


def _refused(base: str, config: dict) -> dict:
    with quiet():
        try:
            made = LoraConfig(**config)
        except (ValueError, TypeError) as error:
            return _error(base, config, "construction", error)
        try:
            get_peft_model(load_base(base), made)
        except Exception as error:
            require(type(error).__name__ != "KeyError", f"{config}: {error!r}")
            return _error(base, config, "injection", error)
    raise AssertionError(f"PEFT accepts {config}")


def _error(base: str, config: dict, where: str, error: Exception) -> dict:
    message = str(error).splitlines()[0]
    return {"base": base, "config": config, "where": where, "type": type(error).__name__, "message": message}
