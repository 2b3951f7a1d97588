# Sweeps on this machine, with tiny models: which points there are, what runs once, a point that fails, going on, what is refused.

bats_require_minimum_version 1.5.0

setup_file() {
    load common.bash
    mb_setup
    make_records > /dev/null
    make_models > /dev/null 2>&1
    sed -e 's/"hidden_size": 128/"hidden_size": 32/; s/"head_dim": 32/"head_dim": 8/; s/"intermediate_size": 344/"intermediate_size": 48/; s/"num_hidden_layers": 4/"num_hidden_layers": 2/; s/"vocab_size": 2048/"vocab_size": 384/' \
        conf/model/demo-target.json > "$work/target.json"
    "$bin/moe-convert" init convert.config="$work/target.json" tokenizer.path="$work/tok" output.dir="$work/target" > /dev/null 2>&1
    cat > "$work/tiny.cfg" <<CFG
study: { name = "sweep-test"; script = "select-moe"; selector = "$work/init/model"; target = "$work/target/model"; tokenizer = ""; labels = ""; };
dataset: { max_length = 96; };
shard-corpus: { dataset: { inputs = "a=$work/a.jsonl,b=$work/b.jsonl"; }; };
shard-heldout: { dataset: { inputs = "b=$work/b.jsonl"; }; };
warmup: { dataset: { subset_ratio = 0.5; }; training: { objective = "router_warmup"; max_steps = 2; batch_size = 4; gradient_accumulation_steps = 2; save = "delta"; }; };
select: { select: { selection_percentage = 0.2; }; };
finetune: { training: { peft_mode = "lora"; max_steps = 4; batch_size = 4; gradient_accumulation_steps = 2; learning_rate = 1e-3; lora: { r = 4; lora_alpha = 8; target_modules = "all-linear"; }; }; };
CFG
    rm -rf checkpoints/sweep-test
    # A file where the last point's first stage wants its folder: that point fails.
    mkdir -p checkpoints/sweep-test/two/point_003
    touch checkpoints/sweep-test/two/point_003/finetune-selected
    code=0
    jobs/sweep.sh --local --run two "$work/tiny.cfg" "${lists[@]}" > "$work/first.log" 2>&1 || code=$?
    echo "$code" > "$work/first.code"
}
setup() {
    load common.bash
    mb_setup
    run_folder=checkpoints/sweep-test/two
}
teardown_file() { rm -rf checkpoints/sweep-test; }
lists=(finetune.training.lora.r=2,4 finetune.training.learning_rate=1e-3,3e-2)

# Commands of --dry-run that are points.
points_of() { grep '^jobs/select-moe.sh' <<< "$1"; }
sweep() { jobs/sweep.sh --local "$@"; }

@test "every combination is a point, the first key slowest; a failing point does not stop the others" {
    cat "$work/first.log"
    [ "$(cat "$work/first.code")" -eq 1 ]
    printf 'point\tfinetune.training.lora.r\tfinetune.training.learning_rate\n0\t2\t1e-3\n1\t2\t3e-2\n2\t4\t1e-3\n3\t4\t3e-2\n' | diff - "$run_folder/points.tsv"
    for point in 0 1 2; do
        [ -f "$run_folder/point_00$point/eval-all/done.json" ]
        grep -q "== point $point: [0-9]* s" "$work/first.log"
    done
    [ ! -e "$run_folder/point_003/eval-all" ]
    grep -q '== point 3: failed with code' "$work/first.log"
    [ "$(grep -o '"training.lora.r": "[0-9]*"' "$run_folder/point_002/finetune-all/done.json")" = '"training.lora.r": "4"' ]
    grep -q 'sweep.sh: 1 of 4 points failed: 3' "$work/first.log"
}

@test "what no swept key touches ran once, in common" {
    for stage in shard-corpus warmup score select-good_mass shard-heldout shard-all eval-base; do
        [ -f "$run_folder/common/$stage/done.json" ]
        [ "$(grep -c "^== $stage: " "$work/first.log")" -eq 1 ]
    done
    [ ! -e "$run_folder/point_000/shard-all" ]
    [ ! -e "$run_folder/common/finetune-all" ]
    run -0 grep -P '^points\tsweep\t' "$run_folder/study.tsv"
    [[ "$output" == *$'\t4' ]]
}

@test "the table has three results and names the fourth with its cause" {
    cat "$run_folder/sweep.txt"
    grep -q 'sweep-test/two: 4 points: 3 done, 1 failed' "$run_folder/sweep.txt"
    grep -q 'The table has 3 results; 1 of 4 points have none:' "$run_folder/sweep.txt"
    grep -q 'point 3 (r=4, learning_rate=3e-2): failed.*finetune-selected' "$run_folder/sweep.txt"
    # Best first, by what the evaluations wrote.
    expected=$(for point in 0 1 2; do
        sed -n 's/.*"perplexity": \([0-9.]*\),.*/\1/p' "$run_folder/point_00$point/eval-selected/results.json" | head -1 | sed "s/\$/ $point/"
    done | sort -g | cut -d ' ' -f 2 | tr '\n' ' ')
    [ "$(sed -n '6,8s/^ *\([0-9]*\) .*/\1/p' "$run_folder/sweep.txt" | tr '\n' ' ')" = "$expected" ]
    [ "$(wc -l < "$run_folder/sweep.csv")" -eq 5 ]
}

@test "--resume runs only what is not done, without the lists" {
    rm "$run_folder/point_003/finetune-selected"
    run -0 sweep --resume --run two "$work/tiny.cfg"
    [[ "$output" == *"3 of 4 points are done"* ]]
    [ "$(grep -c '^== point [0-9] of' <<< "$output")" -eq 1 ]
    [[ "$output" == *"== point 3: "*" s"* ]]
    [[ "$output" == *"sweep-test/two: 4 points: 4 done"* ]]
    [ -f "$run_folder/point_003/eval-all/done.json" ]
    run -0 sweep --resume --run two "$work/tiny.cfg" "${lists[@]}"
    [[ "$output" == *"4 of 4 points are done"* ]]
    [ "$(grep -c '^== point' <<< "$output")" -eq 0 ]
}

@test "--resume after a changed setting runs the points that no longer match, and only those" {
    # The last stage's own record is true still; what it read is not what these settings give.
    run -0 sweep --resume --run two --dry-run "$work/tiny.cfg" finetune.training.max_steps=5
    [[ "$output" == *"0 of 4 points are done"* ]]
    [ "$(points_of "$output" | wc -l)" -eq 4 ]
    # A setting that changes no result.
    run -0 sweep --resume --run two --dry-run "$work/tiny.cfg" finetune.training.logging_steps=2
    [[ "$output" == *"4 of 4 points are done"* ]]
}

@test "the points of a sweep cannot change" {
    run -2 sweep --run two "$work/tiny.cfg" finetune.training.lora.r=2,4,8 finetune.training.learning_rate=1e-3,3e-2
    [[ "$output" == *"sweep-test/two is a sweep already, with other points (4 over finetune.training.lora.r finetune.training.learning_rate; now 6 over"* ]]
    run -2 sweep --run two "$work/tiny.cfg" finetune.training.lora.r=2,4 finetune.training.learning_rate=3e-2,1e-3
    [[ "$output" == *"other points"* ]]
    run -2 sweep --resume --run nowhere "$work/tiny.cfg" "${lists[@]}"
    [[ "$output" == *"no sweep there to go on with"* ]]
    [ ! -e checkpoints/sweep-test/nowhere ]
}

@test "nothing starts when a value of any point is not right" {
    run -2 sweep --run bad "$work/tiny.cfg" finetune.training.lora.r=2,4,-3
    [[ "$output" == *"finetune.training.lora.r=-3: "*"outside 1.."* ]]
    run -2 sweep --run bad "$work/tiny.cfg" finetune.training.lora.rr=2,4
    [[ "$output" == *"did you mean training.lora.r"* ]]
    run -2 sweep --run bad "$work/tiny.cfg" fintune.training.lora.r=2,4
    [[ "$output" == *"no stage is called 'fintune'"* ]]
    run -2 sweep --run bad "$work/tiny.cfg" study.lables=2,4
    [[ "$output" == *"study.lables changes nothing in any stage"* ]]
    run -2 sweep --run bad "$work/tiny.cfg" study.target="$work/target/model,$work/init/model,$work/nowhere"
    [[ "$output" == *"study.target=$work/nowhere: "*"no such file or folder"* ]]
    run -2 sweep --run bad "$work/tiny.cfg" finetune.training.lora.r=2,2
    [[ "$output" == *"stands there twice"* ]]
    run -2 sweep --run bad "$work/tiny.cfg"
    [[ "$output" == *"nothing to sweep"* ]]
    [ ! -e checkpoints/sweep-test/bad ]
}

@test "--dry-run prints the exact command of every point and writes nothing" {
    run -0 sweep --dry-run --run dry "$work/tiny.cfg" "${lists[@]}" --set finetune.training.lora.target_modules=q_proj,v_proj
    [ "$(points_of "$output" | wc -l)" -eq 4 ]
    [[ "$output" == *"--part point --point 2 "*"target_modules=q_proj\\,v_proj finetune.training.lora.r=4 finetune.training.learning_rate=1e-3"* ]]
    [ ! -e checkpoints/sweep-test/dry ]
    # It is exact: the command says itself what it would do.
    command=$(points_of "$output" | sed -n 3p)
    # For a cluster too, whether one answers or not.
    run -0 jobs/sweep.sh --slurm --dry-run --run dry "$work/tiny.cfg" "${lists[@]}"
    [[ "$output" == *"--array=0-3 "*"--dependency=afterok:"*"slurm/point.sbatch"*"--dependency=afterany:"*"analysis/sweep.py"* ]]
    [ ! -e checkpoints/sweep-test/dry ]
    run -0 bash -c "${command/--local/--local --dry-run}"
    [ "$(grep -c '^moe-train .*training.lora.r=4 training.learning_rate=1e-3 ' <<< "$output")" -eq 3 ]
    [[ "$output" == *"checkpoints/sweep-test/dry/point_002/eval-all"* ]]
}

@test "a key that the script itself reads is swept too" {
    run -0 sweep --dry-run --run read "$work/tiny.cfg" select.select.score=good_mass,entropy finetune.training.max_steps=2,3
    [ "$(points_of "$output" | wc -l)" -eq 4 ]
    [[ "$output" == *"/common/score"* ]]
    [[ "$output" == *"/point_000/select-good_mass"* ]]
}

@test "--random draws the same points for the same seed, --points takes some, --table gives them one by one" {
    grid=(finetune.training.lora.r=1,2,3,4,5,6,7,8 finetune.training.max_steps=1,2,3,4,5,6,7,8)
    run -0 sweep --dry-run --run random --random 5 --seed 3 "$work/tiny.cfg" "${grid[@]}"
    first=$(points_of "$output")
    [ "$(sort -u <<< "$first" | wc -l)" -eq 5 ]
    run -0 sweep --dry-run --run random --random 5 --seed 3 "$work/tiny.cfg" "${grid[@]}"
    [ "$(points_of "$output")" = "$first" ]
    run -0 sweep --dry-run --run random --random 5 --seed 4 "$work/tiny.cfg" "${grid[@]}"
    [ "$(points_of "$output")" != "$first" ]
    run -0 sweep --dry-run --run random --points 60-62,7 "$work/tiny.cfg" "${grid[@]}"
    [ "$(points_of "$output" | grep -o -- '--point [0-9]*' | tr '\n' ' ')" = "--point 7 --point 60 --point 61 --point 62 " ]
    [[ "$(points_of "$output" | head -1)" == *"lora.r=1 finetune.training.max_steps=8 " ]]
    run -2 sweep --dry-run --run random --points 64 "$work/tiny.cfg" "${grid[@]}"
    [[ "$output" == *"the points are 0 to 63"* ]]
    printf 'finetune.training.lora.r\tfinetune.training.lora.target_modules\n2\tall-linear\n8\tq_proj,v_proj\n' > "$work/points.tsv"
    run -0 sweep --dry-run --run table --table "$work/points.tsv" "$work/tiny.cfg"
    [[ "$(points_of "$output" | tail -1)" == *"finetune.training.lora.r=8 finetune.training.lora.target_modules=q_proj\\,v_proj " ]]
    printf 'finetune.training.lora.r\n2\n2\n' > "$work/points.tsv"
    run -2 sweep --dry-run --run table --table "$work/points.tsv" "$work/tiny.cfg"
    [[ "$output" == *"two points are the same: 2"* ]]
}
