/* cluster_inputs: the files that moe-cluster reads.
 *
 * Layer: stage.  Uses: cluster_options, program, store.
 */
#ifndef MB_CLUSTER_INPUTS_H
#define MB_CLUSTER_INPUTS_H

#include "choose/rows.h"
#include "stage/cluster_options.h"
#include "stage/program.h"
#include "store/clusters.h"

/* Names and paths of the records' files: those of dataset.inputs, else those the embeddings name. */
typedef struct mb_cluster_inputs {
    char *embeddings; /* the file */
    int64_t count;
    char **names, **paths; /* [count] */
} mb_cluster_inputs;

/* Before the run is begun: a file of embeddings that is not there leaves no names. */
mb_status mb_cluster_inputs_read(const mb_cluster_program *own, mb_cluster_inputs *out_inputs);
void mb_cluster_inputs_reset(mb_cluster_inputs *inputs);

/* Paths by source of the records: out_paths [source_count], borrowed. MB_EUSAGE: a source without a file;
 * MB_EDATA: where done.json beside the embeddings tells, a file with other content than was embedded. Rank 0.
 * */
mb_status mb_cluster_inputs_match(const mb_program *program, const mb_cluster_inputs *inputs,
                                  const mb_cluster_records *records, const char **out_paths);

/* This rank's rows (data: mb_free). */
mb_status mb_cluster_inputs_rows(mb_program *program, const mb_embeddings *embeddings, mb_rows *out_rows);

/* The centres of centres.path [k, width] (mb_free), of the width given. */
mb_status mb_cluster_inputs_centres(const char *path, int64_t width, float **out_centres, int64_t *out_k);

/* cluster.k in rising order (mb_free). MB_EUSAGE: not numbers from 1 on, or one twice. */
mb_status mb_cluster_inputs_numbers(const char *list, int64_t **out_numbers, int64_t *out_count);

#endif
