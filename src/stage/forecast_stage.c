/* forecast_stage.c: words of a command line into the option structs of any program.
 *
 * 1. options of every program   2. tables by program   3. words   4. which program   5. opening   6. access
 */
#include "stage/forecast_stage.h"

#include <string.h>

/* ---- 1. options of every program ---- */

/* Keys that the frame of the programs takes (program.c), and those that the job scripts take. */
static const mb_option common_options[] = {
    MB_OPTION_TEXT(mb_forecast_common, output_dir, "output.dir", NULL, NULL, "folder of the results",
                   "output.path|output.output_dir|out_dir"),
    MB_OPTION_TEXT(mb_forecast_common, backend, "backend", "auto", NULL, "what does the arithmetic", NULL),
    MB_OPTION_BOOL(mb_forecast_common, share_gpu, "gpu.share", "false", "ranks share GPUs", NULL),
    MB_OPTION_INT(mb_forecast_common, threads, "threads", "0", 0, 4096, "threads", "threads of a rank", NULL),
    MB_OPTION_BOOL(mb_forecast_common, force, "run.force", "false", "run again", NULL),
    MB_OPTION_TEXT(mb_forecast_common, share, "run.share", NULL, NULL, "part of an array", NULL),
    MB_OPTION_TEXT(mb_forecast_common, site, "slurm.site", NULL, NULL, "site file", NULL),
    MB_OPTION_INT(mb_forecast_common, nodes, "slurm.nodes", "0", 0, 1e6, "nodes", "nodes of the job", NULL),
    MB_OPTION_INT(mb_forecast_common, ntasks, "slurm.ntasks", "0", 0, 1e9, "ranks", "ranks of the job", NULL),
    MB_OPTION_INT(mb_forecast_common, cpus_per_task, "slurm.cpus_per_task", "0", 0, 1e6, "cores",
                  "cores of a rank", NULL),
    MB_OPTION_TEXT(mb_forecast_common, gpus, "slurm.gpus", NULL, NULL, "GPUs of a node", NULL),
    MB_OPTION_TEXT(mb_forecast_common, time, "slurm.time", NULL, NULL, "time limit", NULL),
    MB_OPTION_TEXT(mb_forecast_common, partition, "slurm.partition", NULL, NULL, "partition", NULL),
    MB_OPTION_TEXT(mb_forecast_common, memory, "slurm.memory", NULL, NULL, "memory of a node", NULL),
    MB_OPTION_TEXT(mb_forecast_common, extra, "slurm.extra", NULL, NULL, "more words for sbatch", NULL),
    MB_OPTION_INT(mb_forecast_common, array, "slurm.array", "0", 0, 1e6, "", "elements", NULL),
    MB_OPTION_INT(mb_forecast_common, throttle, "slurm.throttle", "0", 0, 1e6, "", "at one time", NULL),
};

/* ---- 2. tables by program ---- */

static const char *const program_names[MB_FORECAST_PROGRAMS] = {
    [MB_FORECAST_SHARD] = "moe-shard",     [MB_FORECAST_CONVERT] = "moe-convert",
    [MB_FORECAST_TRAIN] = "moe-train",     [MB_FORECAST_SCORE] = "moe-score",
    [MB_FORECAST_SELECT] = "moe-select",   [MB_FORECAST_EVAL] = "moe-eval",
    [MB_FORECAST_EMBED] = "moe-embed",     [MB_FORECAST_INFER] = "moe-infer",
    [MB_FORECAST_TEACHER] = "moe-teacher",
};

const char *mb_forecast_stage_name(mb_forecast_program program)
{
    return program_names[program];
}

typedef const mb_option *(*table_of)(int64_t *out_count);

static void add_table(mb_forecast_stage *stage, table_of table, void *target)
{
    int64_t n;
    const mb_option *options = table(&n);
    stage->tables[stage->table_count++] =
        (mb_option_table){.title = "", .options = options, .count = n, .target = target};
}

/* As the programs' own declare functions do. */
static void add_tables(mb_forecast_stage *s)
{
    if (mb_forecast_stage_model(s) != NULL) add_table(s, mb_model_option_table, mb_forecast_stage_model(s));
    switch (s->program) {
    case MB_FORECAST_SHARD:
        add_table(s, mb_program_options_shard, &s->own.shard);
        add_table(s, mb_shard_build_option_table, &s->own.shard.build);
        break;
    case MB_FORECAST_CONVERT:
        add_table(s, mb_program_options_convert, &s->own.convert);
        break;
    case MB_FORECAST_TRAIN:
        add_table(s, mb_fuse_option_table, &s->own.train.fuse);
        add_table(s, mb_program_options_train, &s->own.train);
        add_table(s, mb_objective_option_table, &s->own.train.objective);
        add_table(s, mb_trainer_option_table, &s->own.train.trainer);
        break;
    case MB_FORECAST_SCORE:
        add_table(s, mb_fuse_option_table, &s->own.score.fuse);
        add_table(s, mb_program_options_score, &s->own.score);
        add_table(s, mb_scorer_option_table, &s->own.score.scorer);
        break;
    case MB_FORECAST_SELECT:
        add_table(s, mb_program_options_select, &s->own.select);
        add_table(s, mb_select_option_table, &s->own.select.select);
        add_table(s, mb_shard_build_option_table, &s->own.select.build);
        break;
    case MB_FORECAST_EVAL:
        add_table(s, mb_fuse_option_table, &s->own.eval.fuse);
        add_table(s, mb_program_options_eval, &s->own.eval);
        add_table(s, mb_category_option_table, &s->own.eval.category);
        break;
    case MB_FORECAST_EMBED:
        add_table(s, mb_program_options_embed, &s->own.embed);
        add_table(s, mb_embedder_option_table, &s->own.embed.embed);
        break;
    case MB_FORECAST_TEACHER:
        add_table(s, mb_fuse_option_table, &s->own.teacher.fuse);
        add_table(s, mb_program_options_teacher, &s->own.teacher);
        add_table(s, mb_teacher_maker_option_table, &s->own.teacher.maker);
        break;
    default:
        add_table(s, mb_fuse_option_table, &s->own.infer.fuse);
        add_table(s, mb_program_options_infer, &s->own.infer);
        add_table(s, mb_generate_option_table, &s->own.infer.generate);
        break;
    }
    s->tables[s->table_count++] = (mb_option_table){.title = "",
                                                    .options = common_options,
                                                    .count = sizeof common_options / sizeof *common_options,
                                                    .target = &s->common};
}

/* ---- 3. words ---- */

static mb_status set_text(char **place, const char *text)
{
    mb_free(*place);
    *place = mb_strdup(text);
    return *place != NULL ? MB_OK : mb_fail(MB_ENOMEM, "no memory for a word");
}

static mb_status read_word(mb_forecast_stage *stage, const char *word)
{
    const char *equals = strchr(word, '=');
    if (word[0] == '-') return MB_OK;
    if (mb_str_is_prefix(word, "stage=")) return set_text(&stage->group, word + 6);
    if (mb_str_is_prefix(word, "config=")) return set_text(&stage->file, word + 7);
    if (mb_str_is_prefix(word, "mode=")) return set_text(&stage->mode, word + 5);
    if (equals != NULL) return MB_OK; /* an assignment */
    if (mb_str_is_suffix(word, ".cfg") && stage->file == NULL) return set_text(&stage->file, word);
    if (stage->mode == NULL) return set_text(&stage->mode, word);
    return mb_fail(MB_EUSAGE,
                   "'%s' is not understood; the stage's words are [mode] [study.cfg] [stage=GROUP] "
                   "key=value ...",
                   word);
}

static bool is_assignment(const char *word)
{
    return word[0] != '-' && strchr(word, '=') != NULL && !mb_str_is_prefix(word, "stage=") &&
           !mb_str_is_prefix(word, "config=") && !mb_str_is_prefix(word, "mode=");
}

/* First parts of the keys of all programs, and groups that only scripts read: "model|dataset|...". */
static mb_status known_prefixes(const mb_option_table *tables, int64_t n, mb_str *s)
{
    mb_status status = MB_OK;
    MB_TRY(mb_str_add(s, "study|report|slurm|run|output|models|seeds|sweep"));
    for (int64_t t = 0; t < n; t++) {
        for (int64_t i = 0; i < tables[t].count; i++) {
            const char *key = tables[t].options[i].key;
            MB_TRY(mb_str_add_format(s, "|%.*s", (int)strcspn(key, "."), key));
        }
    }
done:
    return status;
}

/* ---- 4. which program ---- */

/* Keys that a group of its own would have. The first that is there counts. */
static const struct {
    const char *part;
    mb_forecast_program program;
} by_part[] = {
    {"training", MB_FORECAST_TRAIN},  {"teacher", MB_FORECAST_TEACHER}, {"score", MB_FORECAST_SCORE},
    {"scores", MB_FORECAST_SCORE},    {"select", MB_FORECAST_SELECT},   {"eval", MB_FORECAST_EVAL},
    {"embed", MB_FORECAST_EMBED},     {"generate", MB_FORECAST_INFER},  {"convert", MB_FORECAST_CONVERT},
    {"tokenizer", MB_FORECAST_SHARD}, {"dataset", MB_FORECAST_SHARD}};

static mb_status choose_program(mb_forecast_stage *stage, const char *opt_program)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    json_t *group = NULL;
    mb_config *whole = NULL; /* the file without a stage: a group may hold one of its own name */
    const size_t n = sizeof by_part / sizeof *by_part;
    if (opt_program != NULL) {
        for (int p = 0; p < MB_FORECAST_PROGRAMS; p++) {
            stage->program = (mb_forecast_program)p;
            if (mb_str_equal(program_names[p], opt_program)) goto done;
        }
        const char *nearest = mb_str_nearest(opt_program, program_names, MB_FORECAST_PROGRAMS);
        MB_RAISE(MB_EUSAGE,
                 "program=%s: there is no forecast for it%s%s; there are moe-shard, moe-convert, "
                 "moe-train, moe-score, moe-select, moe-eval, moe-embed, moe-infer, moe-teacher",
                 opt_program, nearest != NULL ? "; did you mean " : "", nearest != NULL ? nearest : "");
    }
    if (stage->group == NULL)
        MB_RAISE(MB_EUSAGE,
                 "say which stage: file=STUDY.cfg group=GROUP, or program=moe-train ... -- and the "
                 "words that the program gets");
    if (strncmp(stage->group, "tokenizer", 9) == 0) MB_TRY(set_text(&stage->mode, "tokenizer"));
    MB_TRY(mb_config_open(stage->file, NULL, &whole));
    MB_TRY(mb_config_text(whole, stage->group, &text));
    MB_TRY(mb_json_parse(mb_str_text(&text), text.length, stage->group, &group));
    for (int by_name = 1; by_name >= 0; by_name--) {
        for (size_t i = 0; i < n; i++) {
            stage->program = by_part[i].program;
            if (by_name ? mb_str_is_prefix(stage->group, by_part[i].part)
                        : json_object_get(group, by_part[i].part) != NULL)
                goto done;
        }
    }
    MB_RAISE(MB_EUSAGE, "group %s does not say which program runs it; add program=moe-train (or another)",
             stage->group);
done:
    json_decref(group);
    mb_config_close(&whole);
    mb_str_destroy(&text);
    return status;
}

/* ---- 5. opening ---- */

static mb_status apply(mb_forecast_stage *stage, const char *const *words, int64_t n)
{
    mb_status status = MB_OK;
    mb_str known = MB_STR_EMPTY;
    mb_option_table others[MB_PROGRAM_OPTIONS_TABLES];
    const int64_t count = mb_program_options_all(others, MB_PROGRAM_OPTIONS_TABLES);
    for (int64_t i = 0; i < n; i++)
        if (is_assignment(words[i])) MB_TRY(mb_config_override(stage->config, words[i]));
    MB_TRY(known_prefixes(others, count, &known));
    MB_TRY(mb_config_apply(stage->config, stage->tables, stage->table_count, mb_str_text(&known), others,
                           count));
done:
    mb_str_destroy(&known);
    return status;
}

mb_status mb_forecast_stage_open(const char *opt_program, const char *const *words, int64_t n,
                                 mb_forecast_stage *out_stage)
{
    mb_status status = MB_OK;
    *out_stage = (mb_forecast_stage){0};
    for (int64_t i = 0; i < n; i++) MB_TRY(read_word(out_stage, words[i]));
    MB_TRY(mb_config_open(out_stage->file, out_stage->group, &out_stage->config));
    MB_TRY(choose_program(out_stage, opt_program));
    add_tables(out_stage);
    MB_TRY(apply(out_stage, words, n));
done:
    return status;
}

void mb_forecast_stage_reset(mb_forecast_stage *stage)
{
    for (int64_t i = 0; i < stage->table_count; i++) mb_option_free(&stage->tables[i]);
    mb_config_close(&stage->config);
    mb_free(stage->mode);
    mb_free(stage->file);
    mb_free(stage->group);
    *stage = (mb_forecast_stage){0};
}

/* ---- 6. access ---- */

mb_model_options *mb_forecast_stage_model(mb_forecast_stage *stage)
{
    switch (stage->program) {
    case MB_FORECAST_CONVERT:
        return &stage->own.convert.model;
    case MB_FORECAST_TRAIN:
        return &stage->own.train.model;
    case MB_FORECAST_SCORE:
        return &stage->own.score.model;
    case MB_FORECAST_EVAL: /* comparing opens none */
        return stage->own.eval.category.inputs == NULL ? &stage->own.eval.model : NULL;
    case MB_FORECAST_EMBED:
        return &stage->own.embed.model;
    case MB_FORECAST_INFER:
        return &stage->own.infer.model;
    case MB_FORECAST_TEACHER:
        return &stage->own.teacher.model;
    default:
        return NULL;
    }
}

const mb_fuse_options_stage *mb_forecast_stage_fuse(const mb_forecast_stage *stage)
{
    switch (stage->program) {
    case MB_FORECAST_TRAIN:
        return &stage->own.train.fuse;
    case MB_FORECAST_SCORE:
        return &stage->own.score.fuse;
    case MB_FORECAST_EVAL:
        return &stage->own.eval.fuse;
    case MB_FORECAST_INFER:
        return &stage->own.infer.fuse;
    case MB_FORECAST_TEACHER:
        return &stage->own.teacher.fuse;
    default:
        return NULL;
    }
}

bool mb_forecast_stage_is_btm(const mb_forecast_stage *stage)
{
    return stage->program == MB_FORECAST_TRAIN && mb_str_equal(stage->own.train.objective.objective, "btm");
}

bool mb_forecast_stage_is_distil(const mb_forecast_stage *stage)
{
    const char *objective = stage->own.train.objective.objective;
    return stage->program == MB_FORECAST_TRAIN &&
           (mb_str_equal(objective, "distil") || mb_str_equal(objective, "distill"));
}

const char *mb_forecast_stage_dataset(const mb_forecast_stage *stage)
{
    switch (stage->program) {
    case MB_FORECAST_TRAIN:
        return stage->own.train.shard_path;
    case MB_FORECAST_SCORE:
        return stage->own.score.shard_path;
    case MB_FORECAST_EVAL:
        return stage->own.eval.shard_path;
    case MB_FORECAST_EMBED:
        return stage->own.embed.shard_path;
    case MB_FORECAST_INFER:
        return stage->own.infer.input;
    case MB_FORECAST_TEACHER:
        return stage->own.teacher.shard_path;
    case MB_FORECAST_SELECT:
        return stage->own.select.scores_path;
    default:
        return NULL;
    }
}

char *mb_forecast_stage_text(const mb_forecast_stage *stage, const char *key)
{
    mb_str text = MB_STR_EMPTY;
    char *found = NULL;
    if (stage->file == NULL) return NULL;
    if (mb_config_text(stage->config, key, &text) == MB_OK && text.length > 0) found = mb_str_take(&text);
    mb_str_destroy(&text);
    return found;
}

bool mb_forecast_stage_has_group(const mb_forecast_stage *stage, const char *group)
{
    mb_str text = MB_STR_EMPTY;
    char **names = NULL;
    int64_t n = 0;
    bool found = false;
    if (mb_config_groups(stage->config, &text) == MB_OK &&
        mb_option_list_split(mb_str_text(&text), &names, &n) == MB_OK)
        for (int64_t i = 0; i < n; i++) found = found || mb_str_equal(names[i], group);
    mb_option_list_free(&names, n);
    mb_str_destroy(&text);
    return found;
}
