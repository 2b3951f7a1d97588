/* fuse_ranks: members on the ranks of a group: rank m has member m, rank 0 mixes. What it made goes to
 * all, so that all go on with the same bits whatever machines they are on. */
#include "model/fuse_state.h"

bool mb_fuse_is_root(const struct mb_fuse *fuse)
{
    return fuse->group == NULL || mb_comm_rank(fuse->group) == 0;
}

mb_status mb_fuse_agree(const struct mb_fuse *fuse, mb_status status)
{
    return fuse->group != NULL ? mb_comm_agree(fuse->group, status) : status;
}

mb_status mb_fuse_gather(const struct mb_fuse *fuse, void *const *data, const size_t *bytes)
{
    mb_status status = MB_OK;
    mb_comm_part part[MB_FUSE_MAX_MEMBERS];
    mb_comm_exchange *exchange = NULL;
    int64_t sends = 0, receives = 0;
    if (fuse->group == NULL) goto done;
    const int rank = mb_comm_rank(fuse->group);
    for (int64_t i = 0; i < fuse->actives; i++) {
        const int64_t m = fuse->active[i];
        if (m == 0 || (rank != 0 && rank != m)) continue;
        part[sends + receives] = (mb_comm_part){data[m], bytes[m], rank == 0 ? (int)m : 0};
        *(rank == 0 ? &receives : &sends) += 1;
    }
    MB_TRY(mb_comm_exchange_start(fuse->group, part, sends, part, receives, &exchange));
    MB_TRY(mb_comm_exchange_wait(&exchange));
done:
    return status;
}

mb_status mb_fuse_spread(const struct mb_fuse *fuse, int64_t member, void *opt_data, size_t bytes)
{
    if (fuse->group == NULL || opt_data == NULL || bytes == 0) return MB_OK;
    return mb_comm_bcast(fuse->group, opt_data, bytes, (int)member);
}
