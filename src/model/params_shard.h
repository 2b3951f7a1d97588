/* params_shard: a model's tensors cut over the ranks, brought in block by block (ZeRO-3). Used by params.c
 * alone.
 *
 * Layer: model.  Uses: comm (window), ops, params.
 *
 * Every rank's window holds its piece of each block's frozen bytes (a block is cut into R pieces of whole
 * 64-byte lines, so memory is even) and the f32 trained elements it owns (whole 65,536-element blocks, as
 * lanes.h cuts them, so that the optimiser works on them in place). Acquire copies a block into a slot and
 * points its parameters there; release gives the slot up, together with packed forms. Slots keep what they
 * hold until they are needed again or values change. Reads are one-sided: ranks need not be in step, so any
 * rank may score or write what it likes.
 *
 * Windows are the host's memory. Where the backend's is a device's, slots lie there and a block goes up when
 * it is acquired; the owned trained elements lie there too, and sync brings them down into the window.
 */
#ifndef MB_PARAMS_SHARD_H
#define MB_PARAMS_SHARD_H

#include "comm/comm.h"
#include "model/params.h"

typedef struct mb_params_shard mb_params_shard;

/* Collective. list [count] is borrowed and must stay where it is; blocks -1..layers; offsets in it are laid
 * out already. comm and ops are borrowed. */
mb_status mb_params_shard_create(mb_comm *comm, mb_ops *ops, mb_param *list, int64_t count, int64_t layers,
                                 mb_params_shard **out_shard);
void mb_params_shard_destroy(mb_params_shard **shard); /* collective */

mb_status mb_params_shard_acquire(mb_params_shard *shard, int64_t block);
void mb_params_shard_release(mb_params_shard *shard, int64_t block);
/* Read the stored bytes of one parameter (mb_param.bytes) into the host's memory, or put those in that this
 * rank keeps. */
mb_status mb_params_shard_read(mb_params_shard *shard, const mb_param *param, void *out);
mb_status mb_params_shard_put(mb_params_shard *shard, const mb_param *param, const void *bytes);
/* Trained elements this rank owns, from element `first` of the trained space on, in the backend's
 * memory. */
float *mb_params_shard_owned(mb_params_shard *shard, int64_t first);
/* Collective: own parts were changed; slots are stale. */
mb_status mb_params_shard_sync(mb_params_shard *shard);
/* Fetch the next block while one is used; done anyway where ranks are on several nodes. */
void mb_params_shard_set_ahead(mb_params_shard *shard);
bool mb_params_shard_is_ahead(const mb_params_shard *shard);
/* Bytes of this rank's window, those of frozen pieces among them, and the most its slots held. */
size_t mb_params_shard_frozen_bytes(const mb_params_shard *shard);
size_t mb_params_shard_window_bytes(const mb_params_shard *shard);
size_t mb_params_shard_slot_peak_bytes(const mb_params_shard *shard);

#endif
