/* eval_categories.c: category files through one model.
 *
 * Contents: 1. what is open  2. prompts out  3. answers back  4. generating  5. one category  6. cost
 * 7. files  8. all
 */
#include "stage/eval_categories.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/files.h"
#include "base/log.h"
#include "model/fuse.h"
#include "stage/category_files.h"
#include "stage/eval_generate.h"
#include "stage/eval_speed.h"
#include "store/contenthash.h"
#include "text/records.h"

/* ---- 1. what is open ---- */

typedef struct work {
    mb_program *program;
    mb_eval_program *own;
    mb_lm *lm;
    const char *tokenizer_path;   /* borrowed */
    mb_shard_build_options build; /* as a token shard of the same records has them */
    mb_option_table build_table;
    mb_tokenizer *tokenizer;
    mb_template *tmpl;
    mb_ids ends;
    char *folder; /* of parts */
    char key[MB_HASH_TEXT];
    bool is_warm;
} work;

static mb_status set_text(char **text, const char *value)
{
    mb_status status = MB_OK;
    mb_free(*text);
    *text = mb_strdup(value);
    if (*text == NULL && value != NULL) MB_RAISE(MB_ENOMEM, "no memory for an option");
done:
    return status;
}

/* The template's name: the folder's own, or where it has none, lines. */
static const char *template_name(const work *w)
{
    const char *name = w->own->category.tmpl;
    if (mb_str_equal(name, "auto") && mb_tokenizer_chat_template(w->tokenizer) == NULL) return "lines";
    return name;
}

static mb_status open_work(work *w)
{
    mb_status status = MB_OK;
    const mb_category_program *o = &w->own->category;
    w->tokenizer_path = w->own->tokenizer != NULL ? w->own->tokenizer : mb_lm_base(w->lm);
    w->build_table = (mb_option_table){.target = &w->build};
    w->build_table.options = mb_shard_build_option_table(&w->build_table.count);
    MB_TRY(mb_option_defaults(&w->build_table));
    MB_TRY(set_text(&w->build.tokenizer_path, w->tokenizer_path));
    MB_TRY(set_text(&w->build.template_dir, o->template_dir));
    MB_TRY(mb_tokenizer_open(w->tokenizer_path, &w->tokenizer));
    MB_TRY(mb_shard_build_template_named(&w->build, template_name(w), w->tokenizer, &w->tmpl));
    MB_TRY(mb_generate_ends_read(mb_lm_base(w->lm), w->tokenizer, &w->ends));
    w->folder = mb_program_path(w->program, "parts");
    if (w->folder == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
done:
    return status;
}

static void close_work(work *w)
{
    mb_template_close(&w->tmpl);
    mb_tokenizer_close(&w->tokenizer);
    mb_ids_destroy(&w->ends);
    if (w->build_table.target != NULL) mb_option_free(&w->build_table);
    mb_free(w->folder);
}

/* <parts>/<key>-<name><suffix>: mb_free; NULL: no memory. */
static char *part_path(const work *w, const char *name, const char *suffix)
{
    return mb_str_format("%s/%.16s-%s%s", w->folder, w->key, name, suffix);
}

/* ---- 2. prompts out ---- */

/* What is asked, one object a line, for those who answer (infer_prompts). */
static mb_status write_prompts(const mb_category *category, const char *path)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    json_t *line = NULL;
    for (int64_t i = 0; i < mb_category_count(category); i++) {
        size_t prompt_n, expected_n;
        const char *prompt = mb_category_prompt(category, i, &prompt_n),
                   *expected = mb_category_expected(category, i, &expected_n);
        if (prompt == NULL) continue;
        json_decref(line);
        line = json_pack("{s:I, s:s%, s:s%}", "record", (json_int_t)i, "prompt", prompt, prompt_n, "expected",
                         expected, expected_n);
        if (line == NULL) MB_RAISE(MB_ENOMEM, "no memory for a prompt");
        MB_TRY(mb_json_print(line, 0, false, &text));
        MB_TRY(mb_str_add(&text, "\n"));
    }
    MB_TRY(mb_files_write(path, mb_str_text(&text), text.length));
done:
    json_decref(line);
    mb_str_destroy(&text);
    return status;
}

static int64_t count_prompts(const mb_category *category)
{
    int64_t n = 0;
    size_t length;
    for (int64_t i = 0; i < mb_category_count(category); i++)
        n += mb_category_prompt(category, i, &length) != NULL;
    return n;
}

/* ---- 3. answers back ---- */

static mb_status judge(const json_t *answer, mb_answer_match match, int64_t *out_record, bool *out_is_right)
{
    mb_status status = MB_OK;
    const json_t *expected = json_object_get(answer, "expected"),
                 *given = json_object_get(answer, "generated_text");
    MB_TRY(mb_json_get_int(answer, "record", "an answer", out_record));
    MB_TRY(mb_answer_match_check(match, json_string_value(expected), json_string_length(expected),
                                 json_string_value(given), json_string_length(given), out_is_right));
done:
    return status;
}

/* The joined answers with "correct" behind, and what they say into the entry. A prompt that was too long to
 * be answered counts as answered wrongly. */
static mb_status read_answers(const mb_category *category, mb_answer_match match, const char *joined,
                              const char *path, mb_category_result *result)
{
    mb_status status = MB_OK;
    mb_records *records = NULL;
    mb_record read;
    mb_str text = MB_STR_EMPTY;
    size_t length;
    for (int64_t i = 0; i < mb_category_count(category); i++)
        if (mb_category_prompt(category, i, &length) != NULL) result->correct[i] = 0;
    MB_TRY(mb_records_open(joined, 0, &records));
    for (;;) {
        int64_t at = 0;
        bool is_right = false;
        MB_TRY(mb_records_read(records, &read));
        if (read.bytes == NULL) break;
        if (read.problem != NULL) MB_RAISE(MB_EFORMAT, "%s: %s", joined, read.problem);
        MB_TRY(judge(read.json, match, &at, &is_right));
        if (at < 0 || at >= result->records) MB_RAISE(MB_EFORMAT, "%s: has another record", joined);
        result->correct[at] = is_right;
        MB_TRY(mb_json_set(read.json, "correct", json_boolean(is_right)));
        MB_TRY(mb_json_print(read.json, 0, false, &text));
        MB_TRY(mb_str_add(&text, "\n"));
    }
    MB_TRY(mb_files_write(path, mb_str_text(&text), text.length));
done:
    mb_records_close(&records);
    mb_str_destroy(&text);
    return status;
}

/* ---- 4. generating ---- */

static mb_status generate(work *w, const mb_category *category, mb_answer_match match,
                          mb_category_entry *entry)
{
    mb_status status = MB_OK;
    const mb_category_program *o = &w->own->category;
    const bool is_root = mb_program_is_root(w->program);
    mb_eval_generate_cost cost = {0};
    char *asked = part_path(w, entry->name, ".prompts.jsonl"),
         *joined = part_path(w, entry->name, ".answers.jsonl"),
         *left_out = part_path(w, entry->name, ".left-out.jsonl"),
         *name = mb_str_format("answers_%s.jsonl", entry->name),
         *path = name != NULL ? mb_program_path(w->program, name) : NULL;
    const mb_eval_generate what = {.name = entry->name,
                                   .prompts = asked,
                                   .count = count_prompts(category),
                                   .folder = w->folder,
                                   .key = w->key,
                                   .joined = joined,
                                   .left_out = left_out,
                                   .tokenizer_path = w->tokenizer_path,
                                   .template_dir = o->template_dir,
                                   .opt_stop = o->stop,
                                   .ends = &w->ends,
                                   .max_new_tokens = o->max_new_tokens,
                                   .batch_sequences = o->batch_sequences};
    if (asked == NULL || joined == NULL || left_out == NULL || path == NULL)
        status = mb_fail(MB_ENOMEM, "no memory for a path");
    if (status == MB_OK && is_root) status = write_prompts(category, asked);
    MB_TRY(mb_comm_agree(w->program->comm, status));
    MB_TRY(mb_eval_generate_run(w->program->comm, w->lm, &what, &cost));
    entry->prompt_tokens = cost.prompt_tokens;
    entry->generated_tokens = cost.generated_tokens;
    entry->generate_seconds = cost.seconds;
    entry->step_tokens = cost.step_tokens;
    entry->step_seconds = cost.step_seconds;
    if (is_root) status = read_answers(category, match, joined, path, &entry->result);
    MB_TRY(mb_comm_agree(w->program->comm, status));
done:
    mb_free(asked);
    mb_free(joined);
    mb_free(left_out);
    mb_free(name);
    mb_free(path);
    return status;
}

/* ---- 5. one category ---- */

static mb_status fill_book(const work *w, mb_category_book *book)
{
    mb_status status = MB_OK;
    snprintf(book->model, sizeof book->model, "%s", mb_lm_hash(w->lm));
    snprintf(book->tokenizer, sizeof book->tokenizer, "%s", mb_tokenizer_hash(w->tokenizer));
    snprintf(book->tmpl, sizeof book->tmpl, "%s", mb_template_hash(w->tmpl));
    const int ranks = mb_comm_size(w->program->comm);
    book->measured_on =
        mb_str_format("%s, %d rank%s", mb_ops_describe(w->program->ops), ranks, ranks == 1 ? "" : "s");
    if (book->measured_on == NULL) MB_RAISE(MB_ENOMEM, "no memory for a text");
done:
    return status;
}

/* A book of one category, whole or absent. The entry is borrowed. */
static mb_status write_part(const work *w, const mb_category_entry *entry, const char *path)
{
    mb_status status = MB_OK;
    mb_category_book book = {0};
    MB_TRY(fill_book(w, &book));
    book.entry = (mb_category_entry *)(uintptr_t)entry;
    book.count = 1;
    MB_TRY(mb_category_files_write(&book, path));
done:
    book.entry = NULL;
    mb_category_book_reset(&book);
    return status;
}

static mb_status begin_entry(const work *w, const mb_named_path *file, mb_answer_match match,
                             mb_category_entry *entry)
{
    mb_status status = MB_OK;
    entry->name = mb_strdup(file->name);
    entry->judged_by = mb_category_options_judged_by(&w->own->category, match);
    if (entry->name == NULL || entry->judged_by == NULL) MB_RAISE(MB_ENOMEM, "no memory for a category");
    MB_TRY(mb_contenthash_path(file->path, entry->file));
done:
    return status;
}

static mb_status check_shard(const work *w, const mb_category *category)
{
    mb_status status = MB_OK;
    if (w->own->model.shard && w->own->category.generate && count_prompts(category) > 0)
        MB_RAISE(MB_EUSAGE, "model.shard does not go with generation: ranks answer each at their own pace; "
                            "say eval.generate=false for perplexity alone");
done:
    return status;
}

static mb_status run_category(work *w, const mb_named_path *file, const char *part)
{
    mb_status status = MB_OK;
    mb_comm *comm = w->program->comm;
    mb_category *category = NULL;
    mb_category_entry entry = {0};
    mb_category_file source = {.name = file->name,
                               .path = file->path,
                               .opt_form = file->more[0],
                               .opt_fields = file->more[1],
                               .limit = w->own->limit};
    const mb_category_options options = {.max_length = w->own->max_length,
                                         .tile_tokens = w->own->tile_tokens,
                                         .by = mb_category_options_by(&w->own->category),
                                         .warm_up = !w->is_warm};
    status = mb_category_options_match(&w->own->category, file, &source.match);
    if (status == MB_OK) status = begin_entry(w, file, source.match, &entry);
    if (status == MB_OK) status = mb_category_open(&source, &w->build, w->tmpl, &category);
    if (status == MB_OK) status = check_shard(w, category);
    MB_TRY(mb_comm_agree(comm, status));
    MB_TRY(mb_category_score(comm, w->lm, category, &options, &entry.result));
    w->is_warm = w->is_warm || entry.result.forward_tokens > 0;
    if (w->own->category.generate && count_prompts(category) > 0)
        MB_TRY(generate(w, category, source.match, &entry));
    MB_TRY(mb_comm_agree(comm, mb_program_is_root(w->program) ? write_part(w, &entry, part) : MB_OK));
done:
    mb_category_entry_reset(&entry);
    mb_category_close(&category);
    return status;
}

/* Done by a run before this one? The same on all ranks. */
static mb_status is_part_there(const work *w, const char *part, bool *out_is_there)
{
    mb_status status = MB_OK;
    int64_t there = mb_program_is_root(w->program) && mb_files_is_file(part);
    MB_TRY(mb_comm_allreduce_i64(w->program->comm, &there, 1, MB_COMM_MAX));
    *out_is_there = there != 0;
done:
    return status;
}

/* ---- 6. cost ---- */

/* Multiply-adds x 2 a token of what a fused model adds to its members, and its tensors' elements. */
static double router_elements(mb_lm *lm)
{
    double sum = 0;
    mb_params *params = mb_lm_params(lm);
    for (int64_t i = 0; params != NULL && i < mb_params_count(params); i++) {
        const mb_param *param = mb_params_at(params, i);
        double n = 1;
        for (int d = 0; d < param->value.dims; d++) n *= (double)param->value.shape[d];
        if (mb_str_is_prefix(param->name, "router.")) sum += n;
    }
    return sum;
}

/* Forward cost of a token with the head at this many tokens of context, and parameters in memory. Members of
 * an ensemble that weigh nothing are not run. Adapters are not counted: they are a small part. */
static void count_cost(mb_lm *lm, double context, double *out_flops, double *out_parameters)
{
    const int64_t tokens = context > 1 ? (int64_t)nearbyint(context) : 1;
    *out_flops = *out_parameters = 0;
    if (!mb_lm_is_fused(lm)) {
        const mb_arch *arch = mb_lm_arch(lm);
        *out_flops = mb_arch_flops(arch, arch->layers, true, tokens);
        *out_parameters = (double)mb_arch_parameters(arch);
        return;
    }
    const bool is_ensemble = mb_fuse_get_kind(lm) == MB_FUSE_ENSEMBLE;
    for (int64_t m = 0; m < mb_fuse_members(lm); m++) {
        mb_lm *member = mb_fuse_member_lm(lm, m);
        const mb_arch *arch = mb_lm_arch(member != NULL ? member : lm);
        if (is_ensemble && mb_fuse_member_weight(lm, m) == 0) continue;
        *out_flops += mb_arch_flops(arch, arch->layers, true, tokens);
        *out_parameters += (double)mb_arch_parameters(arch);
    }
    if (is_ensemble) return;
    *out_flops += 2 * router_elements(lm);
    *out_parameters += router_elements(lm);
}

/* Decoding, on the prompts of the first category that has any. Collective. */
static mb_status measure_speed(work *w, const mb_named_paths *files, mb_category_book *book)
{
    mb_status status = MB_OK;
    mb_comm *comm = w->program->comm;
    const mb_category_program *o = &w->own->category;
    mb_category *category = NULL;
    bool has_prompts = false;
    const mb_infer_program reading = {.tmpl = (char *)(uintptr_t) "auto",
                                      .template_dir = o->template_dir,
                                      .tokenizer = (char *)(uintptr_t)w->tokenizer_path};
    if (!o->generate || o->speed_tokens < 2) goto done;
    for (int64_t i = 0; i < files->count && !has_prompts; i++) {
        mb_category_file source = {.name = files->item[i].name,
                                   .path = files->item[i].path,
                                   .opt_form = files->item[i].more[0],
                                   .opt_fields = files->item[i].more[1],
                                   .limit = w->own->limit};
        mb_category_close(&category);
        MB_TRY(mb_comm_agree(comm, mb_category_open(&source, &w->build, w->tmpl, &category)));
        has_prompts = count_prompts(category) > 0;
        if (has_prompts)
            MB_TRY(mb_eval_speed_run(comm, w->lm, &reading, category, o->batch_sequences, o->speed_tokens,
                                     &book->speed_tokens, &book->speed_seconds));
    }
done:
    mb_category_close(&category);
    return status;
}

/* ---- 7. files ---- */

static json_t *number(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

static mb_status give_entry(mb_program *program, const mb_category_entry *e, json_t *table)
{
    mb_status status = MB_OK;
    char name[160], says[64] = "no answers to judge";
    const mb_category_result *r = &e->result;
    const mb_category_summary s = mb_category_summarise(r);
    if (s.judged > 0)
        snprintf(says, sizeof says, "%7.2f %% of %lld right", 100 * s.accuracy, (long long)s.judged);
    mb_info("  %-20s perplexity %10.4f (%lld tokens of %lld records), %s", e->name, s.perplexity,
            (long long)s.tokens, (long long)s.records, says);
    MB_TRY(mb_json_set(table, e->name,
                       json_pack("{s:I, s:I, s:o, s:I, s:o, s:o, s:s}", "records", (json_int_t)s.records,
                                 "tokens", (json_int_t)s.tokens, "perplexity", number(s.perplexity), "judged",
                                 (json_int_t)s.judged, "accuracy", number(s.accuracy), "accuracy_stderr",
                                 number(s.accuracy_stderr), "file", e->file)));
    if (isfinite(s.perplexity)) {
        snprintf(name, sizeof name, "perplexity_%.120s", e->name);
        MB_TRY(mb_program_result_real(program, name, s.perplexity));
    }
    if (s.judged > 0) {
        snprintf(name, sizeof name, "accuracy_%.120s", e->name);
        MB_TRY(mb_program_result_real(program, name, s.accuracy));
    }
done:
    return status;
}

static mb_status give_cost(mb_program *program, const mb_category_book *book, json_t *results)
{
    mb_status status = MB_OK;
    const double scoring = mb_category_book_scoring_rate(book),
                 decoding = mb_category_book_decoding_rate(book);
    MB_TRY(mb_json_set(
        results, "cost",
        json_pack("{s:f, s:f}", "flops_per_token", book->flops_per_token, "parameters", book->parameters)));
    mb_info(
        "  cost: %.4g FLOP a token, %.4g parameters; scoring %.0f tokens/s, decoding %.0f tokens/s (0: not "
        "measured)",
        book->flops_per_token, book->parameters, isfinite(scoring) ? scoring : 0,
        isfinite(decoding) ? decoding : 0);
    if (isfinite(scoring)) MB_TRY(mb_program_result_real(program, "scoring_tokens_per_second", scoring));
    if (isfinite(decoding)) MB_TRY(mb_program_result_real(program, "decoding_tokens_per_second", decoding));
done:
    return status;
}

/* The parts as one file, and what they say. One rank. */
static mb_status join_parts(const work *w, const mb_named_paths *files, const mb_category_book *speed,
                            json_t *results)
{
    mb_status status = MB_OK;
    mb_category_book book = *speed, part = {0};
    char *path = NULL, *name = NULL;
    json_t *table = json_object();
    double tokens = 0, attended = 0;
    MB_TRY(fill_book(w, &book));
    MB_NEW_ARRAY(book.entry, files->count + 1);
    for (int64_t i = 0; i < files->count; i++) {
        mb_free(path);
        mb_category_book_reset(&part);
        path = part_path(w, files->item[i].name, ".h5");
        if (path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
        MB_TRY(mb_category_files_read(path, &part));
        book.entry[book.count++] = part.entry[0];
        part.entry[0] = (mb_category_entry){0};
        const mb_category_result *r = &book.entry[i].result;
        tokens += (double)r->forward_tokens;
        attended += r->context * (double)r->forward_tokens;
        MB_TRY(give_entry(w->program, &book.entry[i], table));
        mb_free(name);
        name = mb_str_format("answers_%s.jsonl", files->item[i].name);
        mb_free(path);
        path = name != NULL ? mb_program_path(w->program, name) : NULL;
        if (path != NULL && mb_files_is_file(path)) MB_TRY(mb_program_output(w->program, name));
    }
    count_cost(w->lm, tokens > 0 ? attended / tokens : 0, &book.flops_per_token, &book.parameters);
    MB_TRY(give_cost(w->program, &book, results));
    MB_TRY(mb_json_set(results, "categories", json_incref(table)));
    mb_free(path);
    path = mb_program_path(w->program, "categories.h5");
    if (path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    MB_TRY(mb_category_files_write(&book, path));
    MB_TRY(mb_program_output(w->program, "categories.h5"));
done:
    json_decref(table);
    mb_category_book_reset(&book);
    mb_category_book_reset(&part);
    mb_free(path);
    mb_free(name);
    return status;
}

/* ---- 8. all ---- */

mb_status mb_eval_categories_clean(const mb_program *program)
{
    mb_status status = MB_OK;
    char *folder = mb_program_path(program, "parts");
    if (folder == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    MB_TRY(mb_files_remove_tree(folder));
done:
    mb_free(folder);
    return status;
}

mb_status mb_eval_categories_run(mb_program *program, mb_lm *lm, const mb_named_paths *files, json_t *results)
{
    mb_status status = MB_OK;
    work w = {.program = program, .own = program->own, .lm = lm};
    mb_category_book speed = {0};
    char *part = NULL;
    status = open_work(&w);
    if (status == MB_OK && mb_program_is_root(program)) status = mb_files_make_folders(w.folder);
    MB_TRY(mb_comm_agree(program->comm, status));
    MB_TRY(mb_program_work_hash(program, w.key));
    for (int64_t i = 0; i < files->count; i++) {
        bool is_there = false;
        mb_free(part);
        part = part_path(&w, files->item[i].name, ".h5");
        MB_TRY(mb_comm_agree(program->comm, part != NULL ? MB_OK : MB_ENOMEM));
        MB_TRY(is_part_there(&w, part, &is_there));
        if (is_there)
            mb_info("  %s: done before", files->item[i].name);
        else
            MB_TRY(run_category(&w, &files->item[i], part));
    }
    MB_TRY(measure_speed(&w, files, &speed));
    status = mb_program_is_root(program) ? join_parts(&w, files, &speed, results) : MB_OK;
    MB_TRY(mb_comm_agree(program->comm, status));
done:
    close_work(&w);
    mb_free(part);
    return status;
}
