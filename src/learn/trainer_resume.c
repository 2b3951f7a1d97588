/* trainer_resume.c: going on from a checkpoint (trainer_save.c writes them).
 *
 * The settings that must not change are kept in it as text, so that a refusal can say what differs. The
 * newest whole state counts, by its files' hashes: a damaged one is moved out of the way and the one before
 * is taken.
 *
 * 1. settings and environment   2. reading
 */
#include <stdio.h>
#include <string.h>

#include "base/files.h"
#include "base/hash.h"
#include "base/log.h"
#include "learn/trainer_impl.h"
#include "store/checkpoint.h"

#define PIECE_ELEMENTS ((int64_t)1 << 20)

/* ---- 1. settings and environment ---- */

/* Does this key change what is computed? */
static bool is_setting(const char *key)
{
    static const char *const others[] = {"training.save",
                                         "training.save_steps",
                                         "training.save_best",
                                         "training.save_minutes",
                                         "training.save_total_limit",
                                         "training.logging_steps",
                                         "training.save_dtype",
                                         "training.strict",
                                         "training.time_limit_minutes",
                                         "training.lanes",
                                         "training.zero",
                                         "training.recompute",
                                         "training.async_save",
                                         "training.log_loads",
                                         "training.validation_steps",
                                         "training.validation_samples"};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        if (mb_str_equal(key, others[i])) return false;
    }
    return true;
}

static mb_status add_options(const mb_trainer_options *options, mb_str *text)
{
    mb_status status = MB_OK;
    mb_option_table table = {.title = "training", .target = (void *)options};
    table.options = mb_trainer_option_table(&table.count);
    for (int64_t i = 0; i < table.count; i++) {
        if (!is_setting(table.options[i].key)) continue;
        MB_TRY(mb_str_add_format(text, "%s = ", table.options[i].key));
        MB_TRY(mb_option_print(&table, &table.options[i], text));
        MB_TRY(mb_str_add(text, "\n"));
    }
done:
    return status;
}

static mb_status add_model(mb_trainer *trainer, mb_str *text)
{
    mb_status status = MB_OK;
    mb_hash *hash = NULL;
    char names[MB_HASH_TEXT];
    const mb_lora *lora = mb_lm_lora(trainer->lm);
    MB_TRY(mb_hash_create(&hash));
    for (int64_t i = 0; i < mb_params_count(trainer->params); i++) {
        const mb_param *param = mb_params_at(trainer->params, i);
        if (!param->trained) continue;
        mb_hash_add_text(hash, param->name);
        mb_hash_add_int(hash, mb_tensor_count(&param->value));
    }
    mb_hash_get(hash, names);
    MB_TRY(mb_str_add_format(text, "model = %s\ntrained tensors = %s, %lld elements\n",
                             mb_lm_hash(trainer->lm), names,
                             (long long)mb_params_trained_count(trainer->params)));
    if (mb_lm_dtype(trainer->lm) != MB_F32)
        MB_TRY(mb_str_add_format(text, "model.dtype = %s\n", mb_dtype_name(mb_lm_dtype(trainer->lm))));
    MB_TRY(mb_params_describe_storage(trainer->params, text));
    if (lora != NULL && lora->is_on) {
        MB_TRY(mb_str_add_format(text, "training.lora = r %lld, alpha %.9g, dropout %.9g\n",
                                 (long long)lora->options.r, lora->options.alpha, lora->options.dropout));
    }
done:
    mb_hash_destroy(&hash);
    return status;
}

mb_status mb_trainer_resume_describe(mb_trainer *trainer)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    char data[33];
    MB_TRY(mb_shard_hash(trainer->shard, data));
    MB_TRY(mb_str_add_format(&text, "dataset = %s\n", data));
    MB_TRY(add_model(trainer, &text));
    MB_TRY(add_options(trainer->options, &text));
    MB_TRY(mb_str_add(&text, trainer->objective->settings));
    trainer->settings = mb_str_take(&text);
    trainer->environment =
        mb_str_format("%s, %lld lanes%s", mb_ops_describe(mb_lm_ops(trainer->lm)),
                      (long long)trainer->lane_total, trainer->options->zero > 1 ? ", by rounds" : "");
    if (trainer->environment == NULL) status = mb_status_trace(MB_ENOMEM, __func__, __FILE__, __LINE__);
done:
    mb_str_destroy(&text);
    return status;
}

/* ---- 2. reading ---- */

/* Lines of `now` that `then` has not, and the other way round, at most six of each. */
static mb_status add_missing_lines(const char *from, const char *in, const char *mark, mb_str *out)
{
    mb_status status = MB_OK;
    int shown = 0;
    while (*from != 0 && shown < 6) {
        size_t n = strcspn(from, "\n");
        bool found = false;
        for (const char *p = in; *p != 0 && !found; p += strcspn(p, "\n"), p += *p == '\n') {
            found = strcspn(p, "\n") == n && memcmp(p, from, n) == 0;
        }
        if (!found) {
            MB_TRY(mb_str_add_format(out, "\n  %s %.*s", mark, (int)n, from));
            shown++;
        }
        from += n + (from[n] == '\n');
    }
done:
    return status;
}

static mb_status check_settings(const mb_trainer *trainer, mb_h5 *file, const mb_trainer_state *state,
                                const char *path)
{
    mb_status status = MB_OK;
    mb_str then = MB_STR_EMPTY, difference = MB_STR_EMPTY;
    MB_TRY(mb_h5_get_text(file, "/", "settings", &then));
    if (strcmp(mb_str_text(&then), trainer->settings) != 0) {
        MB_TRY(add_missing_lines(mb_str_text(&then), trainer->settings, "then", &difference));
        MB_TRY(add_missing_lines(trainer->settings, mb_str_text(&then), "now ", &difference));
        MB_RAISE(MB_EUSAGE,
                 "%s is of a run with other settings; use another folder, remove it to start anew, or set "
                 "them back:%s",
                 path, mb_str_text(&difference));
    }
    if (strncmp(state->environment, trainer->environment, sizeof state->environment - 1) != 0) {
        if (trainer->options->strict) {
            MB_RAISE(MB_EUSAGE,
                     "%s was made under '%s', this is '%s'; resume there, or set training.strict = false "
                     "(the numbers may differ in the last bits)",
                     path, state->environment, trainer->environment);
        }
        mb_warn("%s was made under '%s', this is '%s': the numbers may differ in the last bits", path,
                state->environment, trainer->environment);
    }
done:
    mb_str_destroy(&then);
    mb_str_destroy(&difference);
    return status;
}

/* Elements [first, first + count) of the values (0) or a moment, piece by piece to where they are used. */
static mb_status read_moment(mb_trainer *trainer, mb_h5 *file, int moment, int64_t first, int64_t count,
                             float *piece)
{
    mb_status status = MB_OK;
    int64_t owned, ignored;
    mb_lanes_owned(trainer->lanes, &owned, &ignored);
    for (int64_t at = first; at < first + count; at += PIECE_ELEMENTS) {
        const int64_t left = first + count - at, n = left < PIECE_ELEMENTS ? left : PIECE_ELEMENTS;
        if (moment == 0) {
            MB_TRY(mb_h5_read_rows(file, MB_TRAINER_STATE_VALUES, MB_F32, at, n, piece));
            MB_TRY(mb_params_upload(trainer->params, at, n, piece));
        } else {
            MB_TRY(mb_trainer_state_read_moment(file, moment, at, n, piece));
            MB_TRY(mb_optimiser_upload(trainer->optimiser, moment, at - owned, n, piece));
        }
    }
done:
    return status;
}

/* What this rank keeps: all values, or of a model cut over the ranks its own; its own moments. */
static mb_status read_values(mb_trainer *trainer, mb_h5 *file)
{
    mb_status status = MB_OK;
    float *piece = NULL;
    int64_t first, count;
    const bool is_cut = mb_params_is_sharded(trainer->params);
    mb_lanes_owned(trainer->lanes, &first, &count);
    MB_NEW_ARRAY(piece, PIECE_ELEMENTS);
    MB_TRY(read_moment(trainer, file, 0, is_cut ? first : 0,
                       is_cut ? count : mb_params_trained_count(trainer->params), piece));
    MB_TRY(read_moment(trainer, file, 1, first, count, piece));
    MB_TRY(read_moment(trainer, file, 2, first, count, piece));
done:
    mb_free(piece);
    return status;
}

/* What changes without a gradient: every rank all of it. */
static mb_status read_carried(mb_trainer *trainer, mb_h5 *file)
{
    mb_status status = MB_OK;
    const int64_t n = mb_params_carried_count(trainer->params);
    float *values = NULL;
    if (n == 0) goto done;
    MB_NEW_ARRAY(values, n);
    MB_TRY(mb_h5_read_rows(file, MB_TRAINER_STATE_CARRIED, MB_F32, 0, n, values));
    MB_TRY(mb_params_carried_set(trainer->params, values));
done:
    mb_free(values);
    return status;
}

static mb_status read_file(mb_trainer *trainer, const char *path)
{
    mb_status status = MB_OK;
    mb_h5 *file = NULL;
    int64_t elements = mb_params_trained_count(trainer->params);
    mb_trainer_state state;
    char *name = mb_files_join(path, "trainer.h5");
    if (name == NULL) MB_RAISE(MB_ENOMEM, "no memory for a path");
    MB_TRY(mb_h5_open(name, &file));
    MB_TRY(mb_trainer_state_read(file, &state));
    MB_TRY(check_settings(trainer, file, &state, path));
    if (state.elements != elements) {
        MB_RAISE(MB_EFORMAT, "%s has %lld trained elements, the model has %lld; remove this checkpoint", name,
                 (long long)state.elements, (long long)elements);
    }
    MB_TRY(read_values(trainer, file));
    MB_TRY(read_carried(trainer, file));
    trainer->step = state.step;
    MB_TRY(mb_h5_get_int(file, "/", "tokens", &trainer->tokens));
    MB_TRY(mb_h5_get_int(file, "/", "records", &trainer->records));
    MB_TRY(mb_h5_get_int(file, "/", "loss_steps", &trainer->loss_steps));
    MB_TRY(mb_h5_get_real(file, "/", "loss_sum", &trainer->loss_sum));
done:
    mb_h5_destroy(&file);
    mb_free(name);
    return status;
}

mb_status mb_trainer_resume_read(mb_trainer *trainer)
{
    mb_status status = MB_OK;
    int64_t number = -1;
    char *states = mb_files_join(trainer->folder, "state"), *path = NULL;
    if (states == NULL) status = mb_fail(MB_ENOMEM, "no memory for a path");
    if (status == MB_OK && mb_comm_rank(trainer->comm) == 0 && mb_files_is_folder(states)) {
        status = mb_checkpoint_latest(states, MB_TRAINER_STATE_PREFIX, &path, &number);
        if (path == NULL) number = -1;
        MB_FREE(path);
    }
    MB_TRY(mb_comm_agree(trainer->comm, status));
    MB_TRY(mb_comm_bcast(trainer->comm, &number, sizeof number, 0));
    if (number >= 0) {
        path = mb_str_format("%s/" MB_TRAINER_STATE_PREFIX "%lld", states, (long long)number);
        status = path == NULL ? mb_fail(MB_ENOMEM, "no memory for a path") : read_file(trainer, path);
        MB_TRY(mb_comm_agree(trainer->comm, status));
        MB_TRY(mb_params_sync(trainer->params));
        trainer->is_resumed = true;
        mb_info("resuming from %s", path);
    }
done:
    mb_free(states);
    mb_free(path);
    return status;
}
