/* reference: log-probabilities of a preference shard's records under the reference policy, from a score file
 * with the columns logprob and targets (moe-score score.scores=logprob).
 *
 * Layer: learn.  Uses: base, tensor, store (scores, shard, contenthash).
 * Source: Rafailov et al. (2023) Direct Preference Optimization, eq. 7: log pi_ref(y | x).
 *
 * The file says by content hashes what it was computed from. Opening compares all of it with what is to be
 * trained and refuses (MB_EDATA) what does not fit, naming each thing that differs and the command that
 * makes the right file: a reference of other data, another tokenizer, template, length or model gives rewards
 * that are wrong and look right.
 */
#ifndef MB_REFERENCE_H
#define MB_REFERENCE_H

#include <stdbool.h>
#include <stdint.h>

#include "store/shard.h"
#include "tensor/tensor.h"

typedef struct mb_reference mb_reference;

/* path: a score file with logprob and targets. Always checked against the shard's content, tokenizer and
 * template, and against max_length (0: records as they stand): every record must be cut alike; unless
 * any_model also against model_hash (mb_lm_hash; or of the folder alone), opt_adapter_hash (content hash
 * of the PEFT folder on top; NULL or "": none, or counted in model_hash) and dtype of computing. Reads
 * both columns into memory (16 bytes per record). The shard is not kept. MB_EDATA names what differs;
 * MB_ENOTFOUND: no such file or no such column; MB_EFORMAT: not a score file. Not collective: every rank
 * opens it for itself, under mb_comm_agree. */
mb_status mb_reference_open(const char *path, mb_shard *shard, const char *model_hash,
                            const char *opt_adapter_hash, mb_dtype dtype, bool any_model, int64_t max_length,
                            mb_reference **out_reference);
void mb_reference_close(mb_reference **reference);
int64_t mb_reference_count(const mb_reference *reference);
/* Sum over the record's loss-mask targets of ln p, and their number; record: the shard's number, 0 ..
 * count - 1. */
double mb_reference_logprob(const mb_reference *reference, int64_t record);
int64_t mb_reference_targets(const mb_reference *reference, int64_t record);
/* Content hash of the file, for settings keys and the record. */
const char *mb_reference_hash(const mb_reference *reference);

#endif
