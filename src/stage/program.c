/* program: the shared frame of all executables.
 *
 * Contents: 1. options of every program  2. command line  3. failures  4. start and end
 * (the run folder: program_run.c)
 */
#include "stage/program.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/files.h"
#include "base/log.h"
#include "base/stop.h"
#include "base/version_info.h"
#include "config/config.h"
#include "stage/failure.h"
#include "stage/program_ops.h"
#include "stage/program_options.h"
#include "stage/program_run.h"
#include "store/lease.h"

/* First parts of keys over all programs: a top-level group of that name in a study file holds defaults; other
 * groups are stages. */
static const char known_prefixes[] =
    "model|dataset|tokenizer|training|score|select|data_selection|selector_"
    "model|target_model|eval|convert|output|run|"
    "data_process|report|study|scores|labels|backend|gpu|threads|models|seeds|generate|prompt|embed|compare|"
    "fuse|infer|teacher|cluster|embeddings|centres|gate|outputs|merge|questions|split|without|records|"
    "quantize|bench|subset";

/* ---- 1. options of every program ---- */

static const mb_option common_options[] = {
    MB_OPTION_TEXT(mb_program_options, output_dir, "output.dir", NULL, NULL,
                   "folder of this stage's results; a finished one is not run again",
                   "output.path|output.output_dir|out_dir"),
    MB_OPTION_TEXT(mb_program_options, backend, "backend", "auto", "auto|cpu|cuda|ref",
                   "what does the arithmetic; auto: the GPUs where every rank has one, else the CPU", NULL),
    MB_OPTION_BOOL(mb_program_options, share_gpu, "gpu.share", "false",
                   "several ranks may compute on one GPU; else backend=cuda refuses, and auto takes the CPU",
                   NULL),
    MB_OPTION_INT(mb_program_options, threads, "threads", "0", 0, 4096, "threads",
                  "threads of this rank; 0: OMP_NUM_THREADS, else its cores", NULL),
    MB_OPTION_BOOL(mb_program_options, force, "run.force", "false",
                   "run even when the stage's record says it is done", NULL),
    MB_OPTION_TEXT(
        mb_program_options, share, "run.share", NULL, NULL,
        "k/n, k from 0: do share k of n of the work and do not join it, as an element of a job array "
        "(moe-score, moe-embed, moe-teacher); the same command without it does what is missing, and joins",
        NULL),
};

/* What a stage's job asks for. The scripts in jobs/ read them from the study file; programs only check their
 * names. */
static const mb_option job_options[] = {
    MB_OPTION_INT(mb_program_job, nodes, "slurm.nodes", "0", 0, 1e6, "nodes",
                  "nodes of the stage's job; 0: as its template in slurm/ says", NULL),
    MB_OPTION_INT(mb_program_job, ntasks, "slurm.ntasks", "0", 0, 1e7, "ranks",
                  "MPI ranks of the job; 0: as the template says", NULL),
    MB_OPTION_INT(mb_program_job, cpus_per_task, "slurm.cpus_per_task", "0", 0, 1e5, "cores",
                  "cores of a rank; 0: as the template says", NULL),
    MB_OPTION_TEXT(mb_program_job, gpus, "slurm.gpus", NULL, NULL,
                   "GPUs of every node, as sbatch --gpus-per-node takes it: 4, or a100:4; a rank for each",
                   NULL),
    MB_OPTION_TEXT(mb_program_job, time, "slurm.time", NULL, NULL,
                   "time limit, as sbatch takes it: minutes, hours:minutes:seconds, days-hours", NULL),
    MB_OPTION_TEXT(mb_program_job, partition, "slurm.partition", NULL, NULL, "partition of the job", NULL),
    MB_OPTION_INT(mb_program_job, array, "slurm.array", "0", 0, 1e6, "elements",
                  "cut scoring and embedding into so many elements of a job array; 0: one job", NULL),
    MB_OPTION_INT(mb_program_job, throttle, "slurm.throttle", "0", 0, 1e6, "elements",
                  "at most so many elements of an array run at once; 0: the site's, else all", NULL),
    MB_OPTION_TEXT(mb_program_job, memory, "slurm.memory", NULL, NULL,
                   "memory per node, as sbatch --mem takes it: 64G", NULL),
    MB_OPTION_TEXT(mb_program_job, site, "slurm.site", NULL, NULL,
                   "name of a file slurm/site/<name>.sh; MB_SITE wins, else generic", NULL),
    MB_OPTION_TEXT(mb_program_job, extra, "slurm.extra", NULL, NULL,
                   "more words for sbatch, as in \"--constraint=a100 --exclusive\"", NULL),
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
        else if (strcmp(word, "--is-done") == 0)
            program->asks_done = true;
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
           spec->name,
           spec->modes == NULL      ? ""
           : spec->mode_is_optional ? " ["
                                    : " {",
           spec->modes ? spec->modes : "",
           spec->modes == NULL      ? ""
           : spec->mode_is_optional ? "]"
                                    : "}",
           spec->has_operand ? " [PATH]" : "");
    if (spec->example != NULL) printf("\n%s\n", spec->example);
    if (mb_option_help(program->tables, program->table_count, &text) == MB_OK)
        printf("\n%s", mb_str_text(&text));
    printf("\nAlso: --help  --version  --print-config  --dry-run  --is-done (prints done, exit 0, or why "
           "not, exit "
           "1; changes nothing)\n"
           "Exit codes: 0 done, 1 failed, 2 bad usage or configuration, 3 bad input data, 75 stopped at a "
           "checkpoint (run again)\n");
    mb_str_destroy(&text);
}

/* ---- 3. failures ---- */

/* Why a rank ended, and which rank speaks of it. */
typedef struct ending {
    mb_status status;
    char *message; /* kept: later failures would write over the record */
    int speaker;
    bool is_mine; /* to speak of */
} ending;

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

static bool is_failure(mb_status status)
{
    return status != MB_OK && status != MB_ESTOPPED;
}

/* Collective where there are ranks. */
static ending note_ending(const mb_program *program, mb_status status, bool has_ranks)
{
    ending end = {.status = status, .message = mb_strdup(mb_status_message())};
    if (has_ranks) end.speaker = first_failure(program->comm, status);
    end.is_mine = is_failure(status) && (!has_ranks || end.speaker == mb_comm_rank(program->comm));
    return end;
}

/* One message for all ranks: that of the first failure. */
static void report_failure(const ending *end)
{
    if (end->is_mine)
        mb_error("%s: %s", mb_status_name(end->status), end->message != NULL ? end->message : "");
    const char *level = getenv("MB_LOG");
    if (end->status != MB_OK && ((level != NULL && strcmp(level, "debug") == 0) || end->status == MB_ENOMEM))
        fprintf(stderr, "%s", mb_status_trace_text());
}

/* May we write into the folder? Not when another job holds it, or took it from us. */
static bool is_folder_ours(const mb_program *program)
{
    bool is_ours = true;
    char *name = mb_share_name(program->share, "lease", "");
    if (program->run != NULL)
        is_ours = mb_runfolder_is_mine(program->run) == MB_OK;
    else if (!program->has_begun)
        is_ours = !mb_lease_is_held(program->options.output_dir, name);
    mb_free(name);
    return is_ours;
}

/* failure.json of a run that was to have a folder; a wrong command line makes none. */
static void keep_failure(const mb_program *program, const ending *end)
{
    const char *folder = program->options.output_dir;
    if (!end->is_mine || folder == NULL || !program->is_run) return;
    if (mb_status_exit_code(end->status) == 2 && !mb_files_is_folder(folder)) return;
    if (!is_folder_ours(program)) return;
    if (mb_failure_write(folder, program->share, end->status, end->message != NULL ? end->message : "",
                         end->speaker) != MB_OK)
        mb_warn("the cause is not kept in the folder: %s", mb_status_message());
}

/* What --is-done says when the run ended before it knew; the status to end with. */
static mb_status settle_answer(const mb_program *program, const ending *end)
{
    const mb_status not_done = MB_EEXIST; /* exit code 1 */
    if (!is_failure(end->status)) return program->answer == MB_PROGRAM_NOT_DONE ? not_done : end->status;
    if (end->is_mine) printf("not done: %s\n", end->message != NULL ? end->message : "");
    return not_done;
}

/* ---- 4. start and end ---- */

static mb_status apply_config(mb_program *program, const command_line *line)
{
    mb_status status = MB_OK;
    mb_config *config = NULL;
    MB_TRY(mb_config_open(line->config_path, line->stage, &config));
    for (int i = 0; i < line->assignment_count; ++i) MB_TRY(mb_config_override(config, line->assignments[i]));
    mb_option_table others[MB_PROGRAM_OPTIONS_TABLES];
    const int64_t n = mb_program_options_all(others, MB_PROGRAM_OPTIONS_TABLES);
    MB_TRY(mb_config_apply(config, program->tables, program->table_count, known_prefixes, others, n));
    MB_TRY(mb_share_parse(program->options.share, &program->share));
    if (!mb_share_is_whole(program->share) && !program->spec->has_shares)
        MB_RAISE(MB_EUSAGE,
                 "%s: run.share is for programs that can cut their work: moe-score, moe-embed and "
                 "moe-teacher",
                 program->spec->name);
done:
    mb_config_close(&config);
    return status;
}

/* A question about a run folder, or a run? */
static mb_status check_purpose(mb_program *program, const command_line *line)
{
    mb_status status = MB_OK;
    program->stage = line->stage != NULL ? line->stage : program->spec->name + strlen("moe-");
    if (program->spec->modes != NULL && program->mode == NULL && !program->spec->mode_is_optional)
        MB_RAISE(MB_EUSAGE, "%s: say what to do: %s {%s} ...", program->spec->name, program->spec->name,
                 program->spec->modes);
    if (program->asks_done && program->is_dry_run)
        MB_RAISE(MB_EUSAGE, "%s: --is-done and --dry-run do not go together", program->spec->name);
    if (program->asks_done && program->options.output_dir == NULL)
        MB_RAISE(MB_EUSAGE, "%s: --is-done asks about a run folder: give output.dir", program->spec->name);
done:
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

mb_status mb_program_open_ops(mb_program *program)
{
    mb_status status = MB_OK;
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (cores > 0 && program->options.threads > 8 * cores)
        MB_RAISE(MB_EUSAGE, "threads = %lld on a machine of %ld cores; give at most one per core",
                 (long long)program->options.threads, cores);
    MB_TRY(mb_program_ops_create(program));
    mb_info("%s, %d rank%s", mb_ops_describe(program->ops), mb_comm_size(program->comm),
            mb_comm_size(program->comm) == 1 ? "" : "s");
done:
    return status;
}

static mb_status start_and_run(mb_program *program, int argc, char **argv, command_line *line,
                               bool *out_has_ranks)
{
    mb_status status = MB_OK;
    MB_TRY(program->spec->declare(program));
    MB_TRY(mb_program_add_table(program, "every program", common_options,
                                sizeof common_options / sizeof *common_options, &program->options));
    MB_TRY(mb_program_add_table(program, "the Slurm job of a stage (for the scripts in jobs/)", job_options,
                                sizeof job_options / sizeof *job_options, &program->job));
    MB_TRY(read_command_line(program, argc, argv, line));
    if (answer_question(program, line)) goto done;
    program->is_run = !line->print_config && !program->is_dry_run && !program->asks_done;
    MB_TRY(apply_config(program, line));
    MB_TRY(check_purpose(program, line));
    if (line->print_config) {
        mb_str text = MB_STR_EMPTY;
        status = mb_config_print(program->tables, program->table_count - 1, &text); /* all but the job's */
        printf("%s", mb_str_text(&text));
        mb_str_destroy(&text);
        goto done;
    }
    MB_TRY(mb_comm_create(&argc, &argv, &program->comm));
    *out_has_ranks = true;
    mb_log_init(program->spec->name, mb_comm_rank(program->comm), mb_comm_size(program->comm), NULL);
    mb_stop_install();
    MB_TRY(program->spec->run(program));
    if (program->asks_done && program->answer == MB_PROGRAM_NO_ANSWER)
        MB_RAISE(MB_EUSAGE, "%s%s%s has no run folder that could be done", program->spec->name,
                 program->mode != NULL ? " " : "", program->mode != NULL ? program->mode : "");
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
    ending end = note_ending(&program, status, has_ranks);
    if (program.asks_done && mb_status_exit_code(status) != 2)
        status = settle_answer(&program, &end);
    else
        report_failure(&end);
    if (is_failure(status)) mb_program_move_back(&program);
    /* All ranks agree on one code before any finalises: a rank alone in MPI_Finalize would wait for ever. The
     * lease is kept until the one that speaks has written why. */
    mb_status agreed = has_ranks ? mb_comm_agree(program.comm, status) : status;
    keep_failure(&program, &end);
    if (has_ranks && is_failure(agreed)) mb_comm_barrier(program.comm);
    mb_free(end.message);
    free_program(&program, &line);
    int code = has_ranks ? mb_comm_exit_code(program.comm, agreed) : mb_status_exit_code(status);
    mb_comm_destroy(&program.comm);
    mb_log_close();
    if (getenv("MB_CHECK_LEAKS") != NULL && mb_memory_live_blocks() != 0) {
        fprintf(stderr, "%s: %lld blocks still alive at the end\n", spec->name,
                (long long)mb_memory_live_blocks());
        return 1;
    }
    return code;
}
