/* shard_table: what a sharding reached, by input and by type: a JSON object for the record and the shard's
 * attribute, and lines for the log. Private to shard_build.
 *
 * Layer: store.  Uses: base, shard_mix, shard_join.
 */
#ifndef MB_SHARD_TABLE_H
#define MB_SHARD_TABLE_H

#include "store/shard_join.h"

typedef struct mb_shard_table {
    const mb_shard_build_options *options;
    const mb_shard_input *inputs;
    int64_t count;
    const mb_shard_draw *draws;
    const mb_shard_tally *tallies, *held_tallies;
    const int64_t *read, *bad; /* records looked at; of them left out (bad or too long) */
    const char *const *templates;
} mb_shard_table;

/* {"seed", "shuffle", "oversample", "inputs": [{"name", "type", "template", "available", "weight", "asked",
 * "left_out", "samples", "records", "tokens", "sample_share", "token_share", "validation_samples",
 * "validation_records", "validation_tokens"}], "types": [{"type", "samples", ...}]}; a new object. */
mb_status mb_shard_table_json(const mb_shard_table *table, json_t **out_json);
/* As lines of the log. */
void mb_shard_table_log(const json_t *json);

#endif
