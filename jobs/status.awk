# status.awk: the table of a run: stages, elements, points of a sweep, and what to do next. After records.awk and judge.awk; status.sh
# gathers what they read. MB_MODE: screen, brief, json, or missing (ids of jobs that only accounting can still tell about). Ends with 0
# all done, 1 something failed, 75 not finished.
#
# Contents: 1. one stage  2. the points of a sweep  3. next step  4. printing  5. main

# ---- 1. one stage ----

# report_stage(base, stage): a row of the table.
function report_stage(base, stage,    folder) {
    folder = join_path(base, stage)
    add_row(stage)
    if (tasks[stage] > 0) report_array(folder, stage)
    else report_job(folder, stage)
    if (r_state[rows] ~ /^(failed|cancelled)$/ || r_failed[rows]) bad_stage[stage] = bad_stage[stage "/join"] = bad_stage[stage in array_of ? array_of[stage] : stage] = 1
    count_state(r_state[rows], r_failed[rows])
}

function add_row(name) {
    r_name[++rows] = name
    r_state[rows] = r_text[rows] = r_job[rows] = r_nodes[rows] = r_detail[rows] = r_why[rows] = r_log[rows] = r_percent[rows] = r_left[rows] = r_list[rows] = ""
    r_failed[rows] = r_causes[rows] = r_restarts[rows] = r_total[rows] = r_done[rows] = r_running[rows] = 0
}

function count_state(state, also_failed) {
    total++
    counted[state]++
    if (state == "failed" || also_failed) failures++
}

function take_unit() {
    r_state[rows] = J_state
    r_text[rows] = J_text
    r_job[rows] = J_job
    r_nodes[rows] = J_nodes
    r_why[rows] = J_why
    r_log[rows] = J_log
}

function add_cause(task, text,    i) {
    for (i = 1; i <= r_causes[rows]; i++)
        if (cause_text[rows, i] == text) break
    if (i > r_causes[rows]) {
        r_causes[rows] = i
        cause_text[rows, i] = text
        cause_log[rows, i] = J_log
    }
    if (task >= 0) cause_task[rows, i, task] = 1
}

function report_job(folder, stage,    age) {
    judge(folder, stage, "", job_of_stage(stage))
    take_unit()
    if (J_cause != "") add_cause(-1, J_cause)
    r_restarts[rows] = restarts_of(J_job)
    if (J_state == "done" || J_state == "none" || !load_progress(folder, "")) return
    r_percent[rows] = percent_of()
    r_detail[rows] = progress_words(J_state == "running")
    if (J_state != "running") { r_detail[rows] = "reached " r_detail[rows]; return }
    r_left[rows] = progress["seconds_left"]
    age = progress_age(folder, "")
    if (age > 900) r_detail[rows] = r_detail[rows] "; no news for " duration(age)
}

# In a sweep's points the stages have no jobs of their own.
function job_of_stage(stage) { return no_jobs ? -2 : -1 }

function report_array(folder, stage,    k, n, suffix, count, bad, percent, first_job) {
    n = tasks[stage]
    r_total[rows] = n
    judge(folder, stage, "", -1)
    if (J_state == "done") { take_unit(); r_done[rows] = n; r_detail[rows] = "done " n "/" n; array_job(stage); return }
    split("", count)
    split("", bad)
    percent = 0
    for (k = 0; k < n; k++) {
        suffix = "-" k "of" n
        judge(folder, stage, suffix, k)
        count[J_state]++
        r_restarts[rows] += restarts_of(J_job)
        if (J_state == "failed") bad[k] = 1
        if (J_cause != "") add_cause(k, J_cause)
        if (J_state == "queued" && count["queued"] == 1) { r_why[rows] = J_why; first_job = J_text }
        if (J_state ~ /^(cancelled|stopped|unknown|none)$/ && !(J_state in unit_text)) unit_text[J_state] = J_text
        percent += J_state == "done" ? 100 : 0
        if (J_state == "running") {
            r_nodes[rows] = with(r_nodes[rows], J_nodes, ",")
            if (load_progress(folder, suffix)) {
                percent += percent_of()
                if (progress["seconds_left"] + 0 > r_left[rows] + 0) r_left[rows] = progress["seconds_left"]
            }
        }
    }
    if (count["done"] + count["running"] > 0) r_percent[rows] = percent / n
    r_done[rows] = count["done"] + 0
    r_running[rows] = count["running"] + 0
    r_failed[rows] = count["failed"] + 0
    r_list[rows] = ranges(bad, n)
    array_job(stage)
    r_detail[rows] = array_words(count, n, r_list[rows])
    array_state(folder, stage, count, n, first_job)
    split("", unit_text)
}

function array_words(count, n, list,    out, state, k, order) {
    out = "done " (count["done"] + 0) "/" n
    split("running queued failed cancelled stopped unknown none", order, " ")
    if (count["none"] == n) return plural(n, "element")
    for (k = 1; k <= 7; k++) {
        state = order[k]
        if (count[state] > 0) out = out ", " (state == "none" ? not_yet() : state) " " count[state] (state == "failed" ? " (" list ")" : "")
    }
    return out
}

# Newest array and newest joining job.
function array_job(stage,    i, array_id, join_id) {
    for (i = 1; i <= job_count; i++) {
        if (job_line[job_id[i]] != i) continue
        if (job_name[i] == stage && job_tasks[i] != "-") { array_id = job_id[i]; r_log[rows] = log_of(i, -1) }
        if (job_name[i] == stage "/join") join_id = job_id[i]
    }
    r_job[rows] = array_id (join_id == "" ? "" : (array_id == "" ? "" : "+") join_id)
}

function array_state(folder, stage, count, n, queued_text,    state, k, order) {
    if (count["done"] == n) {
        judge(folder, stage, "", -1)
        k = r_job[rows]
        take_unit()
        r_job[rows] = k
        if (J_state == "running") r_text[rows] = "joining"
        if (J_state == "none") r_text[rows] = "not joined"
        if (J_cause != "") add_cause(-1, J_cause)
        return
    }
    split("running queued failed stopped cancelled unknown none", order, " ")
    for (k = 1; k <= 7; k++) {
        state = order[k]
        if (count[state] == 0) continue
        r_state[rows] = state
        r_text[rows] = state == "queued" ? queued_text : state ~ /^(running|failed)$/ ? state : unit_text[state]
        return
    }
}

# ---- 2. the points of a sweep ----

# Which stages are common: those the points wait for, as the sweep wrote it; before that, those submitted by themselves. What waits for a
# varied stage is varied.
function split_stages(    i, k, n, list, stage) {
    for (i = 1; i <= stage_count; i++) if (program[stages[i]] == "sweep") points_stage = stages[i]
    n = split(after[points_stage], list, ",")
    for (k = 1; k <= n; k++) is_common[list[k]] = 1
    for (i = 1; i <= stage_count; i++) {
        stage = stages[i]
        if (points_stage != "") varied[stage] = !(stage in is_common)
        else varied[stage] = !(("common/" stage) in is_folder) && !(stage in submitted)
        n = split(after[stage], list, ",")
        for (k = 1; k <= n; k++) if (varied[list[k]]) varied[stage] = 1
    }
}

# The stages of one point.
function is_of_point(stage) { return varied[stage] && program[stage] !~ /^(sweep|script)$/ }

# points.tsv: a line of keys, then number and values of every point; without it, the folders.
function read_points(    line, field, key, n, k, name) {
    while ((getline line < (root "/points.tsv")) > 0) {
        n = split(line, field, "\t")
        if (field[1] !~ /^[0-9]+$/) { if (field[1] == "point") split(line, key, "\t"); continue }
        point_number[++point_count] = field[1] + 0
        for (k = 2; k <= n; k++) point_words[point_count] = point_words[point_count] (k > 2 ? " " : "") (key[k] == "" ? "" : key[k] "=") clean(field[k])
    }
    close(root "/points.tsv")
    if (point_count > 0) return
    for (k = 1; k <= folder_count; k++) {
        name = folders[k]
        if (name ~ /^point_[0-9]+$/) point_number[++point_count] = substr(name, 7) + 0
    }
}

# A point is done when all its stages are; it runs or waits as its job does; the first stage that failed says why.
function report_point(p,    folder, i, of, done, seen, running, bad, bad_log) {
    folder = sprintf("point_%03d", point_number[p])
    add_row(folder)
    of = done = seen = 0
    running = bad = bad_log = ""
    for (i = 1; i <= stage_count; i++) {
        if (!is_of_point(stages[i])) continue
        of++
        judge(folder "/" stages[i], stages[i], "", -2)
        if (J_state == "done") done++
        if (J_state != "none") seen++
        if (J_state == "running" && running == "") running = stages[i] point_progress(folder "/" stages[i])
        if (J_state == "failed" && bad == "") { bad = stages[i] ": " J_cause; bad_log = J_log }
    }
    judge(folder, points_stage, "", points_stage == "" ? -2 : point_number[p])
    if (J_state !~ /^(running|queued)$/ && J_text != "can never start") point_ended(of, done, seen, running, bad)
    if (J_state == "failed" && bad_log != "") J_log = J_log == "" ? bad_log : J_log
    take_unit()
    if (J_cause != "") add_cause(-1, J_cause)
    r_restarts[rows] = restarts_of(J_job)
    r_detail[rows] = (of > 0 ? "stages " done "/" of : "") (J_state == "running" && running != "" ? ", " running : "")
    r_detail[rows] = r_detail[rows] (r_detail[rows] != "" && point_words[p] != "" ? "  " : "") point_words[p]
    count_state(r_state[rows], 0)
}

function point_progress(folder) {
    if (!load_progress(folder, "")) return ""
    r_percent[rows] = percent_of()
    r_left[rows] = progress["seconds_left"]
    return " " progress_words(1)
}

# No job of it is active: its stages tell, then how its job ended.
function point_ended(of, done, seen, running, bad) {
    if (of > 0 && done == of) { J_cause = ""; set_state("done", "done") }
    else if (running != "") { J_cause = ""; set_state("running", "running") }
    else if (bad != "" && J_state !~ /^(cancelled|stopped)$/) { J_cause = bad; set_state("failed", "failed") }
    else if (J_state == "done" && of > 0) { J_cause = "it ended with code 0, but " (of - done) " of its stages have no done.json"; set_state("failed", "failed") }
    else if (J_state == "none" && seen > 0) set_state("stopped", "not finished")
}

# ---- 3. next step ----

# The command that goes on with the run: as it was written down, else as far as it can be told from what was submitted.
function resume_command(    line, field, i, n, word, config) {
    while ((getline line < (root "/sweep.tsv")) > 0) { split(line, field, "\t"); setting[field[1]] = field[2] }
    close(root "/sweep.tsv")
    n = bare_name()
    if (setting["config"] != "") return "jobs/sweep.sh --resume --run " n " " clean(setting["config"])
    if ((getline line < (root "/command")) > 0 && line ~ /[^ ]/) { close(root "/command"); return clean(line) }
    close(root "/command")
    config = "<study>.cfg"
    for (i = job_count; i >= 1; i--) {
        n = split(job_command[i], word, " ")
        for (; n > 0; n--) if (word[n] ~ /\.cfg$/) { config = word[n]; i = 0; break }
    }
    return "the study's script as before (jobs/<study>.sh --run " bare_name() " " config ")"
}

# What --run takes: without the study, wherever the checkpoints lie.
function bare_name(    name) {
    name = run_name
    sub(/^.*\/checkpoints\//, "", name)
    if (name ~ /^\//) sub(/^.*\//, "", name)
    else sub(/^[^\/]*\//, "", name)
    sub(/\/seed_[0-9]+$/, "", name)
    return name
}

function next_step(    i) {
    if (total == 0) return "nothing has been started"
    if (counted["done"] == total) return "all done; jobs/report.sh " run_name " tells what it cost"
    if (failures > 0) return "mend the cause, then " resume_command() "; what is done is left out"
    if (counted["running"] + counted["queued"] > 0) {
        for (i = 1; i <= rows; i++) if (r_text[i] == "held") return "look at the held job; the rest goes on by itself"
        return "nothing to do; jobs/cancel.sh " run_name " stops it at a checkpoint"
    }
    if (counted["unknown"] > 0 && slurm != "yes" && slurm != "none") return "ask again where Slurm answers"
    if (counted["unknown"] > 0) return "ask again on the machine that holds the lease"
    return "to go on, " resume_command() "; what is done is left out"
}

function state_of_run() {
    if (failures > 0) return "failed"
    return exit_code() == 0 ? "done" : "unfinished"
}

function exit_code() {
    if (failures > 0) return 1
    return total > 0 && counted["done"] == total ? 0 : 75
}

# ---- 4. printing ----

function summary(    out, k, order, words) {
    split("done running queued failed cancelled stopped unknown none", order, " ")
    out = ""
    for (k = 1; k <= 8; k++) {
        words = order[k] == "none" ? not_yet() : order[k] == "queued" ? "waiting" : order[k]
        if (counted[order[k]] > 0) out = out (out == "" ? "" : ", ") counted[order[k]] " " words
    }
    return (is_sweep ? total " stages and points" : plural(total, "stage")) (out == "" ? "" : ": " out)
}

function width_of(list, head, most,    i, w) {
    w = length(head)
    for (i = 1; i <= rows; i++) if (length(list[i]) > w) w = length(list[i])
    return w > most ? most : w
}

function print_screen(    i, w1, w2, w3, w4, line) {
    printf "%s  %s  %s\n", run_name, summary(), today_words()
    if (slurm != "yes" && slurm != "none") print "Slurm does not answer (" clean(slurm) "): what follows is from files alone"
    if (stopped_by_user) print "STOP is there: cancelled by jobs/cancel.sh; nothing of this run is requeued"
    print ""
    w1 = width_of(r_name, is_sweep ? "STAGE, POINT" : "STAGE", 40)
    w2 = width_of(r_text, "STATE", 40)
    w3 = width_of(r_job, "JOB", 24)
    w4 = width_of(r_nodes, "NODES", 24)
    print_row(pad(is_sweep ? "STAGE, POINT" : "STAGE", w1), pad("STATE", w2), pad("JOB", w3), pad("NODES", w4), "PROGRESS")
    for (i = 1; i <= rows; i++) {
        line = r_detail[i]
        if (r_percent[i] != "" && r_total[i] > 0 && r_state[i] != "done") line = line sprintf("; %d %%", r_percent[i]) (r_left[i] != "" && r_state[i] == "running" ? ", " duration(r_left[i]) " left" : "")
        if (r_restarts[i] > 0) line = line (line == "" ? "" : "; ") plural(r_restarts[i], "restart")
        print_row(pad(r_name[i], w1), pad(r_text[i], w2), pad(dash(r_job[i]), w3), pad(dash(r_nodes[i]), w4), line)
        print_more(i)
    }
    print ""
    for (i in stranger) print "job " i " of jobs.tsv is now another job, named " clean(stranger[i]) ": not counted"
    print "next: " next_step()
}

function today_words(    text) { text = today; sub(/T/, " ", text); return text }
function dash(text) { return text == "" ? "-" : text }

function print_row(a, b, c, d, e,    line) {
    line = a "  " b "  " c "  " d "  " e
    sub(/ +$/, "", line)
    print line
}

# Why it waits or failed, and where its log is.
function print_more(i,    k, set, t, label) {
    if (r_why[i] != "") print "    why:   " r_why[i]
    for (k = 1; k <= r_causes[i] && k <= 10; k++) {
        label = cause_label(i, k)
        print "    cause: " (label == "" ? "" : label ": ") cause_text[i, k]
        if (r_total[i] > 0 && cause_log[i, k] != "") print "    log:   " cause_log[i, k]
    }
    if (r_causes[i] > 10) print "    cause: and " (r_causes[i] - 10) " more"
    if (r_log[i] != "" && r_state[i] ~ /^(running|failed|stopped|unknown)$/ && !(r_total[i] > 0 && r_causes[i] > 0)) print "    log:   " r_log[i]
}

function cause_label(i, k,    set, t, n) {
    split("", set)
    n = 0
    for (t = 0; t < r_total[i]; t++) if ((i, k, t) in cause_task) { set[t] = 1; n++ }
    return n == 0 ? "" : (n == 1 ? "element " : "elements ") ranges(set, r_total[i])
}

function print_brief(    i, out) {
    out = run_name ": " summary()
    for (i = 1; i <= rows; i++) {
        if (r_state[i] == "running") out = out "; " r_name[i] " " r_text[i] (r_percent[i] != "" ? sprintf(" %d %%", r_percent[i]) : "") (r_left[i] != "" ? ", " duration(r_left[i]) " left" : "")
        if (r_causes[i] > 0 && (r_state[i] == "failed" || r_failed[i])) out = out "; " r_name[i] " " r_text[i] ": " cause_text[i, 1]
    }
    print out
}

function print_json(    i) {
    printf "{\"run\": %s, \"folder\": %s, \"time\": %s, \"slurm\": %s, \"state\": \"%s\", \"next\": %s, \"stages\": [", json_quote(run_name), json_quote(root), json_quote(today),
        json_quote(slurm), state_of_run(), json_quote(next_step())
    for (i = 1; i <= rows; i++) print_json_row(i)
    print "\n]}"
}

function print_json_row(i,    k) {
    printf "%s\n {\"stage\": %s, \"state\": \"%s\", \"text\": %s, \"job\": %s, \"nodes\": %s, \"restarts\": %d, \"elements\": %d, \"elements_done\": %d, \"elements_running\": %d, \"elements_failed\": %s",
        (i > 1 ? "," : ""), json_quote(r_name[i]), r_state[i], json_quote(r_text[i]), json_quote(r_job[i]), json_quote(r_nodes[i]), r_restarts[i], r_total[i], r_done[i], r_running[i], json_quote(r_list[i])
    printf ", \"percent\": %s, \"seconds_left\": %s, \"detail\": %s, \"why\": %s, \"log\": %s, \"causes\": [", r_percent[i] == "" ? "null" : r_percent[i],
        r_left[i] ~ /^[0-9.]+$/ ? r_left[i] : "null", json_quote(r_detail[i]), json_quote(r_why[i]), json_quote(r_log[i])
    for (k = 1; k <= r_causes[i]; k++)
        printf "%s{\"elements\": %s, \"cause\": %s, \"log\": %s}", (k > 1 ? ", " : ""), json_quote(cause_label(i, k)), json_quote(cause_text[i, k]), json_quote(cause_log[i, k])
    printf "]}"
}

# ---- 5. main ----

function report_sweep(    i, p) {
    split_stages()
    read_points()
    if (only ~ /^point_/) {
        no_jobs = 1 # a point runs as one job, its stages have none of their own
        for (i = 1; i <= stage_count; i++) if (is_of_point(stages[i])) report_stage(only, stages[i])
        return
    }
    for (i = 1; i <= stage_count; i++) if (!varied[stages[i]] && program[stages[i]] != "sweep") report_stage("common", stages[i])
    if (only == "common") return
    for (p = 1; p <= point_count; p++) report_point(p)
    for (i = 1; i <= stage_count; i++) if (program[stages[i]] == "script" && varied[stages[i]]) report_stage("", stages[i])
}

BEGIN {
    open_run()
    read_graph(root "/study.tsv")
    read_jobs(root "/jobs.tsv")
    for (i = 1; i <= job_count; i++) submitted[job_name[i]] = 1
    read_listing()
    read_all_attempts()
    read_queue(tmp "/queue")
    read_accounting(tmp "/accounting")
    stopped_by_user = "STOP" in mtime
    if (stage_count == 0 && !is_sweep) guess_graph()
    if (is_sweep) report_sweep()
    else for (i = 1; i <= stage_count; i++) report_stage("", stages[i])
    if (mode == "missing") { for (id in need) print id; exit 0 }
    if (mode == "json") print_json()
    else if (mode == "brief") print_brief()
    else print_screen()
    exit exit_code()
}
