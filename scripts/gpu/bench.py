"""Times the operations on a GPU beside PyTorch and PEFT. python bench.py LIBRARY FOLDER VARIANT...

Times are of the device alone: calls in a replayed CUDA graph, ours and the others' alike. PEFT's safe merge and its
mixed batch wait for the device, so they are the sum of their kernels, which favours them.
"""

import ctypes
import gc
import json
import sys
from datetime import date
from pathlib import Path

import torch

from lora4j import Library, kernels
from report import report
from timing import device_ms, kernels_ms, wall_ms

GIB = 1 << 30
TIMED = sys.argv[3:]


def copy_ms(target, sources):
    """The faster of a memory copy and an elementwise kernel."""
    copies = [lambda i: target.copy_(sources[i]), lambda i: torch.mul(sources[i], 1, out=target)]
    return min(device_ms(work, len(sources)) for work in copies)


def merge_rows(l4, peft):
    for out, width in ((4096, 4096), (4096, 14336)):
        buffers = 4
        ws = [torch.randn(out, width, device="cuda").bfloat16() for _ in range(buffers)]
        target = torch.empty_like(ws[0])
        flag = torch.zeros(1, dtype=torch.int32, device="cuda")
        copy = copy_ms(target, ws)
        for r in (8, 16, 32, 64):
            for adapters in (1, 4):
                updates = [
                    (torch.randn(r, width, device="cuda"), torch.randn(out, r, device="cuda") * 1e-3, 0.5)
                    for _ in range(adapters)
                ]
                halves = [(a.bfloat16(), b.bfloat16(), s) for a, b, s in updates]
                table, half_table = l4.prepare(updates), l4.prepare(halves)

                def addmm(i):
                    for a, b, s in halves:
                        ws[i].addmm_(b, a, alpha=s)

                def safe(i):
                    l4.merge_checked(target, ws[i], updates, flag, table)

                row = {"op": "merge", "shape": f"{out}x{width}", "r": r, "adapters": adapters}
                row |= {"copy": copy, "addmm": device_ms(addmm, buffers)}
                if peft:
                    row |= peft_merge(out, width, r, adapters)
                for variant in TIMED:
                    with kernels(l4, variant):
                        ours = {
                            "kernels": variant,
                            "ms": device_ms(lambda i: l4.merge(ws[i], updates, table), buffers),
                            "ms_bf16_factors": device_ms(lambda i: l4.merge(ws[i], halves, half_table), buffers),
                            "safe": device_ms(safe, buffers),
                        }
                    yield row | ours
        del ws, target
        torch.cuda.empty_cache()


def one_linear(out, width, r, adapters, **options):
    from peft import LoraConfig, get_peft_model

    class One(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = torch.nn.Linear(width, out, bias=False, device="cuda", dtype=torch.bfloat16)

        def forward(self, x):
            return self.lin(x)

    config = LoraConfig(r=r, lora_alpha=r, target_modules=["lin"], init_lora_weights=False)
    model = get_peft_model(One(), config, "a0", **options)
    for i in range(1, adapters):
        model.add_adapter(f"a{i}", config, **options)
    return model.eval()


def peft_merge(out, width, r, adapters):
    layer = one_linear(out, width, r, adapters).base_model.model.lin
    names = [f"a{i}" for i in range(adapters)]

    def merged(safe):
        def work(_):
            layer.merge(safe_merge=safe, adapter_names=names)
            layer.merged_adapters.clear()

        return work

    with torch.no_grad():
        row = {"peft": device_ms(merged(False), 1, 8), "peft_safe": kernels_ms(merged(True))}
        return row | {"peft_wall": wall_ms(merged(False)), "peft_safe_wall": wall_ms(merged(True))}


def update_rows(l4, peft):
    grid = [(b, d, r, w) for b in (1, 8, 64, 256) for d in (1, 8, 64, 256) if d <= b for r in (16, 64) for w in (4096,)]
    grid += [(64, 64, 16, 1024), (64, 64, 16, 14336), (64, 8, 8, 4096), (64, 64, 128, 4096), (16, 16, 16, 4096)]
    for batch, distinct, r, width in grid:
        # Sets in turn until they are larger than the cache, as the layers of a model are.
        sets = max(1, min(32, int(0.2 * GIB / (distinct * 2 * r * width * 2) + 1)))
        held = [
            [
                (torch.randn(r, width, device="cuda").bfloat16(), torch.randn(width, r, device="cuda").bfloat16(), 0.5)
                for _ in range(distinct)
            ]
            for _ in range(sets)
        ]
        tables = [l4.prepare(adapters) for adapters in held]
        rows = [i % distinct for i in range(batch)]
        index = (ctypes.c_int32 * batch)(*rows)
        x = torch.randn(batch, width, device="cuda").bfloat16()
        y = torch.randn(batch, width, device="cuda").bfloat16()
        base = [torch.randn(width, width, device="cuda").bfloat16() for _ in range(4)]

        def ours(i):
            l4.low_rank_update(y, x, rows, held[i % sets], tables[i % sets], index)

        def linear(i):
            torch.mm(x, base[i % 4].t(), out=y)

        def both(i):
            linear(i)
            ours(i)

        turns = max(sets, 4)
        row = {"op": "update", "batch": batch, "distinct": distinct, "r": r, "width": width}
        row["base_linear"] = device_ms(linear, 4)
        stacked = [(torch.stack([a for a, _, _ in h]), torch.stack([b for _, b, _ in h])) for h in held]
        which = torch.tensor(rows, device="cuda")

        def bmm(i):
            a, b = stacked[i][0][which], stacked[i][1][which]
            y.add_(torch.bmm(b, torch.bmm(a, x.unsqueeze(2))).squeeze(2), alpha=0.5)

        row["bmm"] = device_ms(bmm, sets, 8)
        row["bytes"] = (distinct * 2 * r * width + batch * 3 * width) * 2
        if peft and distinct <= 64:
            row |= peft_rows(x, rows, distinct, r, width)
        yield row | {"ms": device_ms(ours, sets), "both": device_ms(both, turns)}
        del held, stacked, base


def peft_rows(x, rows, distinct, r, width):
    model = one_linear(width, width, r, distinct, autocast_adapter_dtype=False)
    names = [f"a{i}" for i in rows]

    def mixed(_):
        model(x, adapter_names=names)

    with torch.no_grad():
        return {"peft": kernels_ms(mixed, 2), "peft_wall": wall_ms(mixed, 2)}


def main():
    l4 = Library(sys.argv[1])
    out = Path(sys.argv[2])
    try:
        import peft

        version = peft.__version__
    except ImportError:
        version = None
    gc.freeze()  # each capture collects garbage
    big = [torch.randn(GIB // 4, device="cuda") for _ in range(2)]
    bandwidth = 2 * GIB / copy_ms(big[0], [big[1]]) / 1e6
    del big
    about = {
        "device": torch.cuda.get_device_name(),
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "peft": version,
        "copy_GBps": bandwidth,
        "library": l4.info(),
    }
    rows = []
    for part in (merge_rows, update_rows):
        for row in part(l4, version):
            rows.append(row)
            # Kept after each row, so that a run that is cut short leaves what it has.
            (out / "gpu-check.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    text = report(about, rows)
    (out / "gpu-check.md").write_text(text)
    print(text)


main()
