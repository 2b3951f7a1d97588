# status.sh, report.sh and cancel.sh on jobs of a real Slurm (the testbed): waiting by dependency, running, failed, never started, requeued, a
# lost node, array elements, cancelled; cost from accounting and from the run's own files. The jobs run commands by slurm/command.sbatch, so
# what lib.sh writes is real too.

setup_file() {
    load common.bash
    testbed_up state
}
setup() {
    load common.bash
    testbed_use
    run=$work/checkpoints/study/$BATS_TEST_NUMBER
    name=study/$BATS_TEST_NUMBER
    mkdir -p "$run/logs"
    printf 'stage\tprogram\tafter\ttasks\n' > "$run/study.tsv"
}
teardown() {
    [ ! -f "$run/jobs.tsv" ] || cut -f 3 "$run/jobs.tsv" | grep -E '^[0-9]+$' | xargs -r scancel 2> /dev/null || true
}
teardown_file() {
    load common.bash
    testbed_down
}

# stage NAME AFTER-STAGE|- TASKS FLAGS... -- COMMAND...: submit as jobs/lib-slurm.sh does and write it down; job_of[NAME].
declare -gA job_of # bats reads this file inside a function
stage() {
    local stage=$1 after=$2 tasks=$3 flags=() command id share=''
    shift 3
    while [ "$1" != -- ]; do flags+=("$1"); shift; done
    shift
    if [ "$tasks" != - ]; then share=,MB_SHARES=3 flags+=("--array=$tasks"); fi
    [ "$after" = - ] || flags+=("--dependency=afterok:${job_of[$after]}")
    mkdir -p "$run/$stage"
    printf '%s\tmoe-train\t%s\t%s\n' "$stage" "$after" "$([ "$tasks" = - ] && echo 0 || echo 3)" >> "$run/study.tsv"
    command=(sbatch --parsable "--job-name=$name:$stage" --kill-on-invalid-dep=yes "--output=$run/logs/$stage-%j.log" --ntasks=1 "--export=ALL,MB_RUN=$run,MB_STAGE=$run/$stage$share"
        "${flags[@]}" slurm/command.sbatch "$@")
    id=$("${command[@]}")
    job_of[$stage]=$id
    printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$stage" "$id" "$tasks" "$([ "$after" = - ] && echo - || echo "${job_of[$after]}")" "$run/logs/$stage-%j.log" \
        "$(printf '%q ' "${command[@]}")" >> "$run/jobs.tsv"
}
# A step that stops at a checkpoint when told to.
patient=(srun --mpi=none bash -c 'trap "exit 75" USR2 TERM; sleep 300 & wait')

screen() { jobs/status.sh "$run" > "$work/screen" || true; }
shows() { screen; grep -q -E -- "$1" "$work/screen"; }
# expect PATTERN: the last screen has it.
expect() { grep -q -E -- "$1" "$work/screen" || { echo "no '$1' in:"; cat "$work/screen"; return 1; }; }

@test "waiting, running, failed, never started, requeued, waiting for nodes" {
    stage long - - -- sleep 300
    stage wait long - -- true
    stage bad - - -- bash -c 'exit 3'
    stage late bad - -- true
    stage again - - -- bash -c 'exit 75'
    stage fine - - -- bash -c "printf '{\n}\n' > '$run/fine/done.json'"
    stage big - - --nodes=2 --ntasks=2 --exclusive -- true # after those that are to start at once
    stage later - - --time=1 --begin=now+1hour -- true
    wait_until 60 shows "^late +never started" || true
    wait_until 40 shows "^again +requeued, begins [0-9:]+ +${job_of[again]}" || true
    expect "^long +running +${job_of[long]} +n[12]"
    expect "^wait +waiting for long +${job_of[wait]}"
    expect "^bad +failed +${job_of[bad]}"
    expect 'cause: rank 0 on n[12]: ended with code 3.* \(code 3\)'
    expect '^late +never started'
    expect 'never started: bad did not end well'
    expect "requeued \(stopped at a checkpoint\); begins at .*scontrol update JobId=${job_of[again]} StartTime=now"
    expect '^big +queued'
    expect 'waits for free nodes \(Resources\)|jobs of higher priority'
    expect '^fine +done'
    expect '^later +queued, begins '
    run jobs/status.sh --brief "$run"
    [ "$status" -eq 1 ]
}

@test "array elements; a restart begins at once when told so" {
    stage part - 0-2 -- bash -c 'case $SLURM_ARRAY_TASK_ID in 0) printf "{\n}\n" > "$MB_STAGE/done-0of3.json" ;; 1) exit 3 ;; 2) sleep 300 ;; esac'
    stage again - - -- bash -c '[ "${SLURM_RESTART_COUNT:-0}" -eq 1 ] || exit 75; sleep 300'
    wait_until 60 shows 'done 1/3, running 1, failed 1 \(1\)' || true
    expect "^part +running +${job_of[part]} +n[12] +done 1/3, running 1, failed 1 \(1\)"
    expect 'cause: element 1: rank 0 on n[12]: ended with code 3'
    wait_until 40 shows '^again +requeued'
    sleep 1
    scontrol update "JobId=${job_of[again]}" StartTime=now
    wait_until 60 shows '^again +running .*1 restart' || true
    expect "^again +running +${job_of[again]} +n[12] +1 restart"
}

# What the attempt on the lost node took is counted as lost; the other job lost nothing.
costs_are_right() {
    awk -F '\t' '$1 == "lost" && $2 >= 0 && $3 > 5 && $15 >= 1 && $16 > 3 && $17 == "sacct" {n++} $1 == "seen" && $3 >= 3 && $3 < 20 && $15 == 0 && $16 == "-" {n++} END {exit n != 2}' "$1"
}

@test "a lost node: requeued, then running elsewhere; what it cost" {
    stage lost - - -- sleep 300
    wait_until 60 shows '^lost +running +[0-9]+ +n[12]'
    node=$(squeue -h -j "${job_of[lost]}" -o %N)
    stage seen - - "--exclude=$node" -- bash -c "sleep 3; printf '{\n}\n' > '$run/seen/done.json'"
    slurm/testbed/kill-node --name "$testbed" "$node"
    # Some releases start it elsewhere at once, others let it wait first.
    wait_until 60 shows '^lost +(requeued|queued|running .*1 restart)' || true
    ! grep -q '^lost +requeued' "$work/screen" || expect 'requeued \((its last attempt ended without a word|.*node)'
    slurm/testbed/heal-node --name "$testbed" "$node"
    scontrol update "JobId=${job_of[lost]}" StartTime=now 2> /dev/null || true
    wait_until 30 shows '^lost +running .*1 restart' || true
    expect "^lost +running +${job_of[lost]} +n[12] +1 restart"
    scancel "${job_of[lost]}"
    wait_until 60 shows '^lost +cancelled' || true
    expect '^lost +cancelled'
    # Accounting learns of the second attempt's end a while later.
    for _ in {1..20}; do
        jobs/report.sh --tsv "$run" > "$work/cost"
        ! costs_are_right "$work/cost" || break
        sleep 1
    done
    cat "$work/cost"
    costs_are_right "$work/cost"
    # The same from the run's own files.
    mkdir -p "$work/no-accounting"
    printf '#!/bin/sh\nexit 1\n' > "$work/no-accounting/sacct"
    chmod +x "$work/no-accounting/sacct"
    PATH=$work/no-accounting:$PATH jobs/report.sh --tsv "$run" | tee "$work/cost.own"
    awk -F '\t' 'NR == FNR {run[$1] = $3; next} $1 == "seen" {d = $3 - run[$1]; exit d > 2 || d < -2 || $17 != "attempts"}' "$work/cost" "$work/cost.own"
}

@test "cancel: gently, then for good; nothing comes back, nothing else is touched" {
    stage soft - - -- "${patient[@]}"
    stage next soft - -- true
    stranger=$(sbatch --parsable --job-name=other --output=/dev/null --wrap 'sleep 300')
    wait_until 60 shows '^soft +running'
    sleep 2 # the step has its trap
    run jobs/cancel.sh --gently "$run"
    echo "$output"
    [ "$status" -eq 0 ]
    wait_until 60 shows '^soft +cancelled' || true
    expect '^soft +cancelled'
    expect '^next +(cancelled|never started)'
    expect 'STOP is there'
    grep -q "end.75.stopped" "$run/soft/attempts.tsv" # at a checkpoint, and not requeued
    [ -z "$(squeue -h -t PENDING,RUNNING -j "${job_of[soft]}" -o %i 2> /dev/null)" ]
    rm "$run/STOP"
    stage hard - - -- "${patient[@]}"
    wait_until 60 shows '^hard +running'
    run jobs/cancel.sh "$run"
    echo "$output"
    [[ "$output" == *"hard: job ${job_of[hard]} (running on n"*") cancelled"* ]]
    wait_until 60 shows '^hard +cancelled' || true
    expect '^hard +cancelled'
    [ "$(squeue -h -j "$stranger" -o %T)" = RUNNING ]
    scancel "$stranger"
}
