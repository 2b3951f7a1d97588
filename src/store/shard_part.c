/* shard_part: see the header.
 *
 * Contents: 1. open, close  2. bad records  3. writing  4. one record  5. a part
 */
#include "store/shard_part.h"

#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "store/shard_join.h"

/* How often something is logged before it is only counted. */
#define BAD_SHOWN 5

/* ---- 1. open, close ---- */

static bool has_loss_mask(const mb_shard_part *p)
{
    return p->is_pairs || strcmp(p->options->loss_on, "answers") == 0;
}

static const char *template_name(const mb_shard_part *p, int64_t input)
{
    return p->inputs[input].tmpl != NULL ? p->inputs[input].tmpl : p->options->tmpl;
}

/* The first input of the same template. */
static int64_t first_alike(const mb_shard_part *p, int64_t input)
{
    int64_t i = 0;
    while (strcmp(template_name(p, i), template_name(p, input)) != 0) ++i;
    return i;
}

/* Templates of all inputs, and one hash for them. */
static mb_status open_templates(mb_shard_part *p)
{
    mb_status status = MB_OK;
    mb_hash *hash = NULL;
    bool is_one = true;
    MB_TRY(mb_hash_create(&hash));
    MB_NEW_ARRAY(p->templates, p->input_count);
    for (int64_t i = 0; i < p->input_count; ++i) {
        const int64_t alike = first_alike(p, i);
        if (alike < i)
            p->templates[i] = p->templates[alike];
        else
            MB_TRY(mb_shard_build_template_named(p->options, template_name(p, i), p->maker.tokenizer,
                                                 &p->templates[i]));
        is_one = is_one && mb_str_equal(mb_template_hash(p->templates[i]), mb_template_hash(p->templates[0]));
        mb_hash_add_text(hash, p->inputs[i].name);
        mb_hash_add_text(hash, mb_template_hash(p->templates[i]));
    }
    mb_hash_get(hash, p->template_hash);
    if (is_one) memcpy(p->template_hash, mb_template_hash(p->templates[0]), MB_HASH_TEXT);
done:
    mb_hash_destroy(&hash);
    return status;
}

static mb_status collect_types(mb_shard_part *p)
{
    mb_status status = MB_OK;
    bool any = false;
    MB_NEW_ARRAY(p->types, p->input_count);
    for (int64_t i = 0; i < p->input_count; ++i) any = any || p->inputs[i].type != NULL;
    for (int64_t i = 0; any && i < p->input_count; ++i) {
        if (p->inputs[i].type == NULL)
            MB_RAISE(
                MB_EUSAGE,
                "dataset.inputs: '%s' has no type while others have one; give all of them a type or none",
                p->inputs[i].name);
        bool is_new = true;
        for (int64_t j = 0; j < p->type_count; ++j)
            is_new = is_new && strcmp(p->types[j], p->inputs[i].type) != 0;
        if (is_new) p->types[p->type_count++] = p->inputs[i].type;
    }
done:
    return status;
}

static mb_status fill_info(mb_shard_part *p)
{
    mb_status status = MB_OK;
    MB_NEW_ARRAY(p->names, p->input_count);
    MB_NEW_ARRAY(p->files, p->input_count);
    for (int64_t i = 0; i < p->input_count; ++i) {
        p->names[i] = p->inputs[i].name;
        p->files[i] = p->inputs[i].path;
    }
    p->info = (mb_shard_info){.tokenizer_hash = mb_tokenizer_hash(p->maker.tokenizer),
                              .template_hash = p->template_hash,
                              .max_length = p->options->max_length,
                              .vocab_size = mb_tokenizer_count(p->maker.tokenizer),
                              .source_names = p->names,
                              .source_files = p->files,
                              .source_count = p->input_count,
                              .type_names = p->type_count > 0 ? (const char *const *)p->types : NULL,
                              .type_count = p->type_count,
                              .has_loss_mask = has_loss_mask(p),
                              .is_pairs = p->is_pairs};
done:
    return status;
}

mb_status mb_shard_part_open(mb_shard_part *p)
{
    mb_status status = MB_OK;
    if (p->options->min_length > p->options->max_length)
        MB_RAISE(MB_EUSAGE, "dataset.min_length is larger than dataset.max_length");
    MB_TRY(mb_shard_build_is_pairs(p->options, p->inputs, p->input_count, &p->is_pairs));
    MB_TRY(mb_shard_maker_open(p->options, p->is_pairs, &p->maker));
    MB_TRY(open_templates(p));
    MB_TRY(collect_types(p));
    MB_TRY(fill_info(p));
    MB_NEW_ARRAY(p->draws, p->input_count);
    MB_NEW_ARRAY(p->counts, p->input_count);
    mb_shard_mix_start(p->options, p->inputs, p->input_count, p->draws);
done:
    return status;
}

void mb_shard_part_close(mb_shard_part *p)
{
    mb_shard_writer_destroy(&p->writer);
    for (int64_t i = p->input_count - 1; p->templates != NULL && i >= 0; --i)
        if (first_alike(p, i) == i) mb_template_close(&p->templates[i]);
    mb_shard_maker_close(&p->maker);
    mb_str_destroy(&p->bad_lines);
    MB_FREE(p->templates);
    MB_FREE(p->types);
    MB_FREE(p->names);
    MB_FREE(p->files);
    MB_FREE(p->draws);
    MB_FREE(p->counts);
}

/* ---- 2. bad records ---- */

static mb_status note_bad(mb_shard_part *p, int64_t input, const mb_record *record, const char *problem)
{
    mb_status status = MB_OK;
    const mb_shard_input *in = &p->inputs[input];
    char place[48] = "";
    if (!mb_str_is_prefix(problem, "line "))
        snprintf(place, sizeof place, "line %lld: ", (long long)record->line);
    if (strcmp(p->options->on_bad, "fail") == 0)
        MB_RAISE(MB_EDATA,
                 "%s: line %lld (byte %lld): %s; mend the record, or leave such records out with "
                 "dataset.on_bad=skip",
                 in->path, (long long)record->line, (long long)record->byte_offset, problem);
    int64_t bad = 0;
    for (int64_t i = 0; i < p->input_count; ++i) bad += p->counts[i].bad;
    if (bad < BAD_SHOWN) mb_warn("%s: left out %s%s", in->path, place, problem);
    ++p->counts[input].bad;
    json_t *line = json_pack("{s:s, s:s, s:I, s:I, s:I, s:s}", "source", in->name, "path", in->path, "index",
                             (json_int_t)record->index, "line", (json_int_t)record->line, "byte_offset",
                             (json_int_t)record->byte_offset, "problem", problem);
    status = line == NULL ? mb_fail(MB_ENOMEM, "no memory for a note on a bad record")
                          : mb_json_print(line, 0, false, &p->bad_lines);
    json_decref(line);
    MB_TRY(status);
    MB_TRY(mb_str_add(&p->bad_lines, "\n"));
done:
    return status;
}

/* ---- 3. writing ---- */

static int64_t type_number(const mb_shard_part *p, const char *type)
{
    for (int64_t i = 0; i < p->type_count; ++i)
        if (mb_str_equal(p->types[i], type)) return i;
    return 0;
}

/* `count` tokens of a side from `first` on; flags as shard_join has them. */
static mb_status write_tokens(mb_shard_part *p, int64_t input, const mb_record *record,
                              const mb_shard_side *side, int64_t first, int64_t count, int32_t flags)
{
    const mb_str *text = &side->rendered.text;
    mb_shard_record out = {.tokens = side->ids.data + first,
                           .loss_mask = has_loss_mask(p) ? side->mask + first : NULL,
                           .count = count,
                           .source = (uint16_t)input,
                           .source_index = record->index,
                           .byte_offset = record->byte_offset,
                           .byte_length = (int64_t)record->length,
                           .text_bytes = (int64_t)text->length,
                           .record_hash = mb_hash_u64(text->data, text->length, (uint64_t)first),
                           .type = (uint16_t)type_number(p, p->inputs[input].type),
                           .label = flags};
    if (count < side->ids.count)
        out.text_bytes = (int64_t)((double)out.text_bytes * (double)count / (double)side->ids.count + 0.5);
    return mb_shard_writer_add(p->writer, &out);
}

static mb_status write_text(mb_shard_part *p, int64_t input, const mb_record *record)
{
    mb_status status = MB_OK;
    const mb_shard_side *side = &p->maker.sides[0];
    const int64_t n = side->ids.count, longest = p->options->max_length;
    if (n > longest && strcmp(p->options->on_long, "skip") == 0) {
        ++p->counts[input].skipped_long;
        goto done;
    }
    ++p->counts[input].good;
    if (n <= longest) {
        MB_TRY(write_tokens(p, input, record, side, 0, n, 0));
        goto done;
    }
    if (strcmp(p->options->on_long, "cut") == 0) {
        MB_TRY(write_tokens(p, input, record, side, 0, longest, MB_SHARD_JOIN_CUT));
        goto done;
    }
    for (int64_t first = 0; n - first >= p->options->min_length; first += longest)
        MB_TRY(write_tokens(p, input, record, side, first, n - first < longest ? n - first : longest,
                            MB_SHARD_JOIN_SPLIT));
done:
    return status;
}

/* Both sides, each cut behind its first max_length tokens; a pair of which one has no answer left is bad. */
static mb_status write_pair(mb_shard_part *p, int64_t input, const mb_record *record)
{
    mb_status status = MB_OK;
    const int64_t longest = p->options->max_length;
    int64_t counts[2];
    bool is_long = false;
    for (int s = 0; s < 2; ++s) {
        const int64_t n = p->maker.sides[s].ids.count;
        counts[s] = n < longest ? n : longest;
        is_long = is_long || n > longest;
    }
    if (is_long && strcmp(p->options->on_long, "skip") == 0) {
        ++p->counts[input].skipped_long;
        goto done;
    }
    for (int s = 0; s < 2; ++s) {
        if (mb_shard_maker_targets(&p->maker.sides[s], counts[s]) > 0) continue;
        char problem[96];
        snprintf(problem, sizeof problem, "no token of the %s answer is left%s",
                 s == 0 ? "chosen" : "rejected", is_long ? " within dataset.max_length" : "");
        MB_TRY(note_bad(p, input, record, problem));
        goto done;
    }
    ++p->counts[input].good;
    for (int s = 0; s < 2; ++s)
        MB_TRY(write_tokens(p, input, record, &p->maker.sides[s], 0, counts[s],
                            is_long ? MB_SHARD_JOIN_CUT : 0));
done:
    return status;
}

/* ---- 4. one record ---- */

static bool is_short(const mb_shard_part *p)
{
    const int sides = p->is_pairs ? 2 : 1;
    for (int s = 0; s < sides; ++s)
        if (p->maker.sides[s].ids.count < p->options->min_length) return true;
    return false;
}

static mb_status make_record(mb_shard_part *p, int64_t input, const mb_record *record)
{
    mb_status status = MB_OK;
    if (record->problem != NULL) {
        MB_TRY(note_bad(p, input, record, record->problem));
        goto done;
    }
    status = mb_shard_maker_make(&p->maker, &p->inputs[input], p->templates[input], record->json);
    if (status == MB_EDATA || status == MB_ENOTFOUND || status == MB_EFORMAT || status == MB_ERANGE) {
        char *problem = mb_strdup(mb_status_message());
        status = note_bad(p, input, record, problem != NULL ? problem : "bad");
        mb_free(problem);
        goto done;
    }
    MB_TRY(status);
    if (is_short(p))
        MB_TRY(note_bad(p, input, record, "too short (dataset.min_length)"));
    else if (p->is_pairs)
        MB_TRY(write_pair(p, input, record));
    else
        MB_TRY(write_text(p, input, record));
done:
    return status;
}

/* ---- 5. a part ---- */

static mb_status write_unit(mb_shard_part *p, const mb_shard_unit *u)
{
    mb_status status = MB_OK;
    mb_records *records = NULL;
    mb_record record;
    bool is_there = true;
    MB_TRY(mb_records_open(p->inputs[u->input].path, p->options->max_record_bytes, &records));
    if (u->byte_offset > 0) MB_TRY(mb_records_seek(records, u->byte_offset, u->index, u->index + 1));
    for (int64_t n = 0; is_there && (u->records < 0 || n < u->records); ++n) {
        if (!mb_shard_mix_is_candidate(&p->draws[u->input], u->index + n)) {
            int64_t at;
            MB_TRY(mb_records_pass(records, &at));
            is_there = at >= 0;
            continue;
        }
        MB_TRY(mb_records_read(records, &record));
        is_there = record.bytes != NULL;
        if (is_there) MB_TRY(make_record(p, u->input, &record));
    }
done:
    mb_records_close(&records);
    return status;
}

mb_status mb_shard_part_write(mb_shard_part *p, const mb_shard_unit *units, int64_t count, const char *path)
{
    mb_status status = MB_OK;
    mb_progress progress;
    mb_shard_info info = p->info;
    info.has_label = true; /* the flags */
    MB_TRY(mb_shard_writer_create(path, &info, &p->writer));
    mb_progress_start(&progress, "shard", "units", 0, count);
    for (int64_t i = 0; i < count; ++i) {
        MB_TRY(write_unit(p, &units[i]));
        mb_progress_step(&progress, i + 1, NULL);
    }
    mb_progress_end(&progress, count, NULL);
    MB_TRY(mb_shard_writer_close(&p->writer));
done:
    return status;
}
