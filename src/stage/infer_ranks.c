/* infer_ranks: which ranks answer together. */
#include "stage/infer_ranks.h"

#include "base/memory.h"

mb_status mb_infer_ranks_open(mb_comm *comm, int64_t members, bool is_spread, mb_infer_ranks *out_ranks)
{
    mb_status status = MB_OK;
    mb_infer_ranks ranks = {.peers = comm, .models = mb_comm_size(comm), .is_first = true};
    const int size = mb_comm_size(comm), rank = mb_comm_rank(comm);
    if (!is_spread) goto done;
    if (members < 2)
        MB_RAISE(MB_EUSAGE, "fuse.members_on=ranks is for fused models, and this one has no members");
    if (size % members != 0)
        MB_RAISE(MB_EUSAGE,
                 "fuse.members_on=ranks: %d rank%s cannot hold models of %lld members each; start a multiple "
                 "of %lld ranks",
                 size, size == 1 ? "" : "s", (long long)members, (long long)members);
    ranks.models = size / members;
    ranks.is_first = rank % members == 0;
    MB_TRY(mb_comm_split(comm, (int)(rank / members), &ranks.group));
    MB_TRY(mb_comm_split(comm, (int)(rank % members), &ranks.own));
    ranks.peers = ranks.own;
done:
    if (status != MB_OK) mb_infer_ranks_close(&ranks);
    *out_ranks = ranks;
    return status;
}

void mb_infer_ranks_close(mb_infer_ranks *ranks)
{
    mb_comm_destroy(&ranks->group);
    mb_comm_destroy(&ranks->own);
    *ranks = (mb_infer_ranks){0};
}

/* Of the members that are on this rank. */
static mb_status ends_here(mb_lm *lm, const mb_tokenizer *tokenizer, mb_ids *ends)
{
    mb_status status = MB_OK;
    if (!mb_lm_is_fused(lm)) return mb_generate_ends_read(mb_lm_base(lm), tokenizer, ends);
    for (int64_t m = 0; m < mb_fuse_members(lm); m++) {
        const mb_lm *member = mb_fuse_member_lm(lm, m);
        if (member != NULL) MB_TRY(mb_generate_ends_read(mb_lm_base(member), tokenizer, ends));
    }
done:
    return status;
}

static mb_status append_new(const uint32_t *ids, int64_t n, mb_ids *ends)
{
    mb_status status = MB_OK;
    for (int64_t i = 0; i < n; i++) {
        bool is_known = false;
        for (int64_t k = 0; k < ends->count; k++) is_known = is_known || ends->data[k] == ids[i];
        if (!is_known) MB_TRY(mb_ids_append(ends, ids[i]));
    }
done:
    return status;
}

mb_status mb_infer_ranks_ends(const mb_infer_ranks *ranks, mb_lm *lm, const mb_tokenizer *tokenizer,
                              mb_ids *ends)
{
    mb_status status = MB_OK;
    mb_ids here = {0};
    void *all = NULL;
    int64_t offsets[MB_FUSE_MAX_MEMBERS + 1] = {0};
    status = ends_here(lm, tokenizer, &here);
    if (ranks->group == NULL) {
        MB_TRY(status);
        MB_TRY(append_new(here.data, here.count, ends));
        goto done;
    }
    MB_TRY(mb_comm_agree(ranks->group, status));
    MB_TRY(
        mb_comm_allgatherv(ranks->group, here.data, (size_t)here.count * sizeof *here.data, &all, offsets));
    MB_TRY(append_new(all, offsets[mb_comm_size(ranks->group)] / (int64_t)sizeof(uint32_t), ends));
done:
    mb_free(all);
    mb_ids_destroy(&here);
    return status;
}
