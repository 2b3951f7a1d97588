# shellcheck shell=bash disable=SC2034
# lib.sh: what the study scripts share: command line, where things lie, running one stage on this machine.
# Sourced by jobs/<study>.sh; needs bash. No study's names stand here.

set -euo pipefail

# Threads that wait spin for some microseconds only, then give up their core: as fast as spinning on free cores, and not many times
# slower on shared ones.
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-10000}

mb_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mb_bin=${MB_BIN:-$mb_root/build/bin}
mb_python=${MB_PYTHON:-python3}

mb_die() { printf '%s: %s\n' "$(basename "$0")" "$1" >&2; exit "${2:-2}"; }

# mb_parse_args "$@": [--local] [--dry-run] [--run NAME] [--ranks N] study.cfg [stage.key=value ...]
# Sets mb_config, mb_run, mb_ranks, mb_dry_run, mb_overrides.
mb_parse_args() {
    mb_config='' mb_run=run1 mb_ranks=${MB_RANKS:-1} mb_dry_run='' mb_overrides=()
    while [ $# -gt 0 ]; do
        case $1 in
        --local) ;;
        --slurm) mb_die "--slurm is not available yet; run with --local (inside one sbatch job if need be)" ;;
        --dry-run) mb_dry_run=1 ;;
        --run) mb_run=${2:?--run needs a name}; shift ;;
        --ranks) mb_ranks=${2:?--ranks needs a number}; shift ;;
        -h | --help) mb_usage; exit 0 ;;
        *.cfg) mb_config=$1 ;;
        *=*) mb_overrides+=("$1") ;;
        *) mb_die "'$1' is not understood; see --help" ;;
        esac
        shift
    done
    [ -n "$mb_config" ] || mb_die "which study? give conf/study/<name>.cfg; see --help"
    [ -f "$mb_config" ] || mb_die "$mb_config: no such file"
    [ -x "$mb_bin/moe-config" ] || mb_die "$mb_bin/moe-config is not there: run make" 1
}

# mb_get KEY [DEFAULT]: a key of the study file, or of the command line.
mb_get() {
    local override
    for override in "${mb_overrides[@]}"; do
        [ "${override%%=*}" = "$1" ] && { printf '%s\n' "${override#*=}"; return; }
    done
    local value code=0
    value=$("$mb_bin/moe-config" get file="$mb_config" key="$1" 2> /dev/null) || code=$?
    # 3: the key is not there. Anything else is a broken file: let the program say so.
    if [ "$code" -eq 3 ] && [ $# -gt 1 ]; then printf '%s\n' "$2"
    elif [ "$code" -ne 0 ]; then "$mb_bin/moe-config" get file="$mb_config" key="$1"
    else printf '%s\n' "$value"
    fi
}

# mb_has_stage GROUP: does the study file have this group?
mb_has_stage() { case ",$("$mb_bin/moe-config" groups file="$mb_config")," in *",$1,"*) return 0 ;; *) return 1 ;; esac; }

# mb_stage FOLDER PROGRAM MODE GROUP key=value...: run one stage into $mb_out/FOLDER. MODE or GROUP may be "-".
# Command-line overrides "GROUP.key=value" and "FOLDER.key=value" are handed on as "key=value".
mb_stage() {
    local folder=$1 program=$2 mode=$3 group=$4 override name started code=0
    shift 4
    local words=("$mb_config")
    [ "$mode" = - ] || words=("$mode" "${words[@]}")
    { [ "$group" = - ] || ! mb_has_stage "$group"; } || words+=("stage=$group")
    words+=("$@")
    for override in "${mb_overrides[@]}"; do
        for name in "$group" "$folder"; do
            case $override in "$name".*) words+=("${override#"$name".}"); break ;; esac
        done
    done
    words+=("output.dir=$mb_out/$folder")
    if [ -n "$mb_dry_run" ]; then
        mb_dry_run_stage "$folder" "$program" "${words[@]}"
        return
    fi
    started=$SECONDS
    printf '== %s\n' "$folder"
    if [ "$mb_ranks" -gt 1 ]; then mb_mpirun "$mb_bin/$program" "${words[@]}" || code=$?; else "$mb_bin/$program" "${words[@]}" || code=$?; fi
    [ "$code" -eq 0 ] || mb_die "stage $folder ended with code $code; the command was: $program ${words[*]}" "$code"
    printf '== %s: %d s\n' "$folder" $((SECONDS - started))
}

# The exact command, and whether the configuration parses (inputs of later stages are not there yet, so nothing is run).
mb_dry_run_stage() {
    local folder=$1 program=$2
    shift 2
    printf '%s' "$program"
    printf ' %q' "$@"
    printf '\n'
    "$mb_bin/$program" "$@" --print-config > /dev/null || mb_die "stage $folder: the configuration is not right" 2
}

mb_mpirun() {
    local flags=(-np "$mb_ranks" --oversubscribe --bind-to none)
    [ "$(id -u)" -ne 0 ] || flags+=(--allow-run-as-root)
    OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(( $(nproc) / mb_ranks > 0 ? $(nproc) / mb_ranks : 1 ))} mpirun "${flags[@]}" --mca mpi_yield_when_idle 1 "$@"
}
