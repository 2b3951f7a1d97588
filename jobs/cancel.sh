#!/usr/bin/env bash
# shellcheck source=jobs/records.sh
# Stop a run: nothing of it is requeued any more, its jobs are cancelled, a local run stops at its next checkpoint.
. "$(dirname "$0")/records.sh"

usage() {
    cat <<'TEXT'
Usage: jobs/cancel.sh [--gently] [--dry-run] RUN

RUN is a run folder or <study>/<run> (below checkpoints/). Writes RUN/STOP, so that nothing of the run goes back into the queue, cancels its
queued and running jobs (programs get TERM and write a checkpoint as far as the site's KillWait lets them), and tells a local run of this host
to stop at a checkpoint. Only jobs that still carry this run's name are touched. Submitting the run again removes STOP and goes on.

  --gently   running jobs are told to stop at a checkpoint and end by themselves, however long that takes; only queued ones are cancelled
  --dry-run  only say what would be done

Exit codes: 0 done (or nothing was active), 1 something could not be cancelled, 2 bad usage.
TEXT
}

gently='' dry_run='' run=''
while [ $# -gt 0 ]; do
    case $1 in
    --gently) gently=1 ;;
    --dry-run) dry_run=1 ;;
    -h | --help) usage; exit 0 ;;
    -*) mb_die "$1 is not understood; see --help" ;;
    *) [ -z "$run" ] || mb_die "one run at a time: $run, $1"; run=$1 ;;
    esac
    shift
done
[ -n "$run" ] || mb_die "which run? give its folder or <study>/<run>; there are: $(mb_records_list)"
mb_records_open "$run"
[ -z "$mb_only" ] || mb_die "$run is a part of a sweep: give the sweep's own folder, or scancel the element that jobs/status.sh shows"
code=0 acted=''

# act WORDS COMMAND...: say it, do it, and say how it went.
act() {
    local words=$1 said
    shift
    acted=1
    if [ -n "$dry_run" ]; then printf 'would: %s\n' "$words"; return; fi
    if said=$("$@" 2>&1); then printf '%s\n' "$words"
    else printf '%s: failed: %s\n' "$words" "$said"; code=1; fi
}

# First of all, so that what ends now is not requeued.
write_stop() {
    [ -z "$dry_run" ] || { printf 'would: write %s/STOP\n' "$1"; return; }
    printf '%s by %s on %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$(id -un)" "$(uname -n)" > "$1/STOP" || mb_die "$1/STOP cannot be written; nothing was cancelled" 1
}

cancel_jobs() {
    local how job stage state where
    while IFS=$'\t' read -r how job stage state where; do
        case $how in
        cancel) act "$stage: job $job ($state$where) cancelled" scancel "$job" ;;
        withdraw) act "$stage: job $job ($state) cancelled" scancel --state=PENDING "$job" ;;
        signal) act "$stage: job $job ($state$where) told to stop at a checkpoint" scancel --signal=USR2 --state=RUNNING "$job" ;;
        stranger) printf 'job %s of jobs.tsv is another job now (%s): left alone\n' "$job" "$stage" ;;
        esac
    done < <(mb_awk "judge.awk cancel.awk" MB_MODE=jobs MB_GENTLY="$gently")
}

# Leases whose holder lives on this host, in no job.
signal_local() {
    local pid stage
    while IFS=$'\t' read -r pid stage; do act "$stage: process $pid on this host told to stop at a checkpoint" kill -USR2 "$pid"; done < <(mb_awk "judge.awk cancel.awk" MB_MODE=leases)
    while IFS=$'\t' read -r pid stage; do printf '%s: %s holds the lease: run this there\n' "$stage" "$pid"; code=1; done < <(mb_awk "judge.awk cancel.awk" MB_MODE=elsewhere)
}

if [ ${#mb_parts[@]} -gt 0 ]; then
    for part in "${mb_parts[@]}"; do
        printf '%s\n' "${part##*/}:"
        "$0" ${gently:+--gently} ${dry_run:+--dry-run} "$part" || code=$?
    done
    exit "$code"
fi

write_stop "$mb_folder"
mb_records_files
mb_records_queue
case $mb_slurm in
yes | none) ;;
*) printf 'Slurm does not answer (%s): its jobs were not cancelled; STOP keeps them from being requeued\n' "$mb_slurm"; code=1 ;;
esac
cancel_jobs
signal_local
if [ -z "$acted" ]; then printf 'nothing of %s is queued or running\n' "$mb_name"; fi
[ -n "$dry_run" ] || printf 'STOP is written: nothing is requeued; the same submission again goes on from the last checkpoint\n'
exit "$code"
