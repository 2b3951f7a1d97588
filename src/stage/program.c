/* program: the shared frame of all executables.
 *
 * Contents: 1. options of every program  2. command line  3. start and end  4. run folder
 */
#include "stage/program.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/files.h"
#include "base/log.h"
#include "base/stop.h"
#include "base/version_info.h"
#include "config/config.h"
#include "stage/program_options.h"

/* First parts of keys over all programs: a top-level group of that name in a study file holds defaults; other
 * groups are stages. */
static const char known_prefixes[] =
    "model|dataset|tokenizer|training|score|select|data_selection|selector_"
    "model|target_model|eval|convert|output|run|"
    "data_process|report|study|scores|labels|backend|threads|models|seeds|generate|prompt|embed";

/* ---- 1. options of every program ---- */

static const mb_option common_options[] = {
    MB_OPTION_TEXT(mb_program_options, output_dir, "output.dir", NULL, NULL,
                   "folder of this stage's results; a finished one is not run again",
                   "output.path|output.output_dir|out_dir"),
    MB_OPTION_TEXT(mb_program_options, backend, "backend", "auto", "auto|cpu|ref", "what does the arithmetic",
                   NULL),
    MB_OPTION_INT(mb_program_options, threads, "threads", "0", 0, 4096, "threads",
                  "threads of this rank; 0: OMP_NUM_THREADS, else its cores", NULL),
    MB_OPTION_BOOL(mb_program_options, force, "run.force", "false",
                   "run even when the stage's record says it is done", NULL),
};

mb_status mb_program_add_table(mb_program *program, const char *title, const mb_option *options,
                               int64_t count, void *target)
{
    if (program->table_count >= MB_PROGRAM_MAX_TABLES)
        return mb_fail(MB_ERANGE, "%s: too many option tables", program->spec->name);
    program->tables[program->table_count++] =
        (mb_option_table){.title = title, .options = options, .count = count, .target = target};
    return MB_OK;
}

/* ---- 2. command line ---- */

typedef struct command_line {
    const char *config_path, *stage;
    const char **assignments;
    int assignment_count;
    bool help, version, print_config, markdown;
} command_line;

static bool is_mode(const char *modes, const char *word)
{
    size_t n = strlen(word);
    for (const char *p = modes; p != NULL; p = strchr(p, '|') ? strchr(p, '|') + 1 : NULL)
        if (strncmp(p, word, n) == 0 && (p[n] == '|' || p[n] == '\0')) return true;
    return false;
}

static mb_status read_word(mb_program *program, command_line *line, const char *word)
{
    if (word[0] == '-') {
        if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0)
            line->help = true;
        else if (strcmp(word, "--version") == 0)
            line->version = true;
        else if (strcmp(word, "--print-config") == 0)
            line->print_config = true;
        else if (strcmp(word, "--print-keys") == 0)
            line->markdown = true;
        else if (strcmp(word, "--dry-run") == 0)
            program->is_dry_run = true;
        else if (strcmp(word, "--hash") == 0)
            line->assignments[line->assignment_count++] = "hash=true";
        else
            return mb_fail(MB_EUSAGE, "%s: unknown option %s; options are key=value, see %s --help",
                           program->spec->name, word, program->spec->name);
        return MB_OK;
    }
    const char *equals = strchr(word, '=');
    if (equals != NULL) {
        if (strncmp(word, "stage=", 6) == 0)
            line->stage = word + 6;
        else if (strncmp(word, "config=", 7) == 0)
            line->config_path = word + 7;
        else if (program->spec->modes != NULL && strncmp(word, "mode=", 5) == 0)
            return read_word(program, line, word + 5);
        else
            line->assignments[line->assignment_count++] = word;
        return MB_OK;
    }
    if (program->spec->modes != NULL && program->mode == NULL && is_mode(program->spec->modes, word))
        program->mode = word;
    else if (mb_str_is_suffix(word, ".cfg") && line->config_path == NULL &&
             !(program->mode && strcmp(program->mode, "file") == 0))
        line->config_path = word;
    else if (program->spec->has_operand && program->operand == NULL)
        program->operand = word;
    else
        return mb_fail(
            MB_EUSAGE, "%s: '%s' is not understood%s%s; give options as key=value (see %s --help)",
            program->spec->name, word, program->spec->modes && !program->mode ? "; modes are " : "",
            program->spec->modes && !program->mode ? program->spec->modes : "", program->spec->name);
    return MB_OK;
}

static mb_status read_command_line(mb_program *program, int argc, char **argv, command_line *line)
{
    mb_status status = MB_OK;
    MB_NEW_ARRAY(line->assignments, argc + 1);
    for (int i = 1; i < argc; ++i) MB_TRY(read_word(program, line, argv[i]));
done:
    return status;
}

static void print_help(const mb_program *program)
{
    const mb_program_spec *spec = program->spec;
    mb_str text = MB_STR_EMPTY;
    printf("%s: %s\n\nUsage: %s%s%s%s%s [study.cfg stage=GROUP] [key=value ...]\n", spec->name, spec->purpose,
           spec->name, spec->modes ? " {" : "", spec->modes ? spec->modes : "", spec->modes ? "}" : "",
           spec->has_operand ? " [PATH]" : "");
    if (spec->example != NULL) printf("\n%s\n", spec->example);
    if (mb_option_help(program->tables, program->table_count, &text) == MB_OK)
        printf("\n%s", mb_str_text(&text));
    printf("\nAlso: --help  --version  --print-config  --dry-run\n"
           "Exit codes: 0 done, 1 failed, 2 bad usage or configuration, 3 bad input data, 75 stopped at a "
           "checkpoint (run again)\n");
    mb_str_destroy(&text);
}

/* ---- 3. start and end ---- */

static mb_status apply_config(mb_program *program, const command_line *line)
{
    mb_status status = MB_OK;
    mb_config *config = NULL;
    MB_TRY(mb_config_open(line->config_path, line->stage, &config));
    for (int i = 0; i < line->assignment_count; ++i) MB_TRY(mb_config_override(config, line->assignments[i]));
    mb_option_table others[MB_PROGRAM_OPTIONS_TABLES];
    const int64_t n = mb_program_options_all(others, MB_PROGRAM_OPTIONS_TABLES);
    MB_TRY(mb_config_apply(config, program->tables, program->table_count, known_prefixes, others, n));
done:
    mb_config_close(&config);
    return status;
}

/* Everything that ends without running: true when the program is finished. */
static bool answer_question(mb_program *program, const command_line *line)
{
    mb_str text = MB_STR_EMPTY;
    bool is_answered = true;
    if (line->help)
        print_help(program);
    else if (line->version)
        printf("%s %s\n", program->spec->name, mb_version_source());
    else if (line->markdown && mb_option_markdown(program->tables, program->table_count, &text) == MB_OK)
        printf("## %s\n\n%s\n\n%s\n", program->spec->name, program->spec->purpose, mb_str_text(&text));
    else
        is_answered = false;
    mb_str_destroy(&text);
    return is_answered;
}

static void move_back(mb_program *program);

/* The lowest rank with a failure of its own; 0 if there is none. Collective. */
static int first_failure(mb_comm *comm, mb_status status)
{
    const int mine = status, size = mb_comm_size(comm);
    int first = 0, *all = mb_calloc((size_t)size, sizeof *all);
    if (all != NULL && mb_comm_allgather(comm, &mine, sizeof mine, all) == MB_OK)
        while (first < size && (all[first] == MB_OK || all[first] == MB_ECOMM || all[first] == MB_ESTOPPED))
            ++first;
    mb_free(all);
    return first < size ? first : 0;
}

/* One message for all ranks: that of the first failure. */
static void report_failure(const mb_program *program, mb_status status, bool has_ranks)
{
    const bool has_failed = status != MB_OK && status != MB_ESTOPPED;
    int speaker = 0;
    char *message = mb_strdup(mb_status_message()); /* the exchange may fail and write over it */
    if (has_ranks) speaker = first_failure(program->comm, status);
    if (has_failed && (!has_ranks || speaker == mb_comm_rank(program->comm)))
        mb_error("%s: %s", mb_status_name(status), message != NULL ? message : "");
    mb_free(message);
    const char *level = getenv("MB_LOG");
    if (status != MB_OK && ((level != NULL && strcmp(level, "debug") == 0) || status == MB_ENOMEM))
        fprintf(stderr, "%s", mb_status_trace_text());
}

static mb_status start_and_run(mb_program *program, int argc, char **argv, command_line *line,
                               bool *out_has_ranks)
{
    mb_status status = MB_OK;
    MB_TRY(program->spec->declare(program));
    MB_TRY(mb_program_add_table(program, "every program", common_options,
                                sizeof common_options / sizeof *common_options, &program->options));
    MB_TRY(read_command_line(program, argc, argv, line));
    if (answer_question(program, line)) goto done;
    MB_TRY(apply_config(program, line));
    program->stage = line->stage != NULL ? line->stage : program->spec->name + strlen("moe-");
    if (program->spec->modes != NULL && program->mode == NULL)
        MB_RAISE(MB_EUSAGE, "%s: say what to do: %s {%s} ...", program->spec->name, program->spec->name,
                 program->spec->modes);
    if (line->print_config) {
        mb_str text = MB_STR_EMPTY;
        status = mb_config_print(program->tables, program->table_count, &text);
        printf("%s", mb_str_text(&text));
        mb_str_destroy(&text);
        goto done;
    }
    MB_TRY(mb_comm_create(&argc, &argv, &program->comm));
    *out_has_ranks = true;
    mb_log_init(program->spec->name, mb_comm_rank(program->comm), mb_comm_size(program->comm), NULL);
    mb_stop_install();
    MB_TRY(program->spec->run(program));
done:
    return status;
}

static void free_program(mb_program *program, command_line *line)
{
    mb_runfolder_close(&program->run);
    mb_ops_destroy(&program->ops);
    for (int64_t i = 0; i < program->table_count; ++i)
        if (program->tables[i].target != NULL) mb_option_free(&program->tables[i]);
    MB_FREE(program->own);
    MB_FREE(program->aside);
    MB_FREE(line->assignments);
}

int mb_program_main(int argc, char **argv, const mb_program_spec *spec)
{
    mb_program program = {.spec = spec};
    command_line line = {0};
    bool has_ranks = false;
    mb_log_init(spec->name, 0, 1, NULL);
    mb_status status = start_and_run(&program, argc, argv, &line, &has_ranks);
    report_failure(&program, status, has_ranks);
    if (status != MB_OK && status != MB_ESTOPPED) move_back(&program);
    free_program(&program, &line);
    /* All ranks agree on one code before any finalises: a rank alone in MPI_Finalize would wait for ever. */
    int code = mb_status_exit_code(status);
    if (has_ranks) code = mb_comm_exit_code(program.comm, mb_comm_agree(program.comm, status));
    mb_comm_destroy(&program.comm);
    mb_log_close();
    if (getenv("MB_CHECK_LEAKS") != NULL && mb_memory_live_blocks() != 0) {
        fprintf(stderr, "%s: %lld blocks still alive at the end\n", spec->name,
                (long long)mb_memory_live_blocks());
        return 1;
    }
    return code;
}

/* ---- 4. run folder ---- */

mb_status mb_program_open_ops(mb_program *program)
{
    mb_status status = MB_OK;
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (cores > 0 && program->options.threads > 8 * cores)
        MB_RAISE(MB_EUSAGE, "threads = %lld on a machine of %ld cores; give at most one per core",
                 (long long)program->options.threads, cores);
    MB_TRY(mb_ops_create(program->options.backend, (int)program->options.threads, &program->ops));
    mb_info("%s, %d rank%s", mb_ops_describe(program->ops), mb_comm_size(program->comm),
            mb_comm_size(program->comm) == 1 ? "" : "s");
done:
    return status;
}

/* Keys whose value does not change a result, or whose content is hashed as an input. */
static bool is_passed_over(const char *key)
{
    return mb_str_is_prefix(key, "output.") || mb_str_is_prefix(key, "run.") ||
           mb_str_is_suffix(key, ".path") || mb_str_equal(key, "threads") ||
           mb_str_equal(key, "model.adapter") || mb_str_equal(key, "dataset.inputs") ||
           mb_str_equal(key, "training.time_limit_minutes") || mb_str_is_prefix(key, "training.logging") ||
           mb_str_is_prefix(key, "training.save_minutes");
}

/* Lease, configuration and inputs of output.dir. */
static mb_status open_run(mb_program *program, const char *const *names, const char *const *paths, int64_t n)
{
    mb_status status = MB_OK;
    json_t *config = NULL;
    MB_TRY(
        mb_runfolder_open(program->options.output_dir, program->spec->name, program->stage, &program->run));
    MB_TRY(mb_config_resolved(program->tables, program->table_count, &config));
    const char *key;
    json_t *value;
    void *next;
    json_object_foreach_safe(config, next, key, value) if (is_passed_over(key)) json_object_del(config, key);
    if (program->mode != NULL) MB_TRY(mb_json_set(config, "mode", json_string(program->mode)));
    MB_TRY(mb_runfolder_config(program->run, config));
    for (int64_t i = 0; i < n; ++i)
        if (paths[i] != NULL) MB_TRY(mb_runfolder_input(program->run, names[i], paths[i]));
done:
    json_decref(config);
    return status;
}

/* A finished stage that does not match is never overwritten: it is renamed to <folder>.1, .2, ... */
static mb_status move_aside(mb_program *program)
{
    mb_status status = MB_OK;
    char *done = mb_program_path(program, "done.json"), *aside = NULL;
    if (done == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    if (!mb_files_is_file(done)) goto done;
    for (int i = 1;; ++i) {
        mb_free(aside);
        aside = mb_str_format("%s.%d", program->options.output_dir, i);
        if (aside == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
        if (!mb_files_is_folder(aside)) break;
    }
    mb_info("%s was made otherwise (%s); it is kept as %s", program->options.output_dir,
            mb_runfolder_reason(program->run), aside);
    mb_runfolder_close(&program->run);
    MB_TRY(mb_files_rename(program->options.output_dir, aside));
    program->aside = aside;
    aside = NULL;
done:
    mb_free(done);
    mb_free(aside);
    return status;
}

/* A run that failed before it made anything to go on from gives the result that it moved aside its place
 * back. */
static void move_back(mb_program *program)
{
    char *state = program->aside != NULL ? mb_program_path(program, "state") : NULL;
    if (state != NULL && !mb_files_is_folder(state)) {
        mb_runfolder_close(&program->run);
        mb_log_init(program->spec->name, mb_comm_rank(program->comm), mb_comm_size(program->comm), NULL);
        if (mb_files_remove_tree(program->options.output_dir) == MB_OK &&
            mb_files_rename(program->aside, program->options.output_dir) == MB_OK)
            mb_warn("%s: the earlier result is back in its place", program->options.output_dir);
    }
    mb_free(state);
}

/* Rank 0's part: is there work? Then the folder is ours, and empty but for what an interrupted run of the
 * same work left. */
static mb_status claim_run(mb_program *program, const char *const *names, const char *const *paths, int64_t n,
                           int64_t *out_is_done)
{
    mb_status status = MB_OK;
    MB_TRY(open_run(program, names, paths, n));
    *out_is_done = !program->options.force && mb_runfolder_is_done(program->run);
    if (*out_is_done) goto done;
    mb_debug("%s: to do (%s)", program->options.output_dir, mb_runfolder_reason(program->run));
    MB_TRY(move_aside(program));
    if (program->run == NULL) MB_TRY(open_run(program, names, paths, n));
    char *log_path = mb_program_path(program, "run.log");
    if (log_path != NULL) mb_log_init(program->spec->name, 0, mb_comm_size(program->comm), log_path);
    mb_free(log_path);
done:
    return status;
}

mb_status mb_program_begin_run_list(mb_program *program, const char *const *names, const char *const *paths,
                                    int64_t n, bool *out_is_done)
{
    mb_status status = MB_OK;
    int64_t is_done = 0;
    if (program->options.output_dir == NULL)
        MB_RAISE(MB_EUSAGE,
                 "%s: output.dir is missing: say where the results go, e.g. output.dir=checkpoints/my-run/%s",
                 program->spec->name, program->stage);
    if (mb_program_is_root(program)) status = claim_run(program, names, paths, n, &is_done);
    MB_TRY(mb_comm_agree(program->comm, status));
    MB_TRY(mb_comm_bcast(program->comm, &is_done, sizeof is_done, 0));
    *out_is_done = is_done != 0;
    if (is_done) mb_info("%s: up to date, nothing to do", program->options.output_dir);
done:
    return status;
}

mb_status mb_program_begin_run(mb_program *program, bool *out_is_done, ...)
{
    const char *names[32], *paths[32];
    int64_t n = 0;
    va_list list;
    va_start(list, out_is_done);
    for (const char *name; n < 32 && (name = va_arg(list, const char *)) != NULL; ++n) {
        names[n] = name;
        paths[n] = va_arg(list, const char *);
    }
    va_end(list);
    return mb_program_begin_run_list(program, names, paths, n, out_is_done);
}

mb_status mb_program_finish_run(mb_program *program, ...)
{
    mb_status status = MB_OK;
    va_list list;
    va_start(list, program);
    if (mb_program_is_root(program)) {
        for (const char *path; status == MB_OK && (path = va_arg(list, const char *)) != NULL;)
            status = mb_runfolder_output(program->run, path);
        if (status == MB_OK)
            status = mb_runfolder_finish(program->run, mb_comm_size(program->comm),
                                         program->ops != NULL ? mb_ops_describe(program->ops) : NULL);
    }
    va_end(list);
    return mb_comm_agree(program->comm, status);
}

mb_status mb_program_result_real(mb_program *program, const char *name, double value)
{
    return program->run != NULL ? mb_runfolder_result(program->run, name, json_real(value)) : MB_OK;
}

mb_status mb_program_result_int(mb_program *program, const char *name, int64_t value)
{
    return program->run != NULL ? mb_runfolder_result(program->run, name, json_integer(value)) : MB_OK;
}

char *mb_program_path(const mb_program *program, const char *name)
{
    return mb_files_join(program->options.output_dir, name);
}
