/* config_forecast.c: one stage's forecast, as a table, as JSON, and as an answer to "does it fit?".
 *
 * 1. options   2. making it   3. as text   4. as JSON   5. does it fit   6. run   7. in records
 */
#include "stage/config_forecast.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/files.h"
#include "model/fuse.h"
#include "stage/forecast_files.h"
#include "stage/forecast_time.h"
#include "stage/machine_gpus.h"

#define MIB 1048576.0
#define GIB 1073741824.0

/* ---- 1. options ---- */

static const mb_option options_table[] = {
    MB_OPTION_TEXT(mb_config_forecast, program, "program", NULL, NULL,
                   "mode forecast: the program that runs the stage; without it, by the group's keys", NULL),
    MB_OPTION_INT(mb_config_forecast, nodes, "nodes", "0", 0, 1e6, "nodes",
                  "mode forecast: nodes of the job; 0: slurm.nodes, else 1", NULL),
    MB_OPTION_INT(mb_config_forecast, ranks, "ranks", "0", 0, 1e7, "ranks",
                  "mode forecast: ranks in all; 0: nodes x ranks_per_node, slurm.ntasks, else one per node",
                  NULL),
    MB_OPTION_INT(mb_config_forecast, ranks_per_node, "ranks_per_node", "0", 0, 1e5, "ranks",
                  "mode forecast: ranks of one node; 0: ranks / nodes", NULL),
    MB_OPTION_TEXT(mb_config_forecast, machine, "machine", NULL, NULL,
                   "mode forecast: rates of a node, as moe-inspect machine measure=true out=FILE wrote them",
                   NULL),
    MB_OPTION_TEXT(mb_config_forecast, history, "history", "checkpoints", NULL,
                   "mode forecast: folder whose records of finished runs count before any rate; none: off",
                   NULL),
    MB_OPTION_TEXT(mb_config_forecast, arch, "arch", NULL, NULL,
                   "mode forecast: config.json (or a folder with one) of a model that is not there yet",
                   NULL),
    MB_OPTION_TEXT(mb_config_forecast, makers, "makers", NULL, NULL,
                   "mode forecast: list of the study's stages (folder, program and words of each, parted by "
                   "tabs), which say what models and data that are not there yet will be",
                   NULL),
    MB_OPTION_REAL(mb_config_forecast, records, "records", "0", 0, 1e15, "records",
                   "mode forecast: records of data that is not there yet", NULL),
    MB_OPTION_REAL(mb_config_forecast, tokens, "tokens", "0", 0, 1e18, "tokens",
                   "mode forecast: their tokens", NULL),
    MB_OPTION_REAL(mb_config_forecast, bytes_per_token, "bytes_per_token", "0", 0, 1e3, "bytes",
                   "mode forecast: text per token; 0: by the tokenizer, or assumed by the vocabulary", NULL),
    MB_OPTION_REAL(mb_config_forecast, node_memory_gib, "node_memory_gib", "0", 0, 1e7, "GiB",
                   "mode forecast: refuse (exit 2) when a node needs more; 0: never", NULL),
    MB_OPTION_INT(
        mb_config_forecast, gpus_per_node, "gpus_per_node", "0", 0, 1e5, "GPUs",
        "mode forecast: GPUs of a node, which backend=auto takes when every rank has one; 0: as the machine= "
        "file says, else none",
        NULL),
    MB_OPTION_REAL(
        mb_config_forecast, gpu_memory_gib, "gpu_memory_gib", "0", 0, 1e6, "GiB",
        "mode forecast: refuse (exit 2) when a GPU needs more; 0: as the machine= file says, or a GPU of "
        "this machine; else never",
        NULL),
    MB_OPTION_REAL(mb_config_forecast, max_minutes, "max_minutes", "0", 0, 1e9, "min",
                   "mode forecast: refuse (exit 2) when the stage takes longer; 0: never", NULL),
    MB_OPTION_TEXT(mb_config_forecast, out, "out", NULL, NULL, "mode forecast: write it here too, as JSON",
                   NULL),
};

const mb_option *mb_config_forecast_table(int64_t *out_count)
{
    *out_count = (int64_t)(sizeof options_table / sizeof *options_table);
    return options_table;
}

bool mb_config_forecast_is_own(const char *word)
{
    static const char *const others[] = {"file", "group", "key", "threads"};
    const size_t n = strcspn(word, "=");
    if (word[n] == 0) return false;
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (strlen(others[i]) == n && memcmp(others[i], word, n) == 0) return true;
    for (size_t i = 0; i < sizeof options_table / sizeof *options_table; i++)
        if (strlen(options_table[i].key) == n && memcmp(options_table[i].key, word, n) == 0) return true;
    return false;
}

/* ---- 2. making it ---- */

typedef struct forecast {
    const mb_config_forecast *options;
    mb_forecast_stage stage;
    mb_forecast_model model, source;
    bool has_model, has_source; /* passes go through it; source: of scores, or a distillation's teacher */
    mb_forecast_data data;
    mb_forecast_machine machine;
    mb_forecast_layout layout;
    int64_t node_ranks;
    int64_t gpu_ranks; /* that share a GPU, at most; 0: computed on the host */
    double gpu_bytes;  /* memory of one; 0: not known */
    bool fits_gpu;     /* it is a GPU's memory that is looked at, not a node's */
    mb_forecast_memory memory;
    mb_forecast_past past;
    mb_forecast_time time;
    mb_forecast_files files;
} forecast;

static void forecast_reset(forecast *f)
{
    mb_forecast_stage_reset(&f->stage);
    mb_forecast_model_reset(&f->model);
    mb_forecast_model_reset(&f->source);
}

static mb_status find_models(forecast *f)
{
    mb_status status = MB_OK;
    mb_forecast_stage *stage = &f->stage;
    const char *arch = f->options->arch;
    mb_scorer_needs needs = {0};
    f->has_model = mb_forecast_stage_model(stage) != NULL;
    if (stage->program == MB_FORECAST_CONVERT && mb_str_equal(stage->mode, "init") && arch == NULL)
        arch = stage->own.convert.config;
    if (stage->program == MB_FORECAST_SCORE) {
        needs = mb_forecast_time_needs(stage);
        f->has_model = needs.router;
        f->has_source = needs.source;
    }
    if (f->has_model) MB_TRY(mb_forecast_model_find(stage, NULL, arch, &f->model));
    if (stage->program == MB_FORECAST_TRAIN)
        MB_TRY(mb_forecast_model_find_teacher(stage, &f->source, &f->has_source));
    if (f->has_source && stage->program == MB_FORECAST_SCORE) {
        MB_TRY(mb_forecast_model_find(stage, stage->own.score.source_model, arch, &f->source));
        if (!f->source.is_encoder) f->source.arch.trash = f->source.arch.declared_trash = 0;
        if (!needs.policy) f->source.has_adapter = false;
    }
    if (f->model.is_encoder && stage->program != MB_FORECAST_EMBED)
        MB_RAISE(MB_EUSAGE, "%s is an encoder; only moe-embed takes one", f->model.says);
done:
    return status;
}

/* Records are cut where the program cuts them. */
static mb_status find_data(forecast *f)
{
    mb_status status = MB_OK;
    mb_forecast_stage *stage = &f->stage;
    const mb_forecast_given given = {f->options->records, f->options->tokens, f->options->bytes_per_token};
    const mb_arch *arch = f->has_model ? &f->model.arch : &f->source.arch;
    int64_t limit = 0, positions = f->model.is_encoder ? f->model.encoder.max_positions : arch->max_positions,
            vocab = f->model.is_encoder ? f->model.encoder.vocab : arch->vocab;
    char *made = mb_forecast_stage_text(stage, "tokenizer.tokenizer.vocab_size");
    if (stage->program == MB_FORECAST_TRAIN) {
        mb_trainer_options *o = &stage->own.train.trainer;
        limit = o->max_length;
        if (o->subset_ratio == 0) /* as main_train.c has it */
            o->subset_ratio =
                mb_str_equal(stage->own.train.objective.objective, "router_warmup") ? 0.05 : 1.0;
    }
    if (stage->program == MB_FORECAST_SCORE) limit = stage->own.score.scorer.max_length;
    if (stage->program == MB_FORECAST_EVAL) limit = stage->own.eval.max_length;
    if (stage->program == MB_FORECAST_EMBED) limit = stage->own.embed.max_length;
    if (stage->program == MB_FORECAST_TEACHER) limit = stage->own.teacher.maker.max_length;
    if (positions > 0 && (limit == 0 || positions < limit)) limit = positions;
    if (stage->program == MB_FORECAST_SHARD) vocab = 32000;
    if (made != NULL && stage->program == MB_FORECAST_SHARD) MB_TRY(mb_str_parse_int(made, &vocab));
    MB_TRY(mb_forecast_data_find(stage, &given, (double)limit, vocab, &f->data));
done:
    mb_free(made);
    return status;
}

static int64_t first_of(int64_t a, int64_t b, int64_t c)
{
    return a > 0 ? a : b > 0 ? b : c;
}

/* What mb_program_ops_create will come to, as far as it can be known here (program_ops.h). */
static void find_gpus(forecast *f)
{
    const mb_config_forecast *o = f->options;
    const mb_forecast_common *common = &f->stage.common;
    int64_t gpus = first_of(o->gpus_per_node, f->machine.gpus, 0);
    const bool is_auto = mb_str_equal(common->backend, "auto"),
               is_cuda = mb_str_equal(common->backend, "cuda"),
               has_enough = gpus > 0 && (gpus >= f->node_ranks || common->share_gpu);
    f->stage.on_gpu = (f->has_model || f->has_source) && (is_cuda || (is_auto && has_enough));
    if (!f->stage.on_gpu) {
        if (f->machine.gpus == 0) return;
        f->machine = mb_forecast_machine_assumed(f->machine.cores); /* the file is about its GPUs */
        return;
    }
    if (gpus == 0) gpus = f->node_ranks;
    if (f->machine.gpus == 0) mb_forecast_machine_assume_gpus(&f->machine, gpus);
    f->gpu_ranks = (f->node_ranks + gpus - 1) / gpus;
    f->gpu_bytes = o->gpu_memory_gib > 0 ? o->gpu_memory_gib * GIB : f->machine.gpu_memory_bytes;
    if (f->gpu_bytes <= 0) f->gpu_bytes = mb_machine_gpus_memory();
}

static mb_status find_layout(forecast *f, int64_t threads)
{
    mb_status status = MB_OK;
    const mb_config_forecast *o = f->options;
    const mb_forecast_common *common = &f->stage.common;
    const bool is_one = f->stage.program == MB_FORECAST_CONVERT ||
                        (f->stage.program == MB_FORECAST_SHARD && mb_str_equal(f->stage.mode, "tokenizer"));
    if (o->machine != NULL)
        MB_TRY(mb_forecast_machine_read(o->machine, &f->machine));
    else
        f->machine = mb_forecast_machine_assumed(sysconf(_SC_NPROCESSORS_ONLN));
    f->layout.nodes = is_one ? 1 : first_of(o->nodes, common->nodes, 1);
    f->layout.ranks = is_one ? 1
                             : first_of(o->ranks, o->ranks_per_node * f->layout.nodes,
                                        first_of(common->ntasks, f->layout.nodes, 1));
    if (f->layout.ranks < f->layout.nodes)
        MB_RAISE(MB_EUSAGE, "ranks = %lld on %lld nodes: every node needs at least one",
                 (long long)f->layout.ranks, (long long)f->layout.nodes);
    f->node_ranks = (f->layout.ranks + f->layout.nodes - 1) / f->layout.nodes;
    find_gpus(f);
    const int64_t share = f->machine.cores / f->node_ranks;
    f->layout.threads =
        first_of(threads, common->threads, first_of(common->cpus_per_task, share > 0 ? share : 1, 1));
done:
    return status;
}

/* The folder of the stage's study: two above its own ("checkpoints/demo" of "checkpoints/demo/run1/warmup").
 */
static char *study_folder(const char *opt_output)
{
    char *folder = opt_output != NULL ? mb_strdup(opt_output) : NULL;
    for (int i = 0; i < 2 && folder != NULL; i++) {
        char *slash = strrchr(folder, '/');
        if (slash != NULL && slash != folder) *slash = 0;
    }
    return folder;
}

static mb_status find_past(forecast *f)
{
    mb_status status = MB_OK;
    char *near = study_folder(f->stage.common.output_dir);
    const bool is_off = f->options->history == NULL || mb_str_equal(f->options->history, "none");
    if (!is_off && f->has_model)
        MB_TRY(mb_forecast_history_find(&f->stage, &f->model, f->options->history, near, f->layout.ranks,
                                        f->layout.threads, &f->past));
done:
    mb_free(near);
    return status;
}

static mb_status make(forecast *f)
{
    mb_status status = MB_OK;
    const mb_forecast_model *model = f->has_model ? &f->model : NULL,
                            *source = f->has_source ? &f->source : NULL;
    MB_TRY(mb_forecast_memory_get(&f->stage, model, source, &f->data, f->layout.ranks, f->node_ranks,
                                  &f->memory));
    MB_TRY(find_past(f));
    MB_TRY(mb_forecast_time_get(&f->stage, model, source, &f->data, &f->memory, &f->machine, &f->layout,
                                &f->past, &f->time));
    mb_forecast_files_get(&f->stage, f->has_model ? model : source, &f->data, &f->memory, &f->files);
done:
    return status;
}

/* ---- 3. as text ---- */

static const char *stage_name(const forecast *f)
{
    const char *output = f->stage.common.output_dir;
    const char *slash = output != NULL ? strrchr(output, '/') : NULL;
    if (slash != NULL && slash[1] != 0) return slash + 1;
    return f->stage.group != NULL ? f->stage.group : mb_forecast_stage_name(f->stage.program);
}

static void print_time(const char *what, double seconds)
{
    if (seconds < 120)
        printf("%s %.3g s", what, seconds);
    else if (seconds < 7200)
        printf("%s %.1f min", what, seconds / 60);
    else if (seconds < 48 * 3600)
        printf("%s %.1f h", what, seconds / 3600);
    else
        printf("%s %.1f days", what, seconds / 86400);
}

static void print_bytes(double bytes)
{
    static const char *const units[] = {"B", "KB", "MB", "GB", "TB", "PB"};
    int u = 0;
    while (bytes >= 1000 && u < 5) {
        bytes /= 1000;
        u++;
    }
    printf("%.3g %s", bytes, units[u]);
}

static void print_memory(const forecast *f)
{
    const char *separator = ": ";
    printf("  memory    %.1f MiB a rank, %.2f GiB a node of %lld rank%s", f->memory.rank / MIB,
           f->memory.node / GIB, (long long)f->node_ranks, f->node_ranks == 1 ? "" : "s");
    if (f->stage.on_gpu) printf(", and %.2f GiB of its GPU", f->memory.gpu / GIB);
    for (int k = 0; k < MB_FORECAST_MEMORY_KINDS; k++) {
        if (f->memory.bytes[k] < 0.05 * MIB) continue;
        printf("%s%s %.1f", separator, mb_forecast_memory_name((mb_forecast_memory_kind)k),
               f->memory.bytes[k] / MIB);
        separator = ", ";
    }
    printf("\n");
}

static void print_work(const forecast *f)
{
    const mb_forecast_time *t = &f->time;
    if (t->is_known && t->flops_per_token > 0)
        printf("  work      %.4g tokens%s, %.4g MFLOP each, %.4g TFLOP in all\n", t->tokens,
               f->data.is_at_most ? " at most" : "", t->flops_per_token / 1e6,
               t->flops_per_token * t->tokens / 1e12);
    printf("  time      ");
    if (t->is_known) {
        print_time(f->data.is_at_most && f->stage.program != MB_FORECAST_TRAIN ? "at most" : "about",
                   t->seconds);
        if (t->steps > 0) printf(" (%.0f steps of %.3g s)", t->steps, t->step_seconds);
        if (t->tokens_per_second > 0) printf(", %.4g tokens/s", t->tokens_per_second);
        print_time(", of it files and start", t->file_seconds);
        printf("\n            %s\n", t->says);
    } else {
        printf("unknown: %s\n", f->data.says);
    }
}

static void print_files(const forecast *f)
{
    printf("  files     ");
    print_bytes(f->files.bytes);
    printf(" in %.0f files stay, at most ", f->files.files);
    print_bytes(f->files.peak_bytes);
    printf(" in %.0f meanwhile:", f->files.peak_files);
    for (int64_t i = 0; i < f->files.count; i++) {
        const mb_forecast_file *file = &f->files.file[i];
        printf("%s%s ", i > 0 ? ", " : " ", file->kind);
        print_bytes(file->bytes);
        printf(" in %.0f", file->files);
    }
    printf("\n");
}

static void print_forecast(const forecast *f)
{
    printf("forecast of %s (%s): %lld node%s, %lld rank%s of %lld thread%s\n", stage_name(f),
           mb_forecast_stage_name(f->stage.program), (long long)f->layout.nodes,
           f->layout.nodes == 1 ? "" : "s", (long long)f->layout.ranks, f->layout.ranks == 1 ? "" : "s",
           (long long)f->layout.threads, f->layout.threads == 1 ? "" : "s");
    if (f->has_model || f->has_source)
        printf("  model     %s: %.4g M parameters%s%.4g M train\n",
               f->has_model ? f->model.says : f->source.says, f->memory.parameters / 1e6, ", ",
               f->memory.trained / 1e6);
    if (f->data.is_known)
        printf("  data      %s%.0f records, %.4g tokens, from %s\n", f->data.is_exact ? "" : "about ",
               f->data.records, f->data.tokens, f->data.says);
    if (f->node_ranks * f->layout.threads > f->machine.cores)
        printf("  note      %lld x %lld threads on nodes of %lld cores (%s): time is that of the cores\n",
               (long long)f->node_ranks, (long long)f->layout.threads, (long long)f->machine.cores,
               f->machine.name);
    print_memory(f);
    print_work(f);
    print_files(f);
}

/* ---- 4. as JSON ---- */

static mb_status memory_json(const forecast *f, json_t **out)
{
    mb_status status = MB_OK;
    json_t *json = json_object();
    for (int k = 0; k < MB_FORECAST_MEMORY_KINDS; k++)
        MB_TRY(mb_json_set(json, mb_forecast_memory_name((mb_forecast_memory_kind)k),
                           json_integer((json_int_t)f->memory.bytes[k])));
    *out = json;
    json = NULL;
done:
    json_decref(json);
    return status;
}

static mb_status files_json(const forecast *f, json_t **out)
{
    mb_status status = MB_OK;
    json_t *json = json_object();
    for (int64_t i = 0; i < f->files.count; i++)
        MB_TRY(mb_json_set(json, f->files.file[i].kind,
                           json_pack("{s:f, s:f, s:b}", "bytes", f->files.file[i].bytes, "files",
                                     f->files.file[i].files, "is_passing", f->files.file[i].is_passing)));
    *out = json;
    json = NULL;
done:
    json_decref(json);
    return status;
}

static mb_status write_json(const forecast *f, const char *opt_problem)
{
    mb_status status = MB_OK;
    json_t *json = NULL, *memory = NULL, *files = NULL;
    const mb_forecast_time *t = &f->time;
    if (f->options->out == NULL) goto done;
    MB_TRY(memory_json(f, &memory));
    MB_TRY(files_json(f, &files));
    json = json_pack("{s:s, s:s, s:I, s:I, s:I, s:I}", "stage", stage_name(f), "program",
                     mb_forecast_stage_name(f->stage.program), "nodes", (json_int_t)f->layout.nodes, "ranks",
                     (json_int_t)f->layout.ranks, "ranks_per_node", (json_int_t)f->node_ranks, "threads",
                     (json_int_t)f->layout.threads);
    MB_TRY(mb_json_set(json, "memory", json_incref(memory)));
    MB_TRY(mb_json_set(json, "rank_bytes", json_integer((json_int_t)f->memory.rank)));
    MB_TRY(mb_json_set(json, "node_bytes", json_integer((json_int_t)f->memory.node)));
    MB_TRY(mb_json_set(json, "gpu_bytes", json_integer((json_int_t)f->memory.gpu)));
    MB_TRY(mb_json_set(json, "parameters", json_integer((json_int_t)f->memory.parameters)));
    MB_TRY(mb_json_set(json, "trained", json_integer((json_int_t)f->memory.trained)));
    MB_TRY(mb_json_set(json, "records", json_real(f->data.records)));
    MB_TRY(mb_json_set(json, "data", json_string(f->data.says)));
    if (t->is_known) {
        MB_TRY(mb_json_set(json, "tokens", json_real(t->tokens)));
        MB_TRY(mb_json_set(json, "is_at_most", json_boolean(f->data.is_at_most)));
        MB_TRY(mb_json_set(json, "flops", json_real(t->tokens * t->flops_per_token)));
        MB_TRY(mb_json_set(json, "steps", json_real(t->steps)));
        MB_TRY(mb_json_set(json, "seconds", json_real(t->seconds)));
        MB_TRY(mb_json_set(json, "compute_seconds", json_real(t->compute_seconds)));
        MB_TRY(mb_json_set(json, "estimated_seconds", json_real(t->estimated_seconds)));
        MB_TRY(mb_json_set(json, "is_measured", json_boolean(f->past.is_found)));
    }
    MB_TRY(mb_json_set(json, "source", json_string(t->says)));
    MB_TRY(mb_json_set(json, "files", json_incref(files)));
    MB_TRY(mb_json_set(json, "kept_bytes", json_real(f->files.bytes)));
    MB_TRY(mb_json_set(json, "peak_bytes", json_real(f->files.peak_bytes)));
    MB_TRY(mb_json_set(json, "peak_files", json_real(f->files.peak_files)));
    if (opt_problem != NULL) MB_TRY(mb_json_set(json, "problem", json_string(opt_problem)));
    MB_TRY(mb_json_write(f->options->out, json, 2, false));
done:
    json_decref(memory);
    json_decref(files);
    json_decref(json);
    return status;
}

/* ---- 5. does it fit ---- */

/* Of a node, or, where that is asked about, of a GPU. */
static double need_of(const forecast *f, const mb_forecast_memory *memory)
{
    return f->fits_gpu ? memory->gpu * (double)f->gpu_ranks : memory->node;
}

/* What a change would make of the need; nothing is said of one that helps little. */
static mb_status try_change(forecast *f, const char *words, int64_t node_ranks, double most, mb_str *s)
{
    mb_status status = MB_OK;
    mb_forecast_memory memory;
    const int64_t ranks = f->layout.ranks * node_ranks / f->node_ranks;
    if (mb_forecast_memory_get(&f->stage, f->has_model ? &f->model : NULL, f->has_source ? &f->source : NULL,
                               &f->data, ranks > 0 ? ranks : 1, node_ranks, &memory) != MB_OK)
        goto done; /* not possible here */
    const double need = need_of(f, &memory);
    if (need > 0.97 * need_of(f, &f->memory)) goto done;
    MB_TRY(mb_str_add_format(s, "%s%s (%.2f GiB%s)", s->length > 0 ? ", " : "", words, need / GIB,
                             need <= most ? ", fits" : ""));
done:
    return status;
}

static mb_status try_training(forecast *f, double most, mb_str *s)
{
    mb_status status = MB_OK;
    mb_train_program *own = &f->stage.own.train;
    mb_trainer_options *o = &own->trainer;
    const mb_trainer_options kept = *o;
    const double tokens = f->data.most;
    char *mode = own->peft_mode;
    o->recompute = (char *)"blocks";
    MB_TRY(try_change(f, "training.recompute=blocks", f->node_ranks, most, s));
    o->recompute = kept.recompute;
    for (o->zero = kept.zero + 1; o->zero <= 3 && f->layout.ranks > 1; o->zero++)
        MB_TRY(try_change(f, o->zero == 2 ? "training.zero=2" : "training.zero=3", f->node_ranks, most, s));
    o->zero = kept.zero;
    if (o->batch_size > 1) {
        o->batch_size /= 2, o->gradient_accumulation_steps *= 2, f->data.most /= 2;
        MB_TRY(try_change(f, "half the training.batch_size with twice the gradient_accumulation_steps",
                          f->node_ranks, most, s));
        o->batch_size = kept.batch_size, o->gradient_accumulation_steps = kept.gradient_accumulation_steps;
        f->data.most = tokens;
    }
    o->async_save = false;
    MB_TRY(try_change(f, "training.async_save=false", f->node_ranks, most, s));
    o->async_save = kept.async_save;
    if (mb_str_equal(mode, "full") && f->memory.adapter == 0 &&
        !mb_str_equal(own->objective.objective, "router_warmup")) {
        own->peft_mode = (char *)"lora";
        MB_TRY(try_change(f, "training.peft_mode=lora", f->node_ranks, most, s));
    }
done:
    *o = kept;
    own->peft_mode = mode;
    f->data.most = tokens;
    return status;
}

static int64_t *tile_of(mb_forecast_stage *stage, const char **out_words)
{
    switch (stage->program) {
    case MB_FORECAST_SCORE:
        *out_words = "half the score.tile_tokens";
        return &stage->own.score.scorer.tile_tokens;
    case MB_FORECAST_EVAL:
        *out_words = "half the eval.tile_tokens";
        return &stage->own.eval.tile_tokens;
    case MB_FORECAST_EMBED:
        *out_words = "half the embed.tile_tokens";
        return &stage->own.embed.embed.tile_tokens;
    case MB_FORECAST_TEACHER:
        *out_words = "half the teacher.tile_tokens";
        return &stage->own.teacher.maker.tile_tokens;
    case MB_FORECAST_INFER:
        *out_words = "half the generate.batch_tokens";
        return &stage->own.infer.generate.batch_tokens;
    default:
        return NULL;
    }
}

/* Every change that helps, with what a node would need then. */
static mb_status try_changes(forecast *f, double most, mb_str *s)
{
    mb_status status = MB_OK;
    const char *words = NULL;
    int64_t *tile = tile_of(&f->stage, &words);
    mb_model_options *model = mb_forecast_stage_model(&f->stage);
    if (f->node_ranks > 1) MB_TRY(try_change(f, "half the ranks per node", f->node_ranks / 2, most, s));
    if (f->stage.program == MB_FORECAST_TRAIN) MB_TRY(try_training(f, most, s));
    if (tile != NULL && *tile > 256) {
        *tile /= 2;
        status = try_change(f, words, f->node_ranks, most, s);
        *tile *= 2;
        MB_TRY(status);
    }
    if (model == NULL) goto done;
    const mb_model_options kept = *model;
    model->dtype = (char *)"bf16";
    status = try_change(f, "model.dtype=bf16", f->node_ranks, most, s);
    *model = kept;
    MB_TRY(status);
    model->quantize = (char *)"int4";
    if (f->memory.trained < 0.5 * f->memory.parameters && !f->model.is_encoder)
        status = try_change(f, "model.quantize=int4", f->node_ranks, most, s);
    *model = kept;
    MB_TRY(status);
    model->shard = true;
    if (f->stage.program == MB_FORECAST_SCORE || f->stage.program == MB_FORECAST_EVAL)
        status = try_change(f, "model.shard=true", f->node_ranks, most, s);
    *model = kept;
done:
    return status;
}

/* Of a node, or of a GPU, with `most` bytes. */
static mb_status check_place(forecast *f, bool of_gpu, double most, mb_str *problem)
{
    mb_status status = MB_OK;
    mb_str fixes = MB_STR_EMPTY;
    int largest = -1;
    f->fits_gpu = of_gpu;
    const double need = need_of(f, &f->memory);
    if (most <= 0 || need <= most) goto done;
    for (int k = 0; k < MB_FORECAST_MEMORY_KINDS; k++) {
        if (f->stage.on_gpu && mb_forecast_memory_is_of_gpu((mb_forecast_memory_kind)k) != of_gpu) continue;
        if (largest < 0 || f->memory.bytes[k] > f->memory.bytes[largest]) largest = k;
    }
    MB_TRY(try_changes(f, most, &fixes));
    MB_TRY(mb_str_add_format(
        problem, "%sa %s needs %.2f GiB and has %.4g; most of it are %s, %.2f GiB a rank. What helps: %s",
        problem->length > 0 ? "; and " : "", of_gpu ? "GPU" : "node", need / GIB, most / GIB,
        mb_forecast_memory_name((mb_forecast_memory_kind)largest), f->memory.bytes[largest] / GIB,
        fixes.length > 0 ? mb_str_text(&fixes)
        : of_gpu         ? "GPUs with more memory, or a smaller model"
                         : "nodes with more memory, or a smaller model"));
done:
    mb_str_destroy(&fixes);
    return status;
}

static mb_status check_memory(forecast *f, mb_str *problem)
{
    mb_status status = MB_OK;
    MB_TRY(check_place(f, false, f->options->node_memory_gib * GIB, problem));
    if (f->stage.on_gpu) MB_TRY(check_place(f, true, f->gpu_bytes, problem));
done:
    return status;
}

static mb_status check_minutes(const forecast *f, mb_str *problem)
{
    const double most = f->options->max_minutes, minutes = f->time.seconds / 60;
    if (most <= 0 || !f->time.is_known || minutes <= most) return MB_OK;
    return mb_str_add_format(
        problem,
        "%sit takes %.0f minutes and may take %g (%s). What helps: about %.0f times the nodes "
        "(training.lanes bounds the ranks of a training step), fewer %s, or a longer limit",
        problem->length > 0 ? "; and " : "", ceil(minutes), most, f->time.says, ceil(minutes / most),
        f->stage.program == MB_FORECAST_TRAIN ? "steps" : "records");
}

/* The file system of the results, or of the nearest folder above them that is there. */
static mb_status check_disk(const forecast *f, mb_str *problem)
{
    mb_status status = MB_OK;
    struct statvfs disk;
    char *path = f->stage.common.output_dir != NULL ? mb_strdup(f->stage.common.output_dir) : NULL;
    while (path != NULL && !mb_files_is_folder(path)) {
        char *slash = strrchr(path, '/');
        if (slash == NULL || slash == path) MB_FREE(path);
        if (path != NULL) *slash = 0;
    }
    if (path == NULL || statvfs(path, &disk) != 0) goto done;
    const double bytes = (double)disk.f_bavail * (double)disk.f_frsize, files = (double)disk.f_favail;
    if (f->files.peak_bytes > bytes)
        MB_TRY(mb_str_add_format(problem,
                                 "%s%s has %.1f GB free and the stage writes up to %.1f GB; make room, or "
                                 "keep fewer checkpoints (training.save_total_limit, training.save=delta)",
                                 problem->length > 0 ? "; and " : "", path, bytes / 1e9,
                                 f->files.peak_bytes / 1e9));
    if (disk.f_files > 0 && f->files.peak_files > files)
        MB_TRY(mb_str_add_format(problem, "%s%s has room for %.0f more files and the stage makes %.0f",
                                 problem->length > 0 ? "; and " : "", path, files, f->files.peak_files));
done:
    mb_free(path);
    return status;
}

/* ---- 6. run ---- */

static mb_status run_all(forecast *f, int64_t threads, mb_str *problem)
{
    mb_status status = MB_OK;
    MB_TRY(find_models(f));
    MB_TRY(find_data(f));
    MB_TRY(find_layout(f, threads));
    MB_TRY(make(f));
    print_forecast(f);
    MB_TRY(check_memory(f, problem));
    MB_TRY(check_minutes(f, problem));
    MB_TRY(check_disk(f, problem));
    MB_TRY(write_json(f, problem->length > 0 ? mb_str_text(problem) : NULL));
    if (problem->length > 0) MB_RAISE(MB_EUSAGE, "%s does not fit: %s", stage_name(f), mb_str_text(problem));
done:
    return status;
}

mb_status mb_config_forecast_run(const mb_config_forecast *options, const char *opt_file,
                                 const char *opt_group, int64_t threads, const char *const *words, int64_t n)
{
    mb_status status = MB_OK;
    forecast f = {.options = options};
    mb_str problem = MB_STR_EMPTY;
    const char **all = NULL;
    int64_t count = 0;
    char *group = opt_group != NULL ? mb_str_format("stage=%s", opt_group) : NULL,
         *file = opt_file != NULL ? mb_str_format("config=%s", opt_file) : NULL;
    MB_NEW_ARRAY(all, n + 2);
    if (file != NULL) all[count++] = file;
    if (group != NULL) all[count++] = group;
    for (int64_t i = 0; i < n; i++) all[count++] = words[i];
    MB_TRY(mb_forecast_stage_open(options->program, all, count, &f.stage));
    f.stage.makers = options->makers;
    MB_TRY(run_all(&f, threads, &problem));
done:
    forecast_reset(&f);
    mb_str_destroy(&problem);
    mb_free(all);
    mb_free(group);
    mb_free(file);
    return status;
}

/* ---- 7. in records ---- */

mb_status mb_config_forecast_result(mb_program *program, const mb_lm *lm)
{
    mb_status status = MB_OK;
    json_t *json = NULL;
    char shape[200], *path = NULL;
    double seconds = 0;
    int64_t bytes = 0;
    if (!mb_program_is_root(program) || program->run == NULL) goto done;
    mb_forecast_model_shape(mb_lm_arch(lm),
                            mb_lm_is_fused(lm) ? mb_fuse_kind_name(mb_fuse_get_kind(lm)) : NULL, shape);
    MB_TRY(mb_runfolder_result(program->run, "model_shape", json_string(shape)));
    path = mb_program_path(program, "forecast.json");
    if (path == NULL || !mb_files_is_file(path) || mb_json_read(path, &json) != MB_OK) goto done;
    MB_TRY(mb_json_opt_real(json, "compute_seconds", path, &seconds));
    MB_TRY(mb_json_opt_int(json, "rank_bytes", path, &bytes));
    if (seconds > 0) MB_TRY(mb_program_result_real(program, "forecast_seconds", seconds));
    if (bytes > 0) MB_TRY(mb_program_result_int(program, "forecast_rank_bytes", bytes));
done:
    json_decref(json);
    mb_free(path);
    return status;
}
