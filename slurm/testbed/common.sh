# shellcheck shell=bash
# slurm/testbed/common.sh: what the testbed's commands share: names and places, options, checks, locks, nodes.
#
# A testbed is a real Slurm cluster on one machine. Every node is a network namespace with a cable (veth) into
# one bridge, and inside it its own mount, host name, IPC and process namespaces: its own /tmp and /dev/shm,
# everything else shared, like compute nodes on a shared file system. The controller's daemons (munged, slurmctld,
# and slurmdbd with MariaDB where installed) stay on the machine's network, in a process namespace of their own.
# The first process of such a namespace takes everything in it along when it dies: that is how a node loses its
# power, and why `down` leaves nothing behind.
# shellcheck disable=SC2034 # what is set here is used by the commands

testbed_base=/var/lib/moebatch-testbed # not under /tmp: the nodes have their own there
testbed_here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

say() { printf '%s\n' "$*"; }
die() {
    printf 'testbed: %s\n' "$*" >&2
    exit 1
}
usage_of() { sed -n '2,/^set -/{/^# \{0,1\}/s///p}' "$1"; }
bad_usage() {
    printf 'testbed: %s (see --help)\n' "$1" >&2
    exit 2
}

# options "$@": --name NAME for every command; the rest stays in the array `rest`.
options() {
    testbed_name=mb
    rest=()
    while [ $# -gt 0 ]; do
        case $1 in
            --name) testbed_name=${2:-} && shift $(($# > 1 ? 2 : 1)) ;;
            --name=*) testbed_name=${1#*=} && shift ;;
            -h | --help) usage_of "$0" && exit 0 ;;
            *) rest+=("$1") && shift ;;
        esac
    done
    [[ $testbed_name =~ ^[a-z][a-z0-9]{0,15}$ ]] || bad_usage "--name wants 1 to 16 small letters and digits, a letter first, not '$testbed_name'"
    testbed_dir=$testbed_base/$testbed_name
}

# --- checks -----

need_root() {
    [ "$(id -u)" -eq 0 ] || die "network namespaces and mounts need root: sudo $0 ..."
}

need_packages() {
    local tool missing=()
    for tool in slurmctld slurmd srun munged ip nsenter unshare flock; do
        [ -n "$(path_of "$tool")" ] || missing+=("$tool")
    done
    [ ${#missing[@]} -eq 0 ] || die "not installed: ${missing[*]}; run: $testbed_here/install (with --accounting for sacct)"
}

# Daemons live in sbin, which is not in everybody's PATH.
path_of() { PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin command -v "$1" || true; }
has_accounting() { [ -n "$(path_of slurmdbd)" ] && [ -n "$(path_of mariadbd)" ] && [ -n "$(path_of mariadb-install-db)" ]; }

# A machine that is part of a real cluster is left alone.
refuse_real_slurm() {
    local conf pid comm
    for conf in /etc/slurm/slurm.conf /etc/slurm-llnl/slurm.conf; do
        [ ! -e "$conf" ] || die "$conf exists: this machine belongs to a real Slurm cluster, no testbed here"
    done
    case ${SLURM_CONF:-} in
        '' | "$testbed_base"/*) ;;
        *) die "SLURM_CONF is set to $SLURM_CONF: that is another Slurm; unset it if a testbed is what you want" ;;
    esac
    for pid in /proc/[0-9]*; do
        read -r comm 2> /dev/null < "$pid/comm" || continue
        case $comm in slurmctld | slurmd) ;; *) continue ;; esac
        tr '\0' '\n' 2> /dev/null < "$pid/environ" | grep -q "^MB_TESTBED_DIR=$testbed_base/" && continue
        [ -n "$(tr -d '\0' 2> /dev/null < "$pid/cmdline")" ] || continue # it just ends
        die "$comm runs here (pid ${pid#/proc/}) and is not a testbed's: this machine belongs to a real Slurm cluster, no testbed here"
    done
}

need_up() {
    [ -e "$testbed_dir/settings" ] || die "no testbed '$testbed_name' is up; run: $testbed_here/up --name $testbed_name"
    load_settings
}

# A node by its name, as the first of `rest`.
need_node() {
    [ ${#rest[@]} -eq 1 ] || bad_usage "one node wanted, as n1"
    node=${rest[0]}
    if ! [[ $node =~ ^n[1-9][0-9]*$ ]] || [ "${node#n}" -gt "$nodes" ]; then die "no node '$node' in testbed '$testbed_name': it has n1 to n$nodes"; fi
}

# --- places and numbers -----

# Holds the lock of all testbeds, on the base folder itself, until unlock. The folder may have been removed while we waited for it.
lock() {
    while :; do
        mkdir -p "$testbed_base"
        exec 9< "$testbed_base" || continue
        flock 9
        [ "$testbed_base" -ef /proc/self/fd/9 ] && return
    done
}
unlock() { exec 9<&-; }

# Settings are what `up` was asked for; `number` gives the testbed its subnet, bridge and ports.
number=0 nodes=0 accounting=no
load_settings() {
    # shellcheck source=/dev/null
    . "$testbed_dir/settings"
    subnet=10.77.$number
    bridge=mbt$number
    port_ctld=$((17000 + 10 * number))
    port_dbd=$((port_ctld + 1))
    port_db=$((port_ctld + 2))
    conf=$testbed_dir/etc/slurm.conf
}
space_of() { printf 'mbt-%s-%s' "$testbed_name" "$1"; } # a node's network namespace
cable_of() { printf '%s%s' "$bridge" "$1"; }            # its end of the cable on the bridge; at most 15 characters

# first_of ROLE: the outer pid of a live first process (ctl, n1, ...), else nothing.
first_of() {
    local pid
    read -r pid 2> /dev/null < "$testbed_dir/run/$1.pid" || return 0
    tr '\0' '\n' 2> /dev/null < "/proc/$pid/environ" | grep -qx "MB_TESTBED_DIR=$testbed_dir" && printf '%s' "$pid"
    return 0
}

# wait_for SECONDS COMMAND...: until the command succeeds.
wait_for() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.1
    done
}

# --- processes -----

# detached LOG COMMAND...: in the background, in a session of its own, holding none of our files; its pid is then in `started`.
detached() {
    local log=$1
    shift
    (
        for fd in /proc/self/fd/*; do
            fd=${fd##*/}
            [ "$fd" -le 2 ] || eval "exec $fd>&-"
        done
        MB_TESTBED_DIR=$testbed_dir SLURM_CONF=$testbed_dir/etc/slurm.conf exec setsid "$@" < /dev/null >> "$log" 2>&1
    ) &
    started=$!
}

# end_first ROLE: kills the role's first process and with it all the others there; returns when they are gone.
end_first() {
    local pid
    pid=$(first_of "$1")
    rm -f "$testbed_dir/run/$1.pid"
    [ -n "$pid" ] || return 0
    kill -KILL "$pid" 2> /dev/null || return 0
    wait_for 20 gone "$pid" || die "process $pid of $1 does not go away"
}
gone() { [ ! -d "/proc/$1" ]; }

ctl_start() {
    detached "$testbed_dir/log/ctl.log" unshare --mount --pid --fork "$testbed_here/inside.sh" ctl "$testbed_name"
    wait_for 60 controller_answers_or_ended || true
    controller_answers || die "the controller does not answer; see $testbed_dir/log"
}
controller_answers_or_ended() { controller_answers || [ ! -d "/proc/$started" ]; }
controller_answers() { SLURM_CONF=$conf scontrol ping 2> /dev/null | grep -q UP; }

# node_start NODE: network, namespaces, slurmd.
node_start() {
    local node=$1 space cable
    space=$(space_of "$node")
    cable=$(cable_of "$node")
    ip netns add "$space"
    ip link add "$cable" type veth peer name eth0 netns "$space"
    ip link set "$cable" master "$bridge" up
    ip -n "$space" link set lo up
    ip -n "$space" address add "$(address_of "$node")/24" dev eth0
    ip -n "$space" link set eth0 up
    detached "$testbed_dir/log/$node.log" nsenter --net="/run/netns/$space" unshare --mount --uts --ipc --pid --fork --propagation slave \
        "$testbed_here/inside.sh" node "$testbed_name" "$node"
}
address_of() { printf '%s.%d' "$subnet" $((10 + ${1#n})); }

# node_end NODE: as when its power goes: first silence on the network, then every process at once; what its network stack remembered is gone as well.
node_end() {
    local node=$1 space pid
    space=$(space_of "$node")
    ip link set "$(cable_of "$node")" down 2> /dev/null || true
    end_first "$node"
    [ -e "/run/netns/$space" ] || return 0
    for pid in $(ip netns pids "$space" 2> /dev/null); do kill -KILL "$pid" 2> /dev/null || true; done
    ip netns delete "$space"
    ip link delete "$(cable_of "$node")" 2> /dev/null || true
}

# node_is_usable NODE SINCE: Slurm can use it, and its slurmd registered after that moment (ISO time).
node_state() { SLURM_CONF=$conf sinfo -h -N -n "$1" -p main -o %T 2> /dev/null; }
node_is_usable() {
    local started
    [[ $(node_state "$1") =~ ^(idle|mixed|allocated|completing)$ ]] || return 1
    started=$(SLURM_CONF=$conf scontrol -o show node "$1" | sed -n 's/.* SlurmdStartTime=\([^ ]*\).*/\1/p')
    [[ ! $started < $2 ]]
}
now() { date +%Y-%m-%dT%H:%M:%S; }
