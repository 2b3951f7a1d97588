#!/usr/bin/env bash
# shellcheck source=jobs/records.sh
# What a run is doing: every stage, element and sweep point, why jobs wait, why they failed, and what to do next.
. "$(dirname "$0")/records.sh"

usage() {
    cat <<'TEXT'
Usage: jobs/status.sh [--brief | --json] RUN

RUN is a run folder or <study>/<run> (below checkpoints/); of a sweep also one point of it (RUN/point_003). Works from the
run's own files and one squeue; sacct is asked only about jobs that squeue has forgotten. Without Slurm it tells of
local runs.

  --brief   one line
  --json    one object for scripts

Exit codes: 0 all done, 1 something failed, 2 bad usage, 75 not finished yet.
TEXT
}

mode=screen run=''
while [ $# -gt 0 ]; do
    case $1 in
    --brief) mode=brief ;;
    --json) mode=json ;;
    -h | --help) usage; exit 0 ;;
    -*) mb_die "$1 is not understood; see --help" ;;
    *) [ -z "$run" ] || mb_die "one run at a time: $run, $1"; run=$1 ;;
    esac
    shift
done
[ -n "$run" ] || mb_die "which run? give its folder or <study>/<run>; there are: $(mb_records_list)"
mb_records_open "$run"

# A folder of several runs (seeds): one line for each.
status_of_parts() {
    local part code worst=0 flag=--brief
    [ "$mode" != json ] || flag=--json
    for part in "${mb_parts[@]}"; do
        code=0
        "$0" "$flag" "$part" || code=$?
        case $code in 0) ;; 75) [ "$worst" -eq 1 ] || worst=75 ;; *) worst=1 ;; esac
    done
    exit "$worst"
}
[ ${#mb_parts[@]} -eq 0 ] || status_of_parts

mb_records_files
mb_records_queue
missing=$(mb_awk "judge.awk status.awk" MB_MODE=missing | sed 's/_.*//' | sort -un | paste -sd, -)
mb_records_sacct "$mb_tmp/accounting" JobID,JobName,State,ExitCode,NodeList "$missing" -X || true
mb_awk "judge.awk status.awk" MB_MODE="$mode"
