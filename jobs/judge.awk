# judge.awk: what state one unit of a run is in, and why: a stage, an element of an array, a point of a sweep. After records.awk.
#
# The newest thing that knows counts: a job that is queued or runs, else the unit's record, else a lease whose holder lives, else how the
# newest job ended (failure.json, attempts.tsv, what Slurm says). States: done running queued failed cancelled stopped unknown none.
#
# Contents: 1. the judgement  2. what a pending job waits for  3. leases  4. how it ended  5. progress  6. what is read

# ---- 1. the judgement ----
# judge(folder, stage, suffix, element): sets J_state, J_text (for the table), J_job, J_nodes, J_why (it waits), J_cause (it failed), J_log.
# element: -1 the whole stage, -2 no job of its own.
function judge(folder, stage, suffix, element,    i, made) {
    J_state = J_text = J_job = J_nodes = J_why = J_cause = J_log = J_dead = ""
    J_base = 0
    if (element == -1 && stage in array_of) element = element_of[stage]
    pick_jobs(stage, element)
    made = record_time(folder "/done" suffix ".json")
    i = active_pick(element)
    if (picks > 0) name_job(i > 0 ? pick[i] : pick[picks], element)
    if (made != "" && (i == 0 || job_time[J_base] <= made)) return set_state("done", "done")
    if (i > 0) return judge_active(pick[i], stage)
    if (judge_lease(folder, suffix)) return 1
    return judge_ended(folder, stage, suffix)
}

function set_state(state, text) {
    J_state = state
    J_text = text
    return 1
}

# Submissions that hold this unit, oldest first.
function pick_jobs(stage, element,    i, name) {
    picks = 0
    if (element == -2) return
    name = stage in array_of ? array_of[stage] : stage
    for (i = 1; i <= job_count; i++) {
        if (job_line[job_id[i]] != i) continue # the number was given again to a later job
        if (element >= 0 ? job_name[i] == name && has_task(i, element) : job_name[i] == (tasks[stage] > 0 ? stage "/join" : stage) && job_tasks[i] == "-") pick[++picks] = i
    }
}

function unit_id(i, element) { return job_tasks[i] == "-" ? job_id[i] : job_id[i] "_" element }

function name_job(i, element) {
    J_base = job_id[i]
    J_job = unit_id(i, element)
    J_line = i
    J_log = log_of(i, element)
    J_nodes = J_job in queue_nodes && queue_nodes[J_job] != "" ? queue_nodes[J_job] : try_nodes[J_job]
}

function log_of(i, element,    log_) {
    log_ = job_log[i]
    gsub(/%[jA]/, job_id[i], log_)
    gsub(/%a/, element >= 0 ? element : "*", log_)
    return log_
}

# Time of a record that is whole ("" none): written at once by a rename, but file systems lose tails when a machine goes down.
function record_time(file,    line, last) {
    if (!(file in mtime) || size[file] == 0) return ""
    while ((getline line < (root "/" file)) > 0) if (line ~ /[^ \t\r]/) last = line
    close(root "/" file)
    return last ~ /}[ \t\r]*$/ ? mtime[file] : ""
}

function active_pick(element,    i, id) {
    for (i = picks; i >= 1; i--) {
        id = unit_id(pick[i], element)
        if (id in queue_state && is_active(queue_state[id])) return i
    }
    return 0
}

# A job that Slurm holds. An array whose parts wait as one ("15_[3-7]") is expanded by squeue -r.
function judge_active(i, stage,    state, reason) {
    state = queue_state[J_job]
    reason = queue_reason[J_job]
    if (state !~ /^(PENDING|REQUEUED|REQUEUE_FED|REQUEUE_HOLD|SPECIAL_EXIT)$/)
        return set_state("running", state == "CONFIGURING" ? "starting" : state == "COMPLETING" ? "ending" : state == "SUSPENDED" || state == "STOPPED" ? "suspended" : "running")
    J_nodes = ""
    if (reason == "Dependency") {
        set_state("queued", "waiting for " dependency_words(i, stage))
        return 1
    }
    if (reason == "DependencyNeverSatisfied") {
        J_cause = "it waits for " dependency_words(i, stage) ", which did not end well (DependencyNeverSatisfied)"
        J_log = ""
        return set_state("failed", "can never start")
    }
    if (reason == "BeginTime") {
        J_why = requeue_words() "begins at " clock(queue_begin[J_job], today) " (scontrol update JobId=" J_job " StartTime=now ends the wait)"
        return set_state("queued", (try_count[J_job] > 0 ? "requeued" : "queued") ", begins " clock(queue_begin[J_job], today))
    }
    if (never_starts(reason)) {
        J_cause = reason_words(reason)
        J_log = ""
        return set_state("failed", "can never start")
    }
    J_why = requeue_words() reason_words(reason) expected_words()
    return set_state("queued", reason ~ /[Hh]eld|^JobHold/ || state == "REQUEUE_HOLD" || state == "SPECIAL_EXIT" ? "held" : try_count[J_job] > 0 ? "requeued" : "queued")
}

# ---- 2. what a pending job waits for ----

# When Slurm's backfill thinks it will start, where it says so.
function expected_words() { return queue_begin[J_job] ~ /^[0-9]+-/ ? "; expected to start " clock(queue_begin[J_job], today) : "" }

# Why it went back into the queue: as its last attempt said, if it could.
function requeue_words(    reason) {
    if (try_count[J_job] == 0) return ""
    reason = try_end[J_job] == "" ? "its last attempt ended without a word, with its node or by preemption" : try_reason[J_job]
    sub(/^requeued: /, "", reason)
    return "requeued" (reason == "" ? "" : " (" reason ")") "; "
}

# The stages whose jobs a pending job still waits for: as Slurm says, else as submitted.
function dependency_words(i, stage,    text, part_, n, k, out, id) {
    text = queue_dependency[J_job]
    if (text == "" || text == "(null)") text = job_after[i]
    gsub(/\([a-z]+\)/, "", text)
    n = split(text, part_, /[^0-9A-Za-z_]+/)
    out = ""
    for (k = 1; k <= n; k++) {
        id = part_[k]
        sub(/_.*/, "", id)
        if (id == "singleton") out = with(out, "its own earlier job", ", ")
        if (id !~ /^[0-9]+$/) continue
        out = with(out, id in stage_of ? stage_label(stage_of[id], stage) : "job " id, ", ")
    }
    return out != "" ? out : after[stage] != "" ? after[stage] : "another job"
}

# A joining job waits for its own elements.
function stage_label(name, stage) {
    sub(/\/join$/, "", name)
    return name == stage ? "its elements" : name
}

function never_starts(reason) {
    return reason ~ /^(PartitionTimeLimit|PartitionNodeLimit|BadConstraints|InvalidAccount|InvalidQOS|MaxMemPerLimit|AccountNotAllowed|QOSNotAllowed|ReservationDeleted)$/ ||
        reason ~ /^(QOS|Assoc)(Max|Min).*PerJob/
}

function reason_words(reason) {
    if (reason == "Resources") return "waits for free nodes (Resources)"
    if (reason == "Priority") return "jobs of higher priority are before it (Priority)"
    if (reason == "JobHeldUser") return "held by its owner: scontrol release " J_job " lets it go (JobHeldUser)"
    if (reason == "JobHeldAdmin") return "held by an administrator (JobHeldAdmin)"
    if (reason ~ /^(JobHoldMaxRequeue|launch_failed_requeued_held|launch failed requeued held|job_requeued_in_held_state|job requeued in held state)$/)
        return "held after a failed start: look at its log, then scontrol release " J_job " (" reason ")"
    if (reason == "JobArrayTaskLimit") return "as many elements run as the array's throttle allows (JobArrayTaskLimit)"
    if (reason ~ /^ReqNodeNotAvail/) return "nodes it needs are down, drained or reserved (" reason ")"
    if (reason ~ /^(NodeDown|PartitionDown|PartitionInactive)$/) return "the administrators have taken its nodes or partition out of service (" reason ")"
    if (reason == "PartitionTimeLimit") return "asks for more time than the partition allows: lower slurm.time and run the study again (PartitionTimeLimit)"
    if (reason == "PartitionNodeLimit") return "asks for more nodes than the partition allows: lower slurm.nodes and run the study again (PartitionNodeLimit)"
    if (reason == "BadConstraints") return "no node has what it asks for (BadConstraints)"
    if (reason ~ /^(QOS|Assoc)(Max|Min).*PerJob/) return "asks for more than one job of this account or QOS may have (" reason ")"
    if (reason ~ /^(QOS|Assoc)Grp.*Minutes/) return "the account's or QOS's hours are used up (" reason ")"
    if (reason ~ /^(QOS|Assoc)/) return "a limit of the account or QOS; it starts when other jobs have ended (" reason ")"
    if (reason == "Reservation") return "waits for its reservation to begin (Reservation)"
    if (reason == "Licenses") return "waits for a licence (Licenses)"
    if (reason == "" || reason == "None") return "Slurm has not looked at it yet"
    return never_starts(reason) ? "Slurm refuses it: " reason : "Slurm says: " reason
}

# ---- 3. leases ----

# A lease: of a job that runs, of a process that lives here, of one elsewhere that nobody can see from here.
function judge_lease(folder, suffix,    file, alive, age) {
    file = folder "/lease" suffix
    if (!(file in mtime) || !json_load(root "/" file, lease)) return 0
    alive = lease_state(lease)
    age = progress_age(folder, suffix)
    if (alive == "?" && age != "" && age < 600) alive = "yes"
    if (alive == "yes") {
        J_nodes = J_nodes != "" ? J_nodes : lease["host"]
        J_job = J_job != "" || lease["job"] == "" ? J_job : lease["job"]
        J_log = J_log != "" ? J_log : own_log(folder)
        return set_state("running", lease["job"] == "" ? "running (pid " lease["pid"] ")" : "running")
    }
    J_dead = "its process (pid " lease["pid"] " on " lease["host"] ") is gone without a word: killed, or the machine restarted"
    if (alive == "no") return 0
    J_why = "pid " lease["pid"] " on " lease["host"] (lease["job"] == "" ? "" : ", job " lease["job"] ",") " holds the lease; that can only be checked there"
    return set_state("unknown", "held by " lease["host"])
}

# yes, no, or "?".
function lease_state(lease,    line, field) {
    if (lease["job"] != "") {
        if (raw_active[lease["job"]]) return "yes"
        if (slurm == "yes") return "no"
    }
    if (lease["host"] != host) return "?"
    if (lease["boot"] != "" && boot != "" && lease["boot"] != boot) return "no"
    if ((getline line < ("/proc/" lease["pid"] "/stat")) <= 0) return "no"
    close("/proc/" lease["pid"] "/stat")
    sub(/^.*\) /, "", line) # the name before it may hold anything; what follows begins with field 3
    split(line, field, " ")
    return field[1] !~ /^[ZX]$/ && (lease["start"] == "" || field[20] == lease["start"]) ? "yes" : "no"
}

function own_log(folder) { return (folder "/run.log") in mtime ? root "/" folder "/run.log" : "" }

# ---- 4. how it ended ----

# How the newest job, or a run without Slurm, ended.
function judge_ended(folder, stage, suffix,    state, has_failure, id) {
    if (J_log == "") J_log = own_log(folder)
    id = J_job != "" ? J_job : last_try[folder]
    state = J_job in queue_state ? queue_state[J_job] : acct_state[J_job]
    has_failure = load_failure(folder "/failure" suffix ".json")
    if (state ~ /^CANCELLED/) return judge_cancelled(stage, state, has_failure)
    if (has_failure) {
        if (stopped_by_user && failure["code"] + 0 == 75) return set_state("cancelled", "cancelled")
        J_cause = failure_words()
        if (state != "" && state !~ /^(FAILED|COMPLETED)/) J_cause = state_words(state) ": " J_cause
        return set_state("failed", "failed")
    }
    if (id != "" && try_end[id] != "" && (state == "" || state ~ /^(FAILED|COMPLETED)/)) return judge_code(stage, try_code[id], try_reason[id])
    if (state ~ /^COMPLETED/) return judge_code(stage, 0, "")
    if (state != "") {
        need[J_job] = 1
        J_cause = state_words(state)
        return set_state("failed", "failed")
    }
    if (J_job != "") {
        need[J_job] = 1
        if (slurm != "yes") return set_state("unknown", "unknown")
        J_cause = "Slurm no longer knows job " J_job ", and it left no result" (J_dead == "" ? "" : "; " J_dead)
        return set_state("failed", "lost")
    }
    if (J_dead != "") {
        J_cause = J_dead
        return set_state("failed", "failed")
    }
    if (program[stage] == "script" && (folder "/index.html") in mtime) return set_state("done", "done")
    if ((folder "/run.log") in mtime) return set_state("stopped", "stopped before its end")
    return set_state("none", not_yet())
}

function not_yet() { return job_count > 0 ? "not submitted" : "not started" }

# A failure counts unless it is of an earlier submission.
function load_failure(file,    at) {
    if (!(file in mtime) || !json_load(root "/" file, failure)) return 0
    at = seconds_of(failure["time"])
    return J_base == 0 || at == "" || at >= job_time[J_base] - 5
}

function failure_words(    text) {
    text = clean(failure["message"])
    if (text == "") text = "failed"
    text = text (failure["code"] == "" ? "" : " (code " failure["code"] ")")
    if (failure["host"] != "") text = (failure["rank"] == "" ? "" : "rank " failure["rank"] " ") "on " failure["host"] ": " text
    return text
}

function judge_cancelled(stage, state, has_failure,    n, list, i, ended) {
    # --kill-on-invalid-dep ends what can never start; it is told from a user's scancel by what it waited for.
    if (queue_reason[J_job] ~ /^Dependency/ || (try_count[J_job] == 0 && !stopped_by_user && job_after[J_line] != "" && !acct_nodes[J_job])) {
        n = split(job_after[J_line], list, ",")
        ended = ""
        for (i = 1; i <= n; i++)
            if (list[i] in stage_of && stage_of[list[i]] in bad_stage) ended = with(ended, stage_label(stage_of[list[i]], stage), ", ")
        if (ended != "" || queue_reason[J_job] ~ /^Dependency/) {
            J_cause = "never started: " (ended == "" ? dependency_words(J_line, stage) : ended) " did not end well (DependencyNeverSatisfied)"
            bad_stage[stage] = bad_stage[stage "/join"] = 1
            return set_state("cancelled", "never started")
        }
    }
    J_cause = (state ~ / by / ? "CANCELLED by " user_words(state) : stopped_by_user ? "cancelled by jobs/cancel.sh" : "CANCELLED by scancel") (has_failure ? "; " failure_words() : "")
    bad_stage[stage] = bad_stage[stage "/join"] = 1
    return set_state("cancelled", "cancelled")
}

function user_words(state) {
    sub(/^.* by /, "", state)
    return state ~ /^[0-9]+$/ ? "user " state : state
}

function judge_code(stage, code, reason) {
    if (reason ~ /^cancelled/ || (stopped_by_user && reason ~ /^stopped/)) {
        J_cause = reason ~ /^cancelled/ && !stopped_by_user ? "CANCELLED by scancel" : "cancelled by jobs/cancel.sh"
        return set_state("cancelled", "cancelled")
    }
    sub(/^failed: /, "", reason)
    if (code == 75) return set_state(stopped_by_user ? "cancelled" : "stopped", stopped_by_user ? "cancelled" : "stopped at a checkpoint")
    if (code == 0 && (program[stage] !~ /^moe-/)) return set_state("done", "done")
    J_cause = code == 0 ? "it ended with code 0 but left no done.json" : "exit code " code (reason == "" ? "" : ": " reason)
    return set_state("failed", "failed")
}

function state_words(state) {
    if (state ~ /^NODE_FAIL/) return "its node failed (NODE_FAIL)"
    if (state ~ /^BOOT_FAIL/) return "its node did not boot (BOOT_FAIL)"
    if (state ~ /^TIMEOUT/) return "it ran past its time limit; give more slurm.time (TIMEOUT)"
    if (state ~ /^DEADLINE/) return "it ran into its deadline (DEADLINE)"
    if (state ~ /^OUT_OF_ME/) return "it ran out of memory; give more slurm.memory or nodes (OUT_OF_MEMORY)"
    if (state ~ /^PREEMPTED/) return "preempted and not requeued (PREEMPTED)"
    if (state ~ /^FAILED/) return acct_code[J_job] != "" ? "exit code " acct_code[J_job] " (FAILED)" : "it failed without a word; its log may tell (FAILED)"
    return "Slurm says " state
}

# ---- 5. progress and restarts ----

function progress_age(folder, suffix,    at) {
    if (!load_progress(folder, suffix)) return ""
    at = seconds_of(progress["time"])
    return at == "" ? now - mtime[folder "/progress" suffix ".json"] : now - at
}

function load_progress(folder, suffix) {
    split("", progress)
    return (folder "/progress" suffix ".json") in mtime && json_load(root "/" folder "/progress" suffix ".json", progress)
}

function percent_of(    p) {
    if (progress["percent"] ~ /[0-9]/) return progress["percent"] + 0
    return progress["total"] + 0 > 0 ? 100 * progress["done"] / progress["total"] : ""
}

# The program's own line has percent and time left already; of what no longer runs only how far it came is of use.
function progress_words(is_running,    text) {
    text = clean(progress["text"])
    if (!is_running && progress["total"] + 0 > 0) return sprintf("%s/%s (%d %%)%s", progress["done"], progress["total"], percent_of(), progress["unit"] == "" ? "" : " " clean(progress["unit"]))
    if (percent_of() == "" || index(text, "%")) return text
    text = sprintf("%d %%", percent_of()) (text == "" ? "" : " " text)
    return text (is_running && progress["seconds_left"] ~ /^[0-9]/ ? ", " duration(progress["seconds_left"]) " left" : "")
}

# Restarts of a job: by what was written at its starts.
function restarts_of(id) { return try_restart[id] > try_count[id] - 1 ? try_restart[id] : try_count[id] > 1 ? try_count[id] - 1 : 0 }

# ---- 6. what is read ----

function read_all_attempts(    name) {
    for (name in mtime) if (name ~ /(^|\/)attempts\.tsv$/) {
        read_attempts(root "/" name)
        sub(/\/?attempts\.tsv$/, "", name)
        last_try[name] = last_attempt
    }
}

# What accounting says of jobs that Slurm has forgotten: id, name, state, exit code, nodes.
function read_accounting(file,    line, field, id, i, set, k, at) {
    while ((getline line < file) > 0) {
        if (split(line, field, "\t") < 5 || field[1] ~ /[.+]/) continue
        id = field[1]
        sub(/_.*/, "", id)
        i = id in job_line ? job_line[id] : 0
        if (i == 0 || (job_title[i] != "" && job_title[i] != field[2])) continue
        if (match(field[1], /\[.*\]/)) { # elements that never started: 15_[3-7]
            expand(substr(field[1], RSTART + 1, RLENGTH - 2), set)
            for (k in set) acct_state[id "_" k] = field[3]
            continue
        }
        acct_state[field[1]] = field[3]
        acct_code[field[1]] = field[4]
        sub(/:0$/, "", acct_code[field[1]])
        acct_nodes[field[1]] = field[5] ~ /^None|^$/ ? "" : field[5]
    }
    close(file)
}
