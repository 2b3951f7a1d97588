# The testbed itself: a real Slurm of three nodes on this machine does what the jobs' tests rely on, and leaves nothing behind.
# Needs root and the packages of slurm/testbed/install; about a minute and a half.

bats_require_minimum_version 1.5.0

setup_file() {
    cd "$BATS_TEST_DIRNAME/../.." || exit 1
    [ "$(id -u)" -eq 0 ] || skip "the testbed needs root"
    PATH=$PATH:/usr/sbin command -v slurmctld > /dev/null || skip "Slurm is not installed: slurm/testbed/install"
    unset "${!SLURM_@}"
    export MB_TBTEST_WORK
    MB_TBTEST_WORK=$(mktemp -d /var/tmp/moebatch-tbtest.XXXXXX) # not under /tmp, which is each node's own
    chmod 755 "$MB_TBTEST_WORK"
    slurm/testbed/down --name tbtest
    slurm/testbed/up --name tbtest --nodes 3 > "$MB_TBTEST_WORK/up.txt"
}
teardown_file() {
    cd "$BATS_TEST_DIRNAME/../.." || exit 1
    [ -n "${MB_TBTEST_WORK:-}" ] || return 0
    slurm/testbed/down --name tbtest
    rm -rf "$MB_TBTEST_WORK"
}
setup() {
    cd "$BATS_TEST_DIRNAME/../.." || exit 1
    testbed=$PWD/slurm/testbed
    bin=${MB_BIN:-$PWD/build/bin}
    work=$MB_TBTEST_WORK
    eval "$("$testbed/env" --name tbtest 2> /dev/null)"
    export OMP_NUM_THREADS=1
}

# until_true SECONDS COMMAND...
until_true() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || { echo "not within the time: $*"; squeue -t all; scontrol -o show jobs; sinfo -N -l; return 1; }
        sleep 0.2
    done
}
state_of() { scontrol -o show job "$1" | sed -n '1s/.* JobState=\([A-Z_]*\).*/\1/p'; }
job_is() { [ "$(state_of "$1")" = "$2" ]; }
node_is() { [ "$(sinfo -h -N -n "$1" -p main -o %t)" = "$2" ]; }
starts() { grep -c '^start' "$1"; }
runs_again_now() { # a requeued job waits a while; the test does not
    until_true 60 job_is "$1" PENDING
    scontrol update JobId="$1" StartTime=now
}

# A job that waits in its step the first time, and ends at once the second.
make_job() {
    cat > "$work/twice.sbatch" <<'SBATCH'
#!/bin/bash
#SBATCH --requeue --open-mode=append
echo "start ${SLURM_RESTART_COUNT:-0} on $SLURMD_NODENAME"
[ "${SLURM_RESTART_COUNT:-0}" -eq 0 ] || exit 0
srun sleep 300
scontrol requeue "$SLURM_JOB_ID"
sleep 60
SBATCH
}

@test "up prints the line that points a shell at the testbed; a second up changes nothing" {
    tail -1 "$work/up.txt" | grep -F 'eval "$(' | grep -F -- '/env --name tbtest)"'
    [ "$SLURM_CONF" = /var/lib/moebatch-testbed/tbtest/etc/slurm.conf ]
    run -0 "$testbed/up" --name tbtest --nodes 1
    [[ $output == *"is up already"* ]]
    [ "$(sinfo -h -p main -o %D)" = 3 ]
    "$testbed/status" --name tbtest | tee "$work/status.txt"
    [ "$(grep -c 'slurmd -D' "$work/status.txt")" -eq 3 ]
    grep -q 'slurmctld -D' "$work/status.txt"
    [ "$(sinfo -h -o '%P %p' | sort | tr '\n' ' ')" = "main* 1 urgent 10 " ]
}

@test "srun reaches two nodes; each has its own name, /tmp and /dev/shm and shares the rest" {
    srun -N2 -n2 bash -c "hostname; touch /tmp/of-\$(hostname) /dev/shm/of-\$(hostname) $work/of-\$(hostname)" | sort > "$work/names.txt"
    [ "$(tr '\n' ' ' < "$work/names.txt")" = "n1 n2 " ]
    [ -e "$work/of-n1" ] && [ -e "$work/of-n2" ]
    [ ! -e /tmp/of-n1 ] && [ ! -e /dev/shm/of-n1 ]
    [ "$(srun -N1 -w n1 bash -c 'echo /tmp/of-* /dev/shm/of-*')" = "/tmp/of-n1 /dev/shm/of-n1" ]
}

@test "a program on four ranks of two nodes writes what one process writes" {
    [ -x "$bin/moe-shard" ] || skip "$bin/moe-shard is not built"
    for i in $(seq 1 200); do echo "{\"text\": \"record $i: $(seq -s' ' "$i" 7 $((i + 300)))\"}"; done > "$work/a.jsonl"
    "$bin/moe-shard" tokenizer dataset.inputs="a=$work/a.jsonl" tokenizer.vocab_size=300 output.dir="$work/tok" > /dev/null
    build=(build dataset.inputs="a=$work/a.jsonl" dataset.max_length=64 tokenizer.path="$work/tok")
    "$bin/moe-shard" "${build[@]}" output.dir="$work/shard1" > /dev/null
    srun -N2 --ntasks-per-node=2 --mpi=pmix "$bin/moe-shard" "${build[@]}" output.dir="$work/shard4"
    [ "$("$bin/moe-inspect" file "$work/shard4/shard.h5" --hash)" = "$("$bin/moe-inspect" file "$work/shard1/shard.h5" --hash)" ]
}

@test "an array runs as many at a time as asked; what waits for it runs after it, what waits for a failure never" {
    first=$(sbatch --parsable --array=0-3%2 -o "$work/array-%a.log" --wrap "squeue -h -r -j \$SLURM_ARRAY_JOB_ID -t R | wc -l; sleep 1")
    next=$(sbatch --parsable -d "afterok:$first" -o "$work/next.log" --wrap "cat $work/array-*.log | wc -l; exit 3")
    never=$(sbatch --parsable -d "afterok:$next" --kill-on-invalid-dep=yes -o "$work/never.log" --wrap true)
    until_true 30 job_is "$next" FAILED
    [ "$(cat "$work/next.log")" = 4 ]
    for i in 0 1 2 3; do [ "$(cat "$work/array-$i.log")" -le 2 ]; done
    until_true 60 job_is "$never" CANCELLED
    [ ! -e "$work/never.log" ]
}

@test "accounting knows the jobs" {
    [ "$(scontrol show config | sed -n 's/^AccountingStorageType *= //p')" = accounting_storage/slurmdbd ] || skip "slurmdbd or MariaDB is not installed"
    job=$(sbatch --parsable -o /dev/null --wrap true)
    finished() { [ "$(sacct -n -X -P -j "$job" -o State)" = COMPLETED ]; }
    until_true 60 finished
}

@test "an urgent job takes the nodes at once; the one it displaced requeues itself and runs again after it" {
    make_job
    low=$(sbatch --parsable -N3 --exclusive -o "$work/low.log" "$work/twice.sbatch")
    until_true 30 test -s "$work/low.log"
    sleep 1 # its step
    high=$(sbatch --parsable -p urgent -N3 --exclusive -o "$work/high.log" --wrap "echo high; sleep 1")
    until_true 30 test -s "$work/high.log"
    runs_again_now "$low"
    until_true 60 job_is "$low" COMPLETED
    job_is "$high" COMPLETED
    [ "$(scontrol -o show job "$low" | grep -o 'Restarts=[0-9]*')" = Restarts=1 ]
    [ "$(starts "$work/low.log")" -eq 2 ]
}

@test "a node without power takes its processes along, one cut off does not; the jobs of both run again elsewhere" {
    make_job
    killed=$(sbatch --parsable --exclusive -n2 -o "$work/killed.log" "$work/twice.sbatch")
    cut=$(sbatch --parsable --exclusive -n2 -o "$work/cut.log" "$work/twice.sbatch")
    until_true 30 test -s "$work/killed.log" -a -s "$work/cut.log"
    sleep 1 # their steps
    a=$(squeue -h -j "$killed" -o %N) b=$(squeue -h -j "$cut" -o %N)
    [ "$(ip netns pids "mbt-tbtest-$a" | wc -l)" -ge 5 ]
    "$testbed/kill-node" --name tbtest "$a"
    [ ! -e "/run/netns/mbt-tbtest-$a" ]
    "$testbed/cut-node" --name tbtest "$b"
    [ "$(ip netns pids "mbt-tbtest-$b" | wc -l)" -ge 5 ]
    for job in "$killed" "$cut"; do
        runs_again_now "$job"
        until_true 60 job_is "$job" COMPLETED
        [ "$(squeue -h -j "$job" -t all -o %N)" = n3 ]
    done
    node_is "$a" 'down*'
    node_is "$b" 'down*'
    [ "$(starts "$work/killed.log")" -eq 2 ]
    [ "$(starts "$work/cut.log")" -eq 2 ]
}

@test "heal-node brings both back, and what ran on unheard is ended" {
    [ "$(sinfo -h -N -p main -t down -o %N | tr '\n' ' ')" = "n1 n2 " ]
    sleepers() { for space in mbt-tbtest-n1 mbt-tbtest-n2; do ip netns pids "$space" 2> /dev/null; done | xargs -r ps -o args= -p | grep -c 'sleep 300$'; }
    [ "$(sleepers)" -ge 2 ] # the job that was cut off
    "$testbed/heal-node" --name tbtest n1
    "$testbed/heal-node" --name tbtest n2
    [ "$(srun -N3 -n3 hostname | sort | tr '\n' ' ')" = "n1 n2 n3 " ]
    no_sleepers() { [ "$(sleepers)" -eq 0 ]; }
    until_true 60 no_sleepers
    run -2 "$testbed/kill-node" --name tbtest
    run -1 "$testbed/kill-node" --name tbtest n4
    [[ $output == *"it has n1 to n3"* ]]
}

@test "a node that is back before Slurm missed it has lost its jobs all the same" {
    make_job
    job=$(sbatch --parsable -n1 -o "$work/short.log" "$work/twice.sbatch")
    until_true 30 test -s "$work/short.log"
    node=$(squeue -h -j "$job" -o %N)
    "$testbed/kill-node" --name tbtest "$node"
    "$testbed/heal-node" --name tbtest "$node"
    until_true 60 job_is "$job" PENDING
    # Elsewhere: the node itself now and then fails the first start of a job whose processes it has just lost (exit code 1, no output).
    scontrol update JobId="$job" ExcNodeList="$node" StartTime=now
    until_true 60 job_is "$job" COMPLETED
    [ "$(starts "$work/short.log")" -eq 2 ]
}

@test "a cut shorter than Slurm's patience harms no job" {
    job=$(sbatch --parsable -n2 -o "$work/brief.log" --wrap "echo start; srun sleep 4")
    until_true 30 test -s "$work/brief.log"
    sleep 1 # its step
    node=$(squeue -h -j "$job" -o %N)
    "$testbed/cut-node" --name tbtest "$node"
    sleep 1
    "$testbed/heal-node" --name tbtest "$node"
    until_true 60 job_is "$job" COMPLETED
    [ "$(scontrol -o show job "$job" | grep -o 'Restarts=[0-9]*')" = Restarts=0 ]
}

@test "up refuses a machine of a real cluster, and anybody but root" {
    SLURM_CONF=/etc/other.conf run -1 "$testbed/up" --name tbother
    [[ $output == *"SLURM_CONF is set to /etc/other.conf"* ]]
    SLURM_CONF='' run -1 unshare --mount bash -c "mount -t tmpfs tbtest /etc/slurm && touch /etc/slurm/slurm.conf && '$testbed/up' --name tbother"
    [[ $output == *"/etc/slurm/slurm.conf exists"* ]]
    cp "$(type -P sleep)" "$work/slurmd"
    run -1 unshare --pid --fork --mount-proc bash -c "'$work/slurmd' 20 & '$testbed/up' --name tbother; code=\$?; kill \$!; exit \$code"
    [[ $output == *"slurmd runs here"* ]]
    run -1 setpriv --reuid=65534 --regid=65534 --clear-groups "$testbed/up" --name tbother
    [[ $output == *"need root"* ]]
    [ ! -e /var/lib/moebatch-testbed/tbother ]
}

# left_of NAME BRIDGE: whatever is still there of a testbed.
left_of() {
    ls -d "/var/lib/moebatch-testbed/$1" 2> /dev/null
    ip netns list | grep "^mbt-$1-"
    ip -o link | grep " $2[n:@]"
    grep -E "testbed-$1-|testbed/$1/" /proc/mounts
    for environ in /proc/[0-9]*/environ; do
        if tr '\0' '\n' 2> /dev/null < "$environ" | grep -qx "MB_TESTBED_DIR=/var/lib/moebatch-testbed/$1"; then echo "$environ"; fi
    done
    return 0
}
bridge_of() { printf 'mbt%s' "$(sed -n 's/^number=//p' "/var/lib/moebatch-testbed/$1/settings")"; }

@test "a start that is killed half-way is cleaned up by down, beside a running testbed" {
    unset SLURM_CONF
    "$testbed/up" --name tbhalf --no-accounting > /dev/null 2>&1 3>&- &
    until_true 30 test -s /var/lib/moebatch-testbed/tbhalf/run/ctl.pid
    kill -KILL $!
    bridge=$(bridge_of tbhalf)
    [ "$bridge" != "$(bridge_of tbtest)" ]
    [ "$(left_of tbhalf "$bridge" | wc -l)" -ge 3 ]
    "$testbed/down" --name tbhalf
    [ -z "$(left_of tbhalf "$bridge" | tee /dev/stderr)" ]
    "$testbed/status" --name tbtest | grep -q 'slurmctld -D'
}

@test "down ends a testbed with running jobs and leaves nothing of it" {
    bridge=$(bridge_of tbtest)
    sbatch -N3 -n12 -o "$work/last.log" --wrap "echo runs; srun sleep 300"
    until_true 30 test -s "$work/last.log"
    [ "$(left_of tbtest "$bridge" | wc -l)" -ge 10 ]
    "$testbed/down" --name tbtest
    [ -z "$(left_of tbtest "$bridge" | tee /dev/stderr)" ]
    run -0 "$testbed/down" --name tbtest
    [[ $output == "no testbed 'tbtest' is up" ]]
    run -1 "$testbed/env" --name tbtest
}

@test "a project folder under /tmp is there on every node" {
    local copy
    copy=$(mktemp -d /tmp/testbed-copy-XXXXXX)
    cp -r --parents slurm "$copy"
    "$copy/slurm/testbed/up" --name tbtmp --no-accounting > /dev/null
    # shellcheck disable=SC2030,SC2031
    (
        unset SLURM_CONF MB_TESTBED
        eval "$("$copy/slurm/testbed/env" --name tbtmp)"
        cd "$copy"
        srun -N2 bash -c 'cp slurm/lib.sh seen-by-$SLURMD_NODENAME'
    )
    ls "$copy"
    "$copy/slurm/testbed/down" --name tbtmp
    cmp slurm/lib.sh "$copy/seen-by-n1"
    cmp slurm/lib.sh "$copy/seen-by-n2"
    rm -rf "$copy"
}
