"""Measures training against PEFT on this machine and prints the tables of docs/training.md.

    python src/bench/python/train_bench.py [linear|tune|joint ...] > tables.md

Needs torch, transformers and peft, and a built tree (./mvnw package). Each part runs lora4j and PEFT one after another on
the same data; the targets are ratios. Without arguments all parts run; "tune" takes the longest.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", ".."))
DEMO = os.path.join(ROOT, "src", "test", "resources", "demo")
TOKENS, WIDTH, RANK = 1024, 1024, 16
STEPS = 150


def java(*arguments: object) -> dict[str, list[float]]:
    classpath = os.path.join(ROOT, "target", "classes") + ":" + open(os.path.join(ROOT, "target", "classpath")).read()
    program = os.path.join(ROOT, "src", "bench", "java", "org", "lora4j", "bench", "TrainBench.java")
    command = ["java", "-Xmx512m", "-Dorg.bytedeco.javacpp.maxPhysicalBytes=0", "-Dorg.bytedeco.javacpp.maxBytes=0",
               "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", classpath.strip(), program, *map(str, arguments)]
    environment = dict(os.environ, OMP_WAIT_POLICY="PASSIVE", OPENBLAS_THREAD_TIMEOUT="4")
    output = subprocess.run(command, env=environment, capture_output=True, text=True)
    if output.returncode:
        sys.exit(output.stderr)
    values: dict[str, list[float]] = {}
    for line in output.stdout.splitlines():
        parts = line.split()
        if len(parts) == 2:
            values.setdefault(parts[0], []).append(float(parts[1]))
    return values


def python(part: str, *arguments: object) -> dict:
    """Runs a function of this file in a process of its own, so that its peak memory is its own."""
    command = [sys.executable, __file__, "--peft", part, *map(str, arguments)]
    output = subprocess.run(command, capture_output=True, text=True)
    if output.returncode:
        sys.exit(output.stderr)
    return json.loads(output.stdout.splitlines()[-1])


def status(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field + ":"))


def adapted(count: int, dtype, dropout: float, dora: bool = False):
    import peft
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for i in range(count):
                setattr(self, f"l{i}", torch.nn.Linear(WIDTH, WIDTH, bias=False, dtype=dtype))

        def forward(self, x):
            for i in range(count):
                x = getattr(self, f"l{i}")(x)
            return x

    config = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=dropout, use_dora=dora,
                             target_modules=[f"l{i}" for i in range(count)])
    return peft.get_peft_model(Net(), config).train()


def peft_linear() -> dict:
    import torch

    torch.manual_seed(1)
    frozen = torch.nn.Linear(WIDTH, WIDTH, bias=False).requires_grad_(False)
    nets = {"frozen": frozen, "lora": adapted(1, torch.float32, 0), "dora": adapted(1, torch.float32, 0, True)}
    x, dy = torch.randn(TOKENS, WIDTH), torch.randn(TOKENS, WIDTH)
    times: dict[str, list[float]] = {name: [] for name in nets}
    for step in range(-5, 30):
        for name, net in nets.items():
            start = time.perf_counter()
            leaf = x.detach().requires_grad_(True)
            (net(leaf) * dy).sum().backward()
            if step >= 0:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


class JavaRandom:
    """java.util.Random, to deal out examples in the order lora4j does."""

    def __init__(self, seed: int):
        self.seed = (seed ^ 0x5DEECE66D) & ((1 << 48) - 1)

    def next(self, bits: int) -> int:
        self.seed = (self.seed * 0x5DEECE66D + 0xB) & ((1 << 48) - 1)
        value = self.seed >> (48 - bits)
        return value - (1 << bits) if value >= 1 << (bits - 1) else value

    def below(self, bound: int) -> int:
        bits = self.next(31) & 0x7FFFFFFF
        if bound & (bound - 1) == 0:
            return (bound * bits) >> 31
        while True:
            value = bits % bound
            if bits - value + (bound - 1) < 1 << 31:
                return value
            bits = self.next(31) & 0x7FFFFFFF

    def shuffle(self, values: list) -> None:
        for i in range(len(values), 1, -1):
            j = self.below(i)
            values[i - 1], values[j] = values[j], values[i - 1]


def examples(tokenizer, name: str) -> list[tuple[list[int], int]]:
    result = []
    with open(os.path.join(DEMO, "tasks", name + ".jsonl")) as file:
        for line in file:
            row = json.loads(line)
            prompt = tokenizer(row["prompt"])["input_ids"]
            completion = tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
            result.append(((prompt + completion + [tokenizer.eos_token_id])[:128], len(prompt)))
    return result


def batch_of(rows: list[tuple[list[int], int]]):
    import torch

    length = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    labels = torch.full((len(rows), length), -100)
    mask = torch.zeros(len(rows), length, dtype=torch.int64)
    for i, (row, prompt) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
        labels[i, prompt: len(row)] = torch.tensor(row[prompt:])
    return ids, mask, labels


def peft_tune(task: str, start: str, steps: str) -> dict:
    import peft
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup

    base = AutoModelForCausalLM.from_pretrained(os.path.join(DEMO, "base"), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(os.path.join(DEMO, "base"))
    model = peft.PeftModel.from_pretrained(base, start, is_trainable=True)
    train, held_out = examples(tokenizer, task + ".train"), examples(tokenizer, task + ".heldout")
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, 10, int(steps))

    def evaluate() -> float:
        model.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for at in range(0, len(held_out), 16):
                ids, mask, labels = batch_of(held_out[at: at + 16])
                targets = int((labels[:, 1:] != -100).sum())
                total += model(input_ids=ids, attention_mask=mask, labels=labels).loss.item() * targets
                count += targets
        return total / count

    before = evaluate()
    generator, order, at = JavaRandom(1), [], 0
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    resident = status("VmRSS")
    model.train()
    losses, tokens = [], 0
    began = time.perf_counter()
    for _ in range(int(steps)):
        if at == len(order):
            order = list(range(len(train)))
            generator.shuffle(order)
            at = 0
        picked = order[at: at + 16]
        at += len(picked)
        ids, mask, labels = batch_of([train[i] for i in picked])
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        tokens += int((labels[:, 1:] != -100).sum())
    seconds = time.perf_counter() - began
    peak = status("VmHWM")
    return {"held_out_before": before, "loss": losses, "seconds": seconds, "tokens": tokens, "peak_kib": peak,
            "growth_kib": peak - resident, "held_out": evaluate()}


def table(head: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def linear() -> None:
    ours, theirs = java("linear", TOKENS, WIDTH, RANK), python("linear")
    again = python("linear")
    theirs = {name: min(value, again[name]) for name, value in theirs.items()}
    own = {name: values[0] for name, values in ours.items()}
    milli = lambda seconds: f"{seconds * 1e3:.1f} ms"
    print(f"One linear layer, {TOKENS} tokens, {WIDTH} x {WIDTH}, rank {RANK}, float32, forward and backward:\n")
    table(["", "lora4j", "PEFT"], [
        ["frozen layer", milli(own["frozen"]), milli(theirs["frozen"])],
        ["LoRA", milli(own["fused"]), milli(theirs["lora"])],
        ["LoRA by plain autograd", milli(own["autograd"]), ""],
        ["DoRA", milli(own["dora"]), milli(theirs["dora"])],
        ["products alone, apart", milli(own["products_apart"]), ""],
        ["products alone, bordered buffer", milli(own["products_bordered"]), ""],
    ])
    table(["ratio", "target", "measured"], [
        ["PEFT's LoRA time / lora4j's", ">= 1.0", f"{theirs['lora'] / own['fused']:.2f}"],
        ["LoRA / frozen layer", "<= 1.10", f"{own['fused'] / own['frozen']:.2f}"],
        ["the same of PEFT", "", f"{theirs['lora'] / theirs['frozen']:.2f}"],
        ["DoRA / LoRA", "<= 1.15", f"{own['dora'] / own['fused']:.2f}"],
        ["bordered / apart", "< 1", f"{own['products_bordered'] / own['products_apart']:.2f}"],
    ])


def tune() -> None:
    rows, curves = [], []
    for task in ("definitions", "verses"):
        with tempfile.TemporaryDirectory() as start:
            own = java("tune", DEMO, task, start, STEPS)
            theirs = python("tune", task, start, STEPS)
        apart = max(abs(a - b) / b for a, b in zip(own["loss"], theirs["loss"]))
        speed = theirs["seconds"] / own["seconds"][0] * own["tokens"][0] / theirs["tokens"]
        rows += [[task, "held-out loss", f"{own['held_out'][0]:.4f}", f"{theirs['held_out']:.4f}",
                  f"{own['held_out'][0] / theirs['held_out']:.4f}"],
                 ["", "before", f"{own['held_out_before'][0]:.4f}", f"{theirs['held_out_before']:.4f}", ""],
                 ["", "largest difference of a step's loss", "", "", f"{100 * apart:.2f} %"],
                 ["", "tokens a second", f"{own['tokens'][0] / own['seconds'][0]:.0f}",
                  f"{theirs['tokens'] / theirs['seconds']:.0f}", f"{speed:.2f}"],
                 ["", "peak memory", f"{own['peak_kib'][0] / 1024:.0f} MiB", f"{theirs['peak_kib'] / 1024:.0f} MiB",
                  f"{own['peak_kib'][0] / theirs['peak_kib']:.2f}"],
                 ["", "its growth while training", f"{own['growth_kib'][0] / 1024:.0f} MiB",
                  f"{theirs['growth_kib'] / 1024:.0f} MiB", f"{own['growth_kib'][0] / theirs['growth_kib']:.2f}"]]
        for step in (1, 10, 25, 50, 100, STEPS):
            curves.append([task, str(step), f"{own['loss'][step - 1]:.4f}", f"{theirs['loss'][step - 1]:.4f}"])
    print(f"Fine-tuning the demo's base (Llama, 3.7 million weights, float32), {STEPS} steps of 16, rank 8 on q, k, v, o,"
          " same start, data and order (targets: losses within 1 %, tokens a second >= 1.2, peak memory <= 0.8):\n")
    table(["task", "", "lora4j", "PEFT", "ratio"], rows)
    print("Losses by step:\n")
    table(["task", "step", "lora4j", "PEFT"], curves)


def joint() -> None:
    own = {name: values[0] for name, values in java("joint", DEMO, 20).items()}
    print("Eight adapters of rank 8 on the demo's base, 20 steps each (target >= 2):\n")
    table(["examples a step and adapter", "one after another", "jointly", "ratio"],
          [[str(n), f"{own[f'alone{n}']:.2f} s", f"{own[f'joint{n}']:.2f} s", f"{own[f'alone{n}'] / own[f'joint{n}']:.2f}"]
           for n in (1, 2, 4)])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peft"]:
        print(json.dumps(globals()["peft_" + sys.argv[2]](*sys.argv[3:])))
    else:
        for part in sys.argv[1:] or ["linear", "tune", "joint"]:
            globals()[part]()
