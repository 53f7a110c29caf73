#!/usr/bin/env bash
# Makes the base model, the tasks and the golden files: run.sh WORK_FOLDER OUT_FOLDER
# Training goes on from the checkpoint in WORK_FOLDER. PYTHON names the interpreter with requirements.txt installed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$1 out=$2 python=${PYTHON:-python3}
export OMP_WAIT_POLICY=passive OMP_NUM_THREADS=2 TOKENIZERS_PARALLELISM=false PYTHONDONTWRITEBYTECODE=1
mkdir -p "$work" "$out/base" "$out/tasks"

"$python" "$here/prepare_data.py" --work "$work"
"$python" "$here/train_tokenizer.py" --work "$work" --out "$work/tokenizer"
"$python" "$here/make_tasks.py" --work "$work" --tokenizer "$work/tokenizer/tokenizer.json" --out "$out/tasks"
nice -n 10 "$python" "$here/train_base.py" --work "$work" --tokenizer "$work/tokenizer" --steps 7000 --log "$here/loss.csv"

install -m 644 "$work"/export/* "$out/base/"
cp "$work/LICENSE-WORDNET" "$out/base/"
cp "$work/LICENSE-WORDNET" "$out/tasks/"
"$python" "$here/make_golden.py" --base "$out/base" --out "$out"
"$python" "$here/probe_tasks.py" --base "$out/base" --tasks "$out/tasks" > "$work/probe.json"
"$python" "$here/check_base.py" --base "$out/base" --work "$work" --tasks "$out/tasks" --probe "$work/probe.json" \
    --record "$here/record.json"
