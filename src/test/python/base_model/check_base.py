"""Loads the finished base model as a user would, measures it on texts it has not seen, and prints samples.

With --record the figures go to a JSON file beside the recipe.
"""

import argparse
import csv
import hashlib
import json
import math
import platform
from importlib.metadata import version
from pathlib import Path

import prepare_data
import sources
import torch
import torch.nn.functional as F
import train_base
from tasks import TASKS, greedy, read_task, task_loss
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = ("And it came to pass", "A person who", "The king said unto", "The act of", "In the beginning")
PIP_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "peft")
LICENCES = {"bible-kjv-text": "public domain text; packing by Chip Chapin, free to copy, modify and distribute",
            "wordnet-base": "WordNet 3.0 licence, see LICENSE-WORDNET"}


@torch.no_grad()
def heldout(model, tokenizer, path):
    """Per register: tokens, loss in nats a token, perplexity and bits a byte, on rows of CONTEXT tokens in fp32."""
    texts = {}
    for line in path.read_text().splitlines():
        document = json.loads(line)
        texts.setdefault(document["register"], []).append(document["text"])
    result = {}
    for register, found in texts.items():
        documents = [torch.tensor(tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]) for text in found]
        rows = train_base.rows_of(documents, train_base.SEED)
        total = 0.0
        for part in rows.split(16):
            logits = model(input_ids=part[:, :-1], use_cache=False).logits
            total += F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum").item()
        tokens = rows.shape[0] * train_base.CONTEXT
        loss = total / tokens
        per_byte = sum(map(len, documents)) / sum(len(text.encode()) for text in found)
        result[register] = {"tokens": tokens, "loss": round(loss, 4), "perplexity": round(math.exp(loss), 2),
                            "bits_per_byte": round(loss * per_byte / math.log(2), 3)}
    return result


@torch.no_grad()
def samples(model, tokenizer):
    """Greedy continuations of the prompts, then sampled ones (temperature 0.8, top-p 0.95) from the seed."""
    torch.manual_seed(train_base.SEED)
    found = [greedy(model, tokenizer, prompt, 40) for prompt in PROMPTS]
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")
        made = model.generate(**ids, max_new_tokens=60, do_sample=True, temperature=0.8, top_p=0.95, top_k=0)
        found.append(tokenizer.decode(made[0], skip_special_tokens=True))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--work", type=Path, required=True, help="folder with heldout.jsonl")
    parser.add_argument("--tasks", type=Path, required=True, help="folder of the task files")
    parser.add_argument("--probe", type=Path, help="output of probe_tasks.py, to go into the record")
    parser.add_argument("--record", type=Path, help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(args.base)
    model = AutoModelForCausalLM.from_pretrained(args.base, dtype=torch.float32).eval()
    log = list(csv.DictReader((Path(__file__).parent / "loss.csv").open()))
    record = {
        "seed": train_base.SEED,
        "parameters": sum(p.numel() for p in model.parameters()),
        "sizes": {file.name: file.stat().st_size for file in sorted(args.base.iterdir())},
        "sha256": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(args.base.iterdir())},
        "licences": LICENCES,
        "packages": {name: release for name, (release, _) in sources.PACKAGES.items()},
        "input_sha256": sources.INPUTS,
        "left_out_for_the_tasks": {"books": prepare_data.TASK_BOOKS, "entries": prepare_data.TASK_ENTRIES},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PIP_PACKAGES},
        "training": {"steps": int(log[-1]["step"]), "tokens_seen": int(log[-1]["tokens"]),
                     "seconds": int(log[-1]["seconds"]), "threads": 2,
                     "context": train_base.CONTEXT, "rows": train_base.ROWS, "peak_rate": train_base.PEAK_RATE,
                     "last_losses": {name: float(log[-1][name]) for name in
                                     ("train_loss", "heldout_bible", "heldout_wordnet")}},
        "heldout": heldout(model, tokenizer, args.work / "heldout.jsonl"),
        "task_heldout_loss": {task: round(task_loss(model, read_task(args.tasks / f"{task}.heldout.jsonl", tokenizer),
                                                    tokenizer.pad_token_id), 4) for task in TASKS},
        "samples": samples(model, tokenizer),
    }
    if args.probe:
        record["adapter_probe"] = json.loads(args.probe.read_text())
    text = json.dumps(record, indent=2, ensure_ascii=False)
    print(text)
    if args.record:
        args.record.write_text(text + "\n")


if __name__ == "__main__":
    main()
