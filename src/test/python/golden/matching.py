"""matching.json: which modules PEFT's rules choose, with which rank, computed by PEFT's own functions."""

from pathlib import Path

from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, ModulesToSaveWrapper
from peft.utils.other import get_pattern_key

import matching_rows
from common import load_base, quiet, require, write_table


def generate(name: str) -> None:
    """Writes <name>.json under the working directory."""
    write_table(
        Path(f"{name}.json"),
        {
            "default_targets": _default_targets(),
            "targets": [_target(*row) for row in matching_rows.TARGETS],
            "patterns": [_pattern(*row) for row in matching_rows.PATTERNS],
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
