# shellcheck shell=bash disable=SC2034,SC2154
# lib-forecast.sh: memory, time and disk of every stage before a study is submitted, held against the site's nodes. Sourced by lib.sh.

# mb_forecast_study: a table; ends the program when a stage cannot fit.
mb_forecast_study() {
    local stage failed='' said
    mb_total_seconds=0 mb_total_kept=0 mb_most_passing=0 mb_total_files=0
    mb_forecasts=$(mktemp) mb_makers=$(mktemp)
    mb_write_makers
    for stage in "${mb_chosen[@]}"; do
        case ${mb_program[$stage]} in script | moe-convert | moe-select) continue ;; esac
        mb_forecast_stage "$stage" || failed=1
    done
    said=$(cat "$mb_forecasts")
    rm -f "$mb_forecasts" "$mb_makers"
    [ -z "$failed" ] || mb_die "the study does not fit; nothing was submitted" 2
    [ -n "$said" ] || return 0
    printf '%-24s %9s %14s %9s %9s  %s\n' forecast ranks "memory a node" time "disk" "time by"
    printf '%s\n' "$said"
    awk -v s="$mb_total_seconds" -v k="$mb_total_kept" 'BEGIN {printf "together about %.1f min of computing without queues, %.1f GiB of files that stay\n\n", s / 60, k / 2^30}'
    mb_check_disk
}

# Every stage's folder, program and words, for what later ones take from it (src/stage/forecast_makers.h).
mb_write_makers() {
    local stage
    for stage in "${mb_stages[@]}"; do
        case $mb_part:${mb_is_varied[$stage]:-}:${mb_program[$stage]} in *:script | common:1:*) continue ;; esac # no point, no folder
        mb_command "$stage"
        printf '%s\t%s' "$(mb_folder "$stage")" "${mb_program[$stage]}"
        printf '\t%s' "${mb_line[@]:1}"
        printf '\n'
    done > "$mb_makers"
}

# One stage by moe-config forecast, with the words that its program will get.
mb_forecast_stage() {
    local stage=$1 out said code=0 nodes ranks per_node threads gpus limits=()
    mb_resource_flags "$stage"
    nodes=$(mb_last_flag --nodes 1) per_node=$(mb_last_flag --ntasks-per-node '') ranks=$(mb_last_flag --ntasks '') threads=$(mb_last_flag --cpus-per-task 0)
    nodes=${nodes%%-*}
    ranks=${ranks:-$((nodes * ${per_node:-1}))}
    out=$(mktemp)
    [ "${mb_site_node_memory_gib:-0}" = 0 ] || limits+=("node_memory_gib=$mb_site_node_memory_gib")
    gpus=$(mb_job_gpus)
    [ "$gpus" = 0 ] || limits+=("gpus_per_node=$gpus")
    [ "${mb_site_gpu_memory_gib:-0}" = 0 ] || limits+=("gpu_memory_gib=$mb_site_gpu_memory_gib")
    # A stage may be restarted at its limit, but not for ever.
    [ "${mb_site_max_minutes:-0}" = 0 ] || limits+=("max_minutes=$((mb_site_max_minutes * ${mb_site_max_requeues:-20}))")
    [ -z "${mb_site_machine:-}" ] || limits+=("machine=conf/machine/$mb_site_machine.json")
    mb_command "$stage"
    said=$("$mb_bin/moe-config" forecast "program=${mb_program[$stage]}" "nodes=$nodes" "ranks=$ranks" "threads=$threads" "${limits[@]}" "makers=$mb_makers" "out=$out" -- "${mb_line[@]:1}" 2>&1) || code=$?
    if [ "$code" -eq 2 ]; then
        printf 'stage %s: %s\n' "$stage" "$(grep -o 'error: .*' <<< "$said" | head -1 | cut -d' ' -f2-)" >&2
    elif [ "$code" -eq 3 ] && [[ $said != *"cannot be forecast"* && $said != *"$mb_out/"* ]]; then # a file from outside that is not there, or cannot be read
        printf 'stage %s: %s\n' "$stage" "$(tail -1 <<< "$said" | sed "s/^moe-config: error: //")" >&2
        code=2
    elif [ "$code" -ne 0 ]; then
        printf '%-24s %9s no forecast: %s\n' "$stage" "$ranks" "$(tail -1 <<< "$said" | sed "s/^moe-config: error: //")" >> "$mb_forecasts"
        code=0
    else
        mb_add_forecast "$stage" "$ranks" "$out"
    fi
    rm -f "$out"
    return "$code"
}

# GPUs of a node that the job asks for, by mb_flags: "--gpus-per-node=a100:4"; where they are asked for in another way, all that it has.
mb_job_gpus() {
    local n
    n=$(mb_last_flag --gpus-per-node '')
    n=${n##*:}
    if [[ $n =~ ^[0-9]+$ ]]; then printf '%s' "$n"; return; fi
    case " ${mb_flags[*]} " in *" --gpus"* | *" --gres=gpu"*) printf '%s' "${mb_site_gpus_per_node:-0}" ;; *) printf 0 ;; esac
}

# The last of this flag in mb_flags counts, as for sbatch.
mb_last_flag() {
    local flag value=$2
    for flag in "${mb_flags[@]}"; do case $flag in "$1="*) value=${flag#*=} ;; esac; done
    printf '%s' "$value"
}

mb_add_forecast() {
    local stage=$1 ranks=$2 file=$3 seconds memory kept peak files measured
    seconds=$(mb_forecast_value "$file" seconds) memory=$(mb_forecast_value "$file" node_bytes) kept=$(mb_forecast_value "$file" kept_bytes)
    peak=$(mb_forecast_value "$file" peak_bytes) files=$(mb_forecast_value "$file" peak_files) measured=$(mb_forecast_value "$file" is_measured)
    awk -v stage="$stage" -v ranks="$ranks" -v s="${seconds:-0}" -v m="${memory:-0}" -v k="${kept:-0}" -v by="$measured" \
        'BEGIN {printf "%-24s %9d %10.2f GiB %5.1f min %6.2f GB  %s\n", stage, ranks, m / 2^30, s / 60, k / 1e9, by == "true" ? "earlier runs" : "rates"}' >> "$mb_forecasts"
    [ ! -e "$(mb_folder "$stage")/done.json" ] || return 0
    mb_total_seconds=$(awk -v a="$mb_total_seconds" -v b="${seconds:-0}" 'BEGIN {print a + b}')
    mb_total_kept=$(awk -v a="$mb_total_kept" -v b="${kept:-0}" 'BEGIN {printf "%.0f", a + b}')
    mb_most_passing=$(awk -v a="$mb_most_passing" -v p="${peak:-0}" -v k="${kept:-0}" 'BEGIN {printf "%.0f", (p - k > a) ? p - k : a}')
    mb_total_files=$(awk -v a="$mb_total_files" -v b="${files:-0}" 'BEGIN {printf "%.0f", a + b}')
    if [ -z "$mb_dry_run" ]; then # what the run's record is compared with
        mkdir -p "$(mb_folder "$stage")"
        cp "$file" "$(mb_folder "$stage")/forecast.json"
    fi
}

mb_forecast_value() { sed -n "s/^  \"$2\": \([^,]*\),\{0,1\}$/\1/p" "$1"; }

# Room for all that stays, and for the most that lies there meanwhile.
mb_check_disk() {
    local folder=$mb_out free inodes
    while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
    free=$(df -Pk "$folder" | awk 'NR == 2 {print $4}') inodes=$(df -Pi "$folder" 2> /dev/null | awk 'NR == 2 {print $4}')
    awk -v need="$((mb_total_kept + mb_most_passing))" -v free="$free" 'BEGIN {exit !(need > free * 1024)}' &&
        mb_die "$folder: the study needs $(((mb_total_kept + mb_most_passing) >> 30)) GiB of disk, $((free >> 20)) GiB are free; put checkpoints/ elsewhere (a link will do), or save less (training.save=delta, training.save_total_limit)" 1
    # File systems that make inodes as they go report none.
    [[ ! ${inodes:-0} =~ ^[0-9]+$ ]] || [ "${inodes:-0}" -eq 0 ] || [ "$inodes" -gt "$mb_total_files" ] || mb_die "$folder: the study makes $mb_total_files files, $inodes inodes are free" 1
}
