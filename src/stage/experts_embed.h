/* experts_embed: questions, a few at a time, to the gate's logits: the model that made the gate's
 * embeddings, and the gate.
 *
 * Layer: stage.  Uses: measure (embedder, tile), learn (gate), model_options.
 *
 * How a text becomes a vector (pooling, prefix, length, normalising, size) is what gate.h5 says of the
 * embeddings it learned from: logits are those of moe-embed and moe-gate apply.
 */
#ifndef MB_EXPERTS_EMBED_H
#define MB_EXPERTS_EMBED_H

#include "learn/gate.h"
#include "stage/model_options.h"

typedef struct mb_experts_embed mb_experts_embed;
/* gate_path: for messages. All is borrowed. MB_EDATA: the model is not the one the gate was trained with.
 */
mb_status mb_experts_embed_open(const mb_model_options *model, const char *opt_tokenizer, mb_ops *ops,
                                const mb_gate *gate, const char *gate_path, int64_t tile_tokens,
                                mb_experts_embed **out_embed);
void mb_experts_embed_close(mb_experts_embed **embed);

/* logits [n, X]. Seconds of both halves. */
mb_status mb_experts_embed_run(mb_experts_embed *embed, const char *const *texts, int64_t n,
                               float *out_logits, double *out_embed_seconds, double *out_gate_seconds);

#endif
