/* forecast_data.c: records and tokens from a shard, from files of text, or from what is said.
 *
 * 1. lengths   2. a shard   3. files of text   4. which files   5. lines of prompts and categories
 * 6. a training run   7. finding
 */
#include "stage/forecast_data.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/files.h"
#include "learn/batches.h"
#include "stage/forecast_makers.h"
#include "stage/forecast_model.h"
#include "store/shard_mix.h"
#include "text/records.h"

enum { SAMPLES = 400, WHOLE_BYTES = 4 << 20, GZIP_FACTOR = 3 };
#define WALK_STEPS 2000000 /* samples of a run that are looked up one by one */

/* ---- 1. lengths ---- */

/* Lengths seen so far. */
typedef struct lengths {
    double count, sum, squares, longest, text_bytes;
    double file_bytes; /* of the records seen */
} lengths;

static void add_length(lengths *l, double tokens, double limit)
{
    if (limit > 0 && tokens > limit) tokens = limit;
    l->count += 1;
    l->sum += tokens;
    l->squares += tokens * (tokens + 1) / 2;
    if (tokens > l->longest) l->longest = tokens;
}

static void take_lengths(const lengths *l, double times, mb_forecast_data *data)
{
    data->records = l->count * times;
    data->tokens = l->sum * times;
    data->longest = l->longest;
    data->context = l->sum > 0 ? l->squares / l->sum : 0;
    data->is_known = l->count > 0;
}

/* ---- 2. a shard ---- */

static bool is_shard(const char *files)
{
    char **names = NULL;
    int64_t n = 0;
    bool all = files != NULL;
    if (files != NULL && mb_option_list_split(files, &names, &n) != MB_OK) return false;
    for (int64_t i = 0; i < n; i++) {
        all = all && (mb_files_is_file(names[i]) || mb_files_is_folder(names[i]));
        if (mb_str_is_suffix(names[i], "l") || mb_str_is_suffix(names[i], ".gz")) all = false; /* text */
    }
    mb_option_list_free(&names, n);
    return all && n > 0;
}

/* Which records train, how many at a time, and all of a run's tokens. */
static mb_status read_batches(mb_shard *shard, const mb_trainer_options *options, mb_forecast_data *data)
{
    mb_status status = MB_OK;
    mb_batches *batches = NULL;
    lengths l = {0};
    int64_t most, record;
    MB_TRY(mb_batches_create(shard, options, &batches));
    MB_TRY(mb_batches_most_tokens(batches, &most));
    for (int64_t i = 0; i < mb_batches_records(batches); i++) {
        MB_TRY(mb_batches_sample(batches, 0, i, &record));
        add_length(&l, (double)mb_batches_length(batches, record), 0);
    }
    take_lengths(&l, 1, data);
    data->most = (double)most;
    data->steps = (double)mb_batches_steps(batches);
    data->run_tokens = 0;
    double samples = 0;
    for (int64_t s = 0; s < mb_batches_steps(batches); s++) {
        const mb_batches_step step = mb_batches_step_get(batches, s);
        data->epoch_writes += step.is_epoch_end;
        samples += (double)step.count;
        for (int64_t i = 0; i < step.count && samples < WALK_STEPS; i++) {
            MB_TRY(mb_batches_sample(batches, step.epoch, step.first + i, &record));
            data->run_tokens += (double)mb_batches_length(batches, record);
        }
    }
    if (samples >= WALK_STEPS) data->run_tokens = samples * l.sum / l.count;
done:
    mb_batches_destroy(&batches);
    return status;
}

/* Tokens of the largest micro-batch of a validation (trainer_memory.c). */
static mb_status read_validation(const mb_train_program *own, mb_forecast_data *data)
{
    mb_status status = MB_OK;
    mb_shard *shard = NULL;
    mb_batches *batches = NULL;
    mb_trainer_options one = own->trainer;
    int64_t most = 0;
    if (!is_shard(own->validation_path)) goto done;
    MB_TRY(mb_shard_open(own->validation_path, 1 << 20, &shard));
    one.subset_ratio = 1;
    one.max_steps = 1;
    one.max_tokens = 0;
    if (mb_shard_count(shard) == 0) goto done;
    MB_TRY(mb_batches_create(shard, &one, &batches));
    MB_TRY(mb_batches_most_tokens(batches, &most));
    data->validated = (double)most;
done:
    mb_batches_destroy(&batches);
    mb_shard_close(&shard);
    return status;
}

static mb_status read_shard(const mb_forecast_stage *stage, const char *files, double limit,
                            mb_forecast_data *data)
{
    mb_status status = MB_OK;
    mb_shard *shard = NULL;
    lengths l = {0};
    mb_shard_record record;
    MB_TRY(mb_shard_open(files, 1 << 20, &shard));
    for (int64_t i = 0; i < mb_shard_count(shard); i++)
        add_length(&l, (double)mb_shard_length(shard, i), limit);
    take_lengths(&l, 1, data);
    if (mb_shard_count(shard) > 0) {
        MB_TRY(mb_shard_read(shard, 0, &record));
        data->has_loss_mask = record.loss_mask != NULL;
    }
    data->is_exact = true;
    snprintf(data->says, sizeof data->says, "%s", files);
    if (stage->program == MB_FORECAST_TRAIN) {
        MB_TRY(read_batches(shard, &stage->own.train.trainer, data));
        MB_TRY(read_validation(&stage->own.train, data));
    }
done:
    mb_shard_close(&shard);
    return status;
}

/* ---- 3. files of text ---- */

typedef struct reader {
    const mb_shard_build_options *build;
    mb_template *tmpl;
    mb_tokenizer *tokenizer; /* NULL: by bytes_per_token */
    mb_tokenizer_scratch *scratch;
    mb_dialog dialog;
    mb_rendered rendered;
    mb_ids ids;
    double bytes_per_token, limit;
} reader;

static void reader_reset(reader *r)
{
    mb_tokenizer_scratch_destroy(&r->scratch);
    mb_tokenizer_close(&r->tokenizer);
    mb_template_close(&r->tmpl);
    mb_dialog_destroy(&r->dialog);
    mb_rendered_destroy(&r->rendered);
    mb_ids_destroy(&r->ids);
}

static mb_status reader_open(reader *r, const mb_shard_build_options *build, const char *opt_tokenizer,
                             double bytes_per_token, double limit)
{
    mb_status status = MB_OK;
    *r = (reader){.build = build, .bytes_per_token = bytes_per_token, .limit = limit};
    MB_TRY(mb_shard_build_template(build, &r->tmpl));
    if (opt_tokenizer == NULL) goto done;
    MB_TRY(mb_tokenizer_open(opt_tokenizer, &r->tokenizer));
    MB_TRY(mb_tokenizer_scratch_create(r->tokenizer, &r->scratch));
done:
    return status;
}

/* Records that sharding would leave out are left out. */
static void read_record(reader *r, const mb_shard_input *input, const json_t *json, lengths *l)
{
    const mb_field_map map = {.form = input->form, .fields = input->fields};
    const bool all = mb_str_equal(r->build->loss_on, "all");
    mb_status status;
    if (r->tokenizer != NULL)
        status = mb_shard_build_render(json, input, r->tmpl, r->tokenizer, all, &r->dialog, &r->rendered);
    else if ((status = mb_dialog_read(json, &map, &r->dialog)) == MB_OK)
        status = mb_template_render(r->tmpl, &r->dialog, all, NULL, NULL, &r->rendered);
    if (status != MB_OK) return;
    double tokens = (double)r->rendered.text.length / r->bytes_per_token;
    if (r->tokenizer != NULL) {
        mb_ids_reset(&r->ids);
        if (mb_tokenizer_encode(r->tokenizer, r->scratch, mb_str_text(&r->rendered.text),
                                r->rendered.text.length, true, &r->ids) != MB_OK)
            return;
        tokens = (double)r->ids.count;
    }
    if (r->build->append_eos) tokens += 1;
    add_length(l, tokens, r->limit);
    l->text_bytes += (double)r->rendered.text.length;
}

/* All records, or the first so many. */
static mb_status read_first(reader *r, const mb_shard_input *input, int64_t most, lengths *l)
{
    mb_status status = MB_OK;
    mb_records *records = NULL;
    mb_record record;
    MB_TRY(mb_records_open(input->path, r->build->max_record_bytes, &records));
    for (int64_t i = 0; i < most; i++) {
        MB_TRY(mb_records_read(records, &record));
        if (record.bytes == NULL) break;
        l->file_bytes += (double)record.length + 1;
        if (record.json != NULL) read_record(r, input, record.json, l);
    }
done:
    mb_records_close(&records);
    return status;
}

/* Lines of a large JSONL file at even places. */
static mb_status read_spread(reader *r, const mb_shard_input *input, int64_t bytes, lengths *l)
{
    mb_status status = MB_OK;
    FILE *file = fopen(input->path, "rb");
    char *line = NULL;
    size_t room = 0;
    if (file == NULL) MB_RAISE(MB_EIO, "%s: cannot be read", input->path);
    for (int64_t i = 0; i < SAMPLES; i++) {
        json_t *json = NULL;
        if (fseeko(file, (off_t)((double)bytes / SAMPLES * (double)i), SEEK_SET) != 0) break;
        if (i > 0 && getline(&line, &room, file) < 0) break; /* the rest of a line */
        const ssize_t n = getline(&line, &room, file);
        if (n < 0) break;
        l->file_bytes += (double)n;
        if (mb_json_parse(line, (size_t)n, input->path, &json) == MB_OK) read_record(r, input, json, l);
        json_decref(json);
    }
done:
    free(line);
    if (file != NULL) fclose(file);
    return status;
}

/* All records of an input, estimated where it is large. */
static mb_status read_input(reader *r, const mb_shard_input *input, mb_forecast_data *sum, lengths *out,
                            bool *is_sampled)
{
    mb_status status = MB_OK;
    int64_t bytes;
    lengths l = {0};
    MB_TRY(mb_files_size(input->path, &bytes));
    const bool is_packed = mb_str_is_suffix(input->path, ".gz"),
               is_small = bytes <= WHOLE_BYTES && !is_packed;
    if (is_small)
        MB_TRY(read_first(r, input, INT64_MAX, &l));
    else if (!is_packed && mb_shard_build_is_plain(input->path))
        MB_TRY(read_spread(r, input, bytes, &l));
    else
        MB_TRY(read_first(r, input, SAMPLES, &l));
    const double whole = (double)bytes * (is_packed ? GZIP_FACTOR : 1),
                 times = is_small || l.file_bytes <= 0 ? 1 : fmax(1, whole / l.file_bytes);
    *is_sampled = *is_sampled || !is_small;
    sum->text_bytes += whole;
    l.count *= times, l.sum *= times, l.squares *= times;
    *out = l;
done:
    return status;
}

/* What the mix draws of each input, or holds back, all of its records taken as usable, and the sum. */
static mb_status mix_inputs(const mb_shard_build_options *build, const mb_shard_input *inputs, int64_t n,
                            bool held_back, const lengths *each, lengths *all)
{
    mb_status status = MB_OK;
    mb_shard_draw *draws = NULL;
    MB_NEW_ARRAY(draws, n);
    mb_shard_mix_start(build, inputs, n, draws);
    for (int64_t i = 0; i < n; i++) draws[i].available = (int64_t)each[i].count;
    MB_TRY(mb_shard_mix_plan(build, inputs, n, draws));
    for (int64_t i = 0; i < n; i++) {
        const mb_shard_draw *draw = &draws[i];
        const double there = fmax(0, each[i].count - (double)(draw->is_drawn ? draw->held : 0));
        double kept = there;
        if (draw->is_drawn && draw->asked >= 0 && ((double)draw->asked < there || build->oversample))
            kept = (double)draw->asked;
        if (held_back) kept = draw->is_drawn ? (double)draw->held : 0;
        const double share = each[i].count > 0 ? kept / each[i].count : 0;
        all->count += each[i].count * share;
        all->sum += each[i].sum * share;
        all->squares += each[i].squares * share;
        if (share > 0 && each[i].longest > all->longest) all->longest = each[i].longest;
    }
done:
    mb_free(draws);
    return status;
}

static mb_status read_files(const mb_shard_build_options *build, const char *opt_tokenizer,
                            double bytes_per_token, double limit, bool held_back, mb_forecast_data *data)
{
    mb_status status = MB_OK;
    mb_shard_input *inputs = NULL;
    int64_t n = 0;
    reader r = {0};
    lengths all = {0}, *each = NULL;
    bool is_sampled = false;
    const double own = (double)build->max_length;
    MB_TRY(mb_shard_build_inputs(build, &inputs, &n));
    MB_TRY(reader_open(&r, build, opt_tokenizer, bytes_per_token,
                       limit > 0 && (own <= 0 || limit < own) ? limit : own));
    MB_NEW_ARRAY(each, n);
    for (int64_t i = 0; i < n; i++) MB_TRY(read_input(&r, &inputs[i], data, &each[i], &is_sampled));
    MB_TRY(mix_inputs(build, inputs, n, held_back, each, &all));
    take_lengths(&all, 1, data);
    data->has_loss_mask = true;
    snprintf(data->says, sizeof data->says, "%lld file%s of %.4g MB, %s, %s", (long long)n, n == 1 ? "" : "s",
             data->text_bytes / 1e6, is_sampled ? "sampled" : "read",
             opt_tokenizer != NULL ? opt_tokenizer : "");
    const size_t used = strlen(data->says);
    if (opt_tokenizer == NULL)
        snprintf(data->says + used, sizeof data->says - used, "%.2f bytes per token assumed",
                 bytes_per_token);
done:
    mb_shard_build_free_inputs(&inputs, n);
    mb_free(each);
    reader_reset(&r);
    return status;
}

/* ---- 4. which files ---- */

double mb_forecast_data_bytes_per_token(int64_t vocab)
{
    const double bits = log2(vocab > 256 ? (double)vocab : 256);
    return 1 + fmax(0, 0.22 * (bits - 2)); /* 2,048: 2.98; 32,000: 3.85; 128,000: 4.3 */
}

static bool has_tokenizer(const char *folder)
{
    char *file = folder != NULL ? mb_files_join(folder, "tokenizer.json") : NULL;
    const bool found = file != NULL && (mb_files_is_file(file) || mb_files_is_file(folder));
    mb_free(file);
    return found;
}

/* The tokenizer that is there: of the sharding, of the stage's model, of the study. new block or NULL */
static char *find_tokenizer(mb_forecast_stage *stage, const mb_shard_build_options *build)
{
    const mb_model_options *model = mb_forecast_stage_model(stage);
    if (has_tokenizer(build->tokenizer_path)) return mb_strdup(build->tokenizer_path);
    if (model != NULL && has_tokenizer(model->path)) return mb_strdup(model->path);
    char *named = mb_forecast_stage_text(stage, "study.tokenizer");
    if (has_tokenizer(named)) return named;
    mb_free(named);
    return NULL;
}

static mb_status read_build(mb_forecast_stage *stage, const mb_shard_build_options *build,
                            const mb_forecast_given *given, double limit, int64_t vocab,
                            mb_forecast_data *data)
{
    mb_status status = MB_OK;
    const char *dataset = mb_forecast_stage_dataset(stage);
    const bool held_back = dataset != NULL && mb_str_is_suffix(dataset, "/validation.h5");
    char *tokenizer = find_tokenizer(stage, build);
    const double assumed =
        given->bytes_per_token > 0 ? given->bytes_per_token : mb_forecast_data_bytes_per_token(vocab);
    if (build->inputs == NULL) goto done;
    MB_TRY(read_files(build, given->bytes_per_token > 0 ? NULL : tokenizer, assumed, limit, held_back, data));
done:
    mb_free(tokenizer);
    return status;
}

/* The files of a group of the study that shards. Files that are not there yet: nothing is known. */
static mb_status read_group(mb_forecast_stage *stage, const char *group, const mb_forecast_given *given,
                            double limit, int64_t vocab, mb_forecast_data *data)
{
    mb_status status = MB_OK;
    mb_forecast_stage maker = {0};
    char *word = mb_str_format("stage=%s", group);
    const char *words[] = {stage->file, word};
    if (word == NULL) MB_RAISE(MB_ENOMEM, "no memory for a group's name");
    MB_TRY(mb_forecast_stage_open("moe-shard", words, 2, &maker));
    status = read_build(stage, &maker.own.shard.build, given, limit, vocab, data);
    if (status == MB_ENOTFOUND) status = MB_OK;
done:
    mb_forecast_stage_reset(&maker);
    mb_free(word);
    return status;
}

/* The files of the stage that makes the shard. */
static mb_status read_maker(mb_forecast_stage *stage, const mb_forecast_given *given, double limit,
                            int64_t vocab, mb_forecast_data *data)
{
    mb_status status = MB_OK;
    mb_forecast_stage maker = {0};
    bool is_made;
    MB_TRY(mb_forecast_makers_find(stage, mb_forecast_stage_dataset(stage), &maker, &is_made));
    if (!is_made || maker.program != MB_FORECAST_SHARD) goto done;
    status = read_build(stage, &maker.own.shard.build, given, limit, vocab, data);
    if (status == MB_ENOTFOUND) status = MB_OK;
done:
    mb_forecast_stage_reset(&maker);
    return status;
}

/* The largest of the study's groups that shard: no stage sees more. */
static mb_status read_largest(mb_forecast_stage *stage, const mb_forecast_given *given, double limit,
                              int64_t vocab, mb_forecast_data *data)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    char **names = NULL, largest[64] = "";
    int64_t n = 0;
    MB_TRY(mb_config_groups(stage->config, &text));
    MB_TRY(mb_option_list_split(mb_str_text(&text), &names, &n));
    for (int64_t i = 0; i < n; i++) {
        mb_forecast_data one = {0};
        if (!mb_str_is_prefix(names[i], "shard")) continue;
        MB_TRY(read_group(stage, names[i], given, limit, vocab, &one));
        if (!one.is_known || one.tokens <= data->tokens) continue;
        *data = one;
        snprintf(largest, sizeof largest, "%s", names[i]);
    }
    if (!data->is_known) goto done;
    char *says = mb_str_format("at most what %s has: %s", largest, data->says);
    snprintf(data->says, sizeof data->says, "%s", says != NULL ? says : largest);
    mb_free(says);
    data->is_at_most = true;
done:
    mb_option_list_free(&names, n);
    mb_str_destroy(&text);
    return status;
}

static mb_status read_study(mb_forecast_stage *stage, const mb_forecast_given *given, double limit,
                            int64_t vocab, mb_forecast_data *data)
{
    mb_status status = MB_OK;
    const char *dataset = mb_forecast_stage_dataset(stage);
    char *name = dataset != NULL ? mb_forecast_model_stage_of(dataset)
                                 : mb_str_format("shard-%s", stage->group != NULL ? stage->group : ""),
         *group = name != NULL ? mb_forecast_model_group_of(stage, name) : NULL;
    if (group != NULL && mb_str_is_prefix(group, "shard"))
        MB_TRY(read_group(stage, group, given, limit, vocab, data));
    if (!data->is_known) MB_TRY(read_largest(stage, given, limit, vocab, data));
done:
    mb_free(name);
    mb_free(group);
    return status;
}

/* ---- 5. lines of prompts and categories ---- */

/* A line a record; of a large file its beginning says how long they are. Adds to *data. */
static mb_status read_lines(const char *path, double bytes_per_token, double limit, mb_forecast_data *data)
{
    mb_status status = MB_OK;
    FILE *file = fopen(path, "rb");
    char *line = NULL;
    size_t room = 0;
    int64_t bytes;
    lengths l = {0};
    ssize_t n;
    if (file == NULL) MB_RAISE(MB_ENOTFOUND, "%s cannot be read", path);
    MB_TRY(mb_files_size(path, &bytes));
    while (l.file_bytes < WHOLE_BYTES && (n = getline(&line, &room, file)) >= 0) {
        l.file_bytes += (double)n;
        if (n > 1) add_length(&l, (double)n / bytes_per_token, limit);
    }
    const double times = l.file_bytes > 0 ? fmax(1, (double)bytes / l.file_bytes) : 1;
    const double before = data->tokens, squares = data->context * before;
    data->records += l.count * times;
    data->tokens += l.sum * times;
    if (data->tokens > 0) data->context = (squares + l.squares * times) / data->tokens;
    if (l.longest > data->longest) data->longest = l.longest;
    data->text_bytes += (double)bytes;
    data->is_known = data->is_known || l.count > 0;
done:
    free(line);
    if (file != NULL) fclose(file);
    return status;
}

/* Category files beside what else is evaluated. */
static mb_status read_categories(const mb_eval_program *own, double bytes_per_token, double limit,
                                 mb_forecast_data *data)
{
    mb_status status = MB_OK;
    mb_named_paths files = {0};
    const double records = data->records, tokens = data->tokens;
    MB_TRY(mb_category_options_files(&own->category, &files));
    for (int64_t i = 0; i < files.count; i++)
        MB_TRY(read_lines(files.item[i].path, bytes_per_token, limit, data));
    if (own->limit > 0 && data->records - records > (double)(own->limit * files.count)) {
        const double share = (double)(own->limit * files.count) / (data->records - records);
        data->tokens = tokens + (data->tokens - tokens) * share;
        data->records = records + (double)(own->limit * files.count);
    }
    data->answers = data->records - records;
    data->answer_tokens = data->tokens - tokens;
    const size_t used = strlen(data->says);
    snprintf(data->says + used, sizeof data->says - used,
             "%s%lld category file%s, %.2f bytes per token assumed", used > 0 ? ", and " : "",
             (long long)files.count, files.count == 1 ? "" : "s", bytes_per_token);
    data->is_exact = false;
done:
    mb_named_paths_reset(&files);
    return status;
}

/* moe-infer's file of prompts. */
static mb_status read_prompts(const mb_infer_program *own, double bytes_per_token, double limit,
                              mb_forecast_data *data)
{
    mb_status status = MB_OK;
    MB_TRY(read_lines(own->input, bytes_per_token, limit, data));
    if (own->limit > 0 && data->records > (double)own->limit) {
        data->tokens *= (double)own->limit / data->records;
        data->records = (double)own->limit;
    }
    snprintf(data->says, sizeof data->says, "%s, %.2f bytes per token assumed", own->input, bytes_per_token);
done:
    return status;
}

/* ---- 6. a training run ---- */

/* Steps and tokens of a run over data that is not there record by record. width: token records that one
 * record of the text gives, 2 for pairs. */
static void plan_run(const mb_trainer_options *o, mb_forecast_data *data, double limit, double width)
{
    const double per_step = (double)(o->batch_size * o->gradient_accumulation_steps),
                 share = o->subset_ratio > 0 ? o->subset_ratio : 1,
                 records = data->is_known ? fmax(1, ceil(share * data->records)) : 0,
                 mean = width * (data->is_known && data->records > 0 ? data->tokens / data->records : limit),
                 epoch_steps = fmax(1, ceil(records / per_step));
    data->most = width * (double)o->batch_size * (data->is_known ? data->longest : limit);
    data->steps = o->max_steps > 0 ? (double)o->max_steps : 0;
    if (o->max_steps == 0 && data->is_known) {
        const double whole = floor(o->epochs);
        data->steps = whole * epoch_steps + ceil((o->epochs - whole) * records / per_step);
    }
    const double step_tokens = mean * (data->is_known && records < per_step ? records : per_step);
    if (o->max_tokens > 0 && step_tokens > 0) {
        const double steps = ceil((double)o->max_tokens / step_tokens);
        data->steps = data->steps > 0 && o->max_steps > 0 && data->steps < steps ? data->steps : steps;
    }
    data->run_tokens = data->steps * step_tokens;
    if (data->is_known) /* the last step of an epoch takes what is left */
        data->run_tokens = fmin(data->run_tokens, ceil(data->steps / epoch_steps) * records * mean);
    data->epoch_writes = data->is_known ? fmax(1, ceil(data->steps / epoch_steps)) : 1;
    if (!data->is_known) data->context = (limit + 1) / 2;
    data->tokens = data->is_known ? data->tokens * share * width : data->tokens;
    data->records = records * width;
}

/* ---- 7. finding ---- */

static void take_given(const mb_forecast_given *given, double limit, mb_forecast_data *data)
{
    const double mean = given->records > 0 && given->tokens > 0 ? given->tokens / given->records
                        : limit > 0                             ? limit
                                                                : 512;
    data->records = given->records > 0 ? given->records : ceil(given->tokens / mean);
    data->tokens = given->tokens > 0 ? given->tokens : given->records * mean;
    data->longest = limit > 0 ? limit : 2 * mean;
    data->context = (mean + 1) / 2;
    data->is_known = true;
    snprintf(data->says, sizeof data->says, "as given");
}

static const mb_shard_build_options *own_build(const mb_forecast_stage *stage)
{
    switch (stage->program) {
    case MB_FORECAST_SHARD:
        return &stage->own.shard.build;
    case MB_FORECAST_SELECT:
        return &stage->own.select.build;
    case MB_FORECAST_EMBED:
        return stage->own.embed.build.inputs != NULL ? &stage->own.embed.build : NULL;
    default:
        return NULL;
    }
}

/* Category files and prompts, whose lines are counted. */
static bool has_categories(const mb_forecast_stage *stage)
{
    return stage->program == MB_FORECAST_EVAL && stage->own.eval.category.files != NULL;
}

static bool has_prompts(const mb_forecast_stage *stage)
{
    return stage->program == MB_FORECAST_INFER && stage->own.infer.input != NULL &&
           mb_files_is_file(stage->own.infer.input);
}

static mb_status find_dataset(mb_forecast_stage *stage, const mb_forecast_given *given, double limit,
                              int64_t vocab, mb_forecast_data *data)
{
    mb_status status = MB_OK;
    const char *dataset = mb_forecast_stage_dataset(stage);
    const mb_shard_build_options *build = own_build(stage);
    if (build == NULL && is_shard(dataset)) return read_shard(stage, dataset, limit, data);
    if (build != NULL) return read_build(stage, build, given, limit, vocab, data);
    MB_TRY(read_maker(stage, given, limit, vocab, data));
    if (!data->is_known && stage->file != NULL && !(dataset == NULL && has_categories(stage)))
        MB_TRY(read_study(stage, given, limit, vocab, data));
done:
    return status;
}

mb_status mb_forecast_data_find(mb_forecast_stage *stage, const mb_forecast_given *given, double limit,
                                int64_t vocab, mb_forecast_data *out_data)
{
    mb_status status = MB_OK;
    mb_forecast_data data = {0};
    const char *dataset = mb_forecast_stage_dataset(stage);
    const double assumed =
        given->bytes_per_token > 0 ? given->bytes_per_token : mb_forecast_data_bytes_per_token(vocab);
    if (given->records > 0 || given->tokens > 0)
        take_given(given, limit, &data);
    else if (has_prompts(stage))
        MB_TRY(read_prompts(&stage->own.infer, assumed, limit, &data));
    else
        MB_TRY(find_dataset(stage, given, limit, vocab, &data));
    if (has_categories(stage)) MB_TRY(read_categories(&stage->own.eval, assumed, limit, &data));
    if (!data.is_known)
        snprintf(data.says, sizeof data.says,
                 "%s is not there, and nothing says how much it will hold; give "
                 "records= and tokens=",
                 dataset != NULL ? dataset : "the data");
    if (stage->program == MB_FORECAST_TRAIN && !data.is_exact)
        plan_run(&stage->own.train.trainer, &data, limit,
                 mb_str_equal(stage->own.train.objective.objective, "dpo") ? 2 : 1);
    *out_data = data;
done:
    return status;
}
