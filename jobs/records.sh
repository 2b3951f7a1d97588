# shellcheck shell=bash disable=SC2034
# records.sh: what status.sh, report.sh and cancel.sh share: which run is meant, which jobs it has, what Slurm says of them.
# One call of squeue (and, where its answer is not enough, one of sacct) per command, however many jobs there are. Nothing here
# changes anything. Needs bash 4, coreutils, find, awk.

set -euo pipefail

mb_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

mb_die() { printf '%s: %s\n' "$(basename "$0")" "$1" >&2; exit "${2:-2}"; }

# mb_records_open RUN: RUN is a folder or <study>/<run>. Sets mb_folder (absolute), mb_name (as a user would name it), and mb_only (one part
# of a sweep, "common" or "point_003", when RUN is its folder), mb_parts (folders of runs below it, such as seeds, when it is no run itself), and makes mb_tmp, which
# is removed at the end.
mb_records_open() {
    local run=${1%/}
    if [ -d "$run" ]; then mb_folder=$(cd "$run" && pwd)
    elif [ -d "$mb_root/checkpoints/$run" ]; then mb_folder=$(cd "$mb_root/checkpoints/$run" && pwd)
    else mb_die "$run: no such run; there are: $(mb_records_list)"
    fi
    mb_only=''
    case ${mb_folder##*/} in
    common | point_*) [ ! -f "$mb_folder/../study.tsv" ] || { mb_only=${mb_folder##*/}; mb_folder=${mb_folder%/*}; } ;;
    esac
    mb_name=${mb_folder#"$mb_root/checkpoints/"}
    mb_is_run || mb_die "$run: no run lies here (no study.tsv, jobs.tsv or stage folder); there are: $(mb_records_list)"
    mb_parts=()
    if [ ! -e "$mb_folder/study.tsv" ] && [ ! -e "$mb_folder/jobs.tsv" ] && [ ! -e "$mb_folder/points.tsv" ]; then
        local file
        for file in "$mb_folder"/*/study.tsv; do [ ! -e "$file" ] || mb_parts+=("${file%/study.tsv}"); done
    fi
    mb_tmp=$(mktemp -d)
    trap 'rm -rf "$mb_tmp"' EXIT
}

mb_is_run() {
    local file
    for file in "$mb_folder"/{study.tsv,jobs.tsv,points.tsv} "$mb_folder"/*/{study.tsv,done.json,lease,run.log,attempts.tsv}; do
        [ ! -e "$file" ] || return 0
    done
    return 1
}

mb_records_list() {
    local runs
    runs=$(cd "$mb_root/checkpoints" 2> /dev/null && find . -mindepth 2 -maxdepth 4 \( -name study.tsv -o -name jobs.tsv \) -printf '%h\n' | sed 's|^\./||' | sort -u | head -20 | tr '\n' ' ')
    printf '%s' "${runs:-none}"
}

# The small files of every stage, "path<TAB>time<TAB>bytes", and whose jobs these are.
mb_records_files() {
    find -L "$mb_folder" -maxdepth 3 \( -name 'done*.json' -o -name 'progress*.json' -o -name 'failure*.json' -o -name 'lease*' -o -name attempts.tsv -o -name run.log -o \
        -name index.html -o -name STOP -o -name study.tsv -o -name jobs.tsv -o -name points.tsv \) -type f -printf '%P\t%T@\t%s\n' 2> /dev/null > "$mb_tmp/files" || true
    find -L "$mb_folder" -mindepth 1 -maxdepth 2 -type d -printf '%P\n' 2> /dev/null | LC_ALL=C sort > "$mb_tmp/folders" || true
}

# Every job id of the run's jobs.tsv (and of the runs below it), with commas.
mb_records_ids() {
    find -L "$mb_folder" -maxdepth 2 -name jobs.tsv -type f -exec cat {} + 2> /dev/null | awk -F '\t' '$3 ~ /^[0-9]+$/ && !seen[$3]++ {printf "%s%s", n++ ? "," : "", $3}'
}

# mb_records_queue: one squeue for all jobs, one line per array element, also those that ended some minutes ago. Sets mb_slurm to yes, no
# (not installed) or why it does not answer.
mb_records_queue() {
    local ids code=0
    ids=$(mb_records_ids)
    : > "$mb_tmp/queue"
    mb_slurm=none
    [ -n "$ids" ] || return 0
    command -v squeue > /dev/null || { mb_slurm='squeue is not installed here'; return 0; }
    mb_slurm=yes
    env -u SQUEUE_PARTITION -u SQUEUE_USERS -u SQUEUE_ACCOUNT -u SQUEUE_NAMES -u SQUEUE_QOS -u SQUEUE_LICENSES SLURM_TIME_FORMAT=standard timeout 30 \
        squeue -h -r -t all -j "$ids" -o $'%i\t%A\t%T\t%r\t%S\t%N\t%E\t%u\t%j' > "$mb_tmp/queue" 2> "$mb_tmp/queue.error" || code=$?
    # That a job is no longer known is an answer.
    if [ "$code" -ne 0 ] && ! grep -q -i 'invalid job id' "$mb_tmp/queue.error"; then
        mb_slurm=$(head -1 "$mb_tmp/queue.error")
        mb_slurm=${mb_slurm:-squeue ended with code $code}
    fi
}

# mb_records_sacct OUT FIELDS IDS FLAG...: sacct's answer, or an empty file where it has none.
mb_records_sacct() {
    local out=$1 fields=$2 ids=$3
    shift 3
    : > "$out"
    { [ -n "$ids" ] && command -v sacct > /dev/null; } || return 1
    SLURM_TIME_FORMAT=standard timeout 60 sacct -n -P --delimiter=$'\t' -j "$ids" -o "$fields" "$@" > "$out" 2> "$mb_tmp/sacct.error" || { : > "$out"; return 1; }
    [ -s "$out" ]
}

# mb_awk "PROGRAM.awk ..." NAME=VALUE...: our awk programs over this run. Values go by the environment, where backslashes stay what they are.
mb_awk() {
    local program programs=(-f "$mb_root/jobs/records.awk")
    for program in $1; do programs+=(-f "$mb_root/jobs/$program"); done
    shift
    env "$@" LC_ALL=C MB_FOLDER="$mb_folder" MB_NAME="$mb_name" MB_ONLY="$mb_only" MB_TMP="$mb_tmp" MB_SLURM="${mb_slurm:-none}" MB_NOW="$(date +%s)" \
        MB_TODAY="$(date +%Y-%m-%dT%H:%M:%S)" MB_HOST="$(uname -n)" MB_BOOT="$(cat /proc/sys/kernel/random/boot_id 2> /dev/null)" \
        awk "${programs[@]}"
}
