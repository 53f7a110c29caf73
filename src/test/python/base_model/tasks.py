"""Reads the demo's tasks and measures a model on them: mean loss in nats over the completion and `</s>`."""

import json

import torch
import torch.nn.functional as F

TASKS = ("definitions", "verses")


def read_task(path, tokenizer):
    """A list of (ids, prompt length); ids are `<s>`, the prompt, the completion and `</s>`."""
    examples = []
    with path.open() as file:
        for line in file:
            pair = json.loads(line)
            prompt = tokenizer(pair["prompt"])["input_ids"]
            completion = tokenizer(pair["completion"], add_special_tokens=False)["input_ids"]
            examples.append((prompt + completion + [tokenizer.eos_token_id], len(prompt)))
    return examples


def batch_of(examples, padding):
    """Ids [n, longest] padded on the right, and labels of the same shape with -100 on prompts and padding."""
    longest = max(len(ids) for ids, _ in examples)
    ids = torch.full((len(examples), longest), padding)
    labels = torch.full((len(examples), longest), -100)
    for row, (tokens, prompt) in enumerate(examples):
        ids[row, :len(tokens)] = torch.tensor(tokens)
        labels[row, prompt:len(tokens)] = torch.tensor(tokens[prompt:])
    return ids, labels


def completion_loss(model, ids, labels, reduction="mean"):
    """Cross entropy of the labels that are not -100."""
    logits = model(input_ids=ids, use_cache=False).logits.float()
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction=reduction)


@torch.no_grad()
def task_loss(model, examples, padding):
    """Mean loss in nats a token over all completions."""
    model.eval()
    total = tokens = 0
    for start in range(0, len(examples), 50):
        ids, labels = batch_of(examples[start:start + 50], padding)
        total += completion_loss(model, ids, labels, "sum").item()
        tokens += (labels != -100).sum().item()
    return total / tokens


@torch.no_grad()
def greedy(model, tokenizer, prompt, count):
    """The prompt and its greedy continuation as text."""
    model.eval()
    ids = tokenizer(prompt, return_tensors="pt")
    made = model.generate(**ids, max_new_tokens=count, do_sample=False, temperature=None, top_k=None, top_p=None)
    return tokenizer.decode(made[0], skip_special_tokens=True)
