"""Measures `lora4j merge` against `cp` + fsync and against PEFT with transformers, on generated checkpoints.

    python src/bench/python/checkpoint_bench.py generate FOLDER --gigabytes 4
    python src/bench/python/checkpoint_bench.py files FOLDER
    python src/bench/python/checkpoint_bench.py peft FOLDER

FOLDER gets a checkpoint of Llama's shape in three bfloat16 shards with random numbers, and three adapters of rank 16: for
all linear layers, for the attention, and for what PEFT adapts in a Llama by default. `files` and `peft` print and keep
their numbers in FOLDER/results.json, `table FOLDER...` prints them as Markdown. Needs torch and safetensors; `peft` also
peft and transformers.

Every file is read once before it is timed, so all candidates find it in memory, which favours `cp`. The rest of the memory
is filled with other files first, as it is on a machine that has run for a while, and nothing is deleted between two
measurements: in a virtual machine the first use of free memory costs more than the copy.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS = {"all": LINEAR, "attention": LINEAR[:4], "default": ["q_proj", "v_proj"]}
SHARDS = 3

# hidden, inner, layers, heads, heads of keys and values, vocabulary: Llama 3's proportions.
SHAPES = {
    "tiny": (256, 896, 2, 2, 1, 1000),
    "4": (2560, 8960, 22, 20, 5, 32000),
    "12": (4096, 14336, 26, 32, 8, 32000),
}


def tensors(shape):
    hidden, inner, layers, heads, kv, vocabulary = shape
    size = hidden // heads
    sizes = {
        "q_proj": (heads * size, hidden),
        "k_proj": (kv * size, hidden),
        "v_proj": (kv * size, hidden),
        "o_proj": (hidden, heads * size),
        "gate_proj": (inner, hidden),
        "up_proj": (inner, hidden),
        "down_proj": (hidden, inner),
    }
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for layer in range(layers):
        for name, both in sizes.items():
            part = "self_attn" if name in LINEAR[:4] else "mlp"
            yield f"model.layers.{layer}.{part}.{name}.weight", both
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{layer}.{name}.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocabulary, hidden)


def generate(folder, kind):
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(1)
    shape = SHAPES[kind]
    everything = list(tensors(shape))
    bytes_of = lambda size: 2 * int(torch.tensor(size).prod())
    total = sum(bytes_of(size) for _, size in everything)
    base = folder / "base"
    base.mkdir(parents=True)
    shards, filled = [[]], 0
    for name, size in everything:
        if filled > total / SHARDS and len(shards) < SHARDS:
            shards.append([])
            filled = 0
        shards[-1].append((name, size))
        filled += bytes_of(size)
    index = {}
    for number, shard in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors"
        data = {}
        for name, size in shard:
            values = torch.empty(size, dtype=torch.bfloat16)
            data[name] = values.fill_(1) if len(size) == 1 else values.normal_(0, 0.02)
            index[name] = file
        save_file(data, base / file, {"format": "pt"})
    (base / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
    )
    hidden, inner, layers, heads, kv, vocabulary = shape
    (base / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["LlamaForCausalLM"],
                "model_type": "llama",
                "hidden_size": hidden,
                "intermediate_size": inner,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "num_key_value_heads": kv,
                "vocab_size": vocabulary,
                "rms_norm_eps": 1e-5,
                "tie_word_embeddings": False,
                "torch_dtype": "bfloat16",
            }
        )
    )
    for adapter, targets in ADAPTERS.items():
        out = folder / adapter
        out.mkdir()
        factors = {}
        for name, size in everything:
            module = name.removesuffix(".weight")
            if module.split(".")[-1] in targets:
                key = f"base_model.model.{module}"
                factors[f"{key}.lora_A.weight"] = torch.randn(16, size[1]) * 0.02
                factors[f"{key}.lora_B.weight"] = torch.randn(size[0], 16) * 0.02
        save_file(factors, out / "adapter_model.safetensors", {"format": "pt"})
        (out / "adapter_config.json").write_text(
            json.dumps(
                {
                    "peft_type": "LORA",
                    "task_type": "CAUSAL_LM",
                    "r": 16,
                    "lora_alpha": 32,
                    "target_modules": targets,
                    "base_model_name_or_path": str(base),
                }
            )
        )
    subprocess.run(["sync"], check=True)
    print(f"{base}: {total / 1e9:.2f} GB in {SHARDS} shards")


def record(folder, name, value):
    path = folder / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results[name] = value
    path.write_text(json.dumps(results, indent=2))
    print(f"{name}: {value}", flush=True)


def warm(folder):
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "rb", buffering=0) as data:
            while data.read(1 << 24):
                pass


def fill(folder):
    """Reads files until no memory is free, from this folder and those beside it."""
    for file in sorted(folder.resolve().parent.glob("*/base/*.safetensors")):
        with open(file, "rb", buffering=0) as data:
            while data.read(1 << 24):
                free = int(Path("/proc/meminfo").read_text().split("MemFree:")[1].split()[0])
                if free < 1_000_000:
                    return


def run(*command):
    """Runs a command: seconds and the most resident kilobytes of it, as /usr/bin/time -v tells them."""
    begin = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    if status != 0:
        sys.exit(f"{command}: failed with status {status}")
    return seconds, usage.ru_maxrss, output


def copy(source, target):
    """What `cp` and then fsync of every file and of the folder take."""
    begin = time.perf_counter()
    subprocess.run(["cp", "-r", source, target], check=True)
    for path in [*target.iterdir(), target]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return time.perf_counter() - begin


def files(folder, repeats):
    tool, base = ROOT / "lora4j", folder / "base"
    run(tool, "--version")
    record(folder, "rss_version_kb", run(tool, "--version")[1])
    record(folder, "rss_libtorch_kb", run(tool, "env")[1])
    times = {"cp": [], "merge": [], "in_place_attention": [], "in_place_default": []}
    inner = {name: [] for name in times}
    peaks = {name: 0 for name in times}
    outputs = []

    def target():
        outputs.append(folder / f"out{len(outputs)}")
        return outputs[-1]

    def tooled(name, *arguments):
        subprocess.run(["sync"], check=True)
        seconds, peak, output = run(tool, "merge", *arguments, "--json")
        times[name].append(seconds)
        inner[name].append(json.loads(output)["seconds"])
        peaks[name] = max(peaks[name], peak)

    fill(folder)
    try:
        for _ in range(repeats):
            warm(base)
            subprocess.run(["sync"], check=True)
            out = target()
            times["cp"].append(copy(base, out))
            for adapter in ("attention", "default"):
                warm(out)
                tooled(f"in_place_{adapter}", out, "-a", folder / adapter, "--in-place")
            warm(base)
            tooled("merge", base, "-a", folder / "all", "-o", target())
    finally:
        for out in outputs:
            shutil.rmtree(out, ignore_errors=True)
    for name, seconds in times.items():
        record(folder, name, [round(value, 3) for value in seconds])
        if peaks[name]:
            record(folder, name + "_within", [round(value, 3) for value in inner[name]])
            record(folder, name + "_rss_kb", peaks[name])
    for name in list(times)[1:]:
        ratio = statistics.median(a / b for a, b in zip(times[name], times["cp"]))
        within = statistics.median(a / b for a, b in zip(inner[name], times["cp"]))
        record(folder, name + "_over_cp", round(ratio, 3))
        record(folder, name + "_within_over_cp", round(within, 3))


PEFT = """
import sys, torch
from transformers import AutoModelForCausalLM
from peft import PeftModel
base, adapter, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
model.save_pretrained(out, max_shard_size="2GB")
"""


def peft(folder, repeats):
    tool, base = ROOT / "lora4j", folder / "base"
    times, ours, peaks = [], [], []
    outputs = [folder / f"out{i}" for i in range(2 * repeats)]
    fill(folder)
    try:
        for theirs, own in zip(outputs[::2], outputs[1::2]):
            warm(base)
            subprocess.run(["sync"], check=True)
            begin = time.perf_counter()
            peaks.append(run(sys.executable, "-c", PEFT, base, folder / "all", theirs)[1])
            subprocess.run(["sync", *theirs.iterdir()], check=True)
            times.append(time.perf_counter() - begin)
            warm(base)
            subprocess.run(["sync"], check=True)
            ours.append(run(tool, "merge", base, "-a", folder / "all", "-o", own, "--json")[0])
    finally:
        for out in outputs:
            shutil.rmtree(out, ignore_errors=True)
    record(folder, "peft", [round(value, 2) for value in times])
    record(folder, "peft_rss_kb", max(peaks))
    record(folder, "merge_beside_peft", [round(value, 2) for value in ours])
    record(folder, "peft_over_merge", round(statistics.median(a / b for a, b in zip(times, ours)), 2))


def table(folders):
    print("| | " + " | ".join(folder.name + " GB" for folder in folders) + " | target |")
    print("|---|" + "---|" * (len(folders) + 1))
    results = [json.loads((folder / "results.json").read_text()) for folder in folders]

    def row(text, target, value):
        cells = []
        for result in results:
            try:
                cells.append(value(result))
            except KeyError:
                cells.append("-")
        print(f"| {text} | " + " | ".join(cells) + f" | {target} |")

    def seconds(name):
        return lambda result: f"{statistics.median(result[name]):.1f} s"

    def ratio(name, digits=2):
        return lambda result: f"{result[name]:.{digits}f}x"

    def above(name):
        return lambda result: f"{result[name] / 1024:.0f} MB, {(result[name] - result['rss_version_kb']) / 1024:.0f} above"

    row("`cp` and fsync", "", seconds("cp"))
    row("merge into all linear layers", "", seconds("merge"))
    row("over `cp`", "1.15x", ratio("merge_over_cp"))
    row("over `cp`, without the start of the JVM", "", ratio("merge_within_over_cp"))
    row("in place, the attention's four layers", "", seconds("in_place_attention"))
    row("over `cp`", "0.2x", ratio("in_place_attention_over_cp"))
    row("in place, queries and values", "", seconds("in_place_default"))
    row("over `cp`", "0.2x", ratio("in_place_default_over_cp"))
    row("PEFT and transformers: load, merge, save", "", seconds("peft"))
    row("over the merge", "3x", ratio("peft_over_merge", 1))
    row("peak memory of `lora4j --version`", "", lambda result: f"{result['rss_version_kb'] / 1024:.0f} MB")
    row("peak memory of `lora4j env`, with LibTorch", "", lambda result: f"{result['rss_libtorch_kb'] / 1024:.0f} MB")
    row("peak memory of the merge", "256 MB above", above("merge_rss_kb"))
    row("peak memory of the merge in place", "256 MB above", above("in_place_attention_rss_kb"))
    row("peak memory of PEFT", "", lambda result: f"{result['peft_rss_kb'] / 1024:.0f} MB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["generate", "files", "peft", "table"])
    parser.add_argument("folders", metavar="FOLDER", type=Path, nargs="+")
    parser.add_argument("--gigabytes", choices=list(SHAPES), default="4")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    folder = arguments.folders[0]
    if arguments.what == "generate":
        generate(folder, arguments.gigabytes)
    elif arguments.what == "files":
        files(folder, arguments.repeats)
    elif arguments.what == "peft":
        peft(folder, arguments.repeats)
    else:
        table(arguments.folders)


if __name__ == "__main__":
    main()
