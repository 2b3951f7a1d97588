# A sweep on the testbed: twelve points over two nodes, two of which fail; the table; going on with those two only. And one each of studies B and D.

bats_require_minimum_version 1.5.0

setup_file() {
    load common.bash
    testbed_up sweep --no-accounting
    make_inputs
    sed -e 's/"hidden_size": 128/"hidden_size": 32/; s/"head_dim": 32/"head_dim": 8/; s/"intermediate_size": 344/"intermediate_size": 48/; s/"num_hidden_layers": 4/"num_hidden_layers": 2/; s/"vocab_size": 2048/"vocab_size": 384/' \
        conf/model/demo-target.json > "$work/target.json"
    "$bin/moe-convert" init convert.config="$work/target.json" tokenizer.path="$work/tok" output.dir="$work/target" > /dev/null 2>&1
    cat > "$work/tiny.cfg" <<CFG
study: { name = "slurm-sweep-test"; selector = "$work/init/model"; target = "$work/target/model"; tokenizer = ""; labels = ""; };
slurm: { nodes = "1"; time = "10"; extra = "--ntasks-per-node=1"; };
dataset: { max_length = 96; };
shard-corpus: { dataset: { inputs = "a=$work/a.jsonl,b=$work/b.jsonl"; }; };
shard-heldout: { dataset: { inputs = "b=$work/b.jsonl"; }; };
warmup: { dataset: { subset_ratio = 0.5; }; training: { objective = "router_warmup"; max_steps = 2; batch_size = 4; gradient_accumulation_steps = 2; save = "delta"; }; };
select: { select: { selection_percentage = 0.2; }; };
finetune: { training: { peft_mode = "lora"; max_steps = 2; batch_size = 4; gradient_accumulation_steps = 1; learning_rate = 1e-3; lora: { r = 4; lora_alpha = 8; target_modules = "all-linear"; }; }; };
CFG
    # Points 4 and 9 read a file without records, for now.
    : > "$work/late.jsonl"
    printf 'finetune.training.lora.r\tshard-all.dataset.inputs\n' > "$work/points.tsv"
    for point in {0..11}; do
        case $point in 4 | 9) file=late ;; *) file=a ;; esac
        printf '%d\ta=%s\n' $((point + 1)) "$work/$file.jsonl" >> "$work/points.tsv"
    done
    rm -rf checkpoints/slurm-sweep-test
}
setup() {
    load common.bash
    testbed_use
    run_folder=$PWD/checkpoints/slurm-sweep-test/twelve
}
teardown_file() {
    load common.bash
    testbed_down
    [ -n "${MB_KEEP:-}" ] || rm -rf checkpoints/slurm-{sweep,upcycle,fuse}-test
}

sweep() { jobs/sweep.sh --slurm --run twelve --throttle 6 "$@" "$work/tiny.cfg"; }
# job_of STAGE: newest job of a stage.
job_of() { awk -F '\t' -v stage="$1" '$2 == stage {job = $3} END {print job}' "$run_folder/jobs.tsv"; }
tasks_of() { awk -F '\t' -v stage="$1" '$2 == stage {tasks = $4} END {print tasks}' "$run_folder/jobs.tsv"; }

@test "--dry-run prints what would be submitted, and submits nothing" {
    run -0 sweep --dry-run --table "$work/points.tsv"
    echo "$output"
    array=$(grep -- '^sbatch .*--array=0-11%6' <<< "$output")
    [[ "$array" == *"--kill-on-invalid-dep=yes"*"--dependency=afterok:"*"slurm/point.sbatch"* ]]
    [ "$(grep -c '^# jobs/select-moe.sh .*--part point' <<< "$output")" -eq 12 ]
    [[ "$(grep '^sbatch' <<< "$output" | tail -1)" == *"--dependency=afterany:"*"analysis/sweep.py"* ]]
    [ "$(squeue -h | wc -l)" -eq 0 ]
    [ ! -e "$run_folder" ]
}

@test "twelve points over two nodes: ten results, and the two that failed are named" {
    run -0 sweep --table "$work/points.tsv"
    echo "$output"
    [ "$(tasks_of points)" = 0-11 ]
    wait_for_end "$(job_of summary)" 120
    cat "$run_folder"/logs/summary-*.log
    [ "$(state_of "$(job_of summary)")" = COMPLETED ]
    grep -q 'slurm-sweep-test/twelve: 12 points: 10 done, 2 failed' "$run_folder/sweep.txt"
    grep -q 'The table has 10 results; 2 of 12 points have none:' "$run_folder/sweep.txt"
    for point in 4 9; do grep -q "  point $point (r=$((point + 1)), .*late.jsonl): failed in shard-all: no record of the inputs" "$run_folder/sweep.txt"; done
    [ -s "$run_folder/sweep.h5" ]
    # Elements of both nodes took part, each common stage was one job.
    [ "$(cut -f 4 "$run_folder"/point_0??/attempts.tsv | sort -u | tr '\n' ' ')" = "n1 n2 " ]
    [ "$(grep -c -P '\tscore\t' "$run_folder/jobs.tsv")" -eq 1 ]
    [ "$(grep -c -P '\tstart\t' "$run_folder/point_000/attempts.tsv")" -eq 1 ]
}

@test "--resume submits only those two, and the table again" {
    cp "$work/b.jsonl" "$work/late.jsonl"
    run -0 sweep --resume
    echo "$output"
    [[ "$output" == *"10 of 12 points are done"* ]]
    [ "$(tasks_of points)" = 4,9 ]
    wait_for_end "$(job_of summary)" 90
    cat "$run_folder"/logs/summary-*.log
    grep -q 'slurm-sweep-test/twelve: 12 points: 12 done' "$run_folder/sweep.txt"
    [ "$(grep -c -P '\tscore\t' "$run_folder/jobs.tsv")" -eq 1 ]
    [ "$(grep -c -P '\tstart\t' "$run_folder/point_004/attempts.tsv")" -eq 2 ]
    [ "$(grep -c -P '\tstart\t' "$run_folder/point_000/attempts.tsv")" -eq 1 ]
}

@test "points that are queued already are not submitted a second time" {
    rm -rf "$run_folder"/point_00{1,2}
    for node in n1 n2; do scontrol update NodeName=$node State=DRAIN Reason=test; done
    run -0 sweep --resume
    [ "$(tasks_of points)" = 1-2 ]
    first=$(job_of points) summary=$(job_of summary)
    rm -rf "$run_folder/point_003"
    run -0 sweep --resume
    echo "$output"
    [[ "$output" == *"2 points are queued or running already"* ]]
    [ "$(tasks_of points)" = 3 ]
    [ "$(state_of "$summary")" = CANCELLED ]
    [[ "$(fact_of "$(job_of summary)" Dependency)" == *"$first"* ]]
    for node in n1 n2; do scontrol update NodeName=$node State=RESUME; done
    wait_for_end "$(job_of summary)" 90
    grep -q '12 points: 12 done' "$run_folder/sweep.txt"
}

@test "a point that stops at a checkpoint goes back into the queue alone, and gets its own values again" {
    mkdir -p "$work/alone/logs"
    printf 'point\ta.b\tc.d\n0\t1\tx y\n1\t2\t"z"\n' > "$work/alone/points.tsv"
    cat > "$work/alone/study.sh" <<'SH'
#!/bin/bash
echo "$*" >> "${0%/*}/calls.$SLURM_ARRAY_TASK_ID"
[ "$SLURM_ARRAY_TASK_ID" = 0 ] || [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] || exit 75
sleep 12
SH
    chmod +x "$work/alone/study.sh"
    id=$(sbatch --parsable --ntasks=1 --array=0-1 --output="$work/alone/logs/%A_%a.log" slurm/point.sbatch "$work/alone/points.tsv" "$work/alone/study.sh" --run one x.cfg)
    # The last element has the number of the array itself: what names the job by it means every element.
    wait_until 30 has_lines "$work/alone/calls.1" 1
    start_again "${id}_1"
    wait_until 40 has_lines "$work/alone/calls.1" 2
    for point in 0 1; do wait_until 40 grep -q -P '\tend\t0\t' "$work/alone/point_00$point/attempts.tsv"; done
    cat "$work"/alone/point_00?/attempts.tsv "$work"/alone/calls.*
    [ "$(grep -c -P '\tstart\t' "$work/alone/point_000/attempts.tsv")" -eq 1 ]
    [ "$(cat "$work/alone/calls.0")" = '--run one x.cfg --local --part point --point 0 a.b=1 c.d=x y' ]
    [ "$(sort -u "$work/alone/calls.1")" = '--run one x.cfg --local --part point --point 1 a.b=2 c.d="z"' ]
}

@test "study B: six points over beta and learning rate share one reference, itself an array of two" {
    make_dialogs
    make_upcycle_study slurm-upcycle-test "$work/upcycle.cfg"
    rm -rf checkpoints/slurm-upcycle-test
    run_folder=$PWD/checkpoints/slurm-upcycle-test/six
    run jobs/sweep.sh --slurm --run six --metric preference_accuracy "$work/upcycle.cfg" study.dense="$work/target/model" study.prompts= \
        slurm.nodes=1 slurm.time=10 slurm.extra=--ntasks-per-node=1 reference.slurm.array=2 dpo.training.dpo.beta=0.05,0.1,0.5 dpo.training.learning_rate=1e-4,1e-3
    echo "$output"
    [ "$status" -eq 0 ]
    [ "$(tasks_of points)" = 0-5 ]
    wait_for_end "$(job_of summary)" 120
    cat "$run_folder"/logs/summary-*.log
    grep -q 'slurm-upcycle-test/six: 6 points: 6 done' "$run_folder/sweep.txt"
    # Submitted once, made once, and the same in every point.
    [ "$(grep -c -P '\treference\t' "$run_folder/jobs.tsv")" -eq 1 ]
    [ "$(ls "$run_folder"/common/reference/done-*of2.json | wc -l)" -eq 2 ]
    ! compgen -G "$run_folder/point_*/reference*" || false
    [ "$(grep -ho '"reference": "[0-9a-f]*"' "$run_folder"/point_00?/dpo/done.json | sort -u)" = "\"reference\": \"$(hash_of "$run_folder/common/reference/scores.h5")\"" ]
    [ "$(hash_of "$run_folder/point_000/dpo/final")" != "$(hash_of "$run_folder/point_005/dpo/final")" ]
}

@test "study D: six students over temperature and weight learn from one stored teacher, itself an array of two" {
    make_dialogs
    make_fuse_study slurm-fuse-test "$work/fuse.cfg"
    rm -rf checkpoints/slurm-fuse-test
    run_folder=$PWD/checkpoints/slurm-fuse-test/six
    run jobs/sweep.sh --slurm --run six --metric eval-distilled/perplexity "$work/fuse.cfg" study.foundation="$work/target/model" study.routers=token study.prompts= teacher.teacher.cache_dir= \
        slurm.nodes=1 slurm.time=10 slurm.extra=--ntasks-per-node=1 teacher.slurm.array=2 distil.training.temperature=1,2 distil.training.distill_loss_weight=0.3,0.7,1
    echo "$output"
    [ "$status" -eq 0 ]
    [ "$(tasks_of points)" = 0-5 ]
    wait_for_end "$(job_of summary)" 180
    cat "$run_folder"/logs/summary-*.log
    grep -q 'slurm-fuse-test/six: 6 points: 6 done' "$run_folder/sweep.txt"
    # Submitted once, made once by two elements and joined, and the same file for every student.
    [ "$(grep -c -P '\tteacher\t' "$run_folder/jobs.tsv")" -eq 1 ]
    [ "$(ls "$run_folder"/common/teacher/done-*of2.json | wc -l)" -eq 2 ]
    ! compgen -G "$run_folder/point_*/teacher*" || false
    used=$(grep -ho '"[a-z_.]*": "'"$(hash_of "$run_folder/common/teacher/teacher.h5")"'"' "$run_folder"/point_00?/distil/done.json | sort)
    [ "$(wc -l <<< "$used")" -eq 6 ]
    [ "$(hash_of "$run_folder/point_000/distil/final")" != "$(hash_of "$run_folder/point_005/distil/final")" ]
}
