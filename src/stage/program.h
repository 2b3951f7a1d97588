/* program: what every executable shares: command line, configuration, ranks, log, run folder, exit code.
 *
 * Layer: stage.  Uses: everything below.
 *
 * A program is a table of options and a run function. mb_program_main does the rest: --help, --version,
 * --print-config, --dry-run, --is-done, `[mode] [file.cfg] key=value ...`, MPI only when launched by one, the
 * stop flag, error printing, failure.json (failure.h), and one exit code agreed by all ranks.
 */
#ifndef MB_PROGRAM_H
#define MB_PROGRAM_H

#include "base/option.h"
#include "comm/comm.h"
#include "ops/ops.h"
#include "store/runfolder.h"

#define MB_PROGRAM_MAX_TABLES 12

typedef struct mb_program mb_program;

typedef struct mb_program_spec {
    const char *name;      /* "moe-train" */
    const char *purpose;   /* one sentence */
    const char *modes;     /* "forward|gradients|encode|file", NULL: no mode word */
    const char *example;   /* one or two whole command lines */
    bool mode_is_optional; /* without a mode word it does something too */
    bool has_operand;      /* one more bare word is allowed (moe-inspect file PATH) */
    bool has_shares;       /* it can do a share of its work (run.share) */
    /* Add this program's tables with mb_program_add_table; called before the command line is read. */
    mb_status (*declare)(mb_program *program);
    mb_status (*run)(mb_program *program);
} mb_program_spec;

/* Options of every program. */
typedef struct mb_program_options {
    char *output_dir; /* output.dir */
    char *backend;    /* backend */
    bool share_gpu;   /* gpu.share */
    int64_t threads;  /* threads */
    bool force;       /* run.force */
    char *share;      /* run.share */
} mb_program_options;

/* slurm.*: read by jobs/, not by programs. */
typedef struct mb_program_job {
    int64_t nodes, ntasks, cpus_per_task, array, throttle;
    char *gpus, *time, *partition, *memory, *extra, *site;
} mb_program_job;

typedef enum mb_program_answer {
    MB_PROGRAM_NO_ANSWER,
    MB_PROGRAM_DONE,
    MB_PROGRAM_NOT_DONE
} mb_program_answer;

struct mb_program {
    const mb_program_spec *spec;
    mb_option_table tables[MB_PROGRAM_MAX_TABLES];
    int64_t table_count;
    mb_program_options options;
    mb_program_job job;
    const char *mode;    /* NULL when spec has none */
    const char *operand; /* NULL when none was given */
    const char *stage;   /* stage= group or the program's own name without "moe-" */
    bool is_dry_run;
    bool asks_done; /* --is-done: begin_run answers, says "done" to the caller, and changes nothing */
    bool is_run;    /* and not a question */
    bool has_begun; /* begin_run gave us the folder */
    mb_program_answer answer; /* to --is-done */
    mb_share share;           /* of run.share */
    mb_comm *comm;
    mb_ops *ops;       /* NULL until mb_program_open_ops */
    char *aside;       /* where a finished, different result of output.dir was moved to; NULL none */
    mb_runfolder *run; /* NULL until mb_program_begin_run */
    void *own;         /* the program's own struct, from mb_calloc in declare; freed at the end */
};

int mb_program_main(int argc, char **argv, const mb_program_spec *spec);

/* target: zeroed struct that lives as long as the program. */
mb_status mb_program_add_table(mb_program *program, const char *title, const mb_option *options,
                               int64_t count, void *target);

/* Backend by options.backend/threads; logs its description. */
mb_status mb_program_open_ops(mb_program *program);

/* Rank 0 takes the lease on output.dir and records the configuration; every rank learns whether the stage (or
 * our share of it) is done already. Inputs: pairs (name, path), ending with NULL; NULL paths are passed over.
 * Collective. *out_is_done: nothing to do (under --is-done: always, the answer is given). */
mb_status mb_program_begin_run(mb_program *program, bool *out_is_done, ...);
/* The same with n pairs in arrays. */
mb_status mb_program_begin_run_list(mb_program *program, const char *const *names, const char *const *paths,
                                    int64_t n, bool *out_is_done);
/* Rank 0 hashes the outputs (paths relative to the folder, NULL-ended) and writes done.json, or the record
 * of our share (unless the whole was done meanwhile). MB_EEXIST when the folder is no longer ours.
 * Collective. */
mb_status mb_program_finish_run(mb_program *program, ...);
/* One more output (rank 0; others do nothing), before finish_run. */
mb_status mb_program_output(mb_program *program, const char *path);
/* Is the whole done, by done.json? Rank 0; false on others. */
bool mb_program_is_whole_done(const mb_program *program);
/* A name for files that only a run of the same inputs and configuration may go on with. Collective. */
mb_status mb_program_work_hash(const mb_program *program, char out_text[MB_HASH_TEXT]);
/* A figure for done.json (rank 0; others do nothing). */
mb_status mb_program_result_real(mb_program *program, const char *name, double value);
mb_status mb_program_result_int(mb_program *program, const char *name, int64_t value);
/* Path inside output.dir; mb_free. */
char *mb_program_path(const mb_program *program, const char *name);
static inline bool mb_program_is_root(const mb_program *program)
{
    return mb_comm_rank(program->comm) == 0;
}

#endif
