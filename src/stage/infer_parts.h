/* infer_parts: the answers of a run, in parts that are whole or absent, joined in input order.
 *
 * Layer: stage.  Uses: comm, serve, router_stats.
 *
 * A part is a run of records, cut by their number alone; ranks take parts from a queue and write each
 * aside, flushed and renamed, when its last answer is there. A run that goes on does only what is missing.
 * Part files: <folder>/<key>-<first>-<end>.jsonl (lines of the result), .bad.jsonl (records left out), and
 * with shares of members .stats.h5.
 */
#ifndef MB_INFER_PARTS_H
#define MB_INFER_PARTS_H

#include "comm/comm.h"
#include "serve/generate.h"
#include "stage/infer_prompts.h"
#include "stage/router_stats.h"

typedef struct mb_infer_parts mb_infer_parts;

/* Collective. key: what the answers depend on; the same on all ranks. opt_shape: of the members' shares. */
mb_status mb_infer_parts_open(mb_comm *comm, mb_infer_prompts *prompts, const mb_infer_program *options,
                              const mb_router_shape *opt_shape, const char *folder, const char *key,
                              int64_t longest, mb_infer_parts **out_parts);
/* Collective. */
void mb_infer_parts_close(mb_infer_parts **parts);
/* Where a generator gets its prompts and puts its answers. Borrows parts: NULL on the ranks of a group that
 * only follow its first. */
mb_generate_source mb_infer_parts_source(mb_infer_parts *parts, bool has_shares, mb_comm *opt_group);
/* One rank, when all parts are there: the result, and what was left out, as one file each. */
mb_status mb_infer_parts_join(const mb_infer_parts *parts, const char *path, const char *bad_path,
                              int64_t *out_lines, int64_t *out_bad);
/* The same of the members' shares: their file (router_stats_file.h), and means over all prompts and answers,
 * [M] each. */
mb_status mb_infer_parts_join_shares(const mb_infer_parts *parts, const char *path, const char *model_hash,
                                     double *out_prompt, double *out_answer);

#endif
