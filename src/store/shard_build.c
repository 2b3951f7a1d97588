/* shard_build: input files -> token shard, in units that do not depend on the number of ranks.
 *
 * Contents: 1. units  2. one record  3. a rank's part  4. joining  5. run  6. tokenizer
 */
#include "store/shard_build.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/files.h"
#include "base/log.h"
#include "base/memory.h"
#include "store/shard.h"
#include "text/bpe_train.h"
#include "text/records.h"

#define UNIT_BYTES (1 << 20) /* a unit of plain JSONL is about this long */

/* ---- 1. units ---- */

typedef struct unit {
    int64_t input;       /* index into inputs */
    int64_t index;       /* first record of the file */
    int64_t byte_offset; /* where it starts */
    int64_t records;     /* how many; -1: to the end of the file */
} unit;

typedef struct unit_list {
    unit *data;
    int64_t count, capacity;
} unit_list;

static mb_status add_unit(unit_list *list, unit u)
{
    mb_status status = MB_OK;
    if (list->count == list->capacity) {
        int64_t capacity = list->capacity ? 2 * list->capacity : 64;
        unit *data = mb_realloc(list->data, (size_t)capacity, sizeof *data);
        if (data == NULL) MB_RAISE(MB_ENOMEM, "no memory for the list of units");
        list->data = data;
        list->capacity = capacity;
    }
    list->data[list->count++] = u;
done:
    return status;
}

bool mb_shard_build_is_plain(const char *path)
{
    return mb_str_is_suffix(path, ".jsonl") || mb_str_is_suffix(path, ".ndjson");
}

static mb_status cut_file(const mb_shard_input *input, int64_t number, unit_list *list)
{
    mb_status status = MB_OK;
    int64_t *offsets = NULL, *lengths = NULL, n = 0;
    if (!mb_shard_build_is_plain(input->path)) {
        MB_TRY(add_unit(list, (unit){.input = number, .records = input->samples > 0 ? input->samples : -1}));
        goto done;
    }
    MB_TRY(mb_records_scan(input->path, &offsets, &lengths, &n));
    if (input->samples > 0 && input->samples < n) n = input->samples;
    for (int64_t first = 0, i = 0; i < n; ++i) {
        bool is_last = i + 1 == n || offsets[i + 1] - offsets[first] > UNIT_BYTES;
        if (!is_last) continue;
        MB_TRY(add_unit(list, (unit){.input = number,
                                     .index = first,
                                     .byte_offset = offsets[first],
                                     .records = i + 1 - first}));
        first = i + 1;
    }
done:
    mb_free(offsets);
    mb_free(lengths);
    return status;
}

/* ---- 2. one record ---- */

typedef struct builder {
    const mb_shard_build_options *options;
    const mb_shard_input *inputs;
    int64_t input_count;
    char **types; /* distinct types, borrowed from inputs */
    int64_t type_count;
    mb_tokenizer *tokenizer;
    mb_tokenizer_scratch *scratch;
    mb_template *tmpl;
    mb_dialog dialog;
    mb_rendered rendered;
    mb_ids ids, spans;
    uint8_t *mask;
    int64_t mask_capacity;
    mb_shard_writer *writer;
    mb_str bad_lines;
    mb_shard_build_report report;
} builder;

/* How often something is logged before it is only counted. */
#define BAD_SHOWN 5

static mb_status note_bad(builder *b, int64_t input, const mb_record *record, const char *problem)
{
    mb_status status = MB_OK;
    const mb_shard_input *in = &b->inputs[input];
    char place[48] = "";
    if (!mb_str_is_prefix(problem, "line "))
        snprintf(place, sizeof place, "line %lld: ", (long long)record->line);
    if (strcmp(b->options->on_bad, "fail") == 0)
        MB_RAISE(MB_EDATA,
                 "%s: line %lld (byte %lld): %s; mend the record, or leave such records out with "
                 "dataset.on_bad=skip",
                 in->path, (long long)record->line, (long long)record->byte_offset, problem);
    if (b->report.bad++ < BAD_SHOWN) mb_warn("%s: left out %s%s", in->path, place, problem);
    json_t *line = json_pack("{s:s, s:s, s:I, s:I, s:I, s:s}", "source", in->name, "path", in->path, "index",
                             (json_int_t)record->index, "line", (json_int_t)record->line, "byte_offset",
                             (json_int_t)record->byte_offset, "problem", problem);
    status = line == NULL ? mb_fail(MB_ENOMEM, "no memory for a note on a bad record")
                          : mb_json_print(line, 0, false, &b->bad_lines);
    json_decref(line);
    MB_TRY(status);
    MB_TRY(mb_str_add(&b->bad_lines, "\n"));
done:
    return status;
}

mb_status mb_shard_build_render(const json_t *record, const mb_shard_input *input, const mb_template *tmpl,
                                const mb_tokenizer *tokenizer, bool learn_all, mb_dialog *dialog,
                                mb_rendered *rendered)
{
    mb_status status = MB_OK;
    mb_field_map map = {.form = input->form, .fields = input->fields};
    int64_t bos = mb_tokenizer_bos(tokenizer), eos = mb_tokenizer_eos(tokenizer);
    MB_TRY(mb_dialog_read(record, &map, dialog));
    MB_TRY(mb_template_render(tmpl, dialog, learn_all,
                              bos >= 0 ? mb_tokenizer_token(tokenizer, (uint32_t)bos) : NULL,
                              eos >= 0 ? mb_tokenizer_token(tokenizer, (uint32_t)eos) : NULL, rendered));
done:
    return status;
}

/* A token counts when its first byte lies in a learnt range; the closing end-of-text counts when the text's
 * last byte does. */
static mb_status fill_mask(builder *b, bool is_eos_added)
{
    mb_status status = MB_OK;
    int64_t n = b->ids.count, r = 0;
    if (n > b->mask_capacity) {
        uint8_t *mask = mb_realloc(b->mask, (size_t)n * 2, 1);
        if (mask == NULL) MB_RAISE(MB_ENOMEM, "no memory for a loss mask of %lld tokens", (long long)n);
        b->mask = mask;
        b->mask_capacity = 2 * n;
    }
    const int64_t *ranges = b->rendered.ranges;
    for (int64_t t = 0; t < n - is_eos_added; ++t) {
        int64_t first = b->spans.data[2 * t], end = b->spans.data[2 * t + 1];
        while (r < b->rendered.range_count && ranges[2 * r + 1] <= first) ++r;
        b->mask[t] = end > first && r < b->rendered.range_count && ranges[2 * r] <= first;
    }
    if (is_eos_added) {
        int64_t last = b->rendered.range_count - 1;
        b->mask[n - 1] = last >= 0 && ranges[2 * last + 1] >= (int64_t)b->rendered.text.length;
    }
done:
    return status;
}

static int64_t type_number(const builder *b, const char *type)
{
    for (int64_t i = 0; i < b->type_count; ++i)
        if (mb_str_equal(b->types[i], type)) return i;
    return 0;
}

static mb_status write_record(builder *b, int64_t input, const mb_record *record, int64_t first,
                              int64_t count)
{
    mb_shard_record out = {.tokens = b->ids.data + first,
                           .loss_mask = strcmp(b->options->loss_on, "answers") == 0 ? b->mask + first : NULL,
                           .count = count,
                           .source = (uint16_t)input,
                           .source_index = record->index,
                           .byte_offset = record->byte_offset,
                           .byte_length = (int64_t)record->length,
                           .text_bytes = (int64_t)b->rendered.text.length,
                           .record_hash =
                               mb_hash_u64(b->rendered.text.data, b->rendered.text.length, (uint64_t)first),
                           .type = (uint16_t)type_number(b, b->inputs[input].type)};
    if (count < b->ids.count)
        out.text_bytes = (int64_t)((double)out.text_bytes * (double)count / (double)b->ids.count + 0.5);
    ++b->report.records;
    b->report.tokens += count;
    b->report.bytes += out.text_bytes;
    return mb_shard_writer_add(b->writer, &out);
}

static mb_status write_long_record(builder *b, int64_t input, const mb_record *record)
{
    mb_status status = MB_OK;
    const int64_t n = b->ids.count, longest = b->options->max_length;
    if (strcmp(b->options->on_long, "skip") == 0) {
        ++b->report.skipped_long;
        goto done;
    }
    if (strcmp(b->options->on_long, "cut") == 0) {
        ++b->report.cut;
        MB_TRY(write_record(b, input, record, 0, longest));
        goto done;
    }
    ++b->report.split;
    for (int64_t first = 0; n - first >= b->options->min_length; first += longest)
        MB_TRY(write_record(b, input, record, first, n - first < longest ? n - first : longest));
done:
    return status;
}

static mb_status add_prefix(mb_rendered *rendered, const char *prefix)
{
    mb_status status = MB_OK;
    const size_t n = strlen(prefix), length = rendered->text.length;
    MB_TRY(mb_str_add(&rendered->text, prefix));
    memmove(rendered->text.data + n, rendered->text.data, length);
    memcpy(rendered->text.data, prefix, n);
    rendered->range_count = 0;
done:
    return status;
}

/* Text -> ids, spans and mask in b. */
static mb_status encode_record(builder *b)
{
    mb_status status = MB_OK;
    const int64_t eos = mb_tokenizer_eos(b->tokenizer), bos = mb_tokenizer_bos(b->tokenizer);
    /* A template that writes the begin mark itself gets none from the tokenizer. */
    const char *mark = bos >= 0 ? mb_tokenizer_token(b->tokenizer, (uint32_t)bos) : NULL;
    const bool has_bos = mark != NULL && mb_str_is_prefix(mb_str_text(&b->rendered.text), mark);
    mb_ids_reset(&b->ids);
    mb_ids_reset(&b->spans);
    MB_TRY(mb_tokenizer_encode_spans(b->tokenizer, b->scratch, mb_str_text(&b->rendered.text),
                                     b->rendered.text.length, !has_bos && !b->options->is_bare, &b->ids,
                                     &b->spans));
    /* Templates may end with the end mark, or with it and a line feed. */
    bool add_eos = b->options->append_eos && eos >= 0;
    for (int64_t i = b->ids.count - 1; i >= 0 && i >= b->ids.count - 2; --i)
        add_eos = add_eos && b->ids.data[i] != (uint32_t)eos;
    if (add_eos) {
        const uint32_t end = (uint32_t)b->rendered.text.length;
        MB_TRY(mb_ids_append(&b->ids, (uint32_t)eos));
        MB_TRY(mb_ids_append_all(&b->spans, (const uint32_t[]){end, end}, 2));
    }
    MB_TRY(fill_mask(b, add_eos));
done:
    return status;
}

static mb_status build_record(builder *b, int64_t input, const mb_record *record)
{
    mb_status status = MB_OK;
    if (record->problem != NULL) {
        MB_TRY(note_bad(b, input, record, record->problem));
        goto done;
    }
    status = mb_shard_build_render(record->json, &b->inputs[input], b->tmpl, b->tokenizer,
                                   strcmp(b->options->loss_on, "all") == 0, &b->dialog, &b->rendered);
    if (status == MB_OK && b->options->opt_prefix != NULL)
        status = add_prefix(&b->rendered, b->options->opt_prefix);
    if (status == MB_OK) status = encode_record(b);
    if (status == MB_EDATA || status == MB_ENOTFOUND || status == MB_EFORMAT || status == MB_ERANGE) {
        char *problem = mb_strdup(mb_status_message());
        status = note_bad(b, input, record, problem != NULL ? problem : "bad");
        mb_free(problem);
        goto done;
    }
    MB_TRY(status);
    if (b->ids.count < b->options->min_length)
        MB_TRY(note_bad(b, input, record, "too short (dataset.min_length)"));
    else if (b->ids.count > b->options->max_length)
        MB_TRY(write_long_record(b, input, record));
    else
        MB_TRY(write_record(b, input, record, 0, b->ids.count));
done:
    return status;
}

/* ---- 3. a rank's part ---- */

static mb_status build_unit(builder *b, const unit *u)
{
    mb_status status = MB_OK;
    mb_records *records = NULL;
    mb_record record;
    MB_TRY(mb_records_open(b->inputs[u->input].path, b->options->max_record_bytes, &records));
    if (u->byte_offset > 0) MB_TRY(mb_records_seek(records, u->byte_offset, u->index, u->index + 1));
    for (int64_t n = 0; u->records < 0 || n < u->records; ++n) {
        MB_TRY(mb_records_read(records, &record));
        if (record.bytes == NULL) break;
        MB_TRY(build_record(b, u->input, &record));
    }
done:
    mb_records_close(&records);
    return status;
}

static mb_status fill_shard_info(const builder *b, mb_shard_info *info, const char **names,
                                 const char **files)
{
    for (int64_t i = 0; i < b->input_count; ++i) {
        names[i] = b->inputs[i].name;
        files[i] = b->inputs[i].path;
    }
    *info = (mb_shard_info){.tokenizer_hash = mb_tokenizer_hash(b->tokenizer),
                            .template_hash = mb_template_hash(b->tmpl),
                            .max_length = b->options->max_length,
                            .vocab_size = mb_tokenizer_count(b->tokenizer),
                            .source_names = names,
                            .source_files = files,
                            .source_count = b->input_count,
                            .type_names = b->type_count > 0 ? (const char *const *)b->types : NULL,
                            .type_count = b->type_count,
                            .has_loss_mask = strcmp(b->options->loss_on, "answers") == 0};
    return MB_OK;
}

static mb_status open_builder(builder *b)
{
    mb_status status = MB_OK;
    if (b->options->tokenizer_path == NULL)
        MB_RAISE(MB_EUSAGE, "tokenizer.path is missing: the tokenizer.json, or the folder that holds it");
    if (b->options->min_length > b->options->max_length)
        MB_RAISE(MB_EUSAGE, "dataset.min_length is larger than dataset.max_length");
    MB_TRY(mb_tokenizer_open(b->options->tokenizer_path, &b->tokenizer));
    MB_TRY(mb_tokenizer_scratch_create(b->tokenizer, &b->scratch));
    MB_TRY(mb_shard_build_template(b->options, &b->tmpl));
    MB_NEW_ARRAY(b->types, b->input_count);
    bool any = false;
    for (int64_t i = 0; i < b->input_count; ++i) any = any || b->inputs[i].type != NULL;
    for (int64_t i = 0; any && i < b->input_count; ++i) {
        if (b->inputs[i].type == NULL)
            MB_RAISE(
                MB_EUSAGE,
                "dataset.inputs: '%s' has no type while others have one; give all of them a type or none",
                b->inputs[i].name);
        bool is_new = true;
        for (int64_t j = 0; j < b->type_count; ++j)
            is_new = is_new && strcmp(b->types[j], b->inputs[i].type) != 0;
        if (is_new) b->types[b->type_count++] = b->inputs[i].type;
    }
done:
    return status;
}

static void close_builder(builder *b)
{
    mb_shard_writer_destroy(&b->writer);
    mb_template_close(&b->tmpl);
    mb_tokenizer_scratch_destroy(&b->scratch);
    mb_tokenizer_close(&b->tokenizer);
    mb_dialog_destroy(&b->dialog);
    mb_rendered_destroy(&b->rendered);
    mb_ids_destroy(&b->ids);
    mb_ids_destroy(&b->spans);
    mb_str_destroy(&b->bad_lines);
    MB_FREE(b->mask);
    MB_FREE(b->types);
}

static mb_status build_part(builder *b, const unit_list *units, mb_comm *comm, const char *part)
{
    mb_status status = MB_OK;
    const char **names = NULL, **files = NULL;
    mb_shard_info info;
    mb_progress progress;
    int64_t first, count;
    MB_NEW_ARRAY(names, b->input_count);
    MB_NEW_ARRAY(files, b->input_count);
    MB_TRY(fill_shard_info(b, &info, names, files));
    MB_TRY(mb_shard_writer_create(part, &info, &b->writer));
    mb_comm_share(comm, units->count, &first, &count);
    mb_progress_start(&progress, "shard", "units", 0, count);
    for (int64_t i = 0; i < count; ++i) {
        MB_TRY(build_unit(b, &units->data[first + i]));
        mb_progress_step(&progress, i + 1, NULL);
    }
    mb_progress_end(&progress, count, NULL);
    MB_TRY(mb_shard_writer_close(&b->writer));
done:
    mb_free(names);
    mb_free(files);
    return status;
}

/* ---- 4. joining ---- */

static char *part_path(const char *out_path, int rank)
{
    return mb_str_format("%s.parts/rank_%05d.h5", out_path, rank);
}

static mb_status copy_part(const char *path, builder *b, int64_t *kept)
{
    mb_status status = MB_OK;
    mb_shard *part = NULL;
    mb_shard_record record;
    MB_TRY(mb_shard_open(path, 0, &part));
    for (int64_t i = 0; i < mb_shard_count(part); ++i) {
        MB_TRY(mb_shard_read(part, i, &record));
        ++kept[record.source];
        MB_TRY(mb_shard_writer_add(b->writer, &record));
    }
done:
    mb_shard_close(&part);
    return status;
}

static mb_status join_parts(builder *b, const char *out_path, int ranks, const mb_shard_build_report *total)
{
    mb_status status = MB_OK;
    const char **names = NULL, **files = NULL;
    char *path = NULL;
    int64_t *kept = NULL;
    mb_shard_info info;
    MB_NEW_ARRAY(kept, b->input_count);
    MB_NEW_ARRAY(names, b->input_count);
    MB_NEW_ARRAY(files, b->input_count);
    MB_TRY(fill_shard_info(b, &info, names, files));
    MB_TRY(mb_shard_writer_create(out_path, &info, &b->writer));
    for (int r = 0; r < ranks; ++r) {
        mb_free(path);
        if ((path = part_path(out_path, r)) == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
        MB_TRY(copy_part(path, b, kept));
    }
    for (int64_t i = 0; i < b->input_count; ++i)
        if (kept[i] == 0)
            mb_warn("%s: no record of '%s' could be used; see %s.bad.jsonl", b->inputs[i].path,
                    b->inputs[i].name, out_path);
    MB_TRY(mb_shard_writer_count(b->writer, "bad", total->bad));
    MB_TRY(mb_shard_writer_count(b->writer, "cut", total->cut));
    MB_TRY(mb_shard_writer_count(b->writer, "split", total->split));
    MB_TRY(mb_shard_writer_count(b->writer, "skipped_long", total->skipped_long));
    MB_TRY(mb_shard_writer_close(&b->writer));
done:
    mb_free(kept);
    mb_free(path);
    mb_free(names);
    mb_free(files);
    return status;
}

/* Every rank's notes on bad records, in rank order = input order. */
static mb_status write_bad_notes(mb_comm *comm, builder *b, const char *out_path)
{
    mb_status status = MB_OK;
    void *all = NULL;
    int64_t *offsets = NULL;
    char *path = NULL;
    MB_NEW_ARRAY(offsets, mb_comm_size(comm) + 1);
    MB_TRY(mb_comm_allgatherv(comm, mb_str_text(&b->bad_lines), b->bad_lines.length, &all, offsets));
    if (mb_comm_rank(comm) == 0) {
        if ((path = mb_str_format("%s.bad.jsonl", out_path)) == NULL)
            MB_RAISE(MB_ENOMEM, "no memory for a path");
        if (offsets[mb_comm_size(comm)] > 0)
            MB_TRY(mb_files_write(path, all, (size_t)offsets[mb_comm_size(comm)]));
        else
            MB_TRY(mb_files_remove_tree(path));
    }
done:
    mb_free(path);
    mb_free(all);
    mb_free(offsets);
    return status;
}

/* ---- 5. run ---- */

/* Rank 0 cuts, everybody gets the list. */
static mb_status share_units(mb_comm *comm, const builder *b, unit_list *units)
{
    mb_status status = MB_OK;
    if (mb_comm_rank(comm) == 0)
        for (int64_t i = 0; i < b->input_count && status == MB_OK; ++i)
            status = cut_file(&b->inputs[i], i, units);
    MB_TRY(mb_comm_agree(comm, status));
    int64_t count = units->count;
    MB_TRY(mb_comm_bcast(comm, &count, sizeof count, 0));
    if (mb_comm_rank(comm) != 0) {
        MB_NEW_ARRAY(units->data, count + 1);
        units->count = units->capacity = count;
    }
    MB_TRY(mb_comm_bcast(comm, units->data, (size_t)count * sizeof *units->data, 0));
done:
    return status;
}

static mb_status sum_report(mb_comm *comm, const mb_shard_build_report *mine, mb_shard_build_report *out)
{
    mb_status status = MB_OK;
    int64_t values[] = {mine->records, mine->tokens, mine->bytes,       mine->bad,
                        mine->cut,     mine->split,  mine->skipped_long};
    MB_TRY(mb_comm_allreduce_i64(comm, values, 7, MB_COMM_SUM));
    *out = (mb_shard_build_report){.records = values[0],
                                   .tokens = values[1],
                                   .bytes = values[2],
                                   .bad = values[3],
                                   .cut = values[4],
                                   .split = values[5],
                                   .skipped_long = values[6]};
done:
    return status;
}

static mb_status prepare_rank(builder *b, const char *out_path, char **out_part, int rank)
{
    mb_status status = MB_OK;
    char *folder = mb_str_format("%s.parts", out_path);
    if (folder == NULL || (*out_part = part_path(out_path, rank)) == NULL)
        MB_RAISE(MB_ENOMEM, "no memory for a path");
    MB_TRY(mb_files_make_folders(folder));
    MB_TRY(open_builder(b));
done:
    mb_free(folder);
    return status;
}

static mb_status remove_parts(const char *out_path)
{
    char *folder = mb_str_format("%s.parts", out_path);
    mb_status status =
        folder == NULL ? mb_fail(MB_ENOMEM, "no memory for a path") : mb_files_remove_tree(folder);
    mb_free(folder);
    return status;
}

mb_status mb_shard_build_run(mb_comm *comm, const mb_shard_build_options *options, const char *out_path,
                             mb_shard_build_report *out_report)
{
    mb_status status = MB_OK;
    const double started = mb_clock_seconds();
    builder b = {.options = options};
    mb_shard_input *inputs = NULL;
    unit_list units = {0};
    char *part = NULL;
    mb_shard_build_report total;
    status = mb_shard_build_inputs(options, &inputs, &b.input_count);
    b.inputs = inputs;
    if (status == MB_OK) status = prepare_rank(&b, out_path, &part, mb_comm_rank(comm));
    MB_TRY(mb_comm_agree(comm, status));
    MB_TRY(share_units(comm, &b, &units));
    MB_TRY(mb_comm_agree(comm, build_part(&b, &units, comm, part)));
    MB_TRY(sum_report(comm, &b.report, &total));
    MB_TRY(write_bad_notes(comm, &b, out_path));
    if (total.records == 0)
        status = mb_fail(MB_EDATA, "no record of the inputs could be used (%lld bad, see %s.bad.jsonl)",
                         (long long)total.bad, out_path);
    if (status == MB_OK && mb_comm_rank(comm) == 0)
        status = join_parts(&b, out_path, mb_comm_size(comm), &total);
    MB_TRY(mb_comm_agree(comm, status));
    if (mb_comm_rank(comm) == 0) MB_TRY(remove_parts(out_path));
    *out_report = total;
    out_report->seconds = mb_clock_seconds() - started;
done:
    close_builder(&b);
    mb_shard_build_free_inputs(&inputs, b.input_count);
    mb_free(units.data);
    mb_free(part);
    return status;
}

/* ---- 6. tokenizer ---- */

/* Rendering needs a tokenizer only for BOS and EOS texts, which a tokenizer being learnt has not: the
 * dialog's texts are used as they stand. */
static mb_status learn_from_input(mb_bpe_train *train, const mb_shard_build_options *options,
                                  const mb_shard_input *input, mb_dialog *dialog)
{
    mb_status status = MB_OK;
    mb_records *records = NULL;
    mb_record record;
    mb_field_map map = {.form = input->form, .fields = input->fields};
    MB_TRY(mb_records_open(input->path, options->max_record_bytes, &records));
    for (int64_t n = 0; input->samples <= 0 || n < input->samples; ++n) {
        MB_TRY(mb_records_read(records, &record));
        if (record.bytes == NULL) break;
        if (record.problem != NULL || mb_dialog_read(record.json, &map, dialog) != MB_OK) continue;
        for (int64_t i = 0; i < dialog->count; ++i)
            MB_TRY(mb_bpe_train_add(train, dialog->turns[i].text, dialog->turns[i].length));
    }
done:
    mb_records_close(&records);
    return status;
}

mb_status mb_shard_build_tokenizer(const mb_shard_build_options *options, int64_t vocab_size,
                                   int64_t min_frequency, const char *folder)
{
    mb_status status = MB_OK;
    mb_bpe_train *train = NULL;
    mb_dialog dialog = {0};
    mb_shard_input *inputs = NULL;
    int64_t n = 0;
    MB_TRY(mb_shard_build_inputs(options, &inputs, &n));
    MB_TRY(mb_bpe_train_create(vocab_size, min_frequency, NULL, &train));
    for (int64_t i = 0; i < n; ++i) MB_TRY(learn_from_input(train, options, &inputs[i], &dialog));
    MB_TRY(mb_bpe_train_write(train, folder));
done:
    mb_dialog_destroy(&dialog);
    mb_bpe_train_destroy(&train);
    mb_shard_build_free_inputs(&inputs, n);
    return status;
}
