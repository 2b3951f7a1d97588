#!/usr/bin/env bash
# slurm/testbed/inside.sh ctl NAME | node NAME NODE: the first process of the controller's or a node's namespaces (started by up and heal-node, not by hand).
set -euo pipefail
# shellcheck source=slurm/testbed/common.sh
. "$(dirname "$0")/common.sh"
role=$1
options --name "$2"
node=${3:-ctl}
load_settings
PATH=$PATH:/usr/sbin:/sbin

# /proc is still the one outside, so this is the pid by which others know us. Then our own.
read -r pid _ < /proc/self/stat
mount -t proc proc /proc
printf '%s\n' "$pid" > "$testbed_dir/run/$node.pid"

munge_start() {
    munged --foreground --force --key-file="$testbed_dir/etc/munge.key" --socket="$testbed_dir/run/munge.socket" --pid-file="$testbed_dir/run/munged.pid" \
        --log-file="$testbed_dir/log/munged.log" --seed-file="$testbed_dir/run/munge.seed" &
    wait_for 20 test -S "$testbed_dir/run/munge.socket"
}

# A database server of our own: own folder, own port, nothing of the machine's configuration.
database_start() {
    local data=$testbed_dir/db
    install -d -o mysql -g mysql -m 700 "$data"
    mariadb-install-db --no-defaults --user=mysql --datadir="$data" --skip-test-db --auth-root-authentication-method=socket \
        > "$testbed_dir/log/mariadb-install.log"
    mariadbd --no-defaults --user=mysql --datadir="$data" --tmpdir="$data" --socket="$data/socket" --pid-file="$data/pid" --bind-address=127.0.0.1 --port="$port_db" \
        --init-file="$testbed_dir/etc/database.sql" --innodb-buffer-pool-size=32M --innodb-log-file-size=16M --innodb-lock-wait-timeout=900 \
        --innodb-flush-log-at-trx-commit=0 --performance-schema=off --skip-log-bin >> "$testbed_dir/log/mariadbd.log" 2>&1 &
    wait_for 30 listens 127.0.0.1 "$port_db"
}
listens() { (exec 3<> "/dev/tcp/$1/$2") 2> /dev/null; }

accounting_start() {
    database_start
    slurmdbd -D &
    wait_for 30 listens "$subnet.1" "$port_dbd"
    sacctmgr -i add cluster "$testbed_name" > /dev/null
}

ctl_main() {
    munge_start
    [ "$accounting" = no ] || accounting_start
    slurmctld -D -f "$conf" &
}

# The node's own /tmp and /dev/shm: PMIx and Open MPI keep per-node files there, and two nodes must not find each other's. Mounts made outside still come in.
node_main() {
    local project
    project=$(cd "$testbed_here/../.." && pwd -P)
    hostname "$node"
    exec 7< "$project"
    mount -t tmpfs -o mode=1777 "testbed-$testbed_name-$node" /tmp
    case $project in /tmp/*) mkdir -p "$project" && mount --no-canonicalize --bind /proc/self/fd/7 "$project" ;; esac # a clone there is seen by all nodes
    exec 7<&-
    mount -t tmpfs -o mode=1777 "testbed-$testbed_name-$node" /dev/shm
    mount --bind "$testbed_dir/etc/hosts" /etc/hosts
    slurmd -D -f "$conf" -N "$node" &
}

if [ "$role" = ctl ]; then ctl_main; else node_main; fi
# The last daemon started is the one that counts; bash also buries the orphans of jobs, as a first process has to.
wait $!
