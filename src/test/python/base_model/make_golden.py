"""Records what Hugging Face makes of the base model, for the Java tests.

`golden.safetensors`: for two held-out sentences `ids.N` [1, n] (int64), `positions.N` [p] (int64) and `logits.N` [p, vocab]
(fp32; the bf16 weights are loaded as fp32). `golden.json`: strings with their token ids, with and without `<s>`, and
a greedy continuation with the smallest gap between its best two logits.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

SENTENCES = ("Someone who makes or repairs wooden things.\nThe carpenter mended the old door.",
             "And it came to pass in those days, that the king of Israel went up to the city, he and all the people.")
STRINGS = (
    "", " ", "a", "Define: shepherd\n", "Psalms 23:1\n", "In the beginning God created the heaven and the earth.",
    "two  spaces   and a\ttab", "line one\nline two\r\n", "  leading and trailing  ", "don't, won't, it's; they're",
    "1234567890 3.14 1,000", "naïve café Ærø", "Привет, мир", "日本語のテキスト", "العربية", "🙂👩‍👩‍👧 emoji",
    "e\u0301 combining, \u00a0no-break, \u200bzero width", "<s>text</s><pad>", "<unk> [MASK]", "ALL CAPS and MiXeD_case-42")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--out", type=Path, required=True, help="folder for the golden files")
    args = parser.parse_args()
    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(args.base)
    model = AutoModelForCausalLM.from_pretrained(args.base, dtype=torch.float32).eval()
    tensors = {}
    with torch.no_grad():
        for index, sentence in enumerate(SENTENCES):
            ids = tokenizer(sentence, return_tensors="pt")["input_ids"]
            logits = model(input_ids=ids).logits[0]
            positions = torch.tensor([0, 1, ids.shape[1] // 2, ids.shape[1] - 1])
            tensors |= {f"ids.{index}": ids, f"positions.{index}": positions,
                        f"logits.{index}": logits[positions].contiguous()}
        ids = tokenizer(SENTENCES[1], return_tensors="pt")["input_ids"]
        prompt, gaps = ids.shape[1], []
        for _ in range(24):
            best = model(input_ids=ids).logits[0, -1].topk(2)
            gaps.append((best.values[0] - best.values[1]).item())
            ids = torch.cat([ids, best.indices[:1, None]], dim=1)
    save_file(tensors, str(args.out / "golden.safetensors"))
    golden = {
        "sentences": SENTENCES,
        "greedy": {"prompt": ids[0, :prompt].tolist(), "continuation": ids[0, prompt:].tolist(),
                   "smallest_gap": min(gaps)},
        "tokenizer": [{"text": text, "ids": tokenizer(text, add_special_tokens=False)["input_ids"],
                       "ids_with_bos": tokenizer(text)["input_ids"]} for text in STRINGS]}
    text = json.dumps(golden, indent=1, ensure_ascii=True)
    (args.out / "golden.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
