/* trainer_save.c: writing the checkpoints a run resumes from.
 *
 * state/step_<n>/trainer.h5 holds the trained tensors, both moments, what is carried (params.h) and the
 * counters, whatever the number of ranks: rank 0 writes, the others send what they own in pieces. Either each
 * piece is written as it comes, or (training.async_save) all go into a copy that a thread of rank 0 writes
 * beside the next steps; that thread makes no MPI call, and its HDF5 calls take turns with those that read
 * records. The file is the same. One write is under way at most: the next one, the end and a stop wait for
 * it.
 *
 * A run that has lost its folder to another writes nothing more: the lease is looked at before anything is
 * touched and again right before the rename.
 *
 * 1. the file   2. beside the steps   3. gathering   4. saving
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/files.h"
#include "base/hash.h"
#include "base/log.h"
#include "learn/trainer_impl.h"
#include "store/checkpoint.h"
#include "store/lease.h"

#define PIECE_ELEMENTS ((int64_t)1 << 20)

enum { MOMENTS = 3 }; /* 0: the trained values themselves */

/* What rank 0 writes; while the thread runs nobody else touches it but for is_over. */
struct mb_trainer_saver {
    const char *folder, *settings; /* the trainer's */
    int64_t keep;
    mb_trainer_state state;
    float *carried; /* [carries] what changes without a gradient (params.h), of the step that is saved */
    int64_t carries;
    int64_t tokens, records, loss_steps;
    double loss_sum;
    char *states, *path, *temporary;
    mb_h5 *file;
    float *copy;     /* [MOMENTS, elements], kept for the next save; NULL: pieces go into the file */
    bool is_refused; /* there was no memory for it */
    double seconds;

    pthread_t thread;
    bool is_running;
    atomic_bool is_over;
    mb_status status;
    char *message; /* the thread's, when it failed */
};

/* ---- 1. the file ---- */

static void forget_paths(mb_trainer_saver *saver)
{
    MB_FREE(saver->states);
    MB_FREE(saver->path);
    MB_FREE(saver->temporary);
}

/* What every rank has alike, so that rank 0's will do. */
static mb_status copy_carried(mb_trainer *trainer)
{
    mb_status status = MB_OK;
    mb_trainer_saver *saver = trainer->saver;
    saver->carries = mb_params_carried_count(trainer->params);
    if (saver->carried == NULL) MB_NEW_ARRAY(saver->carried, saver->carries);
    MB_TRY(mb_params_carried_get(trainer->params, saver->carried));
done:
    return status;
}

/* All that is known before the values, as the trainer stands now. */
static mb_status describe_state(mb_trainer *trainer)
{
    mb_status status = MB_OK;
    mb_trainer_saver *saver = trainer->saver;
    const mb_batches_step next = mb_batches_step_get(trainer->batches, trainer->step);
    forget_paths(saver);
    MB_TRY(copy_carried(trainer));
    saver->folder = trainer->folder;
    saver->settings = trainer->settings;
    saver->keep = trainer->options->save_total_limit;
    saver->tokens = trainer->tokens;
    saver->records = trainer->records;
    saver->loss_steps = trainer->loss_steps;
    saver->loss_sum = trainer->loss_sum;
    saver->state = (mb_trainer_state){.step = trainer->step,
                                      .epoch = next.epoch,
                                      .sample = next.first,
                                      .elements = mb_params_trained_count(trainer->params),
                                      .seed = (uint64_t)trainer->options->seed};
    mb_hash_bytes(trainer->settings, strlen(trainer->settings), saver->state.key);
    snprintf(saver->state.environment, sizeof saver->state.environment, "%s", trainer->environment);
    saver->states = mb_files_join(trainer->folder, "state");
    saver->path =
        mb_str_format("%s/state/" MB_TRAINER_STATE_PREFIX "%lld", trainer->folder, (long long)trainer->step);
    if (saver->states == NULL || saver->path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
done:
    return status;
}

/* A folder beside, and the file up to its values. */
static mb_status start_file(mb_trainer_saver *saver)
{
    mb_status status = MB_OK;
    mb_h5 *file = NULL;
    char *path = NULL;
    MB_TRY(mb_lease_check(saver->folder));
    MB_TRY(mb_files_make_folders(saver->states));
    MB_TRY(mb_files_check_space(saver->states, 12 * saver->state.elements, "a checkpoint to resume from"));
    MB_TRY(mb_checkpoint_begin(saver->path, &saver->temporary));
    path = mb_files_join(saver->temporary, "trainer.h5");
    if (path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    MB_TRY(mb_h5_create(path, &file));
    MB_TRY(mb_trainer_state_write(file, &saver->state));
    MB_TRY(mb_h5_set_int(file, "/", "tokens", saver->tokens));
    MB_TRY(mb_h5_set_int(file, "/", "records", saver->records));
    MB_TRY(mb_h5_set_int(file, "/", "loss_steps", saver->loss_steps));
    MB_TRY(mb_h5_set_real(file, "/", "loss_sum", saver->loss_sum));
    MB_TRY(mb_h5_set_text(file, "/", "settings", saver->settings));
    MB_TRY(mb_h5_create_rows(file, MB_TRAINER_STATE_VALUES, MB_F32, 0, NULL, (size_t)1 << 20));
    if (saver->carries > 0) {
        MB_TRY(mb_h5_create_rows(file, MB_TRAINER_STATE_CARRIED, MB_F32, 0, NULL, (size_t)1 << 20));
        MB_TRY(mb_h5_append_rows(file, MB_TRAINER_STATE_CARRIED, saver->carried, saver->carries));
    }
    MB_TRY(mb_trainer_state_create_moment(file, 1));
    MB_TRY(mb_trainer_state_create_moment(file, 2));
    saver->file = file;
    file = NULL;
done:
    mb_h5_destroy(&file);
    mb_free(path);
    return status;
}

static mb_status append(mb_h5 *file, int moment, const float *data, int64_t n)
{
    if (moment == 0) return mb_h5_append_rows(file, MB_TRAINER_STATE_VALUES, data, n);
    return mb_trainer_state_append_moment(file, moment, data, n);
}

/* The bytes to the disk now, file by file: closing an HDF5 file does it while no other thread may read. */
static mb_status sync_files(const char *folder)
{
    mb_status status = MB_OK;
    char **names = NULL, *path = NULL;
    int64_t n = 0;
    MB_TRY(mb_files_list(folder, &names, &n));
    for (int64_t i = 0; i < n; i++) {
        MB_FREE(path);
        path = mb_files_join(folder, names[i]);
        if (path == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
        MB_TRY(mb_files_sync(path));
    }
done:
    mb_files_free_names(&names, n);
    mb_free(path);
    return status;
}

/* Publish the file, or after a failure take back what was begun. */
static mb_status finish_file(mb_trainer_saver *saver, mb_status written)
{
    mb_status status = written;
    if (status != MB_OK) goto done;
    MB_TRY(sync_files(saver->temporary));
    MB_TRY(mb_h5_close(&saver->file));
    MB_TRY(mb_lease_check(saver->folder));
    MB_TRY(mb_checkpoint_commit(saver->temporary, saver->path));
    MB_TRY(mb_checkpoint_rotate(saver->states, MB_TRAINER_STATE_PREFIX, saver->keep));
done:
    mb_h5_destroy(&saver->file);
    if (status != MB_OK && saver->temporary != NULL) mb_files_remove_tree(saver->temporary);
    MB_FREE(saver->temporary);
    return status;
}

/* ---- 2. beside the steps ---- */

static mb_status write_copy(mb_trainer_saver *saver)
{
    mb_status status = MB_OK;
    const int64_t elements = saver->state.elements;
    MB_TRY(start_file(saver));
    for (int moment = 0; moment < MOMENTS; moment++)
        for (int64_t at = 0; at < elements; at += PIECE_ELEMENTS) {
            const int64_t n = elements - at < PIECE_ELEMENTS ? elements - at : PIECE_ELEMENTS;
            MB_TRY(append(saver->file, moment, saver->copy + moment * elements + at, n));
        }
done:
    return finish_file(saver, status);
}

static void *write_aside(void *context)
{
    mb_trainer_saver *saver = context;
    const double began = mb_clock_seconds();
    saver->status = write_copy(saver);
    if (saver->status != MB_OK) saver->message = mb_strdup(mb_status_message());
    saver->seconds = mb_clock_seconds() - began;
    atomic_store(&saver->is_over, true);
    return NULL;
}

static mb_status start_thread(mb_trainer_saver *saver)
{
    atomic_store(&saver->is_over, false);
    saver->status = MB_OK;
    const int failed = pthread_create(&saver->thread, NULL, write_aside, saver);
    saver->is_running = failed == 0;
    return failed == 0 ? MB_OK : write_copy(saver); /* no thread to be had: here, then */
}

/* Wait for the thread, if one runs; its failure is ours. */
static mb_status join_thread(mb_trainer *trainer)
{
    mb_status status = MB_OK;
    mb_trainer_saver *saver = trainer->saver;
    if (saver == NULL || !saver->is_running) return MB_OK;
    pthread_join(saver->thread, NULL);
    saver->is_running = false;
    if (saver->seconds > trainer->save_seconds) trainer->save_seconds = saver->seconds;
    mb_debug("%s was written beside the steps in %.3f s", saver->path, saver->seconds);
    status = saver->status;
    if (status != MB_OK) mb_fail(status, "%s", saver->message != NULL ? saver->message : "");
    MB_FREE(saver->message);
    if (status == MB_OK) status = mb_trainer_weights_prune(trainer, saver->state.step);
    return status;
}

mb_status mb_trainer_save_check(mb_trainer *trainer)
{
    const mb_trainer_saver *saver = trainer->saver;
    if (saver == NULL || !saver->is_running || !atomic_load(&saver->is_over)) return MB_OK;
    return join_thread(trainer);
}

mb_status mb_trainer_save_wait(mb_trainer *trainer)
{
    return mb_comm_agree(trainer->comm, join_thread(trainer));
}

/* ---- 3. gathering ---- */

/* Send or receive one piece of a rank's owned range; a rank-0 piece is copied by nobody. */
static mb_status move_piece(mb_comm *comm, int owner, float *data, int64_t n)
{
    mb_status status = MB_OK;
    mb_comm_exchange *exchange = NULL;
    mb_comm_part part = {.data = data, .bytes = (size_t)n * sizeof *data, .peer = owner};
    if (mb_comm_rank(comm) == 0) {
        MB_TRY(mb_comm_exchange_start(comm, NULL, 0, &part, 1, &exchange));
    } else {
        part.peer = 0;
        MB_TRY(mb_comm_exchange_start(comm, &part, 1, NULL, 0, &exchange));
    }
done:
    if (exchange != NULL) {
        mb_status waited = mb_comm_exchange_wait(&exchange);
        if (status == MB_OK) status = waited;
    }
    return status;
}

static mb_status keep_piece(mb_trainer_saver *saver, bool is_aside, int moment, int64_t first,
                            const float *data, int64_t n)
{
    if (!is_aside) return append(saver->file, moment, data, n);
    float *to = saver->copy + moment * saver->state.elements + first;
    memcpy(to, data, (size_t)n * sizeof *data);
    return MB_OK;
}

/* n of my owned elements of one moment from element `at` on, as the host sees them: where they lie, or
 * brought down into `room`. */
static mb_status own_piece(mb_trainer *trainer, int moment, int64_t at, int64_t n, float *room, float **out)
{
    int64_t first, count;
    mb_lanes_owned(trainer->lanes, &first, &count);
    const bool is_device = mb_ops_is_device(mb_lm_ops(trainer->lm));
    *out = is_device     ? room
           : moment == 0 ? mb_params_owned(trainer->params, first) + at
                         : mb_optimiser_moment(trainer->optimiser, moment) + at;
    if (!is_device) return MB_OK;
    if (moment == 0) return mb_params_download(trainer->params, first + at, n, room);
    return mb_optimiser_download(trainer->optimiser, moment, at, n, room);
}

/* All ranks' parts of one moment to rank 0; ranges[2 r] and [2 r + 1] are first and count. A failed write
 * goes on receiving. */
static mb_status gather_moment(mb_trainer *trainer, bool is_aside, int moment, const int64_t *ranges,
                               float *piece)
{
    mb_status status = MB_OK, kept = MB_OK;
    const int rank = mb_comm_rank(trainer->comm);
    for (int owner = 0; owner < mb_comm_size(trainer->comm); owner++) {
        const int64_t first = ranges[2 * owner], count = ranges[2 * owner + 1];
        for (int64_t at = 0; at < count; at += PIECE_ELEMENTS) {
            const int64_t n = count - at < PIECE_ELEMENTS ? count - at : PIECE_ELEMENTS;
            float *data = piece;
            if (owner == rank && kept == MB_OK) kept = own_piece(trainer, moment, at, n, piece, &data);
            if (owner != 0 && (rank == 0 || rank == owner)) MB_TRY(move_piece(trainer->comm, owner, data, n));
            if (rank == 0 && kept == MB_OK)
                kept = keep_piece(trainer->saver, is_aside, moment, first + at, data, n);
        }
    }
    status = kept;
done:
    return status;
}

static mb_status gather_ranges(mb_trainer *trainer, int64_t **out_ranges)
{
    mb_status status = MB_OK;
    int64_t mine[2], *ranges = NULL;
    MB_NEW_ARRAY(ranges, 2 * mb_comm_size(trainer->comm));
    mb_lanes_owned(trainer->lanes, &mine[0], &mine[1]);
    MB_TRY(mb_comm_allgather(trainer->comm, mine, sizeof mine, ranges));
    *out_ranges = ranges;
    ranges = NULL;
done:
    mb_free(ranges);
    return status;
}

/* Values and moments of all ranks. A rank that failed still takes part in the exchanges. Collective. */
static mb_status gather(mb_trainer *trainer, mb_status begun, bool is_aside)
{
    mb_status status = begun;
    int64_t *ranges = NULL;
    float *piece = NULL;
    if (status == MB_OK) {
        piece = mb_calloc((size_t)PIECE_ELEMENTS, sizeof *piece);
        if (piece == NULL) status = mb_status_trace(MB_ENOMEM, __func__, __FILE__, __LINE__);
    }
    MB_TRY(mb_comm_agree(trainer->comm, status));
    MB_TRY(gather_ranges(trainer, &ranges));
    for (int moment = 0; moment < MOMENTS; moment++) {
        status = gather_moment(trainer, is_aside, moment, ranges, piece);
        MB_TRY(mb_comm_agree(trainer->comm, status));
    }
done:
    mb_free(ranges);
    mb_free(piece);
    return status;
}

/* ---- 4. saving ---- */

int64_t mb_trainer_save_copy_bytes(const mb_trainer_options *options, int64_t trained, int ranks)
{
    return options->async_save && (options->zero < 3 || ranks == 1)
               ? (int64_t)(MOMENTS * sizeof(float)) * trained
               : 0;
}

int64_t mb_trainer_save_used_bytes(const mb_trainer *trainer)
{
    if (trainer->saver == NULL || trainer->saver->copy == NULL) return 0;
    return (int64_t)(MOMENTS * sizeof(float)) * mb_params_trained_count(trainer->params);
}

void mb_trainer_save_destroy(mb_trainer *trainer)
{
    mb_trainer_saver *saver = trainer->saver;
    if (saver == NULL) return;
    if (saver->is_running) pthread_join(saver->thread, NULL);
    forget_paths(saver);
    mb_free(saver->message);
    mb_free(saver->copy);
    mb_free(saver->carried);
    MB_FREE(trainer->saver);
}

/* Room for the copy, from the first save on; without it the pieces are written as they come. */
static void make_copy(mb_trainer *trainer)
{
    const int64_t elements = mb_params_trained_count(trainer->params);
    mb_trainer_saver *saver = trainer->saver;
    if (saver->copy != NULL || saver->is_refused) return;
    saver->copy = mb_calloc((size_t)(MOMENTS * elements), sizeof *saver->copy);
    saver->is_refused = saver->copy == NULL;
    if (!saver->is_refused) return;
    mb_status_reset();
    mb_warn("no memory for a copy of %.0f MB: checkpoints are written between the steps, as with "
            "training.async_save=false",
            1e-6 * 12 * (double)elements);
}

/* Rank 0 before anything is gathered: the write before is over, the curve is on the disk up to this step. */
static mb_status start_save(mb_trainer *trainer, bool *is_aside)
{
    mb_status status = MB_OK;
    if (trainer->saver == NULL) MB_NEW(trainer->saver);
    MB_TRY(join_thread(trainer));
    MB_TRY(mb_lease_check(trainer->folder));
    MB_TRY(describe_state(trainer));
    if (trainer->metrics != NULL) MB_TRY(mb_metrics_publish(trainer->metrics));
    if (*is_aside) make_copy(trainer);
    *is_aside = *is_aside && trainer->saver->copy != NULL;
    if (!*is_aside) MB_TRY(start_file(trainer->saver));
done:
    return status;
}

mb_status mb_trainer_save_run(mb_trainer *trainer, bool is_awaited)
{
    mb_status status = MB_OK;
    const bool is_first = mb_comm_rank(trainer->comm) == 0;
    const double began = mb_clock_seconds();
    bool is_aside =
        !is_awaited && mb_trainer_save_copy_bytes(trainer->options, 1, mb_comm_size(trainer->comm)) > 0;
    if (is_first) status = start_save(trainer, &is_aside);
    status = gather(trainer, status, is_aside);
    if (is_first && trainer->saver != NULL) {
        if (status == MB_OK && is_aside)
            status = start_thread(trainer->saver);
        else if (!is_aside)
            status = finish_file(trainer->saver, status);
        if (status == MB_OK && !is_aside)
            status = mb_trainer_weights_prune(trainer, trainer->saver->state.step);
    }
    MB_TRY(mb_comm_agree(trainer->comm, status));
    trainer->saved = mb_clock_seconds();
    if (trainer->saved - began > trainer->save_seconds) trainer->save_seconds = trainer->saved - began;
    if (is_first) mb_debug("%s: %.3f s between two steps", trainer->saver->path, trainer->saved - began);
done:
    return status;
}
