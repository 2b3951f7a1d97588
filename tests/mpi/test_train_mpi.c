/* test_train_mpi: training on this number of ranks: the same weights everywhere, near to those of the host's
 * backend, and after a stop and a resume the same bits. Rank 0 prints "# hash ..." lines, which run.sh
 * compares over numbers of ranks.
 *
 *     test_train_mpi [BACKEND]
 */
#include "../unit/learn/fixture.h"

#include "base/hash.h"
#include "mpi_tap.h"

static char folder[256];

static char *path_of(const char *name)
{
    return mb_test_path(folder, name);
}

/* One folder for all ranks, filled by the first. */
static void make_inputs(const mpi_tap *tap)
{
    if (mb_comm_rank(tap->comm) == 0) {
        char *made = mb_test_folder_make(), *path;
        snprintf(folder, sizeof folder, "%s", made);
        mb_free(made);
        mb_free(fix_shard(folder, "plain.h5", FIX_RECORDS, false));
        for (int moe = 0; moe < 2; moe++) {
            mb_ops *ops = NULL;
            mb_lm *lm = NULL;
            mb_arch arch = fix_arch(moe ? 4 : 0, moe ? 2 : 0);
            arch.ffn = moe ? 256 : 1024; /* more than three blocks of MB_LANES_BLOCK */
            path = path_of(moe ? "moe" : "dense");
            mb_test_ok(mb_files_make_folders(path));
            mb_test_ok(mb_ops_create("ref", 1, &ops));
            mb_test_ok(mb_lm_create(ops, &arch, "none", 7, &lm));
            mb_test_ok(mb_lm_write(lm, path, "full", MB_F32));
            mb_lm_destroy(&lm);
            mb_ops_destroy(&ops);
            mb_free(path);
        }
    }
    mb_test_ok(mb_comm_bcast(tap->comm, folder, sizeof folder, 0));
}

static void remove_inputs(const mpi_tap *tap)
{
    mb_test_ok(mb_comm_barrier(tap->comm));
    if (mb_comm_rank(tap->comm) == 0) mb_test_ok(mb_files_remove_tree(folder));
}

typedef struct train_case {
    const char *model, *train, *objective;
    int64_t zero, microbatches;
    bool is_stopped;
} train_case;

static fix_run train_one(const mpi_tap *tap, const train_case *c, const char *backend, bool is_stopped)
{
    mb_trainer_options options = fix_trainer_options();
    mb_objective_options choice = fix_objective_options(c->objective);
    char name[128], *model = path_of(c->model), *shard = path_of("plain.h5");
    snprintf(name, sizeof name, "%s_%s_%s_%d_%d_%d", backend, c->model, c->objective, (int)c->zero,
             (int)c->microbatches, is_stopped);
    fix_run run = {.train = c->train,
                   .objective = c->objective,
                   .shard = shard,
                   .folder = path_of(name),
                   .backend = backend,
                   .opt_model = model,
                   .opt_objective_options = &choice,
                   .shard_model = c->zero == 3};
    options.batch_size = 2;
    options.weight_decay = 0.1;
    options.adam_epsilon = 1e-6; /* so that the rounding of a gradient near 0 is not made a whole step */
    options.gradient_accumulation_steps = c->microbatches;
    options.max_steps = 2;
    options.zero = c->zero;
    if (is_stopped) { /* rank 0 alone is told to stop, inside the first step or the second */
        run.stop_after = mb_comm_rank(tap->comm) == 0 ? 2 : 0;
        while (fix_train_in(tap->comm, &run, &options) == MB_ESTOPPED) run.stop_after = 0;
    } else {
        mb_test_ok(fix_train_in(tap->comm, &run, &options));
    }
    run.opt_objective_options = NULL;
    mb_free(model);
    mb_free(shard);
    mb_free((void *)run.folder);
    fix_objective_free(&choice);
    fix_trainer_free(&options);
    return run;
}

static double most_difference(const fix_run *a, const fix_run *b)
{
    double most = 0;
    for (int64_t i = 0; i < a->count; i++) {
        const double d = fabs((double)a->trained[i] - (double)b->trained[i]);
        if (!(d <= most)) most = d;
    }
    return most;
}

static void test_case(mpi_tap *tap, const train_case *c)
{
    char note[200], hash[MB_HASH_TEXT], first[MB_HASH_TEXT], name[120];
    const char *backend = mb_ops_name(tap->ops);
    snprintf(name, sizeof name, "%s %s %s zero=%d micro-batches=%d", backend, c->model, c->objective,
             (int)c->zero, (int)c->microbatches);
    fix_run run = train_one(tap, c, backend, false), host = train_one(tap, c, "ref", false);
    mb_hash_bytes(run.trained, (size_t)run.count * sizeof *run.trained, hash);
    memcpy(first, hash, sizeof hash);
    bool ok = mb_comm_bcast(tap->comm, first, sizeof first, 0) == MB_OK;
    tap_check(tap, ok && strcmp(first, hash) == 0, "%s: the same weights on all ranks", name);
    const double most = most_difference(&run, &host);
    tap_check(tap,
              run.count == host.count && most <= 1e-4 && fabs(run.report.loss - host.report.loss) <= 1e-5,
              "%s: as on the host (loss %.6f and %.6f, weights differ by %.1e)", name, run.report.loss,
              host.report.loss, most);
    if (c->is_stopped) {
        fix_run again = train_one(tap, c, backend, true);
        ok = again.count == run.count &&
             memcmp(again.trained, run.trained, (size_t)run.count * sizeof *run.trained) == 0;
        tap_check(tap, ok, "%s: stopped inside a step and resumed, the same bits", name);
        mb_free(again.trained);
    }
    snprintf(note, sizeof note, "hash train %s %s %a", name, hash, run.report.loss);
    for (char *p = note + strlen("hash "); p < note + strlen("hash train ") + strlen(name); p++)
        if (*p == ' ') *p = '_'; /* run.sh takes the words after the name as the value */
    tap_note(tap, note);
    mb_free(run.trained);
    mb_free(host.trained);
}

int main(int argc, char **argv)
{
    static const train_case cases[] = {{"dense", "all", "lm", 1, 4, true},
                                       {"moe", "all", "lm", 1, 8, false},
                                       {"moe", "router", "router_warmup", 1, 4, false},
                                       {"moe", "all", "lm", 2, 4, false},
                                       {"moe", "all", "lm", 3, 4, true}};
    mpi_tap tap = {0};
    int code;
    setenv("MB_LOG", "error", 0);
    if (!tap_open(&tap, &argc, &argv, &code)) return code;
    make_inputs(&tap);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) test_case(&tap, &cases[i]);
    remove_inputs(&tap);
    code = tap_end(&tap);
    tap_close(&tap);
    if (mb_memory_live_blocks() != 0) {
        fprintf(stderr, "# %lld blocks leaked\n", (long long)mb_memory_live_blocks());
        code = 1;
    }
    return code;
}
