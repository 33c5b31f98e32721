#!/usr/bin/env bash
# All tests that need a GPU and all benchmarks on it: benchmarks/gpu.sh [OUT] [PEAK]
# OUT is the folder of their output; PEAK the specified TFLOP/s of the GPU in bfloat16, such as 989.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD
out=${1:-gpu_results}
peak=(${2:+--peak "$2"})

failed=()
mkdir -p "$out"

run() { # run NAME COMMAND...: print a command's output and keep it
    echo "== $1"
    "${@:2}" 2>&1 | tee "$out/$1.txt" || failed+=("$1")
}

run env python -m isanet_zoo env
run tests python -m pytest -n 0 -m gpu tests
for batch in 1 16; do
    run "network_$batch" python benchmarks/network.py --device cuda --batch $batch --compile "${peak[@]}"
    run "predict_$batch" python benchmarks/predict.py --device cuda --batch $batch --compile
done
run upsample python benchmarks/upsample.py --device cuda
run attention python benchmarks/attention.py --device cuda --large
run folder python benchmarks/folder.py --device cuda --images 2000 --batch 16 --dtype bfloat16
echo "output in $out; failed: ${failed[*]:-none}"
[ ${#failed[@]} -eq 0 ]
