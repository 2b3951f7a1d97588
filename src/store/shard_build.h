/* shard_build: JSONL, JSON, CSV files -> one token shard, on any number of ranks, with the same result.
 *
 * Layer: store.  Uses: base, text, comm, shard.
 *
 * The inputs are cut into units (runs of records of plain JSONL files; whole files otherwise) in input order;
 * ranks take contiguous runs of units and write part shards, which rank 0 joins in order. Inputs may give a
 * part of their records, drawn by seed, and hold some back for validation (shard_mix.h). Bad records follow
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
                     type, template, weight, samples, validation} */
    char *form; /* dataset.form auto|text|io|alpaca|messages|sharegpt|qa|pair|oasst: of inputs without one */
    char *fields;         /* dataset.fields "text=body" likewise */
    char *tmpl;           /* dataset.template lines; auto: the tokenizer folder's own */
    char *template_dir;   /* dataset.template_dir conf/template */
    char *tokenizer_path; /* tokenizer.path */
    int64_t max_length;   /* dataset.max_length 2048 tokens */
    int64_t min_length;   /* dataset.min_length 2 tokens: shorter ones are bad */
    char *on_bad;         /* dataset.on_bad skip|fail */
    char *on_long;        /* dataset.on_long cut|split|skip */
    char *loss_on;        /* dataset.loss_on answers|all */
    char *pairs;          /* dataset.pairs auto|true|false: both sides of preference pairs. auto (NULL too):
                                 when every input says form "pair" */
    bool append_eos;      /* dataset.append_eos true */
    int64_t max_record_bytes; /* dataset.max_record_bytes 64 MiB */
    int64_t total;            /* dataset.total records of the inputs with a weight; 0: as many as there are */
    int64_t seed;             /* dataset.seed 42 */
    bool oversample;          /* dataset.oversample false: repeat records where there are too few */
    bool shuffle;             /* dataset.shuffle false: records of all inputs mixed, else in input order */
    double validation;        /* dataset.validation 0: records (>= 1) or share of each input held back */
    /* No options, for embeddings: */
    const char *opt_prefix; /* put in front of every text; nothing counts in the loss then */
    bool is_bare;           /* without the tokenizer's special tokens */
    json_t **opt_mix;       /* rank 0: the table of what was reached (shard_table.h), a new reference */
} mb_shard_build_options;
const mb_option *mb_shard_build_option_table(int64_t *out_count);

/* One input after parsing `inputs`. Strings owned. */
typedef struct mb_shard_input {
    char *name, *path, *form, *fields, *type;
    char *tmpl;        /* NULL: dataset.template */
    int64_t samples;   /* records to draw; 0: by weight, or all */
    double weight;     /* share of dataset.total; -1 none */
    double validation; /* as dataset.validation; -1: that */
} mb_shard_input;
/* defaults fill form and fields. MB_EUSAGE for duplicates and unknown members; MB_ENOTFOUND for a missing
 * file. */
mb_status mb_shard_build_inputs(const mb_shard_build_options *options, mb_shard_input **out_inputs,
                                int64_t *out_count);
/* Is it to be a shard of pairs? MB_EUSAGE when the inputs' forms and the options contradict. */
mb_status mb_shard_build_is_pairs(const mb_shard_build_options *options, const mb_shard_input *inputs,
                                  int64_t count, bool *out_is_pairs);
void mb_shard_build_free_inputs(mb_shard_input **inputs, int64_t count);

typedef struct mb_shard_build_report {
    int64_t records, tokens, bytes;                /* written */
    int64_t bad, cut, split, skipped_long;         /* of pairs: each counts once */
    int64_t pairs;                                 /* written */
    int64_t validation_records, validation_tokens; /* in validation.h5 */
    double seconds;
} mb_shard_build_report;

/* Collective. What is held back goes to validation.h5 beside out_path. */
mb_status mb_shard_build_run(mb_comm *comm, const mb_shard_build_options *options, const char *out_path,
                             mb_shard_build_report *out_report);

/* Is it JSONL as it stands (not packed), whose records can be read by their place? */
bool mb_shard_build_is_plain(const char *path);

/* The template of the options. A template_dir that is not there is looked for beside the program too
 * (../../<dir> in a source tree, ../share/moebatch/<dir> where it is installed). */
mb_status mb_shard_build_template(const mb_shard_build_options *options, mb_template **out_template);
/* The same by name. "auto" (as in the options): the shipped template that equals the tokenizer folder's own
 * chat template; MB_EUNSUPPORTED when none does or the folder has none. opt_tokenizer NULL: opened where
 * needed. */
mb_status mb_shard_build_template_named(const mb_shard_build_options *options, const char *name,
                                        const mb_tokenizer *opt_tokenizer, mb_template **out_template);
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
