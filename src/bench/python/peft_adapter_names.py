"""Continues prompts with PEFT, an adapter for each row of one batch (generate with adapter_names), and times it.

usage: peft_adapter_names.py BASE ADAPTERS REQUESTS.json TOKENS
Prints one line of JSON.
"""

import json
import sys
import time

import peft
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

base, adapters, requests, tokens = sys.argv[1:]
tokens = int(tokens)
torch.set_num_threads(2)
requests = json.load(open(requests))
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
names = [request["adapter"] for request in requests]
model = PeftModel.from_pretrained(model, f"{adapters}/{names[0]}", adapter_name=names[0], low_cpu_mem_usage=True)
for name in names[1:]:
    model.load_adapter(f"{adapters}/{name}", adapter_name=name, low_cpu_mem_usage=True)
model.eval()
longest = max(len(request["prompt"]) for request in requests)
ids = torch.tensor([[2] * (longest - len(r["prompt"])) + r["prompt"] for r in requests])
mask = torch.tensor([[0] * (longest - len(r["prompt"])) + [1] * len(r["prompt"]) for r in requests])


def run():
    start = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids, attention_mask=mask, adapter_names=names, max_new_tokens=tokens, min_new_tokens=tokens,
            do_sample=False, temperature=None, top_k=None, top_p=None, pad_token_id=2,
        )
    assert out.shape == (len(requests), longest + tokens)
    return time.perf_counter() - start


run()
times = sorted(run() for _ in range(3))
print(json.dumps({
    "tokens_per_second": len(requests) * tokens / times[1], "peft": peft.__version__,
    "torch": torch.__version__.split("+")[0],
}))
