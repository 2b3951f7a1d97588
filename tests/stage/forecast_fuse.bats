# moe-config forecast of fused models: beside what programs plan of the open model, use and write; of models and data that earlier stages of a
# study will make; and what is refused.

setup_file() {
    load common.bash
    mb_setup
    make_dialogs > /dev/null
    make_target_config
    {
        "$bin/moe-shard" tokenizer dataset.inputs="text=$work/text.jsonl" tokenizer.vocab_size=384 output.dir="$work/tok"
        "$bin/moe-shard" build dataset.inputs="code=$work/code.jsonl,talk=$work/talk.jsonl" dataset.template=tulu dataset.max_length=128 dataset.validation=6 tokenizer.path="$work/tok" output.dir="$work/shard"
        for name in foundation sft; do
            "$bin/moe-convert" init convert.config="$work/target.json" convert.seed="${#name}" tokenizer.path="$work/tok" output.dir="$work/$name"
        done
        "$bin/moe-train" model.path="$work/foundation/model" dataset.path="$work/shard/shard.h5" training.peft_mode=lora training.lora.r=4 training.max_steps=1 output.dir="$work/adapted"
        train token fuse.router_type=token_level training.validation_path="$work/shard/validation.h5" training.validation_steps=2
        train layer fuse.router_type=layer_level
    } > "$work/setup.log" 2>&1 || { cat "$work/setup.log" >&2; return 1; }
}
setup() {
    load common.bash
    mb_setup
}

# train_words NAME key=value...: a router's training.
train_words() {
    printf '%s\n' training.objective=btm fuse.foundation="$work/foundation/model" fuse.sft="$work/sft/model" dataset.path="$work/shard/shard.h5" training.batch_size=4 \
        training.gradient_accumulation_steps=2 training.max_steps=3 fuse.router_hidden=16 output.dir="$work/$1" "${@:2}"
}
train() {
    local words
    mapfile -t words < <(train_words "$@")
    "$bin/moe-train" "${words[@]}"
}
# student_words NAME key=value...: a student's.
student_words() {
    printf '%s\n' training.objective=distil model.path="$work/foundation/model" dataset.path="$work/shard/shard.h5" training.batch_size=4 training.gradient_accumulation_steps=2 \
        training.max_steps=2 output.dir="$work/$1" "${@:2}"
}
teacher_words() {
    printf '%s\n' dataset.path="$work/shard/shard.h5" teacher.k=16 teacher.tile_tokens=512 output.dir="$work/$1" "${@:2}"
}

forecast() { "$bin/moe-config" forecast history=none out="$work/out.json" threads=1 "$@" > "$work/forecast.log" 2>&1 || { cat "$work/forecast.log"; return 1; }; }

# field NAME [FILE]: a member of the JSON, parts with dots.
field() {
    "${MB_PYTHON:-python3}" -c 'import functools, json, sys
value = functools.reduce(lambda a, b: a[b], sys.argv[1].split("."), json.load(open(sys.argv[2], encoding="utf-8")))
print(value if isinstance(value, (str, bool)) else f"{value:.10g}")' "$1" "${2:-$work/out.json}"
}
near() { # near A B SHARE: within a share of B
    awk -v a="$1" -v b="$2" -v s="$3" 'BEGIN { d = a - b; if (d < 0) d = -d; if (b == 0 || d > s * b) { print a " is not within " s " of " b; exit 1 } }'
}
# as_planned PROGRAM WORDS...: every kind is what the program says of the open model before it runs.
as_planned() {
    local program=$1 kinds=(weights trained optimiser gradients activations)
    shift
    "$bin/$program" --dry-run "$@" > "$work/dry.log" 2>&1 || { cat "$work/dry.log"; return 1; }
    forecast program="$program" -- "$@"
    [ "$program" = moe-train ] || kinds=(weights activations)
    for kind in "${kinds[@]}"; do
        said=$(sed -n "s/.*memory forecast per rank.*[,:] $kind \([0-9.]*\).*/\1/p" "$work/dry.log")
        echo "$kind ${said:-0} MiB, $(field "memory.$kind") bytes"
        awk -v a="${said:-0}" -v b="$(field "memory.$kind")" 'BEGIN { d = a - b / 1048576; exit !(d < 0.051 && d > -0.051) }'
    done
}
# as_used FILE: what the run of this forecast then used. Activations are those of the longest micro-batch there could be, and of rows that are all
# targets.
as_used() {
    "${MB_PYTHON:-python3}" - "$work/out.json" "$1" <<'PYTHON'
import json, sys
memory, used = json.load(open(sys.argv[1]))["memory"], json.load(open(sys.argv[2]))["results"]
for kind in ("weights", "trained", "optimiser", "gradients", "activations"):
    if f"memory_{kind}_used" not in used:
        continue
    a, b = memory[kind], used[f"memory_{kind}_used"]
    print(f"{kind}: forecast {a}, used {b}")
    assert b <= 1.02 * a + 1 and b >= (0.4 if kind == "activations" else 0.95) * a, kind
PYTHON
}

@test "routers' training: memory by kind as of the open model, and as used; files; tokens and steps" {
    local words case
    for case in fuse.router_type=token_level fuse.router_type=layer_level "fuse.router_type=layer_level model.dtype=bf16 training.recompute=blocks" \
        "fuse.router_type=layer_level model.quantize=int8" "fuse.router_type=token_level fuse.sft=$work/foundation/model fuse.sft_adapter=$work/adapted/final" \
        "fuse.router_type=layer_level training.zero=2" "fuse.router_type=token_level training.validation_path=$work/shard/validation.h5 training.batch_size=1" \
        "fuse.router_type=layer_level fuse.more=third=$work/foundation/model" "fuse.foundation= fuse.sft= fuse.router=$work/layer/best_or_final"; do
        echo "$case"
        # shellcheck disable=SC2086
        mapfile -t words < <(train_words case ${case//best_or_final/final})
        as_planned moe-train "${words[@]}"
    done
    for case in token layer; do
        mapfile -t words < <(train_words $case fuse.router_type=${case}_level training.validation_path="$([ $case = layer ] || echo "$work/shard/validation.h5")" training.validation_steps=2)
        forecast program=moe-train -- "${words[@]}"
        as_used "$work/$case/done.json"
        [ "$(field tokens)" = "$(field results.tokens "$work/$case/done.json")" ]
        [ "$(field steps)" = "$(field results.steps "$work/$case/done.json")" ]
        near "$(field files.routers.bytes)" "$(du -cbL "$work/$case/final" | tail -n 1 | cut -f1)" 0.25
        [ "$(field trained)" = "$("${MB_PYTHON:-python3}" -c 'import json, struct, sys
file = open(sys.argv[1], "rb")
shapes = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
print(sum(t["data_offsets"][1] - t["data_offsets"][0] for n, t in shapes.items() if n != "__metadata__") // 4)' "$work/$case/final/router.safetensors")" ]
    done
    near "$(wc -c < "$work/token/best_router/router.safetensors")" "$(wc -c < "$work/token/final/router.safetensors")" 0.01
}

@test "the teacher of every kind: memory as of the open model and as used; the size of its file" {
    local words case name
    for name in ensemble token layer sft; do
        case $name in
        ensemble) case="fuse.foundation=$work/foundation/model fuse.sft=$work/sft/model" ;;
        token) case=model.path=$work/token/best_router ;;
        layer) case=fuse.router=$work/layer/final ;;
        sft) case=model.path=$work/sft/model ;;
        esac
        echo "$case"
        # shellcheck disable=SC2086
        mapfile -t words < <(teacher_words "teacher-$name" $case)
        as_planned moe-teacher "${words[@]}"
        "$bin/moe-teacher" "${words[@]}" 2> /dev/null
        as_used "$work/teacher-$name/done.json"
        # As if every token were a target; here the answers' alone are.
        near "$(awk -v f="$(field "files.teacher's file.bytes")" -v t="$(field tokens)" -v r="$(field results.rows "$work/teacher-$name/done.json")" 'BEGIN { print f * r / t }')" \
            "$(stat -c %s "$work/teacher-$name/teacher.h5")" 0.2
        eval "flops_$name=$(field flops)"
    done
    awk -v e="$flops_ensemble" -v t="$flops_token" -v l="$flops_layer" -v s="$flops_sft" 'BEGIN { exit !(e == 2 * s && t > e && l > t && l < 2 * e) }'
}

@test "a student: its teacher beside it, or its rows; more operations with the teacher" {
    local words case
    mapfile -t words < <(student_words stored teacher.store="$work/stored.h5")
    run "$bin/moe-teacher" dataset.path="$work/shard/shard.h5" model.path="$work/token/best_router" teacher.k=16 output.dir="$work/kept"
    [ "$status" -eq 0 ]
    mapfile -t words < <(student_words stored teacher.store="$work/kept/teacher.h5")
    as_planned moe-train "${words[@]}"
    stored=$(field flops)
    for case in "teacher.path=$work/token/best_router" "teacher.path=$work/layer/final model.dtype=bf16" "fuse.foundation=$work/foundation/model fuse.sft=$work/sft/model" \
        "model.path= training.student_init=sft fuse.router=$work/layer/final" "teacher.path=$work/sft/model teacher.quantize=int8 training.peft_mode=lora training.lora.r=4"; do
        echo "$case"
        # shellcheck disable=SC2086
        mapfile -t words < <(student_words online $case)
        as_planned moe-train "${words[@]}"
        [[ $case == *lora* ]] || awk -v a="$(field flops)" -v b="$stored" 'BEGIN { exit !(a > 1.25 * b) }'
    done
    mapfile -t words < <(student_words online teacher.path="$work/layer/final")
    "$bin/moe-train" "${words[@]}" > /dev/null 2>&1
    forecast program=moe-train -- "${words[@]}"
    as_used "$work/online/done.json"
}

# own_pages PROGRAM WORDS...: the most of its own pages, in bytes.
own_pages() {
    "${MB_PYTHON:-python3}" -c 'import re, subprocess, sys, time
process, peak = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL), 0
while process.poll() is None:
    try:
        peak = max(peak, sum(1024 * int(n) for n in re.findall(r"(?:RssAnon|RssShmem):\s+(\d+)", open(f"/proc/{process.pid}/status").read())))
    except OSError:
        pass
    time.sleep(0.002)
assert process.returncode == 0, process.returncode
print(peak)' "$@"
}

@test "evaluation and generation: weights, keys and values of all members; a process stays below it" {
    [[ ${LSAN_OPTIONS:-}${ASAN_OPTIONS:-} != *detect* ]] || skip "a sanitizer's own memory"
    local words=(eval.categories="code=$work/code.jsonl,talk=$work/talk.jsonl" eval.template=tulu eval.max_new_tokens=8 eval.max_length=128 tokenizer.path="$work/tok") name case
    forecast program=moe-eval -- "${words[@]}" model.path="$work/sft/model" output.dir="$work/e"
    one_cache=$(field "memory.keys and values") one_weights=$(field memory.weights) one_flops=$(field flops)
    [ "$(field records)" = 140 ]
    for name in ensemble token layer; do
        case $name in
        ensemble) case=("fuse.foundation=$work/foundation/model" "fuse.sft=$work/sft/model") ;;
        token) case=("model.path=$work/token/best_router") ;;
        layer) case=("model.path=$work/layer/final") ;;
        esac
        forecast program=moe-eval -- "${words[@]}" "${case[@]}" output.dir="$work/eval-$name"
        [ "$(field "memory.keys and values")" = "$((2 * one_cache))" ]
        awk -v a="$(field memory.weights)" -v b="$one_weights" 'BEGIN { exit !(a >= 2 * b && a < 2.6 * b) }'
        awk -v a="$(field flops)" -v b="$one_flops" 'BEGIN { exit !(a >= 2 * b && a < 3 * b) }'
        used=$(own_pages "$bin/moe-eval" "${words[@]}" "${case[@]}" output.dir="$work/eval-$name" threads=1)
        echo "$name: forecast $(field rank_bytes), used $used"
        awk -v a="$(field rank_bytes)" -v b="$used" 'BEGIN { exit !(b < 1.1 * a && b > 0.1 * a) }'
        forecast program=moe-infer -- "${case[@]}" dataset.path="$work/prompts.jsonl" output.dir="$work/infer"
        both=$(field "memory.keys and values")
        forecast program=moe-infer ranks=2 -- "${case[@]}" dataset.path="$work/prompts.jsonl" output.dir="$work/infer" fuse.members_on=ranks
        [ "$both" = "$((2 * $(field "memory.keys and values")))" ]
    done
}

# A study's list of stages, none of which has run: folder, program, words.
make_list() {
    local at=/nowhere/run
    {
        printf '%s\t' $at/tokenizer moe-shard tokenizer dataset.inputs="text=$work/text.jsonl" tokenizer.vocab_size=384
        printf 'output.dir=%s\n' $at/tokenizer
        printf '%s\t' $at/shard moe-shard build dataset.inputs="code=$work/code.jsonl,talk=$work/talk.jsonl" dataset.template=tulu dataset.max_length=128 dataset.validation=6 tokenizer.path=$at/tokenizer
        printf 'output.dir=%s\n' $at/shard
        for name in foundation sft; do
            printf '%s\t' $at/$name moe-convert init convert.config="$work/target.json" tokenizer.path=$at/tokenizer
            printf 'output.dir=%s\n' $at/$name
        done
        printf '%s\t' $at/adapted moe-train model.path=$at/foundation/model training.peft_mode=lora training.lora.r=4 dataset.path=$at/shard/shard.h5
        printf 'output.dir=%s\n' $at/adapted
        for name in token layer; do
            printf '%s\t' $at/$name moe-train training.objective=btm fuse.foundation=$at/foundation/model fuse.sft=$at/sft/model fuse.router_type=${name}_level fuse.router_hidden=16 dataset.path=$at/shard/shard.h5
            printf 'output.dir=%s\n' $at/$name
        done
        printf '%s\t' $at/distil moe-train training.objective=distil training.student_init=sft teacher.path=$at/layer/best_router dataset.path=$at/shard/shard.h5
        printf 'output.dir=%s\n' $at/distil
        printf '%s\t' $at/scores moe-score model.path=$at/sft/model
        printf 'output.dir=%s\n' $at/scores
        printf '%s\t' $at/loop moe-train model.path=$at/loop/final
        printf 'output.dir=%s\n' $at/loop
    } > "$work/makers.tsv"
}

@test "models and data that earlier stages make are those that are there then" {
    make_list
    local here=("$work") there=(makers="$work/makers.tsv") case
    # NAME of a stage, PROGRAM, words with @ for the run's folder: the same memory and records
    same() {
        local program=$1 word now=() later=()
        shift
        for word in "$@"; do now+=("${word//@/$work}") later+=("${word//@//nowhere/run}"); done
        forecast program="$program" -- "${now[@]}" output.dir="$work/now"
        for kind in weights trained gradients; do eval "was_$kind=$(field memory.$kind)"; done
        local records
        records=$(field records)
        forecast program="$program" "${there[@]}" -- "${later[@]}" output.dir=/nowhere/run/later
        for kind in weights trained gradients; do
            echo "$program $*: $kind $(field memory.$kind)"
            eval "[ \"\$was_$kind\" = \"\$(field memory.$kind)\" ]"
        done
        [ "$records" = "$(field records)" ]
    }
    same moe-train training.objective=btm fuse.foundation=@/foundation/model fuse.sft=@/sft/model fuse.router_type=token_level dataset.path=@/shard/shard.h5
    same moe-train training.objective=btm fuse.foundation=@/foundation/model fuse.sft=@/foundation/model fuse.sft_adapter=@/adapted/final dataset.path=@/shard/shard.h5
    same moe-teacher model.path=@/token/final dataset.path=@/shard/shard.h5
    same moe-teacher fuse.router=@/layer/final dataset.path=@/shard/validation.h5
    same moe-train training.objective=distil training.student_init=sft teacher.path=@/layer/final dataset.path=@/shard/shard.h5
    same moe-eval model.path=@/layer/final dataset.path=@/shard/validation.h5
    same moe-eval model.path=@/foundation/model model.adapter=@/adapted/final dataset.path=@/shard/shard.h5
    forecast program=moe-eval "${there[@]}" -- model.path=/nowhere/run/distil/final dataset.path=/nowhere/run/shard/shard.h5
    forecast program=moe-eval -- compare compare.inputs="a=/nowhere/a,b=/nowhere/b" output.dir=/nowhere/run/compare
}

@test "what is not known, and what is wrong" {
    make_list
    refused() { # refused STATUS TEXT WORDS...
        run "$bin/moe-config" forecast history=none threads=1 makers="$work/makers.tsv" "${@:3}"
        echo "$output"
        [ "$status" -eq "$1" ] && [[ $output == *"$2"* ]]
    }
    refused 3 "/nowhere/run/scores/final cannot be forecast: what stage scores will make of its model is not known" program=moe-eval -- model.path=/nowhere/run/scores/final
    refused 2 "does one wait for itself" program=moe-eval -- model.path=/nowhere/run/loop/final
    refused 2 "/nowhere/else is not there" program=moe-train -- training.objective=btm fuse.foundation=/nowhere/else fuse.sft="$work/sft/model"
    refused 2 "fuse.sft is missing" program=moe-teacher -- fuse.foundation="$work/foundation/model"
    refused 2 "and $work/sft/model/config.json is an ordinary one" program=moe-train -- training.objective=btm model.path="$work/sft/model"
    refused 2 "a fused model's router trains with training.objective=btm" program=moe-train -- model.path="$work/layer/final"
    refused 2 "takes no fused models" program=moe-embed -- model.path="$work/layer/final"
    refused 2 "does not go with a fused model" program=moe-train -- training.objective=btm fuse.foundation="$work/foundation/model" fuse.sft="$work/sft/model" training.zero=3
    sed 's/"num_hidden_layers": 2/"num_hidden_layers": 3/' "$work/target.json" > "$work/deep.json"
    mkdir -p "$work/deep" && cp "$work/deep.json" "$work/deep/config.json"
    refused 3 "has num_hidden_layers 2, sft (sft) has 3" program=moe-train -- training.objective=btm fuse.foundation="$work/foundation/model" fuse.sft="$work/deep"
    printf 'no tabs\n' > "$work/broken.tsv"
    refused 3 "a line is folder, program and words" program=moe-eval makers="$work/broken.tsv" -- model.path=/nowhere/run/x
}
