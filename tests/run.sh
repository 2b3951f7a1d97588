#!/usr/bin/env bash
# Run every test and count: unit programs (cmocka), MPI programs, bats files, lint, Python. All speak TAP.
# The last line is "N passed, N failed, N skipped". The number of tests must equal tests/expected (a test that vanishes is a failure).
# MB_JOBS: test programs at a time (as many as processors, 4 at most; those of several ranks and of Slurm run alone).
# MB_TRIES=2: what fails is run once more and both outcomes are said (continuous integration: machines there stall now and then); a test
# that needed its second try is listed as unsteady, never silently passed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

build=build only='' suites='lint unit mpi stage analysis'
while [ $# -gt 0 ]; do
    case $1 in
    --build) build=$2; shift ;;
    --only) only=$2; shift ;;
    --suites) suites=$2; shift ;;
    *) echo "usage: tests/run.sh [--build DIR] [--only WORD] [--suites '...']" >&2; exit 2 ;;
    esac
    shift
done
export MB_BUILD=$build MB_BIN=$PWD/$build/bin MB_SHARED_DATA=${MB_SHARED_DATA:-$PWD/../shared/data}
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} # threads that spin starve each other where cores are shared
export MB_PYTHON=${MB_PYTHON:-python3}
jobs=${MB_JOBS:-$(nproc 2> /dev/null || echo 1)}
[ "$jobs" -le 4 ] || jobs=4
work=$(mktemp -d)
at_end() {
    jobs -p | xargs -r kill 2> /dev/null
    rm -rf "$work"
}
trap at_end EXIT
passed=0 failed=0 skipped=0 failures=() unsteady=() names=() limits=() commands=()
: > "$work/why"

# run_once NAME TIME COMMAND...: run a command and count its TAP lines into $log.count (passed failed skipped); it must keep its plan and end
# well. Failures repeat the command.
run_once() {
    local name=$1 limit=$2 code=0 started=$SECONDS plan ok not_ok skip
    shift 2
    timeout --kill-after=10 "$limit" "$@" < /dev/null > "$log" 2>&1 || code=$?
    # cmocka writes a skipped test as "not ok N # SKIP name", bats and others as "ok N name # skip reason".
    skip=$(grep -ciE '^(not )?ok .*# skip' "$log")
    ok=$(grep -E '^ok ' "$log" | grep -vciE '# skip')
    not_ok=$(grep -E '^not ok ' "$log" | grep -vciE '# skip')
    plan=$(sed -n 's/^1\.\.\([0-9]*\).*/\1/p' "$log" | awk '{n += $1} END {print n + 0}')
    [ "$plan" -eq $((ok + not_ok + skip)) ] || { not_ok=$((not_ok + 1)); echo "# planned $plan tests, saw $((ok + not_ok + skip - 1))" >> "$log"; }
    [ "$plan" -gt 0 ] || [ "$not_ok" -gt 0 ] || { not_ok=1; echo "# no test ran" >> "$log"; }
    [ "$code" -eq 0 ] || [ "$not_ok" -gt 0 ] || { not_ok=1; echo "# ended with code $code" >> "$log"; }
    printf '%-44s %4d passed %3d failed %3d skipped  %3d s\n' "$name" "$ok" "$not_ok" "$skip" $((SECONDS - started))
    grep -iE '^(# skipped:|ok .*# skip)' "$log" | sed 's/^# skipped:/   /; s/^ok [0-9]* *-* */    /' | sort | uniq -c | head -5
    if [ "$not_ok" -gt 0 ]; then
        grep -vE '^(ok |1\.\.)' "$log" | head -60 | sed 's/^/    /'
        echo "    again: $*"
        { echo "$name:"; grep -E '^(not ok|#|\[ *(ERROR|FAILED))' "$log" | grep -vi '# skip' | cut -c1-180 | head -12; } >> "$work/why"
    fi
    echo "$ok $not_ok $skip" > "$log.count"
}

# run_tap NAME TIME COMMAND...: run_once where the name is wanted, up to `jobs` of them at a time; what it says comes when it ends.
run_tap() {
    case $1 in *"$only"*) ;; *) return ;; esac
    local log=$work/${#names[@]}
    names+=("$1") limits+=("$2")
    shift 2
    commands+=("$(printf '%q ' "$@")")
    while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
    { run_once "${names[-1]}" "${limits[-1]}" "$@" > "$log.said" 2>&1; cat "$log.said"; } &
    [ "$jobs" -gt 1 ] || wait
}

# alone COMMAND...: with nothing beside it.
alone() {
    wait
    "$@"
    wait
}

# The totals; what failed runs again, by itself, while there are tries left.
count_all() {
    local i try log ok not_ok skip words
    wait
    for i in "${!names[@]}"; do
        log=$work/$i
        for ((try = 1; ; try++)); do
            read -r ok not_ok skip < "$log.count" || { ok=0 not_ok=1 skip=0; echo "${names[i]}: no result"; }
            if [ "$not_ok" -eq 0 ] || [ "$try" -ge "${MB_TRIES:-1}" ]; then break; fi
            eval "words=(${commands[i]})"
            run_once "${names[i]}" "${limits[i]}" "${words[@]}"
        done
        passed=$((passed + ok)) failed=$((failed + not_ok)) skipped=$((skipped + skip))
        if [ "$not_ok" -gt 0 ]; then failures+=("${names[i]}"); elif [ "$try" -gt 1 ]; then unsteady+=("${names[i]}"); fi
    done
}

for suite in $suites; do
    case $suite in
    lint) [ -x tests/lint/run.sh ] && run_tap lint 600 tests/lint/run.sh "$build" ;;
    unit)
        for test in "$build"/tests/*/test_*; do
            case $test in */mpi/* | *.d | *.o) continue ;; esac
            [ -x "$test" ] && run_tap "${test#"$build"/tests/}" 300 "$test"
        done ;;
    mpi) command -v mpirun > /dev/null && alone run_tap mpi 600 tests/mpi/run.sh "$build" ;;
    stage)
        for file in tests/stage/*.bats; do
            [ -f "$file" ] && run_tap "stage/$(basename "$file" .bats)" 900 bats --tap "$file"
        done ;;
    slurm) # needs a cluster of its own; where none can be started, says why
        if why=$(slurm/testbed/install --accounting 2>&1) && why=$(slurm/testbed/up --name mbprobe 2>&1); then
            slurm/testbed/down --name mbprobe > /dev/null
            for file in tests/slurm/*.bats; do alone run_tap "slurm/$(basename "$file" .bats)" 900 bats --tap "$file"; done
        else
            run_tap slurm 10 printf '1..1\nok 1 - a cluster on this machine # SKIP %s\n' "$(tail -1 <<< "$why")"
        fi ;;
    analysis) [ -f tests/analysis/run.py ] && run_tap analysis 300 "$MB_PYTHON" tests/analysis/run.py ;;
    esac
done
count_all

# A test that vanishes is a failure.
total=$((passed + failed + skipped)) expected=''
case $suites in
'lint unit mpi stage analysis') ! command -v mpirun > /dev/null || expected=tests/expected ;;
slurm) [ "$passed" -eq 0 ] || expected=tests/expected-slurm ;;
esac
if [ -z "$only" ] && [ -f "$expected" ] && [ "$total" -ne "$(cat "$expected")" ]; then
    failed=$((failed + 1))
    failures+=("number of tests")
    echo "$total tests ran, $expected says $(cat "$expected"): a test was lost, or the number must be raised"
fi
[ -z "${MB_WHY:-}" ] || cat "$work/why" >> "$MB_WHY"
[ ${#unsteady[@]} -eq 0 ] || printf 'unsteady, passed at the second try: %s\n' "${unsteady[*]}"
[ ${#failures[@]} -eq 0 ] || printf 'failed: %s\n' "${failures[*]}"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$total" -gt 0 ]
