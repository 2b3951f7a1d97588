/* labels: how well each score of a table separates known-good from known-bad records.
 *
 * Layer: stage.  Uses: store (scores), choose (AUC).
 *
 * labels.jsonl: {"source": name, "index": n, "kind": "good" | a kind of damage} per record; records without a
 * label are left out. Labels are read here and nowhere else.
 */
#ifndef MB_LABELS_H
#define MB_LABELS_H

#include "store/scores.h"

/* Write {"scores": {name: {"all": x, kind: x, ..., "layers": [x...], "flops_per_token": f}}, "counts": {kind:
 * n}, "best_layer"...} to json_path and log a table. */
mb_status mb_labels_auc(const mb_scores *scores, const char *labels_path, const char *json_path);

#endif
