#!/usr/bin/env bash
# doctor.sh: does this machine do what moebatch needs? Tools, versions, then `moe-inspect machine` alone, by mpirun and, inside a Slurm job,
# by the site's launcher. Prints a line per check (ok, warn, broken; the last two say what to do). Exit code 0: it works, perhaps with
# warnings; 1: something is broken; 2: bad usage.
#
# Contents: 1. command line  2. verdicts  3. tools  4. versions  5. the programs themselves
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bin=${MB_BIN:-$root/build/bin}
limit=${MB_DOCTOR_SECONDS:-120} # of one run of moe-inspect machine

usage() {
    cat << 'TEXT'
usage: jobs/doctor.sh [--ranks N] [--dir D] [--measure FILE]

  --ranks N       ranks under mpirun, outside of a Slurm job (default: 2 to 4, one per CPU)
  --dir D         folder for results: its file system is tried (default: checkpoints)
  --measure FILE  also measure speeds (some seconds) and write them to FILE, for moe-config forecast

On the nodes of a cluster: sbatch --nodes=2 --ntasks-per-node=4 slurm/doctor.sbatch [--dir D]
TEXT
}

# ---- 1. command line ----

die() { printf 'doctor.sh: %s\n' "$1" >&2; exit 2; }

ranks='' dir='' measure=''
while [ $# -gt 0 ]; do
    case $1 in
    --ranks) ranks=${2:?--ranks needs a number}; shift ;;
    --dir) dir=${2:?--dir needs a folder}; shift ;;
    --measure) measure=${2:?--measure needs a file}; shift ;;
    -h | --help) usage; exit 0 ;;
    *) die "'$1' is not understood; see --help" ;;
    esac
    shift
done
case $ranks in *[!0-9]* | 0*) die "--ranks $ranks: a number from 1" ;; esac
if [ -z "$dir" ]; then
    dir=$root/checkpoints
    [ -d "$dir" ] || dir=$root
fi
[ -d "$dir" ] || die "$dir: no such folder; make it, or name another one with --dir"

# ---- 2. verdicts ----

warnings=0 broken=0 has_controller=''
ok() { printf 'ok: %s\n' "$1"; }
warn() { printf 'warn: %s\n' "$1"; warnings=$((warnings + 1)); }
broken() { printf 'broken: %s\n' "$1"; broken=$((broken + 1)); }
has() { command -v "$1" > /dev/null 2>&1; }

# ---- 3. tools ----

check_tools() {
    if [ "${BASH_VERSINFO[0]}" -ge 4 ]; then ok "bash $BASH_VERSION"; else broken "bash $BASH_VERSION is too old; the job scripts need bash 4"; fi
    local tool missing=''
    for tool in awk sed date stat flock timeout; do has "$tool" || missing="$missing $tool"; done
    if [ -z "$missing" ]; then ok "awk, coreutils, flock"; else broken "not found:$missing; install gawk, coreutils and util-linux"; fi
    if has mpirun; then ok "mpirun: $(command -v mpirun)"
    elif has srun; then ok "no mpirun; ranks are started by srun"
    else warn "no mpirun: programs run as one process only; install Open MPI (make deps, or module load openmpi)"; fi
    check_slurm
    check_optional
}

check_slurm() {
    if ! has sbatch; then
        ok "no Slurm here: studies run with --local"
        return
    fi
    local tool missing=''
    for tool in srun squeue scontrol scancel; do has "$tool" || missing="$missing $tool"; done
    [ -z "$missing" ] || warn "sbatch is there, but not$missing; install the rest of Slurm's commands"
    # sinfo asks the controller; sbatch alone says nothing about whether it runs.
    if timeout 20 sinfo -h > /dev/null 2>&1; then
        has_controller=1
        ok "$(sbatch --version), its controller answers"
    else warn "Slurm is installed, but no controller answers (SLURM_CONF=${SLURM_CONF:-}); studies run with --local only"; fi
}

# What only reports and the project's own tests need.
check_optional() {
    local python found=''
    for python in "${MB_PYTHON:-python3}" /usr/bin/python3; do
        [ -n "$found" ] || ! "$python" -c 'import h5py, matplotlib, numpy' 2> /dev/null || found=$python
    done
    if [ -n "$found" ]; then ok "$found with h5py, numpy and matplotlib, for reports"
    else warn "no Python with h5py, numpy and matplotlib: stages run, reports do not; pip install h5py numpy matplotlib, and set MB_PYTHON"; fi
    if has bats; then ok "bats, for the tests"; else ok "no bats: make test leaves out tests of whole stages (make deps installs it)"; fi
}

# ---- 4. versions ----

# "Open MPI 4.1" of what a program or launcher says about itself; empty when it is of another kind.
open_mpi_of() { sed -n -E 's/.*Open MPI\)? *v?([0-9]+\.[0-9]+).*/Open MPI \1/p' | head -1; }

check_programs() {
    if [ ! -x "$bin/moe-inspect" ]; then
        broken "$bin/moe-inspect is not there; run make in $root, or set MB_BIN to the folder of the programs"
        return 1
    fi
    local lost
    lost=$(ldd "$bin/moe-train" "$bin/moe-inspect" 2> /dev/null | awk '/not found/ {print $1}' | sort -u | paste -sd ' ' -)
    if [ -n "$lost" ]; then
        broken "libraries of the programs are missing on $(uname -n): $lost; load the modules they were built with (mb_site_setup in slurm/site)"
        return 1
    fi
    ok "programs: $("$bin/moe-inspect" --version)"
}

# check_mpi_versions LINES: the launcher's MPI against that of the programs, which LINES of theirs name: another one starts every rank alone.
check_mpi_versions() {
    local ours theirs
    has mpirun || return 0
    ours=$(sed -n 's/.*, MPI: //p' <<< "$1")
    case $ours in none*) warn "the programs were built without MPI, and mpirun is there; run make again"; return ;; esac
    ours=$(open_mpi_of <<< "$ours")
    theirs=$(mpirun --version 2> /dev/null | open_mpi_of || true)
    if [ -z "$ours" ] && [ -z "$theirs" ]; then ok "mpirun: $(mpirun --version 2> /dev/null | head -1)"
    elif [ "$ours" = "$theirs" ]; then ok "mpirun and programs: $ours"
    else broken "programs have ${ours:-another MPI}, mpirun is ${theirs:-of another MPI}; load one MPI only, or build again with that mpicc"; fi
}

check_srun_plugin() {
    local words=" ${launcher[*]} " plugin
    [ "${launcher[0]}" = srun ] && [[ $words =~ \ --mpi=([a-z0-9_]+)\  ]] || return 0
    plugin=${BASH_REMATCH[1]}
    if timeout 20 srun --mpi=list 2>&1 | grep -qw "$plugin"; then ok "srun has --mpi=$plugin"
    else broken "srun has no --mpi=$plugin (srun --mpi=list); install Slurm's plugin for it, or set mb_site_launcher=(mpirun) in slurm/site/${MB_SITE:-generic}.sh"; fi
}

# ---- 5. the programs themselves ----

launcher=(srun --mpi=pmix)
in_job() { [ -n "${SLURM_JOB_ID:-}" ] && has "${launcher[0]}"; }

# The site's launcher and modules; threads as the job has them.
load_site() {
    local mb_site_launcher=() file=$root/slurm/site/${MB_SITE:-generic}.sh
    [ -f "$file" ] || die "$file: no such site file; MB_SITE names one of: $(basename -as .sh "$root"/slurm/site/*.sh | tr '\n' ' ')"
    # shellcheck source=slurm/site/generic.sh
    . "$file"
    [ ${#mb_site_launcher[@]} -eq 0 ] || launcher=("${mb_site_launcher[@]}")
    [ -n "${SLURM_JOB_ID:-}" ] || return 0
    set +eu # module files are not written for strict shells
    mb_site_setup
    set -eu
    export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-${OMP_NUM_THREADS:-1}}
    [ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
}

# inspect NAME COMMAND...: one run of moe-inspect machine; its verdicts count. Sets said, what it printed.
inspect() {
    local name=$1 code=0 words=(machine "dir=$dir")
    shift
    [ -z "$measure" ] || words+=("measure=true" "out=$measure")
    printf -- '---- %s\n' "$name"
    said=$(timeout --kill-after=10 "$limit" "$@" "$bin/moe-inspect" "${words[@]}" 2>&1) || code=$?
    printf '%s\n' "$said"
    warnings=$((warnings + $(grep -c '^warn: ' <<< "$said" || true)))
    if grep -q '^broken: ' <<< "$said"; then broken=$((broken + $(grep -c '^broken: ' <<< "$said")))
    elif [ "$code" -eq 124 ] || [ "$code" -eq 137 ]; then
        broken "$name did not end in $limit s; ranks do not reach each other: look for a firewall between nodes, and name the network to use (OMPI_MCA_btl_tcp_if_include, UCX_NET_DEVICES)"
    elif [ "$code" -ne 0 ]; then broken "$name ended with code $code; the lines above say why"; fi
}

by_mpirun() {
    local cpus flags
    cpus=$(nproc)
    [ -n "$ranks" ] || ranks=$((cpus < 2 ? 2 : cpus > 4 ? 4 : cpus))
    flags=(-np "$ranks")
    if mpirun --version 2> /dev/null | grep -q 'Open MPI'; then
        flags+=(--oversubscribe --bind-to none)
        [ "$(id -u)" -ne 0 ] || flags+=(--allow-run-as-root)
    fi
    OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cpus / ranks > 0 ? cpus / ranks : 1))} inspect "mpirun, $ranks ranks" mpirun "${flags[@]}"
}

run_programs() {
    local keep=$measure
    measure=''
    inspect "one process, no launcher"
    measure=$keep
    check_mpi_versions "$said"
    if in_job; then inspect "${launcher[*]}, ${SLURM_NTASKS:-1} tasks on ${SLURM_JOB_NUM_NODES:-1} nodes" "${launcher[@]}"
    elif has mpirun; then by_mpirun
    elif [ -n "$measure" ]; then inspect "one process, measured"; fi
}

load_site
check_tools
if check_programs; then
    ! in_job || check_srun_plugin
    run_programs
fi
in_job || [ -z "$has_controller" ] || printf 'on the nodes themselves: sbatch --nodes=2 --ntasks-per-node=2 slurm/doctor.sbatch\n'
printf 'doctor: %d warnings, %d broken\n' "$warnings" "$broken"
[ "$broken" -eq 0 ]
