/* routing_share_files: measured routing as routing.h5, as a summary in JSON and as a table in the log.
 *
 * Layer: measure.  Uses: store (h5).
 */
#ifndef MB_ROUTING_SHARE_FILES_H
#define MB_ROUTING_SHARE_FILES_H

#include "base/json.h"
#include "measure/routing_share.h"

/* Format "moebatch-routing" (docs/formats.md). model_hash, shard_hash: of what was measured. One process. */
mb_status mb_routing_share_files_write(const mb_routing_share_result *result, const char *model_hash,
                                       const char *shard_hash, const char *path);
/* A new object: types, layers, entropies, information under both weightings beside what permuted types give;
 * null for what is not a number. */
mb_status mb_routing_share_files_summary(const mb_routing_share_result *result, json_t **out_summary);
void mb_routing_share_files_log(const mb_routing_share_result *result);

#endif
