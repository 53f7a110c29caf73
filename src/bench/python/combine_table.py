"""Writes what scripts/combine-bench measured, and the last test run's differences from PEFT, into a page.

    python combine_table.py FOLDER PAGE
"""

import datetime
import json
import sys
from pathlib import Path

BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
TYPES = ("svd", "linear", "cat", "ties", "ties_svd", "dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd",
         "magnitude_prune", "magnitude_prune_svd")
DIFFERENCES = Path("target/parity/CombineGoldenTest.json")


def speed(folder):
    peft = json.loads((folder / "peft.json").read_text())
    ours = json.loads((folder / "ours.json").read_text())
    seven = json.loads((folder / "seven.json").read_text())
    apart = max(abs(a - b) for a, b in zip(ours["svd_values"], peft["svd_values"])) / peft["svd_values"][0]

    def ratio(baseline, own):
        return peft[baseline] / ours[own]

    rows = [
        ("`svd` of two r=32 adapters, 4096 x 4096, against PEFT's `svd`", f"{ours['svd_seconds'] * 1e3:.1f} ms",
         f"{peft['svd_seconds']:.1f} s", f"{ratio('svd_seconds', 'svd_seconds'):.0f}x", ">= 1000x"),
        ("`exact` of the same, against PEFT's `svd`", f"{ours['exact_seconds'] * 1e3:.1f} ms",
         f"{peft['svd_seconds']:.1f} s", f"{ratio('svd_seconds', 'exact_seconds'):.0f}x", ">= 1000x"),
        ("their singular values, largest difference by the largest value", "", "", f"{apart:.1e}", "<= 1e-5"),
        ("`ties` on two 4096 x 4096 matrices, density 0.3, against PEFT's function", f"{ours['ties_seconds']:.2f} s",
         f"{peft['ties_seconds']:.2f} s", f"{ratio('ties_seconds', 'ties_seconds'):.1f}x", ">= 5x"),
        ("rank-64 extraction of a 4096 x 4096 change, against torch's full SVD", f"{ours['extract_seconds']:.2f} s",
         f"{peft['full_svd_seconds']:.1f} s", f"{ratio('full_svd_seconds', 'extract_seconds'):.1f}x", ">= 20x"),
        ("its error by the least possible one", "", "", f"{ours['extract_error'] / peft['optimal_error']:.4f}",
         "<= 1.005"),
        ("its certificate by its measured error", "", "",
         f"{ours['extract_certificate'] / ours['extract_error']:.6f}", "1"),
        ("`exact` of three r=16 adapters of a 7B shape (32 layers x 7 modules), files to file",
         f"{seven['seven_seconds']:.1f} s", "", "", "< 20 s"),
        ("its peak memory, mapped files included", f"{seven['seven_peak_bytes'] / 1e9:.2f} GB", "", "", "< 1 GB"),
    ]
    about = f"{datetime.date.today()}, 2 CPU cores, AVX-512, peft {peft['peft']}, torch {peft['torch']}"
    lines = [f"Measured {about}, in one run of `scripts/combine-bench`.", "",
             "| | lora4j | baseline | ratio | target |", "|---|---|---|---|---|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def golden():
    if not DIFFERENCES.exists():
        raise SystemExit(f"{DIFFERENCES} is missing: run the tests first")
    cases = json.loads(DIFFERENCES.read_text())
    lines = ["", "Largest difference from PEFT of all golden cases of a type, as a part of the largest value:", "",
             "| type | cases | difference of B A |", "|---|---|---|"]
    for kind in TYPES:
        own = [values for name, values in cases.items()
               if name.startswith(f"combine/{kind}_") and not any(
                   name.startswith(f"combine/{other}_") for other in TYPES if other.startswith(kind + "_"))]
        lines.append(f"| `{kind}` | {len(own)} | {max(v['delta'] for v in own):.1e} |")
    return lines


def main(folder, page):
    text = page.read_text()
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    page.write_text(head + BEGIN + "\n" + "\n".join(speed(folder) + golden()) + "\n" + END + tail)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
