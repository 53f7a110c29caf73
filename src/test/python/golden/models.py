"""Tiny random language models in Hugging Face's format, and what transformers computes with them.

Every model folder holds the checkpoint (config.json, model.safetensors or shards), `expected.safetensors` and
`case.json`; README.md lists the tensors.
"""

import dataclasses
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from common import generator, largest_difference, load_base, normal, quiet, read_json, require, token_ids
from common import write_json, write_tensors

NEW_TOKENS = 12
PROMPT = 5
PADDED_LENGTHS = (11, 6)


@dataclasses.dataclass(frozen=True)
class Model:
    config: object
    text: str
    length: int = 17
    dtype: torch.dtype = torch.float32
    shard_size: str = "1GB"


def common(**changes) -> dict:
    base = dict(
        vocab_size=53,
        hidden_size=24,
        intermediate_size=37,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rms_norm_eps=0.01,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return base | changes


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

MODELS = {
    "llama": Model(
        LlamaConfig(**common(tie_word_embeddings=False)),
        "grouped queries, untied embeddings",
    ),
    "llama_tied": Model(
        LlamaConfig(**common(tie_word_embeddings=True, num_hidden_layers=2, num_key_value_heads=3)),
        "lm_head shares the embedding; the checkpoint has no lm_head.weight",
    ),
    "llama3_rope": Model(
        LlamaConfig(**common(num_hidden_layers=2, hidden_size=32, num_attention_heads=4, rope_parameters=LLAMA3_ROPE)),
        "llama3 frequency scaling; 41 positions against 32 original ones, so every branch of it is taken",
        length=41,
    ),
    "llama_bias": Model(
        LlamaConfig(**common(num_hidden_layers=2, attention_bias=True, mlp_bias=True)),
        "biases on every projection",
    ),
    "llama_head_dim": Model(
        LlamaConfig(**common(num_hidden_layers=2, hidden_size=21, num_attention_heads=3, num_key_value_heads=1,
                             head_dim=10)),
        "odd hidden size, head_dim given and unequal to hidden_size / heads, one key-value head",
    ),
    "llama_bf16": Model(
        LlamaConfig(**common(num_hidden_layers=2)),
        "bfloat16 checkpoint; `logits` with weights widened to float32, `logits_bf16` computed in bfloat16",
        dtype=torch.bfloat16,
    ),
    "llama_sharded": Model(
        LlamaConfig(**common(num_hidden_layers=3)),
        "three shards and an index",
        shard_size="25KB",
    ),
    "mistral": Model(
        MistralConfig(**common(num_hidden_layers=2, sliding_window=None, rms_norm_eps=1e-6)),
        "sliding_window is null",
    ),
    "mistral_window": Model(
        MistralConfig(**common(num_hidden_layers=2, sliding_window=5)),
        "a window of 5 positions, shorter than the sequence",
    ),
    "qwen2": Model(
        Qwen2Config(**common(num_hidden_layers=2, tie_word_embeddings=True, use_sliding_window=False)),
        "biases on q, k and v only; tied embeddings",
    ),
    "qwen2_window": Model(
        Qwen2Config(
            **common(
                num_hidden_layers=3, use_sliding_window=True, sliding_window=4, max_window_layers=1,
                tie_word_embeddings=False,
            )
        ),
        "full attention below max_window_layers, a window of 4 from there on",
    ),
    "qwen3": Model(
        Qwen3Config(
            **common(
                num_hidden_layers=2, hidden_size=21, num_attention_heads=3, num_key_value_heads=1, head_dim=6,
                tie_word_embeddings=False,
            )
        ),
        "norms on the queries and keys of each head; head_dim unequal to hidden_size / heads",
    ),
    "qwen3_tied": Model(
        Qwen3Config(**common(num_hidden_layers=2, head_dim=8, attention_bias=True, tie_word_embeddings=True)),
        "tied embeddings and attention biases",
    ),
}


def old_rope(config: dict, **scaling) -> dict:
    """The configuration as transformers before 5 wrote it: rope_theta and rope_scaling at the top."""
    new = {k: v for k, v in config.items() if k not in ("rope_parameters", "layer_types")}
    new["rope_theta"] = config["rope_parameters"]["rope_theta"]
    new["rope_scaling"] = scaling or None
    new["torch_dtype"] = new.pop("dtype")
    return new


def _llama3_old(config: dict) -> dict:
    scaling = {k: v for k, v in config["rope_parameters"].items() if k != "rope_theta"}
    return old_rope(config, **scaling)


def _minimal(config: dict) -> dict:
    """Only what has no default in an old Llama configuration: no rope keys, no head_dim, no biases, no tying."""
    keep = (
        "architectures", "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "eos_token_id",
    )
    return {k: config[k] for k in keep}


def _with_theta(config: dict) -> dict:
    return config | {"rope_parameters": {"rope_type": "default", "rope_theta": 321.5}}


# Same weights as another model under a config.json edited by hand: name -> (source, edit, text, logits must agree).
EDITED = {
    "llama3_rope_old": ("llama3_rope", _llama3_old, "rope_theta and rope_scaling as before transformers 5", True),
    "llama_config_old": ("llama", old_rope, "rope_theta at the top, rope_scaling null, torch_dtype", True),
    "llama_config_minimal": ("llama", _minimal, "every key with a default left out", True),
    "llama_theta": ("llama", _with_theta, "rope_theta 321.5 in rope_parameters: other logits than llama", False),
    "llama_theta_old": ("llama", lambda c: old_rope(_with_theta(c)), "rope_theta 321.5 at the top", False),
}


def generate(name: str) -> None:
    """Writes models/<name> under the working directory."""
    folder = Path("models") / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if name in EDITED:
        _edit(name, folder)
    else:
        _build(name, MODELS[name], folder)


def _build(name: str, spec: Model, folder: Path) -> None:
    rng = generator("models/" + name)
    with quiet():
        model = AutoModelForCausalLM.from_config(spec.config, dtype=torch.float32, attn_implementation="eager")
        _randomise(model, rng)
        model.to(spec.dtype).save_pretrained(folder, max_shard_size=spec.shard_size)
    (folder / "generation_config.json").unlink(missing_ok=True)
    _expect(name, folder, spec, rng)


def _randomise(model, rng: torch.Generator) -> None:
    """Norm weights near one but all different, matrices that keep activations near one, biases that matter."""
    with torch.no_grad():
        for key, parameter in sorted(model.named_parameters()):
            if "norm" in key:
                parameter.copy_(torch.rand(parameter.shape, generator=rng) + 0.5)
            elif key.endswith(".bias"):
                parameter.copy_(normal(rng, parameter.shape, 0.3))
            elif "embed_tokens" in key:
                parameter.copy_(normal(rng, parameter.shape, 0.6))
            else:
                parameter.copy_(normal(rng, parameter.shape, 1.2 / parameter.shape[-1] ** 0.5))


def _edit(name: str, folder: Path) -> None:
    source, edit, text, same = EDITED[name]
    origin = Path("models") / source
    for file in sorted(origin.iterdir()):
        if file.suffix == ".safetensors" and file.name != "expected.safetensors":
            shutil.copyfile(file, folder / file.name)
    write_json(folder / "config.json", edit(read_json(origin / "config.json")))
    spec = dataclasses.replace(MODELS[source], text=text)
    rng = generator("models/" + source + "/edited")
    if not same:
        rng = generator("models/llama_theta")
    _expect(name, folder, spec, rng)
    expected = load_file(folder / "expected.safetensors")
    with quiet():
        logits = load_base("models/" + source)(expected["input_ids"], use_cache=False).logits
    difference = largest_difference(logits, expected["logits"])
    require(difference == 0 if same else difference > 0.1, f"{name}: differs from {source} by {difference}")


@torch.no_grad()
def _expect(name: str, folder: Path, spec: Model, rng: torch.Generator) -> None:
    with quiet():
        model = load_base(folder.as_posix())
    vocab = model.config.vocab_size
    tensors = {"input_ids": token_ids(rng, (2, spec.length), vocab)}
    tensors["logits"] = model(tensors["input_ids"], use_cache=False).logits
    require(tensors["logits"].std().item() > 0.3, f"{name}: logits are too flat")
    tensors |= _padded(name, model, rng)
    tensors |= _greedy(name, model, rng)
    if spec.dtype != torch.float32:
        with quiet():
            low = load_base(folder.as_posix(), dtype=spec.dtype)
        tensors["logits_bf16"] = low(tensors["input_ids"], use_cache=False).logits
    _check_that_it_matters(name, spec, model, tensors)
    write_tensors(folder / "expected.safetensors", tensors)
    write_json(
        folder / "case.json",
        {
            "name": name,
            "description": spec.text,
            "architecture": model.config.architectures[0],
            "dtype": str(spec.dtype).removeprefix("torch."),
            "tensors": sorted(tensors),
        },
    )


def _padded(name: str, model, rng: torch.Generator) -> dict:
    """Rows of unequal length, padded on the left. Positions count from the first real token; pad rows are zero."""
    width = max(PADDED_LENGTHS)
    ids = token_ids(rng, (len(PADDED_LENGTHS), width), model.config.vocab_size)
    mask = torch.tensor([[int(i >= width - n) for i in range(width)] for n in PADDED_LENGTHS])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    logits = logits * mask[..., None]
    for row, n in enumerate(PADDED_LENGTHS):
        alone = model(ids[row : row + 1, width - n :], use_cache=False).logits[0]
        difference = largest_difference(alone, logits[row, width - n :])
        require(difference < 2e-5, f"{name}: a padded row differs from the row alone by {difference}")
    return {"padded_ids": ids, "padded_mask": mask, "padded_positions": positions, "padded_logits": logits}


def _greedy(name: str, model, rng: torch.Generator) -> dict:
    """Greedy continuation of a prompt, chosen so that no step is a near tie."""
    for _ in range(200):
        prompt = token_ids(rng, (1, PROMPT), model.config.vocab_size)
        with quiet():
            full = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                pad_token_id=0,
            )
        logits = model(full[:, :-1], use_cache=False).logits[0, PROMPT - 1 :]
        top = logits.topk(2).values
        chosen = full[0, PROMPT:]
        require(torch.equal(logits.argmax(-1), chosen), f"{name}: the cache changes the greedy tokens")
        if (top[:, 0] - top[:, 1]).min() > 0.02 and len(set(chosen.tolist())) >= 4:
            return {"prompt": prompt, "greedy": chosen[None]}
    raise AssertionError(f"{name}: no prompt without near ties")


def _check_that_it_matters(name: str, spec: Model, model, tensors: dict) -> None:
    """The feature a model is there for changes its logits."""
    config = model.config
    neutral = None
    if getattr(config, "sliding_window", None):
        neutral = {"sliding_window": 10_000}
    elif (config.rope_parameters or {}).get("rope_type") == "llama3":
        neutral = {"rope_parameters": {"rope_type": "default", "rope_theta": config.rope_parameters["rope_theta"]}}
    if neutral is None:
        return
    config = type(config).from_dict(config.to_dict() | neutral)
    with quiet():
        other = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
        other.load_state_dict(model.state_dict())
        logits = other(tensors["input_ids"], use_cache=False).logits
    difference = largest_difference(logits, tensors["logits"])
    require(difference > 0.1, f"{name}: {neutral} changes nothing ({difference})")
