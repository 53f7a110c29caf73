"""Trains the base model on its corpus, on the CPU, and can go on from its last checkpoint.

The corpus is one stream of `<s> document </s>`, shuffled anew in each pass and cut into rows of CONTEXT tokens. Loss
and held-out perplexity go to a CSV as training goes on; the model is exported in Hugging Face format at each checkpoint.
"""

import argparse
import json
import math
import os
import shutil
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

SEED = 20240611
CONTEXT = 256
ROWS = 16
PEAK_RATE, LAST_RATE = 2e-3, 2e-5
WARM_UP = 100
EVALUATE_EVERY, CHECKPOINT_SECONDS = 100, 240

CONFIG = dict(
    vocab_size=3072, hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-5, tie_word_embeddings=True,
    bos_token_id=0, eos_token_id=1, pad_token_id=2, attention_bias=False, mlp_bias=False, hidden_act="silu",
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, initializer_range=0.02)


def read_documents(path, tokenizer):
    """Token ids of each document of a JSON-lines file, by register."""
    registers = {}
    with path.open() as file:
        for line in file:
            document = json.loads(line)
            registers.setdefault(document["register"], []).append(document["text"])
    return {register: [torch.tensor(encoding.ids + [1], dtype=torch.int16) for encoding in
                       tokenizer.encode_batch(texts)] for register, texts in registers.items()}


def rows_of(documents, seed):
    """The documents in a random order as one stream, cut into rows [n, CONTEXT + 1] that share one token."""
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(seed))
    stream = torch.cat([documents[i] for i in order.tolist()]).to(torch.int64)
    count = (len(stream) - 1) // CONTEXT
    return torch.stack([stream[i * CONTEXT:(i + 1) * CONTEXT + 1] for i in range(count)])


def rate_at(step, steps):
    """Linear warm-up, then a cosine from PEAK_RATE to LAST_RATE."""
    if step < WARM_UP:
        return PEAK_RATE * (step + 1) / WARM_UP
    done = (step - WARM_UP) / max(1, steps - WARM_UP)
    return LAST_RATE + (PEAK_RATE - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * done))


def loss_of(model, rows):
    """Mean cross entropy of the next token over rows [n, CONTEXT + 1]; matrix products in bf16, the rest in fp32."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())


@torch.no_grad()
def heldout_loss(model, rows):
    """Mean loss in nats a token over rows [n, CONTEXT + 1]."""
    losses = [loss_of(model, part).item() * len(part) for part in rows.split(ROWS)]
    return sum(losses) / len(rows)


def export(model, tokenizer_folder, folder):
    """Writes a Hugging Face folder: config, bf16 weights, generation settings and the tokenizer's files."""
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy = copy.to(torch.bfloat16)
    copy.generation_config = GenerationConfig(
        bos_token_id=0, eos_token_id=1, pad_token_id=2, do_sample=True, temperature=0.8, top_k=40, top_p=0.95)
    copy.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer_folder / name, folder / name)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder with corpus.jsonl and heldout.jsonl")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of the tokenizer")
    parser.add_argument("--steps", type=int, required=True, help="optimizer steps in all; fixes the schedule")
    parser.add_argument("--log", type=Path, required=True, help="CSV of the losses")
    args = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(SEED)
    tokenizer = Tokenizer.from_file(str(args.tokenizer / "tokenizer.json"))
    corpus = read_documents(args.work / "corpus.jsonl", tokenizer)
    documents = [document for register in sorted(corpus) for document in corpus[register]]
    print("tokens:", {register: sum(map(len, found)) for register, found in corpus.items()}, flush=True)
    heldout = {register: rows_of(found, SEED) for register, found in
               read_documents(args.work / "heldout.jsonl", tokenizer).items()}

    model = LlamaForCausalLM(LlamaConfig(**CONFIG))
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=PEAK_RATE, betas=(0.9, 0.95), fused=True)
    step_loss = torch.compile(loss_of)
    checkpoint = args.work / "checkpoint.pt"
    step, seconds = 0, 0.0
    if checkpoint.is_file():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds = state["step"], state["seconds"]
        print(f"going on from step {step}", flush=True)
    else:
        args.log.write_text("step,tokens,seconds,rate,train_loss,heldout_bible,heldout_wordnet\n")

    def save():
        temporary = checkpoint.with_suffix(".tmp")
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                    "step": step, "seconds": seconds}, temporary)
        os.replace(temporary, checkpoint)
        export(model, args.tokenizer, args.work / "export")

    rows_seen = step * ROWS
    current, rows, losses, saved_at = -1, None, [], time.monotonic()
    while step < args.steps:
        started = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, args.steps)
        if rows is None:
            rows = rows_of(documents, SEED)
        per_pass = len(rows) // ROWS
        if step // per_pass != current:
            current = step // per_pass
            rows = rows_of(documents, SEED + current)
        offset = (step % per_pass) * ROWS
        loss = step_loss(model, rows[offset:offset + ROWS])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        step += 1
        rows_seen += ROWS
        seconds += time.monotonic() - started
        if step % EVALUATE_EVERY == 0 or step == args.steps:
            values = {register: heldout_loss(model, found) for register, found in heldout.items()}
            line = (f"{step},{rows_seen * CONTEXT},{seconds:.0f},{rate_at(step - 1, args.steps):.2e},"
                    f"{sum(losses) / len(losses):.4f},{values['bible']:.4f},{values['wordnet']:.4f}")
            with args.log.open("a") as file:
                file.write(line + "\n")
            print(line, flush=True)
            losses.clear()
        if time.monotonic() - saved_at > CHECKPOINT_SECONDS or step == args.steps:
            save()
            saved_at = time.monotonic()


if __name__ == "__main__":
    main()
