#!/usr/bin/env bash
# shellcheck source=jobs/records.sh
# What a run cost: queue wait, run time, nodes, core and GPU hours, tokens a second, joules, memory against the forecast, restarts.
. "$(dirname "$0")/records.sh"

usage() {
    cat <<'TEXT'
Usage: jobs/report.sh [--tsv] RUN

RUN is a run folder or <study>/<run> (below checkpoints/). Times and hours are of all attempts and submissions. They come from sacct where
it answers, else from the run's own attempts.tsv and jobs.tsv, for local runs from done.json; the first line says which.

  --tsv     one line per stage with plain numbers (seconds, bytes, hours), for scripts

Columns: WAIT from being ready (submitted, and nothing more to wait for) to the start; RUN all attempts; MEMORY by our own count, of the
largest rank; RSS by Slurm's, of the largest task; LOST time of attempts that ended at no checkpoint of their own.
TEXT
}

mode=screen run=''
while [ $# -gt 0 ]; do
    case $1 in
    --tsv) mode=tsv ;;
    -h | --help) usage; exit 0 ;;
    -*) mb_die "$1 is not understood; see --help" ;;
    *) [ -z "$run" ] || mb_die "one run at a time: $run, $1"; run=$1 ;;
    esac
    shift
done
[ -n "$run" ] || mb_die "which run? give its folder or <study>/<run>; there are: $(mb_records_list)"
mb_records_open "$run"

# A folder of several runs (seeds): one table for each.
if [ ${#mb_parts[@]} -gt 0 ]; then
    for part in "${mb_parts[@]}"; do
        if [ "$mode" = tsv ]; then "$0" --tsv "$part"; else "$0" "$part"; echo; fi
    done
    exit 0
fi

mb_records_files
mb_records_queue
mb_records_sacct "$mb_tmp/accounting" JobID,JobName,State,Submit,Eligible,Start,End,ElapsedRaw,NNodes,AllocCPUS,AllocTRES,MaxRSS,ConsumedEnergyRaw,NTasks "$(mb_records_ids)" -D || true
mb_awk report.awk MB_MODE="$mode"
