# Kills: at random times (kill_points.sh), of whole nodes in training, of a node's network in scoring; and 64 ranks (many_ranks.sh). The result is always that of
# the undisturbed run. About two minutes.

setup_file() {
    load common.bash
    testbed_up res --nodes 3 --no-accounting
    make_inputs
}
teardown_file() {
    load common.bash
    testbed_down
}
setup() {
    load common.bash
    testbed_use
}

parts() { find "$work/$1/scores.h5.parts" -name '*-*.h5' 2> /dev/null | wc -l; }
has_parts() { [ "$(parts "$1")" -ge "$2" ]; }
curve() { sed 's/, "provenance[^,]*//g; s/, "time".*//' "$work/$1/metrics.jsonl"; }

@test "five random kills: the weights and the curve of the run that nobody killed" {
    run tests/slurm/kill_points.sh --points 5 --bin "$bin"
    echo "$output"
    [ "$status" -eq 0 ]
    [[ $output == *"5 runs killed before their end"* ]]
}

@test "64 ranks give the bits of one" {
    run tests/slurm/many_ranks.sh --bin "$bin"
    echo "$output"
    [ "$status" -eq 0 ]
}

@test "a node loses its power in training on two nodes: on the others the job ends with the same weights" {
    local job train=(model.path="$work/init/model" dataset.path="$work/shard/shard.h5" training.objective=lm training.epochs=60 training.batch_size=4
        training.gradient_accumulation_steps=8 training.learning_rate=3e-3 training.logging_steps=1 training.save_steps=5)
    "$bin/moe-train" "${train[@]}" output.dir="$work/whole" &
    local whole=$!
    job=$(submit -N2 --ntasks-per-node=2 --signal=USR2@10 --time=10 slurm/train.sbatch "${train[@]}" output.dir="$work/powerless")
    wait_until 60 has_lines "$work/powerless/metrics.jsonl" 20
    slurm/testbed/kill-node --name res n2
    wait $whole
    start_again "$job" 90
    [ ! -e "$work/powerless/done.json" ]
    [ "$(wc -l < "$work/powerless/metrics.jsonl")" -lt 600 ]
    wait_for_end "$job" 120
    log_of "$job"
    [ "$(state_of "$job")" = COMPLETED ]
    log_of "$job" | grep -q "resuming from $work/powerless/state/step_"
    cmp "$work/whole/final/model.safetensors" "$work/powerless/final/model.safetensors"
    [ "$(curve whole)" = "$(curve powerless)" ]
    slurm/testbed/heal-node --name res n2
}

@test "the node of rank 0 is cut off in scoring, and its ranks go on unheard: the job on the others gives the same scores, and they stay so" {
    local job hash score=(model.path="$work/convert/model" score.source_model="$work/init/model" dataset.path="$work/shard/shard.h5" score.tile_tokens=128 backend=ref)
    job=$(submit -N2 --ntasks-per-node=2 --signal=USR2@10 --time=10 slurm/score.sbatch "${score[@]}" output.dir="$work/cut")
    wait_until 60 has_parts cut 3
    slurm/testbed/cut-node --name res n1
    [ ! -e "$work/cut/done.json" ]
    "$bin/moe-score" "${score[@]}" output.dir="$work/uncut"
    start_again "$job" 90
    wait_for_end "$job" 120
    log_of "$job"
    [ "$(state_of "$job")" = COMPLETED ]
    [ "$(fact_of "$job" Restarts)" -ge 1 ]
    hash=$(hash_of "$work/uncut/scores.h5")
    [ "$(hash_of "$work/cut/scores.h5")" = "$hash" ]
    slurm/testbed/heal-node --name res n1
    sleep 3
    [ "$(hash_of "$work/cut/scores.h5")" = "$hash" ]
    [ -z "$(find "$work/cut" -name '*.parts')" ]
}
