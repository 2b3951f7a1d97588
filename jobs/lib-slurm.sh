# shellcheck shell=bash disable=SC2034,SC2154
# lib-slurm.sh: a study as Slurm jobs that wait for each other. Sourced by lib.sh.
#
# Going on with a run is the same as starting it: a stage whose record matches is left out, one whose job is still queued or running
# keeps it (linked anew when what it waits for was submitted again), all others are submitted. jobs.tsv in the run folder has every
# submission; the newest line of a stage counts.
#
# Contents: 1. site and resources  2. what is there already  3. submitting one job  4. the whole study

# ---- 1. site and resources ----

# The site file says what no study should: partition, account, modules, launcher (slurm/site/generic.sh has every name).
mb_open_site() {
    mb_site=${MB_SITE:-$(mb_get slurm.site generic)}
    local file=$mb_root/slurm/site/$mb_site.sh
    [ -f "$file" ] || mb_die "$file: no such site file; MB_SITE or slurm.site names one of $(basename -as .sh "$mb_root"/slurm/site/*.sh | tr '\n' ' ')"
    mb_site_sbatch=() mb_site_light=() mb_site_heavy=() mb_site_launcher=(srun --mpi=pmix)
    # shellcheck source=slurm/site/generic.sh
    . "$file"
    mb_find_resources
}

# Which groups say what a job asks for (mb_asking: ",warmup,slurm,"): asked once, since every key is a call of moe-config.
mb_find_resources() {
    local name override
    mb_asking=,
    ! mb_has_group slurm || mb_asking+=slurm,
    for name in $(printf '%s\n' "${mb_stages[@]}" "${mb_group[@]}" | sort -u); do
        ! mb_has_group "$name" || [ -z "$(mb_get "$name.slurm" "")" ] || mb_asking+=$name,
    done
    for override in "${mb_overrides[@]}"; do
        case $override in
        slurm.*) mb_asking+=slurm, ;;
        *.slurm.*=*) mb_asking+=${override%%.*}, ;;
        esac
    done
}

# mb_resource STAGE NAME: slurm.NAME of the stage, of its group, or of the study (which light stages do not take: they are one process).
mb_resource() {
    local stage=$1 name=$2 group value
    for group in "$stage" "${mb_group[$1]}"; do
        case $mb_asking in *",$group,"*) ;; *) continue ;; esac
        value=$(mb_get "$group.slurm.$name" "")
        if [ -n "$value" ]; then printf '%s' "$value"; return; fi
    done
    case $mb_asking:$name in
    *,slurm,*:nodes | *,slurm,*:ntasks | *,slurm,*:cpus_per_task | *,slurm,*:gpus | *,slurm,*:memory | *,slurm,*:array) mb_is_light "$stage" || mb_get "slurm.$name" "" ;;
    *,slurm,*) mb_get "slurm.$name" "" ;;
    esac
}

# Elements of the array a stage is cut into; 0: one job. A study's slurm.array counts for the stages that can be cut.
mb_shares() {
    local n=0
    [ -z "${mb_array_of[$1]:-}" ] || { printf 0; return; } # an element of an array already
    case ${mb_program[$1]} in moe-score | moe-embed | moe-teacher) n=$(mb_resource "$1" array) ;; esac # nothing else can be cut
    [[ ${n:-0} =~ ^[0-9]+$ ]] || mb_die "stage $1: slurm.array = $n: a number of elements is needed"
    printf '%s' "${n:-0}"
}

# What sbatch is asked for; sets mb_flags.
mb_resource_flags() {
    local stage=$1 name value
    mb_flags=("${mb_site_sbatch[@]}")
    if mb_is_light "$stage"; then mb_flags+=(--nodes=1 --ntasks=1 "${mb_site_light[@]}"); else mb_flags+=("${mb_site_heavy[@]}"); fi
    for name in nodes ntasks cpus_per_task gpus time partition memory; do
        value=$(mb_resource "$stage" "$name")
        [ -n "$value" ] || continue
        case $name in
        memory) mb_flags+=("--mem=$value") ;;
        gpus) [ "${mb_program[$stage]}" = moe-shard ] || mb_flags+=("--gpus-per-node=$value") ;; # nothing there computes
        *) mb_flags+=("--${name//_/-}=$value") ;;
        esac
    done
    value=$(mb_resource "$stage" extra)
    [ -z "$value" ] || eval "mb_flags+=($value)"
}

# ---- 2. what is there already ----

# Every job of ours that Slurm still has: mb_active[base id] = "STATE reason". Jobs that are just ending are waited for.
mb_read_queue() {
    local id state reason ending queue tries=0
    while :; do
        declare -gA mb_active=()
        ending=''
        queue=$(squeue -h -u "$(id -un)" -o '%F|%T|%r' 2>&1) || { [ -n "$mb_dry_run" ] && return; mb_die "Slurm does not answer (squeue: $queue); --local runs the study here" 1; }
        while IFS='|' read -r id state reason; do
            [ -n "$id" ] || continue
            [ "$state" != COMPLETING ] || ending=1
            mb_active[$id]="$state $reason"
        done <<< "$queue"
        { [ -z "$ending" ] || [ $((tries += 1)) -gt 30 ]; } && break
        sleep 1
    done
}

# Newest submission of every stage: mb_known[stage] = id, mb_known_after[stage] = ids it waits for.
mb_read_jobs() {
    declare -gA mb_known=() mb_known_after=()
    local stage job after
    [ -f "$mb_out/jobs.tsv" ] || return 0
    while IFS=$'\t' read -r _ stage job _ after _; do
        [[ $job =~ ^[0-9]+$ ]] || continue
        mb_known[$stage]=$job mb_known_after[$stage]=$after
    done < "$mb_out/jobs.tsv"
}

# Does this stage (or "stage/join") have a job that will still do something? A job that can never start is cancelled.
mb_is_active() {
    local id=${mb_known[$1]:-}
    [ -n "$id" ] && [ -n "${mb_active[$id]:-}" ] || return 1
    case ${mb_active[$id]} in
    *DependencyNeverSatisfied*) scancel "$id" 2> /dev/null || true; return 1 ;;
    COMPLETING*) return 1 ;;
    esac
}

# A stage is done when its program says so; a script, when it last ended well.
mb_is_done() {
    local stage=$1 folder
    folder=$(mb_folder "$stage")
    if [ "${mb_program[$stage]}" = script ]; then
        [ -f "$folder/attempts.tsv" ] && [ "$(awk -F '\t' '$6 == "end" {code = $7} END {print code}' "$folder/attempts.tsv")" = 0 ]
        return
    fi
    [ -f "$folder/done.json" ] || return 1
    mb_command "$stage"
    "${mb_line[@]}" --is-done > /dev/null 2>&1
}

# Elements of an array that are still to do, as sbatch wants them ("0-7", "3,17"); empty: none.
mb_missing_shares() {
    local stage=$1 n=$2 k folder missing=() started=''
    folder=$(mb_folder "$stage")
    compgen -G "$folder/done-*of$n.json" > /dev/null && started=1
    [ -n "$started" ] || { printf '0-%d' $((n - 1)); return; }
    mb_command "$stage"
    for ((k = 0; k < n; k++)); do
        [ -f "$folder/done-${k}of$n.json" ] && "${mb_line[@]}" "run.share=$k/$n" --is-done > /dev/null 2>&1 || missing+=("$k")
    done
    (IFS=,; printf '%s' "${missing[*]}")
}

# ---- 3. submitting one job ----

# mb_sbatch NAME FOLDER TEMPLATE AFTER TASKS FLAGS... -- WORDS...: submit, and write it down. NAME: stage, or stage/join. AFTER: job ids with
# commas (or names, in a dry run). TASKS: "-" or an array. Sets mb_id.
mb_sbatch() {
    local name=$1 folder=$2 template=$3 after=$4 tasks=$5 log flags command
    shift 5
    flags=(--parsable "--job-name=$mb_run_name:$name" --kill-on-invalid-dep=yes)
    if [ "$tasks" = - ]; then log=$mb_out/logs/${name//\//-}-%j.log; else log=$mb_out/logs/${name//\//-}-%A_%a.log; fi
    flags+=("--output=$log" "--chdir=$mb_root")
    while [ $# -gt 0 ] && [ "$1" != -- ]; do flags+=("$1"); shift; done
    shift
    # One job per stage and run at a time, on top of the lease; not for the elements of an array, which it would put in a row.
    if [ "$tasks" = - ]; then flags+=("--dependency=${after:+$(mb_dependency "$after"),}singleton")
    elif [ -n "$after" ]; then flags+=("--dependency=$(mb_dependency "$after")")
    fi
    flags+=("--export=ALL,MB_ROOT=$mb_root,MB_SITE=$mb_site,MB_RUN=$mb_out,MB_STAGE=$folder${mb_export:-}")
    command=(sbatch "${flags[@]}" "slurm/$template.sbatch" "$@")
    if [ -n "$mb_dry_run" ]; then
        printf '%q ' "${command[@]}"
        printf '\n'
        mb_id="<$name>"
        return
    fi
    mkdir -p "$mb_out/logs" "$folder"
    mb_try_sbatch "$name" "${command[@]}"
    [ -s "$mb_out/jobs.tsv" ] || printf 'time\tstage\tjob\ttasks\tafter\tlog\tcommand\n' > "$mb_out/jobs.tsv"
    printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$name" "$mb_id" "$tasks" "${after:--}" "$log" "$(printf '%q ' "${command[@]}")" >> "$mb_out/jobs.tsv"
    printf '%-28s job %-9s %s%s\n' "$name" "$mb_id" "$([ "$tasks" = - ] || printf 'elements %s ' "$tasks")" "${after:+after $after}"
}

# "afterok:1:2,aftercorr:3" of ids with commas: those of mb_one_by_one, arrays, are waited for element by element.
mb_dependency() {
    local id all='' each=''
    for id in ${1//,/ }; do
        case ",${mb_one_by_one:-}," in *",$id,"*) each=$each:$id ;; *) all=$all:$id ;; esac
    done
    printf '%s' "${all:+afterok$all}${all:+${each:+,}}${each:+aftercorr$each}"
}

# A busy controller is asked again; what was submitted stays, and the same command goes on from there.
mb_try_sbatch() {
    local name=$1 said pause=2
    shift
    while :; do
        if said=$("$@" 2>&1); then
            mb_id=$(tail -1 <<< "$said")
            mb_id=${mb_id%%;*}
            [[ $mb_id =~ ^[0-9]+$ ]] || mb_die "stage $name: sbatch said: $said" 1
            return
        fi
        case $said in
        *"timed out"* | *"temporarily unavailable"* | *"Unable to contact"* | *"try again"*) ;;
        *) mb_die "stage $name: sbatch refused: $said; stages submitted so far stay queued, the same command goes on from here" 1 ;;
        esac
        [ "$pause" -le 64 ] || mb_die "stage $name: $said; stages submitted so far stay queued, the same command goes on from here" 1
        sleep "$pause"
        pause=$((pause * 2))
    done
}

# ---- 4. the whole study ----

mb_submit_study() {
    local stage waited_for='' id leaves=()
    [ -n "$mb_dry_run" ] || mb_begin_submission
    declare -gA mb_job=() mb_submitted=()
    mb_read_jobs
    mb_read_queue
    for stage in "${mb_chosen[@]}"; do
        case ${mb_array_of[$stage]:-} in
        '') mb_submit_stage "$stage" ;;
        *) [ "$stage" != "$(mb_last_element "${mb_array_of[$stage]}")" ] || mb_submit_elements "${mb_array_of[$stage]}" ;;
        esac
    done
    [ -n "$mb_dry_run" ] || printf 'jobs/status.sh %s tells how it goes; the same command again goes on after a failure\n' "$mb_run_name"
    [ "$mb_part" = common ] || return 0
    for stage in "${mb_chosen[@]}"; do waited_for=$waited_for,${mb_after[$stage]}; done
    for stage in "${mb_chosen[@]}"; do
        case $waited_for, in *",$stage,"*) continue ;; esac
        id=${mb_job[$stage]}
        [ -z "$id" ] || leaves+=("$id")
    done
    printf 'jobs: %s\n' "$(IFS=,; printf '%s' "${leaves[*]:--}")"
}

# One submission of a run at a time.
mb_begin_submission() {
    mkdir -p "$mb_out"
    exec 9> "$mb_out/.submitting"
    flock -n 9 || mb_die "$mb_out: another submission of this run is under way" 1
    rm -f "$mb_out/STOP"
    mb_write_graph
}

# Ids of the jobs a stage waits for, with commas.
mb_waits_for() {
    local other ids=''
    for other in ${mb_after[$1]//,/ }; do
        [ -z "${mb_job[$other]:-}" ] || case ",$ids," in *",${mb_job[$other]},"*) ;; *) ids=$ids${ids:+,}${mb_job[$other]} ;; esac
    done
    printf '%s' "$ids"
}

# Leave out, keep or submit one stage; mb_job[stage] becomes the job later stages wait for ("" when done).
mb_submit_stage() {
    local stage=$1 after n
    after=$(mb_waits_for "$stage")
    mb_job[$stage]=''
    if [ -z "$after" ] && mb_is_done "$stage"; then
        [ -n "$mb_dry_run" ] || printf '%-28s done\n' "$stage"
        return
    fi
    n=$(mb_shares "$stage")
    if [ "$n" -gt 0 ]; then mb_submit_array "$stage" "$n" "$after"; else mb_submit_job "$stage" "$stage" "$after"; fi
    mb_job[$stage]=$mb_id
}

# The last of an array's elements that this call has.
mb_last_element() {
    local stage last=''
    for stage in "${mb_chosen[@]}"; do [ "${mb_array_of[$stage]:-}" != "$1" ] || last=$stage; done
    printf '%s' "$last"
}

# mb_submit_elements NAME: the elements of an array that are not done, as one job; each element runs the command of its own stage.
mb_submit_elements() {
    local name=$1 stage first='' after='' own todo=() numbers='' throttle file
    for stage in ${mb_elements[$name]}; do
        case " ${mb_chosen[*]} " in *" $stage "*) ;; *) continue ;; esac
        own=$(mb_waits_for "$stage")
        mb_job[$stage]=''
        if [ -z "$own" ] && mb_is_done "$stage"; then
            [ -n "$mb_dry_run" ] || printf '%-28s done\n' "$stage"
            continue
        fi
        first=${first:-$stage}
        todo+=("$stage")
        after=$after${after:+${own:+,}}$own
    done
    [ ${#todo[@]} -gt 0 ] || return 0
    after=$(tr , '\n' <<< "$after" | awk 'NF && !seen[$0]++' | paste -sd, -)
    if mb_is_active "$name"; then mb_keep_job "$name" "$after" array
    else
        for stage in "${todo[@]}"; do numbers=$numbers${numbers:+,}${mb_element_of[$stage]}; done
        mb_submitted[$name]=,$numbers,
        numbers=$(mb_ranges "$numbers")
        mb_find_one_by_one "$after" "${todo[@]}"
        throttle=$(mb_resource "$first" throttle)
        throttle=${throttle:-${mb_site_throttle:-}}
        file=$(mb_write_elements "$name" "${todo[@]}")
        mb_resource_flags "$first"
        mb_sbatch "$name" "$mb_out/arrays" element "$after" "$numbers" "--array=$numbers${throttle:+%$throttle}" "${mb_flags[@]}" -- "$file"
        mb_one_by_one=''
    fi
    for stage in "${todo[@]}"; do mb_job[$stage]=$mb_id; done
}

# Rising numbers with commas as sbatch wants them: "0,1,2,5" as "0-2,5".
mb_ranges() {
    tr , '\n' <<< "$1" | awk '
        NR > 1 && $1 == last + 1 {last = $1; next}
        NR > 1 {out = out (first == last ? first : first "-" last) ","}
        {first = last = $1}
        END {print out (first == last ? first : first "-" last)}'
}

# Sets mb_one_by_one: the ids of arrays that each of these elements waits for by its own number only, where that number was submitted.
mb_find_one_by_one() {
    local ids=$1 id stage other is_whole
    shift
    mb_one_by_one=''
    for id in ${ids//,/ }; do
        is_whole=''
        for stage in "$@"; do
            for other in ${mb_after[$stage]//,/ }; do
                [ "${mb_job[$other]:-}" = "$id" ] || continue
                [ "${mb_element_of[$other]:-}" = "${mb_element_of[$stage]}" ] || is_whole=1
            done
            case ${mb_submitted[$(mb_array_with "$id")]:-} in *",${mb_element_of[$stage]},"*) ;; *) is_whole=1 ;; esac
        done
        [ -n "$is_whole" ] || mb_one_by_one=$mb_one_by_one${mb_one_by_one:+,}$id
    done
}

# Name of the array that was submitted as this job; "none".
mb_array_with() {
    local stage
    for stage in "${!mb_job[@]}"; do
        if [ "${mb_job[$stage]}" = "$1" ] && [ -n "${mb_array_of[$stage]:-}" ]; then printf '%s' "${mb_array_of[$stage]}"; return; fi
    done
    printf none
}

# mb_write_elements NAME STAGE...: what every element runs, as slurm/element.sbatch reads it: number, folder, program, its words. Prints the file,
# named by its content: one that a queued array reads is never changed.
mb_write_elements() {
    local name=$1 stage text='' file
    shift
    for stage in "$@"; do
        mb_command "$stage"
        text+=$(printf '%s\t%s\t%s\t' "${mb_element_of[$stage]}" "$(mb_folder "$stage")" "${mb_program[$stage]}"; printf '%q ' "${mb_line[@]:1}")$'\n'
    done
    file=$mb_out/arrays/$name-$(cksum <<< "$text" | cut -d' ' -f1).tsv
    [ -n "$mb_dry_run" ] || { mkdir -p "$mb_out/arrays" && printf '%s' "$text" > "$file.$$" && mv "$file.$$" "$file"; }
    printf '%s' "$file"
}

# mb_submit_job NAME STAGE AFTER: keep the job of this name, or submit one.
mb_submit_job() {
    local name=$1 stage=$2 after=$3 template=${mb_program[$2]#moe-}
    if mb_is_active "$name"; then mb_keep_job "$name" "$after" -; return; fi
    if [ "$template" = script ]; then template='command'; fi
    mb_resource_flags "$stage"
    mb_command "$stage"
    [ "$template" = command ] || mb_line=("${mb_line[@]:1}")
    mb_sbatch "$name" "$(mb_folder "$stage")" "$template" "$after" - "${mb_flags[@]}" -- "${mb_line[@]}"
}

# The elements that are missing as one array, and a job that joins what they wrote.
mb_submit_array() {
    local stage=$1 n=$2 after=$3 missing throttle array_id=''
    if mb_is_active "$stage"; then
        mb_keep_job "$stage" "$after" array
        array_id=$mb_id
    else
        if [ -n "$after" ]; then missing=0-$((n - 1)); else missing=$(mb_missing_shares "$stage" "$n"); fi # with new input all is to do
        if [ -n "$missing" ]; then
            throttle=$(mb_resource "$stage" throttle)
            throttle=${throttle:-${mb_site_throttle:-}}
            mb_resource_flags "$stage"
            mb_command "$stage"
            mb_export=,MB_SHARES=$n
            mb_sbatch "$stage" "$(mb_folder "$stage")" "${mb_program[$stage]#moe-}" "$after" "$missing" "--array=$missing${throttle:+%$throttle}" "${mb_flags[@]}" -- "${mb_line[@]:1}"
            mb_export=''
            array_id=$mb_id
        fi
    fi
    mb_submit_job "$stage/join" "$stage" "${array_id:-$after}"
}

# mb_is_within IDS LIST: are all of these in the list?
mb_is_within() {
    local id
    for id in ${1//,/ }; do case ",$2," in *",$id,"*) ;; *) return 1 ;; esac; done
}

# mb_keep_job NAME AFTER KIND: a job that is queued or running stays; one that waits for jobs submitted anew is linked to those.
mb_keep_job() {
    local name=$1 after=$2 kind=$3 old=${mb_known_after[$1]:--} dependency line
    mb_id=${mb_known[$name]}
    if mb_is_within "$after" "$old" || [[ ${mb_active[$mb_id]} != PENDING* ]]; then # what has ended well meanwhile needs no link
        printf '%-28s job %-9s %s\n' "$name" "$mb_id" "${mb_active[$mb_id]%% *}"
        return
    fi
    dependency=${after:+afterok:${after//,/:}}
    [ "$kind" = array ] || dependency=${dependency:+$dependency,}singleton
    if [ -n "$mb_dry_run" ]; then printf 'scontrol update JobId=%s Dependency=%s\n' "$mb_id" "$dependency"; return; fi
    scontrol update "JobId=$mb_id" "Dependency=$dependency" || mb_die "stage $name: job $mb_id cannot be linked to $dependency" 1
    line=$(awk -F '\t' -v OFS='\t' -v name="$name" -v after="${after:--}" -v now="$(date -u +%Y-%m-%dT%H:%M:%SZ)" \
        '$2 == name {line = $0} END {$0 = line; $1 = now; $5 = after; print}' "$mb_out/jobs.tsv")
    printf '%s\n' "$line" >> "$mb_out/jobs.tsv"
    printf '%-28s job %-9s linked to %s\n' "$name" "$mb_id" "$dependency"
}
