# shellcheck shell=bash disable=SC2034
# lib.sh: what happens inside a job between its start and its end. The templates (*.sbatch) beside it source it and call mb_job or
# mb_job_command, which never return. docs/cluster.md tells users what this does. Needs bash 4, coreutils, awk and Slurm's own commands.
#
# Environment, all optional: MB_ROOT (the project; default: where sbatch was called), MB_SITE (site file, default generic), MB_BIN
# (programs), MB_RUN (run folder), MB_STAGE (stage folder; default: output.dir=), MB_SHARES (an array's number of parts),
# MB_MAX_REQUEUES, MB_STAGE_IN=0 (no node-local copies).
#
# Contents: 1. start of a job  2. node-local copies of inputs  3. running and signals  4. what went wrong  5. the end, and going on
# 6. going on as a new job

# ---- 1. start of a job ----

mb_root=${MB_ROOT:-${SLURM_SUBMIT_DIR:-$PWD}}
mb_bin=${MB_BIN:-$mb_root/build/bin}
mb_arguments=("$@") # of the template

mb_note() { printf '[moebatch %s] %s\n' "$(date '+%Y-%m-%d %H:%M:%S')" "$1"; }
mb_refuse() { printf 'moebatch: %s\n' "$1" >&2; exit "${2:-2}"; }

# mb_job PROGRAM ARGUMENTS...: a program of ours, by the site's launcher.
mb_job() {
    local program=$1
    shift
    mb_open_job "$@"
    [ -x "$mb_bin/$program" ] || mb_refuse "$mb_bin/$program: no such program; run make in $mb_root first, or set MB_BIN"
    [ -z "$mb_share" ] || set -- "$@" "run.share=$mb_share"
    mb_begin "$program $*"
    mb_stage_inputs "$program" "$@"
    mb_run "${mb_site_launcher[@]}" "$mb_bin/$program" "$@"
}

# mb_job_command COMMAND ARGUMENTS...: any command, on the job's first node; steps that it starts with srun get the signals.
mb_job_command() {
    [ $# -gt 0 ] || mb_refuse "command.sbatch: say which command to run"
    mb_open_job "$@"
    mb_begin "$*"
    mb_run "$@"
}

# Site, threads, names and folders of this job.
mb_open_job() {
    [ -n "${SLURM_JOB_ID:-}" ] || mb_refuse "$0 is run by sbatch: sbatch $0 ..."
    mb_load_site
    mb_share='' mb_suffix='' mb_name=$SLURM_JOB_ID
    if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
        mb_name=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID # SLURM_JOB_ID of one of the elements is that of the whole array
        [ -z "${MB_SHARES:-}" ] || { mb_share=$SLURM_ARRAY_TASK_ID/$MB_SHARES; mb_suffix=-${SLURM_ARRAY_TASK_ID}of$MB_SHARES; }
    fi
    mb_open_environment
    mb_attempt=$((${SLURM_RESTART_COUNT:-0} + ${MB_RESUBMITTED:-0}))
    mb_max=${MB_MAX_REQUEUES:-${mb_site_max_requeues:-20}}
    mb_folder=${MB_STAGE:-}
    local word
    [ -n "$mb_folder" ] || for word in "$@"; do case $word in output.dir=*) mb_folder=${word#*=} ;; esac; done
    [ -z "$mb_folder" ] || { mkdir -p "$mb_folder" && mb_folder=$(cd "$mb_folder" && pwd); } ||
        mb_refuse "$mb_folder: cannot be made; is the file system mounted on ${SLURMD_NODENAME:-this node}, and is there space?" 1
    trap 'mb_on_signal TERM' TERM
    trap 'mb_on_signal USR2' USR2
}

# The site's facts; slurm/site/generic.sh has every name and what it means.
mb_load_site() {
    local file=$mb_root/slurm/site/${MB_SITE:-generic}.sh
    [ -f "$file" ] || mb_refuse "$file: no such site file; MB_SITE names one of: $(basename -as .sh "$mb_root"/slurm/site/*.sh | tr '\n' ' ')"
    mb_site_sbatch=() mb_site_light=() mb_site_heavy=() mb_site_launcher=(srun --mpi=pmix) mb_site_scratch='' mb_site_requeue=requeue
    # shellcheck source=slurm/site/generic.sh
    . "$file"
    declare -F mb_site_setup > /dev/null || mb_site_setup() { :; }
}

mb_open_environment() {
    # Module files are written for interactive shells; what they leave unset or return is not our failure.
    set +eu
    mb_site_setup || mb_note "mb_site_setup of the site file ended with an error; going on"
    set -eu
    export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-${OMP_NUM_THREADS:-1}} GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-10000}
    # From Slurm 22.05 on, srun does not take this over from the job.
    [ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
    # A rank that ends takes the others with it after this many seconds. Not --kill-on-bad-exit: the first of ranks that all stop with 75
    # would have the others ended at once.
    export SLURM_KILL_BAD_EXIT=0 SLURM_WAIT=${SLURM_WAIT:-8}
    # Slurm's default for barriers, the tree, can let ranks of one node out of MPI_Init while one of another is still in it; their first
    # message then kills that one (Slurm 22.05 with Open MPI 4.1 over TCP: 5 of 650 starts on busy nodes, with the ring 0 of 800).
    export SLURM_PMIX_FENCE=${SLURM_PMIX_FENCE:-ring}
    local end=${SLURM_JOB_END_TIME:-}
    [ -n "$end" ] || { end=$(squeue -h -j "$mb_name" -o %e 2> /dev/null) && end=$(date -d "$end" +%s 2> /dev/null) || end=''; }
    [ -z "$end" ] || export MB_END_TIME=$end
}

# First lines of the log, first record of the attempt, leases of jobs that are gone.
mb_begin() {
    # Our own log, from here on: what the launcher and Slurm say of ranks that ended stands there.
    mb_log=$(readlink "/proc/$$/fd/2" 2> /dev/null) || mb_log=''
    [ -f "$mb_log" ] || mb_log=''
    mb_log_start=0
    [ -z "$mb_log" ] || mb_log_start=$(stat -c %s "$mb_log")
    mb_note "job $mb_name (attempt $((mb_attempt + 1))) on ${SLURM_JOB_NODELIST:-?}, ${SLURM_NTASKS:-1} tasks x $OMP_NUM_THREADS threads${MB_END_TIME:+, until $(date -d "@$MB_END_TIME" '+%Y-%m-%d %H:%M:%S')}"
    mb_note "runs: $1"
    if [ "$mb_attempt" -gt 0 ] && mb_is_stopped; then
        mb_record start - -
        mb_finish 75 "stopped: $(mb_stop_file) is there; a new submission by jobs/*.sh removes it"
    fi
    mb_record start - -
    [ -n "$mb_folder" ] || return 0
    local lease
    for lease in "$mb_folder/lease$mb_suffix" "$mb_folder"/*/lease; do mb_clear_lease "$lease"; done
    mb_is_held_by_other || rm -f "$mb_folder/failure$mb_suffix.json"
}

mb_stop_file() {
    if [ -n "${MB_RUN:-}" ]; then printf '%s/STOP' "$MB_RUN"; elif [ -n "$mb_folder" ]; then printf '%s/STOP' "$(dirname "$mb_folder")"; fi
}
mb_is_stopped() { local file; file=$(mb_stop_file); [ -n "$file" ] && [ -e "$file" ]; }

# mb_record EVENT CODE REASON: one line of attempts.tsv.
mb_record() {
    [ -n "$mb_folder" ] && [ -d "$mb_folder" ] || return 0
    local line
    line=$(printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$mb_name" "$mb_attempt" "${SLURM_JOB_NODELIST:-}" "${SLURM_NTASKS:-1}" "$1" "$2" "${3//[$'\t\n']/ }")
    # The lock is for file systems that do not append in one piece when several nodes write; without it the line is written all the same.
    { flock -w 5 9 || true; printf '%s\n' "$line" >&9; } 9>> "$mb_folder/attempts.tsv" || mb_note "$mb_folder/attempts.tsv: could not be written"
}

# A lease of a job that the scheduler says is gone is removed; one of a job that may be running never is, and one that was taken outside
# of Slurm is for the program to judge. A job that is just ending is given a minute.
mb_clear_lease() {
    local lease=$1 text job i
    [ -f "$lease" ] || return 0
    text=$(cat "$lease" 2> /dev/null) || return 0
    job=$(mb_job_of "$text")
    [ -n "$job" ] && [ "$job" != "$mb_name" ] || return 0
    for i in {1..30}; do
        case $(mb_state_of "$job") in
        gone) break ;;
        ending) [ "$i" -lt 30 ] || return 0 ;;
        *) mb_note "$lease: job $job holds it and still runs"; return 0 ;;
        esac
        sleep 2
    done
    # Looked at again under the lock under which the programs judge leases: of two jobs none removes the other's fresh one.
    {
        flock -w 10 9 || true
        if [ "$(cat "$lease" 2> /dev/null)" = "$text" ]; then
            rm -f "$lease"
            mb_note "$lease: job $job that held it is gone; removed"
        fi
    } 9< "$(dirname "$lease")"
}

# The job that a lease's text names, elements of arrays as A_a; empty: none.
mb_job_of() {
    local element
    element=$(sed -n 's/.*"array_job": *"\([0-9][0-9]*\)".*"array_task": *"\([0-9][0-9]*\)".*/\1_\2/p' <<< "$1")
    if [ -n "$element" ]; then printf '%s' "$element"; else sed -n 's/.*"job": *"\([0-9]*\)".*/\1/p' <<< "$1"; fi
}

# mb_state_of JOB: gone, ending, there, or unknown where the scheduler does not answer.
mb_state_of() {
    local said
    if said=$(squeue -h -t all -j "$1" -o %T 2>&1); then
        case $said in
        '') echo gone ;;
        COMPLETING* | *STOPPED*) echo ending ;;
        BOOT_FAIL* | CANCELLED* | COMPLETED* | DEADLINE* | FAILED* | NODE_FAIL* | OUT_OF_MEMORY* | TIMEOUT* | PREEMPTED* | PENDING*) echo gone ;;
        *) echo there ;;
        esac
    else
        case $said in *"Invalid job id"*) echo gone ;; *) echo unknown ;; esac
    fi
}

# ---- 2. node-local copies of inputs ----

# The folders that the program reads weights from, where copying them pays: a site with scratch, more than a few MiB. Programs that read a
# model once and by one process are better off with the original.
mb_stage_inputs() {
    local program=$1 word paths=()
    shift
    [ -n "${mb_site_scratch:-}" ] && [ "${MB_STAGE_IN:-1}" != 0 ] || return 0
    case $program in moe-train | moe-score | moe-teacher | moe-eval | moe-embed | moe-infer | moe-quantize) ;; *) return 0 ;; esac
    for word in "$@"; do
        case $word in
        model.path=?* | score.source_model=?* | model.adapter=?* | fuse.foundation=?* | fuse.sft=?*) [ ! -d "${word#*=}" ] || paths+=("${word#*=}") ;;
        esac
    done
    [ ${#paths[@]} -eq 0 ] || mb_stage_in "${paths[@]}"
}

# mb_stage_in FOLDER...: copies on every node of the job, once per node however many jobs ask. Sets MB_STAGED. Never an error.
mb_stage_in() {
    # shellcheck disable=SC2016 # for the other shell
    local nodes=${SLURM_JOB_NUM_NODES:-1} here=(bash -c '. "$1/slurm/lib.sh" && shift && mb_stage_in_here "$@"' stage_in "$mb_root")
    export MB_STAGED=$mb_site_scratch/moebatch-inputs MB_STAGE_MIN_MIB=${mb_site_stage_min_mib:-8}
    # One process per node, whatever the job's own layout says.
    [ "$nodes" -eq 1 ] || here=(env -u SLURM_NTASKS_PER_NODE -u SLURM_GPUS_PER_TASK -u SLURM_TRES_PER_TASK -u SLURM_DISTRIBUTION SRUN_CPUS_PER_TASK=1
        srun --mpi=none "--nodes=$nodes" "--ntasks=$nodes" --ntasks-per-node=1 --wait=0 "${here[@]}")
    mb_wait "${here[@]}" "$@"
    [ "$mb_code" -eq 0 ] || mb_note "stage_in: ended with code $mb_code; where there is no whole copy the originals are read"
}

# mb_stage_in_here FOLDER...: the part of one node.
mb_stage_in_here() {
    local folder
    mkdir -p "$MB_STAGED" 2> /dev/null || { mb_note "stage_in $(hostname -s): $MB_STAGED cannot be made; the originals are read"; return 0; }
    for folder in "$@"; do mb_stage_folder "$folder" || true; done
}

# One folder to $MB_STAGED/<its physical path>: the layout that mb_files_staged (src/base/files.h) reads.
mb_stage_folder() (
    export LC_ALL=C
    from=$(cd -P -- "$1" 2> /dev/null && pwd -P) || exit 0
    to=$MB_STAGED$from
    say() { mb_note "stage_in $(hostname -s): $from: $1"; }
    list=$(mb_stage_list "$from") || { say "a file name that cannot be listed; the original is read"; exit 0; }
    bytes=$(awk '{n += $1} END {printf "%d", n}' <<< "$list")
    [ "$bytes" -ge $((${MB_STAGE_MIN_MIB:-8} * 1048576)) ] || exit 0
    mkdir -p "$to" || { say "$to cannot be made; the original is read"; exit 0; }
    exec 9> "$to/.lock"
    flock -w 3600 9 || { say "another job has been copying for an hour; the original is read"; exit 0; }
    wanted=$from$'\n'$list
    if [ "$(cat "$to/.complete" 2> /dev/null)" = "$wanted" ]; then say "a copy is there"; exit 0; fi
    # Whole files are renamed into place, so that a program that has an older copy mapped keeps it.
    rm -f "$to/.complete" "$to"/.part.*
    free=$(df -P -B1 "$to" | awk 'NR == 2 {print $4}')
    if [ "$free" -lt $((bytes + 67108864)) ]; then
        say "needs $((bytes / 1048576)) MiB, $MB_STAGED has $((free / 1048576)); the original is read"
        exit 0
    fi
    started=$SECONDS
    while read -r _ _ name; do
        if ! { cp -L -- "$from/$name" "$to/.part.$$" && mv -f -- "$to/.part.$$" "$to/$name"; }; then
            rm -f "$to/.part.$$"
            say "$name could not be copied; the original is read"
            exit 0
        fi
    done <<< "$list"
    [ "$(mb_stage_list "$from")" = "$list" ] || { say "it changed while it was copied; the original is read"; exit 0; }
    printf '%s\n' "$wanted" > "$to/.complete.tmp.$$" && mv -f "$to/.complete.tmp.$$" "$to/.complete"
    say "$((bytes / 1048576)) MiB copied to $to in $((SECONDS - started)) s"
)

# "<bytes> <mtime seconds> <name>" of the plain files of a folder that are results, by name.
mb_stage_list() (
    cd "$1" || exit 1
    for name in *; do
        [ -f "$name" ] || continue
        case $name in
        *$'\n'* | ' '* | *' ') exit 1 ;; # a line, and read's idea of a word
        lease* | *.log | *.tsv | *.tmp.*) continue ;;
        esac
        stat -L -c '%s %Y %n' -- "$name" || exit 1
    done | LC_ALL=C sort -k3
    [ "${PIPESTATUS[0]}" -eq 0 ]
)

# ---- 3. running and signals ----

mb_child='' mb_code=0 mb_interrupted='' mb_has_term='' mb_arranged=''

# The steps get Slurm's signals themselves. USR2 that comes to the batch shell (--signal=B:USR2@...) is handed on to them; at TERM Slurm has
# told them. Not for longer than a moment: a later attempt of the same job has the same id.
mb_on_signal() {
    mb_interrupted=1
    case $1 in
    TERM) mb_has_term=1 ;;
    USR2) [ -z "$mb_child" ] || timeout 3 scancel --quiet --signal=USR2 "$mb_name" > /dev/null 2>&1 & ;;
    esac
}

# mb_wait COMMAND...: run it beside us, so that our traps work while it runs. Sets mb_code.
mb_wait() {
    "$@" &
    mb_child=$!
    while :; do
        mb_interrupted=''
        mb_code=0
        wait "$mb_child" || mb_code=$?
        [ -n "$mb_interrupted" ] || break
        [ -z "$mb_has_term" ] || mb_at_term
    done
    mb_child=''
}

# mb_failed_at_start CODE: a node that has just come back may have something left of the same job's earlier steps; and a rank that dies by
# signal 11 before rank 0 said a word died in MPI_Init (see SLURM_PMIX_FENCE above).
mb_failed_at_start() {
    ! mb_new_log | grep -a -q -E '^srun: error: .*launch failed|aborted before step completely launched' || return 0
    [ "$1" -eq 139 ] && ! mb_new_log | grep -a -q '^moe-[a-z]*: '
}

# Run the command of the job, and end the job as its code says. A step that could not be started at all is tried under the next number.
mb_run() {
    local started=$SECONDS tries
    for tries in 1 2 3; do
        mb_wait "$@"
        if [ "$mb_code" -le 128 ] || [ -n "$mb_has_term" ] || [ "$tries" -eq 3 ]; then break; fi
        mb_failed_at_start "$mb_code" || break
        mb_note "not all ranks could be started; once more"
        [ -z "$mb_log" ] || mb_log_start=$(stat -c %s "$mb_log")
    done
    mb_note "the command ended with code $mb_code after $((SECONDS - started)) s"
    mb_end "$mb_code"
}

# ---- 4. what went wrong ----

# What the launcher wrote in this attempt.
mb_new_log() { [ -z "$mb_log" ] || tail -c +$((mb_log_start + 1)) "$mb_log" 2> /dev/null; }

# The first rank that ended badly: sets mb_cause, mb_cause_rank, mb_cause_host and, for a death by a signal, mb_cause_signal. What ended
# after the launcher began to end the others is a consequence. A killed rank counts before one that left with an error: the others of its
# step only lost their connection.
mb_find_cause() {
    local line words
    mb_cause='' mb_cause_rank='' mb_cause_host='' mb_cause_signal=''
    line=$(mb_new_log | LC_ALL=C awk '
        /First task exited|forcing job termination|Job step aborted|\*\*\* (STEP|JOB) / {is_late = 1}
        /^srun: error: .*tasks? [0-9,-]+: / {
            if ($0 ~ /: Exited with exit code/) {if (exited == "") exited = $0}
            else if (killed == "" && !is_late) {killed = $0}
        }
        /noticed that process rank/ && killed == "" {killed = $0}
        END {print killed != "" ? killed : exited}')
    [ -n "$line" ] || return 0
    if [[ $line =~ ^srun:\ error:\ ([^:]+):\ tasks?\ ([0-9]+)[0-9,-]*:\ (.*)$ ]]; then
        mb_cause_host=${BASH_REMATCH[1]} mb_cause_rank=${BASH_REMATCH[2]} words=${BASH_REMATCH[3]}
    elif [[ $line =~ process\ rank\ ([0-9]+).*\ on\ node\ ([^ ]+)\ exited\ on\ signal\ [0-9]+\ \((.*)\) ]]; then
        mb_cause_rank=${BASH_REMATCH[1]} mb_cause_host=${BASH_REMATCH[2]} words=${BASH_REMATCH[3]}
    else
        words=$line
    fi
    case $words in
    Exited*) ;;
    Killed*) mb_cause_signal=9 ;;
    Aborted*) mb_cause_signal=6 ;;
    'Segmentation fault'*) mb_cause_signal=11 ;;
    'Bus error'*) mb_cause_signal=7 ;;
    'Floating point'*) mb_cause_signal=8 ;;
    'Illegal instruction'*) mb_cause_signal=4 ;;
    Terminated*) mb_cause_signal=15 ;;
    *) mb_cause_signal='?' ;;
    esac
    mb_cause="rank $mb_cause_rank on $mb_cause_host: $words"
}

# In words for a person: what the program said last before it could not write failure.json, or mb_cause and what it most often means.
mb_explain() {
    local code=$1 said
    said=$(mb_new_log | LC_ALL=C sed -n 's/^moe-[a-z]*: error: //p' | head -1)
    if mb_new_log | grep -a -q -i -E 'oom[-_ ]kill|Out Of Memory'; then
        printf '%s: out of memory: ask for more (--mem, slurm.memory), or put fewer ranks on a node' "${mb_cause:-killed}"
    elif [ "$mb_cause_signal" = 9 ]; then
        printf '%s by signal 9, by nobody of ours: most often the node was out of memory (--mem, slurm.memory, fewer ranks per node)' "$mb_cause"
    elif [ -n "$mb_cause_signal" ]; then
        printf '%s: the program crashed; the lines before this in the log say more' "$mb_cause"
    elif [ -n "$said" ]; then
        printf '%s' "$said"
    elif [ -n "$mb_cause" ]; then
        printf '%s, without a message of its own' "$mb_cause"
    elif [ "$code" -gt 128 ]; then
        printf 'ended by signal %d' $((code - 128))
    else
        printf 'ended with code %d, without a message of its own; see the log' "$code"
    fi
}

# Nodes of this job that no longer answer, one a line: a rank that went with its node looks like one that was killed, minutes before the
# scheduler misses the node.
mb_lost_nodes() {
    [ "${SLURM_JOB_NUM_NODES:-1}" -gt 1 ] || return 0
    local answered
    answered=$(env -u SLURM_NTASKS_PER_NODE -u SLURM_GPUS_PER_TASK -u SLURM_TRES_PER_TASK SRUN_CPUS_PER_TASK=1 timeout -k 5 40 srun --overlap --mpi=none "--nodes=$SLURM_JOB_NUM_NODES" \
        "--ntasks=$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --wait=10 printenv SLURMD_NODENAME 2> /dev/null) || true
    scontrol show hostnames "$SLURM_JOB_NODELIST" | { grep -v -x -F -f <(printf '%s\n' "${answered:--}") || true; }
}

mb_json_text() {
    local s=$1
    s=${s//\\/\\\\} s=${s//\"/\\\"} s=${s//$'\n'/\\n} s=${s//$'\t'/ }
    printf '"%s"' "$(tr -d '\000-\037' <<< "$s")"
}

# mb_write_failure CODE STATUS MESSAGE: failure.json, where the program could not write it.
mb_write_failure() {
    [ -n "$mb_folder" ] && [ -d "$mb_folder" ] || return 0
    local file=$mb_folder/failure$mb_suffix.json
    # shellcheck disable=SC2015 # the last part is for both
    printf '{"code": %d, "status": %s, "message": %s, "rank": %d, "host": %s, "job": %s, "time": "%s"}\n' "$1" "$(mb_json_text "$2")" "$(mb_json_text "$3")" \
        "${mb_cause_rank:-0}" "$(mb_json_text "${mb_cause_host:-${SLURMD_NODENAME:-}}")" "$(mb_json_text "$mb_name")" "$(date -u +%Y-%m-%dT%H:%M:%SZ)" > "$file.tmp.$$" &&
        mv -f "$file.tmp.$$" "$file" || mb_note "$file: could not be written"
}

# A member of the program's own failure.json: mb_failure_says NAME; empty where there is none.
mb_failure_says() {
    local file=$mb_folder/failure$mb_suffix.json
    [ -n "$mb_folder" ] && [ -f "$file" ] || return 0
    tr '\n' ' ' < "$file" | sed -n -E 's/.*"'"$1"'": *("(([^"\\]|\\.)*)"|([0-9]+)).*/\2\4/p'
}

# ---- 5. the end, and going on ----

# The scheduler's word on this job: sets mb_job_state to running, requeued (by the scheduler itself), timeout, preempted, lost (a node of it)
# or cancelled. While a job is being ended Slurm says COMPLETING whatever the reason, and would requeue even one that its user cancelled: so
# the reason is what Slurm writes into the job's log, else the clock, and when there is none the job counts as cancelled.
mb_read_state() {
    local line='' i state='' restarts=''
    for i in 1 2 3; do
        line=$(scontrol show job -o "$mb_name" 2> /dev/null) && break
        sleep $((i * 2))
    done
    [[ ! $line =~ JobState=([A-Z_]+) ]] || state=${BASH_REMATCH[1]}
    [[ ! $line =~ Restarts=([0-9]+) ]] || restarts=${BASH_REMATCH[1]}
    if [ "${restarts:-0}" -gt "${SLURM_RESTART_COUNT:-0}" ]; then mb_job_state=requeued
    elif [ "$state" = RUNNING ] && [[ $line =~ PreemptTime=[0-9] ]]; then mb_job_state=preempted
    elif [ "$state" = RUNNING ] || { [ -z "$state" ] && [ -z "$mb_has_term" ]; }; then mb_job_state=running
    else mb_job_state=$(mb_why_ended)
    fi
}

mb_why_ended() {
    local said
    said=$(mb_new_log | LC_ALL=C grep -a -E '\*\*\* JOB [0-9]+ ON .* CANCELLED AT' | tail -1)
    case $said in
    *'TIME LIMIT'*) echo timeout ;;
    *PREEMPT*) echo preempted ;;
    *'NODE FAIL'*) echo lost ;;
    '') if [ -n "${MB_END_TIME:-}" ] && [ "$(date +%s)" -ge "$MB_END_TIME" ]; then echo timeout; else echo cancelled; fi ;;
    *) echo cancelled ;;
    esac
}

# Told to end while the command still runs. At the time limit, and where a node was lost, the way back must be open before the command has
# ended: after KillWait Slurm ends us both.
mb_at_term() {
    [ -z "$mb_arranged" ] || return 0
    mb_read_state
    case $mb_job_state in
    requeued) mb_take_back ;;
    timeout | lost)
        [ "$mb_attempt" -lt "$mb_max" ] && ! mb_is_stopped || return 0
        if [ "$mb_job_state" = lost ]; then mb_arrange "node failure"; else mb_arrange "the time limit ended it"; fi || mb_note "$mb_said" ;;
    esac
}

# Slurm has put the job back into the queue by itself.
mb_take_back() {
    local why="preempted"
    [ "$(mb_why_ended)" != lost ] || why="node failure"
    mb_arranged="requeued: $why"
    mb_record end 75 "$mb_arranged"
    mb_note "job $mb_name is $mb_arranged"
}

# mb_end CODE: what the end means. Only a stop at a checkpoint, a preemption, the time limit and a lost node make a job go on.
mb_end() {
    local code=$1 lost why
    trap '' TERM USR2 # a job that is being ended would lose what we start from here on
    [ -z "$mb_arranged" ] || mb_leave
    [ "$code" -ne 0 ] || mb_finish 0 'done'
    mb_read_state
    [ "$mb_job_state" != cancelled ] || mb_finish "$code" "cancelled"
    ! mb_is_stopped || mb_finish "$code" "stopped: $(mb_stop_file) is there"
    case $mb_job_state in
    requeued)
        mb_take_back
        mb_leave ;;
    timeout) mb_go_on "$code" "the time limit ended it" ;;
    lost) mb_go_on "$code" "node failure" ;;
    preempted) if [ "$code" -eq 75 ] || [ "$code" -gt 128 ]; then mb_go_on "$code" "preempted"; fi ;;
    esac
    if [ "$code" -eq 75 ]; then
        why="stopped at a checkpoint"
        [ -z "${MB_END_TIME:-}" ] || [ $((MB_END_TIME - $(date +%s))) -gt 240 ] || why="time limit near"
        mb_go_on "$code" "$why"
    fi
    mb_find_cause
    if [ -n "$mb_cause_signal" ] || [ "$code" -gt 128 ] || [ "$(mb_failure_says status)" = "communication failed" ]; then
        lost=$(mb_lost_nodes | paste -s -d, -) || lost=''
        [ -z "$lost" ] || mb_go_on "$code" "node failure: $lost does not answer"
    fi
    mb_fail "$code"
}

# mb_fail CODE: failed for good. The program's own message is the cause, unless all it knows is that a rank was lost.
mb_fail() {
    local code=$1 status message own
    status=$(mb_failure_says status) message=$(mb_failure_says message)
    if [ -z "$status" ] || { [ "$status" = "communication failed" ] && [ -n "$mb_cause_signal" ]; }; then
        message=$(mb_explain "$code") status='failed'
        [ -z "$mb_cause_signal" ] && [ "$code" -le 128 ] || status='killed'
        mb_is_held_by_other || mb_write_failure "$code" "$status" "$message"
    else
        # Ranks that a failing one took with it make the launcher's code 137 or so; the program's own says more.
        own=$(mb_failure_says code)
        if [ "$code" -gt 128 ] && [[ $own =~ ^[1-9][0-9]*$ ]]; then code=$own; fi
    fi
    mb_finish "$code" "failed: $message"
}

# Does another job work in the stage's folder? Then what is said there is its own.
mb_is_held_by_other() {
    local job
    [ -n "$mb_folder" ] || return 1
    job=$(cat "$mb_folder/lease$mb_suffix" 2> /dev/null) || return 1
    job=$(mb_job_of "$job")
    [ -n "$job" ] && [ "$job" != "$mb_name" ]
}

# mb_finish CODE REASON: the last record and the last line.
mb_finish() {
    trap '' TERM USR2
    mb_record end "$1" "$2"
    mb_note "job $mb_name ends with code $1: $2"
    exit "$1"
}

# mb_go_on CODE WHY: back into the queue, a bounded number of times.
mb_go_on() {
    local code=$1 why=$2
    if [ "$mb_attempt" -ge "$mb_max" ]; then
        mb_write_failure "$code" "gave up" "$why, and it was started again $mb_attempt times already (MB_MAX_REQUEUES, mb_site_max_requeues); the same submission again goes on from the last checkpoint"
        mb_finish "$code" "gave up: $why, after it was started again $mb_attempt times"
    fi
    if mb_arrange "$why"; then mb_leave; fi
    mb_read_state
    [ "$mb_job_state" != cancelled ] || mb_finish "$code" "cancelled"
    mb_write_failure "$code" "not started again" "$why, and $mb_said; the same submission again goes on from the last checkpoint"
    mb_finish "$code" "not started again: $why, and $mb_said"
}

# mb_arrange WHY: see to it that this job runs again: as itself, or where that is not allowed as a new one. Sets mb_arranged, or mb_said.
mb_arrange() {
    local why=$1 said
    trap '' TERM USR2 # Slurm ends the whole job as soon as it is requeued, and would end what we start here
    if [ "${mb_site_requeue:-requeue}" != resubmit ]; then
        if said=$(scontrol requeue "$mb_name" 2>&1); then
            mb_arranged="requeued: $why"
        else
            mb_read_state
            case $mb_job_state:$said in
            requeued:*) mb_arranged="requeued: $why" ;; # Slurm was quicker
            cancelled:* | *Unable\ to\ contact* | *timed\ out*)
                mb_said="scontrol requeue said: $said"
                return 1 ;;
            esac
        fi
    fi
    [ -n "$mb_arranged" ] || mb_resubmit "$why" || return 1
    mb_record end 75 "$mb_arranged"
    mb_note "job $mb_name is $mb_arranged"
}

# The last thing a job does that runs again. Slurm has taken it back, so that it may end now; it is given a moment to end us itself.
mb_leave() {
    case $mb_arranged in requeued*) sleep 2 ;; esac
    exit 75
}

# ---- 6. going on as a new job ----

# mb_resubmit WHY: the same job once more under a new id; jobs that wait for this one wait for the new one instead.
mb_resubmit() {
    local why=$1 said id
    mb_find_submission
    # The new job's variables are its own; of ours, sbatch and the job would take what they do not set themselves.
    said=$(mb_drop_variables; MB_RESUBMITTED=$((${MB_RESUBMITTED:-0} + 1)) "${mb_submission[@]}" 2>&1) || true
    id=$(tail -1 <<< "$said")
    id=${id%%;*}
    [[ $id =~ ^[0-9]+$ ]] || { mb_said="sbatch said: $said"; return 1; }
    mb_relink "$id"
    mb_write_submission "$id"
    mb_arranged="resubmitted as $id: $why"
}

mb_drop_variables() {
    local name
    for name in $(compgen -v | grep -E '^(SLURM|SRUN|SBATCH|PMI|PMIX|OMPI)_'); do
        case $name in SLURM_CONF | OMPI_MCA_*) ;; *) unset "$name" ;; esac
    done
    unset MB_END_TIME MB_STAGED
}

# How this job was submitted: as jobs.tsv says, else by what Slurm knows of it and the script itself. Sets mb_submission, mb_submission_line.
mb_find_submission() {
    local words word base=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}
    mb_submission=() mb_submission_line=''
    [ -z "${MB_RUN:-}" ] || [ ! -f "$MB_RUN/jobs.tsv" ] ||
        mb_submission_line=$(awk -F '\t' -v job="$base" '$3 == job {line = $0} END {print line}' "$MB_RUN/jobs.tsv")
    if [ -n "$mb_submission_line" ]; then
        # Shell-quoted by whoever wrote it: jobs/lib-slurm.sh, or we.
        eval "words=($(cut -f 7- <<< "$mb_submission_line"))"
        cd "$mb_root" || true # where it was called
    else
        mb_describe_submission
    fi
    for word in "${words[@]}"; do
        case $word in
        --dependency=*singleton*) word=--dependency=singleton ;;
        --dependency=*) continue ;; # it was met
        --array=*) word=--array=$SLURM_ARRAY_TASK_ID ;;
        esac
        mb_submission+=("$word")
    done
}

# For a template that was given to sbatch by hand. Sets words (of the caller).
mb_describe_submission() {
    local facts name flag log
    words=(sbatch --parsable "--job-name=${SLURM_JOB_NAME:-moebatch}" "--nodes=${SLURM_JOB_NUM_NODES:-1}")
    for name in partition:SLURM_JOB_PARTITION account:SLURM_JOB_ACCOUNT qos:SLURM_JOB_QOS reservation:SLURM_JOB_RESERVATION ntasks:SLURM_NTASKS \
        ntasks-per-node:SLURM_NTASKS_PER_NODE cpus-per-task:SLURM_CPUS_PER_TASK mem:SLURM_MEM_PER_NODE mem-per-cpu:SLURM_MEM_PER_CPU gpus:SLURM_GPUS \
        gpus-per-node:SLURM_GPUS_PER_NODE gpus-per-task:SLURM_GPUS_PER_TASK; do
        flag=${name%%:*} name=${name#*:}
        [ -z "${!name:-}" ] || words+=("--$flag=${!name}")
    done
    facts=$(scontrol show job -o "$mb_name" 2> /dev/null) || facts=''
    [[ ! $facts =~ TimeLimit=([0-9:-]+) ]] || words+=("--time=${BASH_REMATCH[1]}")
    [[ ! $facts =~ Features=([^ ]+) ]] || [ "${BASH_REMATCH[1]}" = "(null)" ] || words+=("--constraint=${BASH_REMATCH[1]}")
    [[ ! $facts =~ TresPerNode=(gres:)?([^ ]+) ]] || words+=("--gres=${BASH_REMATCH[2]}")
    if [[ $facts =~ StdOut=([^ ]+) ]]; then
        log=${BASH_REMATCH[1]}
        if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then log=${log//"$mb_name"/%A_%a}; else log=${log//"$SLURM_JOB_ID"/%j}; fi
        words+=("--output=$log")
    fi
    [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || words+=("--array=$SLURM_ARRAY_TASK_ID")
    words+=("$0" "${mb_arguments[@]}")
}

# mb_relink NEW: what waits for this job waits for NEW. An element of an array is replaced by NEW and those of its fellows that still run.
mb_relink() {
    local new=$1 job dependency
    while IFS='|' read -r job dependency; do
        dependency=$(mb_new_dependency "$new" "$dependency")
        [ -n "$dependency" ] || continue
        case $dependency in *aftercorr*) job=${job}_$SLURM_ARRAY_TASK_ID dependency=${dependency//aftercorr/afterok} ;; esac
        if scontrol update "JobId=$job" "Dependency=$dependency"; then mb_note "job $job now waits for $dependency"
        else mb_note "job $job could not be made to wait for $dependency"; fi
    done < <(squeue -h -u "$(id -un)" -t PENDING -o '%F|%E' | sort -u)
}

# mb_new_dependency NEW OLD: OLD (as squeue says it) with this job replaced; empty when it is not in it.
mb_new_dependency() {
    local new=$1 part kind out='' found='' old others
    while read -r -d, part; do
        part=${part%%(*}
        kind=${part%%:*} old=${part#*:}
        case $old in
        "$mb_name") part=$kind:$new found=1 ;;
        "${SLURM_ARRAY_JOB_ID:-none}" | "${SLURM_ARRAY_JOB_ID:-none}_*")
            found=1 part=$kind:$new
            others=''
            [ "$kind" = aftercorr ] || others=$(squeue -h -r -j "$SLURM_ARRAY_JOB_ID" -o %i 2> /dev/null | grep -v -x -F "$mb_name" | paste -s -d: -)
            [ -z "$others" ] || part=$part:$others ;;
        esac
        out=$out${out:+,}$part
    done <<< "$2,"
    [ -z "$found" ] || printf '%s' "$out"
}

# mb_write_submission NEW: a line of jobs.tsv like ours, for the new job.
mb_write_submission() {
    [ -n "$mb_submission_line" ] || return 0
    local stage log
    stage=$(cut -f 2 <<< "$mb_submission_line") log=$(cut -f 6 <<< "$mb_submission_line")
    printf '%s\t%s\t%s\t%s\t-\t%s\t%s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$stage" "$1" "${SLURM_ARRAY_TASK_ID:--}" "$log" "$(printf '%q ' "${mb_submission[@]}")" >> "$MB_RUN/jobs.tsv"
}
