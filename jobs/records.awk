# records.awk: what status.awk, report.awk and cancel.sh read a run with: JSON, times, study.tsv, jobs.tsv, Slurm's tables.
# POSIX awk (mawk, gawk and busybox run it). Files are read by getline, so a missing or torn one is never the end of the program.
#
# Contents: 1. text  2. JSON  3. times  4. array specs  5. the run's own tables  6. Slurm's tables

# ---- 1. text ----

# Nothing that a file holds may move the cursor or break a table.
function clean(text) {
    gsub(/[\001-\037\177]+/, " ", text)
    sub(/^ +/, "", text)
    sub(/ +$/, "", text)
    return text
}

function pad(text, width) { return sprintf("%-" width "s", text) }

function plural(n, word) { return n " " word (n == 1 ? "" : "s") }

# list, with text at its end unless it is there.
function with(list, text, separator) {
    if (list == "") return text
    return index(separator list separator, separator text separator) ? list : list separator text
}

function join_path(base, name) { return base == "" ? name : base "/" name }

# ---- 2. JSON ----

# json_load(file, values): values["results.tokens"] and the like; list entries are "list.0". 0 when the file is missing or cut off.
function json_load(file, values,    line, text) {
    text = ""
    while ((getline line < file) > 0) text = text line "\n"
    close(file)
    return json_parse(text, values)
}

function json_parse(text, values) {
    split("", values)
    json_text = text
    json_bad = 0
    json_value("", values)
    json_skip()
    if (json_bad || json_text != "") {
        split("", values)
        return 0
    }
    return 1
}

function json_skip() { sub(/^[ \t\r\n]+/, "", json_text) }

function json_take(length_) {
    json_taken = substr(json_text, 1, length_)
    json_text = substr(json_text, length_ + 1)
    return json_taken
}

function json_value(path, values,    first) {
    json_skip()
    first = substr(json_text, 1, 1)
    if (first == "{") json_members(path, values, "}")
    else if (first == "[") json_members(path, values, "]")
    else if (first == "\"") values[path] = json_string()
    else if (match(json_text, /^(-?[0-9][-+.0-9eE]*|true|false|null)/)) values[path] = json_take(RLENGTH)
    else json_bad = 1
}

# The members of an object or the entries of a list, up to its closing sign.
function json_members(path, values, last,    n, name) {
    json_take(1)
    json_skip()
    if (substr(json_text, 1, 1) == last) { json_take(1); return }
    for (n = 0; !json_bad; n++) {
        name = n
        json_skip()
        if (last == "}") {
            name = json_string()
            json_skip()
            if (json_take(1) != ":") json_bad = 1
        }
        if (!json_bad) json_value(path == "" ? name : path "." name, values)
        json_skip()
        if (json_bad || json_take(1) == last) return
        if (json_taken != ",") json_bad = 1
    }
}

function json_string(    text) {
    if (!match(json_text, /^"([^"\\]|\\.)*"/)) { json_bad = 1; return "" }
    text = json_take(RLENGTH)
    text = substr(text, 2, length(text) - 2)
    return index(text, "\\") ? json_unescape(text) : text
}

function json_unescape(text,    out, at, sign) {
    out = ""
    while ((at = index(text, "\\")) > 0) {
        out = out substr(text, 1, at - 1)
        sign = substr(text, at + 1, 1)
        text = substr(text, at + 2)
        if (sign == "n") out = out "\n"
        else if (sign == "t") out = out "\t"
        else if (sign == "r" || sign == "b" || sign == "f") out = out " "
        else if (sign == "u") { out = out utf8(hex(substr(text, 1, 4))); text = substr(text, 5) }
        else out = out sign
    }
    return out text
}

function hex(text,    i, n) {
    n = 0
    for (i = 1; i <= length(text); i++) n = n * 16 + index("123456789abcdef", tolower(substr(text, i, 1)))
    return n
}

# Bytes of a character below U+10000; half of a pair becomes "?".
function utf8(code) {
    if (code < 128) return sprintf("%c", code)
    if (code < 2048) return sprintf("%c%c", 192 + int(code / 64), 128 + code % 64)
    if (code >= 55296 && code < 57344) return "?"
    return sprintf("%c%c%c", 224 + int(code / 4096), 128 + int(code / 64) % 64, 128 + code % 64)
}

# A text as JSON.
function json_quote(text) {
    text = clean(text)
    gsub(/\\/, "\\\\", text)
    gsub(/"/, "\\\"", text)
    return "\"" text "\""
}

# ---- 3. times ----

# Seconds since 1970 of "2026-11-23T09:27:26Z" (a time without Z is read as if it had one); "" when it is no time.
function seconds_of(text,    part, n, y, m, era) {
    if (text !~ /^[0-9]+-[0-9]+-[0-9]+[T ][0-9]+:[0-9]+:[0-9]/) return ""
    split(text, part, /[-T :Z]/)
    y = part[1] - (part[2] <= 2)
    m = (part[2] + 9) % 12
    era = int(y / 400)
    n = era * 146097 + (y - era * 400) * 365 + int((y - era * 400) / 4) - int((y - era * 400) / 100) + int((153 * m + 2) / 5) + part[3] - 719469
    return ((n * 24 + part[4]) * 60 + part[5]) * 60 + int(part[6])
}

# 5 s, 12 min, 3:05 h, 2 d 4 h.
function duration(seconds) {
    if (seconds == "") return "-"
    seconds += 0
    if (seconds < 99.5) return sprintf("%d s", seconds + 0.5)
    if (seconds < 3600) return sprintf("%d min", seconds / 60 + 0.5)
    if (seconds < 172800) return sprintf("%d:%02d h", seconds / 3600, seconds % 3600 / 60)
    return sprintf("%d d %d h", seconds / 86400, seconds % 86400 / 3600)
}

# "13:20:58", with the day before it when that is another one than `today` (both local times as Slurm prints them).
function clock(text, today) {
    if (text !~ /^[0-9]+-[0-9]+-[0-9]+T/) return text
    return (substr(text, 1, 10) == substr(today, 1, 10) ? "" : substr(text, 1, 10) " ") substr(text, 12, 8)
}

# ---- 4. array specs ----

# expand("0-3,7%2", set): set[k] = 1 for every element; how many.
function expand(spec, set,    parts, n, i, range, step, k, count) {
    split("", set)
    sub(/%.*/, "", spec)
    n = split(spec, parts, ",")
    count = 0
    for (i = 1; i <= n; i++) {
        step = 1
        if (parts[i] ~ /:/) { step = parts[i]; sub(/.*:/, "", step); sub(/:.*/, "", parts[i]) }
        if (parts[i] !~ /^[0-9]+(-[0-9]+)?$/ || step + 0 < 1) continue
        if (split(parts[i], range, "-") == 1) range[2] = range[1]
        for (k = range[1] + 0; k <= range[2] + 0; k += step)
            if (!(k in set)) { set[k] = 1; count++ }
    }
    return count
}

# Sorted numbers of a set as "0-3, 7".
function ranges(set, limit,    k, out, first) {
    out = ""
    first = -1
    for (k = 0; k <= limit; k++) {
        if ((k in set) && first < 0) first = k
        if (first >= 0 && !((k + 1) in set)) {
            out = out (out == "" ? "" : ", ") (first == k ? k : first (first + 1 == k ? ", " : "-") k)
            first = -1
        }
    }
    return out
}

# Nodes in "n1", "n[1-3,7]", "a1,b[01-02]"; a plain number is a count.
function count_nodes(list,    total, inside, n, parts, set) {
    if (list ~ /^[0-9]+$/) return list + 0
    if (list == "" || list == "-" || list ~ /^\(|^None/) return 0
    total = 0
    while (match(list, /\[[^]]*\]/)) {
        inside = substr(list, RSTART + 1, RLENGTH - 2)
        list = substr(list, 1, RSTART - 1) substr(list, RSTART + RLENGTH)
        total += expand(inside, set) - 1
    }
    return total + split(list, parts, ",")
}

# ---- 5. the run's own tables ----

# What records.sh hands over.
function open_run() {
    root = ENVIRON["MB_FOLDER"]; run_name = ENVIRON["MB_NAME"]; only = ENVIRON["MB_ONLY"]; tmp = ENVIRON["MB_TMP"]; slurm = ENVIRON["MB_SLURM"]
    now = ENVIRON["MB_NOW"] + 0; today = ENVIRON["MB_TODAY"]; host = ENVIRON["MB_HOST"]; boot = ENVIRON["MB_BOOT"]; mode = ENVIRON["MB_MODE"]
}

# The small files of the run (mtime[path], size[path]), its folders, and whether it is a sweep.
function read_listing(    line, field) {
    while ((getline line < (tmp "/files")) > 0) {
        split(line, field, "\t")
        mtime[field[1]] = field[2] + 0
        size[field[1]] = field[3] + 0
    }
    is_sweep = "points.tsv" in mtime || only != ""
    while ((getline line < (tmp "/folders")) > 0) {
        folders[++folder_count] = line
        is_folder[line] = 1
        if (line ~ /^point_[0-9]+$/) is_sweep = 1
    }
}

# read_graph(file): stages[1..stage_count], program[], after[], tasks[] by stage; of a stage that is an element of an array of stages array_of[], element_of[].
function read_graph(file,    line, field, element, n) {
    stage_count = 0
    while ((getline line < file) > 0) {
        n = split(line, field, "\t")
        if (n < 3 || field[1] == "stage" || field[1] == "" || field[1] in program) continue
        stages[++stage_count] = field[1]
        program[field[1]] = field[2]
        after[field[1]] = field[3] == "-" ? "" : field[3]
        tasks[field[1]] = n >= 4 ? field[4] + 0 : 0
        if (n >= 5 && split(field[5], element, ":") == 2) { array_of[field[1]] = element[1]; element_of[field[1]] = element[2] + 0 }
    }
    close(file)
}

# Without study.tsv: folders that hold something of ours, and what was submitted.
function guess_graph(    k, i, name) {
    for (k = 1; k <= folder_count; k++) {
        name = folders[k]
        if (index(name, "/") || name in program) continue
        if ((name "/done.json") in mtime || (name "/lease") in mtime || (name "/run.log") in mtime || (name "/failure.json") in mtime || (name "/attempts.tsv") in mtime) add_stage(name)
    }
    for (i = 1; i <= job_count; i++) {
        name = job_name[i]
        sub(/\/join$/, "", name)
        add_stage(name)
        if (job_tasks[i] != "-" && job_name[i] == name) tasks[name] = tasks[name] > last_task(i) ? tasks[name] : last_task(i)
    }
}

function last_task(i,    set, k, most) {
    most = 0
    expand(job_tasks[i], set)
    for (k in set) if (k + 1 > most) most = k + 1
    return most
}

function add_stage(name) {
    if (name in program) return
    stages[++stage_count] = name
    program[name] = "moe-"
    after[name] = ""
    tasks[name] = 0
}

# read_jobs(file): submissions, oldest first: job_count; job_name[i] (a stage, or "stage/join"), job_id[i], job_tasks[i], job_after[i],
# job_log[i], job_title[i] (its name in Slurm, "" unknown), job_command[i]; by id: job_time[id] (when it was submitted), stage_of[id].
# A job that was linked anew has a second line: the first tells the time, the last what it waits for.
function read_jobs(file,    line, field, n, i) {
    job_count = 0
    while ((getline line < file) > 0) {
        n = split(line, field, "\t")
        if (n < 4 || field[3] !~ /^[0-9]+$/) continue
        if (field[3] in job_line && job_name[job_line[field[3]]] == field[2]) i = job_line[field[3]]
        else i = ++job_count
        if (i == job_count) job_time[field[3]] = seconds_of(field[1])
        job_line[field[3]] = i
        stage_of[field[3]] = field[2]
        job_name[i] = field[2]
        job_id[i] = field[3]
        job_tasks[i] = field[4]
        job_after[i] = n >= 5 && field[5] != "-" ? field[5] : ""
        job_log[i] = n >= 6 ? field[6] : ""
        job_command[i] = n >= 7 ? field[7] : ""
        job_title[i] = title_of(job_command[i])
    }
    close(file)
}

# The name a submission gives its job in Slurm.
function title_of(command,    title) {
    if (match(command, /(--job-name[= ]|-J )[^ ]+/)) {
        title = substr(command, RSTART, RLENGTH)
        sub(/^(--job-name[= ]|-J )/, "", title)
        gsub(/[\\']/, "", title)
        return title
    }
    if (match(command, /[^ \/]+\.sbatch/)) return substr(command, RSTART, RLENGTH)
    return ""
}

# has_task(i, k): does submission i hold element k?
function has_task(i, k,    set, e) {
    if (!(i in expanded)) {
        expanded[i] = expand(job_tasks[i], set)
        for (e in set) task_of[i, e] = 1
    }
    return (i, k) in task_of
}

# read_attempts(file): by job id as the table has it ("12", "15_3"): try_count (starts), try_restart (how often it
# had been requeued), try_end ("" while it runs), try_code, try_reason,
# try_nodes, try_tasks, try_start, try_seconds (of all
# attempts that have an end), try_lost (of those that ended without 0 or 75); last_attempt.
function read_attempts(file,    line, field, n, id, at) {
    last_attempt = ""
    while ((getline line < file) > 0) {
        n = split(line, field, "\t")
        at = seconds_of(field[1])
        if (n < 6 || at == "") continue
        id = field[2] ~ /^[0-9]/ ? field[2] : file # without Slurm there is no number
        last_attempt = id
        if (field[6] == "start") {
            if (try_count[id] > 0 && try_end[id] == "") try_cut[id]++ # ended without a word: killed with its node
            if (!(id in try_first)) try_first[id] = at
            try_count[id]++
            try_start[id] = at
            try_end[id] = try_code[id] = ""
            try_restart[id] = field[3] + 0
            try_nodes[id] = field[4]
            try_tasks[id] = field[5]
        } else if (field[6] == "end") {
            if (try_end[id] == "" && id in try_start) {
                try_seconds[id] += at - try_start[id]
                if (n >= 7 && field[7] != 0 && field[7] != 75) try_lost[id] += at - try_start[id]
            }
            try_end[id] = at
            try_code[id] = n >= 7 ? field[7] : ""
            try_reason[id] = n >= 8 && field[8] != "-" ? clean(field[8]) : ""
        }
    }
    close(file)
}

# ---- 6. Slurm's tables ----

# read_queue(file): what squeue said: queue_state[id], by "12" or "15_3", and with it reason, begin, nodes, dependency, user, raw id. A job of
# another name is another job that was given this number later.
function read_queue(file,    line, field, base, i) {
    while ((getline line < file) > 0) {
        if (split(line, field, "\t") < 9) continue
        base = field[1]
        sub(/_.*/, "", base)
        i = base in job_line ? job_line[base] : 0
        if (i == 0 || (job_title[i] != "" && job_title[i] != field[9])) { stranger[base] = field[9]; continue }
        queue_raw[field[1]] = field[2]
        queue_state[field[1]] = field[3]
        queue_reason[field[1]] = field[4]
        queue_begin[field[1]] = field[5]
        queue_nodes[field[1]] = field[6]
        queue_dependency[field[1]] = field[7]
        queue_user[field[1]] = field[8]
        raw_active[field[2]] = is_active(field[3])
    }
    close(file)
}

function is_active(state) {
    return state ~ /^(PENDING|RUNNING|CONFIGURING|COMPLETING|SUSPENDED|STOPPED|REQUEUED|REQUEUE_FED|REQUEUE_HOLD|RESIZING|SIGNALING|SPECIAL_EXIT|STAGE_OUT)$/
}
