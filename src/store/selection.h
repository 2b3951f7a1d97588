/* selection: write selected records as JSONL, the original objects' fields spliced in byte for byte.
 *
 * Layer: store.  Uses: base, text, shard_build, scores.
 *
 * One object per line, best first:
 *   {"source_dataset": name, "source_index": n, "text": rendered text, "quality_score": x, <members of the
 * original object as they stand in the file>} A member whose name is one of the four is written with
 * "source_" in front (again while that is taken too).
 */
#ifndef MB_SELECTION_H
#define MB_SELECTION_H

#include "store/scores.h"
#include "store/shard_build.h"

/* records: global numbers into the score table, best first. options: how the shard was built (inputs,
 * template, tokenizer). MB_EDATA when a source file changed since it was sharded (the record's bytes do not
 * render to the same hash): names file and record. */
mb_status mb_selection_write(const char *path, const mb_scores *scores, const mb_shard_build_options *options,
                             const int64_t *records, const double *quality, int64_t count);

/* Splice the members of object (n bytes of JSON text) into line, renaming taken names. Exposed for tests. */
mb_status mb_selection_splice(const char *object, size_t n, mb_str *line);

/* Read source_dataset/source_index/quality_score back (for comparisons): arrays to mb_free; key[i] = hash of
 * (dataset, index). */
mb_status mb_selection_read(const char *path, int64_t **out_keys, double **out_scores, int64_t *out_count);

#endif
