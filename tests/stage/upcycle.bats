# Study B with tiny models, stage by stage through its script: every output is there, a second run does nothing, one and two ranks give the
# same bits, another beta redoes only what follows, a sweep makes its reference once.

setup_file() {
    load common.bash
    mb_setup
    make_dialogs > /dev/null
    make_upcycle_study upcycle-test "$work/tiny.cfg"
    rm -rf checkpoints/upcycle-test
    jobs/upcycle.sh --local "$work/tiny.cfg" > "$work/first.log" 2>&1 || { cat "$work/first.log"; return 1; }
}
setup() {
    load common.bash
    mb_setup
    run_folder=checkpoints/upcycle-test/run1
}
teardown_file() { [ -n "${MB_KEEP:-}" ] || rm -rf checkpoints/upcycle-test; }

@test "every stage leaves its record; the report and the answers side by side are there" {
    for stage in tokenizer shard-pretrain dense pretrain upcycle shard-sft sft shard-pairs reference reference-heldout dpo eval-dense \
        {eval,preference,generate}-{before,sft,dpo}; do
        [ -f "$run_folder/$stage/done.json" ]
    done
    [ "$(wc -l < "$run_folder/side-by-side/side_by_side.jsonl")" -eq 4 ]
    [ -s "$run_folder/report/report.html" ]
    grep -q 'function preserved: yes' "$work/first.log"
    for word in 'loss on answers, code' 'mutual information' 'preference accuracy, all'; do grep -q "^$word" "$work/first.log"; done
}

@test "the mix has its shares, and what is held back stands in no training data" {
    "${MB_PYTHON:-python3}" - "$run_folder/shard-sft" <<'PYTHON'
import sys, h5py
rows = {}
for part in ("shard", "validation"):
    with h5py.File(f"{sys.argv[1]}/{part}.h5", "r") as file:
        names = [name.decode() for name in file["type_names"][...]]
        types = [names[t] for t in file["type"][...]]
        rows[part] = {(s, i) for s, i in zip(file["source"][...].tolist(), file["source_index"][...].tolist())}
        print(part, {name: types.count(name) for name in names})
        if part == "shard":
            assert {name: types.count(name) for name in names} == {"code": 48, "talk": 32}, types
        else:
            assert {name: types.count(name) for name in names} == {"code": 8, "talk": 8}
assert not rows["shard"] & rows["validation"]
PYTHON
}

@test "a second run does nothing" {
    run jobs/upcycle.sh --local "$work/tiny.cfg"
    echo "$output"
    [ "$status" -eq 0 ]
    [ "$(grep -c 'nothing to do' <<< "$output")" -eq 21 ]
}

@test "two ranks: the bits of one" {
    need_mpi
    jobs/upcycle.sh --local --run two --ranks 2 "$work/tiny.cfg" > "$work/two.log" 2>&1 || { cat "$work/two.log"; return 1; }
    for name in upcycle/model shard-sft/shard.h5 sft/final sft/metrics.h5 reference/scores.h5 dpo/final dpo/metrics.h5 eval-dpo/routing.h5 eval-dpo/results.json \
        preference-dpo/results.json generate-dpo/generated.jsonl; do
        a=$(hash_of "$run_folder/$name") b=$(hash_of "checkpoints/upcycle-test/two/$name")
        echo "$name $a $b"
        [ -n "$a" ] && [ "$a" = "$b" ]
    done
    grep -q '"ranks": 2' checkpoints/upcycle-test/two/dpo/done.json
}

@test "another beta redoes DPO and what follows, not the reference" {
    run jobs/upcycle.sh --local "$work/tiny.cfg" dpo.training.dpo.beta=0.3
    echo "$output"
    [ "$status" -eq 0 ]
    for stage in sft reference reference-heldout eval-sft; do [[ "$output" == *"$stage: up to date"* ]]; done
    for stage in dpo eval-dpo preference-dpo generate-dpo; do [[ "$output" != *"$stage: up to date"* ]]; done
}

@test "a sweep over beta and learning rate makes its reference once, and takes it from the cache another time" {
    run jobs/sweep.sh --local --run sw --metric preference_accuracy "$work/tiny.cfg" study.prompts= dpo.training.dpo.beta=0.05,0.5 dpo.training.learning_rate=1e-4,1e-3
    echo "$output"
    [ "$status" -eq 0 ]
    sweep=checkpoints/upcycle-test/sw
    [ -f "$sweep/common/reference/done.json" ]
    ! compgen -G "$sweep/point_*/reference*" || false
    [ "$(ls -d "$sweep"/point_00?/dpo | wc -l)" -eq 4 ]
    used=$(grep -ho '"reference": "[0-9a-f]*"' "$sweep"/point_00?/dpo/done.json | sort -u)
    [ "$(wc -l <<< "$used")" -eq 1 ]
    [[ "$used" == *"$(hash_of "$sweep/common/reference/scores.h5")"* ]]
    grep -q 4.points: "$sweep/sweep.txt"
    # The same pairs under the same model as in the first run: its table was in the cache.
    grep -q '"from_cache": true' "$sweep/common/reference/done.json"
    ! grep -q '"from_cache": true' "$run_folder/reference/done.json" || false
}

@test "adapters: SFT is merged before DPO, whose reference is the merged model" {
    run jobs/upcycle.sh --local --run lora "$work/tiny.cfg" study.prompts= sft.training.peft_mode=lora dpo.training.peft_mode=lora {sft,dpo}.training.lora.r=4
    echo "$output"
    [ "$status" -eq 0 ]
    [ -f checkpoints/upcycle-test/lora/dpo/final/adapter_model.safetensors ]
    [ -f checkpoints/upcycle-test/lora/merge-sft/model/model.safetensors ]
}

@test "--dry-run prints every command and refuses a mistyped key before anything runs" {
    run jobs/upcycle.sh --local --dry-run --run dry "$work/tiny.cfg"
    [ "$status" -eq 0 ]
    [ "$(grep -c '^moe-' <<< "$output")" -eq 21 ]
    run jobs/upcycle.sh --local --dry-run --run dry "$work/tiny.cfg" dpo.training.dpo.bet=1
    [ "$status" -eq 2 ]
    [[ "$output" == *"training.dpo.beta"* ]]
    [ ! -e checkpoints/upcycle-test/dry ]
}
