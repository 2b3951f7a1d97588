/* embed_tokens: the tokens that moe-embed reads: a shard that is given, or one made of the inputs.
 *
 * Layer: stage.  Uses: program, measure (embedder), store (shard_build).
 */
#ifndef MB_EMBED_TOKENS_H
#define MB_EMBED_TOKENS_H

#include "measure/embedder.h"
#include "stage/program.h"

/* The shard given (MB_EDATA when of another tokenizer), or one of the inputs, made in the run folder and
 * found there by a run that goes on. Collective. */
mb_status mb_embed_tokens_open(mb_program *program, mb_embedder_model *model, mb_shard **out_shard);
/* How many records of the inputs were left out. */
int64_t mb_embed_tokens_bad(const mb_program *program);
/* Once the vectors are on record. */
void mb_embed_tokens_remove(const mb_program *program);

#endif
