# backend=cuda on the emulated GPU: whole programs give what backend=cpu gives, the same bits each time, after a kill and on two ranks; who gets a
# GPU and who is refused. And what study scripts and forecasts make of GPUs. Skips where the emulated programs were not built (make emulated).

setup_file() {
    load common.bash
    mb_setup
    make_records > /dev/null
    make_models > /dev/null 2>&1
    head -12 "$work/a.jsonl" > "$work/few.jsonl"
    "$bin/moe-shard" build dataset.inputs="few=$work/few.jsonl" dataset.max_length=96 tokenizer.path="$work/tok" output.dir="$work/few" > /dev/null 2>&1
}
setup() {
    load common.bash
    mb_setup
    gpu=$(dirname "$bin")/emulated/bin
}

need_emulated() { [ -x "$gpu/moe-train" ] && [ -x "$gpu/moe-infer" ] || skip "no emulated programs in $gpu (make emulated)"; }

# words BACKEND NAME key=value...: sets command, a training run.
words() {
    local backend=$1 name=$2
    shift 2
    command=("$gpu/moe-train" backend="$backend" dataset.path="$work/shard/shard.h5" training.max_steps=3 training.batch_size=2 training.gradient_accumulation_steps=2
        training.learning_rate=1e-3 training.logging_steps=1 output.dir="$work/$name" "$@")
}
train() {
    local command
    words "$@"
    "${command[@]}"
}
full() { train "$1" "$2" model.path="$work/init/model" "${@:3}"; }
losses() { grep -o '"loss": *[-0-9.e+]*' "$work/$1/metrics.jsonl" | sed 's/.*: *//'; }

# near_losses A B: of the same number of steps, and within 1e-4 of each other.
near_losses() {
    paste <(losses "$1") <(losses "$2") | awk 'NF != 2 {print "steps differ"; exit 1} {d = $1 - $2; if (d < 0) d = -d; if (d > 1e-4) {print $1, $2; exit 1} n++} END {if (n < 3) exit 1}'
}

# compare CODE: with load(run, file) = all arrays of an HDF5 file of a run, and numpy.
compare() {
    "${MB_PYTHON:-python3}" - "$work" "$1" <<'PYTHON'
import json, sys
import h5py, numpy as np
work, code = sys.argv[1:]
def load(run, file):
    out = {}
    with h5py.File(f"{work}/{run}/{file}") as f:
        f.visititems(lambda name, item: out.__setitem__(name, item[()]) if isinstance(item, h5py.Dataset) and item.dtype.kind in "fiu" else None)
    return out
def near(a, b, tolerance=1e-4):
    names = [n for n in a if a[n].dtype.kind == "f"]
    assert names and set(a) == set(b), (set(a), set(b))
    for n in names: np.testing.assert_allclose(a[n], b[n], rtol=tolerance, atol=tolerance, err_msg=n)
exec(code)
PYTHON
}

@test "training: all weights, routers alone and an adapter follow the CPU's curve" {
    need_emulated
    for backend in cpu cuda; do
        full $backend full-$backend
        train $backend warm-$backend model.path="$work/convert/model" training.objective=router_warmup
        full $backend lora-$backend training.peft_mode=lora training.lora.r=4 training.lora.target_modules=all-linear training.lora.lora_dropout=0.1
    done
    for kind in full warm lora; do near_losses $kind-cpu $kind-cuda; done
    grep -q '"backend": "cuda ' "$work/full-cuda/done.json"
    grep -q '"backend": "cpu ' "$work/full-cpu/done.json"
}

@test "training: the same bits twice, after a kill, and with a recomputed way back" {
    need_emulated
    [ -d "$work/full-cuda" ] || full cuda full-cuda
    full cuda again training.recompute=blocks
    cmp "$work/full-cuda/final/model.safetensors" "$work/again/final/model.safetensors"
    local command
    words cuda killed model.path="$work/init/model" training.save_steps=1 training.async_save=false
    "${command[@]}" &
    local pid=$!
    for _ in {1..600}; do
        [ ! -d "$work/killed/state/step_1" ] || break
        sleep 0.05
    done
    kill -9 $pid
    wait $pid || true
    [ ! -e "$work/killed/done.json" ]
    run "${command[@]}"
    echo "$output"
    [ "$status" -eq 0 ]
    [[ "$output" == *"resuming from $work/killed/state/step_"* ]]
    cmp "$work/full-cuda/final/model.safetensors" "$work/killed/final/model.safetensors"
}

@test "scores, perplexity and answers to questions are the CPU's, and the same bits whatever the tiles wait for" {
    need_emulated
    for name in cpu cuda again; do
        "$gpu/moe-score" backend=${name/again/cuda} model.path="$work/convert/model" score.source_model="$work/init/model" dataset.path="$work/few/shard.h5" \
            score.tile_tokens=256 output.dir="$work/score-$name"
    done
    compare 'near(load("score-cpu", "scores.h5"), load("score-cuda", "scores.h5"))'
    [ "$(hash_of "$work/score-cuda/scores.h5")" = "$(hash_of "$work/score-again/scores.h5")" ]
    MB_CUDA_WAIT=1 "$gpu/moe-score" backend=cuda model.path="$work/convert/model" score.source_model="$work/init/model" dataset.path="$work/few/shard.h5" \
        score.tile_tokens=256 output.dir="$work/score-wait"
    [ "$(hash_of "$work/score-cuda/scores.h5")" = "$(hash_of "$work/score-wait/scores.h5")" ]
    for i in 1 2 3; do printf '{"query": "Question: %s?\\nAnswer:", "choices": ["yes", "no", "no idea"], "gold": %s}\n' $i $((i - 1)); done > "$work/choice.jsonl"
    for backend in cpu cuda; do
        "$gpu/moe-eval" backend=$backend model.path="$work/init/model" dataset.path="$work/few/shard.h5" eval.tile_tokens=256 eval.tasks="choice=$work/choice.jsonl" \
            eval.log_samples=true output.dir="$work/eval-$backend"
    done
    compare '
import glob
near(load("eval-cpu", "eval.h5"), load("eval-cuda", "eval.h5"))
a, b = ([json.loads(line)["resps"] for line in open(glob.glob(f"{work}/eval-{backend}/samples_*.jsonl")[0])] for backend in ("cpu", "cuda"))
values = lambda rows: [float(r[0][0]) for row in rows for r in row]
assert len(values(a)) == 9
np.testing.assert_allclose(values(a), values(b), atol=1e-3)
'
}

@test "generation: the same tokens, greedy and drawn" {
    need_emulated
    printf '{"prompt": "static int "}\n{"prompt": "mb_status status = MB_OK;"}\n{"prompt": "#include"}\n' > "$work/prompts.jsonl"
    for backend in cpu cuda; do
        "$gpu/moe-infer" generate backend=$backend model.path="$work/init/model" dataset.path="$work/prompts.jsonl" generate.max_new_tokens=8 generate.ignore_eos=true \
            generate.prefill_tokens=8 output.dir="$work/greedy-$backend"
        "$gpu/moe-infer" generate backend=$backend model.path="$work/init/model" dataset.path="$work/prompts.jsonl" generate.max_new_tokens=4 generate.ignore_eos=true \
            generate.temperature=0.8 generate.num_return_sequences=2 output.dir="$work/drawn-$backend"
    done
    compare '
for kind in ("greedy", "drawn"):
    a, b = ([json.loads(line) for line in open(f"{work}/{kind}-{backend}/generated.jsonl")] for backend in ("cpu", "cuda"))
    assert len(a) == len(b) == (3 if kind == "greedy" else 6), (len(a), len(b))
    for x, y in zip(a, b):
        strip = lambda r: {k: v for k, v in r.items() if not isinstance(v, float)}
        assert strip(x) == strip(y), (x, y)
        assert all(abs(x[k] - y[k]) < 1e-3 for k in x if isinstance(x[k], float)), (x, y)
'
}

@test "embeddings: an encoder and a decoder" {
    need_emulated
    make_encoder
    for backend in cpu cuda; do
        "$gpu/moe-embed" backend=$backend model.path="$work/bert" dataset.inputs="few=$work/few.jsonl" dataset.form=text embed.tile_tokens=100 \
            output.dir="$work/encoder-$backend"
        "$gpu/moe-embed" backend=$backend model.path="$work/init/model" dataset.path="$work/few/shard.h5" embed.pooling=mean output.dir="$work/decoder-$backend"
    done
    for model in encoder decoder; do compare "near(load('$model-cpu', 'embeddings.h5'), load('$model-cuda', 'embeddings.h5'))"; done
}

@test "two ranks and one GPU: refused, taken to the CPU, or shared with equal bits" {
    need_emulated
    need_mpi
    run ranks 2 "$gpu/moe-train" backend=cuda model.path="$work/init/model" dataset.path="$work/shard/shard.h5" output.dir="$work/refused"
    [ "$status" -eq 2 ]
    [[ "$output" == *"--gpus-per-task=1"*"gpu.share=true"* ]]
    [ ! -e "$work/refused/done.json" ]
    run ranks 2 "$gpu/moe-inspect" machine dir="$work"
    [ "$status" -eq 0 ]
    [ "$(grep -c 'backend = auto takes the CPU' <<< "$output")" -eq 1 ]
    [[ "$output" == *"arithmetic: cpu "* || "$output" == *"arithmetic: ref"* ]]
    run "$gpu/moe-inspect" machine dir="$work"
    [[ "$output" == *"arithmetic: cuda "* ]]
    [ -d "$work/full-cuda" ] || full cuda full-cuda
    local command
    words cuda shared model.path="$work/init/model" gpu.share=true
    ranks 2 "${command[@]}"
    cmp "$work/full-cuda/final/model.safetensors" "$work/shared/final/model.safetensors"
}

# A library that says it is NVML: one GPU whose counter goes up by 7 J at every look.
make_nvml() {
    cat > "$work/nvml.c" <<'C'
#include <stdio.h>
#include <string.h>
static int chip;
static unsigned long long millijoules = 1000000;
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int e) { (void)e; return "an error"; }
int nvmlSystemGetDriverVersion(char *t, unsigned n) { snprintf(t, n, "570.86.15"); return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { *d = &chip; return i != 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *b, void **d) { *d = &chip; return b[0] == 0; }
int nvmlDeviceGetName(void *d, char *t, unsigned n) { (void)d; snprintf(t, n, "Fake GPU 80GB"); return 0; }
int nvmlDeviceGetPciInfo_v3(void *d, void *p) { (void)d; memset(p, 0, 68); strcpy((char *)p + 36, "00000000:C1:00.0"); return 0; }
int nvmlDeviceGetMemoryInfo(void *d, unsigned long long *m) { (void)d; m[0] = 80ULL << 30; m[1] = m[2] = 0; return 0; }
int nvmlDeviceGetTotalEnergyConsumption(void *d, unsigned long long *e) { (void)d; *e = millijoules += 7000; return 0; }
int nvmlDeviceGetPowerUsage(void *d, unsigned *p) { (void)d; *p = 65000; return 0; }
int nvmlDeviceGetEnforcedPowerLimit(void *d, unsigned *p) { (void)d; *p = 700000; return 0; }
C
    "${CC:-cc}" -shared -fPIC -o "$work/libnvml.so" "$work/nvml.c" 2> /dev/null || skip "no C compiler"
    export MB_NVML_LIBRARY=$work/libnvml.so
}

@test "joules stand in records, and moe-inspect machine lists GPUs" {
    need_emulated
    make_nvml
    full cuda energy
    grep -q '"energy_joules": 7.0*,' "$work/energy/done.json"
    grep -q '"energy_source": "nvml"' "$work/energy/done.json"
    run "$gpu/moe-inspect" machine dir="$work" out="$work/machine.json" measure=true
    echo "$output"
    [ "$status" -eq 0 ]
    [[ "$output" == *"1 x Fake GPU 80GB, 80.0 GiB each, driver 570.86.15"* ]]
    [[ "$output" == *"GPU 0: Fake GPU 80GB at 00000000:C1:00.0, 80.0 GiB, 65 W of at most 700, driver 570.86.15; energy: counted by NVML"* ]]
    [[ "$output" == *"energy of runs: counted by nvml"* ]]
    [[ "$output" == *"rates of the 1 GPU in use on one node: "*" TFLOP/s bf16, memory copied at "* ]]
    grep -q '"gpus": 1' "$work/machine.json"
    grep -q '"backend": "cuda"' "$work/machine.json"
    export MB_NVML_LIBRARY=/nonexistent MB_POWERCAP=$work/powercap
    mkdir -p "$work/powercap/intel-rapl:0"
    echo package-0 > "$work/powercap/intel-rapl:0/name"
    echo 262143328850 > "$work/powercap/intel-rapl:0/max_energy_range_uj"
    echo 5000000 > "$work/powercap/intel-rapl:0/energy_uj"
    run "$bin/moe-inspect" machine dir="$work" backend=cpu
    [[ "$output" == *"energy of runs: counted by rapl"* ]]
    MB_POWERCAP=/nonexistent run "$bin/moe-inspect" machine dir="$work" backend=cpu
    [[ "$output" == *"energy of runs: not known (/nonexistent has no counters of processors"* ]]
}

@test "forecasts tell a GPU's memory from a node's, refuse by it, and know runs on GPUs from others" {
    forecast() { "$bin/moe-config" forecast out="$work/forecast.json" program=moe-train model.path="$work/init/model" dataset.path="$work/shard/shard.h5" training.max_steps=3 "$@"; }
    field() { sed -n "s/^  \"$1\": \([^,]*\),\{0,1\}$/\1/p" "$work/forecast.json"; }
    export MB_NVML_LIBRARY=/nonexistent
    run forecast history=none ranks=4 gpus_per_node=4
    echo "$output"
    [ "$status" -eq 0 ]
    [[ "$output" == *"GiB of its GPU: "* && "$output" == *"assumed for GPUs"* ]]
    [ "$(field gpu_bytes)" -gt 600000000 ]
    forecast history=none ranks=4 gpus_per_node=2 > /dev/null # fewer GPUs than ranks: the CPU
    [ "$(field gpu_bytes)" -eq 0 ]
    forecast history=none ranks=4 gpus_per_node=2 gpu.share=true > /dev/null
    [ "$(field gpu_bytes)" -gt 600000000 ]
    forecast history=none ranks=4 gpus_per_node=4 backend=cpu > /dev/null
    [ "$(field gpu_bytes)" -eq 0 ]
    run forecast history=none backend=cuda gpu_memory_gib=0.1
    [ "$status" -eq 2 ]
    [[ "$output" == *"a GPU needs 0.6"*" GiB and has 0.1; most of it are "* ]]
    # A record that says it ran on a GPU counts there alone.
    mkdir -p "$work/past/run/train"
    [ -d "$work/past-cpu" ] || "$bin/moe-train" backend=cpu model.path="$work/init/model" dataset.path="$work/shard/shard.h5" training.max_steps=3 output.dir="$work/past-cpu"
    sed 's/"backend": "cpu [^"]*"/"backend": "cuda NVIDIA H100, 81559 MiB, sm_90"/' "$work/past-cpu/done.json" > "$work/past/run/train/done.json"
    grep -q '"backend": "cuda NVIDIA' "$work/past/run/train/done.json"
    forecast history="$work/past" backend=cuda > /dev/null
    [ "$(field is_measured)" = true ]
    forecast history="$work/past" backend=cpu > /dev/null
    [ "$(field is_measured)" = false ]
    forecast history="$work/past" gpus_per_node=1 > /dev/null
    [ "$(field is_measured)" = true ]
}

@test "slurm.gpus becomes --gpus-per-node of the stages that compute, and the GPU site's flags stand" {
    make_study gpu-test "$work/gpu.cfg"
    run jobs/select-moe.sh --slurm --dry-run --run dry "$work/gpu.cfg" slurm.gpus=a100:2 warmup.slurm.gpus=1 warmup.slurm.ntasks=1
    echo "$output"
    [ "$status" -eq 0 ]
    grep -q -- '--gpus-per-node=a100:2 .*slurm/score.sbatch' <<< "$output"
    grep -q -- '--ntasks=1 --gpus-per-node=1 .*slurm/train.sbatch.*stage=warmup' <<< "$output"
    ! grep -qE -- '--gpus-per-node.*slurm/(convert|shard).sbatch' <<< "$output"
    MB_SITE=gpu run jobs/select-moe.sh --slurm --dry-run --run dry "$work/gpu.cfg"
    [ "$status" -eq 0 ]
    grep -q -- '--gpus-per-node=4 --ntasks-per-node=4 --cpus-per-task=16 .*slurm/score.sbatch' <<< "$output"
    ! grep -q -- '--gpus.*slurm/convert.sbatch' <<< "$output"
}
