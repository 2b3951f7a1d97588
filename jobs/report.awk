# report.awk: what every stage of a run cost. After records.awk; report.sh gathers what it reads. MB_MODE: screen or tsv.
#
# A stage's jobs are all those ever submitted for it, so failed tries count. Where accounting knows them, time, cores, GPUs, memory and energy
# are its own; else attempts.tsv has starts and ends, jobs.tsv what was asked for; a stage without jobs (a local run) has done.json.
#
# Contents: 1. accounting  2. attempts  3. the record  4. rows  5. printing  6. main

# ---- 1. accounting ----

# sacct -D: one line per attempt ("12", "15_3") and per step ("12.batch", "15_3.0"), fields as report.sh asks for them.
function read_accounting(file,    line, field, id, base) {
    while ((getline line < file) > 0) {
        if (split(line, field, "\t") < 14) continue
        id = field[1]
        sub(/[.+].*/, "", id)
        base = id
        sub(/_.*/, "", base)
        if (!(base in job_line) || field[1] ~ /\[/) continue
        if (field[1] ~ /\./) add_step(base, id, field)
        else if (job_title[job_line[base]] == "" || job_title[job_line[base]] == field[2]) add_attempt(base, id, field)
    }
    close(file)
}

function add_attempt(base, id, field,    name, start, end, elapsed, n) {
    name = row_of(base, id)
    start = seconds_of(field[6])
    if (start == "" || (field[8] + 0 == 0 && field[11] == "")) return # never started: one cancelled in the queue has a start too
    end = seconds_of(field[7])
    if (end == "") end = seconds_of(today)
    elapsed = field[8] + 0
    n = ++acct_tries[id]
    if (n == 1) units[name]++
    has_acct[name] = 1
    add_span(name, n == 1 ? seconds_of(field[5]) : seconds_of(field[4]), start, end, elapsed, id ~ /_/)
    core_seconds[name] += elapsed * field[10]
    gpu_seconds[name] += elapsed * gpus_of(field[11])
    if (field[9] + 0 > nodes[name] + 0) nodes[name] = field[9]
    if (field[13] + 0 > 0) job_joules[name] += field[13]
    if (n > 1) restarts[name]++
    if (is_lost(id, n, field[3])) lost[name] += elapsed
}

# Time of an attempt that ended at no checkpoint of its own; periodic ones may have kept part of it.
function is_lost(id, n, state) {
    if ((id, n) in try_codes) return try_codes[id, n] != 0 && try_codes[id, n] != 75
    return state !~ /^(COMPLETED|RUNNING|REQUEUED|COMPLETING|PENDING|SUSPENDED)/
}

function add_step(base, id, field,    name) {
    name = row_of(base, id)
    if (field[14] + 0 > ntasks[name] + 0) ntasks[name] = field[14]
    if (bytes_of(field[12]) > rss[name] + 0) rss[name] = bytes_of(field[12])
    if (field[13] + 0 > 0) step_joules[name] += field[13]
}

function bytes_of(text,    unit) {
    unit = substr(text, length(text))
    unit = index("KMGT", unit)
    return unit > 0 && text != "" ? (text + 0) * 1024 ^ unit : text + 0
}

# Of "billing=4,cpu=4,gres/gpu=2,gres/gpu:a100=2,...": the GPUs of all kinds.
function gpus_of(tres) { return match(tres, /gres\/gpu=[0-9]+/) ? substr(tres, RSTART + 9, RLENGTH - 9) + 0 : 0 }

# One job's attempts add up; the elements of an array run beside each other, so theirs is the time from the first start to the last end.
function add_span(name, ready, start, end, elapsed, is_array) {
    if (is_array) {
        if (!(name in first_start) || start < first_start[name]) first_start[name] = start
        if (ready != "" && (!(name in first_ready) || ready < first_ready[name])) first_ready[name] = ready
        if (end > last_end[name] + 0) last_end[name] = end
    } else {
        run_seconds[name] += elapsed
        if (ready != "" && start >= ready) wait_seconds[name] += start - ready
        else wait_seconds[name] += 0
    }
    if (run_start == "" || start < run_start) run_start = start
    if (end > run_end + 0) run_end = end
}

# The row a job counts for: its stage; an element of an array of stages is the stage, one of a sweep's array a point.
function row_of(base, id,    name, stage) {
    name = stage_of[base]
    sub(/\/join$/, "", name)
    if (id !~ /_[0-9]+$/) return name
    sub(/.*_/, "", id)
    for (stage in array_of) if (array_of[stage] == name && element_of[stage] == id + 0) return stage
    if (program[name] != "sweep") return name
    return sprintf("point_%03d", id)
}

# ---- 2. attempts ----

# Codes of attempts in order; for is_lost, and for runs whose accounting does not answer.
function read_tries(file,    line, field, n, id) {
    while ((getline line < file) > 0) {
        if (split(line, field, "\t") < 6 || seconds_of(field[1]) == "" || field[2] !~ /^[0-9]/) continue
        id = field[2]
        if (field[6] == "start") {
            n = ++tries[id]
            try_begin[id, n] = seconds_of(field[1])
            tried_nodes[id] = count_nodes(field[4])
            tried_tasks[id] = field[5] + 0
        } else if (field[6] == "end" && tries[id] > 0) {
            try_stop[id, tries[id]] = seconds_of(field[1])
            try_codes[id, tries[id]] = field[7]
        }
    }
    close(file)
}

# Rows of jobs that accounting did not tell about. A job becomes ready when it was submitted, or when the last job before it ended.
function add_tries(    id, base, name, n, ready, end, cores, seconds) {
    for (id in tries) {
        base = id
        sub(/_.*/, "", base)
        if (!(base in job_line) || id in acct_tries) continue
        name = row_of(base, id)
        units[name]++
        has_tries[name] = 1
        cores = tried_tasks[id] * number_in(job_command[job_line[base]], "--cpus-per-task=")
        for (n = 1; n <= tries[id]; n++) {
            ready = n == 1 ? ready_time(base) : (id, n - 1) in try_stop ? try_stop[id, n - 1] : ""
            end = (id, n) in try_stop ? try_stop[id, n] : n < tries[id] ? try_begin[id, n] : now
            if (n == tries[id] && !((id, n) in try_stop) && !still_runs[base]) end = try_begin[id, n] # how long it lived nobody knows
            seconds = end - try_begin[id, n]
            add_span(name, ready, try_begin[id, n], end, seconds, id ~ /_/)
            core_seconds[name] += seconds * cores
            gpu_seconds[name] += seconds * gpus_asked(job_command[job_line[base]], tried_nodes[id], tried_tasks[id])
            if (n > 1) restarts[name]++
            if ((id, n) in try_codes ? try_codes[id, n] != 0 && try_codes[id, n] != 75 : 0) lost[name] += seconds
        }
        if (tried_nodes[id] > nodes[name] + 0) nodes[name] = tried_nodes[id]
        if (tried_tasks[id] > ntasks[name] + 0) ntasks[name] = tried_tasks[id]
    }
}

function ready_time(base,    ready, n, list, k) {
    ready = job_time[base]
    n = split(job_after[job_line[base]], list, ",")
    for (k = 1; k <= n; k++) if (list[k] in job_end && job_end[list[k]] > ready) ready = job_end[list[k]]
    return ready
}

function note_ends(    id, base) {
    for (id in tries) {
        base = id
        sub(/_.*/, "", base)
        if ((id, tries[id]) in try_stop && try_stop[id, tries[id]] > job_end[base] + 0) job_end[base] = try_stop[id, tries[id]]
    }
}

# The number after a flag of a command, the last one; 1 where it is not there.
function number_in(command, flag,    at, n) {
    n = 1
    while ((at = index(command, flag)) > 0) {
        command = substr(command, at + length(flag))
        if (command ~ /^[0-9]/) n = command + 0
    }
    return n
}

function gpus_asked(command, nodes_, tasks_,    value) {
    if (match(command, /--gpus=([a-z0-9_]+:)?[0-9]+/)) { value = substr(command, RSTART, RLENGTH); sub(/.*[=:]/, "", value); return value + 0 }
    if (match(command, /--gpus-per-task=([a-z0-9_]+:)?[0-9]+/)) { value = substr(command, RSTART, RLENGTH); sub(/.*[=:]/, "", value); return value * tasks_ }
    if (match(command, /--(gpus-per-node=|gres=gpu[:=])([a-z0-9_]+:)?[0-9]+/)) { value = substr(command, RSTART, RLENGTH); sub(/.*[=:]/, "", value); return value * nodes_ }
    return 0
}

# ---- 3. the record ----

# add_record(name, file): tokens a second, joules, memory, and for a stage without jobs its time.
function add_record(name, file,    done, key, used, forecast, seconds, is_new) {
    if (!json_load(root "/" file, done)) return 0
    used = forecast = seconds = 0
    for (key in done) {
        if (key ~ /^results\.memory_.*_used$/) used += done[key]
        else if (key ~ /^results\.memory_.*_forecast$/) forecast += done[key]
        else if (key ~ /^results\.([a-z]+_)?joules$/) joules[name] += done[key]
        else if (key ~ /^results\.(train|score|embed|generate|eval)_seconds$/) seconds = done[key] + 0
    }
    if (used > memory_used[name] + 0) { memory_used[name] = used; memory_forecast[name] = forecast }
    if (seconds > 0 && done["results.tokens"] > 0) {
        tokens[name] += done["results.tokens"]
        speed[name] += done["results.tokens"] / seconds
    }
    if (has_acct[name] || has_tries[name]) return 1
    is_local[name] = 1
    run_seconds[name] += done["provenance.seconds"]
    if (done["provenance.ranks"] + 0 > ntasks[name] + 0) ntasks[name] = done["provenance.ranks"] + 0
    nodes[name] = 1
    core_seconds[name] += done["provenance.seconds"] * done["provenance.ranks"] * threads_of(done["provenance.backend"])
    add_local_times(done)
    return 1
}

# Times in records are UTC, those of accounting are not; a run has one or the other.
function add_local_times(done,    start, end) {
    start = seconds_of(done["provenance.started"])
    end = seconds_of(done["provenance.ended"])
    if (start != "" && (run_start == "" || start < run_start)) run_start = start
    if (end != "" && end > run_end + 0) run_end = end
}

function threads_of(backend) { return match(backend, /[0-9]+ threads?/) ? substr(backend, RSTART, RLENGTH) + 0 : 1 }

# Records of a stage: its own, or those of its elements, which did the work.
function add_records(name, folder,    k, found) {
    found = 0
    for (k = 0; k < tasks[name]; k++) found += add_record(name, folder "/done-" k "of" tasks[name] ".json")
    if (found == 0) add_record(name, folder "/done.json")
}

# ---- 4. rows ----

function add_row(name, folder,    k) {
    row[++rows] = name
    if (folder != "") add_records(name, folder)
    if (name in first_start) {
        run_seconds[name] += last_end[name] - first_start[name]
        if (name in first_ready) wait_seconds[name] += first_start[name] > first_ready[name] ? first_start[name] - first_ready[name] : 0
    }
    if (job_joules[name] > 0) joules[name] = joules[name] > 0 ? joules[name] : job_joules[name]
    else if (step_joules[name] > 0) joules[name] = joules[name] > 0 ? joules[name] : step_joules[name]
    source[name] = has_acct[name] ? "sacct" : has_tries[name] ? "attempts" : is_local[name] ? "record" : "-"
    used_source[source[name]]++
    if (source[name] == "-") return
    sum_cores += core_seconds[name]
    sum_gpus += gpu_seconds[name]
    sum_joules += joules[name]
    sum_wait += wait_seconds[name]
    sum_run += run_seconds[name]
    sum_restarts += restarts[name]
    sum_lost += lost[name]
}

function add_point(folder,    i) {
    for (i = 1; i <= stage_count; i++)
        if ((folder "/" stages[i] "/done.json") in mtime) add_record(folder, folder "/" stages[i] "/done.json")
    delete speed[folder] # of several stages, together it means nothing
    add_row(folder, "")
}

# ---- 5. printing ----

function seconds_text(name, list) { return name in list ? duration(list[name]) : "-" }
function number_text(value, format) { return value + 0 > 0 ? sprintf(format, value) : "-" }
function size_text(bytes) { return bytes <= 0 ? "-" : bytes < 1048576000 ? sprintf("%.1f MiB", bytes / 1048576) : sprintf("%.2f GiB", bytes / 1073741824) }

function memory_text(name) { return memory_used[name] + 0 > 0 ? size_text(memory_used[name]) " / " size_text(memory_forecast[name]) : "-" }

function tasks_text(name) { return ntasks[name] + 0 == 0 ? (units[name] > 1 ? units[name] " x ?" : "-") : (units[name] > 1 && tasks[name] > 0 ? units[name] " x " : "") ntasks[name] }

function put(i, column, text) {
    cell[i, column] = text
    if (length(text) > width[column] + 0) width[column] = length(text)
}

function put_row(i, name) {
    put(i, 1, name)
    put(i, 2, seconds_text(name, wait_seconds))
    put(i, 3, seconds_text(name, run_seconds))
    put(i, 4, nodes[name] + 0 > 0 ? nodes[name] + 0 : "-")
    put(i, 5, tasks_text(name))
    put(i, 6, source[name] == "-" ? "-" : sprintf("%.2f", core_seconds[name] / 3600))
    put(i, 7, number_text(gpu_seconds[name] / 3600, "%.2f"))
    put(i, 8, number_text(speed[name], "%.0f"))
    put(i, 9, number_text(joules[name], "%.0f"))
    put(i, 10, memory_text(name))
    put(i, 11, rss[name] + 0 > 0 ? size_text(rss[name]) : "-")
    put(i, 12, source[name] == "-" ? "-" : restarts[name] + 0)
    put(i, 13, source[name] == "-" ? "-" : duration(lost[name] + 0))
}

function print_table(    i, c, n, head, line) {
    n = split("STAGE|WAIT|RUN|NODES|TASKS|CORE H|GPU H|TOKENS/S|JOULES|MEMORY USED / FORECAST|RSS|RESTARTS|LOST", head, "|")
    for (c = 1; c <= n; c++) put(0, c, head[c])
    for (i = 1; i <= rows; i++) put_row(i, row[i])
    put(rows + 1, 1, "total")
    put(rows + 1, 2, duration(sum_wait + 0))
    put(rows + 1, 3, duration(sum_run + 0))
    put(rows + 1, 6, sprintf("%.2f", sum_cores / 3600))
    put(rows + 1, 7, number_text(sum_gpus / 3600, "%.2f"))
    put(rows + 1, 9, number_text(sum_joules, "%.0f"))
    put(rows + 1, 12, sum_restarts + 0)
    put(rows + 1, 13, duration(sum_lost + 0))
    for (i = 0; i <= rows + 1; i++) {
        line = pad(cell[i, 1], width[1])
        for (c = 2; c <= n; c++) line = line "  " sprintf("%" width[c] "s", cell[i, c])
        sub(/ +$/, "", line)
        print line
    }
}

function print_screen() {
    print run_name "  what it cost, from " sources()
    print ""
    print_table()
    print ""
    if (run_start != "") print "from the first start to the last end: " duration(run_end - run_start)
    print "memory is of the largest rank; RSS of the largest task; lost: time of attempts that ended at no checkpoint of their own (at most: periodic checkpoints keep part)"
    if (has_arrays) print "arrays: run is from the first element's start to the last one's end; core and GPU hours are of all elements"
}

function sources(    out) {
    out = ""
    if (used_source["sacct"]) out = "sacct"
    if (used_source["attempts"]) out = out (out == "" ? "" : ", ") "attempts.tsv and jobs.tsv" (used_source["sacct"] ? "" : " (sacct does not answer)")
    if (used_source["record"]) out = out (out == "" ? "" : ", ") "done.json (" plural(used_source["record"], "stage") " without a job)"
    return out == "" ? "nothing: no stage has run" : out
}

function print_tsv(    i, name) {
    print "stage\twait_seconds\trun_seconds\tnodes\ttasks\telements\tcore_hours\tgpu_hours\ttokens\ttokens_per_second\tjoules\tmemory_used_bytes\tmemory_forecast_bytes\trss_bytes\trestarts\tlost_seconds\tsource"
    for (i = 1; i <= rows; i++) {
        name = row[i]
        printf "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\n", name, raw(name, wait_seconds, "%d"), raw(name, run_seconds, "%.2f"), raw(name, nodes, "%d"), raw(name, ntasks, "%d"),
            (units[name] + 0 > 0 ? units[name] : "-"), raw(name, core_seconds, "%.2f", 3600), raw(name, gpu_seconds, "%.2f", 3600), raw(name, tokens, "%.0f"), raw(name, speed, "%.2f"),
            raw(name, joules, "%.1f"), raw(name, memory_used, "%.0f"), raw(name, memory_forecast, "%.0f"), raw(name, rss, "%.0f"), restarts[name], raw(name, lost, "%d"), source[name]
    }
}

function raw(name, list, format, divisor) {
    if (!(name in list) || list[name] == "") return "-"
    return divisor == "" ? sprintf(format, list[name]) : sprintf("%.6f", list[name] / divisor)
}

# ---- 6. main ----

function report_run(    i, k, folder) {
    for (i = 1; i <= stage_count; i++) {
        if (program[stages[i]] == "sweep") continue
        if (tasks[stages[i]] > 0) has_arrays = 1
        if (only ~ /^point_/) folder = only "/" stages[i]
        else folder = is_sweep && program[stages[i]] != "script" ? "common/" stages[i] : stages[i]
        if (is_sweep && program[stages[i]] != "script" && !(folder in is_folder) && !(stages[i] in submitted)) continue
        add_row(stages[i], folder)
    }
    if (!is_sweep || only != "") return
    for (k = 1; k <= folder_count; k++) if (folders[k] ~ /^point_[0-9]+$/) add_point(folders[k])
}

BEGIN {
    open_run()
    read_graph(root "/study.tsv")
    read_jobs(root "/jobs.tsv")
    for (i = 1; i <= job_count; i++) submitted[job_name[i]] = 1
    read_listing()
    for (name in mtime) if (name ~ /(^|\/)attempts\.tsv$/) read_tries(root "/" name)
    read_queue(tmp "/queue")
    for (id in queue_state) if (queue_state[id] ~ /^(RUNNING|COMPLETING|SUSPENDED)$/) { base = id; sub(/_.*/, "", base); still_runs[base] = 1 }
    if (stage_count == 0 && !is_sweep) guess_graph()
    read_accounting(tmp "/accounting")
    note_ends()
    add_tries()
    report_run()
    if (mode == "tsv") print_tsv()
    else print_screen()
}
