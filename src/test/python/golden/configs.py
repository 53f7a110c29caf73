"""configs.json: what PEFT writes for every field of LoraConfig, and what it refuses, warns of and drops."""

import json
import tempfile
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import config_rows
import toys
from common import quiet, require, write_table


class Experts(nn.Module):
    """The parameters of three experts, stacked."""

    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.zeros(3, 4, 6))


class Base(toys.Mlp):
    """Has a target of every kind that a row of config_rows names."""

    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(10, 4)
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(4, 4)) for _ in range(2)])
        self.experts = Experts()


def generate(name: str) -> None:
    """Writes <name>.json under the working directory."""
    fields = [{"arguments": row, "file": _differences(_saved(row))} for row in config_rows.FIELDS]
    keys = set(_saved({}))
    require(len(keys) == 41, f"{len(keys)} keys")
    rest = keys - {key for row in fields for key in row["file"]}
    require(rest == {"peft_type"}, f"no row changes {rest}")
    write_table(
        Path(f"{name}.json"),
        {
            "fields": fields,
            "refused": [_refused(*row) for row in config_rows.REFUSED],
            "warned": [_warned(*row) for row in config_rows.WARNED],
            "unknown": [_unknown(*row) for row in config_rows.UNKNOWN],
        },
    )


def _file(config: LoraConfig) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return json.loads((Path(folder) / "adapter_config.json").read_text())


def _saved(arguments: dict) -> dict:
    with quiet():
        return _sorted(_file(LoraConfig(**arguments)), arguments)


def _sorted(file: dict, arguments: dict) -> dict:
    """Sets in the order they were given in."""
    for key in ("target_modules", "exclude_modules"):
        given = arguments.get(key)
        if isinstance(given, list):
            require(set(file[key]) == set(given), key)
            file[key] = given
    return file


def _differences(file: dict) -> dict:
    defaults = _saved({})
    return {key: value for key, value in file.items() if json.dumps(value) != json.dumps(defaults[key])}


def _refused(arguments: dict, field: str, rule: str) -> dict:
    arguments = config_rows.LIN | arguments
    row = {"config": arguments, "field": field, "rule": rule}
    with quiet():
        try:
            config = LoraConfig(**arguments)
        except Exception as error:
            return row | _message("construction", error)
        try:
            model = get_peft_model(Base(), config)
            model.train()(torch.zeros(3, 10))
        except Exception as error:
            return row | _message("injection", error)
    raise AssertionError(f"PEFT accepts {arguments}")


def _message(where: str, error: Exception) -> dict:
    return {"where": where, "type": type(error).__name__, "message": str(error).splitlines()[0]}


def _warned(arguments: dict, warning: str | None) -> dict:
    arguments = config_rows.LIN | arguments
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        LoraConfig(**arguments)
    messages = [str(each.message) for each in caught]
    require(bool(messages) == bool(warning), f"{arguments}: {messages}")
    return {"config": arguments, "peft": messages, "warning": warning}


def _unknown(entries: dict, warning: str) -> dict:
    """What PEFT makes of a file: the entries it keeps, and its warnings or its error."""
    file = _saved(config_rows.LIN) | entries
    row = {"config": config_rows.LIN | entries, "warning": warning}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (Path(folder) / "adapter_config.json").write_text(json.dumps(file))
        try:
            config = LoraConfig.from_pretrained(folder)
        except (TypeError, RecursionError) as error:
            return row | {"peft": type(error).__name__}
    kept = _file(config)
    return row | {"peft": [str(each.message) for each in caught], "kept": {k: kept.get(k) for k in entries}}
