# Arrays of stages (mb_array): what is submitted, what waits for what, what is left out; and what status.sh and report.sh make of their jobs.

setup_file() {
    load common.bash
    mb_setup
    make_records > /dev/null
    make_array_study arrays-test
    rm -rf checkpoints/arrays-test
}
setup() {
    load common.bash
    mb_setup
    run_folder=checkpoints/arrays-test/run1
}
teardown_file() { rm -rf checkpoints/arrays-test; }

# job NAME: the sbatch command of this job.
job() { grep "job-name=arrays-test/[a-z0-9]*:$1 " <<< "$output"; }

@test "two arrays in a row: one by one; what waits for one of their elements waits for the array" {
    run "$work/arrays.sh" --slurm --dry-run "$work/arrays.cfg"
    echo "$output"
    [ "$status" -eq 0 ]
    [ "$(grep -c '^sbatch' <<< "$output")" -eq 4 ]
    job tok | grep -q -- '--array=0-2 .*slurm/element.sbatch .*/arrays/tok-[0-9]*.tsv'
    ! job tok | grep -q -- '--dependency' || false
    job shard | grep -q -- '--array=0-2 .*--dependency=aftercorr:\\<tok\\> '
    job whole | grep -q -- '--dependency=afterok:\\<tok\\>.,singleton'
    job say | grep -q -- '--dependency=afterok:\\<tok\\>:\\<shard\\>:\\<whole\\>.,singleton'
    [ ! -e "$run_folder" ]
}

@test "here the elements run one after the other; then only what is missing is submitted" {
    "$work/arrays.sh" --local "$work/arrays.cfg" > "$work/first.log" 2>&1
    grep -q '^all is there' "$work/first.log"
    [ -f "$run_folder/shard-2/shard.h5" ]
    run jobs/status.sh "$run_folder"
    [ "$status" -eq 0 ]
    rm -r "$run_folder/shard-1" "$run_folder/tok-2"
    run "$work/arrays.sh" --slurm --dry-run "$work/arrays.cfg"
    echo "$output"
    [ "$(grep -c '^sbatch' <<< "$output")" -eq 3 ] # not the shard of the whole
    job tok | grep -q -- '--array=2 '
    job shard | grep -q -- '--array=1-2 .*--dependency=afterok:\\<tok\\> ' # element 1 has no partner
    rm -r "$run_folder/shard-2"
    "$work/arrays.sh" --local "$work/arrays.cfg" shard.dataset.max_length=90 > /dev/null 2>&1
    rm -r "$run_folder/tok-2"
    run "$work/arrays.sh" --slurm --dry-run "$work/arrays.cfg" shard.dataset.max_length=90
    echo "$output"
    job shard | grep -q -- '--array=2 .*--dependency=aftercorr:\\<tok\\> '
    [[ "$output" != *":whole "* ]]
}

@test "an array's elements are the stages named last, and wait for none of their own" {
    sed 's/^mb_array shard .*/mb_array shard shard-0 shard-2/' "$work/arrays.sh" > "$work/wrong.sh"
    run bash "$work/wrong.sh" --local --dry-run "$work/arrays.cfg"
    [ "$status" -eq 1 ]
    [[ "$output" == *"array shard: its elements are not the stages named last"* ]]
    sed 's/^mb_array tok .*//; s/^mb_array shard .*/mb_array both tok-0 tok-1 tok-2 shard-0 shard-1 shard-2/' "$work/arrays.sh" > "$work/wrong.sh"
    run bash "$work/wrong.sh" --local --dry-run "$work/arrays.cfg"
    [ "$status" -eq 1 ]
    [[ "$output" == *"array both: shard-0 waits for tok-0"* ]]
}

@test "status of elements: done, running, waiting for their partner, failed" {
    local run=$BATS_TEST_TMPDIR/checkpoints/study/run1 fake=$BATS_TEST_TMPDIR/fake
    mkdir -p "$run" "$fake"
    {
        printf 'stage\tprogram\tafter\ttasks\telement\n'
        for i in 0 1 2; do printf 'tok-%d\tmoe-shard\t-\t0\ttok:%d\n' "$i" "$i"; done
        for i in 0 1 2; do printf 'shard-%d\tmoe-shard\ttok-%d\t0\tshard:%d\n' "$i" "$i" "$i"; done
    } > "$run/study.tsv"
    mkdir -p "$run"/{tok,shard}-{0,1,2}
    {
        printf 'time\tstage\tjob\ttasks\tafter\tlog\tcommand\n'
        printf '2026-01-01T00:00:00Z\ttok\t21\t0,1,2\t-\t%s\tsbatch --job-name=study/run1:tok x\n' "$run/logs/tok-%A_%a.log"
        printf '2026-01-01T00:00:00Z\tshard\t22\t0,1,2\t21\t%s\tsbatch --job-name=study/run1:shard x\n' "$run/logs/shard-%A_%a.log"
    } > "$run/jobs.tsv"
    printf '{\n "results": {}\n}\n' > "$run/tok-0/done.json"
    printf '{"code": 3, "status": "data", "message": "b.jsonl: line 7 is no object", "rank": 0, "host": "n2", "job": "21_2", "time": "2026-01-01T00:01:00Z"}\n' > "$run/tok-2/failure.json"
    printf '2026-01-01T00:00:30Z\t21_2\t0\tn1\t1\tstart\t-\t-\n2026-01-01T00:01:00Z\t21_2\t0\tn1\t1\tend\t3\tfailed\n' > "$run/tok-2/attempts.tsv"
    {
        printf '21_1\t213\tRUNNING\tNone\tN/A\tn1\t(null)\t%s\tstudy/run1:tok\n' "$(id -un)"
        printf '22_0\t221\tRUNNING\tNone\tN/A\tn2\t(null)\t%s\tstudy/run1:shard\n' "$(id -un)"
        printf '22_1\t222\tPENDING\tDependency\tN/A\t\taftercorr:21_*(unfulfilled)\t%s\tstudy/run1:shard\n' "$(id -un)"
    } > "$fake/queue"
    printf '#!/bin/bash\ncat %q/queue\n' "$fake" > "$fake/squeue"
    printf '#!/bin/bash\nexit 1\n' > "$fake/sacct"
    chmod +x "$fake"/s*
    PATH=$fake:$PATH run jobs/status.sh "$run"
    echo "$output"
    [ "$status" -eq 1 ]
    grep -qE '^tok-0 +done' <<< "$output"
    grep -qE '^tok-1 +running +21_1 +n1' <<< "$output"
    grep -qE '^tok-2 +failed' <<< "$output"
    [[ "$output" == *"b.jsonl: line 7 is no object"* ]]
    grep -qE '^shard-0 +running +22_0 +n2' <<< "$output"
    grep -qE '^shard-1 +waiting for tok +22_1' <<< "$output"
    PATH=$fake:$PATH run jobs/report.sh "$run"
    echo "$output"
    grep -qE '^tok-2 ' <<< "$output"
}
