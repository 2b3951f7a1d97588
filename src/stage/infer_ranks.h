/* infer_ranks: which ranks answer together: every rank by itself, or groups whose ranks hold a member of a
 * fused model each.
 *
 * Layer: stage.  Uses: comm, serve (generate), model (fuse).
 */
#ifndef MB_INFER_RANKS_H
#define MB_INFER_RANKS_H

#include "comm/comm.h"
#include "model/fuse.h"
#include "serve/generate.h"

typedef struct mb_infer_ranks {
    mb_comm *group; /* the ranks of one model, rank m with member m; NULL: this rank has all of it */
    mb_comm *peers; /* the ranks that stand where this one does in their groups; without groups all ranks */
    mb_comm *own;   /* peers, where they are a group of their own */
    int64_t models; /* groups, or ranks */
    bool is_first;  /* reads prompts and writes answers, for its group */
} mb_infer_ranks;

/* Collective. members: of the model; is_spread: one on each rank. MB_EUSAGE: ranks that make no whole
 * groups. */
mb_status mb_infer_ranks_open(mb_comm *comm, int64_t members, bool is_spread, mb_infer_ranks *out_ranks);
/* Collective. */
void mb_infer_ranks_close(mb_infer_ranks *ranks);

/* Tokens that end a text for any of the model's members; the same on all ranks of a group. Collective over
 * it. */
mb_status mb_infer_ranks_ends(const mb_infer_ranks *ranks, mb_lm *lm, const mb_tokenizer *tokenizer,
                              mb_ids *ends);

#endif
