# What happens to a job between its start and its end, on a real Slurm: preemption, time limits, cancelling, killed ranks, copies of inputs.

setup_file() {
    load common.bash
    testbed_up job
    make_inputs
    # A site like the testbed's that copies even tiny models, and one that may not requeue.
    { cat slurm/site/testbed.sh; echo 'mb_site_stage_min_mib=0'; } > "$work/copies.sh"
    { cat slurm/site/testbed.sh; echo "mb_site_requeue=resubmit mb_site_scratch=''"; } > "$work/resubmit.sh"
    train_words short 20
    "$bin/moe-train" "${words[@]}" > "$work/short.log" 2>&1
}
setup() {
    load common.bash
    testbed_use
}
teardown() { [ -z "${testbed:-}" ] || scancel --user=root 2> /dev/null || true; }
teardown_file() {
    load common.bash
    testbed_down
}

# train_words NAME EPOCHS: sets words, the arguments of a training of 10 steps an epoch.
train_words() {
    words=(model.path="$work/init/model" dataset.path="$work/shard/shard.h5" training.objective=lm training.epochs="$2" training.batch_size=4 training.save=delta
        training.gradient_accumulation_steps=8 training.learning_rate=3e-3 training.logging_steps=1 training.save_steps=5 output.dir="$work/$1")
}
four=(--nodes=2 --ntasks-per-node=2)
other_site() { export MB_SITE=../../build/slurm-tests/$testbed/$1; } # a file of this test

# ranks_of NAME: sets ranks, the processes that train there.
ranks_of() {
    local pid
    ranks=()
    for pid in $(pgrep -f "output.dir=$work/$1( |\$)"); do [ "$(cat "/proc/$pid/comm")" != moe-train ] || ranks+=("$pid"); done
}
trains() { has_lines "$work/$1/metrics.jsonl" "${2:-4}"; }
attempt() { awk -F '\t' -v event="$2" '$6 == event' "$work/$1/attempts.tsv" | cut -f 7- | sed -n "${3}p"; }
same_result() { [ "$(hash_of "$work/$1/final")" = "$(hash_of "$work/$2/final")" ]; }
log_has() { log_of "$1" | grep -q -- "$2"; }

@test "a template by itself: from the project, from elsewhere with MB_ROOT, and a wrong folder is named" {
    a=$(env -u MB_ROOT sbatch --parsable --output="$work/a.log" slurm/command.sbatch hostname)
    cd "$work"
    b=$(sbatch --parsable --output="$work/b.log" "$MB_ROOT/slurm/command.sbatch" hostname)
    c=$(env -u MB_ROOT sbatch --parsable --output="$work/c.log" "$MB_ROOT/slurm/convert.sbatch" plain)
    for job in "$a" "$b" "$c"; do wait_for_end "$job"; done
    cat a.log b.log c.log
    [ "$(state_of "$a") $(state_of "$b") $(state_of "$c")" = "COMPLETED COMPLETED FAILED" ]
    grep -q '^n1$' a.log
    grep -q 'ends with code 0: done' b.log
    grep -q "convert.sbatch: $work is not moebatch's folder" c.log
}

@test "preempted: it goes back into the queue, goes on, its dependent waits, and the weights are those of the uninterrupted run" {
    train_words preempted 20
    job=$(submit "${four[@]}" slurm/train.sbatch "${words[@]}")
    after=$(submit --dependency="afterok:$job" --kill-on-invalid-dep=yes --wrap 'true')
    wait_until 60 trains preempted
    urgent=$(submit --partition=urgent --nodes=2 --exclusive --wrap 'true')
    start_again "$job"
    [ "$(state_of "$after")" = PENDING ]
    wait_for_state "$job" COMPLETED
    wait_for_state "$after" COMPLETED
    log_of "$job"
    [ "$(attempt preempted end 1)" = $'75\trequeued: preempted' ]
    [ "$(attempt preempted end 2)" = $'0\tdone' ]
    [ "$(fact_of "$job" Restarts)" = 1 ]
    same_result preempted short
}

@test "stopped at its limit again and again: started again each time, then done; with MB_MAX_REQUEUES it gives up and says so" {
    train_words brief 1
    "$bin/moe-train" "${words[@]}" training.max_steps=5 > "$work/brief.log" 2>&1
    train_words often 1
    # No time at all: every attempt gets one step on.
    job=$(submit "${four[@]}" slurm/train.sbatch "${words[@]}" training.max_steps=5 training.time_limit_minutes=0.0001)
    for _ in {1..8}; do
        wait_for_state "$job" "PENDING COMPLETED"
        [ "$(state_of "$job")" = PENDING ] || break
        scontrol update "JobId=$job" StartTime=now
        wait_for_state "$job" "RUNNING COMPLETED"
        wait_for_state "$job" "PENDING COMPLETED" 120
    done
    cat "$work/often/attempts.tsv"
    [ "$(state_of "$job")" = COMPLETED ]
    [ "$(grep -c 'requeued: stopped at a checkpoint' "$work/often/attempts.tsv")" -ge 3 ]
    same_result often brief

    train_words bounded 20
    export MB_MAX_REQUEUES=1
    job=$(submit "${four[@]}" slurm/train.sbatch "${words[@]}" training.time_limit_minutes=0.0001)
    start_again "$job"
    wait_for_end "$job"
    log_of "$job" | tail -5
    [ "$(state_of "$job")" = FAILED ]
    grep -q '"status": "gave up"' "$work/bounded/failure.json"
}

@test "cancelled by its user: a checkpoint, and it never comes back; nor with STOP in the run folder" {
    train_words cancelled 200
    job=$(submit "${four[@]}" slurm/train.sbatch "${words[@]}")
    wait_until 60 trains cancelled
    scancel "$job"
    wait_for_end "$job"
    train_words stopped 200
    export MB_RUN=$work/run MB_MAX_REQUEUES=20
    mkdir -p "$MB_RUN"
    touch "$MB_RUN/STOP"
    other=$(submit "${four[@]}" slurm/train.sbatch "${words[@]}")
    wait_until 60 trains stopped
    scancel --signal=USR2 "$other" # what Slurm sends near the limit
    wait_for_end "$other"
    sleep 9 # longer than a requeued job would wait here
    [ "$(state_of "$job") $(fact_of "$job" Restarts)" = "CANCELLED 0" ]
    [ "$(state_of "$other") $(fact_of "$other" Restarts)" = "FAILED 0" ]
    [ "$(attempt cancelled end 1)" = $'75\tcancelled' ]
    [ "$(attempt stopped end 1)" = $'75\tstopped: '"$work/run/STOP is there" ]
    [ -d "$work/cancelled/state" ]
}

@test "one rank killed: the step ends within seconds, with the rank, the node and the signal as the cause" {
    train_words killed 200
    job=$(submit "${four[@]}" slurm/train.sbatch "${words[@]}")
    wait_until 60 trains killed
    ranks_of killed
    [ "${#ranks[@]}" -eq 4 ]
    kill -KILL "${ranks[2]}"
    wait_for_state "$job" FAILED 30
    log_of "$job" | tail -5
    cat "$work/killed/failure.json"
    grep -q '"status": "killed".*rank [0-3] on n[12]: Killed by signal 9' "$work/killed/failure.json"
    [[ "$(attempt killed end 1)" == $'137\tfailed: rank '* ]]
    # The next submission starts from the checkpoint that is there, and takes the failure away.
    sed -i 's/"host": "[^"]*"/"host": "elsewhere"/' "$work/killed/lease"
    job2=$(submit "${four[@]}" slurm/train.sbatch "${words[@]}")
    wait_until 60 log_has "$job2" "lease: job $job that held it is gone; removed"
    wait_until 60 grep -q "\"job\": \"$job2\"" "$work/killed/lease"
    [ ! -e "$work/killed/failure.json" ]
    # A lease of a job that runs is left alone.
    job3=$(submit --nodes=1 --ntasks=1 slurm/train.sbatch "${words[@]}")
    wait_for_end "$job3"
    log_of "$job3"
    log_has "$job3" "lease: job $job2 holds it and still runs"
    [ "$(state_of "$job3")" = FAILED ]
    [[ "$(attempt killed end 2)" == *"held by process"*"Slurm job $job2"* ]]
    [ -e "$work/killed/lease" ]
    [ ! -e "$work/killed/failure.json" ] # that would be said of the job that works there
}

@test "a node loses power: the job comes back on its own, and the weights are those of the uninterrupted run" {
    train_words powerless 20
    job=$(submit "${four[@]}" slurm/train.sbatch "${words[@]}")
    wait_until 60 trains powerless 12
    ranks_of powerless
    kill -STOP "${ranks[@]}" # so that they are not done before
    slurm/testbed/kill-node --name "$testbed" n2
    wait_for_state "$job" PENDING 90
    slurm/testbed/heal-node --name "$testbed" n2
    start_again "$job"
    wait_for_state "$job" "COMPLETED FAILED"
    log_of "$job" | tail -30
    [ "$(state_of "$job")" = COMPLETED ]
    [ "$(attempt powerless end 1)" = $'75\trequeued: node failure' ]
    same_result powerless short
}

# Has USR2 been sent to a process that was stopped? (Slurm may have let it go on, too.)
has_usr2() {
    local pending
    pending=$(sed -n 's/^ShdPnd:[^0-9a-f]*//p' "/proc/$1/status" 2> /dev/null) || return 0
    [ $((0x${pending:-800} & 0x800)) -ne 0 ]
}

@test "a site without requeue: near the time limit it submits itself again, and its dependent waits for the new job" {
    other_site resubmit
    export MB_RUN=$work/again-run
    mkdir -p "$MB_RUN"
    train_words again 20
    # Slurm sends the signal within half a minute of the start: 110 s before the end, or up to a minute earlier.
    command=(sbatch --parsable --output="$work/logs/%j.log" --job-name=again --time=2 --signal=USR2@110 "${four[@]}" slurm/train.sbatch "${words[@]}")
    first=$(submit --begin=now+100 --wrap true)
    job=$("${command[@]}")
    printf 'time\tstage\t%s\t-\t-\tlog\t%s\n' "$job" "$(printf '%q ' "${command[@]}")" > "$MB_RUN/jobs.tsv"
    after=$(submit --dependency="afterok:$job:$first" --kill-on-invalid-dep=yes --wrap 'true')
    wait_until 60 trains again
    ranks_of again
    [ "${#ranks[@]}" -eq 4 ]
    kill -STOP "${ranks[@]}" # so that it is not done before
    wait_until 70 has_usr2 "${ranks[3]}"
    sleep 1
    kill -CONT "${ranks[@]}" 2> /dev/null || true
    wait_for_state "$job" FAILED
    new=$(tail -1 "$MB_RUN/jobs.tsv" | cut -f 3)
    log_of "$job" | tail -4
    [ "$new" -gt "$after" ]
    [[ "$(fact_of "$after" Dependency)" == *"afterok:$new("*"afterok:$first("* ]]
    # Stopped at once by an early signal it would only submit itself once more; we have seen that it can.
    wait_for_state "$new" "RUNNING COMPLETED"
    scontrol update "JobId=$new" TimeLimit=20 || true
    is_finished() { new=$(tail -1 "$MB_RUN/jobs.tsv" | cut -f 3); is_in_state "$new" COMPLETED; }
    wait_until 90 is_finished
    cat "$work/again/attempts.tsv"
    [[ "$(attempt again end 1)" == $'75\tresubmitted as '* ]]
    scontrol update "JobId=$first" StartTime=now
    wait_for_state "$after" COMPLETED
    same_result again short
}

@test "an element of an array that submits itself again: what waits for the array waits for it and for the other elements" {
    other_site resubmit
    cat > "$work/element.sh" <<'SCRIPT'
#!/usr/bin/env bash
if [ "$SLURM_ARRAY_TASK_ID" = 1 ] && [ ! -e "$1/second" ]; then touch "$1/second"; exit 75; fi
sleep 3
touch "$1/element.$SLURM_ARRAY_TASK_ID"
SCRIPT
    chmod +x "$work/element.sh"
    array=$(sbatch --parsable --output="$work/logs/%A_%a.log" --array=0-2 --ntasks=1 slurm/command.sbatch "$work/element.sh" "$work")
    join=$(submit --dependency="afterok:$array" --kill-on-invalid-dep=yes --wrap "ls $work/element.[0-9]")
    wait_for_state "$join" COMPLETED
    cat "$work/logs/${array}_1.log"
    [ "$(log_of "$join" | wc -l)" -eq 3 ]
    grep -q "job $join now waits for afterok:[0-9]*:${array}_" "$work/logs/${array}_1.log"
    [ "$(find "$work/logs" -name '*_1.log' | wc -l)" -eq 2 ]
}

@test "inputs are copied to each node once, whoever asks, and the ranks read the copies" {
    other_site copies
    cp -a "$work/init/model" "$work/model"
    for name in one two; do
        train_words "copies-$name" 20
        words[0]=model.path=$work/model
        submit "${four[@]}" slurm/train.sbatch "${words[@]}" training.max_steps=10 > "$work/$name.id"
    done
    one=$(cat "$work/one.id") two=$(cat "$work/two.id")
    wait_for_end "$one"
    wait_for_end "$two"
    log_of "$one"
    log_of "$two"
    [ "$(state_of "$one") $(state_of "$two")" = "COMPLETED COMPLETED" ]
    for node in n1 n2; do
        [ "$({ log_of "$one"; log_of "$two"; } | grep -c "stage_in $node: $work/model: .* MiB copied")" -eq 1 ]
        [ "$({ log_of "$one"; log_of "$two"; } | grep -c "stage_in $node: $work/model: a copy is there")" -eq 1 ]
    done
    # The original's bytes are spoiled under the same size and time: only who reads the copies has the same result.
    touch -r "$work/model/model.safetensors" "$work/time"
    printf 'spoiled' | dd of="$work/model/model.safetensors" bs=1 seek=5000 conv=notrunc status=none
    touch -r "$work/time" "$work/model/model.safetensors"
    train_words copies-three 20
    words[0]=model.path=$work/model
    three=$(submit "${four[@]}" slurm/train.sbatch "${words[@]}" training.max_steps=10)
    wait_for_state "$three" COMPLETED
    same_result copies-three copies-one
    # With another time the copy counts as old, and the spoiled original is what there is.
    touch "$work/model/model.safetensors"
    train_words copies-four 20
    words[0]=model.path=$work/model
    four_id=$(submit "${four[@]}" slurm/train.sbatch "${words[@]}" training.max_steps=10)
    wait_for_end "$four_id"
    log_of "$four_id"
    [ "$(log_of "$four_id" | grep -c "stage_in n[12]: $work/model: .* MiB copied")" -eq 2 ]
    ! same_result copies-four copies-one
}

@test "the first cause is found in what the launcher writes" {
    cat > "$work/cause.sh" <<'SCRIPT'
. slurm/lib.sh
mb_log_start=0
while IFS='=' read -r wanted text; do
    mb_log=$1
    printf '%b' "$text" > "$mb_log"
    mb_find_cause
    [ "$mb_cause_rank/$mb_cause_host/$mb_cause_signal" = "$wanted" ] || { echo "$text: $mb_cause_rank/$mb_cause_host/$mb_cause_signal, not $wanted"; exit 1; }
done <<'TABLE'
3/n2/9=srun: error: n2: task 3: Killed\nsrun: First task exited 8s ago\nsrun: error: n1: tasks 0-2: Killed\n
3/n2/9=srun: error: n1: task 0: Exited with exit code 1\nsrun: error: n2: task 3: Killed\nsrun: Job step aborted: Waiting up to 12 seconds\n
0/n1/11=srun: error: n1: task 0: Segmentation fault (core dumped)\nsrun: Job step aborted: Waiting\nsrun: error: n2: tasks 2-3: Killed\n
3/n2/=srun: Job step aborted: Waiting up to 12 seconds\nsrun: error: n1: task 0: Killed\nsrun: error: n2: task 3: Exited with exit code 3\n
1/gpu-07/?=srun: error: gpu-07: task 1: Out Of Memory\n
1/n2/9=mpirun noticed that process rank 1 with PID 0 on node n2 exited on signal 9 (Killed).\n
//=nothing of that kind\n
TABLE
SCRIPT
    bash "$work/cause.sh" "$work/cause.log"
}

@test "only what failed before the program said a word is started once more" {
    cat > "$work/start.sh" <<'SCRIPT'
. slurm/lib.sh
mb_log_start=0 mb_log=$1
while IFS='=' read -r code wanted text; do
    printf '%b' "$text" > "$mb_log"
    again=no
    ! mb_failed_at_start "$code" || again=yes
    [ "$again" = "$wanted" ] || { echo "$code: $text: $again, not $wanted"; exit 1; }
done <<'TABLE'
139=yes=[n1:00960] *** Process received signal ***\nsrun: error: n1: task 1: Segmentation fault\n
139=no=moe-train: 4 ranks\nsrun: error: n1: task 1: Segmentation fault\n
137=no=srun: error: n1: task 1: Killed\n
1=no=srun: error: n1: task 1: Exited with exit code 1\n
143=yes=srun: error: task 0 launch failed: Unspecified error\n
TABLE
SCRIPT
    bash "$work/start.sh" "$work/start.log"
}
