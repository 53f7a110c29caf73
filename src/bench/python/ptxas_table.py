"""Prints, as a table, what ptxas reported of every CUDA kernel: registers, shared memory, stack and spilled bytes.

    python ptxas_table.py BUILD > docs/benchmarks/ptxas.md

BUILD is a folder that cmake built the native library in with CUDA. Needs c++filt (binutils).
"""

import re
import subprocess
import sys
from pathlib import Path

ENTRY = re.compile(r"Compiling entry function '([^']*)' for 'sm_(\d+)'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


def kernels(folder):
    """(kernel's mangled name, architecture) -> (registers, shared memory, stack, spilled)."""
    found = {}
    for log in sorted(folder.rglob("*.cu.o.log")):
        key, stack = None, None
        for line in log.read_text().splitlines():
            if match := ENTRY.search(line):
                key = match.groups()
            elif (match := STACK.search(line)) and key:
                stack = [int(number) for number in match.groups()]
            elif (match := USED.search(line)) and key:
                shared = SHARED.search(line)
                found[key] = (int(match[1]), int(shared[1]) if shared else 0, stack[0], stack[1] + stack[2])
                key = None
    return found


def readable(names):
    shown = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True).stdout.splitlines()
    types = {"0": "float32", "1": "bfloat16", "2": "float16", "3": "float8"}
    result = []
    for name in shown:
        name = re.sub(r"\(lora4j::DType\)(\d)", lambda match: types[match[1]], name)
        name = re.sub(r"\(anonymous namespace\)::|lora4j::|_GLOBAL__N__\w+::", "", name)
        result.append(re.sub(r"^void |\(.*\)$", "", name))
    return dict(zip(names, result))


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    found = kernels(Path(sys.argv[1]))
    if not found:
        sys.exit(f"{sys.argv[1]} holds no *.cu.o.log: build there with CUDA")
    shown = readable(sorted({name for name, _ in found}))
    architectures = sorted({architecture for _, architecture in found})
    print("# What ptxas made of the kernels\n")
    print("Registers of a thread and static shared memory of a block, in bytes; with 0 there a kernel may choose its memory at")
    print("the launch. `ctest -R cuda.local_memory` fails if one has a stack frame or spills a register.\n")
    print("| kernel | " + " | ".join(f"sm_{each}: registers | shared | stack | spilled" for each in architectures) + " |")
    print("|---" * (1 + 4 * len(architectures)) + "|")
    for name in sorted(shown, key=shown.get):
        cells = [found.get((name, each), ("-",) * 4) for each in architectures]
        print(f"| `{shown[name]}` | " + " | ".join(str(number) for cell in cells for number in cell) + " |")


if __name__ == "__main__":
    main()
