#!/usr/bin/env bash
# Everything that wants a GPU, in order, into one folder: from a bundle (`make bundle`, unpacked) or from the built source tree.
#   gpu_check.sh RESULTS [--parts 'facts ops golden curves roofline bench timeline sanitize'] [--seconds 560] [--only WORDS of bench_gpu.py]
#                [--backend cuda] [--build build] [--tiny]
# Parts:
#   facts     driver, GPU, libraries, memory
#   ops       conformance tests of every op on the chip (on ordinary memory where the driver lets the GPU reach it, else skipped; and in device memory)
#   golden    tests of models and training against numbers of transformers, in device memory
#   curves    100 training steps on GPU and CPU side by side, twice bit for bit (gpu_curves.py)
#   roofline  every op at true shapes beside the least time it could take
#   bench     beside PyTorch + transformers (bench_gpu.py)
#   timeline  share of the time in which the GPU waited, and on what it worked (bench_gpu.py --timeline)
#   sanitize  compute-sanitizer: memcheck, racecheck, initcheck, synccheck over every op in device memory and over the conformance tests
# Each part has a limit inside --seconds; what is over it is ended and said. Three calls of ten minutes hold all of it:
#   1: facts ops golden curves   2: roofline bench   3: bench --only 'qwen,generate,tile' timeline sanitize
# What was skipped for want of a GPU, or of a driver that reaches ordinary memory, is named at the end: it was not tested.
# RESULTS holds summary.txt, roofline.txt .json, bench-gpu.md .json, timeline.txt, curves.json, logs.tar.gz. Exit 1 when a test failed.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd) root=$(cd "$(dirname "$0")/../.." && pwd)
usage() { sed -n '2,4p' "$0" >&2; exit 2; }
[ $# -ge 1 ] || usage
results=$1
shift
parts='facts ops golden curves roofline bench timeline sanitize' seconds=560 only='' backend=cuda build=build tiny=''
while [ $# -gt 0 ]; do
    case $1 in
    --parts) parts=$2; shift ;;
    --seconds) seconds=$2; shift ;;
    --only) only=$2; shift ;;
    --backend) backend=$2; shift ;;
    --build) build=$2; shift ;;
    --tiny) tiny=--tiny ;;
    *) usage ;;
    esac
    shift
done
mkdir -p "$results/logs"
results=$(cd "$results" && pwd)
cd "$root" || exit 1
bin=$build/bin check=$build/gpu/tests
[ -x "$root/run" ] && bin=$root/bin check=$root/check
python=${MB_PYTHON:-python3} failed=0 untested=''
MB_CUDA_LIBS=$("$python" "$here/gpu_facts.py" --libraries)
export MB_CUDA_LIBS PYTHONUNBUFFERED=1
summary() { printf '%s\n' "$*" | tee -a "$results/summary.txt"; }
left() { echo $((seconds - SECONDS)); }

# within MOST COMMAND...: under a limit of MOST seconds and of what is left; 124 when it was ended.
within() {
    local most=$1 rest
    shift
    rest=$(left)
    [ "$rest" -lt "$most" ] && most=$rest
    [ "$most" -ge 5 ] || { echo "no time left"; return 124; }
    timeout --kill-after=5 "$most" "$@"
}

# ours NAME: the words that start one of our programs.
ours() {
    if [ -x "$root/run" ]; then echo "$root/run $1"; elif [ -x "$bin/$1" ]; then echo "$bin/$1"; elif [ -x "$build/bench/$1" ]; then echo "$build/bench/$1"; else echo "$check/$1"; fi
}

# count_tap LOG: passed, failed, skipped of cmocka's lines.
count_tap() {
    local ok not_ok skip
    skip=$(grep -ciE '^(not )?ok .*# skip' "$1")
    ok=$(grep -E '^ok ' "$1" | grep -vciE '# skip')
    not_ok=$(grep -E '^not ok ' "$1" | grep -vciE '# skip')
    echo "$ok passed, $not_ok failed, $skip skipped"
}

# tests FOLDER LIMIT: every test program of a folder.
tests() {
    local folder=$1 limit=$2 test name log code started
    for test in "$check/$folder"/test_*; do
        case $test in *.d | *_speed | *_speed_elem | *fuzz*) continue ;; esac
        [ -x "$test" ] || { summary "  $check/$folder holds no tests (make gpu-tests)"; failed=1; return; }
        name=$folder/$(basename "$test") log=$results/logs/$folder-$(basename "$test").log code=0 started=$SECONDS
        # shellcheck disable=SC2046
        within "$limit" $(ours "$name") > "$log" 2>&1 || code=$?
        summary "  $name: $(count_tap "$log")$([ $code -eq 0 ] || echo ", exit $code") ($((SECONDS - started)) s)"
        # What was skipped for want of the backend that is to be tested was not tested.
        [ "$backend" = cuda ] && grep -qE '^# skipped: .*(cuda|CUDA|GPU)' "$log" && untested="$untested $name"
        grep -hE '^# skipped: ' "$log" | sort | uniq -c | sort -rn | head -3 | cut -c1-200 | sed 's/^/      /' | tee -a "$results/summary.txt"
        if [ $code -ne 0 ]; then
            failed=1
            grep -vE '^(ok |1\.\.)' "$log" | head -12 | cut -c1-300 | sed 's/^/      /' | tee -a "$results/summary.txt"
        fi
    done
}

facts() {
    within 120 "$python" "$here/gpu_facts.py" > "$results/logs/facts.txt" 2>&1
    grep -E '^(GPU|driver API|pageable memory access|multiprocessors|L2 bytes|cuBLAS|transformers)|^--- torch' "$results/logs/facts.txt" | sed 's/^/  /' | tee -a "$results/summary.txt"
    # shellcheck disable=SC2046
    if within 60 $(ours roofline) --backend "$backend" --tiny --only 'none of them' > "$results/logs/backend.txt" 2>&1; then
        summary "  $(head -2 "$results/logs/backend.txt" | tr '\n' ' ')"
    else
        failed=1
        summary "  backend $backend does not open:"
        head -12 "$results/logs/backend.txt" | sed 's/^/      /' | tee -a "$results/summary.txt"
    fi
}

roofline() {
    # shellcheck disable=SC2046,SC2086
    within 200 $(ours roofline) --backend "$backend" $tiny --json "$results/roofline.json" > "$results/roofline.txt" 2> "$results/logs/roofline.err" || { failed=1; head -5 "$results/logs/roofline.err" | tee -a "$results/summary.txt"; }
    summary "  $(sed -n 2p "$results/roofline.txt")"
    summary "  $(tail -1 "$results/roofline.txt"); $(grep -c FAILED "$results/roofline.txt") cases failed"
    "$python" - "$results/roofline.json" << 'PY' 2>&1 | tee -a "$results/summary.txt"
import json, sys
try:
    rows = [r for r in json.load(open(sys.argv[1]))["rows"] if r["floor_us"] > 0]
except Exception as error:
    raise SystemExit(f"  no table: {error}")
best = {}
for r in rows:
    t = r["replay_us"] or r["us"]
    e = best.setdefault((r["op"], r["dtype"]), [0, 0, 9, ""])
    e[0] += t
    e[1] += r["floor_us"]
    if r["share"] < e[2]:
        e[2], e[3] = r["share"], f"{r['model']} {r['tokens']} {r['shape']}"
print("  share of the floor, all shapes of an op together; the worst of them")
for (op, dtype), (t, floor, worst, where) in sorted(best.items(), key=lambda item: item[1][1] / item[1][0]):
    print(f"  {100 * floor / t:5.0f} %  {op:26s} {dtype:5s} worst {100 * worst:4.0f} %  {where}")
PY
}

bench() {
    # shellcheck disable=SC2086
    within "$(left)" "$python" "$here/bench_gpu.py" --out "$results" --bin "$bin" --backend "$backend" --seconds $(($(left) - 15)) ${only:+--only "$only"} $tiny "$@" \
        > "$results/logs/bench${1:-}.txt" 2>&1 || { failed=1; tail -5 "$results/logs/bench${1:-}.txt" | tee -a "$results/summary.txt"; }
}

# Under the sanitizer times mean nothing, so the smallest shapes: every op in device memory, then the conformance tests.
sanitize() {
    local tool log code name test
    command -v compute-sanitizer > /dev/null || { summary "  compute-sanitizer is not here"; return; }
    for tool in memcheck racecheck initcheck synccheck; do
        log=$results/logs/sanitize-$tool.log code=0
        # shellcheck disable=SC2046
        within 100 compute-sanitizer --tool "$tool" --target-processes all --error-exitcode 99 $(ours roofline) --backend "$backend" --tiny --rounds 1 --tokens 64 > "$log" 2>&1 || code=$?
        summary "  $tool, every op: $(grep -hE 'ERROR SUMMARY|RACECHECK SUMMARY' "$log" | tail -1 | sed 's/=*//g') exit $code"
        [ $code -eq 0 ] || [ $code -eq 124 ] || failed=1
    done
    for tool in memcheck racecheck; do
        for test in "$check"/ops/test_ops_device "$check"/ops/test_ops_cuda_products "$check"/ops/test_ops "$check"/model/test_device; do
            log=$results/logs/sanitize-$tool-$(basename "$test").log code=0
            name=$(basename "$(dirname "$test")")/$(basename "$test")
            # shellcheck disable=SC2046
            within 90 compute-sanitizer --tool "$tool" --target-processes all --error-exitcode 99 $(ours "$name") > "$log" 2>&1 || code=$?
            summary "  $tool, $name: $(grep -hE 'ERROR SUMMARY|RACECHECK SUMMARY' "$log" | tail -1 | sed 's/=*//g') exit $code$([ $code -ne 124 ] || echo ' (ended at its limit)')"
            [ $code -eq 0 ] || [ $code -eq 124 ] || failed=1
        done
    done
}

summary "parts: $parts; backend $backend; $(date -u +%FT%TZ)"
for part in $parts; do
    began=$SECONDS
    summary "== $part ($(left) s left)"
    case $part in
    facts) facts ;;
    ops) tests ops 150 ;;
    golden) tests model 120; tests learn 120 ;;
    curves)
        # shellcheck disable=SC2086
        within 240 "$python" "$here/gpu_curves.py" --out "$results" --bin "$bin" --backend "$backend" $tiny > "$results/logs/curves.txt" 2>&1 || failed=1
        sed 's/^/  /' "$results/logs/curves.txt" | cut -c1-300 | tee -a "$results/summary.txt" ;;
    roofline) roofline ;;
    bench) bench; sed 's/^/  /' "$results/bench-gpu.md" | tee -a "$results/summary.txt" ;;
    timeline) bench --timeline; cut -c1-200 "$results/timeline.txt" | sed 's/^/  /' | tee -a "$results/summary.txt" ;;
    sanitize) sanitize ;;
    *) summary "  there is no part $part"; failed=1 ;;
    esac
    summary "   $((SECONDS - began)) s"
done
mv "$results"/bench-gpu.log "$results"/timeline.json "$results/logs" 2> /dev/null
tar -C "$results" -czf "$results/logs.tar.gz" logs && rm -rf "$results/logs"
[ -z "$untested" ] || summary "NOT (or not wholly) tested on $backend, see their reasons above:$untested"
summary "$([ $failed -eq 0 ] && echo 'all well' || echo 'something failed')"
exit $failed
