"""The rows of configs.json: inputs only, PEFT gives the results. `field` and `rule` are what lora4j's message must name."""

import itertools

LIN = {"target_modules": ["lin0"]}

# Arguments of LoraConfig: together they give every key of the file a value that is not its default.
FIELDS = [
    {"task_type": "SEQ_CLS"},
    {"task_type": "CAUSAL_LM", "alora_invocation_tokens": [7, 8, 9]},
    {"auto_mapping": {"base_model_class": "LlamaModel", "parent_library": "transformers.models.llama"}},
    {"peft_version": "0.20.1.dev0@UNKNOWN"},
    {"base_model_name_or_path": "org/base"},
    {"revision": "v1.5"},
    {"inference_mode": True},
    {"r": 3},
    {"lora_alpha": 32},
    {"lora_alpha": 2.5},
    {"lora_alpha": 16.0},
    {"lora_alpha": -3},
    {"lora_dropout": 0.25},
    {"lora_dropout": 1.0},
    {"target_modules": ["q_proj"]},
    {"target_modules": []},
    {"target_modules": r".*\.(q|v)_proj"},
    {"target_modules": "all-linear"},
    {"exclude_modules": ["lm_head"]},
    {"exclude_modules": []},
    {"exclude_modules": r"lm_.*"},
    {"fan_in_fan_out": True},
    {"bias": "all"},
    {"bias": "lora_only"},
    {"use_rslora": True},
    {"modules_to_save": ["score", "classifier"]},
    *({"init_lora_weights": name} for name in (False, "gaussian", "orthogonal", "olora", "mica", "lora_ga")),
    *({"init_lora_weights": name} for name in ("pissa", "pissa_niter_16", "Gaussian", "OLoRA")),
    {"target_modules": ["q_proj"], "layers_to_transform": [0, 2]},
    {"target_modules": ["q_proj"], "layers_to_transform": 3},
    {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ["layers", "h"]},
    {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
    {"rank_pattern": {"^model.q_proj": 3, "v_proj": 5}},
    {"alpha_pattern": {"^model.q_proj": 3, "v_proj": 0.5}},
    {"megatron_config": {"hidden_size": 8, "nested": {"a": [1, None, 2.5]}}},
    {"megatron_core": "megatron.other"},
    {"trainable_token_indices": [0, 5]},
    {"trainable_token_indices": {"embed_tokens": [1, 3], "other": [2]}},
    {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 2, "loftq_iter": 3}},
    {
        "init_lora_weights": "eva",
        "eva_config": {
            "rho": 1.5,
            "tau": 0.5,
            "use_label_mask": False,
            "label_mask_value": -1,
            "whiten": True,
            "adjust_scaling_factors": False,
        },
    },
    {
        "init_lora_weights": "corda",
        "corda_config": {
            "cache_file": "cache",
            "covariance_file": "covariance",
            "corda_method": "kpm",
            "verbose": True,
            "use_float16_for_covariance": True,
            "prune_temporary_fields": False,
        },
    },
    {
        "init_lora_weights": "lora_ga",
        "lora_ga_config": {"direction": "ArBr", "scale": "gd_scale", "stable_gamma": 8},
    },
    {"use_dora": True},
    {"velora_config": {"num_groups": 3, "scale": 0.5, "init_type": "random"}},
    {"use_qalora": True},
    {"qalora_group_size": 8},
    {
        "monteclora_config": {
            "num_samples": 2,
            "use_entropy": True,
            "dirichlet_prior": 0.5,
            "sample_scaler": 0.001,
            "kl_loss_weight": 0.01,
            "buffer_size": 15,
        }
    },
    {"layer_replication": [[0, 4], [2, 5]]},
    {"lora_bias": True},
    {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    {
        "use_bdlora": {
            "target_modules_bd_a": ["o_proj"],
            "target_modules_bd_b": ["q_proj", "v_proj"],
            "nblocks": 2,
            "match_strict": False,
        }
    },
    {"arrow_config": {"top_k": 2, "router_temperature": 0.5, "use_gks": True, "rng_seed": 7}},
    {"kasa_config": {"beta": 0.5, "gamma": 1e-22}},
    {"ensure_weight_tying": True},
    # Nested objects that leave out keys; PEFT fills them in, and the settings of two initialisations by itself.
    {"eva_config": {"rho": 3}, "init_lora_weights": "eva"},
    {"init_lora_weights": "eva"},
    {"init_lora_weights": "corda"},
    *({key: {}} for key in ("arrow_config", "kasa_config", "monteclora_config", "use_bdlora", "velora_config")),
    {"init_lora_weights": "lora_ga", "lora_ga_config": {}},
]

VARIANTS = {
    "alora_invocation_tokens": {"alora_invocation_tokens": [1], "task_type": "CAUSAL_LM"},
    "arrow_config": {"arrow_config": {}},
    "initLoraWeights=mica": {"init_lora_weights": "mica"},
    "kasa_config": {"kasa_config": {}},
    "monteclora_config": {"monteclora_config": {}},
    "use_bdlora": {"use_bdlora": {"target_modules_bd_a": ["lin0"]}},
    "use_dora": {"use_dora": True},
    "velora_config": {"velora_config": {}},
}

PARAMETER = {"target_modules": [], "target_parameters": ["experts.up"]}


def nested(key: str, rule: str, **values):
    """One row for each value of a nested key that is out of range."""
    return [({key: {name: value}}, f"{key}.{name}", rule) for name, value in values.items()]


# (arguments beside LIN of LoraConfig that PEFT refuses whatever the model, lora4j's field, a part of lora4j's rule)
REFUSED = [
    ({"task_type": "POETRY"}, "task_type", "CAUSAL_LM"),
    ({"r": 0}, "r", "at least 1"),
    ({"r": -3}, "r", "at least 1"),
    ({"r": 4.5}, "r", "whole number"),
    ({"r": "8"}, "r", "whole number"),
    ({"lora_alpha": "16"}, "lora_alpha", "number"),
    ({"lora_dropout": 1.5}, "loraDropout", "between 0 and 1"),
    ({"target_modules": 5}, "target_modules", "list of strings"),
    ({"target_modules": "lin("}, "targetModules", "regular expression"),
    ({"exclude_modules": "lin("}, "excludeModules", "regular expression"),
    ({"modules_to_save": ["lin("]}, "modulesToSave", "regular expression"),
    ({"bias": "some"}, "bias", "lora_only"),
    ({"bias": "ALL"}, "bias", "lora_only"),
    ({"init_lora_weights": "nonsense"}, "initLoraWeights", "not an initialisation"),
    ({"init_lora_weights": "Orthogonal"}, "initLoraWeights", "not an initialisation"),
    ({"init_lora_weights": "PiSSA"}, "initLoraWeights", "not an initialisation"),
    ({"init_lora_weights": "pissa_x"}, "initLoraWeights", "not an initialisation"),
    ({"init_lora_weights": "pissa_niter_x"}, "initLoraWeights", "not an initialisation"),
    ({"target_modules": "lin0", "layers_to_transform": [0]}, "layersToTransform", "targetModules given as names"),
    ({"target_modules": "lin0", "layers_to_transform": 0}, "layersToTransform", "targetModules given as names"),
    ({"target_modules": "all-linear", "layers_to_transform": [0]}, "layersToTransform", "targetModules given as names"),
    ({"target_modules": "lin0", "layers_pattern": ["layers"]}, "layersPattern", "targetModules given as names"),
    ({"layers_pattern": ["layers"]}, "layersPattern", "layersToTransform"),
    ({"layers_pattern": "layers"}, "layersPattern", "layersToTransform"),
    ({"target_modules": ["0"], "layers_to_transform": [1], "layers_pattern": "h("}, "layersPattern", "regular expr"),
    ({"rank_pattern": {"lin0": 0}}, "rankPattern", "at least 1"),
    ({"rank_pattern": {"lin(": 3}}, "rankPattern", "regular expression"),
    ({"alpha_pattern": {"lin(": 3}}, "alphaPattern", "regular expression"),
    ({"alpha_pattern": {"lin0": "3"}}, "alpha_pattern.lin0", "number"),
    ({"use_dora": True, "megatron_config": {"a": 1}}, "use_dora", "megatron_config"),
    ({"megatron_config": {"a": 1}, "megatron_core": "evil"}, "megatron_core", "megatron."),
    ({"init_lora_weights": "loftq"}, "initLoraWeights", "loftq_config"),
    ({"init_lora_weights": "loftq", "loftq_config": {}}, "initLoraWeights", "loftq_config"),
    ({"lora_bias": True, "init_lora_weights": "gaussian"}, "lora_bias", "true or false"),
    ({"lora_bias": True, "init_lora_weights": "pissa"}, "lora_bias", "true or false"),
    ({"lora_bias": True, "use_dora": True}, "lora_bias", "use_dora"),
    ({"target_parameters": "experts.up"}, "target_parameters", "list of names"),
    ({"trainable_token_indices": {"emb": [1]}, "modules_to_save": ["emb"]}, "trainable_token_indices", "modulesToSave"),
    ({"layer_replication": [[0]]}, "layer_replication", "pairs"),
    *nested("velora_config", "above 0", num_groups=0, scale=0),
    *nested("velora_config", "batch_average", init_type="mean"),
    *nested("arrow_config", "above 0", top_k=0, router_temperature=0),
    *nested("eva_config", "at least 1", rho=0.5),
    *nested("eva_config", "between 0 and 1", tau=1.5),
    *nested("eva_config", "between 0 and 1", tau=-0.5),
    *nested("kasa_config", "at least 0", beta=-1, gamma=-1e-9),
    *nested("monteclora_config", "above 0", num_samples=0, dirichlet_prior=0, buffer_size=-1),
    *nested("monteclora_config", "not a key", future=1),
    (
        {"use_bdlora": {"target_modules_bd_a": ["lin0", "lin1"], "target_modules_bd_b": ["lin1"]}},
        "use_bdlora",
        "both",
    ),
    *(
        ({key: value}, key, "object")
        for key in ("arrow_config", "corda_config", "eva_config", "kasa_config", "lora_ga_config", "velora_config")
        for value in (3, True)
    ),
    ({"use_bdlora": True}, "use_bdlora", "object"),
    ({"use_bdlora": False}, "use_bdlora", "object"),
    ({"monteclora_config": 3}, "monteclora_config", "object"),
    *(
        (VARIANTS[a] | VARIANTS[b], "otherFields", "keep one")
        for a, b in itertools.combinations(VARIANTS, 2)
    ),
    *((PARAMETER | VARIANTS[name], "target_parameters", name) for name in VARIANTS),
    (PARAMETER | {"lora_dropout": 0.1}, "target_parameters", "loraDropout"),
    (PARAMETER | {"fan_in_fan_out": True}, "target_parameters", "fanInFanOut"),
    (PARAMETER | {"lora_bias": True}, "target_parameters", "lora_bias"),
]

# (arguments PEFT warns of whatever the model, a part of lora4j's warning)
WARNED = [
    ({"loftq_config": {"loftq_bits": 4}}, "loftq_config"),
    ({"init_lora_weights": "eva"}, "eva_config"),
    ({"eva_config": {"rho": 3}}, "eva_config"),
    ({"init_lora_weights": "corda"}, "corda_config"),
    ({"corda_config": {"verbose": True}}, "corda_config"),
    ({"init_lora_weights": "corda", "corda_config": {}, "eva_config": {}}, "eva_config"),
    ({"alora_invocation_tokens": [3]}, "CAUSAL_LM"),
    ({"alora_invocation_tokens": [3], "task_type": "SEQ_CLS"}, "CAUSAL_LM"),
    *(
        ({"init_lora_weights": init, "use_rslora": True, key: {"lin0": 4}}, "useRslora")
        for init in ("pissa", "pissa_niter_4", "olora", "corda", "lora_ga")
        for key in ("rank_pattern", "alpha_pattern")
    ),
    # No warning.
    ({}, None),
    ({"alora_invocation_tokens": [3], "task_type": "CAUSAL_LM"}, None),
    ({"init_lora_weights": "eva", "eva_config": {}}, None),
    ({"init_lora_weights": "corda", "corda_config": {}}, None),
    ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}, None),
    ({"init_lora_weights": "pissa", "rank_pattern": {"lin0": 4}}, None),
    ({"init_lora_weights": "pissa", "use_rslora": True}, None),
    ({"init_lora_weights": "gaussian", "use_rslora": True, "rank_pattern": {"lin0": 4}}, None),
    ({"init_lora_weights": "orthogonal", "use_rslora": True, "rank_pattern": {"lin0": 4}}, None),
]

# (entries of a file another version may have written, a part of lora4j's warning)
UNKNOWN = [
    ({"use_future": {"a": [1, 2.5, None]}}, "use_future"),
    ({"runtime_config": {"ephemeral_gpu_offload": True}}, "runtime_config"),
    ({"init_lora_weights": "future_init"}, "future_init"),
    *(
        ({key: {"future": 1}} | more, f"{key}.future")
        for key, more in {
            "arrow_config": {},
            "corda_config": {"init_lora_weights": "corda"},
            "eva_config": {"init_lora_weights": "eva"},
            "kasa_config": {},
            "lora_ga_config": {"init_lora_weights": "lora_ga"},
            "monteclora_config": {},
            "use_bdlora": {},
            "velora_config": {},
        }.items()
    ),
    ({"corda_config": {"corda_method": "xpm"}, "init_lora_weights": "corda"}, "corda_config.corda_method"),
    ({"lora_ga_config": {"direction": "BrAr"}, "init_lora_weights": "lora_ga"}, "lora_ga_config.direction"),
    ({"lora_ga_config": {"scale": "huge"}, "init_lora_weights": "lora_ga"}, "lora_ga_config.scale"),
]
