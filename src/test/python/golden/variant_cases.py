"""Tables of adapter cases by variant: DoRA, biases on B, parameters, and features side by side."""

from adapter_cases import ATTENTION, Case, DOWN1, HALF_EMBEDDING, Q0, llm, toy

# Toy, its adapted modules, the weights a merge changes.
TOYS = {
    "mlp": (["lin0", "lin1"], ["lin0.weight", "lin1.weight"]),
    "hfmlp": (["c_fc", "c_proj"], ["c_fc.weight", "c_proj.weight"]),
    "conv1d": (["conv1d", "lin0"], ["conv1d.weight", "lin0.weight"]),
    "conv2d": (["conv2d", "lin0"], ["conv2d.weight", "lin0.weight"]),
    "conv2d_1x1": (["conv2d"], ["conv2d.weight"]),
    "conv3d": (["conv3d", "lin0"], ["conv3d.weight", "lin0.weight"]),
    "embconv": (["emb", "conv1d", "lin0"], ["emb.weight", "conv1d.weight", "lin0.weight"]),
}
LINEAR_BIAS = {"mlp": ["lin0", "lin1"], "hfmlp": ["c_fc", "c_proj"], "conv1d": ["conv1d"], "conv2d": ["conv2d", "lin0"],
               "conv3d": ["conv3d"]}
FAN = {"hfmlp": {"fan_in_fan_out": True}}


def _dora() -> dict:
    cases = {}
    for name, (targets, weights) in TOYS.items():
        own = dict(target_modules=targets, use_dora=True, **FAN.get(name, {}))
        cases[name] = toy(name, "DoRA, alpha differs from r", *weights, **own)
        cases[name + "_rank1"] = toy(name, "DoRA of rank 1", *weights, **own | {"r": 1, "lora_alpha": 2})
        cases[name + "_rslora"] = toy(name, "DoRA, scaling over the root of r", *weights, use_rslora=True, **own)
    for dtype in ("bfloat16", "float16"):
        for name in ("mlp", "hfmlp"):
            targets, weights = TOYS[name]
            cases[f"{name}_{dtype}"] = toy(
                name, f"DoRA on a {dtype} base", *weights, target_modules=targets, use_dora=True, **FAN.get(name, {}),
                case=dict(dtype=dtype, roundings=2),
            )
        cases[f"llama_{dtype}"] = llm("llama", f"DoRA on a {dtype} base", Q0, use_dora=True,
                                      case=dict(dtype=dtype, roundings=2))
    cases |= {
        "llama": llm("llama", "DoRA, no biases", Q0, use_dora=True),
        "llama_rank_large": llm("llama", "DoRA above full rank", Q0, use_dora=True, r=33, lora_alpha=4),
        "llama_dropout": llm("llama", "DoRA with dropout, evaluated without", Q0, use_dora=True, lora_dropout=0.3),
        "llama_patterns": llm("llama", "DoRA with ranks and alphas by pattern", Q0, DOWN1, use_dora=True,
                              target_modules=ATTENTION + ["down_proj"], rank_pattern={"q_proj": 1, "down_proj": 6},
                              alpha_pattern={"k_proj": 2.5}),
        "llama_all_linear": llm("llama", "DoRA on every linear layer", Q0, DOWN1, use_dora=True,
                                target_modules="all-linear"),
        "llama_modules_to_save": llm("llama", "DoRA beside a module saved whole", Q0, use_dora=True,
                                     modules_to_save=["lm_head"]),
        "llama_embedding": llm("llama", "DoRA on the embedding and an attention", Q0, "model.embed_tokens.weight",
                               use_dora=True, target_modules=["embed_tokens", "q_proj"]),
        "llama_layers": llm("llama", "DoRA in one layer", "model.layers.1.self_attn.q_proj.weight", use_dora=True,
                            layers_to_transform=[1]),
        "qwen2": llm("qwen2", "DoRA on layers with biases", Q0, use_dora=True),
        "qwen3": llm("qwen3", "DoRA", Q0, use_dora=True),
        "mistral": llm("mistral", "DoRA", Q0, use_dora=True),
    }
    one = {"r": 3, "lora_alpha": 5, "target_modules": ["lin0", "lin1"]}
    for name, configs, active in (
        ("two", (one | {"use_dora": True}, one | {"use_dora": True, "r": 2}), ("a", "b")),
        ("then_lora", (one | {"use_dora": True}, one), ("a", "b")),
        ("after_lora", (one | {"use_dora": True}, one), ("b", "a")),
    ):
        cases["mlp_" + name] = Case(
            "toys/mlp.safetensors", dict(zip("ab", configs)), f"active in this order: {', '.join(active)}",
            ("lin0.weight", "lin1.weight"), active=active,
        )
    return cases


def _bias() -> dict:
    cases = {}
    for name, targets in LINEAR_BIAS.items():
        own = dict(target_modules=targets, lora_bias=True, **FAN.get(name, {}))
        merged = [t + end for t in targets for end in (".weight", ".bias")]
        cases[name] = toy(name, "a bias on B, merged into the base's", *merged, **own)
        cases[name + "_rslora"] = toy(name, "a bias on B, scaled over the root of r", *merged, use_rslora=True, **own)
    for dtype in ("bfloat16", "float16"):
        cases["mlp_" + dtype] = toy("mlp", f"a bias on B on a {dtype} base", "lin0.weight", "lin0.bias",
                                    target_modules=["lin0"], lora_bias=True, case=dict(dtype=dtype, roundings=2))
    cases["qwen2"] = llm("qwen2", "a bias on B beside the base's", Q0, Q0.replace("weight", "bias"), lora_bias=True)
    cases["llama_bare"] = llm("llama", "the base has no bias, so this cannot be merged", lora_bias=True,
                              case=dict(merge=False))
    one = {"r": 3, "lora_alpha": 5, "target_modules": ["lin0", "lin1"]}
    two = {"a": one | {"lora_bias": True}, "b": one | {"r": 1}, "c": one | {"lora_bias": True, "r": 2}}
    merged = ("lin0.weight", "lin0.bias", "lin1.weight", "lin1.bias")
    cases["mlp_two"] = Case("toys/mlp.safetensors", two, "three active", merged, active=("a", "b", "c"))
    cases["mlp_rows"] = Case("toys/mlp.safetensors", two, "rows with and without a bias", (), batch=5,
                             rows=("c", "__base__", "a", "b", "c"), merge=False)
    return cases


def _combos() -> dict:
    cases = {}
    for name, (targets, weights) in TOYS.items():
        fan = FAN.get(name, {})
        first, last = targets[0], targets[-1]
        plain = {"r": 3, "lora_alpha": 5, "target_modules": targets} | fan
        kinds = {
            "rank1": {"r": 1, "lora_alpha": 4},
            "rslora_rank_pattern": {"use_rslora": True, "rank_pattern": {first: 5}},
            "alpha_pattern": {"alpha_pattern": {last: 1.5}, "lora_dropout": 0.1},
            "both_patterns": {"rank_pattern": {f"^{first}": 2}, "alpha_pattern": {f"({first}|{last})": 7}},
            "gaussian": {"init_lora_weights": "gaussian"} if name != "embconv" else {"lora_alpha": 0.5},
            "bias_all": {"bias": "all"},
            "bias_lora_only": {"bias": "lora_only"},
            "negative_alpha": {"lora_alpha": -3},
        }
        for kind, change in kinds.items():
            cases[f"{name}_{kind}"] = toy(name, kind.replace("_", " "), *weights, **plain | change)
        two = {"a": plain, "b": plain | {"r": 2, "lora_alpha": 3, "target_modules": targets[:1]}}
        path = f"toys/{name}.safetensors"
        cases[f"{name}_two"] = Case(path, two, "two active, on other modules", tuple(weights), active=("b", "a"))
        cases[f"{name}_rows"] = Case(path, two, "rows of two adapters", (), batch=4, merge=False,
                                     rows=("b", "a", "__base__", "b"))
    half = {"mlp": TOYS["mlp"], "hfmlp": TOYS["hfmlp"], "embconv": TOYS["embconv"]}
    for dtype in ("bfloat16", "float16"):
        for name, (targets, weights) in half.items():
            note = (HALF_EMBEDDING,) if name == "embconv" else ()
            cases[f"{name}_{dtype}"] = toy(name, f"a {dtype} base", *weights, target_modules=targets,
                                           case=dict(dtype=dtype, roundings=2, deviations=note), **FAN.get(name, {}))
    for base in ("llama", "llama_tied", "qwen2", "qwen3", "mistral"):
        cases[f"{base}_mlp_only"] = llm(base, "the feed-forward part", DOWN1, r=2, lora_alpha=9,
                                        target_modules=["gate_proj", "up_proj", "down_proj"])
        cases[f"{base}_layers_alpha"] = llm(base, "two layers, an exclusion, an alpha by pattern", Q0,
                                            target_modules=ATTENTION, exclude_modules=["k_proj"],
                                            layers_to_transform=[0, 1], alpha_pattern={"o_proj": 2})
        cases[f"{base}_saved_norm"] = llm(base, "the last norm saved whole", Q0, modules_to_save=["model.norm"])
    return cases


def _tokens() -> dict:
    embedding = "model.embed_tokens.weight"
    cases = {
        "llama": llm("llama", "three tokens of the input embedding", embedding, Q0, trainable_token_indices=[3, 17, 44]),
        "llama_one": llm("llama", "one token", embedding, trainable_token_indices=[0]),
        "llama_named": llm("llama", "by the module's name", embedding, Q0,
                           trainable_token_indices={"embed_tokens": [5, 2, 51]}),
        "llama_path": llm("llama", "by the module's path", embedding, trainable_token_indices={"model.embed_tokens": [7]}),
        "llama_head": llm("llama", "rows of the output layer", "lm_head.weight",
                          trainable_token_indices={"lm_head": [1, 50]}),
        "llama_both": llm("llama", "rows of both", embedding, "lm_head.weight",
                          trainable_token_indices={"embed_tokens": [3, 17], "lm_head": [1]}),
        "llama_tied": llm("llama_tied", "the tied output layer follows", embedding, Q0,
                          trainable_token_indices=[3, 17, 44]),
        "llama_tied_dora": llm("llama_tied", "beside DoRA", embedding, Q0, use_dora=True,
                               trainable_token_indices=[3, 17, 44]),
        "qwen3_tied": llm("qwen3_tied", "the tied output layer follows", embedding, trainable_token_indices=[8, 9]),
        "embconv": toy("embconv", "an embedding of another name", "emb.weight", "lin0.weight",
                       target_modules=["lin0"], trainable_token_indices={"emb": [4, 90, 11]}),
        "llama_bfloat16": llm("llama", "a bfloat16 base", embedding, trainable_token_indices=[3, 17, 44],
                              case=dict(dtype="bfloat16", roundings=2)),
    }
    return cases


def _attention() -> dict:
    kinds = {
        "basic": {},
        "rank1": {"r": 1, "lora_alpha": 2},
        "rslora": {"use_rslora": True, "r": 5},
        "with_linear": {"target_modules": ["mha", "lin0"], "alpha_pattern": {"lin0": 2}},
        "rank_pattern": {"rank_pattern": {"mha": 2}},
    }
    merged = ("mha.in_proj_weight", "mha.out_proj.weight")
    cases = {}
    for name, change in kinds.items():
        own = {"target_modules": ["mha"]} | change
        cases[name] = toy("attention", "attention; the output projection counted once, which PEFT does not", *merged,
                          case=dict(halve_output=True, same_after_reload=False), **own)
        cases["twice_" + name] = toy("attention", "attention as PEFT has it, the output projection counted twice", *merged,
                                     **own)
    one = {"r": 3, "lora_alpha": 5, "target_modules": ["mha"]}
    cases["two"] = Case("toys/attention.safetensors", {"a": one, "b": one | {"r": 2}}, "two active", merged,
                        active=("a", "b"), halve_output=True, same_after_reload=False)
    return cases


def _alora() -> dict:
    tokens = dict(alora_invocation_tokens=[9, 4], case=dict(merge=False))
    return {
        "llama": llm("llama", "starts at the invocation tokens; rows without them are the base's", **tokens),
        "llama_rank1": llm("llama", "rank 1", r=1, **tokens),
        "llama_one_token": llm("llama", "one invocation token", alora_invocation_tokens=[9], case=dict(merge=False)),
        "llama_all_linear": llm("llama", "every linear layer", target_modules="all-linear", **tokens),
        "qwen3": llm("qwen3", "starts at the invocation tokens", **tokens),
        "llama_rslora": llm("llama", "scaled over the root of r", use_rslora=True, r=3, **tokens),
    }


def _replication() -> dict:
    bare = dict(case=dict(merge=False))
    return {
        "llama": llm("llama", "two ranges that share a layer", layer_replication=[[0, 2], [1, 3]], **bare),
        "llama_more": llm("llama", "one layer three times", layer_replication=[[0, 3], [1, 2], [1, 3]], **bare),
        "llama_fewer": llm("llama", "fewer layers than the base", layer_replication=[[0, 1], [2, 3]], **bare),
        "llama_dora": llm("llama", "with DoRA", use_dora=True, layer_replication=[[0, 2], [0, 3]], **bare),
        "mistral": llm("mistral", "two ranges", layer_replication=[[0, 2], [0, 1]], **bare),
    }


def _inits() -> dict:
    cases = {}
    for init in ("pissa", "olora"):
        kinds = {
            "mlp": toy("mlp", init, "lin0.weight", target_modules=["lin0"], init_lora_weights=init),
            "mlp_rslora": toy("mlp", init + " over the root of r", "lin0.weight", target_modules=["lin0"],
                              use_rslora=True, r=5, init_lora_weights=init),
            "mlp_pattern": toy("mlp", init + " with ranks by pattern", "lin0.weight", "lin1.weight",
                               target_modules=["lin0", "lin1"], rank_pattern={"lin1": 1}, init_lora_weights=init),
            "mlp_dora": toy("mlp", init + " with DoRA", "lin0.weight", target_modules=["lin0"], use_dora=True,
                            init_lora_weights=init),
            "llama": llm("llama", init, Q0, init_lora_weights=init),
            "llama_saved": llm("llama", init + " beside a module saved whole", Q0, init_lora_weights=init,
                               modules_to_save=["lm_head"]),
        }
        if init == "pissa":
            kinds["hfmlp"] = toy("hfmlp", init + " on (in, out) weights", "c_fc.weight", target_modules=["c_fc"],
                                 init_lora_weights=init, fan_in_fan_out=True)
        cases |= {f"{init}_{n}": c for n, c in kinds.items()}
    cases |= {
        "mica_mlp": toy("mlp", "MiCA: B does not train", "lin0.weight", target_modules=["lin0"], r=2,
                        init_lora_weights="mica"),
        "mica_llama": llm("llama", "MiCA", Q0, init_lora_weights="mica"),
        "gaussian_mlp": toy("mlp", "gaussian", "lin0.weight", target_modules=["lin0"], init_lora_weights="gaussian"),
        "orthogonal_mlp": toy("mlp", "orthogonal", "lin0.weight", target_modules=["lin0"], r=4,
                              init_lora_weights="orthogonal"),
    }
    return cases


EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
GATE_UP0, EXPERT_DOWN1 = "layers.0.experts.gate_up_proj", "layers.1.experts.down_proj"


def _parameter(text: str, *merged: str, base: str = "moe", case: dict | None = None, **config) -> Case:
    config = {"target_modules": [], "target_parameters": EXPERTS} | config
    return toy(base, text, *merged, case=dict(gradients=True) | (case or {}), **config)


def _parameters() -> dict:
    both = (GATE_UP0, EXPERT_DOWN1)
    cases = {
        "experts": _parameter("one stack of matrices", GATE_UP0, target_parameters=["experts.gate_up_proj"]),
        "both": _parameter("two stacks of one module", *both),
        "rank1": _parameter("rank 1", *both, r=1, lora_alpha=4),
        "rank_large": _parameter("a rank above both sides of the matrices", *both, r=11, lora_alpha=3),
        "rslora": _parameter("scaling over the root of r", *both, use_rslora=True),
        "negative_alpha": _parameter("the update is subtracted", *both, lora_alpha=-3),
        "one_path": _parameter("a full path, which is one parameter", EXPERT_DOWN1, target_parameters=[EXPERT_DOWN1]),
        "matrices": _parameter("parameters of two dimensions", "layers.0.router.weight",
                               "layers.1.shared.weight", target_parameters=["router.weight", "shared.weight"]),
        "own_matrix": _parameter("a matrix of a module that holds others", "layers.1.mix", target_parameters=["mix"]),
        "single": _parameter("a stack of one matrix", "layers.1.experts.last_proj",
                             target_parameters=["experts.last_proj", "gate_up_proj"]),
        "all": _parameter("three stacks of one module and a matrix of another", *both,
                          "layers.0.router.weight", "layers.1.experts.last_proj",
                          target_parameters=[*EXPERTS, "last_proj", "router.weight"]),
        "patterns": _parameter("ranks and alphas by the parameter's path", *both, "layers.1.experts.gate_up_proj",
                               rank_pattern={"gate_up_proj": 5, "layers.1.experts.down_proj": 1},
                               alpha_pattern={"layers.1.experts.gate_up_proj": 2.5, r"layers\.0\..*": 9}),
        "with_modules": _parameter("linear layers beside parameters, some within a wrapped module",
                                   "head.weight", "layers.1.mix", target_modules=["shared", "head"],
                                   target_parameters=["mix"],
                                   case=dict(deviations=("PEFT leaves shared, within a wrapped module, unmerged",))),
        "experts_with_modules": _parameter("linear layers beside stacks", *both, "layers.0.shared.weight",
                                           target_modules=["shared"]),
        "excluded": _parameter("layers_to_transform and exclude_modules do not count", *both, "layers.0.shared.weight",
                               target_modules=["shared"], exclude_modules=["experts"], layers_to_transform=[0]),
        "saved_head": _parameter("beside a module saved whole", *both, "head.weight", modules_to_save=["head"],
                                 case=dict(gradients=False)),
        "bias_all": _parameter("trained biases, some within a wrapped module", "layers.0.mix", "layers.0.shared.bias",
                               target_parameters=["mix"], bias="all", case=dict(gradients=False)),
        "transposed": _parameter("matrices (in, out)", GATE_UP0, base="moe_transposed",
                                 target_parameters=["gate_up_proj"]),
        "transposed_both": _parameter("two stacks of matrices (in, out)", *both, base="moe_transposed",
                                      rank_pattern={"down_proj": 4}),
        "bfloat16": _parameter("a bfloat16 base", *both, "layers.1.router.weight",
                               target_parameters=[*EXPERTS, "router.weight"],
                               case=dict(dtype="bfloat16", roundings=2)),
        "float16": _parameter("a float16 base", *both, case=dict(dtype="float16", roundings=2)),
        "transposed_bfloat16": _parameter("matrices (in, out), a bfloat16 base", *both, base="moe_transposed",
                                          case=dict(dtype="bfloat16", roundings=2)),
        "linear": toy("mlp", "the weight is named, not the layer", "lin0.weight", target_modules=[],
                      target_parameters=["lin0.weight"], case=dict(gradients=True)),
        "embedding": toy("embconv", "an embedding's weight", "emb.weight", target_modules=[],
                         target_parameters=["emb.weight", "conv1d.weight"], case=dict(gradients=True)),
        "llama": llm("llama", "weights of a language model, two of one kind by name", Q0, target_modules=[],
                     target_parameters=["q_proj.weight", "layers.1.mlp.down_proj.weight"]),
        "llama_with_modules": llm("llama", "default kind of targets beside parameters", Q0, target_modules=["q_proj"],
                                  target_parameters=["v_proj.weight"]),
    }
    one = {"r": 3, "lora_alpha": 5, "target_modules": [], "target_parameters": EXPERTS}
    two = {"a": one, "b": one | {"r": 2, "use_rslora": True}}
    path = "toys/moe.safetensors"
    cases["two"] = Case(path, two, "two active", both, active=("b", "a"), gradients=True)
    cases["second"] = Case(path, two, "the second active", both, active=("b",), gradients=True)
    other = {"r": 4, "lora_alpha": 3, "target_modules": ["head"]}
    cases["beside_modules"] = Case(path, {"a": other, "b": one}, "beside an adapter of modules", (*both, "head.weight"),
                                   active=("a", "b"), gradients=True)
    cases["transposed_two"] = Case("toys/moe_transposed.safetensors", two, "two active", both, active=("a", "b"),
                                   gradients=True)
    return cases


def _tying() -> dict:
    """Layers that share the embedding's weight follow its adapter. PEFT merges such an adapter twice, so it is not merged."""
    bare = dict(ensure_weight_tying=True, case=dict(merge=False))
    saved = dict(ensure_weight_tying=True, target_modules=["q_proj"])
    both = ("model.embed_tokens.weight", "lm_head.weight")
    return {
        "llama": llm("llama_tied", "an adapter on the embedding", target_modules=["embed_tokens", "q_proj"], **bare),
        "llama_head": llm("llama_tied", "lm_head is named, so the embedding is adapted", target_modules=["lm_head"], **bare),
        "llama_both": llm("llama_tied", "both are named, rank 1", target_modules=["embed_tokens", "lm_head", "v_proj"],
                          r=1, **bare),
        "llama_regex": llm("llama_tied", "a regular expression", target_modules=r".*(q_proj|lm_head)", **bare),
        "llama_rslora": llm("llama_tied", "scaled over the root of r", target_modules=["embed_tokens"], use_rslora=True,
                            r=5, **bare),
        "qwen3": llm("qwen3_tied", "an adapter on the embedding", target_modules=["embed_tokens", "o_proj"], **bare),
        "llama_saved_head": llm("llama_tied", "lm_head is saved whole, so the embedding is", *both,
                                modules_to_save=["lm_head"], **saved),
        "llama_saved": llm("llama_tied", "the embedding is saved whole", *both, modules_to_save=["embed_tokens"], **saved),
        "llama_untied": llm("llama", "nothing is tied: the setting has no effect", Q0, ensure_weight_tying=True,
                            target_modules=["q_proj", "embed_tokens"]),
    }


CASES = {f"dora/{n}": c for n, c in _dora().items()}
CASES |= {f"lora_bias/{n}": c for n, c in _bias().items()}
CASES |= {f"tokens/{n}": c for n, c in _tokens().items()}
CASES |= {f"attention/{n}": c for n, c in _attention().items()}
CASES |= {f"alora/{n}": c for n, c in _alora().items()}
CASES |= {f"replication/{n}": c for n, c in _replication().items()}
CASES |= {f"inits/{n}": c for n, c in _inits().items()}
CASES |= {f"parameters/{n}": c for n, c in _parameters().items()}
CASES |= {f"combos/{n}": c for n, c in _combos().items()}
CASES |= {f"tying/{n}": c for n, c in _tying().items()}
