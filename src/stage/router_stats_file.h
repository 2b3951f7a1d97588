/* router_stats_file: shares of members per answer as HDF5, written by parts and joined.
 *
 * Layer: stage.  Uses: router_stats, store (h5).
 *
 * Format "moebatch-router-stats" (docs/formats.md); a part is the same under the name
 * "moebatch-router-stats-part".
 */
#ifndef MB_ROUTER_STATS_FILE_H
#define MB_ROUTER_STATS_FILE_H

#include "stage/router_stats.h"
#include "store/h5.h"

typedef struct mb_router_stats_file mb_router_stats_file;

/* For writing, aside. opt_model, opt_tokenizer: hashes, given for the whole file and NULL for a part. */
mb_status mb_router_stats_file_create(const char *path, const mb_router_shape *shape, const char *opt_model,
                                      const char *opt_tokenizer, mb_router_stats_file **out_file);
mb_status mb_router_stats_file_add(mb_router_stats_file *file, const mb_router_query *query);
/* All that a part holds. */
mb_status mb_router_stats_file_append(mb_router_stats_file *file, const char *part);
/* Mean shares over the answers added so far, of prompts and answers, all stages alike, weighed by tokens;
 * NaN without any. */
void mb_router_stats_file_mean(const mb_router_stats_file *file, double *out_prompt, double *out_answer);
/* The file appears. */
mb_status mb_router_stats_file_close(mb_router_stats_file **file);
void mb_router_stats_file_destroy(mb_router_stats_file **file);

#endif
