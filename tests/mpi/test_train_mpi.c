/* test_train_mpi: training on this number of ranks: the same weights everywhere, near to those of the host's
 * backend, and after a stop and a resume the same bits. Rank 0 prints "# hash ..." lines (of the weights, the
 * loss, and the metrics with their validations), which run.sh compares over numbers of ranks. And the balance
 * over a step: the same value and gradient as one process gets from one micro-batch.
 *
 *     test_train_mpi [BACKEND]
 */
#include "../unit/learn/split.h"

#include "base/hash.h"
#include "mpi_tap.h"
#include "store/contenthash.h"

static char folder[256];

static char *path_of(const char *name)
{
    return mb_test_path(folder, name);
}

/* For the balance over a step. */
static void make_split(void)
{
    mb_ops *ops = NULL;
    mb_lm *lm = NULL;
    const mb_arch arch = split_arch();
    char *path = path_of("split");
    mb_test_ok(mb_files_make_folders(path));
    mb_test_ok(mb_ops_create("ref", 1, &ops));
    mb_test_ok(mb_lm_create(ops, &arch, "none", 7, &lm));
    mb_test_ok(mb_lm_write(lm, path, "full", MB_F32));
    mb_lm_destroy(&lm);
    mb_ops_destroy(&ops);
    mb_free(path);
    mb_free(split_shard(folder));
}

/* One folder for all ranks, filled by the first. */
static void make_inputs(const mpi_tap *tap)
{
    if (mb_comm_rank(tap->comm) == 0) {
        char *made = mb_test_folder_make(), *path;
        snprintf(folder, sizeof folder, "%s", made);
        mb_free(made);
        mb_free(fix_shard(folder, "plain.h5", FIX_RECORDS, false));
        mb_free(fix_typed_shard(folder, "typed.h5", -1, true));
        make_split();
        for (int moe = 0; moe < 3; moe++) {
            static const char *const names[] = {"dense", "moe", "biased"};
            float bias[2 * 6];
            mb_ops *ops = NULL;
            mb_lm *lm = NULL;
            mb_arch arch = fix_arch(moe ? 4 : 0, moe ? 2 : 0);
            arch.router_bias = moe == 2;
            arch.ffn = moe ? 256 : 1024; /* more than three blocks of MB_LANES_BLOCK */
            path = path_of(names[moe]);
            mb_test_ok(mb_files_make_folders(path));
            mb_test_ok(mb_ops_create("ref", 1, &ops));
            mb_test_ok(mb_lm_create(ops, &arch, "none", 7, &lm));
            for (int i = 0; i < 2 * 6; i++) bias[i] = 0.02f * (float)(i % 5 - 2);
            if (moe == 2) mb_test_ok(mb_lm_router_bias_write(lm, bias));
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
    double bias_rate; /* training.router_bias_rate */
} train_case;

/* Of a student: the model with experts, asked on every rank by itself; NULL for other objectives. */
static mb_lm *open_teacher(const train_case *c, mb_ops **out_ops)
{
    mb_lm *lm = NULL;
    *out_ops = NULL;
    if (!mb_str_equal(c->objective, "distil")) return NULL;
    char *path = path_of("moe");
    mb_test_ok(mb_ops_create("ref", 1, out_ops));
    mb_test_ok(mb_lm_open(*out_ops, &(mb_lm_options){.path = path, .train = "none"}, &lm));
    mb_free(path);
    return lm;
}

/* out_metrics: their hash. */
static fix_run train_one(const mpi_tap *tap, const train_case *c, const char *backend, bool is_stopped,
                         char out_metrics[MB_HASH_TEXT])
{
    const bool is_slow = mb_str_equal(backend, "cuda"); /* an emulated one */
    mb_trainer_options options = fix_trainer_options();
    mb_objective_options choice = fix_objective_options(c->objective);
    mb_ops *teacher_ops;
    choice.opt_teacher = open_teacher(c, &teacher_ops);
    char name[128], *model = path_of(c->model), *shard = path_of("plain.h5"), *typed = path_of("typed.h5");
    snprintf(name, sizeof name, "%s_%s_%s_%d_%d_%d", backend, c->model, c->objective, (int)c->zero,
             (int)c->microbatches, is_stopped);
    fix_run run = {.train = c->train,
                   .objective = c->objective,
                   .shard = shard,
                   .opt_validation = is_slow && !c->is_stopped ? NULL : typed,
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
    options.router_bias_rate = c->bias_rate;
    options.validation_steps = is_slow ? 0 : 1;
    options.validation_samples = 9;
    if (is_stopped) { /* rank 0 alone is told to stop, in its first validation, a step, or the next */
        run.stop_after = mb_comm_rank(tap->comm) == 0 ? 2 : 0;
        while (fix_train_in(tap->comm, &run, &options) == MB_ESTOPPED)
            run.stop_after = run.stop_after > 0 && run.stop_after < 40 ? run.stop_after + 13 : 0;
    } else {
        mb_test_ok(fix_train_in(tap->comm, &run, &options));
    }
    run.opt_objective_options = NULL;
    char *metrics = mb_test_path(run.folder, "metrics.h5");
    mb_test_ok(mb_contenthash_path(metrics, out_metrics));
    mb_trainer_report_reset(&run.report);
    mb_free(metrics);
    mb_free(model);
    mb_free(shard);
    mb_free(typed);
    mb_free((void *)run.folder);
    mb_lm_destroy(&choice.opt_teacher);
    mb_ops_destroy(&teacher_ops);
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
    char note[260], hash[MB_HASH_TEXT], first[MB_HASH_TEXT], name[120];
    const char *backend = mb_ops_name(tap->ops);
    snprintf(name, sizeof name, "%s %s %s zero=%d micro-batches=%d", backend, c->model, c->objective,
             (int)c->zero, (int)c->microbatches);
    char metrics[MB_HASH_TEXT], other[MB_HASH_TEXT];
    fix_run run = train_one(tap, c, backend, false, metrics), host = train_one(tap, c, "ref", false, other);
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
        fix_run again = train_one(tap, c, backend, true, other);
        ok = again.count == run.count && strcmp(metrics, other) == 0 &&
             memcmp(again.trained, run.trained, (size_t)run.count * sizeof *run.trained) == 0;
        tap_check(tap, ok, "%s: stopped inside a step and resumed, the same bits", name);
        mb_free(again.trained);
    }
    snprintf(note, sizeof note, "hash train %s %s %a %s", name, hash, run.report.loss, metrics);
    for (char *p = note + strlen("hash "); p < note + strlen("hash train ") + strlen(name); p++)
        if (*p == ' ') *p = '_'; /* run.sh takes the words after the name as the value */
    tap_note(tap, note);
    mb_free(run.trained);
    mb_free(host.trained);
}

/* ---- the balance over a step ---- */

/* The step as one micro-batch of one process, in a folder of each rank's own. */
static split_result split_alone(const mpi_tap *tap, const char *convention, const char *shard,
                                const char *model)
{
    static const split_case whole = {SPLIT_STEP, false, 1};
    mb_comm *comm = NULL;
    char name[96];
    snprintf(name, sizeof name, "whole_%d_%s", mb_comm_rank(tap->comm), convention);
    char *at = path_of(name);
    setenv("MB_COMM", "self", 1);
    mb_test_ok(mb_comm_create(NULL, NULL, &comm));
    unsetenv("MB_COMM");
    const split_result result = split_run(comm, &whole, convention, shard, at, model);
    mb_comm_destroy(&comm);
    mb_free(at);
    return result;
}

static void test_cut(mpi_tap *tap, const split_case *c, const char *convention, const split_result *whole,
                     const char *shard, const char *model)
{
    double value = 0, z = 0, gradient = 0;
    char name[96];
    snprintf(name, sizeof name, "split_%s_%d_%d", convention, (int)c->batch_size, (int)c->zero);
    char *at = path_of(name);
    split_result cut = split_run(tap->comm, c, convention, shard, at, model);
    for (int s = 0; s < SPLIT_STEPS; s++) {
        value = fmax(value, split_relative(cut.balance[s], whole->balance[s]));
        z = fmax(z, split_relative(cut.z[s], whole->z[s]));
        gradient = fmax(gradient, split_distance(cut.gradient[s], whole->gradient[s], whole->count));
    }
    tap_check(
        tap, value <= 1e-6 && z <= 1e-6 && gradient <= 1e-6 && cut.count == whole->count,
        "balance over a step, %s, %dx%d recompute=%s zero=%d: value %.9f off by %.1e, z by %.1e, gradient "
        "by %.1e",
        convention, (int)c->batch_size, SPLIT_STEP / (int)c->batch_size, c->recompute ? "blocks" : "none",
        (int)c->zero, cut.balance[1], value, z, gradient);
    split_free(&cut);
    mb_free(at);
}

static void test_split(mpi_tap *tap)
{
    static const split_case cases[] = {{3, false, 1}, {2, true, 1},  {1, false, 1},
                                       {3, true, 2},  {1, false, 2}, {2, false, 3}};
    static const char *const conventions[] = {"hf", "switch"};
    char *shard = path_of("split.h5"), *model = path_of("split");
    for (int k = 0; k < 2; k++) {
        split_result whole = split_alone(tap, conventions[k], shard, model);
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
            test_cut(tap, &cases[i], conventions[k], &whole, shard, model);
        split_free(&whole);
    }
    mb_free(shard);
    mb_free(model);
}

int main(int argc, char **argv)
{
    static const train_case cases[] = {{"dense", "all", "lm", 1, 4, true, 0},
                                       {"moe", "all", "lm", 1, 8, false, 0},
                                       {"moe", "router", "router_warmup", 1, 4, false, 0},
                                       {"moe", "all", "lm", 2, 4, false, 0},
                                       {"moe", "all", "lm", 3, 4, true, 0},
                                       {"biased", "all", "lm", 1, 4, false, 1e-5},
                                       {"biased", "all", "lm", 3, 4, true, 1e-5},
                                       {"dense", "all", "distil", 1, 4, true, 0},
                                       {"dense", "all", "distil", 3, 4, false, 0}};
    mpi_tap tap = {0};
    int code;
    setenv("MB_LOG", "error", 0);
    if (!tap_open(&tap, &argc, &argv, &code)) return code;
    make_inputs(&tap);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) test_case(&tap, &cases[i]);
    if (!mb_ops_is_device(tap.ops)) test_split(&tap);
    remove_inputs(&tap);
    code = tap_end(&tap);
    tap_close(&tap);
    if (mb_memory_live_blocks() != 0) {
        fprintf(stderr, "# %lld blocks leaked\n", (long long)mb_memory_live_blocks());
        code = 1;
    }
    return code;
}
