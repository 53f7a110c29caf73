"""The table of adapter cases: which model, which LoraConfig, and what is special about each."""

import dataclasses
from collections.abc import Callable

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
Q0 = "model.layers.0.self_attn.q_proj.weight"
DOWN1 = "model.layers.1.mlp.down_proj.weight"


@dataclasses.dataclass(frozen=True)
class Case:
    base: str  # path of the base model in the golden folder
    adapters: dict  # adapter name -> arguments of LoraConfig, in the order they are added
    text: str
    merged: tuple = ()  # parameters of the base whose merged values are kept
    active: tuple | None = None  # active adapters, the first one when None
    rows: tuple | None = None  # an adapter for each row of the batch
    dtype: str = "float32"  # of the base model when the adapter is loaded
    saved_from: str | None = None  # of the base model when the adapter was made, dtype when None
    autocast: bool = True  # PEFT's autocast_adapter_dtype
    batch: int = 3
    edit: Callable | None = None  # of adapter_config.json after PEFT has written it
    save: dict = dataclasses.field(default_factory=dict)  # arguments of save_pretrained
    roundings: int = 1  # of a merged value to the weight's type
    deviations: tuple = ()  # where a right implementation may differ from PEFT
    merge: bool = True
    same_after_reload: bool = True
    gradients: bool = False  # whether to keep those of lora_A and lora_B, of half the sum of squares of the output
    halve_output: bool = False  # of attentions, whose output projection PEFT counts twice: then it counts once


def llm(base: str, text: str, *merged: str, case: dict | None = None, **config) -> Case:
    config = {"r": 4, "lora_alpha": 7, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | config
    return Case("models/" + base, {"default": config}, text, merged, **(case or {}))


def toy(base: str, text: str, *merged: str, case: dict | None = None, **config) -> Case:
    config = {"r": 3, "lora_alpha": 5} | config
    return Case(f"toys/{base}.safetensors", {"default": config}, text, merged, **(case or {}))


def _first_release(config: dict) -> dict:
    keep = (
        "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "lora_alpha", "lora_dropout",
        "modules_to_save", "peft_type", "r", "target_modules", "task_type",
    )
    return {k: config[k] for k in keep}


def _later_release(config: dict) -> dict:
    return config | {"peft_version": "9.1.0", "use_tomorrow": {"a": [1, None]}, "another_unknown_key": False}


def _set(**changes) -> Callable:
    return lambda config: config | changes


HALF_EMBEDDING = "PEFT rounds the embedding's delta to the weight's type before adding it; rounding once differs"

LLM = {
    "llama_basic": llm("llama", "alpha differs from r", Q0, "model.layers.2.self_attn.v_proj.weight"),
    "llama_rank1": llm("llama", "rank 1, more alpha than rank", Q0, r=1, lora_alpha=3),
    "llama_rank_large": llm("llama", "a rank above both sides of the matrices", Q0, r=33, lora_alpha=4),
    "llama_alpha_fraction": llm("llama", "alpha is not a whole number", Q0, r=3, lora_alpha=0.7),
    "llama_dropout": llm("llama", "dropout in the configuration, evaluated without it", Q0, lora_dropout=0.25),
    "llama_rslora": llm("llama", "scaling is alpha over the root of r", Q0, r=5, lora_alpha=3, use_rslora=True),
    "llama_patterns": llm(
        "llama",
        "ranks and alphas by regular expression: anchored, dotted, alternatives; alpha does not follow the rank",
        Q0, "model.layers.1.self_attn.q_proj.weight", DOWN1,
        target_modules=ATTENTION + ["down_proj"],
        rank_pattern={"^model.layers.1.self_attn.q_proj": 2, "k_proj": 6, "mlp.down_proj": 3,
                      r".*\.0\..*(v|o)_proj": 1},
        alpha_pattern={"^model.layers.1.self_attn.q_proj": 5, r"layers\.2\..*_proj": 9, "o_proj": 2.5},
    ),
    "llama_pattern_order": llm(
        "llama",
        "two alpha patterns match the same layers; the first in the file wins, and PEFT sorts the keys on saving",
        Q0, "model.layers.1.self_attn.q_proj.weight",
        alpha_pattern={"q_proj": 2, r".*layers\.0\..*": 11},
        case=dict(same_after_reload=False),
    ),
    "llama_patterns_rslora": llm(
        "llama", "patterns under rsLoRA", Q0, "model.layers.0.self_attn.v_proj.weight",
        use_rslora=True, rank_pattern={"v_proj": 7}, alpha_pattern={"q_proj": 3},
    ),
    "llama_pattern_no_boundary": llm(
        "llama", "_proj is no suffix at a dot, so it gives nothing; layers.1.self_attn.q_proj does", Q0, DOWN1,
        target_modules=ATTENTION + ["down_proj"],
        rank_pattern={"_proj": 2, "layers.1.self_attn.q_proj": 3}, alpha_pattern={"proj": 5, "own_proj": 6},
    ),
    "llama_target_regex": llm(
        "llama", "targets as one regular expression, which must match the whole name", Q0,
        "model.layers.2.self_attn.o_proj.weight",
        target_modules=r".*\.layers\.[02]\.self_attn\.(q|o)_proj",
    ),
    "llama_target_names": llm(
        "llama", "targets as full and dotted names", Q0, DOWN1,
        target_modules=["model.layers.0.self_attn.q_proj", "layers.1.mlp.down_proj", "mlp.up_proj"],
    ),
    "llama_exclude_names": llm(
        "llama", "names taken out of the targets", Q0, target_modules=ATTENTION,
        exclude_modules=["layers.1.self_attn.q_proj", "o_proj"],
    ),
    "llama_exclude_regex": llm(
        "llama", "a regular expression taken out of the targets", Q0, target_modules=ATTENTION,
        exclude_modules=r".*\.layers\.[12]\..*|.*\.k_proj",
    ),
    "llama_layers": llm(
        "llama", "two of three layers", "model.layers.2.self_attn.v_proj.weight", layers_to_transform=[0, 2],
    ),
    "llama_layers_pattern": llm(
        "llama", "one layer by number, the list of layers by name", "model.layers.1.self_attn.q_proj.weight",
        layers_to_transform=1, layers_pattern="layers",
    ),
    "llama_layers_exact_name": llm(
        "llama", "a full name is a target whatever layers_to_transform says", Q0,
        "model.layers.2.self_attn.v_proj.weight",
        target_modules=["model.layers.0.self_attn.q_proj", "v_proj"],
        layers_to_transform=[2], layers_pattern=["layers"],
    ),
    "llama_all_linear": llm(
        "llama", "all-linear; PEFT saves 21 names as their shortest suffixes", Q0, DOWN1, target_modules="all-linear",
    ),
    "llama_tied_all_linear": llm(
        "llama_tied", "all-linear on 14 layers is saved as full names, without lm_head", Q0, DOWN1,
        target_modules="all-linear",
    ),
    "llama_bias_lora_only": llm(
        "llama_bias", "the biases of the targeted layers are trained and saved", Q0,
        "model.layers.0.self_attn.q_proj.bias", "model.layers.0.mlp.up_proj.bias", bias="lora_only",
    ),
    "llama_bias_all": llm(
        "llama_bias", "every bias is trained and saved", Q0,
        "model.layers.0.self_attn.q_proj.bias", "model.layers.0.mlp.up_proj.bias", bias="all",
    ),
    "qwen2_bias_lora_only": llm(
        "qwen2", "o_proj has no bias to train", "model.layers.0.self_attn.k_proj.bias", Q0,
        target_modules=["k_proj", "o_proj"], bias="lora_only",
    ),
    "llama_modules_to_save": llm(
        "llama", "lm_head and the last norm are saved whole", "lm_head.weight", "model.norm.weight", Q0,
        modules_to_save=["lm_head", "model.norm"],
    ),
    "llama_modules_to_save_suffix": llm(
        "llama", "norm is a bare suffix: every layer norm is saved too", "model.norm.weight",
        "model.layers.1.input_layernorm.weight", modules_to_save=["norm"],
    ),
    "llama_modules_to_save_target": llm(
        "llama", "a target under modules_to_save gets no adapter", "model.layers.0.mlp.up_proj.weight", Q0,
        target_modules=["q_proj", "up_proj"], modules_to_save=["layers.0.mlp.up_proj"],
    ),
    "llama_modules_to_save_embedding": llm(
        "llama", "the embedding is saved whole", "model.embed_tokens.weight", modules_to_save=["embed_tokens"],
    ),
    "llama_embedding": llm(
        "llama", "an adapter on the embedding; PEFT saves the embedding's base weight with it",
        "model.embed_tokens.weight", target_modules=["embed_tokens", "q_proj"],
    ),
    "llama_embedding_lean": llm(
        "llama", "an adapter on the embedding, saved without the base weight", "model.embed_tokens.weight",
        target_modules=["embed_tokens"], case=dict(save={"save_embedding_layers": False}),
    ),
    "llama_tied_embedding": llm(
        "llama_tied", "an adapter on an embedding that lm_head shares: lm_head does not see it", Q0,
        target_modules=["embed_tokens", "q_proj"],
        case=dict(
            save={"save_embedding_layers": False},
            merge=False,
            deviations=("PEFT's merge would write the delta into the weight lm_head shares; no merged values here",),
        ),
    ),
    "llama_lm_head": llm(
        "llama", "an adapter on lm_head; PEFT saves its base weight too", "lm_head.weight",
        target_modules=["lm_head", "k_proj"],
    ),
    "llama_init_gaussian": llm("llama", "init_lora_weights is gaussian", Q0, init_lora_weights="gaussian"),
    "llama_init_false": llm("llama", "init_lora_weights is false", Q0, init_lora_weights=False),
    "llama_init_orthogonal": llm("llama", "init_lora_weights is orthogonal", Q0, init_lora_weights="orthogonal"),
    "llama_named": Case(
        "models/llama",
        {"poem": {"r": 5, "lora_alpha": 6, "target_modules": ["k_proj", "gate_proj"], "task_type": "CAUSAL_LM"}},
        "an adapter that is not called default lies in a folder of its name",
        ("model.layers.2.mlp.gate_proj.weight",),
    ),
    "llama_two_active": Case(
        "models/llama",
        {
            "first": {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"},
            "second": {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "down_proj"], "use_rslora": True,
                       "task_type": "CAUSAL_LM"},
        },
        "two adapters active at once, on partly different layers; merged holds both",
        (Q0, "model.layers.0.self_attn.v_proj.weight", DOWN1),
        active=("first", "second"),
    ),
    "llama_rows": Case(
        "models/llama",
        {
            "one": {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"},
            "two": {"r": 1, "lora_alpha": 2, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"},
            "three": {"r": 6, "lora_alpha": 4, "target_modules": ["embed_tokens", "o_proj"], "task_type": "CAUSAL_LM"},
        },
        "an adapter per row, __base__ among them, with different ranks and layers",
        rows=("two", "__base__", "one", "three", "two", "one", "__base__"),
        batch=7,
        merge=False,
    ),
    "llama_bf16_base": llm(
        "llama_bf16", "bfloat16 base, float32 adapter (PEFT's default); merged is rounded once", Q0, DOWN1,
        target_modules=["q_proj", "down_proj"], case=dict(dtype="bfloat16"),
    ),
    "llama_bf16_adapter": llm(
        "llama_bf16", "bfloat16 base and adapter", Q0, DOWN1, target_modules=["q_proj", "down_proj"],
        case=dict(
            dtype="bfloat16", autocast=False, roundings=2,
            deviations=("PEFT rounds the delta of a bfloat16 adapter to bfloat16 before adding it to the weight",),
        ),
    ),
    "llama_bf16_file": llm(
        "llama_bf16", "a bfloat16 file loaded onto the base widened to float32", Q0,
        case=dict(saved_from="bfloat16", autocast=False),
    ),
    "llama_bf16_embedding": llm(
        "llama_bf16", "a float32 embedding adapter on a bfloat16 base", "model.embed_tokens.weight",
        target_modules=["embed_tokens", "q_proj"],
        case=dict(dtype="bfloat16", roundings=2, deviations=(HALF_EMBEDDING,)),
    ),
    "llama_config_first": llm(
        "llama", "adapter_config.json with the keys of PEFT's first release only", Q0, case=dict(edit=_first_release),
    ),
    "llama_config_later": llm(
        "llama", "adapter_config.json with keys PEFT 0.21 does not know and ignores with a warning", Q0,
        case=dict(edit=_later_release),
    ),
    "llama_default_targets": llm(
        "llama", "no targets given: PEFT chooses by model type, and saves what it chose", Q0, target_modules=None,
    ),
    "llama3_rope": llm("llama3_rope", "llama3 frequency scaling", Q0, target_modules=ATTENTION),
    "llama_sharded": llm("llama_sharded", "a base in three shards", Q0),
    "mistral_window": llm("mistral_window", "sliding window", Q0, target_modules=ATTENTION),
    "qwen2": llm("qwen2", "biases and tied embeddings", Q0, DOWN1, target_modules=["q_proj", "k_proj", "down_proj"]),
    "qwen3": llm("qwen3", "odd hidden size, norms on queries and keys", Q0, DOWN1, target_modules="all-linear"),
}

TOY = {
    "mlp_basic": toy("mlp", "one layer", "lin0.weight", target_modules=["lin0"]),
    "mlp_both": toy("mlp", "both layers, rank 1", "lin0.weight", "lin1.weight", r=1, target_modules=["lin0", "lin1"]),
    "mlp_bias_all": toy(
        "mlp", "every bias, the untargeted layer's too", "lin0.weight", "lin0.bias", "lin1.bias",
        target_modules=["lin0"], bias="all",
    ),
    "mlp_bias_lora_only": toy(
        "mlp", "the targeted layer's bias", "lin0.weight", "lin0.bias", "lin1.bias", target_modules=["lin0"],
        bias="lora_only",
    ),
    "mlp_modules_to_save": toy(
        "mlp", "lin1 saved whole", "lin0.weight", "lin1.weight", "lin1.bias", target_modules=["lin0"],
        modules_to_save=["lin1"],
    ),
    "mlp_regex": toy("mlp", "a name at the top of the module tree by regular expression", "lin1.weight",
                     target_modules="lin[1-9]"),
    "mlp_fan_in_fan_out_wrong": toy(
        "mlp", "fan_in_fan_out is true in the file and PEFT corrects it for nn.Linear", "lin0.weight",
        target_modules=["lin0"], case=dict(edit=_set(fan_in_fan_out=True)),
    ),
    "mlp_fp16": toy("mlp", "float16 base, float32 adapter", "lin0.weight", "lin1.weight",
                    target_modules=["lin0", "lin1"], case=dict(dtype="float16")),
    "mlp_two_active": Case(
        "toys/mlp.safetensors",
        {
            "first": {"r": 3, "lora_alpha": 5, "target_modules": ["lin0"]},
            "second": {"r": 7, "lora_alpha": 2, "target_modules": ["lin1", "lin0"], "use_rslora": True},
        },
        "two adapters active at once",
        ("lin0.weight", "lin1.weight"),
        active=("second", "first"),
    ),
    "mlp_second_active": Case(
        "toys/mlp.safetensors",
        {
            "first": {"r": 3, "lora_alpha": 5, "target_modules": ["lin0"]},
            "second": {"r": 2, "lora_alpha": 3, "target_modules": ["lin1"]},
        },
        "the second of two adapters active alone; merged holds it only",
        ("lin0.weight", "lin1.weight"),
        active=("second",),
    ),
    "mlp_rows": Case(
        "toys/mlp.safetensors",
        {
            "a": {"r": 3, "lora_alpha": 5, "target_modules": ["lin0"]},
            "b": {"r": 1, "lora_alpha": 3, "target_modules": ["lin0", "lin1"]},
        },
        "an adapter per row",
        rows=("b", "a", "__base__", "b", "b"),
        batch=5,
        merge=False,
    ),
    "embconv_emb": toy("embconv", "the embedding", "emb.weight", target_modules=["emb"]),
    "embconv_conv1d": toy(
        "embconv", "Hugging Face's Conv1D with one output", "conv1d.weight", target_modules=["conv1d"], r=2,
        fan_in_fan_out=True,
    ),
    "embconv_all": toy(
        "embconv", "embedding, Conv1D and linear together", "emb.weight", "conv1d.weight", "lin0.weight",
        target_modules=["emb", "conv1d", "lin0"], lora_dropout=0.4, use_rslora=True,
    ),
    "embconv_rows": Case(
        "toys/embconv.safetensors",
        {
            "a": {"r": 3, "lora_alpha": 5, "target_modules": ["emb"]},
            "b": {"r": 2, "lora_alpha": 3, "target_modules": ["emb", "conv1d", "lin0"], "fan_in_fan_out": True},
        },
        "an adapter per row on an embedding and a Conv1D",
        rows=("b", "__base__", "a"),
        batch=3,
        merge=False,
    ),
    "hfmlp": toy(
        "hfmlp", "two of Hugging Face's Conv1D", "c_fc.weight", "c_proj.weight", target_modules=["c_fc", "c_proj"],
        fan_in_fan_out=True, bias="lora_only",
    ),
    "hfmlp_fan_in_fan_out_wrong": toy(
        "hfmlp", "fan_in_fan_out is false in the file and PEFT corrects it for Conv1D", "c_fc.weight",
        target_modules=["c_fc"], case=dict(edit=_set(fan_in_fan_out=False)),
    ),
    "conv1d": toy("conv1d", "stride and padding", "conv1d.weight", "lin0.weight", target_modules=["conv1d", "lin0"]),
    "conv2d": toy("conv2d", "stride and padding differ by side", "conv2d.weight", target_modules=["conv2d"]),
    "conv2d_rank1": toy(
        "conv2d", "rank 1, rsLoRA", "conv2d.weight", "lin0.weight", target_modules=["conv2d", "lin0"], r=1,
        rank_pattern={"lin0": 4}, use_rslora=True,
    ),
    "conv2d_bias": toy(
        "conv2d", "the convolution's bias", "conv2d.weight", "conv2d.bias", target_modules=["conv2d"],
        bias="lora_only",
    ),
    "conv2d_bf16": toy("conv2d", "bfloat16 base, float32 adapter", "conv2d.weight", target_modules=["conv2d"],
                       case=dict(dtype="bfloat16")),
    "conv2d_1x1": toy("conv2d_1x1", "a 1x1 kernel", "conv2d.weight", target_modules=["conv2d"]),
    "conv2d_groups": toy(
        "conv2d_groups", "two groups: forward only, PEFT cannot merge them", target_modules=["conv2d"], r=4,
        case=dict(merge=False, deviations=("PEFT refuses to merge a convolution with groups",)),
    ),
    "conv2d_rows": Case(
        "toys/conv2d.safetensors",
        {
            "a": {"r": 3, "lora_alpha": 5, "target_modules": ["conv2d"]},
            "b": {"r": 1, "lora_alpha": 2, "target_modules": ["lin0", "conv2d"]},
        },
        "an adapter per row on a convolution",
        rows=("a", "b", "__base__", "a"),
        batch=4,
        merge=False,
    ),
    "conv3d": toy("conv3d", "kernel, stride and padding differ by side", "conv3d.weight", target_modules=["conv3d"]),
    "conv3d_lin": toy(
        "conv3d", "with the linear layer, rank 1", "conv3d.weight", "lin0.weight", r=1,
        target_modules=["conv3d", "lin0"],
    ),
}

CASES = LLM | TOY

# Adapters that plain LoRA gives wrong outputs for: the loader must do the method or refuse it by name.
OTHER_METHODS = {
    "dora": toy("mlp", "use_dora: a magnitude per output", "lin0.weight", target_modules=["lin0"], use_dora=True),
    "lora_bias": toy("mlp", "lora_bias: a bias on lora_B", "lin0.weight", "lin0.bias", target_modules=["lin0"],
                     lora_bias=True),
    "pissa": toy("mlp", "init_lora_weights pissa: loading takes the principal part out of the base weight",
                 "lin0.weight", target_modules=["lin0"], init_lora_weights="pissa"),
    "olora": toy("mlp", "init_lora_weights olora: loading takes the initial product out of the base weight",
                 "lin0.weight", target_modules=["lin0"], init_lora_weights="olora"),
    "trainable_tokens": llm("llama", "trainable_token_indices: rows of the embedding are replaced",
                            "model.embed_tokens.weight", trainable_token_indices=[3, 17, 44]),
    "layer_replication": llm("llama", "layer_replication: layers are repeated before the adapter is put on",
                             layer_replication=[[0, 2], [1, 3]], case=dict(merge=False)),
    "alora": llm("llama", "alora_invocation_tokens: the adapter starts at the invocation tokens",
                 alora_invocation_tokens=[9, 4], case=dict(merge=False)),
}
