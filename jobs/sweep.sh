#!/usr/bin/env bash
# shellcheck source=jobs/lib.sh
# A study at many settings: the stages that no swept key touches run once, the others once per point, and a table says which point is best.
# The study's own script knows its stages (--part common, --part point --point N); here are the points, what of them is done, and the jobs.
#
# Contents: 1. command line  2. the points  3. what is known of this sweep  4. checks  5. what is done  6. running here  7. Slurm jobs  8. main
. "$(dirname "$0")/lib.sh"
# shellcheck source=jobs/lib-slurm.sh
. "$mb_root/jobs/lib-slurm.sh"

mb_usage() {
    cat <<'TEXT'
Usage: jobs/sweep.sh [--local | --slurm] [--run NAME] [options] conf/study/<name>.cfg stage.key=v1,v2,... [stage.key=value ...]

A key with commas is swept: every combination is a point, the first key changes slowest. Stages that no swept key touches run once, in
checkpoints/<study>/<run>/common; the others in point_000, point_001, ... of the same folder. points.tsv has the numbers, sweep.txt the result.

  --local            everything here, point after point; a point that fails does not stop the others
  --slurm            common stages as jobs, one array over the points, one job for the table (the default where a Slurm answers)
  --run NAME         name of the sweep (sweep1); its points can never change
  --resume           only points that are not done; the lists need not be given again
  --points 3,10-17   only these
  --throttle N       at most N points of the array at a time
  --random N         N points drawn from all combinations; --seed S draws others (0)
  --table FILE       the points themselves: a line of keys, then a line of values per point, with tabs between
  --set KEY=a,b      one value that holds commas, not swept
  --metric NAME      what the table is sorted by (default: perplexity or accuracy of the evaluation, else the final loss)
  --ranks N          with --local: MPI ranks of every stage that can use them
  --dry-run          check everything and print the exact commands only

What the job of a point asks for: points.slurm.time=2:00:00, points.slurm.ntasks=4 and the like, else the study's slurm.*.
Exit code: 0 every point done or submitted, 1 a point failed (--local), 2 bad usage, 75 stopped, run again with --resume.
TEXT
}

# ---- 1. command line ----

# Sets mb_mode, mb_config, mb_run, mb_dry_run, mb_overrides (unswept), and the sweep_* below.
sweep_parse_args() {
    mb_mode='' mb_config='' mb_run=sweep1 mb_ranks=${MB_RANKS:-} mb_dry_run='' mb_overrides=() mb_part='' mb_point='' mb_vary=()
    sweep_keys=() sweep_lists=() sweep_table='' sweep_draws='' sweep_seed=0 sweep_chosen='' sweep_throttle='' sweep_is_resumed='' sweep_metric=''
    while [ $# -gt 0 ]; do
        case $1 in
        --local) mb_mode=local ;;
        --slurm) mb_mode=slurm ;;
        --dry-run) mb_dry_run=1 ;;
        --resume) sweep_is_resumed=1 ;;
        -h | --help) mb_usage; exit 0 ;;
        --run | --ranks | --points | --throttle | --random | --seed | --table | --set | --metric)
            [ $# -gt 1 ] || mb_die "$1 needs a value; see --help"
            sweep_option "$1" "$2"
            shift ;;
        *.cfg) mb_config=$1 ;;
        *=*,*) sweep_add_key "${1%%=*}" "${1#*=}" ;;
        *=*) mb_overrides+=("$1") ;;
        *) mb_die "'$1' is not understood; see --help" ;;
        esac
        shift
    done
    mb_check_args
    sweep_check_args
}

sweep_option() {
    case $1 in
    --points | --table | --metric | --set | --run) ;;
    *) [[ $2 =~ ^[0-9]{1,9}$ ]] || mb_die "$1 $2: a number is needed" ;;
    esac
    case $1 in
    --run) mb_run=$2 ;;
    --ranks) mb_ranks=$2 ;;
    --points) sweep_chosen=$2 ;;
    --throttle) sweep_throttle=$2 ;;
    --random) sweep_draws=$2 ;;
    --seed) sweep_seed=$2 ;;
    --table) sweep_table=$2 ;;
    --metric) sweep_metric=$2 ;;
    --set) [[ $2 == *=* ]] || mb_die "--set $2: key=value is needed"; mb_overrides+=("$2") ;;
    esac
}

sweep_add_key() {
    local key
    for key in "${sweep_keys[@]}"; do [ "$key" != "$1" ] || mb_die "$1 is swept twice"; done
    case ,$2, in *,,*) mb_die "$1=$2: an empty value in the list" ;; esac
    sweep_keys+=("$1")
    sweep_lists+=("$2")
}

sweep_check_args() {
    local i key override
    [ -z "$sweep_table" ] || [ ${#sweep_keys[@]} -eq 0 ] || mb_die "either --table or lists of values, not both"
    [ -z "$sweep_table" ] || [ -f "$sweep_table" ] || mb_die "$sweep_table: no such file"
    [ "$sweep_throttle" != 0 ] || mb_die "--throttle 0: at least one point at a time"
    for i in "${!sweep_keys[@]}"; do
        key=${sweep_keys[i]}
        for override in "${mb_overrides[@]}"; do
            [ "${override%%=*}" != "$key" ] || mb_die "$key is swept (${sweep_lists[i]}) and set to one value"
        done
    done
}

# ---- 2. the points ----
# sweep_keys and sweep_rows: the values of point i, with tabs between.

# The points of the command line, or those the sweep had when it was submitted.
sweep_make_points() {
    local grid
    sweep_rows=()
    if [ -n "$sweep_table" ]; then sweep_read_table "$sweep_table" ''
    elif [ ${#sweep_keys[@]} -gt 0 ]; then
        grid=$(sweep_grid_size)
        [ "$grid" -gt 0 ] || mb_die "the lists have too many combinations"
        if [ -n "$sweep_draws" ] && [ "$sweep_draws" -lt "$grid" ]; then sweep_draw "$grid" sweep_grid_row
        else
            [ "$grid" -le 100000 ] || mb_die "$grid points: that is more than 100000; --random N draws some of them"
            local i
            for ((i = 0; i < grid; i++)); do sweep_grid_row "$i"; sweep_rows+=("$sweep_row"); done
        fi
    elif [ -f "$mb_out/points.tsv" ]; then sweep_read_table "$mb_out/points.tsv" 1
    else mb_die "nothing to sweep: give a key several values with commas between them, or --table FILE"
    fi
    [ ${#sweep_rows[@]} -gt 0 ] || mb_die "no point to run"
    if [ -n "$sweep_table" ] && [ -n "$sweep_draws" ] && [ "$sweep_draws" -lt ${#sweep_rows[@]} ]; then
        local given=("${sweep_rows[@]}")
        sweep_table_row() { sweep_row=${given[$1]}; }
        sweep_rows=()
        sweep_draw ${#given[@]} sweep_table_row
    fi
}

# Number of combinations; 0 when they do not fit in 31 bits.
sweep_grid_size() {
    local list values n=1
    for list in "${sweep_lists[@]}"; do
        IFS=, read -r -a values <<< "$list"
        [ -z "$(printf '%s\n' "${values[@]}" | sort | uniq -d)" ] || mb_die "$list: a value stands there twice"
        n=$((n * ${#values[@]}))
        [ "$n" -lt 2147483648 ] || { echo 0; return; }
    done
    echo "$n"
}

# sweep_grid_row I: sets sweep_row to combination I, the first key slowest.
sweep_grid_row() {
    local rest=$1 k values
    sweep_row=''
    for ((k = ${#sweep_lists[@]} - 1; k >= 0; k--)); do
        IFS=, read -r -a values <<< "${sweep_lists[k]}"
        sweep_row=${values[rest % ${#values[@]}]}${sweep_row:+$'\t'$sweep_row}
        rest=$((rest / ${#values[@]}))
    done
}

# sweep_draw SIZE ROW: sweep_draws different rows of SIZE, by a generator of our own (xorshift, 32 bits): awk's and bash's differ by version.
sweep_draw() {
    local size=$1 row=$2 x i tries=0
    declare -A drawn=()
    x=$(((sweep_seed * 2654435761 + 2654435769) & 0xffffffff))
    [ "$x" -ne 0 ] || x=1
    while [ ${#sweep_rows[@]} -lt "$sweep_draws" ]; do
        x=$((x ^ (x << 13 & 0xffffffff))) x=$((x ^ x >> 17)) x=$((x ^ (x << 5 & 0xffffffff)))
        [ $((tries += 1)) -gt 16 ] || continue # neighbouring seeds start alike
        i=$((x % size))
        [ -z "${drawn[$i]:-}" ] || continue
        drawn[$i]=1
        "$row" "$i"
        sweep_rows+=("$sweep_row")
    done
}

# sweep_read_table FILE IS_NUMBERED: keys and rows of a TSV file; points.tsv has a first column with the number.
sweep_read_table() {
    local file=$1 is_numbered=$2 line at=0 cells
    while IFS= read -r line || [ -n "$line" ]; do
        at=$((at + 1)) line=${line%$'\r'}
        [ -n "$line" ] || continue
        [ -z "$is_numbered" ] || line=${line#*$'\t'}
        IFS=$'\t' read -r -a cells <<< "$line"
        case $'\t'$line$'\t' in *$'\t\t'*) mb_die "$file, line $at: an empty cell" ;; esac
        if [ ${#sweep_keys[@]} -eq 0 ]; then sweep_keys=("${cells[@]}")
        elif [ ${#cells[@]} -ne ${#sweep_keys[@]} ]; then mb_die "$file, line $at: ${#cells[@]} values for ${#sweep_keys[@]} keys"
        else sweep_rows+=("$line")
        fi
    done < "$file"
    for line in "${sweep_keys[@]}"; do
        [[ $line =~ ^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+$ ]] || mb_die "$file: '$line' in the first line is no key like finetune.training.learning_rate"
    done
    line=$(printf '%s\n' "${sweep_rows[@]}" | sort | uniq -d | head -1)
    [ -z "$line" ] || mb_die "$file: two points are the same: $line"
}

# sweep_words ROW: sets sweep_line to key=value words.
sweep_words() {
    local values k
    IFS=$'\t' read -r -a values <<< "$1"
    sweep_line=()
    for k in "${!sweep_keys[@]}"; do sweep_line+=("${sweep_keys[k]}=${values[k]}"); done
}

# Numbers of --points, or all: sets sweep_numbers.
sweep_choose_points() {
    local part last=$((${#sweep_rows[@]} - 1)) from to i
    sweep_numbers=()
    if [ -z "$sweep_chosen" ]; then sweep_numbers=("${!sweep_rows[@]}"); return; fi
    for part in ${sweep_chosen//,/ }; do
        [[ $part =~ ^([0-9]{1,6})(-([0-9]{1,6}))?$ ]] || mb_die "--points $sweep_chosen: numbers and ranges like 3,10-17 are needed"
        from=$((10#${BASH_REMATCH[1]})) to=$((10#${BASH_REMATCH[3]:-${BASH_REMATCH[1]}}))
        if [ "$from" -gt "$to" ] || [ "$to" -gt "$last" ]; then mb_die "--points $part: the points are 0 to $last"; fi
        for ((i = from; i <= to; i++)); do sweep_numbers+=("$i"); done
    done
    mapfile -t sweep_numbers < <(printf '%s\n' "${sweep_numbers[@]}" | sort -nu)
}

# ---- 3. what is known of this sweep ----

sweep_point_table() {
    local i
    printf 'point'
    printf '\t%s' "${sweep_keys[@]}"
    printf '\n'
    for i in "${!sweep_rows[@]}"; do printf '%d\t%s\n' "$i" "${sweep_rows[i]}"; done
}

# A point's number names its folder, so the points of a sweep never change.
sweep_check_table() {
    local file=$mb_out/points.tsv
    if [ ! -f "$file" ]; then
        [ -z "$sweep_is_resumed" ] || mb_die "$mb_out: no sweep there to go on with"
        [ ! -f "$mb_out/study.tsv" ] || mb_die "$mb_study/$mb_run is a run of its own, not a sweep; give --run another name"
        return 0
    fi
    cmp -s <(sweep_point_table) "$file" && return
    local had
    had="$(($(wc -l < "$file") - 1)) over $(head -1 "$file" | cut -f 2- | tr '\t' ' ')"
    mb_die "$mb_study/$mb_run is a sweep already, with other points ($had; now ${#sweep_rows[@]} over ${sweep_keys[*]}). Give --run another name, or leave the lists out to go on with that one"
}

sweep_setting() { [ ! -f "$mb_out/sweep.tsv" ] || awk -F '\t' -v name="$1" '$1 == name {print substr($0, length(name) + 2)}' "$mb_out/sweep.tsv"; }

# Overrides of the last time, for a --resume without any.
sweep_recall() {
    [ -n "$sweep_is_resumed" ] && [ ${#mb_overrides[@]} -eq 0 ] && [ ${#sweep_keys[@]} -eq 0 ] || return 0
    mapfile -t mb_overrides < <(sweep_setting override)
    [ -n "$sweep_metric" ] || sweep_metric=$(sweep_setting metric)
}

# When the settings of the stages last changed; what ran before may not match them.
sweep_read_change() {
    sweep_changed=$(sweep_setting changed)
    if [ -z "$sweep_changed" ] || [ "$(sweep_setting settings)" != "$sweep_print" ]; then sweep_changed=$(date +%s); fi
}

sweep_write_record() {
    mkdir -p "$mb_out"
    exec 8> "$mb_out/.sweeping"
    flock -n 8 || mb_die "$mb_out: this sweep is being run or submitted by another command" 1
    [ -f "$mb_out/points.tsv" ] || { sweep_point_table > "$mb_out/points.tsv.$$" && mv "$mb_out/points.tsv.$$" "$mb_out/points.tsv"; }
    {
        printf '%s\t%s\n' script "$sweep_script" config "$mb_config" last "$sweep_last" metric "$sweep_metric" settings "$sweep_print" changed "$sweep_changed"
        [ ${#mb_overrides[@]} -eq 0 ] || printf 'override\t%s\n' "${mb_overrides[@]}"
    } > "$mb_out/sweep.tsv.$$"
    mv "$mb_out/sweep.tsv.$$" "$mb_out/sweep.tsv"
}

# The study's script wrote the graph of its stages, and its own command; the points and the table belong to it too.
sweep_write_graph() {
    [ -f "$mb_out/study.tsv" ] || printf 'stage\tprogram\tafter\ttasks\n' > "$mb_out/study.tsv"
    {
        awk -F '\t' '$1 != "points" && $1 != "summary"' "$mb_out/study.tsv"
        printf 'points\tsweep\t%s\t%d\nsummary\tscript\tpoints\t0\n' "$(sweep_stages "$sweep_common" | paste -sd, | sed 's/^$/-/')" ${#sweep_rows[@]}
    } > "$mb_out/study.tsv.$$"
    mv "$mb_out/study.tsv.$$" "$mb_out/study.tsv"
    { printf '%q ' jobs/sweep.sh "--$mb_mode" --resume --run "$mb_run" ${mb_ranks:+--ranks "$mb_ranks"} "$mb_config" && echo; } > "$mb_out/command"
}

# ---- 4. checks ----
# Every key is parsed and checked by itself, so all points parse when every value of every key does. The study's script is asked for the
# commands of the first point; a key whose other value changes only that word of them needs no more than its program's word per value.
# A key that the script itself reads (a seed, the name of a score) changes more: then the script is asked for each of its values.

# sweep_study WORDS...: the study's script with this sweep's settings; --part and the rest follow.
sweep_study() {
    "$mb_root/jobs/$sweep_script.sh" --run "$mb_run" --vary "${sweep_keys[*]}" ${mb_ranks:+--ranks "$mb_ranks"} "$@" "$mb_config" "${sweep_given[@]}"
}

# sweep_ask ROW: the commands of a point with these values, as if it were point 0; empty and said why when they are not right.
sweep_ask() {
    sweep_words "$1"
    sweep_study --local --dry-run --part point --point 0 "${sweep_line[@]}" 2> "$sweep_temporary/error"
}

sweep_refuse() { mb_die "$(sweep_describe "$1"): $(sweep_error)"; }

# What a refused command said first.
sweep_error() { grep -m 1 -i 'error:' "$sweep_temporary/error" || head -1 "$sweep_temporary/error"; }

sweep_describe() { sweep_words "$1"; printf '%s' "${sweep_line[*]}"; }

# sweep_swap LINES OLD NEW: another value in all commands.
sweep_swap() {
    local old new lines
    printf -v old ' %q ' "$2"
    printf -v new ' %q ' "$3"
    lines=" ${1//$'\n'/ $'\n' } "
    lines=${lines//"$old"/"$new"}
    lines=${lines// $'\n' /$'\n'}
    lines=${lines# }
    printf '%s' "${lines% }"
}

# Stage folders of commands.
sweep_stages() { sed -n 's|.* output\.dir=.*/\([^/ ]*\)$|\1|p' <<< "$1"; }

# Different values of key number K, in order.
sweep_values_of() { printf '%s\n' "${sweep_rows[@]}" | cut -f $(($1 + 1)) | awk '!seen[$0]++'; }

# sweep_row_with ROW K VALUE: sets sweep_row to the row with another value of key K.
sweep_row_with() {
    local values
    IFS=$'\t' read -r -a values <<< "$1"
    values[$2]=$3
    sweep_row=$(IFS=$'\t'; printf '%s' "${values[*]}")
}

sweep_check_points() {
    local k
    sweep_common=$(sweep_study --local --dry-run --part common 2> "$sweep_temporary/error") || mb_die "common stages: $(sweep_error)"
    sweep_lines=$(sweep_ask "${sweep_rows[0]}") || sweep_refuse "${sweep_rows[0]}"
    sweep_last=$(sweep_stages "$sweep_lines" | tail -1)
    [ -n "$sweep_last" ] || mb_die "no stage of the study is touched by ${sweep_keys[*]}"
    sweep_is_read=() # keys the script itself reads
    for k in "${!sweep_keys[@]}"; do sweep_check_key "$k"; done
    sweep_check_read
    sweep_print=$({ sweep_resolve "$sweep_common"; sweep_resolve "$sweep_lines"; } | md5sum | cut -d ' ' -f 1)
}

# The key's second value tells what kind of key it is; then every further value is parsed.
sweep_check_key() {
    local k=$1 key=${sweep_keys[$1]} values word lines value
    mapfile -t values < <(sweep_values_of "$k")
    [ ${#values[@]} -gt 1 ] || return 0
    sweep_row_with "${sweep_rows[0]}" "$k" "${values[1]}"
    lines=$(sweep_ask "$sweep_row") || sweep_refuse "$sweep_row"
    [ "$lines" != "$sweep_lines" ] || mb_die "$key changes nothing in any stage: ${values[0]} and ${values[1]} give the same commands"
    word=${key#*.}
    if [ "$(sweep_swap "$sweep_lines" "$word=${values[0]}" "$word=${values[1]}")" != "$lines" ]; then sweep_is_read+=("$k"); return; fi
    for value in "${values[@]:2}"; do sweep_parse_value "$key" "$word" "${values[0]}" "$value"; done
}

# sweep_parse_value KEY WORD FIRST VALUE: the programs that get the word, once each, with this value.
sweep_parse_value() {
    local line words seen='' old
    printf -v old ' %q ' "$2=$3"
    while IFS= read -r line; do
        case " $line " in *"$old"*) ;; *) continue ;; esac
        case $seen in *" ${line%% *} "*) continue ;; esac
        seen="$seen ${line%% *} "
        eval "words=($(sweep_swap "$line" "$2=$3" "$2=$4"))"
        "$mb_bin/${words[0]}" "${words[@]:1}" --print-config > /dev/null 2> "$sweep_temporary/error" || mb_die "$1=$4: $(sweep_error)"
    done <<< "$sweep_lines"
}

# Every combination of the keys the script reads; sweep_variant[values] = commands, the other keys as in point 0.
sweep_check_read() {
    local row key k values
    declare -gA sweep_variant=()
    for row in "${sweep_rows[@]}"; do
        sweep_variant_of "$row"
        [ -z "${sweep_variant[$sweep_combination]:-}" ] || continue
        IFS=$'\t' read -r -a values <<< "$row"
        key=$sweep_combination
        sweep_row=${sweep_rows[0]}
        for k in "${sweep_is_read[@]}"; do sweep_row_with "$sweep_row" "$k" "${values[k]}"; done
        if [ "$sweep_row" = "${sweep_rows[0]}" ]; then sweep_variant[$key]=$sweep_lines
        else sweep_variant[$key]=$(sweep_ask "$sweep_row") || sweep_refuse "$sweep_row"
        fi
    done
}

sweep_variant_of() {
    local values k
    sweep_combination=all
    [ ${#sweep_is_read[@]} -gt 0 ] || return 0
    IFS=$'\t' read -r -a values <<< "$1"
    for k in "${sweep_is_read[@]}"; do sweep_combination+=$'\t'${values[k]}; done
}

# The configuration of every command as its program understands it.
sweep_resolve() {
    local line words
    while IFS= read -r line; do
        case $line in moe-*) ;; *) continue ;; esac
        eval "words=($line)"
        "$mb_bin/${words[0]}" "${words[@]:1}" --print-config 2> /dev/null || true
    done <<< "$1"
}

# ---- 5. what is done ----

# sweep_commands_of NUMBER: sets sweep_commands (a line per stage) and sweep_folder of a point.
sweep_commands_of() {
    local row=${sweep_rows[$1]} first values k
    sweep_variant_of "$row"
    sweep_commands=${sweep_variant[$sweep_combination]}
    IFS=$'\t' read -r -a first <<< "${sweep_rows[0]}"
    IFS=$'\t' read -r -a values <<< "$row"
    for k in "${!sweep_keys[@]}"; do
        case " ${sweep_is_read[*]} " in *" $k "*) continue ;; esac
        sweep_commands=$(sweep_swap "$sweep_commands" "${sweep_keys[k]#*.}=${first[k]}" "${sweep_keys[k]#*.}=${values[k]}")
    done
    printf -v row '%03d' "$1"
    sweep_commands=${sweep_commands//"/point_000/"/"/point_$row/"}
    sweep_folder=$(dirname "${sweep_commands##* output.dir=}")
}

# A point is done when the record of its last stage is there and still true; the program looks at the inputs too. Where the study's settings
# changed since that stage ran, a stage before it may be the one that no longer matches: then all are asked.
sweep_is_done() {
    local words line last
    sweep_commands_of "$1"
    last=${sweep_commands##* output.dir=}
    [ -f "$last/done.json" ] || return 1
    if [ "$(stat -c %Y "$last/done.json")" -gt "$sweep_changed" ]; then sweep_commands=${sweep_commands##*$'\n'}; fi
    while IFS= read -r line; do
        eval "words=($line)"
        "$mb_bin/${words[0]}" "${words[@]:1}" --is-done > /dev/null 2>&1 < /dev/null || return 1
    done <<< "$sweep_commands"
}

# Leaves in sweep_numbers the points that are not done; asked on all cores.
sweep_drop_done() {
    local cores core i
    cores=$(nproc)
    for ((core = 0; core < cores; core++)); do
        for ((i = core; i < ${#sweep_numbers[@]}; i += cores)); do
            sweep_is_done "${sweep_numbers[i]}" || echo "${sweep_numbers[i]}"
        done > "$sweep_temporary/missing.$core" &
    done
    wait
    i=${#sweep_numbers[@]}
    mapfile -t sweep_numbers < <(sort -n "$sweep_temporary"/missing.*)
    echo "$((i - ${#sweep_numbers[@]})) of $i points are done"
}

# ---- 6. running here ----

sweep_run_here() {
    local number started failed=() code
    if [ -n "$mb_dry_run" ]; then sweep_print_here; return; fi
    sweep_write_record
    sweep_study --local --part common || mb_die "a common stage failed; no point was started" $?
    sweep_write_graph
    for number in "${sweep_numbers[@]}"; do
        started=$SECONDS code=0
        printf '== point %d of %d: %s\n' "$number" ${#sweep_rows[@]} "$(sweep_describe "${sweep_rows[number]}")"
        sweep_run_point "$number" || code=$?
        case $code in
        0) printf '== point %d: %d s\n' "$number" $((SECONDS - started)) ;;
        75 | 130 | 143) mb_die "stopped in point $number; --resume goes on" 75 ;;
        *) failed+=("$number"); printf '== point %d: failed with code %d: %s\n' "$number" "$code" "$(sweep_cause "$sweep_folder")" ;;
        esac
    done
    sweep_summary
    [ ${#failed[@]} -eq 0 ] || mb_die "${#failed[@]} of ${#sweep_numbers[@]} points failed: ${failed[*]}; --resume runs them again" 1
}

# One point, its output in point.log of its folder.
sweep_run_point() {
    local code=0
    sweep_commands_of "$1"
    mkdir -p "$sweep_folder"
    rm -f "$sweep_folder/failure.json"
    sweep_words "${sweep_rows[$1]}"
    sweep_study --local --part point --point "$1" "${sweep_line[@]}" > "$sweep_folder/point.log" 2>&1 8>&- || code=$?
    case $code in 0 | 75 | 130 | 143) return "$code" ;; esac
    compgen -G "$sweep_folder/*/failure.json" > /dev/null ||
        printf '{"code": %d, "status": "failed", "message": "%s", "rank": 0, "host": "%s", "job": "", "time": "%s"}\n' "$code" \
            "$(sweep_cause "$sweep_folder" | tr -d '\000-\037' | sed 's/[\\"]/\\&/g')" "$(hostname)" "$(date -u +%Y-%m-%dT%H:%M:%SZ)" > "$sweep_folder/failure.json"
    return "$code"
}

# What went wrong, in one line: the program's own last word on it, else the last line.
sweep_cause() {
    local log=$1/point.log line
    line=$(grep -aiE '\berror\b' "$log" | tail -1)
    [ -n "$line" ] || line=$(grep -av '^$' "$log" | tail -1)
    printf '%s' "$line"
}

sweep_summary_words() { printf '%s\n' "$mb_python" analysis/sweep.py "$mb_out"; [ -z "$sweep_metric" ] || printf '%s\n' --metric "$sweep_metric"; }

sweep_summary() {
    local words
    mapfile -t words < <(sweep_summary_words)
    "${words[@]}" || echo "the table could not be made; again: ${words[*]}" >&2
}

# sweep_print_point NUMBER: the command of a point.
sweep_print_point() {
    sweep_words "${sweep_rows[$1]}"
    printf '%q ' "jobs/$sweep_script.sh" --run "$mb_run" --vary "${sweep_keys[*]}" ${mb_ranks:+--ranks "$mb_ranks"} --local --part point --point "$1" "$mb_config" \
        "${sweep_given[@]}" "${sweep_line[@]}"
    printf '\n'
}

sweep_print_here() {
    local number words
    printf '# stages that run once\n%s\n# stages of a point, here of point 0\n%s\n# %d points\n' "$sweep_common" "$sweep_lines" ${#sweep_numbers[@]}
    for number in "${sweep_numbers[@]}"; do sweep_print_point "$number"; done
    mapfile -t words < <(sweep_summary_words)
    printf '# the table\n'
    printf '%q ' "${words[@]}"
    printf '\n'
}

# ---- 7. Slurm jobs ----

# "0-3,7,9-12" of sorted numbers.
sweep_ranges() {
    printf '%s\n' "$@" | awk '
        NR > 1 && $1 == last + 1 {last = $1; next}
        NR > 1 {out = out (first == last ? first : first "-" last) ","}
        {first = last = $1}
        END {print out (first == last ? first : first "-" last)}'
}

sweep_submit() {
    local after='' said points=''
    sweep_check_array_size
    mb_open_site
    # What jobs of a sweep ask for is looked up as for stages of these names.
    mb_program[points]=sweep mb_group[points]=points mb_program[summary]=script mb_group[summary]=summary
    [ -n "$mb_dry_run" ] || sweep_write_record
    said=$(sweep_study --slurm ${mb_dry_run:+--dry-run} --part common) || mb_die "the common stages could not be submitted: $said" 1
    grep -v -E '^jobs(: |/status\.sh )' <<< "$said" || true # the latter we say ourselves, at the end
    after=$(sed -n 's/^jobs: //p' <<< "$said" | tail -1)
    [ "$after" != - ] || after=''
    [ -n "$mb_dry_run" ] || sweep_write_graph
    mb_read_jobs
    sweep_read_queue
    if [ ${#sweep_numbers[@]} -gt 0 ]; then
        sweep_submit_points "$after"
        points=$mb_id
    else
        echo "no point is left to submit"
    fi
    sweep_submit_summary "${sweep_queued_jobs}${sweep_queued_jobs:+${points:+,}}$points"
    [ -n "$mb_dry_run" ] || printf 'jobs/status.sh %s tells how it goes; jobs/sweep.sh --resume --run %s ... submits what failed\n' "$mb_study/$mb_run${mb_seed:+/seed_$mb_seed}" "$mb_run"
}

sweep_check_array_size() {
    local most
    most=$({ scontrol show config 2> /dev/null || true; } | awk '$1 == "MaxArraySize" {print $3}')
    [ -z "$most" ] || [ ${#sweep_numbers[@]} -eq 0 ] || [ "${sweep_numbers[-1]}" -lt "$most" ] ||
        mb_die "point ${sweep_numbers[-1]} is too high for an array of this Slurm (MaxArraySize = $most); cut the sweep into several with other --run names"
}

# Points that an earlier array still has queued or running keep their place: they leave sweep_numbers. Sets sweep_queued_jobs, their jobs.
sweep_read_queue() {
    local job task state number kept=()
    declare -A arrays=() queued=() jobs=()
    sweep_queued_jobs=''
    [ -f "$mb_out/jobs.tsv" ] && command -v squeue > /dev/null || return 0
    while IFS=$'\t' read -r _ task job _; do [ "$task" != points ] || arrays[$job]=1; done < "$mb_out/jobs.tsv"
    while IFS='|' read -r job task state; do
        case $state in COMPLETING) continue ;; esac
        [ -z "${arrays[$job]:-}" ] || { queued[$task]=1 jobs[$job]=1; }
    done < <(squeue -h -r -u "$(id -un)" -o '%F|%K|%T' || [ -n "$mb_dry_run" ] || echo 'squeue does not answer: points that are queued already would be submitted again' >&2)
    sweep_queued_jobs=$(IFS=,; printf '%s' "${!jobs[*]}")
    for number in "${sweep_numbers[@]}"; do [ -n "${queued[$number]:-}" ] || kept+=("$number"); done
    [ ${#kept[@]} -eq ${#sweep_numbers[@]} ] || echo "$((${#sweep_numbers[@]} - ${#kept[@]})) points are queued or running already"
    sweep_numbers=("${kept[@]}")
}

# sweep_submit_points AFTER: the array; sets mb_id.
sweep_submit_points() {
    local tasks throttle number
    tasks=$(sweep_ranges "${sweep_numbers[@]}")
    throttle=${sweep_throttle:-$(mb_resource points throttle)}
    throttle=${throttle:-${mb_site_throttle:-}}
    mb_resource_flags points
    if [ -n "$mb_dry_run" ]; then
        printf '# %d points, each as an element of the array\n' ${#sweep_numbers[@]}
        for number in "${sweep_numbers[@]}"; do printf '# '; sweep_print_point "$number"; done
    fi
    mb_sbatch points "$mb_out" point "$1" "$tasks" "--array=$tasks${throttle:+%$throttle}" "${mb_flags[@]}" -- "$mb_out/points.tsv" "jobs/$sweep_script.sh" \
        --run "$mb_run" --vary "${sweep_keys[*]}" "$mb_config" "${sweep_given[@]}"
}

# The table waits for every array, however its elements end; an older one that still waits is replaced.
sweep_submit_summary() {
    local words log=$mb_out/logs/summary-%j.log command
    mapfile -t words < <(sweep_summary_words)
    if [ -z "$mb_dry_run" ]; then
        mb_read_queue
        ! mb_is_active summary || scancel "${mb_known[summary]}" 2> /dev/null || true
    fi
    mb_resource_flags summary
    command=(sbatch --parsable "--job-name=$mb_study/$mb_run:summary" "--output=$log" "--chdir=$mb_root" "${mb_flags[@]}" ${1:+"--dependency=afterany:${1//,/:}"}
        "--export=ALL,MB_ROOT=$mb_root,MB_SITE=$mb_site,MB_RUN=$mb_out,MB_STAGE=$mb_out/summary" slurm/command.sbatch "${words[@]}")
    if [ -n "$mb_dry_run" ]; then printf '%q ' "${command[@]}"; printf '\n'; return; fi
    mkdir -p "$mb_out/logs" "$mb_out/summary"
    mb_try_sbatch summary "${command[@]}"
    [ -s "$mb_out/jobs.tsv" ] || printf 'time\tstage\tjob\ttasks\tafter\tlog\tcommand\n' > "$mb_out/jobs.tsv"
    printf '%s\tsummary\t%s\t-\t%s\t%s\t%s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$mb_id" "${1:--}" "$log" "$(printf '%q ' "${command[@]}")" >> "$mb_out/jobs.tsv"
    printf '%-28s job %-9s %s\n' summary "$mb_id" "${1:+after $1}"
}

# ---- 8. main ----

sweep_main() {
    local override
    sweep_parse_args "$@"
    mb_open_study
    sweep_temporary=$(mktemp -d)
    trap 'rm -rf "$sweep_temporary"' EXIT
    sweep_script=$(mb_get study.script select-moe)
    [ -x "jobs/$sweep_script.sh" ] || mb_die "study.script = $sweep_script: jobs/$sweep_script.sh is not there"
    sweep_recall
    sweep_given=() # what the study's script gets: not what only our own jobs ask for
    for override in "${mb_overrides[@]}"; do case $override in points.slurm.* | summary.slurm.*) ;; *) sweep_given+=("$override") ;; esac; done
    sweep_make_points
    sweep_check_table
    sweep_choose_points
    sweep_check_points
    printf '%s/%s: %d points over %s; %d stages run once, %d in every point\n' "$mb_study" "$mb_run" ${#sweep_rows[@]} "${sweep_keys[*]}" \
        "$(grep -c . <<< "$sweep_common")" "$(grep -c . <<< "$sweep_lines")"
    sweep_read_change
    [ -z "$sweep_is_resumed" ] || sweep_drop_done
    if [ "$mb_mode" = slurm ]; then sweep_submit; else sweep_run_here; fi
}

sweep_main "$@"
