/* gate_settings: the keys of moe-gate.
 *
 * Layer: stage.  Uses: learn (gate), base.
 */
#ifndef MB_GATE_SETTINGS_H
#define MB_GATE_SETTINGS_H

#include "base/option.h"
#include "learn/gate.h"

/* moe-gate's own struct. */
typedef struct mb_gate_settings {
    mb_gate_options gate;
    char *train, *test, *outputs; /* gate.train, gate.test, outputs.path: outputs, or lists name=answers */
    char *embeddings, *path;      /* gate.embeddings, gate.path */
    char *targets;                /* gate.targets soft|best|likelihood */
    char *experts, *experts_data; /* gate.experts, gate.experts_data */
    char *top_k;                  /* gate.top_k: list */
    int64_t draws;                /* gate.draws */
    double level;                 /* gate.level */
} mb_gate_settings;
const mb_option *mb_gate_settings_table(int64_t *out_count);

#endif
