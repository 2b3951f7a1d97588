/* shard_build: input files -> token shard, in units that do not depend on the number of ranks.
 *
 * Contents: 1. units  2. parts and notes  3. rounds  4. joining  5. run  6. rendering  7. tokenizer
 * Each round every rank writes one part shard from its units. There is one round, unless records that were
 * drawn turned out to be unusable (shard_mix). Rank 0 joins the parts (shard_join).
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
#include "store/shard_join.h"
#include "store/shard_part.h"
#include "store/shard_table.h"
#include "text/bpe_train.h"

#define UNIT_BYTES      (1 << 20) /* a unit of plain JSONL is about this long */
#define SCAN_KEEP_BYTES (1 << 20) /* of a record that is only passed */

/* ---- 1. units ---- */

typedef struct unit_list {
    mb_shard_unit *data;
    int64_t count, capacity;
} unit_list;

static mb_status add_unit(unit_list *list, mb_shard_unit u)
{
    mb_status status = MB_OK;
    if (list->count == list->capacity) {
        int64_t capacity = list->capacity ? 2 * list->capacity : 64;
        mb_shard_unit *data = mb_realloc(list->data, (size_t)capacity, sizeof *data);
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

/* The units of a plain file, in one pass over it; and how many records there are. */
static mb_status cut_plain(const char *path, int64_t number, unit_list *list, int64_t *out_records)
{
    mb_status status = MB_OK;
    mb_records *records = NULL;
    mb_shard_unit unit = {.input = number};
    int64_t n = 0, at;
    MB_TRY(mb_records_open(path, SCAN_KEEP_BYTES, &records));
    for (;; ++n) {
        MB_TRY(mb_records_pass(records, &at));
        unit.records = n - unit.index;
        if (unit.records > 0 && (at < 0 || at - unit.byte_offset > UNIT_BYTES)) {
            MB_TRY(add_unit(list, unit));
            unit = (mb_shard_unit){.input = number, .index = n, .byte_offset = at};
        }
        if (at < 0) break;
        if (n == 0) unit.byte_offset = at;
    }
    *out_records = n;
done:
    mb_records_close(&records);
    return status;
}

/* The units of an input; of a plain or a drawn one also how many records there are. */
static mb_status cut_file(const mb_shard_input *input, int64_t number, mb_shard_draw *draw, unit_list *list)
{
    mb_status status = MB_OK;
    unit_list none = {0};
    if (mb_shard_build_is_plain(input->path)) {
        MB_TRY(cut_plain(input->path, number, list, &draw->available));
        goto done;
    }
    if (draw->is_drawn) MB_TRY(cut_plain(input->path, number, &none, &draw->available));
    MB_TRY(add_unit(list, (mb_shard_unit){.input = number, .records = -1}));
done:
    mb_free(none.data);
    return status;
}

/* Rank 0 cuts, everybody gets the list and the numbers of records. */
static mb_status share_units(mb_comm *comm, mb_shard_part *part, unit_list *units)
{
    mb_status status = MB_OK;
    if (mb_comm_rank(comm) == 0)
        for (int64_t i = 0; i < part->input_count && status == MB_OK; ++i)
            status = cut_file(&part->inputs[i], i, &part->draws[i], units);
    MB_TRY(mb_comm_agree(comm, status));
    int64_t count = units->count;
    MB_TRY(mb_comm_bcast(comm, &count, sizeof count, 0));
    if (mb_comm_rank(comm) != 0) {
        MB_NEW_ARRAY(units->data, count + 1);
        units->count = units->capacity = count;
    }
    MB_TRY(mb_comm_bcast(comm, units->data, (size_t)count * sizeof *units->data, 0));
    for (int64_t i = 0; i < part->input_count; ++i)
        MB_TRY(mb_comm_bcast(comm, &part->draws[i].available, sizeof(int64_t), 0));
done:
    return status;
}

/* Units of inputs that have something to look at in this round. */
static mb_status choose_units(const mb_shard_part *part, const unit_list *all, int64_t round, unit_list *out)
{
    mb_status status = MB_OK;
    out->count = 0;
    for (int64_t u = 0; u < all->count; ++u) {
        const mb_shard_draw *draw = &part->draws[all->data[u].input];
        if (draw->is_drawn ? draw->candidates > draw->looked : round == 0)
            MB_TRY(add_unit(out, all->data[u]));
    }
done:
    return status;
}

/* ---- 2. parts and notes ---- */

/* What one sharding works with. */
typedef struct builder {
    mb_comm *comm;
    const char *out_path;
    mb_shard_part part;
    unit_list units, chosen;
    char **parts; /* [rounds * ranks] part files, round by round */
    int64_t rounds;
    mb_str notes; /* rank 0: on bad records, round by round */
    mb_shard_tally *tallies, *held_tallies;
} builder;

/* The part files of one more round. */
static mb_status add_round(builder *b)
{
    mb_status status = MB_OK;
    const int64_t ranks = mb_comm_size(b->comm), first = b->rounds * ranks;
    char **grown = mb_realloc(b->parts, (size_t)(first + ranks), sizeof *grown);
    if (grown == NULL) MB_RAISE(MB_ENOMEM, "no memory for the list of parts");
    b->parts = grown;
    for (int64_t r = 0; r < ranks; ++r) grown[first + r] = NULL;
    for (int64_t r = 0; r < ranks; ++r) {
        grown[first + r] = mb_str_format("%s.parts/round_%03lld_rank_%05lld.h5", b->out_path,
                                         (long long)b->rounds, (long long)r);
        if (grown[first + r] == NULL) status = MB_ENOMEM;
    }
    ++b->rounds;
    if (status != MB_OK) MB_RAISE(MB_ENOMEM, "no memory for the list of parts");
done:
    return status;
}

/* Every rank's notes on bad records to rank 0, in rank order = input order. */
static mb_status gather_notes(builder *b)
{
    mb_status status = MB_OK;
    void *all = NULL;
    int64_t *offsets = NULL;
    const int ranks = mb_comm_size(b->comm);
    MB_NEW_ARRAY(offsets, ranks + 1);
    MB_TRY(mb_comm_allgatherv(b->comm, mb_str_text(&b->part.bad_lines), b->part.bad_lines.length, &all,
                              offsets));
    if (mb_comm_rank(b->comm) == 0) MB_TRY(mb_str_append(&b->notes, all, (size_t)offsets[ranks]));
    mb_str_reset(&b->part.bad_lines);
done:
    mb_free(all);
    mb_free(offsets);
    return status;
}

static mb_status write_notes(const builder *b)
{
    mb_status status = MB_OK;
    char *path = mb_str_format("%s.bad.jsonl", b->out_path);
    if (path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    if (b->notes.length > 0)
        MB_TRY(mb_files_write(path, b->notes.data, b->notes.length));
    else
        MB_TRY(mb_files_remove_tree(path));
done:
    mb_free(path);
    return status;
}

/* ---- 3. rounds ---- */

/* Counts of all ranks so far. sums: [3 * inputs], good, bad and too long of each input. */
static mb_status sum_counts(builder *b, int64_t *sums)
{
    mb_status status = MB_OK;
    for (int64_t i = 0; i < b->part.input_count; ++i) {
        sums[3 * i] = b->part.counts[i].good;
        sums[3 * i + 1] = b->part.counts[i].bad;
        sums[3 * i + 2] = b->part.counts[i].skipped_long;
    }
    MB_TRY(mb_comm_allreduce_i64(b->comm, sums, 3 * b->part.input_count, MB_COMM_SUM));
    for (int64_t i = 0; i < b->part.input_count; ++i) b->part.draws[i].good = sums[3 * i];
done:
    return status;
}

/* One round: this rank's part. Collective. */
static mb_status write_round(builder *b)
{
    mb_status status = MB_OK;
    int64_t first = 0, count = 0;
    MB_TRY(mb_shard_mix_window(b->comm, b->part.draws, b->part.input_count));
    status = choose_units(&b->part, &b->units, b->rounds, &b->chosen);
    if (status == MB_OK) status = add_round(b);
    if (status == MB_OK) {
        mb_comm_share(b->comm, b->chosen.count, &first, &count);
        const int64_t mine = (b->rounds - 1) * mb_comm_size(b->comm) + mb_comm_rank(b->comm);
        status = mb_shard_part_write(&b->part, b->chosen.data != NULL ? b->chosen.data + first : NULL, count,
                                     b->parts[mine]);
    }
    MB_TRY(mb_comm_agree(b->comm, status));
    MB_TRY(gather_notes(b));
done:
    return status;
}

/* All rounds, and what is to be written of what they made. */
static mb_status write_rounds(builder *b, int64_t *sums)
{
    mb_status status = MB_OK;
    char **mine = NULL;
    const int64_t ranks = mb_comm_size(b->comm), n = b->part.input_count;
    int64_t good = 0, bad = 0;
    do {
        MB_TRY(write_round(b));
        MB_TRY(sum_counts(b, sums));
    } while (mb_shard_mix_grow(b->part.draws, n));
    if (mb_comm_rank(b->comm) == 0) status = write_notes(b);
    MB_TRY(mb_comm_agree(b->comm, status));
    for (int64_t i = 0; i < n; ++i) {
        good += sums[3 * i];
        bad += sums[3 * i + 1];
    }
    if (good == 0)
        MB_RAISE(MB_EDATA, "no record of the inputs could be used (%lld bad, see %s.bad.jsonl)",
                 (long long)bad, b->out_path);
    MB_NEW_ARRAY(mine, b->rounds);
    for (int64_t r = 0; r < b->rounds; ++r) mine[r] = b->parts[r * ranks + mb_comm_rank(b->comm)];
    MB_TRY(mb_shard_mix_settle(b->comm, b->part.options, b->part.inputs, n, mine, b->rounds, b->part.draws));
done:
    mb_free(mine);
    return status;
}

/* ---- 4. joining ---- */

/* "<folder of out_path>/validation.h5", when something is held back. */
static mb_status name_validation(const builder *b, char **out_path)
{
    mb_status status = MB_OK;
    int64_t held = 0;
    const char *slash = strrchr(b->out_path, '/');
    for (int64_t i = 0; i < b->part.input_count; ++i) held += b->part.draws[i].held_found;
    if (held == 0) return MB_OK;
    *out_path =
        mb_str_format("%.*svalidation.h5", slash != NULL ? (int)(slash + 1 - b->out_path) : 0, b->out_path);
    if (*out_path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
done:
    return status;
}

/* The attributes of one of the two shards; the sums of what was left out stand in the first alone. */
static mb_status set_counts(const builder *b, mb_shard_writer *writer, const mb_shard_tally *tallies,
                            const int64_t *opt_sums)
{
    mb_status status = MB_OK;
    int64_t cut = 0, split = 0, bad = 0, skipped = 0;
    for (int64_t i = 0; i < b->part.input_count; ++i) {
        cut += tallies[i].cut;
        split += tallies[i].split;
        bad += opt_sums != NULL ? opt_sums[3 * i + 1] : 0;
        skipped += opt_sums != NULL ? opt_sums[3 * i + 2] : 0;
    }
    if (opt_sums != NULL) MB_TRY(mb_shard_writer_count(writer, "bad", bad));
    MB_TRY(mb_shard_writer_count(writer, "cut", cut));
    MB_TRY(mb_shard_writer_count(writer, "split", split));
    if (opt_sums != NULL) MB_TRY(mb_shard_writer_count(writer, "skipped_long", skipped));
done:
    return status;
}

/* The table of shares: to the log, to the caller, and into both shards where a mix was asked for. */
static mb_status report_mix(const builder *b, const mb_shard_join *join, const int64_t *sums)
{
    mb_status status = MB_OK;
    const mb_shard_part *part = &b->part;
    const int64_t n = part->input_count;
    int64_t *read = NULL, *bad = NULL;
    const char **templates = NULL;
    json_t *json = NULL;
    mb_str text = MB_STR_EMPTY;
    MB_NEW_ARRAY(read, n);
    MB_NEW_ARRAY(bad, n);
    MB_NEW_ARRAY(templates, n);
    for (int64_t i = 0; i < n; ++i) {
        bad[i] = sums[3 * i + 1] + sums[3 * i + 2];
        read[i] = sums[3 * i] + bad[i];
        templates[i] = mb_template_name(part->templates[i]);
    }
    const mb_shard_table table = {.options = part->options,
                                  .inputs = part->inputs,
                                  .count = n,
                                  .draws = part->draws,
                                  .tallies = b->tallies,
                                  .held_tallies = b->held_tallies,
                                  .read = read,
                                  .bad = bad,
                                  .templates = templates};
    MB_TRY(mb_shard_table_json(&table, &json));
    const bool is_asked = mb_shard_mix_is_asked(part->options, part->inputs, n);
    if (is_asked || n > 1) mb_shard_table_log(json);
    if (is_asked) {
        MB_TRY(mb_json_print(json, 0, false, &text));
        MB_TRY(mb_shard_writer_text(join->writer, "mix", mb_str_text(&text)));
        if (join->held_writer != NULL)
            MB_TRY(mb_shard_writer_text(join->held_writer, "mix", mb_str_text(&text)));
    }
    if (part->options->opt_mix != NULL) *part->options->opt_mix = json_incref(json);
done:
    json_decref(json);
    mb_str_destroy(&text);
    mb_free(read);
    mb_free(bad);
    mb_free(templates);
    return status;
}

static mb_status check_rest(const builder *b)
{
    mb_status status = MB_OK;
    int64_t written = 0;
    for (int64_t i = 0; i < b->part.input_count; ++i) {
        written += b->tallies[i].samples;
        if (b->tallies[i].samples + b->held_tallies[i].samples == 0 && b->part.draws[i].asked != 0)
            mb_warn("%s: no record of '%s' could be used; see %s.bad.jsonl", b->part.inputs[i].path,
                    b->part.inputs[i].name, b->out_path);
    }
    if (written == 0)
        MB_RAISE(MB_EDATA, "dataset.validation holds back every record that could be used; make it smaller");
done:
    return status;
}

/* Rank 0 alone. */
static mb_status join_parts(builder *b, const int64_t *sums)
{
    mb_status status = MB_OK;
    char *validation = NULL, *folder = NULL;
    int64_t bytes = 0;
    mb_shard_join join = {.info = &b->part.info,
                          .draws = b->part.draws,
                          .parts = b->parts,
                          .rounds = b->rounds,
                          .ranks = mb_comm_size(b->comm),
                          .out_path = b->out_path,
                          .tallies = b->tallies,
                          .held_tallies = b->held_tallies};
    MB_TRY(name_validation(b, &validation));
    join.opt_validation_path = validation;
    if (b->part.options->shuffle) {
        for (int64_t p = 0; p < b->rounds * join.ranks; ++p) {
            int64_t size = 0;
            MB_TRY(mb_files_size(b->parts[p], &size));
            bytes += size;
        }
        if ((folder = mb_str_format("%s.parts/shuffle", b->out_path)) == NULL)
            MB_RAISE(MB_ENOMEM, "no memory for a path");
        MB_TRY(mb_files_check_space(b->out_path, bytes, "the records put aside for shuffling"));
    }
    join.opt_shuffle_folder = folder;
    join.shuffle_bytes = bytes;
    MB_TRY(mb_shard_join_run(&join));
    MB_TRY(check_rest(b));
    MB_TRY(set_counts(b, join.writer, b->tallies, sums));
    if (join.held_writer != NULL) MB_TRY(set_counts(b, join.held_writer, b->held_tallies, NULL));
    MB_TRY(report_mix(b, &join, sums));
    MB_TRY(mb_shard_writer_close(&join.writer));
    MB_TRY(mb_shard_writer_close(&join.held_writer));
done:
    mb_shard_writer_destroy(&join.writer);
    mb_shard_writer_destroy(&join.held_writer);
    mb_free(validation);
    mb_free(folder);
    return status;
}

/* ---- 5. run ---- */

static mb_status prepare_rank(builder *b, const mb_shard_build_options *options)
{
    mb_status status = MB_OK;
    char *folder = mb_str_format("%s.parts", b->out_path);
    if (folder == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    MB_TRY(mb_files_make_folders(folder));
    b->part.options = options;
    MB_TRY(mb_shard_part_open(&b->part));
    MB_NEW_ARRAY(b->tallies, b->part.input_count);
    MB_NEW_ARRAY(b->held_tallies, b->part.input_count);
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

static void sum_report(const builder *b, const int64_t *sums, mb_shard_build_report *out)
{
    for (int64_t i = 0; i < b->part.input_count; ++i) {
        out->bad += sums[3 * i + 1];
        out->skipped_long += sums[3 * i + 2];
        out->records += b->tallies[i].records;
        out->tokens += b->tallies[i].tokens;
        out->bytes += b->tallies[i].bytes;
        out->cut += b->tallies[i].cut;
        out->split += b->tallies[i].split;
        out->pairs += b->part.is_pairs ? b->tallies[i].samples : 0;
        out->validation_records += b->held_tallies[i].records;
        out->validation_tokens += b->held_tallies[i].tokens;
    }
}

static void close_builder(builder *b)
{
    mb_shard_part_close(&b->part);
    mb_free(b->units.data);
    mb_free(b->chosen.data);
    for (int64_t p = 0; p < b->rounds * mb_comm_size(b->comm); ++p) mb_free(b->parts[p]);
    mb_free(b->parts);
    mb_free(b->tallies);
    mb_free(b->held_tallies);
    mb_str_destroy(&b->notes);
}

mb_status mb_shard_build_run(mb_comm *comm, const mb_shard_build_options *options, const char *out_path,
                             mb_shard_build_report *out_report)
{
    mb_status status = MB_OK;
    const double started = mb_clock_seconds();
    builder b = {.comm = comm, .out_path = out_path};
    mb_shard_input *inputs = NULL;
    int64_t *sums = NULL;
    mb_shard_build_report total = {0};
    status = mb_shard_build_inputs(options, &inputs, &b.part.input_count);
    b.part.inputs = inputs;
    if (status == MB_OK) status = prepare_rank(&b, options);
    MB_TRY(mb_comm_agree(comm, status));
    MB_TRY(share_units(comm, &b.part, &b.units));
    MB_TRY(mb_shard_mix_plan(options, inputs, b.part.input_count, b.part.draws));
    MB_NEW_ARRAY(sums, 3 * b.part.input_count);
    MB_TRY(write_rounds(&b, sums));
    if (mb_comm_rank(comm) == 0) status = join_parts(&b, sums);
    MB_TRY(mb_comm_agree(comm, status));
    if (mb_comm_rank(comm) == 0) MB_TRY(remove_parts(out_path));
    sum_report(&b, sums, &total);
    MB_TRY(mb_comm_bcast(comm, &total, sizeof total, 0));
    *out_report = total;
    out_report->seconds = mb_clock_seconds() - started;
done:
    close_builder(&b);
    mb_shard_build_free_inputs(&inputs, b.part.input_count);
    mb_free(sums);
    return status;
}

/* ---- 6. rendering ---- */

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

/* ---- 7. tokenizer ---- */

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
