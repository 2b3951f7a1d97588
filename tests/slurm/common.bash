# common.bash: what the tests on the testbed share. A file does:
#   setup_file() { load common.bash; testbed_up mine; make_inputs; }   setup() { load common.bash; testbed_use; }   teardown_file() { load common.bash; testbed_down; }
# The testbed is named after the file, so that files may run beside each other. $work is on the file system that all nodes see (their /tmp
# are their own), the same for all tests of the file.
# shellcheck shell=bash disable=SC2034,SC1091,SC2154

# testbed_up NAME [options of slurm/testbed/up]: skips the file where a testbed is not possible.
testbed_up() {
    local name=$1
    shift
    cd "$BATS_TEST_DIRNAME/../.." || exit 1
    [ "$(id -u)" -eq 0 ] || skip "the testbed needs root"
    command -v slurmctld > /dev/null || [ -x /usr/sbin/slurmctld ] || skip "Slurm is not installed (slurm/testbed/install)"
    slurm/testbed/up --name "$name" "$@" > /dev/null
    printf '%s\n' "$name" > "$BATS_FILE_TMPDIR/testbed"
    testbed_use
    rm -rf "$work"
    mkdir -p "$work"
}

# In every test: programs, folders, environment of the testbed.
testbed_use() {
    cd "$BATS_TEST_DIRNAME/../.." || exit 1
    testbed=$(cat "$BATS_FILE_TMPDIR/testbed")
    . tests/stage/common.bash
    mb_setup
    unset MB_CHECK_LEAKS
    work=$PWD/build/slurm-tests/$testbed
    eval "$(slurm/testbed/env --name "$testbed")"
    export MB_ROOT=$PWD MB_BIN=$bin MB_SITE=testbed
}

testbed_down() {
    [ -f "$BATS_FILE_TMPDIR/testbed" ] || return 0
    testbed_use
    slurm/testbed/down --name "$testbed" > /dev/null
    [ -n "${MB_KEEP:-}" ] || rm -rf "$work" # MB_KEEP=1 leaves the files of the tests for a look
}

# Records, tokenizer, shard and tiny models, as the stage tests have them.
make_inputs() {
    make_records > /dev/null
    make_models > /dev/null 2>&1
}

# submit ARGUMENTS OF SBATCH...: prints the job's id. Logs go to $work/logs.
submit() {
    mkdir -p "$work/logs"
    sbatch --parsable --output="$work/logs/%j.log" "$@"
}
log_of() { cat "$work/logs/$1.log" 2> /dev/null || true; }

# One member of what scontrol says of a job: fact_of JOB JobState. "gone" when Slurm has forgotten the job.
fact_of() { scontrol show job -o "$1" 2> /dev/null | grep -o "\(^\| \)$2=[^ ]*" | head -1 | cut -d= -f2- | grep . || echo gone; }
state_of() { fact_of "$1" JobState; }

# wait_until SECONDS COMMAND...: until it succeeds.
wait_until() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || { echo "waited in vain: $*"; squeue || true; return 1; }
        sleep 0.2
    done
}
is_in_state() { [[ " $2 " == *" $(state_of "$1") "* ]]; }

# wait_for_state JOB "STATE STATE..." [SECONDS]: until the job is in one of the states. Says where it stands when it is not.
wait_for_state() {
    wait_until "${3:-60}" is_in_state "$1" "$2" && return
    echo "job $1 is $(state_of "$1"), not $2; its log:"
    log_of "$1"
    return 1
}
wait_for_end() { wait_for_state "$1" "COMPLETED FAILED CANCELLED TIMEOUT NODE_FAIL" "${2:-60}"; }

# A requeued job waits some time (reason BeginTime): start_again JOB [SECONDS] waits until it is in the queue again, and ends the wait.
start_again() {
    wait_for_state "$1" PENDING "${2:-60}"
    scontrol update "JobId=$1" StartTime=now
}

# has_lines FILE N: a file with at least N lines.
has_lines() { [ -f "$1" ] && [ "$(wc -l < "$1")" -ge "$2" ]; }
