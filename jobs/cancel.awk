# cancel.awk: what of a run is active. After records.awk and judge.awk's leases. MB_MODE: jobs ("how job stage state where", one line
# per job; how: cancel, with MB_GENTLY signal and withdraw, stranger), leases ("pid stage" of this host), elsewhere ("host stage").

function list_jobs(    id, base, gently) {
    gently = ENVIRON["MB_GENTLY"] != ""
    for (id in queue_state) {
        if (!is_active(queue_state[id]) || queue_state[id] == "COMPLETING") continue
        base = id
        sub(/_.*/, "", base)
        count[base]++
        if (queue_state[id] ~ /^(PENDING|REQUEUED|REQUEUE_HOLD|REQUEUE_FED|SPECIAL_EXIT)$/) waiting[base]++
        else if (queue_nodes[id] != "") nodes_of[base] = with(nodes_of[base], queue_nodes[id], ",")
    }
    for (base in count) {
        if (gently && count[base] > waiting[base]) print "signal\t" base "\t" stage_of[base] "\t" elements(count[base] - waiting[base], "running") "\t" where(base)
        if (gently && waiting[base] > 0) print "withdraw\t" base "\t" stage_of[base] "\t" elements(waiting[base], "queued") "\t"
        if (!gently) print "cancel\t" base "\t" stage_of[base] "\t" state_of(base) "\t" where(base)
    }
    for (base in stranger) print "stranger\t" base "\t" clean(stranger[base]) "\t\t"
}

function where(base) { return nodes_of[base] == "" ? "" : " on " nodes_of[base] }

function elements(n, state) { return n == 1 ? state : n " elements " state }

function state_of(base) {
    if (waiting[base] + 0 == 0) return elements(count[base], "running")
    if (waiting[base] == count[base]) return elements(count[base], "queued")
    return elements(count[base] - waiting[base], "running") ", " elements(waiting[base], "queued")
}

function list_leases(wanted,    name, alive, stage) {
    for (name in mtime) {
        if (name !~ /(^|\/)lease(-[0-9]+of[0-9]+)?$/ || !json_load(root "/" name, lease) || lease["job"] != "") continue
        stage = name
        sub(/\/lease[^\/]*$/, "", stage)
        alive = lease_state(lease)
        if (alive == "yes" && wanted == "leases") print lease["pid"] "\t" stage
        if (alive == "?" && wanted == "elsewhere" && !((stage "/done.json") in mtime)) print lease["host"] "\t" stage
    }
}

BEGIN {
    open_run()
    read_graph(root "/study.tsv")
    read_jobs(root "/jobs.tsv")
    read_listing()
    read_queue(tmp "/queue")
    if (mode == "jobs") list_jobs()
    else list_leases(mode)
}
