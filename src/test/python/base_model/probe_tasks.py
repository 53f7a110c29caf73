"""Shows that the tasks leave room: trains a PEFT adapter on each and prints the held-out loss before and after."""

import argparse
import json
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tasks import TASKS, batch_of, completion_loss, greedy, read_task, task_loss
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = {"definitions": ("Define: kindness\n", "Define: baker\n", "Define: swiftly\n", "Define: dig\n"),
           "verses": ("Psalms 151:1\n", "Proverbs 32:4\n", "Ecclesiastes 13:2\n", "Lamentations 6:1\n")}
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def probe(base, tasks, task, steps, rate):
    """Losses, seconds and samples of one adapter."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    train, heldout = (read_task(tasks / f"{task}.{part}.jsonl", tokenizer) for part in ("train", "heldout"))
    padding = tokenizer.pad_token_id
    result = {"before": round(task_loss(model, heldout, padding), 4),
              "samples_before": [greedy(model, tokenizer, prompt, 40) for prompt in PROMPTS[task]]}
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=LINEARS))
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(1)
    started = time.monotonic()
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 10) * (1 - step / steps)
        chosen = torch.randint(0, len(train), (16,), generator=generator).tolist()
        completion_loss(model, *batch_of([train[i] for i in chosen], padding)).backward()
        optimizer.step()
        optimizer.zero_grad()
    result["train_seconds"] = round(time.monotonic() - started)
    result["after"] = round(task_loss(model, heldout, padding), 4)
    result["samples_after"] = [greedy(model, tokenizer, prompt, 40) for prompt in PROMPTS[task]]
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--tasks", type=Path, required=True, help="folder of the task files")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rate", type=float, default=2e-3)
    args = parser.parse_args()
    torch.set_num_threads(2)
    results = {task: probe(args.base, args.tasks, task, args.steps, args.rate) for task in TASKS}
    print(json.dumps({"r": 8, "alpha": 16, "steps": args.steps, "batch": 16, "rate": args.rate, **results}, indent=2))


if __name__ == "__main__":
    main()
