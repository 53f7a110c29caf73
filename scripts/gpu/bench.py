"""Times the operations on a GPU beside PyTorch and PEFT. python bench.py LIBRARY FOLDER"""

import ctypes
import json
import sys
from datetime import date
from pathlib import Path

import torch

from lora4j import Library

GIB = 1 << 30


def time_ms(work, buffers, repeats=30):
    """Median of event timings; work(i) gets a turning index, so that buffers larger than the cache in all are cold."""
    for i in range(5):
        work(i % buffers)
    torch.cuda.synchronize()
    times = []
    for i in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work(i % buffers)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def merge_rows(l4, peft):
    for out, width in ((4096, 4096), (4096, 14336)):
        buffers = 4
        ws = [torch.randn(out, width, device="cuda").bfloat16() for _ in range(buffers)]
        target = torch.empty_like(ws[0])
        copy = time_ms(lambda i: target.copy_(ws[i]), buffers)
        for r in (8, 16, 32, 64):
            for adapters in (1, 4):
                updates = [
                    (torch.randn(r, width, device="cuda"), torch.randn(out, r, device="cuda") * 1e-3, 0.5)
                    for _ in range(adapters)
                ]
                table = l4.prepare(updates)
                ours = time_ms(lambda i: l4.merge(ws[i], updates, table), buffers)
                halves = [(a.bfloat16(), b.bfloat16(), s) for a, b, s in updates]
                half_table = l4.prepare(halves)
                ours_half = time_ms(lambda i: l4.merge(ws[i], halves, half_table), buffers)

                def addmm(i):
                    for a, b, s in halves:
                        ws[i].addmm_(b, a, alpha=s)

                row = {"op": "merge", "shape": f"{out}x{width}", "r": r, "adapters": adapters, "ms": ours}
                row |= {"ms_bf16_factors": ours_half, "copy": copy, "addmm": time_ms(addmm, buffers)}
                if peft:
                    row |= peft_merge(out, width, r, adapters)
                yield row
        del ws, target
        torch.cuda.empty_cache()


def peft_merge(out, width, r, adapters):
    from peft import LoraConfig, get_peft_model

    class One(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = torch.nn.Linear(width, out, bias=False)

    base = One().to(device="cuda", dtype=torch.bfloat16)
    config = LoraConfig(r=r, lora_alpha=r, target_modules=["lin"], init_lora_weights=False)
    model = get_peft_model(base, config, "a0")
    for i in range(1, adapters):
        model.add_adapter(f"a{i}", config)
    layer = model.base_model.model.lin
    names = [f"a{i}" for i in range(adapters)]

    def merged(safe):
        def work(_):
            layer.merge(safe_merge=safe, adapter_names=names)
            layer.merged_adapters.clear()

        return work

    return {"peft": time_ms(merged(False), 1, 10), "peft_safe": time_ms(merged(True), 1, 10)}


def update_rows(l4, peft):
    grid = [(b, d, r, w) for b in (1, 8, 64, 256) for d in (1, 8, 64, 256) if d <= b for r in (16, 64) for w in (4096,)]
    grid += [(64, 64, 16, 1024), (64, 64, 16, 14336), (64, 8, 8, 4096), (64, 64, 128, 4096), (16, 16, 16, 4096)]
    for batch, distinct, r, width in grid:
        sets = max(1, min(8, int(0.2 * GIB / (distinct * 2 * r * width * 2) + 1)))
        tables, held = [], []
        for _ in range(sets):
            adapters = [
                (
                    torch.randn(r, width, device="cuda").bfloat16(),
                    torch.randn(width, r, device="cuda").bfloat16(),
                    0.5,
                )
                for _ in range(distinct)
            ]
            held.append(adapters)
            tables.append(l4.prepare(adapters))
        rows = [i % distinct for i in range(batch)]
        index = (ctypes.c_int32 * batch)(*rows)
        x = torch.randn(batch, width, device="cuda").bfloat16()
        y = torch.randn(batch, width, device="cuda").bfloat16()
        base = [torch.randn(width, width, device="cuda").bfloat16() for _ in range(4)]
        linear = time_ms(lambda i: torch.nn.functional.linear(x, base[i]), 4)
        ours = time_ms(lambda i: l4.low_rank_update(y, x, rows, held[i], tables[i], index), sets)
        stacked = [(torch.stack([a for a, _, _ in h]), torch.stack([b for _, b, _ in h])) for h in held]
        which = torch.tensor(rows, device="cuda")

        def bmm(i):
            a, b = stacked[i][0][which], stacked[i][1][which]
            y.add_(torch.bmm(b, torch.bmm(a, x.unsqueeze(2))).squeeze(2), alpha=0.5)

        floor = (distinct * 2 * r * width + batch * 3 * width) * 2
        row = {"op": "update", "batch": batch, "distinct": distinct, "r": r, "width": width, "ms": ours}
        row |= {"base_linear": linear, "bmm": time_ms(bmm, sets, 10), "bytes": floor}
        if peft:
            row["peft"] = peft_rows(x, rows, distinct, r, width)
        yield row
        del held, stacked, base


def peft_rows(x, rows, distinct, r, width):
    from peft import LoraConfig, get_peft_model

    class One(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = torch.nn.Linear(width, width, bias=False)

        def forward(self, x):
            return self.lin(x)

    base = One().to(device="cuda", dtype=torch.bfloat16)
    config = LoraConfig(r=r, lora_alpha=r, target_modules=["lin"], init_lora_weights=False)
    model = get_peft_model(base, config, "a0", autocast_adapter_dtype=False)
    for i in range(1, distinct):
        model.add_adapter(f"a{i}", config, autocast_adapter_dtype=False)
    model.eval()
    names = [f"a{i}" for i in rows]
    with torch.no_grad():
        return time_ms(lambda _: model(x, adapter_names=names), 1, 5)


def main():
    l4 = Library(sys.argv[1])
    out = Path(sys.argv[2])
    try:
        import peft

        version = peft.__version__
    except ImportError:
        version = None
    big = [torch.randn(GIB // 4, device="cuda") for _ in range(2)]
    ms = time_ms(lambda i: big[0].copy_(big[1]), 1)
    bandwidth = 2 * GIB / ms / 1e6
    del big
    rows = [*merge_rows(l4, version), *update_rows(l4, version)]
    about = {
        "device": torch.cuda.get_device_name(),
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "peft": version,
        "copy_GBps": bandwidth,
        "library": l4.info(),
    }
    (out / "gpu-check.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    text = report(about, rows)
    (out / "gpu-check.md").write_text(text)
    print(text)


def report(about, rows):
    lines = [f"# {about['device']}, {about['date']}", ""]
    lines += [f"torch {about['torch']}, peft {about['peft']}, copy bandwidth {about['copy_GBps']:.0f} GB/s (read and write)."]
    lines += ["Medians in microseconds; factors and weights bfloat16 unless said; random numbers, buffers larger than L2.", ""]
    lines += ["## merge", "", "| shape | r | adapters | f32 factors | bf16 factors | copy | addmm | PEFT | PEFT safe | PEFT / ours | of copy |"]
    lines += ["|" + "---|" * 11]
    us = lambda v: "" if v is None else f"{1000 * v:.1f}"
    for r in (r for r in rows if r["op"] == "merge"):
        ratio = f"{r['peft'] / r['ms']:.1f}x" if "peft" in r else ""
        lines.append(
            f"| {r['shape']} | {r['r']} | {r['adapters']} | {us(r['ms'])} | {us(r['ms_bf16_factors'])} | {us(r['copy'])} "
            f"| {us(r['addmm'])} | {us(r.get('peft'))} | {us(r.get('peft_safe'))} | {ratio} | {r['copy'] / r['ms']:.0%} |"
        )
    lines += ["", "## lowRankUpdate", "", "| batch | distinct | r | width | ours | base linear | added | bmm gather | PEFT | PEFT / ours | of bytes' floor |"]
    lines += ["|" + "---|" * 11]
    for r in (r for r in rows if r["op"] == "update"):
        floor = r["bytes"] / about["copy_GBps"] / 1e6
        ratio = f"{r['peft'] / r['ms']:.1f}x" if "peft" in r else ""
        lines.append(
            f"| {r['batch']} | {r['distinct']} | {r['r']} | {r['width']} | {us(r['ms'])} | {us(r['base_linear'])} "
            f"| {r['ms'] / r['base_linear']:.0%} | {us(r['bmm'])} | {us(r.get('peft'))} | {ratio} | {r['ms'] / floor:.1f}x |"
        )
    return "\n".join(lines) + "\n"


main()
