# shellcheck shell=bash disable=SC2034
# lib.sh: what the study scripts share. A script names its stages with mb_stage, in an order in which they can run, and ends with
# mb_run_study; nothing runs before all stages are known and their configurations parse.
#
# Contents: 1. command line  2. the study file  3. naming stages  4. what a sweep varies  5. checks  6. running here
# (submitting to Slurm: lib-slurm.sh, forecasts: lib-forecast.sh). Needs bash 4. No study's names stand here.

set -euo pipefail

# Threads that wait spin for some microseconds only, then give up their core: as fast as spinning on free cores, and not many times
# slower on shared ones.
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-10000}
export SLURM_PMIX_FENCE=${SLURM_PMIX_FENCE:-ring} # why: slurm/lib.sh

mb_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mb_bin=${MB_BIN:-$mb_root/build/bin}
mb_python=${MB_PYTHON:-python3}

mb_die() { printf '%s: %s\n' "$(basename "$0")" "$1" >&2; exit "${2:-2}"; }

# ---- 1. command line ----

# What every study script understands, for its --help.
mb_common_usage() {
    cat <<'TEXT'

  --local          run the stages here, one after the other (inside a Slurm job: by the site's launcher over its tasks)
  --slurm          submit the whole study as jobs that wait for each other (the default where a Slurm answers)
  --dry-run        check everything and print the exact commands only
  --run NAME       name of the run (run1); the same name again goes on with it: only what is missing runs
  --ranks N        with --local: MPI ranks of every stage that can use them
  stage.key=value  overrides of the study file; finetune.slurm.nodes=2 and the like say what a job asks for
TEXT
}

# mb_parse_args "$@": sets mb_mode (local, slurm), mb_config, mb_run, mb_ranks, mb_dry_run, mb_overrides, and for sweeps mb_part, mb_point, mb_vary.
mb_parse_args() {
    mb_call=$(printf ' %q' "$@")
    mb_mode='' mb_config='' mb_run=run1 mb_ranks=${MB_RANKS:-} mb_dry_run='' mb_overrides=() mb_part='' mb_point='' mb_vary=()
    while [ $# -gt 0 ]; do
        case $1 in
        --local) mb_mode=local ;;
        --slurm) mb_mode=slurm ;;
        --dry-run) mb_dry_run=1 ;;
        --run) mb_run=${2:?--run needs a name}; shift ;;
        --ranks) mb_ranks=${2:?--ranks needs a number}; shift ;;
        --part) mb_part=${2:?--part needs common or point}; shift ;;
        --point) mb_point=${2:?--point needs a number}; shift ;;
        --vary) read -r -a mb_vary <<< "${2:?--vary needs keys}"; shift ;;
        -h | --help) mb_usage; mb_common_usage; exit 0 ;;
        *.cfg) mb_config=$1 ;;
        *=*) mb_overrides+=("$1") ;;
        *) mb_die "'$1' is not understood; see --help" ;;
        esac
        shift
    done
    mb_check_args
}

mb_check_args() {
    [ -n "$mb_config" ] || mb_die "which study? give conf/study/<name>.cfg; see --help"
    [ -f "$mb_config" ] || mb_die "$mb_config: no such file"
    mb_config=$(realpath "$mb_config")
    [[ $mb_run =~ ^[A-Za-z0-9._/-]+$ ]] || mb_die "--run $mb_run: letters, digits, '.', '_', '-' and '/' only"
    case $mb_part in '' | common | point) ;; *) mb_die "--part $mb_part: common or point" ;; esac
    [ "$mb_part" != point ] || [[ $mb_point =~ ^[0-9]+$ ]] || mb_die "--part point needs --point N"
    [ -x "$mb_bin/moe-config" ] || mb_die "$mb_bin/moe-config is not there: run make" 1
    if [ -z "$mb_mode" ]; then mb_mode=local; mb_has_slurm && mb_mode=slurm; fi
    [ "$mb_mode" != slurm ] || [ -z "$mb_ranks" ] || mb_die "--ranks is for --local; for jobs give slurm.ntasks=N or <stage>.slurm.ntasks=N"
}

# Does a Slurm answer that we could submit to? Not from inside one of its jobs: there stages run in the job's own allocation.
mb_has_slurm() { [ -z "${SLURM_JOB_ID:-}" ] && command -v sbatch > /dev/null && timeout 5 sinfo -h -o %P > /dev/null 2>&1; }

# ---- 2. the study file ----

# mb_get KEY [DEFAULT]: a key of the command line, or of the study file.
mb_get() {
    local override found='' value code=0
    for override in "${mb_overrides[@]}"; do
        [ "${override%%=*}" != "$1" ] || { found=1; value=${override#*=}; }
    done
    if [ -n "$found" ]; then printf '%s\n' "$value"; return; fi
    value=$("$mb_bin/moe-config" get file="$mb_config" key="$1" 2> /dev/null) || code=$?
    # 3: the key is not there. Anything else is a broken file: let the program say so.
    if [ "$code" -eq 3 ] && [ $# -gt 1 ]; then printf '%s\n' "$2"
    elif [ "$code" -ne 0 ]; then "$mb_bin/moe-config" get file="$mb_config" key="$1"
    else printf '%s\n' "$value"
    fi
}

# mb_has_group GROUP: does the study file have this group?
mb_has_group() {
    [ -n "${mb_groups:-}" ] || mb_groups=$("$mb_bin/moe-config" groups file="$mb_config")
    case ",$mb_groups," in *",$1,"*) return 0 ;; *) return 1 ;; esac
}

# mb_open_study: name, seed and run folder. Sets mb_study, mb_seed, mb_out, mb_run_name; goes to the project's root, to which paths are relative.
mb_open_study() {
    cd "$mb_root"
    mb_study=$(mb_get study.name)
    mb_seed=$(mb_get study.seed "")
    case " ${mb_vary[*]} " in
    *" study.seed "*) mb_out=$mb_root/checkpoints/$mb_study/$mb_run ;; # the points of a sweep have folders of their own
    *) mb_out=$mb_root/checkpoints/$mb_study/$mb_run${mb_seed:+/seed_$mb_seed} ;;
    esac
    mb_run_name=${mb_out#"$mb_root"/checkpoints/}
    declare -gA mb_program=() mb_group=() mb_words=() mb_after=() mb_is_varied=() mb_array_of=() mb_element_of=() mb_elements=()
    mb_stages=()
}

# ---- 3. naming stages ----

# mb_stage STAGE PROGRAM MODE GROUP key=value...: one stage. MODE or GROUP may be "-". In a value, "@other" and "@other/..." mean the
# folder of another stage, which this one then waits for, and what lies in it. Overrides "GROUP.key=value" and "STAGE.key=value" are handed on
# as "key=value", and win over what stands here, but for "key:=value".
mb_stage() {
    local stage=$1 program=$2 mode=$3 group=$4 override name
    shift 4
    local words=("$mb_config")
    [ "$mode" = - ] || words=("$mode" "${words[@]}")
    { [ "$group" = - ] || ! mb_has_group "$group"; } || words+=("stage=$group")
    for name in "$@"; do [[ $name == *:=* ]] || words+=("$name"); done
    for override in "${mb_overrides[@]}"; do
        for name in "$group" "$stage"; do
            case $override in
            "$name".slurm.*) ;;
            "$name".*) words+=("${override#"$name".}"); break ;;
            esac
        done
    done
    for name in "$@"; do [[ $name != *:=* ]] || words+=("${name%%:=*}=${name#*:=}"); done
    mb_add_stage "$stage" "$program" "$group" "$@"
    mb_words[$stage]=$(printf '%q ' "${words[@]}")
}

# mb_script STAGE COMMAND...: a stage that is any command, such as a report; it waits for every stage named before it.
mb_script() {
    local stage=$1 all
    shift
    [ "$mb_part" = '' ] || return 0 # a sweep has a report of its own
    all=$(IFS=,; printf '%s' "${mb_stages[*]}")
    mb_add_stage "$stage" script -
    mb_after[$stage]=$all
    mb_words[$stage]=$(printf '%q ' "$@")
}

mb_add_stage() {
    local stage=$1 program=$2 group=$3 word after='' rest other
    shift 3
    [ -z "${mb_program[$stage]:-}" ] || mb_die "stage $stage is named twice" 1
    for word in "$@"; do
        rest=$word
        while [[ $rest =~ @([A-Za-z0-9_.-]+)(/(.*))?$ ]]; do
            other=${BASH_REMATCH[1]} rest=${BASH_REMATCH[3]}
            [ -n "${mb_program[$other]:-}" ] || mb_die "stage $stage: @$other is no stage named before it" 1
            case ",$after," in *",$other,"*) ;; *) after=$after${after:+,}$other ;; esac
        done
    done
    mb_stages+=("$stage")
    mb_program[$stage]=$program mb_group[$stage]=$group mb_after[$stage]=$after
}

# mb_array NAME STAGE...: these stages, the last ones named, are elements of one array of jobs; elements of two arrays that wait for each
# other by equal numbers do so one by one.
mb_array() {
    local name=$1 stage other i=0
    shift
    [ -z "${mb_program[$name]:-}${mb_elements[$name]:-}" ] || mb_die "array $name: the name is taken" 1
    [ "$*" = "${mb_stages[*]: -$#}" ] || mb_die "array $name: its elements are not the stages named last" 1
    mb_elements[$name]=$*
    for stage in "$@"; do
        for other in ${mb_after[$stage]//,/ }; do [ "${mb_array_of[$other]:-}" != "$name" ] || mb_die "array $name: $stage waits for $other" 1; done
        mb_array_of[$stage]=$name mb_element_of[$stage]=$i
        i=$((i + 1))
    done
}

mb_has_stage() { [ -n "${mb_program[$1]:-}" ]; }

# Folder of a stage's results.
mb_folder() {
    case $mb_part in
    '') printf '%s/%s' "$mb_out" "$1" ;;
    *) if [ -n "${mb_is_varied[$1]:-}" ]; then printf '%s/point_%03d/%s' "$mb_out" "$((10#$mb_point))" "$1"; else printf '%s/common/%s' "$mb_out" "$1"; fi ;;
    esac
}

# mb_command STAGE: sets mb_line to the stage's whole command, "@other" put in.
mb_command() {
    local stage=$1 other i
    eval "mb_line=(${mb_words[$stage]})"
    [ -z "${mb_after[$stage]}" ] || for other in ${mb_after[$stage]//,/ }; do
        for i in "${!mb_line[@]}"; do
            mb_line[i]=${mb_line[i]//"@$other/"/"$(mb_folder "$other")/"}
            case ${mb_line[i]} in *"=@$other") mb_line[i]=${mb_line[i]%"@$other"}$(mb_folder "$other") ;; esac
        done
    done
    [ "${mb_program[$stage]}" = script ] || mb_line=("$mb_bin/${mb_program[$stage]}" "${mb_line[@]}" "output.dir=$(mb_folder "$stage")")
}

# ---- 4. what a sweep varies ----

# A key touches the stage it names (by group or folder); one that names no stage touches all. What waits for a touched stage is touched.
mb_mark_varied() {
    local stage key other
    for stage in "${mb_stages[@]}"; do
        for key in "${mb_vary[@]}"; do
            if mb_names_stage "${key%%.*}"; then
                case ${key%%.*} in "$stage" | "${mb_group[$stage]}") mb_is_varied[$stage]=1 ;; esac
            else
                mb_is_varied[$stage]=1
            fi
        done
        for other in ${mb_after[$stage]//,/ }; do [ -z "${mb_is_varied[$other]:-}" ] || mb_is_varied[$stage]=1; done
    done
}

mb_names_stage() {
    local stage
    for stage in "${mb_stages[@]}"; do case $1 in "$stage" | "${mb_group[$stage]}") return 0 ;; esac; done
    return 1
}

# The stages of this call: all, or of a sweep the common or the varied ones. Sets mb_chosen.
mb_choose_stages() {
    local stage
    mb_chosen=()
    for stage in "${mb_stages[@]}"; do
        case $mb_part:${mb_is_varied[$stage]:-} in common:1 | point:) continue ;; esac
        mb_chosen+=("$stage")
    done
}

# ---- 5. checks ----

# Nothing starts before every stage's configuration parses and every override has a stage.
mb_check_study() {
    local override name stage failed=''
    for override in "${mb_overrides[@]}"; do
        name=${override%%.*}
        case $name in study | slurm) continue ;; esac
        mb_names_stage "$name" || mb_has_group "$name" ||
            mb_die "$override: no stage is called '$name'; stages: $(printf '%s ' "${mb_stages[@]}"| sed 's/ $//')"
    done
    for stage in "${mb_chosen[@]}"; do
        [ "${mb_program[$stage]}" != script ] || continue
        mb_command "$stage"
        "${mb_line[@]}" --print-config > /dev/null || { printf 'stage %s: the configuration is not right\n' "$stage" >&2; failed=1; }
        mb_check_inputs "$stage" || failed=1
    done
    [ -z "$failed" ] || mb_die "nothing was started" 2
}

# Paths given from outside must be there (those of other stages will be).
mb_check_inputs() {
    local stage=$1 word value failed=0
    for word in "${mb_line[@]}"; do
        case $word in
        model.path=* | model.adapter=* | tokenizer.path=* | score.source_model=* | dataset.path=* | labels.path=* | convert.config=* | scores.path=* | \
            fuse.foundation=* | fuse.sft=* | fuse.router=* | questions.path=* | gate.path=*) ;;
        *) continue ;;
        esac
        value=${word#*=}
        case $value in '' | "$mb_out"/*) continue ;; esac
        [ -e "$value" ] || { printf 'stage %s: %s: no such file or folder\n' "$stage" "$word" >&2; failed=1; }
    done
    return "$failed"
}

# The graph and the command that goes on with this run, for status.sh and report.sh.
mb_write_graph() {
    local stage
    mkdir -p "$mb_out"
    printf 'jobs/%s%s\n' "$(basename "$0")" "$mb_call" > "$mb_out/command"
    {
        printf 'stage\tprogram\tafter\ttasks\telement\n'
        for stage in "${mb_stages[@]}"; do
            printf '%s\t%s\t%s\t%s\t%s\n' "$stage" "${mb_program[$stage]}" "${mb_after[$stage]:--}" "$(mb_shares "$stage")" \
                "${mb_array_of[$stage]:--}${mb_element_of[$stage]:+:${mb_element_of[$stage]}}"
        done
    } > "$mb_out/study.tsv.$$"
    mv "$mb_out/study.tsv.$$" "$mb_out/study.tsv"
}

# ---- 6. running here ----

# mb_run_study: check, then run or submit the stages that were named.
mb_run_study() {
    . "$mb_root/jobs/lib-slurm.sh"
    . "$mb_root/jobs/lib-forecast.sh"
    mb_mark_varied
    mb_choose_stages
    mb_check_study
    mb_open_site
    if [ "$mb_mode" = slurm ]; then
        mb_forecast_study
        mb_submit_study
        return
    fi
    local stage
    if [ -n "$mb_dry_run" ]; then
        for stage in "${mb_chosen[@]}"; do mb_print_stage "$stage"; done
        return
    fi
    [ "$mb_part" = point ] || mb_write_graph # the points of a sweep share the one that its common part wrote
    for stage in "${mb_chosen[@]}"; do mb_run_stage "$stage"; done
}

mb_print_stage() {
    mb_command "$1"
    printf '%s' "${mb_line[0]##*/}"
    printf ' %q' "${mb_line[@]:1}"
    printf '\n'
}

mb_run_stage() {
    local stage=$1 started=$SECONDS code=0
    mb_command "$stage"
    printf '== %s\n' "$stage"
    mb_record_script "$stage" start -
    mb_launch "$stage" "${mb_line[@]}" || code=$?
    mb_record_script "$stage" end "$code"
    [ "$code" -eq 0 ] || mb_die "stage $stage ended with code $code; the command was: ${mb_line[*]}" "$code"
    printf '== %s: %d s\n' "$stage" $((SECONDS - started))
}

# Programs keep records of their own; for a script its attempts are the record, as slurm/lib.sh writes them in jobs.
mb_record_script() {
    [ "${mb_program[$1]}" = script ] || return 0
    mkdir -p "$(mb_folder "$1")"
    printf '%s\t-\t0\t%s\t1\t%s\t%s\t-\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$(hostname -s)" "$2" "$3" >> "$(mb_folder "$1")/attempts.tsv"
}

# One process for light stages; else the ranks asked for, or the tasks of the Slurm job we are in.
mb_launch() {
    local stage=$1
    shift
    if mb_is_light "$stage"; then "$@"
    elif [ -z "$mb_ranks" ] && [ -n "${SLURM_JOB_ID:-}" ]; then "${mb_site_launcher[@]}" "$@" # one task too: steps get the job's signals
    elif [ "${mb_ranks:-1}" -gt 1 ]; then mb_mpirun "$@"
    else "$@"
    fi
}

mb_mpirun() {
    local flags=(-np "$mb_ranks" --oversubscribe --bind-to none)
    [ "$(id -u)" -ne 0 ] || flags+=(--allow-run-as-root)
    OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(( $(nproc) / mb_ranks > 0 ? $(nproc) / mb_ranks : 1 ))} mpirun "${flags[@]}" --mca mpi_yield_when_idle 1 "$@"
}

# Stages that one process does.
mb_is_light() {
    case ${mb_program[$1]} in
    script | moe-convert | moe-select | moe-merge | moe-gate) return 0 ;;
    moe-shard) case ${mb_words[$1]} in tokenizer\ *) return 0 ;; esac ;;
    moe-bench) case ${mb_words[$1]} in join\ *) return 0 ;; esac ;;
    esac
    return 1
}
