"""The tables of bench.py's rows, with the targets. python report.py FILE.json prints those of a kept file."""

import json
import sys


def us(ms):
    return "" if ms is None else f"{1000 * ms:.1f}"


def ratio(theirs, ours):
    return None if theirs is None else theirs / ours


def verdict(checks):
    """checks: (name, value, limit, at_least); a value of None was not measured."""
    met = []
    for name, value, limit, at_least in checks:
        if value is not None:
            good = value >= limit if at_least else value <= limit
            met.append(f"{name} {'>=' if at_least else '<='} {limit:g}: {'met' if good else 'MISSED'}")
    return "; ".join(met)


def merge_targets(r):
    checks = []
    if r["adapters"] == 1 and r["r"] <= 32:
        checks.append(("of copy", r["copy"] / r["ms"], 0.85, True))
    if r["adapters"] == 1 and r["r"] in (16, 64):
        checks.append(("PEFT", ratio(r.get("peft"), r["ms"]), 4 if r["r"] == 16 else 3.5, True))
    if r["adapters"] == 1 and r["r"] == 16:
        checks.append(("safe", ratio(r.get("peft_safe"), r["safe"]), 8, True))
    if r["adapters"] == 4 and r["r"] <= 16:
        checks.append(("PEFT", ratio(r.get("peft"), r["ms"]), 12, True))
    return verdict(checks)


def update_targets(r, floor):
    checks = []
    if r["distinct"] <= 8:
        checks.append(("added", r["both"] / r["base_linear"] - 1, 0.1, False))
    else:
        checks.append(("of floor", r["ms"] / floor, 2, False))
    if (r["batch"], r["distinct"], r["r"], r["width"]) == (64, 64, 16, 4096):
        checks.append(("PEFT", ratio(r.get("peft"), r["ms"]), 10, True))
    return verdict(checks)


def times(value):
    return "" if value is None else f"{value:.1f}x"


def table(names, rows):
    return ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)] + ["| " + " | ".join(r) + " |" for r in rows]


def report(about, rows):
    floor = lambda r: r["bytes"] / about["copy_GBps"] / 1e6
    lines = [f"# {about['device']}, {about['date']}", ""]
    lines += [f"torch {about['torch']}, peft {about['peft']}, copy bandwidth {about['copy_GBps']:.0f} GB/s (read and write)."]
    lines += [
        "Microseconds of the device, without launches: replayed CUDA graphs, ours and the others' alike; PEFT's safe merge"
        " and mixed batch, which no graph can hold, as the sum of their kernels, and as their caller sees them (wall)."
        " Factors and weights bfloat16 unless said; random numbers, buffers larger than L2 in turn.",
        "",
        "## merge",
        "",
        "Safe: from one matrix to another with the check for infinities, which leaves the original as it is.",
        "",
    ]
    merges = [
        [
            r["shape"], str(r["r"]), str(r["adapters"]), r["kernels"], us(r["ms"]), us(r["ms_bf16_factors"]), us(r["safe"]),
            us(r["copy"]), us(r["addmm"]), us(r.get("peft")), us(r.get("peft_safe")), us(r.get("peft_wall")), us(r.get("peft_safe_wall")),
            times(ratio(r.get("peft"), r["ms"])), times(ratio(r.get("peft_safe"), r["safe"])),
            f"{r['copy'] / r['ms']:.0%}", merge_targets(r),
        ]
        for r in rows if r["op"] == "merge"
    ]  # fmt: skip
    names = "shape, r, adapters, kernels, f32 factors, bf16 factors, safe, copy, addmm, PEFT, PEFT safe, PEFT wall"
    names += ", PEFT safe wall, PEFT / ours, PEFT safe / safe, of copy, targets"
    lines += table(names.split(", "), merges)
    lines += ["", "## lowRankUpdate", ""]
    lines += ["Added: what the update adds to the base linear it follows, of that linear's time.", ""]
    updates = [
        [
            str(r["batch"]), str(r["distinct"]), str(r["r"]), str(r["width"]), us(r["ms"]),
            us(r["base_linear"]), us(r["both"]), f"{r['both'] / r['base_linear'] - 1:.0%}", us(r["bmm"]), us(r.get("peft")), us(r.get("peft_wall")),
            times(ratio(r.get("peft"), r["ms"])), times(r["ms"] / floor(r)), update_targets(r, floor(r)),
        ]
        for r in rows if r["op"] == "update"
    ]  # fmt: skip
    names = "batch, distinct, r, width, ours, base linear, both, added, bmm gather, PEFT, PEFT wall, PEFT / ours"
    names += ", of bytes' floor, targets"
    lines += table(names.split(", "), updates)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    kept = json.loads(open(sys.argv[1]).read())
    print(report(kept["about"], kept["rows"]), end="")
