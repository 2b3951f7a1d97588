/* shard_maker: one record of an input file -> tokens and loss mask, of one text or of both sides of a
 * preference pair. For shard_build, and for what reads
 * records as a shard would have them (measure/category).
 *
 * Layer: store.  Uses: base, text, shard_build (options).
 *
 * Pairs: both sides are rendered by the template; what stands before the shorter-prompted side's answer must
 * be equal, byte for byte, and is the prompt. The answers begin behind the ids of the prompt tokenised alone
 * where both sides begin with those ids. Where the tokenizer merges the prompt's end with the start of an
 * answer they begin at the first token that is not the prompt's on either side. So both sides have the same
 * tokens before the mask.
 */
#ifndef MB_SHARD_MAKER_H
#define MB_SHARD_MAKER_H

#include "store/shard_build.h"

typedef struct mb_shard_side {
    mb_dialog dialog;
    mb_rendered rendered;
    mb_ids ids;
    uint8_t *mask; /* [ids.count] 1: counts in the loss */
    int64_t mask_capacity;
} mb_shard_side;

typedef struct mb_shard_maker {
    const mb_shard_build_options *options; /* borrowed */
    mb_tokenizer *tokenizer;
    mb_tokenizer_scratch *scratch;
    bool is_pairs;
    mb_shard_side sides[2]; /* chosen (or the only one), rejected */
    mb_ids spans, prompt;   /* work */
} mb_shard_maker;

/* Opens options->tokenizer_path. maker: zeroed. */
mb_status mb_shard_maker_open(const mb_shard_build_options *options, bool is_pairs, mb_shard_maker *maker);
void mb_shard_maker_close(mb_shard_maker *maker);

/* Fill sides[0] (and sides[1] for pairs) from a record; of any length. Errors that are the record's (no form
 * fits, empty answer, prompts that differ, bytes that are no text ...): MB_EDATA, MB_ENOTFOUND, MB_EFORMAT,
 * MB_ERANGE. */
mb_status mb_shard_maker_make(mb_shard_maker *maker, const mb_shard_input *input, const mb_template *tmpl,
                              const json_t *record);
/* Targets of a side's first `count` tokens: those that count but for the first, which nothing predicts. */
int64_t mb_shard_maker_targets(const mb_shard_side *side, int64_t count);

#endif
