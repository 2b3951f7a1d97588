/* trainer_weights.c: the weights a run leaves: epoch_<n> after each epoch with the link final, and with
 * training.save_best best_<step> with the link best (objective btm: best_router too).
 *
 * A folder appears whole, and a link is replaced in one rename, so what best names is always whole. Folders
 * of earlier bests stay until a state to resume from is on the disk that comes after the new one: a run
 * killed before goes on from where the earlier one was the best still, and finds it.
 *
 * 1. folders and links   2. epochs   3. the best   4. going on
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/files.h"
#include "base/log.h"
#include "learn/trainer_impl.h"
#include "store/checkpoint.h"
#include "store/lease.h"

#define BEST_PREFIX "best_"
#define BEST_LOSS   "validation/loss"

enum { NAME_BYTES = 48 };

/* ---- 1. folders and links ---- */

static mb_status stored_dtype(const mb_trainer *trainer, mb_dtype *out_dtype)
{
    *out_dtype = mb_lm_arch(trainer->lm)->stored_dtype;
    if (mb_str_equal(trainer->options->stored_dtype, "source")) return MB_OK;
    return mb_dtype_parse(trainer->options->stored_dtype, out_dtype);
}

/* name -> target in the run's folder, replaced in one rename. */
static mb_status put_link(const mb_trainer *trainer, const char *name, const char *target)
{
    mb_status status = MB_OK;
    char *beside = mb_str_format("%s/%s.tmp.%ld", trainer->folder, name, (long)getpid()),
         *path = mb_files_join(trainer->folder, name);
    if (beside == NULL || path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    if (unlink(beside) != 0 && errno != ENOENT) MB_RAISE(MB_EIO, "%s: %s", beside, strerror(errno));
    if (symlink(target, beside) != 0)
        MB_RAISE(MB_EIO, "%s: cannot make the link: %s", beside, strerror(errno));
    if (rename(beside, path) != 0)
        MB_RAISE(MB_EIO, "%s: cannot put the link there: %s", path, strerror(errno));
    MB_TRY(mb_files_sync(trainer->folder));
done:
    mb_free(beside);
    mb_free(path);
    return status;
}

/* The weights into folder `name` of the run. Rank 0. */
static mb_status write_folder(mb_trainer *trainer, const char *name)
{
    mb_status status = MB_OK;
    mb_dtype dtype;
    const mb_lora *lora = mb_lm_lora(trainer->lm);
    char *temporary = NULL, *path = mb_files_join(trainer->folder, name);
    if (path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    MB_TRY(stored_dtype(trainer, &dtype));
    MB_TRY(mb_lease_check(trainer->folder));
    MB_TRY(mb_checkpoint_begin(path, &temporary));
    MB_TRY(mb_lm_write(trainer->lm, temporary,
                       lora != NULL && lora->is_on ? "adapter" : trainer->options->save, dtype));
    MB_TRY(mb_lease_check(trainer->folder));
    MB_TRY(mb_checkpoint_commit(temporary, path));
    MB_FREE(temporary);
done:
    if (temporary != NULL) mb_files_remove_tree(temporary);
    mb_free(temporary);
    mb_free(path);
    return status;
}

/* As they are after trainer->step steps, with that step's trash bias. */
static void set_step(mb_trainer *trainer)
{
    if (trainer->objective->begin_step != NULL)
        trainer->objective->begin_step(trainer->objective, trainer->lm, trainer->step);
}

static void count_seconds(mb_trainer *trainer, double began)
{
    const double seconds = mb_clock_seconds() - began;
    if (seconds > trainer->weights_seconds) trainer->weights_seconds = seconds;
}

/* ---- 2. epochs ---- */

mb_status mb_trainer_weights_epoch(mb_trainer *trainer, int64_t epoch, bool is_last)
{
    mb_status status = MB_OK;
    char name[NAME_BYTES];
    const double began = mb_clock_seconds();
    snprintf(name, sizeof name, "epoch_%lld", (long long)epoch + 1);
    set_step(trainer);
    if (mb_comm_rank(trainer->comm) == 0) {
        status = write_folder(trainer, name);
        if (status == MB_OK && is_last) status = put_link(trainer, "final", name);
    }
    MB_TRY(mb_comm_agree(trainer->comm, status));
    count_seconds(trainer, began);
done:
    return status;
}

/* ---- 3. the best ---- */

static bool is_of_router(const mb_trainer *trainer)
{
    return mb_str_equal(trainer->objective->name, "btm");
}

/* Rank 0: the weights as the best so far. */
static mb_status write_best(mb_trainer *trainer)
{
    mb_status status = MB_OK;
    char name[NAME_BYTES];
    snprintf(name, sizeof name, BEST_PREFIX "%lld", (long long)trainer->step);
    MB_TRY(write_folder(trainer, name));
    MB_TRY(put_link(trainer, "best", name));
    if (is_of_router(trainer)) MB_TRY(put_link(trainer, "best_router", "best"));
done:
    return status;
}

mb_status mb_trainer_weights_best(mb_trainer *trainer, double loss)
{
    mb_status status = MB_OK;
    mb_trainer_best *best = &trainer->best;
    const double began = mb_clock_seconds();
    if (!best->is_kept || !(loss < best->loss)) return MB_OK;
    set_step(trainer);
    if (mb_comm_rank(trainer->comm) == 0) status = write_best(trainer);
    MB_TRY(mb_comm_agree(trainer->comm, status));
    best->loss = loss;
    best->step = trainer->step;
    count_seconds(trainer, began);
done:
    return status;
}

/* The number of "best_<n>", -1 for other names. */
static int64_t number_of(const char *name)
{
    if (!mb_str_is_prefix(name, BEST_PREFIX)) return -1;
    const char *digits = name + strlen(BEST_PREFIX);
    if (*digits == 0 || digits[strspn(digits, "0123456789")] != 0) return -1;
    return strtoll(digits, NULL, 10);
}

/* Rank 0: every folder of a best but that of step `kept` (-1: all). */
static mb_status remove_others(const mb_trainer *trainer, int64_t kept)
{
    mb_status status = MB_OK;
    char **names = NULL, *path = NULL;
    int64_t n = 0;
    MB_TRY(mb_lease_check(trainer->folder));
    MB_TRY(mb_files_list(trainer->folder, &names, &n));
    for (int64_t i = 0; i < n; i++) {
        if (number_of(names[i]) < 0 || number_of(names[i]) == kept) continue;
        MB_FREE(path);
        path = mb_files_join(trainer->folder, names[i]);
        if (path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
        MB_TRY(mb_files_remove_tree(path));
    }
done:
    mb_files_free_names(&names, n);
    mb_free(path);
    return status;
}

mb_status mb_trainer_weights_prune(mb_trainer *trainer, int64_t saved)
{
    const mb_trainer_best *best = &trainer->best;
    if (!best->is_kept || best->step < 0 || best->step > saved) return MB_OK;
    return remove_others(trainer, best->step);
}

/* ---- 4. going on ---- */

/* Of the metrics' lines: the step of the lowest loss over all; -1: there is none. */
static mb_status find_lowest(const mb_trainer *trainer, int64_t *out_step, double *out_loss)
{
    mb_status status = MB_OK;
    const char *name = BEST_LOSS;
    int64_t rows = 0, *steps = NULL;
    double *values = NULL;
    *out_step = -1;
    *out_loss = INFINITY;
    MB_TRY(mb_metrics_read(trainer->metrics, &name, 1, &rows, &steps, &values));
    for (int64_t i = 0; i < rows; i++) {
        if (!(values[i] < *out_loss)) continue;
        *out_loss = values[i];
        *out_step = steps[i];
    }
done:
    mb_free(steps);
    mb_free(values);
    return status;
}

static mb_status remove_links(const mb_trainer *trainer)
{
    mb_status status = MB_OK;
    static const char *const names[] = {"best", "best_router"};
    for (int i = 0; i < 2; i++) {
        char *path = mb_files_join(trainer->folder, names[i]);
        if (path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
        const bool failed = unlink(path) != 0 && errno != ENOENT;
        mb_free(path);
        if (failed) MB_RAISE(MB_EIO, "%s/%s: %s", trainer->folder, names[i], strerror(errno));
    }
done:
    return status;
}

/* Rank 0: what the lines say is the best, with its weights. */
static mb_status resume_here(mb_trainer *trainer)
{
    mb_status status = MB_OK;
    mb_trainer_best *best = &trainer->best;
    char name[NAME_BYTES], *path = NULL;
    int64_t step;
    double loss;
    MB_TRY(find_lowest(trainer, &step, &loss));
    if (step < 0) goto done;
    snprintf(name, sizeof name, BEST_PREFIX "%lld", (long long)step);
    path = mb_files_join(trainer->folder, name);
    if (path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    if (mb_checkpoint_check(path, false) == MB_OK) {
        MB_TRY(put_link(trainer, "best", name));
        if (is_of_router(trainer)) MB_TRY(put_link(trainer, "best_router", "best"));
    } else if (step == trainer->step) { /* its line was written, and then the run was cut off */
        mb_status_reset();
        MB_TRY(write_best(trainer));
    } else {
        mb_status_reset();
        mb_warn("%s: the weights of step %lld, which have the lowest validation loss so far, were not kept; "
                "training.save_best keeps the best of what comes now",
                trainer->folder, (long long)step);
        goto done;
    }
    best->step = step;
    best->loss = loss;
    MB_TRY(mb_trainer_weights_prune(trainer, trainer->step));
done:
    mb_free(path);
    return status;
}

/* A new run keeps nothing of another. */
static mb_status begin_here(mb_trainer *trainer)
{
    mb_status status = MB_OK;
    MB_TRY(remove_links(trainer));
    MB_TRY(remove_others(trainer, -1));
done:
    return status;
}

mb_status mb_trainer_weights_begin(mb_trainer *trainer)
{
    mb_status status = MB_OK;
    const char *word = trainer->options->save_best;
    mb_trainer_best *best = &trainer->best;
    const bool is_asked = mb_str_equal(word, "true");
    *best = (mb_trainer_best){.loss = INFINITY, .step = -1};
    if (is_asked && trainer->options->opt_validation == NULL)
        MB_RAISE(MB_EUSAGE, "training.save_best goes by the validation loss; give training.validation_path");
    best->is_kept = trainer->options->opt_validation != NULL &&
                    (is_asked || (mb_str_equal(word, "auto") && is_of_router(trainer)));
    if (!best->is_kept) goto done;
    set_step(trainer);
    if (mb_comm_rank(trainer->comm) == 0)
        status = trainer->is_resumed ? resume_here(trainer) : begin_here(trainer);
    MB_TRY(mb_comm_agree(trainer->comm, status));
    MB_TRY(mb_comm_bcast(trainer->comm, best, sizeof *best, 0));
done:
    return status;
}
