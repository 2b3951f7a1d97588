# status.sh, report.sh and cancel.sh on run folders written by hand, with a squeue, sacct and scancel that say what a file says. Every state a
# stage, an element or a point of a sweep can be in is here; tests/slurm/state.bats meets the real ones.

setup() {
    cd "$BATS_TEST_DIRNAME/../.." || exit 1
    run=$BATS_TEST_TMPDIR/checkpoints/study/run1
    fake=$BATS_TEST_TMPDIR/fake
    mkdir -p "$run" "$fake"
    make_fakes
    PATH=$fake:$PATH
}

# squeue answers with $fake/queue, sacct with $fake/accounting (-X) or $fake/cost (-D); every call is noted.
make_fakes() {
    local name
    for name in squeue sacct scancel; do
        {
            printf '#!/bin/bash\nprintf "%%s %%s\\n" %s "$*" >> %q/calls\n' "$name" "$fake"
            case $name in
            squeue) printf '[ ! -f %q/down ] || { echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2; exit 1; }\ncat %q/queue\n' "$fake" "$fake" ;;
            sacct) printf 'case " $* " in *" -D "*) file=%q/cost ;; *) file=%q/accounting ;; esac\n[ -f "$file" ] || { echo "Slurm accounting storage is disabled" >&2; exit 1; }\ncat "$file"\n' "$fake" "$fake" ;;
            esac
        } > "$fake/$name"
        chmod +x "$fake/$name"
    done
    : > "$fake/queue"
    : > "$fake/calls"
}

# graph STAGE:PROGRAM:AFTER[:TASKS]...
graph() {
    local word part
    printf 'stage\tprogram\tafter\ttasks\n' > "$run/study.tsv"
    for word in "$@"; do
        IFS=: read -r -a part <<< "$word"
        mkdir -p "$run/${part[0]}"
        printf '%s\t%s\t%s\t%s\n' "${part[0]}" "${part[1]}" "${part[2]:--}" "${part[3]:-0}" >> "$run/study.tsv"
    done
}

# submitted STAGE JOB [TASKS [AFTER [SECONDS-AGO]]]
submitted() {
    printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$(ago "${5:-600}")" "$1" "$2" "${3:--}" "${4:--}" "$run/logs/${1//\//-}-$([ "${3:--}" = - ] && echo %j || echo %A_%a).log" \
        "sbatch --parsable --job-name=study/run1:$1 --cpus-per-task=2 slurm/x.sbatch conf/study/mine.cfg " >> "$run/jobs.tsv"
}
ago() { date -u -d "@$(($(date +%s) - $1))" +%Y-%m-%dT%H:%M:%SZ; }

# queued ID STATE REASON [BEGIN [NODES [DEPENDENCY [NAME]]]]: what squeue says.
queued() {
    local base=${1%%_*} name
    name=$(awk -F '\t' -v job="$base" '$3 == job {print $2}' "$run/jobs.tsv" | tail -1)
    printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$1" "${base}9" "$2" "$3" "${4:-N/A}" "${5:-}" "${6:-(null)}" "$(id -un)" "${7:-study/run1:$name}" >> "$fake/queue"
}

done_record() { printf '{\n "program": "moe-x",\n "results": {}\n}\n' > "$run/$1"; }
attempt() { # STAGE JOB RESTART EVENT CODE REASON [SECONDS-AGO]
    printf '%s\t%s\t%s\tn1\t4\t%s\t%s\t%s\n' "$(ago "${7:-500}")" "$2" "$3" "$4" "$5" "$6" >> "$run/$1/attempts.tsv"
}
failure() { # FILE CODE MESSAGE JOB [SECONDS-AGO]
    printf '{"code": %d, "status": "data", "message": "%s", "rank": 3, "host": "n2", "job": "%s", "time": "%s"}\n' "$2" "$3" "$4" "$(ago "${5:-100}")" > "$run/$1"
}
lease() { # FILE HOST PID [START [JOB]]
    printf '{"host": "%s", "pid": %d, "start": "%s", "boot": "%s", "job": "%s", "restart": ""}' "$2" "$3" "${4:-}" "$(cat /proc/sys/kernel/random/boot_id)" "${5:-}" > "$run/$1"
}
progress() { printf '{"done": %d, "total": 200, "unit": "step", "percent": %s, "seconds": 60, "seconds_left": %s, "text": "training: %d/200 (%.0f %%) step, 0.1 step/s, 12 min left", "time": "%s"}' "$2" "$3" "$4" "$2" "$3" "$(ago "${5:-1}")" > "$run/$1"; }

# status EXIT-CODE: run it; the screen is in $output.
status() {
    run jobs/status.sh "$run"
    echo "$output"
    [ "$status" -eq "$1" ]
}
# row STAGE PATTERN: the stage's line, or one below it, holds the pattern.
row() {
    awk -v stage="$1" '$1 == stage {on = 1; print; next} /^[^ ]/ {on = 0} on' <<< "$output" | grep -q -E -- "$2" || { echo "no '$2' in the rows of $1"; return 1; }
}

@test "all done" {
    graph shard:moe-shard train:moe-train:shard
    done_record shard/done.json
    done_record train/done.json
    status 0
    row train '^train +done'
    [[ "$output" == *"2 stages: 2 done"* ]]
    [[ "$output" == *"next: all done"* ]]
}

@test "running with progress, queued for resources and priority, waiting for stages" {
    graph shard:moe-shard train:moe-train:shard other:moe-train eval:moe-eval:train,other sel:moe-select
    done_record shard/done.json
    submitted shard 11 - - 9000
    submitted train 12
    submitted other 13
    submitted eval 14 - 12,13
    submitted sel 15
    touch -d '-8000 seconds' "$run/shard/done.json"
    queued 12 RUNNING None 2026-01-01T10:00:00 'n[1-2]'
    queued 13 PENDING Resources
    queued 14 PENDING Dependency N/A '' 'afterok:12(unfulfilled),afterok:13(unfulfilled),singleton(unfulfilled)'
    queued 15 PENDING Priority 2031-05-06T07:08:09
    attempt train 12 0 start - -
    progress train/progress.json 90 45.0 720
    status 75
    row shard '^shard +done +11'
    row train '^train +running +12 +n\[1-2\] +training: 90/200 \(45 %\) step, 0.1 step/s, 12 min left'
    row train "log: +$run/logs/train-12.log"
    row other '^other +queued +13'
    row other 'why: +waits for free nodes \(Resources\)'
    row eval '^eval +waiting for train, other, its own earlier job +14'
    row sel 'jobs of higher priority are before it \(Priority\); expected to start 2031-05-06 07:08:09'
    [[ "$output" == *"1 done, 1 running, 3 waiting"* ]]
}

@test "requeued: when it begins, why, and how to end the wait" {
    graph train:moe-train
    submitted train 12
    attempt train 12 0 start - -
    attempt train 12 0 end 75 'requeued: time limit near' 400
    queued 12 PENDING BeginTime "$(date +%Y-%m-%d)T13:22:01"
    progress train/progress.json 90 45.0 720
    status 75
    row train '^train +requeued, begins 13:22:01 +12'
    row train 'reached 90/200 \(45 %\) step'
    row train 'requeued \(time limit near\); begins at 13:22:01 \(scontrol update JobId=12 StartTime=now'
}

@test "a node that died: no end in attempts.tsv, the restart is counted" {
    graph train:moe-train
    submitted train 12
    attempt train 12 0 start - -
    attempt train 12 1 start - - 50
    queued 12 RUNNING None x n2
    status 75
    row train '^train +running .*n2 .*1 restart'
    printf '' > "$fake/queue"
    queued 12 PENDING BeginTime 2031-05-06T07:08:09
    status 75
    row train 'requeued, begins 2031-05-06 07:08:09'
    row train 'ended without a word, with its node or by preemption'
}

@test "an array: elements, progress over all, failures by element, the same cause once" {
    graph score:moe-score:-:8 next:moe-select:score
    submitted score 15 0-7%4
    submitted score/join 16 - 15
    submitted next 17 - 16
    for k in 0 1 2 4; do done_record "score/done-${k}of8.json"; done
    queued 15_5 RUNNING None x n1
    queued 15_6 RUNNING None x n2
    queued 15_7 PENDING JobArrayTaskLimit
    progress score/progress-5of8.json 100 50 100
    progress score/progress-6of8.json 60 30 300
    failure score/failure-3of8.json 3 'bad records in part 3' 15_3
    attempt score 15_3 0 start - -
    attempt score 15_3 0 end 3 failed
    queued 15_3 FAILED NonZeroExitCode
    queued 16 PENDING Dependency N/A '' 'afterok:15_*(unfulfilled),singleton(unfulfilled)'
    queued 17 PENDING Dependency N/A '' 'afterok:16(unfulfilled)'
    status 1
    row score '^score +running +15\+16 +n1,n2 +done 4/8, running 2, queued 1, failed 1 \(3\); 60 %, 5 min left'
    row score 'cause: element 3: rank 3 on n2: bad records in part 3 \(code 3\)'
    row score "log: +$run/logs/score-15_3.log"
    row next '^next +waiting for score +17'
    for k in 5 6 7; do failure "score/failure-${k}of8.json" 3 'bad records in part 3' "15_$k"; done
    grep -v -E '^15_[567]' "$fake/queue" > "$fake/q" && mv "$fake/q" "$fake/queue"
    for k in 5 6 7; do queued 15_$k FAILED NonZeroExitCode; done
    status 1
    row score '^score +failed .*done 4/8, failed 4 \(3, 5-7\)'
    row score 'cause: elements 3, 5-7: rank 3 on n2: bad records'
}

@test "an array: only missing elements submitted again, then the join" {
    graph score:moe-score:-:4
    submitted score 15 0-3 - 9000
    submitted score 25 1,3
    submitted score/join 26 - 25
    for k in 0 2; do done_record "score/done-${k}of4.json"; done
    failure score/failure-1of4.json 1 'an old failure' 15_1 8000
    queued 25_1 RUNNING None x n1
    queued 25_3 PENDING Resources
    status 75
    row score '^score +running +25\+26 .*done 2/4, running 1, queued 1'
    for k in 1 3; do done_record "score/done-${k}of4.json"; done
    printf '' > "$fake/queue"
    queued 26 RUNNING None x n1
    status 75
    row score '^score +joining +25\+26 +n1 +done 4/4'
    done_record score/done.json
    status 0
    row score '^score +done +25\+26 .*done 4/4'
}

@test "why a job cannot start, in plain words" {
    graph a:moe-train b:moe-train c:moe-train d:moe-train e:moe-train f:moe-train g:moe-train h:moe-train i:moe-train
    i=20
    for pair in a:QOSMaxJobsPerUserLimit "b:ReqNodeNotAvail, UnavailableNodes:n2" c:PartitionTimeLimit d:JobHeldUser e:AssocGrpCPUMinutesLimit f:JobArrayTaskLimit \
        g:QOSMaxWallDurationPerJobLimit h:BadConstraints i:SomethingNew; do
        i=$((i + 1))
        submitted "${pair%%:*}" "$i"
        queued "$i" PENDING "${pair#*:}"
    done
    status 1
    row a 'a limit of the account or QOS; it starts when other jobs have ended \(QOSMaxJobsPerUserLimit\)'
    row b 'nodes it needs are down, drained or reserved \(ReqNodeNotAvail, UnavailableNodes:n2\)'
    row c '^c +can never start'
    row c 'more time than the partition allows: lower slurm.time'
    row d '^d +held'
    row d 'scontrol release 24'
    row e 'hours are used up'
    row f 'throttle'
    row g '^g +can never start'
    row h '^h +can never start'
    row i 'Slurm says: SomethingNew'
}

@test "failed by its own word; what waited can never start or was ended; resume command" {
    graph train:moe-train eval:moe-eval:train late:moe-eval:eval
    submitted train 12
    submitted eval 13 - 12
    submitted late 14 - 13
    failure train/failure.json 3 'corpus.jsonl: line 7 is \"odd\" \u00fcber\\all' 12
    queued 12 FAILED NonZeroExitCode
    queued 13 PENDING DependencyNeverSatisfied N/A '' 'afterok:12(failed)'
    queued 14 CANCELLED Dependency N/A '' '(null)'
    printf '%q ' jobs/mine.sh --slurm --run run1 conf/study/mine.cfg x.y=1 > "$run/command"
    status 1
    row train '^train +failed +12'
    row train 'rank 3 on n2: corpus.jsonl: line 7 is "odd" über\\all \(code 3\)'
    row eval '^eval +can never start'
    row eval 'it waits for train, which did not end well \(DependencyNeverSatisfied\)'
    row late '^late +never started'
    [[ "$output" == *"next: mend the cause, then jobs/mine.sh --slurm --run run1 conf/study/mine.cfg x.y=1; what is done is left out"* ]]
    rm "$run/command"
    status 1
    [[ "$output" == *"--run run1 conf/study/mine.cfg"* ]]
}

@test "failed without a word: what Slurm says" {
    graph a:moe-train b:moe-train c:moe-train d:moe-train e:moe-train f:moe-train g:moe-train
    i=20
    for pair in a:NODE_FAIL b:TIMEOUT c:OUT_OF_MEMORY d:CANCELLED e:FAILED f:COMPLETED g:PREEMPTED; do
        i=$((i + 1))
        submitted "${pair%%:*}" "$i"
        queued "$i" "${pair#*:}" None
    done
    attempt e 25 0 start - -
    attempt e 25 0 end 1 'failed: killed by signal 11'
    status 1
    row a 'its node failed \(NODE_FAIL\)'
    row b 'time limit.*TIMEOUT'
    row c 'out of memory.*OUT_OF_MEMORY'
    row d '^d +cancelled'
    row e 'exit code 1: killed by signal 11'
    row f 'left no done.json'
    row g 'preempted and not requeued'
}

@test "jobs that squeue has forgotten: accounting is asked once, about these only" {
    graph a:moe-train b:moe-train c:moe-train:-:4 d:moe-train
    submitted a 21
    submitted b 22
    submitted c 23 0-3
    submitted d 24
    done_record d/done.json
    printf '21\tstudy/run1:a\tOUT_OF_MEMORY\t0:125\tn1\n22\tstudy/run1:b\tCANCELLED by 0\t0:0\tNone assigned\n23_0\tstudy/run1:c\tCOMPLETED\t0:0\tn1\n23_1\tstudy/run1:c\tFAILED\t4:0\tn2\n23_[2-3%%1]\tstudy/run1:c\tCANCELLED by 1000\t0:0\tNone assigned\n' > "$fake/accounting"
    status 1
    row a 'OUT_OF_MEMORY'
    row b 'CANCELLED by user 0'
    row c 'failed 2 \(0, 1\), cancelled 2'
    row c 'cause: element 1: exit code 4'
    row c 'cause: elements 2, 3: CANCELLED by user 1000'
    [ "$(grep -c '^squeue' "$fake/calls")" -eq 1 ]
    [ "$(grep -c '^sacct' "$fake/calls")" -eq 1 ]
    grep -q -- '-j 21,22,23 ' "$fake/calls"
    rm "$fake/accounting"
    status 1
    row a '^a +lost'
}

@test "stopped at a checkpoint, cancelled by cancel.sh, not submitted; a script is done by its code" {
    graph a:moe-train b:moe-train:a report:script:a,b
    submitted a 21
    submitted report 22
    attempt a 21 0 start - -
    attempt a 21 0 end 75 'was not ended'
    attempt report 22 0 start - -
    attempt report 22 0 end 0 'done'
    status 75
    row a '^a +stopped at a checkpoint'
    row b '^b +not submitted'
    row report '^report +done'
    [[ "$output" == *"next: to go on, "* ]]
    attempt a 21 0 end 75 "stopped: $run/STOP is there"
    touch "$run/STOP"
    status 75
    row a '^a +cancelled'
    row a 'cancelled by jobs/cancel.sh'
    [[ "$output" == *"STOP is there"* ]]
}

@test "a stage done before is submitted anew: its old record does not count" {
    graph a:moe-train
    done_record a/done.json
    touch -d '-5000 seconds' "$run/a/done.json"
    submitted a 21 - - 600
    queued 21 PENDING Resources
    status 75
    row a '^a +queued'
    printf '' > "$fake/queue"
    status 0 # gone from the queue and forgotten: the record is what is known
    row a '^a +done'
}

@test "a job number that now belongs to another job is not ours" {
    graph a:moe-train
    submitted a 21
    queued 21 RUNNING None x n1 '' somebody/elses:job
    status 1
    row a '^a +lost'
    [[ "$output" == *"job 21 of jobs.tsv is now another job, named somebody/elses:job"* ]]
}

@test "local runs, without Slurm: live, dead and unseen holders, stopped, failed, not started" {
    graph a:moe-train b:moe-train c:moe-train d:moe-train e:moe-train f:moe-train
    rm "$fake"/{squeue,sacct}
    sleep 60 3>&- &
    pid=$!
    lease a/lease "$(uname -n)" "$pid" "$(awk '{print $22}' "/proc/$pid/stat")"
    lease b/lease "$(uname -n)" "$pid" 1
    lease c/lease elsewhere 77
    : > "$run/d/run.log"
    failure e/failure.json 1 'no space left' ''
    status 1
    kill "$pid"
    row a "^a +running \(pid $pid\)"
    row b '^b +failed'
    row b 'gone without a word'
    row c '^c +held by elsewhere'
    row d '^d +stopped before its end'
    row e 'no space left \(code 1\)'
    row f '^f +not started'
    progress c/progress.json 10 5 60 2
    status 1
    row c '^c +running .*training: 10/200 \(5 %\)'
    progress c/progress.json 10 5 60 5000
    status 1
    row c '^c +held by elsewhere'
}

@test "Slurm does not answer: said, and told from files" {
    graph a:moe-train b:moe-train
    submitted a 21
    submitted b 22
    done_record a/done.json
    touch "$fake/down"
    status 75
    [[ "$output" == *"Slurm does not answer (slurm_load_jobs error: Unable to contact slurm controller"* ]]
    row a '^a +done'
    row b '^b +unknown'
    [[ "$output" == *"ask again where Slurm answers"* ]]
}

@test "torn, empty and odd files never break it" {
    graph a:moe-train b:moe-train c:moe-train d:moe-train
    submitted a 21
    printf '2026-01' >> "$run/jobs.tsv"
    printf 'x\ty' >> "$run/study.tsv"
    printf '{\n "program": "moe-tr' > "$run/a/done.json"
    : > "$run/b/done.json"
    printf '{"percent": 4' > "$run/b/progress.json"
    printf '{"host": "x", ' > "$run/c/lease"
    printf '{"code": 1, "message": "red \\u001b[31m line\\ntwo", "time": "never"}' > "$run/c/failure.json"
    printf 'garbage\n\t\t\t\t\t\t\n' > "$run/d/attempts.tsv"
    printf 'garbage\n' >> "$fake/queue"
    queued 21 RUNNING None x n1
    status 1
    row a '^a +running'
    row b '^b +(stopped|not)'
    row c 'red +\[31m line two \(code 1\)'
    run jobs/status.sh --json "$run"
    "${MB_PYTHON:-python3}" -c 'import json, sys; assert len(json.load(sys.stdin)["stages"]) == 4' <<< "$output"
    run jobs/report.sh "$run"
    [ "$status" -eq 0 ]
}

@test "one line, JSON, no such run, no study.tsv" {
    graph a:moe-train b:moe-score:-:2
    submitted a 21
    submitted b 22 0-1
    queued 21 RUNNING None x n1
    queued 22_0 PENDING Resources
    failure b/failure-1of2.json 3 'bad \"quote\"' 22_1
    progress a/progress.json 90 45.0 720
    run jobs/status.sh --brief "$run"
    echo "$output"
    [ "$status" -eq 1 ]
    [ "${#lines[@]}" -eq 1 ]
    [[ "$output" == *"; a running 45 %, 12 min left; b queued: rank 3 on n2: bad \"quote\" (code 3)" ]]
    jobs/status.sh --json "$run" > "$BATS_TEST_TMPDIR/json" || true
    "${MB_PYTHON:-python3}" - "$BATS_TEST_TMPDIR/json" <<'PYTHON'
import json, sys
got = json.load(open(sys.argv[1]))
a, b = got["stages"]
assert got["state"] == "failed" and a["state"] == "running" and a["percent"] == 45 and a["seconds_left"] == 720 and a["job"] == "21"
assert b["elements"] == 2 and b["elements_failed"] == "1" and b["causes"][0]["elements"] == "element 1" and 'bad "quote"' in b["causes"][0]["cause"], b
PYTHON
    run jobs/status.sh no-such/run
    [ "$status" -eq 2 ]
    [[ "$output" == *"no such run"* ]]
    run jobs/status.sh
    [ "$status" -eq 2 ]
    rm "$run/study.tsv"
    status 1
    row a '^a +running'
    row b 'queued 1, failed 1 \(1\)'
}

# A sweep: a common stage, three points over one key.
make_sweep() {
    graph shard:moe-shard finetune:moe-train:shard eval:moe-eval:finetune points:sweep:shard:5 summary:script:points
    mkdir -p "$run"/common/shard "$run"/point_00{0,1,2,3,4}/{finetune,eval}
    printf 'point\tfinetune.training.lora.r\n0\t4\n1\t8\n2\t16\n3\t32\n4\t64\n' > "$run/points.tsv"
    printf 'script\tselect-moe\nconfig\tconf/study/mine.cfg\n' > "$run/sweep.tsv"
    done_record common/shard/done.json
}

@test "a sweep: one line per point, and one point by itself" {
    make_sweep
    submitted points 30 0-4
    submitted summary 31 - 30
    for stage in finetune eval; do done_record "point_000/$stage/done.json"; done
    attempt point_000 30_0 0 start - -
    attempt point_000 30_0 0 end 0 'done'
    queued 30_0 COMPLETED None
    queued 30_1 RUNNING None x n1
    done_record point_001/finetune/done.json
    lease point_001/eval/lease n1 99 5 309
    progress point_001/eval/progress.json 90 45.0 720
    queued 30_2 FAILED NonZeroExitCode
    failure point_002/finetune/failure.json 3 'loss is NaN' 30_2
    failure point_002/failure.json 3 'ended with code 3, without a message of its own' 30_2
    queued 30_3 PENDING Priority
    queued 30_4 PENDING BeginTime 2031-05-06T07:08:09
    attempt point_004 30_4 0 start - -
    queued 31 PENDING Dependency N/A '' 'afterany:30_*(unfulfilled)'
    status 1
    row shard '^shard +done'
    row point_000 '^point_000 +done +30_0 +n1 +stages 2/2 +finetune.training.lora.r=4'
    row point_001 '^point_001 +running +30_1 +n1 +stages 1/2, eval training: 90/200 \(45 %\) step, 0.1 step/s, 12 min left +finetune.training.lora.r=8'
    row point_002 '^point_002 +failed +30_2'
    row point_002 'cause: finetune: rank 3 on n2: loss is NaN \(code 3\)'
    row point_003 '^point_003 +queued +30_3'
    row point_004 '^point_004 +requeued, begins 2031-05-06 07:08:09'
    row summary '^summary +waiting for points'
    [[ "$output" == *"next: mend the cause, then jobs/sweep.sh --resume --run run1 conf/study/mine.cfg"* ]]
    run jobs/status.sh "$run/point_001"
    echo "$output"
    row finetune '^finetune +done'
    row eval '^eval +running +309 +n1 +training: 90/200 \(45 %\)'
    [ "$status" -eq 75 ]
    [ "$(grep -c '^squeue' "$fake/calls")" -eq 2 ]
}

@test "a sweep without Slurm: from its points' stages" {
    make_sweep
    rm "$fake"/{squeue,sacct}
    for stage in finetune eval; do done_record "point_000/$stage/done.json"; done
    failure point_001/failure.json 2 'a cause' ''
    done_record point_002/finetune/done.json
    status 1
    row point_000 '^point_000 +done'
    row point_001 'a cause \(code 2\)'
    row point_002 '^point_002 +not finished .*stages 1/2'
    row point_003 '^point_003 +not started'
}

@test "seeds: one line for each run below" {
    mkdir -p "$run"/seed_{1,2}/a
    for seed in 1 2; do printf 'stage\tprogram\tafter\ttasks\na\tmoe-train\t-\t0\n' > "$run/seed_$seed/study.tsv"; done
    done_record seed_1/a/done.json
    status 75
    [ "${#lines[@]}" -eq 2 ]
    [[ "${lines[0]}" == *"seed_1: 1 stage: 1 done" ]]
    [[ "${lines[1]}" == *"seed_2: 1 stage: 1 not started" ]]
}

@test "a thousand elements: one squeue, a few seconds" {
    graph score:moe-score:-:1000
    submitted score 15 0-999%100
    for ((k = 0; k < 400; k++)); do printf '{\n}\n' > "$run/score/done-${k}of1000.json"; done
    for ((k = 400; k < 500; k++)); do
        printf '{"percent": 50, "seconds_left": 9, "text": "x", "time": "%s"}' "$(ago 1)" > "$run/score/progress-${k}of1000.json"
    done
    awk -v user="$(id -un)" 'BEGIN {for (k = 400; k < 1000; k++) printf "15_%d\t%d\t%s\t%s\tN/A\t%s\t(null)\t%s\tstudy/run1:score\n", k, 2000 + k, k < 500 ? "RUNNING" : "PENDING", k < 500 ? "None" : "JobArrayTaskLimit", k < 500 ? "n1" : "", user}' > "$fake/queue"
    started=$(date +%s%N)
    status 75
    took=$((($(date +%s%N) - started) / 1000000))
    echo "$took ms" | tee >(cat >&3) > /dev/null
    [ "$took" -lt 8000 ]
    row score 'done 400/1000, running 100, queued 500; 45 %'
    [ "$(grep -c '^squeue' "$fake/calls")" -eq 1 ]
}

# ---- report.sh ----

full_record() { # FILE TOKENS SECONDS
    printf '{\n "program": "moe-train",\n "results": {\n  "loss": 5.5,\n  "tokens": %s,\n  "train_seconds": %s,\n  "memory_weights_forecast": 1048576,\n  "memory_weights_used": 1048576,\n  "memory_other_forecast": 3145728,\n  "memory_other_used": 1048576\n },\n "provenance": {\n  "ranks": 4,\n  "started": "2026-01-01T10:00:00Z",\n  "ended": "2026-01-01T10:01:00Z",\n  "seconds": 60.0,\n  "backend": "cpu x, 2 threads"\n }\n}\n' "$2" "$3" > "$run/$1"
}
# cell STAGE COLUMN: of the TSV form.
cell() { awk -F '\t' -v stage="$1" -v name="$2" 'NR == 1 {for (i = 1; i <= NF; i++) column[$i] = i} $1 == stage {print $column[name]}' <<< "$output"; }
check() { [ "$(cell "$1" "$2")" = "$3" ] || { echo "$1 $2: $(cell "$1" "$2"), not $3"; return 1; }; }

@test "cost from accounting: attempts, waits, hours, GPUs, memory, energy" {
    graph train:moe-train score:moe-score:-:2 idle:moe-eval
    submitted train 12
    submitted score 15 0-1
    submitted idle 13
    full_record train/done.json 12000 40
    for k in 0 1; do full_record "score/done-${k}of2.json" 1000 10; done
    # Two attempts of 12: the first was lost with its node after 100 s; then the array.
    attempt train 12 0 start - - 3000
    attempt train 12 1 start - - 2000
    attempt train 12 1 end 0 'done' 1900
    {
        printf '12\tstudy/run1:train\tNODE_FAIL\t2026-01-01T10:00:00\t2026-01-01T10:00:00\t2026-01-01T10:00:30\t2026-01-01T10:02:10\t100\t2\t8\tbilling=8,cpu=8,gres/gpu=4,node=2\t\t1000\t\n'
        printf '12\tstudy/run1:train\tCOMPLETED\t2026-01-01T10:02:10\t2026-01-01T10:04:10\t2026-01-01T10:04:12\t2026-01-01T10:05:52\t100\t2\t8\tbilling=8,cpu=8,gres/gpu=4,node=2\t\t500\t\n'
        printf '12.batch\tbatch\tCOMPLETED\t2026-01-01T10:02:10\t2026-01-01T10:04:10\t2026-01-01T10:04:12\t2026-01-01T10:05:52\t100\t1\t4\tcpu=4\t2048K\t400\t1\n'
        printf '12.0\tmoe-train\tCOMPLETED\t2026-01-01T10:02:10\t2026-01-01T10:04:10\t2026-01-01T10:04:12\t2026-01-01T10:05:52\t100\t2\t8\tcpu=8\t1.5M\t500\t4\n'
        printf '13\tstudy/run1:idle\tCANCELLED\t2026-01-01T10:00:00\tUnknown\t2026-01-01T10:00:01\t2026-01-01T10:00:01\t0\t1\t1\t\t\t0\t\n'
        for k in 0 1; do
            printf '15_%d\tstudy/run1:score\tCOMPLETED\t2026-01-01T10:00:00\t2026-01-01T10:05:52\t2026-01-01T10:06:0%d\t2026-01-01T10:07:0%d\t60\t1\t2\tcpu=2,gres/gpu=1,gres/gpu:a100=1\t\t\t\n' "$k" "$k" "$k"
            printf '15_%d.0\tmoe-score\tCOMPLETED\t2026-01-01T10:00:00\t2026-01-01T10:05:52\t2026-01-01T10:06:0%d\t2026-01-01T10:07:0%d\t60\t1\t2\tcpu=2\t512K\t\t2\n' "$k" "$k" "$k"
        done
    } > "$fake/cost"
    run jobs/report.sh --tsv "$run"
    echo "$output"
    check train wait_seconds 152 # 30 s, and 122 s after it was requeued
    check train run_seconds 200.00
    check train core_hours 0.444444
    check train gpu_hours 0.222222
    check train nodes 2
    check train tasks 4
    check train tokens_per_second 300.00
    check train joules 1500.0
    check train memory_used_bytes 2097152
    check train memory_forecast_bytes 4194304
    check train rss_bytes 2097152
    check train restarts 1
    check train lost_seconds 100
    check train source sacct
    check score wait_seconds 8
    check score run_seconds 61.00
    check score core_hours 0.066667
    check score gpu_hours 0.033333
    check score tokens 2000
    check score tokens_per_second 200.00
    check score elements 2
    check idle source -
    run jobs/report.sh "$run"
    echo "$output"
    [[ "${lines[0]}" == *"what it cost, from sacct" ]]
    grep -q -E '^train +3 min|^train +152' <<< "$output"
    grep -q -E '^train .* 2.0 MiB / 4.0 MiB +2.0 MiB +1 +100 s|^train .* 2.0 MiB / 4.0 MiB +2.0 MiB +1 +2 min' <<< "$output"
    grep -q -E '^total .* 0.51 +0.26 +1500 +1 ' <<< "$output"
    [[ "$output" == *"from the first start to the last end: 7 min"* ]]
}

@test "cost without accounting: attempts.tsv, jobs.tsv; the wait for another stage is no queue wait" {
    graph shard:moe-shard train:moe-train:shard
    submitted shard 11 - - 5000
    submitted train 12 - 11 5000
    attempt shard 11 0 start - - 4990
    attempt shard 11 0 end 0 'done' 4000
    attempt train 12 0 start - - 3980
    attempt train 12 0 end 75 'requeued: time limit near' 3480
    attempt train 12 1 start - - 3360
    attempt train 12 1 end 1 'failed: x' 3260
    full_record train/done.json 12000 40
    run jobs/report.sh --tsv "$run"
    echo "$output"
    check shard wait_seconds 10
    check shard run_seconds 990.00
    check train wait_seconds 140 # 20 s, and 120 s in between
    check train run_seconds 600.00
    check train core_hours 1.333333 # 4 tasks of 2 cores
    check train restarts 1
    check train lost_seconds 100
    check train source attempts
    run jobs/report.sh "$run"
    [[ "${lines[0]}" == *"attempts.tsv and jobs.tsv (sacct does not answer)" ]]
}

@test "cost of a local run: from its records" {
    graph train:moe-train
    full_record train/done.json 12000 40
    run jobs/report.sh --tsv "$run"
    echo "$output"
    check train run_seconds 60.00
    check train core_hours 0.133333 # 4 ranks of 2 threads
    check train source record
    [ ! -s "$fake/calls" ]
}

@test "cost of a sweep: common stages and one row per point" {
    make_sweep
    submitted points 30 0-4
    full_record common/shard/done.json 100 1
    full_record point_001/finetune/done.json 12000 40
    for k in 0 1; do printf '30_%d\tstudy/run1:points\tCOMPLETED\t2026-01-01T10:00:00\t2026-01-01T10:00:00\t2026-01-01T10:00:05\t2026-01-01T10:01:05\t60\t1\t4\tcpu=4\t\t\t\n' "$k"; done > "$fake/cost"
    run jobs/report.sh --tsv "$run"
    echo "$output"
    check shard source record
    check point_001 run_seconds 60.00
    check point_001 wait_seconds 5
    check point_001 core_hours 0.066667
    check point_001 memory_used_bytes 2097152
    check point_003 source -
}

# ---- cancel.sh ----

@test "cancel: STOP, the run's own active jobs, arrays as one, nothing of others" {
    graph a:moe-train b:moe-score:-:3 c:moe-train d:moe-train
    submitted a 21
    submitted b 22 0-2
    submitted c 23
    submitted d 24
    queued 21 RUNNING None x n1
    queued 22_0 RUNNING None x n2
    queued 22_1 PENDING Resources
    queued 22_2 COMPLETED None
    queued 23 RUNNING None x n1 '' somebody/elses:job
    queued 24 FAILED None
    run jobs/cancel.sh --dry-run "$run"
    echo "$output"
    [ "$status" -eq 0 ]
    [ ! -e "$run/STOP" ]
    ! grep -q '^scancel' "$fake/calls"
    run jobs/cancel.sh "$run"
    echo "$output"
    [ "$status" -eq 0 ]
    [ -s "$run/STOP" ]
    [ "$(grep '^scancel' "$fake/calls" | sort)" = $'scancel 21\nscancel 22' ]
    [[ "$output" == *"a: job 21 (running on n1) cancelled"* ]]
    [[ "$output" == *"b: job 22 (running, queued on n2) cancelled"* ]]
    [[ "$output" == *"job 23 of jobs.tsv is another job now (somebody/elses:job): left alone"* ]]
    : > "$fake/calls"
    run jobs/cancel.sh --gently "$run"
    [ "$(grep '^scancel' "$fake/calls" | sort)" = $'scancel --signal=USR2 --state=RUNNING 21\nscancel --signal=USR2 --state=RUNNING 22\nscancel --state=PENDING 22' ]
}

@test "cancel: a local run gets USR2; one elsewhere, a dead one and a refusing Slurm are said" {
    graph a:moe-train b:moe-train c:moe-train
    bash -c 'trap "echo stopped > \"$1\"; exit 75" USR2; while :; do sleep 0.1; done' - "$BATS_TEST_TMPDIR/told" 3>&- &
    pid=$!
    lease a/lease "$(uname -n)" "$pid" "$(awk '{print $22}' "/proc/$pid/stat")"
    lease b/lease "$(uname -n)" "$pid" 1
    lease c/lease elsewhere 77
    run jobs/cancel.sh "$run"
    echo "$output"
    code=0
    wait "$pid" || code=$?
    [ "$code" -eq 75 ]
    [ "$(cat "$BATS_TEST_TMPDIR/told")" = stopped ]
    [[ "$output" == *"a: process $pid on this host told to stop"* ]]
    [[ "$output" == *"c: elsewhere holds the lease: run this there"* ]]
    [[ "$output" != *"b: "* ]]
    [ "$status" -eq 1 ]
    rm -r "$run"/*/lease
    submitted a 21
    touch "$fake/down"
    run jobs/cancel.sh "$run"
    [ "$status" -eq 1 ]
    [[ "$output" == *"Slurm does not answer"* ]]
    rm "$fake/down"
    run jobs/cancel.sh "$run"
    [ "$status" -eq 0 ]
    [[ "$output" == *"nothing of "*" is queued or running"* ]]
}
