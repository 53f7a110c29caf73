"""Times the native library's CPU operations beside real PEFT, LibTorch's operations and the copy bandwidth, in one run.

    python native_bench.py LIBRARY [--out FOLDER] [--only merge,mixed,decode] [--grid] [--threads N]

Needs torch and peft. Prints a table with the targets beside the values; FOLDER receives cpu-DATE.md and cpu-DATE.json.
Random numbers everywhere; matrices take turns, so that none is in the cache when its turn comes. Times are medians, in
milliseconds; the parties of a row take turns too, so that a disturbance meets all of them.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "scripts" / "gpu"))


def with_one_openmp(library):
    """Starts this program anew with the library's OpenMP loaded first, so that torch uses the same one, as in Java."""
    if os.environ.get("LD_PRELOAD"):
        return
    lines = subprocess.run(["ldd", library], capture_output=True, text=True, check=True).stdout.splitlines()
    path = next(line.split("=>")[1].split()[0] for line in lines if "libgomp" in line)
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"LD_PRELOAD": path})


def median(values):
    return sorted(values)[len(values) // 2]


def times(parties, seconds=1.5, least=5):
    """Median milliseconds of each party (name -> function of a turning index), after one call that does not count."""
    taken = {name: [] for name in parties}
    for work in parties.values():
        work(0)
    start = time.perf_counter()
    turn = 0
    while turn < least or time.perf_counter() - start < seconds:
        turn += 1
        for name, work in parties.items():
            before = time.perf_counter()
            work(turn)
            taken[name].append((time.perf_counter() - before) * 1e3)
    return {name: median(values) for name, values in taken.items()}


class Bench:
    def __init__(self, arguments):
        import torch
        from lora4j import Library

        self.torch = torch
        self.l4 = Library(arguments.library)
        torch.manual_seed(1)
        torch.set_grad_enabled(False)
        if arguments.threads:
            torch.set_num_threads(arguments.threads)
        self.l4.c.l4_set_threads(torch.get_num_threads())
        self.rows = []

    def add(self, group, case, ms, **values):
        self.rows.append({"group": group, "case": case, "ms": ms} | values)

    # What the rows are measured against.

    def bandwidth(self):
        """GB/s read and written: the best of a copy and an operation in place, over 256 MiB."""
        torch = self.torch
        a, b = (torch.randn(1 << 26) for _ in range(2))
        bits = a.view(torch.int32)
        ms = times({"copy": lambda _: b.copy_(a), "mul": lambda _: torch.mul(a, 1.0, out=b), "in place": lambda _: bits.neg_()})
        read = times({"sum": lambda _: a.sum()})["sum"]
        size = 2 * a.numel() * 4
        return {name: size / value / 1e6 for name, value in ms.items()} | {"read": size / 2 / read / 1e6}

    def layers(self, count, out, width, r, adapters, dtype, **options):
        """LoRA layers of PEFT, with as many adapters each."""
        import warnings

        from peft import LoraConfig, get_peft_model

        torch = self.torch

        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.lin = torch.nn.Linear(width, out, bias=False, dtype=dtype)

            def forward(self, x):
                return self.lin(x)

        made = []
        for _ in range(count):
            config = LoraConfig(r=r, lora_alpha=2 * r, target_modules=["lin"], init_lora_weights=False)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = get_peft_model(Model(), config, "a0", **options)
                for i in range(1, adapters):
                    model.add_adapter(f"a{i}", config, **options)
            layer = model.base_model.model.lin
            for name in layer.lora_A:
                layer.lora_A[name].weight.normal_()
                layer.lora_B[name].weight.normal_(std=1e-4)
            made.append((model.eval(), layer))
        return made

    def updates(self, layer):
        return [(layer.lora_A[n].weight, layer.lora_B[n].weight, layer.scaling[n]) for n in layer.lora_A]

    # Merging.

    def merge_rows(self, out, width, dtype, r, adapters, bandwidth):
        from lora4j import matrix, place

        torch = self.torch
        layers = self.layers(3, out, width, r, adapters, dtype)
        names = [f"a{i}" for i in range(adapters)]
        weights = [layer.base_layer.weight for _, layer in layers]
        other = [torch.randn_like(w) for w in weights]
        tables = [(self.updates(layer), self.l4.prepare(self.updates(layer))) for _, layer in layers]
        flag = torch.zeros(1, dtype=torch.int32)

        def peft(safe):
            def work(i):
                layer = layers[i % 3][1]
                layer.merge(safe_merge=safe, adapter_names=names)
                layer.merged_adapters.clear()

            return work

        def addmm(i):
            for a, b, s in tables[i % 3][0]:
                weights[i % 3].addmm_(b.to(dtype), a.to(dtype), alpha=s)

        def safe(i):
            self.l4.merge_checked(other[i % 3], weights[i % 3], *tables[i % 3][:1], flag, tables[i % 3][1])

        def safe_new(i):
            target = torch.empty_like(weights[i % 3])
            self.l4.merge_checked(target, weights[i % 3], *tables[i % 3][:1], flag, tables[i % 3][1])

        parties = {
            "ours": lambda i: self.l4.merge(weights[i % 3], *tables[i % 3]),
            "copy": lambda i: other[i % 3].copy_(weights[i % 3]),
            "in place": lambda i: other[i % 3].view(torch.int32).neg_(),
            "safe": safe,
            "safe, new": safe_new,
            "addmm": addmm,
            "peft": peft(False),
            "peft safe": peft(True),
        }
        ms = times(parties)
        assert flag.item() == 0
        copy = min(ms["copy"], ms["in place"], 2 * weights[0].numel() * weights[0].element_size() / bandwidth / 1e6)
        targets = {}
        if adapters == 1:
            if r <= 8:
                targets["copy / ours"] = (copy / ms["ours"], 0.6)
            if r in (16, 64):
                targets["PEFT / ours"] = (ms["peft"] / ms["ours"], 8 if r == 16 else 5)
            if r == 16:
                targets["PEFT safe / ours safe"] = (ms["peft safe"] / ms["safe, new"], 12)
        elif r == 16:
            targets["PEFT / ours"] = (ms["peft"] / ms["ours"], 20)
        fma = out * width * r * adapters / ms["ours"] / 1e6
        self.add("merge", f"{out}x{width} {name_of(dtype)} r={r} x{adapters}", ms, targets=targets, gfma=fma)

    def merges(self, grid):
        torch = self.torch
        best = max(v for k, v in self.about["bandwidth_GBps"].items() if k != "read")
        for dtype in (torch.bfloat16, torch.float32):
            shapes = [(4096, 4096)] + ([(4096, 14336)] if grid else [])
            for out, width in shapes:
                for r in (1, 8, 16, 32, 64, 128) if grid else (8, 16, 64):
                    for adapters in (1, 4):
                        if adapters == 1 or r in (8, 16):
                            self.merge_rows(out, width, dtype, r, adapters, best)

    # Mixed batches.

    def mixed_rows(self, batch, distinct, r, width, dtype, factors, peft, targets_of):
        torch = self.torch
        size = distinct * 2 * r * width * (2 if factors == torch.bfloat16 else 4)
        sets = max(2, min(24, (96 << 20) // size + 1)) if not peft else 2
        held = []
        if peft:
            layers = self.layers(2, width, width, r, distinct, dtype, autocast_adapter_dtype=factors == torch.float32)
            held = [self.updates(layer) for _, layer in layers]
            base = [layer.base_layer.weight for _, layer in layers]
        else:
            for _ in range(sets):
                held.append(
                    [
                        (torch.randn(r, width).to(factors), (torch.randn(width, r) * 1e-4).to(factors), 2.0)
                        for _ in range(distinct)
                    ]
                )
            base = [torch.randn(width, width).to(dtype) for _ in range(3)]
        rows = [i % distinct for i in range(batch)]
        x = torch.randn(batch, width).to(dtype)
        y = torch.randn(batch, width).to(dtype)
        calls = [self.update_call(y, x, rows, adapters) for adapters in held]

        def linear(i):
            torch.mm(x, base[i % len(base)].t(), out=y)

        def both(i):
            linear(i)
            calls[i % len(calls)]()

        parties = {"ours": lambda i: calls[i % len(calls)](), "linear": linear, "both": both}
        if batch * distinct <= 4096:
            stacked = [(torch.stack([a for a, _, _ in h]), torch.stack([b for _, b, _ in h])) for h in held[:2]]
            which = torch.tensor(rows)
            xs = x.to(factors)

            def bmm(i):
                a, b = stacked[i % 2][0][which], stacked[i % 2][1][which]
                y.add_(torch.bmm(b, torch.bmm(a, xs.unsqueeze(2))).squeeze(2), alpha=2.0)

            parties["bmm gather"] = bmm
        if peft:
            names = [f"a{i}" for i in rows]
            parties["peft"] = lambda i: layers[i % 2][0](x, adapter_names=names)
        ms = times(parties, 1.5 if peft else 0.7)
        bytes_moved = size + batch * width * (2 * y.element_size() + x.element_size())
        values = {"GBps": bytes_moved / ms["ours"] / 1e6, "added": ms["both"] / ms["linear"] - 1}
        case = f"{batch} rows, {distinct} adapters, r={r}, {width}, {name_of(dtype)}, factors {name_of(factors)}"
        self.add("update", case, ms, targets=targets_of(ms, values), **values)

    def update_call(self, y, x, rows, adapters):
        from lora4j import matrix, place

        table = self.l4.prepare(adapters)
        index = (ctypes.c_int32 * len(rows))(*rows)
        my, mx, p = matrix(y), matrix(x), place(y)
        function = self.l4.c.l4_low_rank_update
        arguments = (ctypes.byref(my), ctypes.byref(mx), index, table, len(adapters), ctypes.byref(p))
        keep = (adapters, my, mx, p)

        def call():
            assert function(*arguments) == 0, keep

        return call

    def mixed(self):
        torch = self.torch
        for dtype, factors in ((torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float32, torch.float32)):
            # PEFT's loop is what its mixed batch takes beside the linear layer.
            self.mixed_rows(64, 64, 16, 4096, dtype, factors, True, lambda ms, v: {
                "PEFT / both": (ms["peft"] / ms["both"], 5),
                "PEFT's loop / ours": ((ms["peft"] - ms["linear"]) / ms["ours"], 5),
            })  # fmt: skip

    def decode(self):
        torch = self.torch
        read = self.about["bandwidth_GBps"]["read"]
        best = max(v for k, v in self.about["bandwidth_GBps"].items() if k != "read")
        for dtype in (torch.bfloat16, torch.float32):
            for batch, distinct in ((1, 1), (4, 1), (4, 4), (8, 1), (8, 8), (16, 16), (64, 64)):
                def targets(ms, values, distinct=distinct):
                    if distinct <= 8:
                        return {"added": (-values["added"], -0.15)}
                    return {"of read bandwidth": (values["GBps"] / read, 0.7), "of copy bandwidth": (values["GBps"] / best, 0.7)}

                self.mixed_rows(batch, distinct, 16, 4096, dtype, dtype, False, targets)

    def grid(self):
        torch = self.torch
        for width in (1024, 4096, 14336):
            for r in (8, 16, 64, 128):
                for batch in (1, 16, 256):
                    for distinct in (1, 16, 256):
                        if distinct <= batch and distinct * r * width <= 1 << 28:
                            self.mixed_rows(batch, distinct, r, width, torch.bfloat16, torch.bfloat16, False, lambda ms, v: {})

    def run(self, arguments):
        import peft

        torch = self.torch
        self.about = {
            "date": date.today().isoformat(),
            "cpu": cpu_features(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "peft": peft.__version__,
            "library": self.l4.info(),
            "instruction set": self.l4.c.l4_cpu_isa().decode(),
            "bandwidth_GBps": self.bandwidth(),
        }
        only = arguments.only.split(",")
        if "merge" in only:
            self.merges(arguments.grid)
        if "mixed" in only:
            self.mixed()
        if "decode" in only:
            self.decode()
        if arguments.grid:
            self.grid()
        text = report(self.about, self.rows)
        print(text)
        if arguments.out:
            stem = Path(arguments.out) / f"cpu-{self.about['date']}"
            stem.with_suffix(".json").write_text(json.dumps({"about": self.about, "rows": self.rows}, indent=1) + "\n")
            stem.with_suffix(".md").write_text(text)


def name_of(dtype):
    return {"bfloat16": "bf16", "float32": "f32", "float16": "f16"}[str(dtype).split(".")[1]]


def cpu_features():
    """What of the CPU matters here, without its name."""
    wanted = ("fma", "f16c", "avx2", "avx512f", "avx512bw", "avx512_bf16", "avx512_vnni", "amx_bf16")
    flags = next(line for line in open("/proc/cpuinfo") if line.startswith("flags")).split()
    return " ".join(f for f in wanted if f in flags)


def shown(name, value, limit):
    met = "met" if value >= limit else "MISSED"
    if limit < 0:
        return f"{name} {-value:.0%} <= {-limit:.0%}: {met}"
    if limit < 1:
        return f"{name} {value:.0%} >= {limit:.0%}: {met}"
    return f"{name} {value:.1f}x >= {limit:g}x: {met}"


def report(about, rows):
    speeds = ", ".join(f"{k} {v:.0f}" for k, v in about["bandwidth_GBps"].items())
    lines = [
        f"# CPU, {about['date']}",
        "",
        f"{about['threads']} threads, {about['cpu']}; torch {about['torch']}, peft {about['peft']}; {about['library']},"
        f" using {about['instruction set']}.",
        f"Bandwidth in GB/s, read and write: {speeds}. Milliseconds, medians; random numbers.",
    ]
    for group in dict.fromkeys(r["group"] for r in rows):
        part = [r for r in rows if r["group"] == group]
        names = list(dict.fromkeys(n for r in part for n in r["ms"]))
        extra = ["GFMA/s"] if group == "merge" else ["GB/s", "added"]
        lines += ["", f"## {group}", "", "| case | " + " | ".join(names + extra) + " | targets |"]
        lines += ["|" + "---|" * (len(names) + len(extra) + 2)]
        for r in part:
            more = [f"{r['gfma']:.0f}"] if group == "merge" else [f"{r['GBps']:.1f}", f"{r['added']:.0%}"]
            cells = [f"{r['ms'][n]:.3f}" if n in r["ms"] else "" for n in names]
            goals = "; ".join(shown(n, v, t) for n, (v, t) in r["targets"].items())
            lines.append(f"| {r['case']} | " + " | ".join(cells + more) + f" | {goals} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("--out")
    parser.add_argument("--only", default="merge,mixed,decode")
    parser.add_argument("--grid", action="store_true")
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    with_one_openmp(arguments.library)
    Bench(arguments).run(arguments)


main()
