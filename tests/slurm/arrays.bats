# Arrays of stages on two nodes: elements wait for their partners one by one, one that fails takes only its own followers with it, and only what
# is missing is submitted again.

setup_file() {
    load common.bash
    testbed_up arrays
    make_records > /dev/null
    make_array_study tiny-arrays
    rm -rf checkpoints/tiny-arrays
    "$work/arrays.sh" --local --run here "$work/arrays.cfg" > "$work/here.log" 2>&1 || { cat "$work/here.log"; return 1; }
}
setup() {
    load common.bash
    testbed_use
}
teardown_file() {
    load common.bash
    [ -n "${MB_KEEP:-}" ] || rm -rf checkpoints/tiny-arrays
    testbed_down
}

study() { "$work/arrays.sh" --slurm --run "$1" "$work/arrays.cfg" "${@:2}"; }
is_quiet() { [ -z "$(squeue -h)" ]; }
same_results() {
    local i
    for i in 0 1 2; do [ "$(hash_of "checkpoints/tiny-arrays/here/shard-$i/shard.h5")" = "$(hash_of "checkpoints/tiny-arrays/$1/shard-$i/shard.h5")" ]; done
}

@test "two arrays in a row over two nodes: the results of one process; submitted again, nothing is left to do" {
    study two slurm.ntasks=2
    wait_until 120 is_quiet
    run jobs/status.sh tiny-arrays/two
    echo "$output"
    [ "$status" -eq 0 ]
    same_results two
    grep -q $'\t[0-9]*_2\t' checkpoints/tiny-arrays/two/shard-2/attempts.tsv
    grep -q '^all is there' checkpoints/tiny-arrays/two/logs/say-*.log
    run study two slurm.ntasks=2
    [ "$(grep -c ' done$' <<< "$output")" -eq 8 ]
    [[ "$output" != *" job "* ]]
}

@test "an element fails: its own followers are cancelled, the others end; mended, only the missing elements are submitted" {
    mkdir -p checkpoints/tiny-arrays/mended
    : > checkpoints/tiny-arrays/mended/tok-1 # where its folder should be
    study mended
    wait_until 120 is_quiet
    run jobs/status.sh tiny-arrays/mended
    echo "$output"
    [ "$status" -eq 1 ]
    grep -qE '^tok-1 +failed' <<< "$output"
    grep -qE '^shard-0 +done' <<< "$output"
    grep -qE '^shard-2 +done' <<< "$output"
    [ ! -e checkpoints/tiny-arrays/mended/shard-1/done.json ]
    [ ! -e checkpoints/tiny-arrays/mended/say/attempts.tsv ]
    rm checkpoints/tiny-arrays/mended/tok-1
    run study mended
    echo "$output"
    grep -qE '^tok +job +[0-9]+ +elements 1 *$' <<< "$output"
    grep -qE '^shard +job +[0-9]+ +elements 1 after' <<< "$output"
    grep -q 'aftercorr' checkpoints/tiny-arrays/mended/jobs.tsv
    wait_until 120 is_quiet
    jobs/status.sh --brief tiny-arrays/mended
    same_results mended
}
