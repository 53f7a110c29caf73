"""Writes the golden configurations: adapter_config.json files saved by PEFT, float texts and re.match results of Python.

    pip install torch==2.13.0 peft==0.21.0
    python make_configs.py ../../resources/golden/config
"""

import json
import pathlib
import random
import re
import struct
import sys
import tempfile
import warnings

from peft import LoraConfig
from peft.tuners.lora.config import (
    ArrowConfig,
    BdLoraConfig,
    CordaConfig,
    EvaConfig,
    KasaConfig,
    LoraGAConfig,
    MontecloraConfig,
    VeloraConfig,
)

CONFIGS = {
    "defaults": {},
    "usual": dict(
        r=16, lora_alpha=32, target_modules=["q_proj"], lora_dropout=0.05, bias="lora_only", task_type="CAUSAL_LM"
    ),
    "patterns": dict(
        r=4,
        lora_alpha=2.5,
        target_modules="all-linear",
        exclude_modules=r".*\.(gate|up)_proj",
        rank_pattern={"zz": 3, "^a.*": 7, "(?P<x_1>k)_proj": 2},
        alpha_pattern={"v_proj": 16, "q_proj": 0.1},
        use_rslora=True,
    ),
    "layers": dict(
        target_modules=["v_proj"],
        exclude_modules=["lm_head"],
        layers_to_transform=[0, 2],
        layers_pattern=["layers", "h"],
        modules_to_save=["score"],
        init_lora_weights="gaussian",
        fan_in_fan_out=True,
    ),
    "regex": dict(target_modules=r".*model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj", init_lora_weights=False),
    "text": dict(
        target_modules=["gr\u00f6\u00dfe \U0001f600"],
        base_model_name_or_path='quote " slash / back \\ tab \t nul \x00 del \x7f',
        revision="main",
        init_lora_weights="pissa_niter_16",
    ),
    "dora": dict(target_modules=["q_proj"], use_dora=True, trainable_token_indices={"embed_tokens": [1, 5]}),
    "lora_bias": dict(target_modules=["q_proj"], lora_bias=True, ensure_weight_tying=True, bias="all"),
    "replication": dict(target_modules=["q_proj"], layer_replication=[(0, 4), (2, 5)], target_parameters=["mlp.w"]),
    "alora": dict(target_modules=["q_proj"], alora_invocation_tokens=[7, 8, 9], task_type="CAUSAL_LM"),
    "eva": dict(target_modules=["q_proj"], init_lora_weights="eva", eva_config=EvaConfig(tau=0.999999)),
    "corda": dict(target_modules=["q_proj"], init_lora_weights="corda", corda_config=CordaConfig()),
    "lora_ga": dict(target_modules=["q_proj"], init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig()),
    "monteclora": dict(target_modules=["q_proj"], monteclora_config=MontecloraConfig()),
    "bdlora": dict(target_modules=["q_proj"], use_bdlora=BdLoraConfig(target_modules_bd_a=["q_proj"], nblocks=2)),
    "kasa": dict(target_modules=["q_proj"], kasa_config=KasaConfig(beta=1e-5, gamma=1e-22)),
    "velora": dict(target_modules=["q_proj"], velora_config=VeloraConfig(num_groups=3)),
    "arrow": dict(target_modules=["q_proj"], arrow_config=ArrowConfig(top_k=2)),
    "megatron": dict(target_modules=["q_proj"], megatron_config={"zeta": 1, "alpha": [1.0, {"b": None}, []]}),
    "qalora": dict(target_modules=["q_proj"], use_qalora=True, qalora_group_size=8),
}

REGEXES = [
    r"q_proj",
    r".*\.q_proj",
    r"model\.layers\.\d+\.(?:q|v)_proj",
    r"(?P<head_1>[a-c]+)\.(?P=head_1)",
    r"(?P<_x>a)b",
    r"(a)(b)\2\1",
    r"(a)\1",
    r"a\10",
    r"(?i)Q_PROJ",
    r"(?i:Q)_proj",
    r"(?s).*z",
    r".*z",
    r"(?a)\w+",
    r"\w+",
    r"x{2}",
    r"x{,2}",
    r"x{2,}",
    r"x{",
    r"x{a}",
    r"}",
    r"[[a]+",
    r"[a&&b]+",
    r"[]a]+",
    r"[^]a]+",
    r"[\]\[]+",
    r"[a^b]+",
    r"[\b]",
    r"\x41\u00e9\U0001F600",
    r"\0",
    r"\07",
    r"[\07]",
    r"\v",
    r"a\Z",
    r"a$",
    r"^a",
    r"\Aa",
    r"a(?#comment)b",
    r"a(?=b)b",
    r"(?<=a)b",
    r"(?>a+)b",
    r"a++b",
    r"a*?",
    r"\.",
    r"\-",
    r"\é",
    r"é",
    r"\d+",
    r"\s",
    r"\bq\b",
    r"(?P<n>a)|b",
    # Refused by Python
    r"(",
    r")",
    r"[a",
    r"a\\" "\\",
    r"(?P<n>a)(?P<n>b)",
    r"(?P=n)",
    r"(?P<1n>a)",
    r"(?<n>a)",
    r"\Qa\E",
    r"\p{L}",
    r"\h",
    r"\x4",
    r"\1",
    r"*a",
    r"a**",
    r"a(?i)b",
    r"(?q)a",
    r"x{3,2}",
    r"[z-a]",
    r"\U00110000",
]

SUBJECTS = [
    "q_proj", "Q_PROJ", "model.layers.3.q_proj", "model.layers.12.v_proj", "self_attn.q_proj", "abc.abc", "ab.abc", "ab",
    "abba", "aa", "a", "b", "aab", "x", "xx", "xxx", "", "x{", "x{a}", "}", "[a", "a&b", "]a", "^", "[]", "a^b", "\x08",
    "A\u00e9\U0001f600", "\x00", "\x07", "\x0b", "a\n", "a\r", "ba", "z", "y\nz", "y\rz", "y\u0085z", "\u00e9", "-", ".",
    "\u0664\u0662", "q.k", "b\u00e9", "\u00a0", "a0", "a1",
]  # fmt: skip


def regex_case(regex):
    try:
        compiled = re.compile(regex)
    except (re.error, OverflowError) as error:
        return {"regex": regex, "error": str(error)}
    return {
        "regex": regex,
        "fullmatch": [s for s in SUBJECTS if compiled.fullmatch(s)],
        "match": [s for s in SUBJECTS if compiled.match(s)],
    }


def floats():
    draw = random.Random(20)
    values = [0.0, -0.0, 1.0, 0.1, 1e-5, 1e-4, 0.00012, 123456789.125, 1e15, 1e16, 1e17, 1.5e300, 5e-324, 2.2250738585072014e-308]
    values += [2.0**k for k in range(-80, 80, 3)] + [2.0**-44, 9007199254740993.0, 1 / 3, 2 / 3, 1e22, 1e23, 1.7976931348623157e308]
    values += [draw.uniform(-2, 2) * 10 ** draw.randint(-20, 20) for _ in range(300)]
    bits = [struct.unpack("<d", draw.randbytes(8))[0] for _ in range(200)]
    return values + [v for v in bits if v == v and abs(v) != float("inf")]


def write(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n")


def main(folder):
    warnings.simplefilter("ignore")
    for name, arguments in CONFIGS.items():
        with tempfile.TemporaryDirectory() as saved:
            LoraConfig(**arguments).save_pretrained(saved)
            target = folder / "peft" / f"{name}.json"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((pathlib.Path(saved) / "adapter_config.json").read_bytes())
    cases = {"subjects": SUBJECTS, "cases": [regex_case(regex) for regex in REGEXES]}
    write(folder / "python_regex.json", cases)
    write(folder / "python_floats.json", {"floats": [{"hex": v.hex(), "text": repr(v)} for v in floats()]})


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
