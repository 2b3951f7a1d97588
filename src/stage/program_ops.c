/* program_ops.c: a backend for every rank, the same for all.
 *
 * 1. what a rank sees   2. dividing a node's GPUs   3. the choice   4. creation
 */
#include "stage/program_ops.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"

/* One rank's part of what all must know. Plain bytes. */
typedef struct rank_view {
    char host[128], backend[32];
    mb_program_gpus gpus;
} rank_view;

/* ---- 1. what a rank sees ---- */

/* Parts of one GPU (MIG) have its bus id in common; CUDA shows a process one of them, which the
 * environment names. */
static void see_gpus(mb_program_gpus *gpus)
{
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    const char *part = visible != NULL && strncmp(visible, "MIG", 3) == 0 ? visible : "";
    const int n = mb_ops_gpu_count();
    char bus[MB_OPS_BUS_ID];
    for (int i = 0; i < n && gpus->count < MB_PROGRAM_GPUS; i++) {
        if (mb_ops_gpu_bus_id(i, bus) != MB_OK) break;
        snprintf(gpus->name[gpus->count++], MB_PROGRAM_GPU_NAME, "%.31s%.63s", bus, part);
    }
    mb_status_reset();
}

/* ---- 2. dividing a node's GPUs ---- */

/* Ranks before `rank` that took the GPU of this name. */
static int users_of(const mb_program_gpus *seen, const int *taken, int rank, const char *name)
{
    int users = 0;
    for (int i = 0; i < rank; i++)
        if (taken[i] >= 0 && strcmp(seen[i].name[taken[i]], name) == 0) users++;
    return users;
}

int mb_program_gpus_divide(const mb_program_gpus *seen, int ranks, int *out_gpu)
{
    int most = 0;
    for (int r = 0; r < ranks; r++) {
        int best = -1, best_users = 0;
        for (int g = 0; g < seen[r].count; g++) {
            const int users = users_of(seen, out_gpu, r, seen[r].name[g]);
            if (best >= 0 && users >= best_users) continue;
            best = g;
            best_users = users;
        }
        out_gpu[r] = best;
        if (best >= 0 && best_users + 1 > most) most = best_users + 1;
    }
    return most;
}

/* ---- 3. the choice ---- */

typedef struct gpu_choice {
    int gpu;     /* mine, -1 none */
    int sharing; /* ranks of the GPU with most, on my node */
    int ranks;   /* on my node */
    int without; /* of them, ranks that see no GPU */
    int seen;    /* GPUs that I see */
} gpu_choice;

/* My part of my node's division. */
static mb_status choose_gpu(const mb_program *program, const rank_view *views, gpu_choice *out)
{
    mb_status status = MB_OK;
    const int size = mb_comm_size(program->comm), me = mb_comm_rank(program->comm);
    mb_program_gpus *seen = NULL;
    int *gpu = NULL, mine = 0;
    gpu_choice choice = {.seen = views[me].gpus.count};
    MB_NEW_ARRAY(seen, size);
    MB_NEW_ARRAY(gpu, size);
    for (int i = 0; i < size; i++) {
        if (strcmp(views[i].host, views[me].host) != 0) continue;
        if (i == me) mine = choice.ranks;
        seen[choice.ranks++] = views[i].gpus;
    }
    choice.sharing = mb_program_gpus_divide(seen, choice.ranks, gpu);
    for (int i = 0; i < choice.ranks; i++) choice.without += gpu[i] < 0;
    choice.gpu = gpu[mine];
    *out = choice;
done:
    mb_free(seen);
    mb_free(gpu);
    return status;
}

static mb_status refuse_sharing(const gpu_choice *choice, const char *host)
{
    return mb_fail(
        MB_EUSAGE,
        "backend = cuda: %d ranks on %s, and up to %d of them would have one GPU between them; give each "
        "its own (srun --ntasks-per-node=<GPUs of a node> --gpus-per-task=1, fewer ranks under mpirun), "
        "or say gpu.share=true",
        choice->ranks, host, choice->sharing);
}

static bool has_own_gpu(const mb_program *program, const gpu_choice *choice)
{
    return choice->without == 0 && choice->sharing > 0 &&
           (choice->sharing == 1 || program->options.share_gpu);
}

/* "auto" on all ranks alike: GPUs where every one of the job's ranks has one. */
static mb_status settle_auto(const mb_program *program, const gpu_choice *choice, const char *host,
                             const char **out_backend)
{
    mb_status status = MB_OK;
    int64_t lack = !has_own_gpu(program, choice), any = choice->seen > 0;
    MB_TRY(mb_comm_allreduce_i64(program->comm, &lack, 1, MB_COMM_SUM));
    MB_TRY(mb_comm_allreduce_i64(program->comm, &any, 1, MB_COMM_SUM));
    if (lack == 0) {
        *out_backend = "cuda";
        goto done;
    }
    *out_backend = "auto";
    if (any == 0) goto done;
    mb_info("backend = auto takes the CPU: %lld of %d ranks have no GPU to themselves (%d ranks on %s, which "
            "sees %d); "
            "start one rank per GPU (srun --gpus-per-task=1), or say gpu.share=true",
            (long long)lack, mb_comm_size(program->comm), choice->ranks, host, choice->seen);
done:
    return status;
}

/* ---- 4. creation ---- */

/* Without GPUs in sight "auto" comes to a backend of the host, which it never takes where there are too
 * few. */
static mb_status create(mb_program *program, const char *backend, const gpu_choice *choice, const char *host)
{
    const bool is_cuda = strcmp(backend, "cuda") == 0, is_auto = strcmp(backend, "auto") == 0;
    const bool is_shared = choice->sharing > 1;
    if (is_cuda && choice->gpu >= 0 && is_shared && !program->options.share_gpu)
        return refuse_sharing(choice, host);
    const mb_ops_options options = {.backend = backend,
                                    .threads = (int)program->options.threads,
                                    .local_rank = is_cuda && choice->gpu > 0 ? choice->gpu : 0,
                                    .local_size = is_auto ? choice->seen + 1 : 1,
                                    .share_gpu = program->options.share_gpu && is_cuda};
    return mb_ops_create_with(&options, &program->ops);
}

/* "auto" on GPUs that turn out to be too old for it: the CPU, for all ranks. */
static mb_status create_auto(mb_program *program, const char *backend, const gpu_choice *choice,
                             const char *host)
{
    mb_status status = MB_OK, mine = create(program, backend, choice, host);
    int64_t unfit = strcmp(backend, "cuda") == 0 && mine == MB_EUNSUPPORTED;
    char why[512] = "another rank's GPU is of no use";
    if (unfit != 0) snprintf(why, sizeof why, "%s", mb_status_message());
    MB_TRY(mb_comm_allreduce_i64(program->comm, &unfit, 1, MB_COMM_SUM));
    if (unfit > 0) {
        mb_status_reset();
        mb_ops_destroy(&program->ops);
        mb_info("backend = auto takes the CPU: %s", why);
        mine = create(program, "auto", choice, host);
    }
    MB_TRY(mb_comm_agree(program->comm, mine));
done:
    return status;
}

/* Results of one rank on a GPU and of another on the CPU would not be those of either. */
static mb_status check_alike(mb_program *program, rank_view *views)
{
    mb_status status = MB_OK;
    const int me = mb_comm_rank(program->comm);
    rank_view mine = views[me];
    snprintf(mine.backend, sizeof mine.backend, "%s", mb_ops_name(program->ops));
    MB_TRY(mb_comm_allgather(program->comm, &mine, sizeof mine, views));
    for (int i = 1; i < mb_comm_size(program->comm); i++)
        if (strcmp(views[i].backend, views[0].backend) != 0)
            MB_RAISE(MB_EUSAGE,
                     "rank 0 on %s computes with %s and rank %d on %s with %s; say the same backend for all "
                     "(backend=cpu, or backend=cuda on nodes that all have GPUs)",
                     views[0].host, views[0].backend, i, views[i].host, views[i].backend);
done:
    return status;
}

mb_status mb_program_ops_create(mb_program *program)
{
    mb_status status = MB_OK;
    const int size = mb_comm_size(program->comm);
    const char *backend = program->options.backend;
    const bool may_be_cuda = strcmp(backend, "auto") == 0 || strcmp(backend, "cuda") == 0;
    rank_view mine = {.backend = ""}, *views = NULL;
    gpu_choice choice = {.gpu = -1, .ranks = 1};
    gethostname(mine.host, sizeof mine.host - 1);
    if (may_be_cuda) see_gpus(&mine.gpus);
    views = mb_calloc((size_t)size, sizeof *views);
    MB_TRY(mb_comm_agree(program->comm, views != NULL ? MB_OK : MB_ENOMEM));
    MB_TRY(mb_comm_allgather(program->comm, &mine, sizeof mine, views));
    MB_TRY(mb_comm_agree(program->comm, choose_gpu(program, views, &choice)));
    if (strcmp(backend, "auto") == 0) {
        MB_TRY(settle_auto(program, &choice, mine.host, &backend));
        MB_TRY(create_auto(program, backend, &choice, mine.host));
    } else {
        MB_TRY(mb_comm_agree(program->comm, create(program, backend, &choice, mine.host)));
    }
    MB_TRY(mb_comm_agree(program->comm, check_alike(program, views)));
done:
    mb_free(views);
    return status;
}
