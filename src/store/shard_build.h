/* shard_build: JSONL, JSON, CSV files -> one token shard, on any number of ranks, with the same result.
 *
 * Layer: store.  Uses: base, text, comm, shard.
 *
 * The inputs are cut into units (runs of records of plain JSONL files; whole files otherwise) in input order;
 * ranks take contiguous runs of units and write part shards, which rank 0 joins in order. Bad records follow
 * on_bad, long ones on_long; every one that is left out is counted and stands in `<out>.bad.jsonl` with
 * source, index, line, byte offset and reason.
 */
#ifndef MB_SHARD_BUILD_H
#define MB_SHARD_BUILD_H

#include "base/option.h"
#include "comm/comm.h"
#include "text/dialog.h"
#include "text/template.h"
#include "text/tokenizer.h"

typedef struct mb_shard_build_options {
    char *inputs; /* dataset.inputs: "name=path,name=path" or a list of groups {name, path, form, fields,
                     type, samples} */
    char *form;   /* dataset.form auto|text|io|alpaca|messages|sharegpt|qa: for inputs that do not say */
    char *fields; /* dataset.fields "text=body" likewise */
    char *tmpl;   /* dataset.template plain */
    char *template_dir;       /* dataset.template_dir conf/template */
    char *tokenizer_path;     /* tokenizer.path */
    int64_t max_length;       /* dataset.max_length 2048 tokens */
    int64_t min_length;       /* dataset.min_length 2 tokens: shorter ones are bad */
    char *on_bad;             /* dataset.on_bad skip|fail */
    char *on_long;            /* dataset.on_long cut|split|skip */
    char *loss_on;            /* dataset.loss_on answers|all */
    bool append_eos;          /* dataset.append_eos true */
    int64_t max_record_bytes; /* dataset.max_record_bytes 64 MiB */
    /* No options, for embeddings: */
    const char *opt_prefix; /* put in front of every text; nothing counts in the loss then */
    bool is_bare;           /* without the tokenizer's special tokens */
} mb_shard_build_options;
const mb_option *mb_shard_build_option_table(int64_t *out_count);

/* One input after parsing `inputs`. Strings owned. */
typedef struct mb_shard_input {
    char *name, *path, *form, *fields, *type;
    int64_t samples; /* at most so many records, 0 all */
} mb_shard_input;
/* defaults fill form and fields. MB_EUSAGE for duplicates and unknown members; MB_ENOTFOUND for a missing
 * file. */
mb_status mb_shard_build_inputs(const mb_shard_build_options *options, mb_shard_input **out_inputs,
                                int64_t *out_count);
void mb_shard_build_free_inputs(mb_shard_input **inputs, int64_t count);

typedef struct mb_shard_build_report {
    int64_t records, tokens, bytes; /* written */
    int64_t bad, cut, split, skipped_long;
    double seconds;
} mb_shard_build_report;

/* Collective. */
mb_status mb_shard_build_run(mb_comm *comm, const mb_shard_build_options *options, const char *out_path,
                             mb_shard_build_report *out_report);

/* Is it JSONL as it stands (not packed), whose records can be read by their place? */
bool mb_shard_build_is_plain(const char *path);

/* The template of the options. A template_dir that is not there is looked for beside the program too
 * (../../<dir> in a source tree, ../share/moebatch/<dir> where it is installed). */
mb_status mb_shard_build_template(const mb_shard_build_options *options, mb_template **out_template);
/* Where that folder is: a new block. NULL: no memory. */
char *mb_shard_build_template_folder(const char *template_dir);

/* Render one record as build does (for selection): text in rendered. */
mb_status mb_shard_build_render(const json_t *record, const mb_shard_input *input, const mb_template *tmpl,
                                const mb_tokenizer *tokenizer, bool learn_all, mb_dialog *dialog,
                                mb_rendered *rendered);

/* Learn a byte-level BPE from the inputs' rendered text (one process). */
mb_status mb_shard_build_tokenizer(const mb_shard_build_options *options, int64_t vocab_size,
                                   int64_t min_frequency, const char *folder);

#endif
