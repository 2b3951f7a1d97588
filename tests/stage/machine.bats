# moe-inspect machine, jobs/doctor.sh and node-local copies: does this machine do what runs need, and do they say so when it does not?

setup_file() {
    load common.bash
    mb_setup
}
setup() {
    load common.bash
    mb_setup
}

has() { grep -qE "$1" <<< "$output" || { echo "no line like '$1' in:"; echo "$output"; return 1; }; }
has_not() { ! grep -qE "$1" <<< "$output" || { echo "a line like '$1' in:"; echo "$output"; return 1; }; }
value() { sed -n -E "s/^ *\"$2\": ([^,]*),?$/\1/p" "$1" | head -1; } # value FILE KEY: of a JSON file, a key per line
is_positive() { awk -v x="$1" 'BEGIN {exit !(x + 0 > 0)}'; }

@test "one process: cores, memory, file system and libraries, all well" {
    run "$bin/moe-inspect" machine dir="$work" out="$work/one.json" name=here
    [ "$status" -eq 0 ]
    has '^host .*: rank 0, 1 thread on CPUs [0-9,-]+ of [0-9]+'
    has '^  memory [0-9.]+ GB, [0-9.]+ GB available'
    has 'HDF5 [0-9]+\.[0-9]+\.[0-9]+, (serial|parallel), '
    has '64 MB written and flushed at [0-9]+ MB/s, read at [0-9]+ MB/s; 200 small files in '
    has '^ok: 1 rank on 1 host'
    has '^ok: every thread has a CPU of its own'
    has "^ok: $work has locks and hard links"
    has 'broken: 0$'
    [ "$(value "$work/one.json" name)" = '"here"' ]
    is_positive "$(value "$work/one.json" disk_write_mb_per_s)"
    [ "$(value "$work/one.json" cores)" -ge 1 ]
    [ -z "$(value "$work/one.json" memory_gb_per_s)" ]
    [ -z "$(find "$work" -name 'moe-inspect.*')" ] # nothing is left behind
}

@test "four ranks see each other" {
    need_mpi
    run ranks 4 "$bin/moe-inspect" machine dir="$work" out="$work/four.json"
    [ "$status" -eq 0 ]
    has 'ranks 0-3, 4 threads'
    has '^rank 0 \(.*\) to rank 3 \(.*\): [0-9.]+ us, [0-9.]+ GB/s'
    has '^ok: 4 ranks on 1 host'
    has '^ok: ranks see each other: sum and messages are right'
    is_positive "$(value "$work/four.json" node_gb_per_s)"
    [ "$(value "$work/four.json" ranks)" = 4 ]
    [ "$(value "$work/four.json" threads)" = 4 ]
}

@test "ranks bound to one core, and more threads than cores, get a warning that says what to do" {
    need_mpi
    core=$(taskset -cp $$ | sed 's/.*: *\([0-9]*\).*/\1/')
    run ranks 4 taskset -c "$core" "$bin/moe-inspect" machine dir="$work"
    [ "$status" -eq 0 ]
    has "^warn: 4 ranks on .* run 4 threads and share 1 CPU \($core\); .*--cpu-bind=cores"
    has_not 'every thread has a CPU'
    OMP_NUM_THREADS=3 run taskset -c "$core" "$bin/moe-inspect" machine dir="$work"
    [ "$status" -eq 0 ]
    has "^warn: rank 0 on .* runs 3 threads on 1 CPU \($core\); set OMP_NUM_THREADS=1"
}

@test "ranks that a launcher left alone are found out" {
    OMPI_COMM_WORLD_SIZE=4 MB_COMM=self run "$bin/moe-inspect" machine dir="$work"
    [ "$status" -eq 1 ]
    has '^broken: the launcher started several tasks, but each is alone: .*srun --mpi=pmix'
    SLURM_STEP_NUM_TASKS=2 run "$bin/moe-inspect" machine dir="$work"
    [ "$status" -eq 1 ]
    has '^broken: .* each is alone'
}

@test "a folder that is not there, cannot be written to or is full" {
    run "$bin/moe-inspect" machine dir="$work/none"
    [ "$status" -eq 1 ]
    has "^broken: $work/none: .*No such file.*; name a folder for results with dir="
    run "$bin/moe-inspect" machine dir=/proc
    [ "$status" -eq 1 ]
    has '^broken: /proc: no folder can be made there'
    MB_TEST_FREE_BYTES=1000 run "$bin/moe-inspect" machine dir="$work"
    [ "$status" -eq 1 ]
    has '^broken: .* needs 0.13[0-9] GB, 0.000 GB are free there'
    [ -z "$(find "$work" -name 'moe-inspect.*')" ]
    if [ -w /dev/shm ] && [ "$(stat -f -c %T /dev/shm)" = tmpfs ]; then
        run "$bin/moe-inspect" machine dir=/dev/shm
        [ "$status" -eq 0 ]
        has '^warn: /dev/shm lies in memory \(tmpfs\)'
    fi
}

@test "measured rates are what the forecast reads" {
    run "$bin/moe-inspect" machine dir="$work" measure=true out="$work/rates.json" name=measured
    [ "$status" -eq 0 ]
    has '^rates of one node with 1 thread: [0-9]+ GFLOP/s f32, [0-9]+ GFLOP/s bf16, memory read at [0-9.]+ GB/s'
    for key in f32 bf16 memory_gb_per_s disk_write_mb_per_s disk_read_mb_per_s; do
        is_positive "$(value "$work/rates.json" $key)"
    done
    [ -n "$(value "$work/rates.json" date)" ]
}

@test "the plain C backend gets a warning" {
    run "$bin/moe-inspect" machine dir="$work" backend=ref
    [ "$status" -eq 0 ]
    has '^warn: plain C does the arithmetic'
}

@test "doctor.sh: well here; a launcher that fails, hangs or is of another MPI is broken" {
    need_mpi
    export MB_BIN=$bin
    run jobs/doctor.sh --dir "$work" --ranks 2
    [ "$status" -eq 0 ]
    has '^ok: bash '
    has '^ok: mpirun and programs: Open MPI|^ok: mpirun: '
    has '^---- mpirun, 2 ranks'
    has '^ok: 2 ranks on 1 host'
    has '^doctor: [0-9]+ warnings, 0 broken'
    mkdir -p "$work/fake"
    printf '#!/bin/sh\n[ "$1" = --version ] && { echo "mpirun (Open MPI) 9.9.1"; exit; }\nexit 9\n' > "$work/fake/mpirun"
    chmod +x "$work/fake/mpirun"
    PATH=$work/fake:$PATH run jobs/doctor.sh --dir "$work"
    [ "$status" -eq 1 ]
    has '^broken: programs have Open MPI .*, mpirun is Open MPI 9.9; load one MPI only'
    has '^broken: mpirun, .* ended with code 9'
    printf '#!/bin/sh\n[ "$1" = --version ] && exec /usr/bin/env PATH=%s mpirun --version\nexec sleep 60\n' "$PATH" > "$work/fake/mpirun"
    PATH=$work/fake:$PATH MB_DOCTOR_SECONDS=8 run jobs/doctor.sh --dir "$work"
    [ "$status" -eq 1 ]
    has '^broken: mpirun, .* did not end in 8 s; ranks do not reach each other'
}

@test "doctor.sh refuses what it does not understand" {
    run jobs/doctor.sh --dir "$work/none"
    [ "$status" -eq 2 ]
    has "$work/none: no such folder"
    run jobs/doctor.sh --ranks two
    [ "$status" -eq 2 ]
    run jobs/doctor.sh --no-such-option
    [ "$status" -eq 2 ]
    MB_BIN=$work/none run jobs/doctor.sh --dir "$work"
    [ "$status" -eq 1 ]
    has '^broken: .*/none/moe-inspect is not there; run make'
}

# The copy gets other bytes of the same length and time, so that it shows which of the two was read.
@test "a node-local copy that the job scripts made is read, until the original changes" {
    mkdir -p "$work/model/below"
    head -c 100000 /dev/zero > "$work/model/weights of it"
    echo '{}' > "$work/model/config.json"
    echo line > "$work/model/run.log"
    echo inner > "$work/model/below/x"
    before=$(hash_of "$work/model")
    export MB_STAGED=$work/scratch MB_STAGE_MIN_MIB=0
    bash -c 'set -euo pipefail; . slurm/lib.sh; mb_stage_in_here "$1"' stage "$work/model"
    copy=$MB_STAGED$(cd -P "$work/model" && pwd -P)
    [ -f "$copy/.complete" ]
    [ ! -e "$copy/run.log" ] && [ ! -e "$copy/below" ]
    [ "$(hash_of "$work/model")" = "$before" ]
    head -c 100000 /dev/urandom > "$copy/weights of it"
    [ "$(hash_of "$work/model")" != "$before" ] # read from the copy
    touch -d '2001-01-01' "$work/model/weights of it"
    [ "$(hash_of "$work/model")" = "$before" ] # the copy is no longer believed
    bash -c 'set -euo pipefail; . slurm/lib.sh; mb_stage_in_here "$1"' stage "$work/model"
    cmp "$work/model/weights of it" "$copy/weights of it"
    [ "$(hash_of "$work/model")" = "$before" ]
}

@test "progress is written for others to read, whatever is shown" {
    make_records > /dev/null
    MB_LOG=error "$bin/moe-shard" tokenizer dataset.inputs="a=$work/a.jsonl" tokenizer.vocab_size=300 output.dir="$work/ptok"
    MB_LOG=error "$bin/moe-shard" build dataset.inputs="a=$work/a.jsonl" dataset.max_length=96 tokenizer.path="$work/ptok" output.dir="$work/pshard"
    [ -f "$work/pshard/progress.json" ]
    [ "$(value "$work/pshard/progress.json" done)" = "$(value "$work/pshard/progress.json" total)" ]
    [ "$(value "$work/pshard/progress.json" seconds_left)" = 0.0 ]
    [ "$(value "$work/pshard/progress.json" unit)" = '"units"' ]
}
