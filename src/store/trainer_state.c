/* trainer_state.c: the trainer's state as attributes and growing datasets of an HDF5 file.
 */
#include "store/trainer_state.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#define CHUNK_BYTES ((size_t)1 << 20) /* read and written in streams */

static const char *moment_path(int moment)
{
    assert(moment == 1 || moment == 2);
    return moment == 1 ? "/moment1" : "/moment2";
}

mb_status mb_trainer_state_write(mb_h5 *file, const mb_trainer_state *state)
{
    mb_status status = MB_OK;
    MB_TRY(mb_h5_set_text(file, "/", "format", "moebatch-trainer"));
    MB_TRY(mb_h5_set_int(file, "/", "version", 1));
    MB_TRY(mb_h5_set_int(file, "/", "step", state->step));
    MB_TRY(mb_h5_set_int(file, "/", "epoch", state->epoch));
    MB_TRY(mb_h5_set_int(file, "/", "sample", state->sample));
    MB_TRY(mb_h5_set_int(file, "/", "elements", state->elements));
    MB_TRY(mb_h5_set_int(file, "/", "seed", (int64_t)state->seed));
    MB_TRY(mb_h5_set_text(file, "/", "key", state->key));
    MB_TRY(mb_h5_set_text(file, "/", "environment", state->environment));
done:
    return status;
}

/* A text attribute into a fixed field. */
static mb_status read_text(mb_h5 *file, const char *name, char *out, size_t bytes)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    MB_TRY(mb_h5_get_text(file, "/", name, &text));
    if (text.length >= bytes)
        MB_RAISE(MB_EFORMAT, "%s: attribute \"%s\" is too long", mb_h5_path(file), name);
    memcpy(out, mb_str_text(&text), text.length + 1);
done:
    mb_str_destroy(&text);
    return status;
}

static mb_status check_moments(mb_h5 *file, int64_t elements)
{
    mb_status status = MB_OK;
    mb_dtype dtype;
    int dims;
    int64_t shape[MB_TENSOR_MAX_DIMS];
    for (int moment = 1; moment <= 2; moment++) {
        if (!mb_trainer_state_has_moment(file, moment)) continue;
        MB_TRY(mb_h5_shape(file, moment_path(moment), &dtype, &dims, shape));
        if (dtype != MB_F32 || dims != 1 || shape[0] != elements)
            MB_RAISE(MB_EFORMAT, "%s: %s is not [%lld] f32", mb_h5_path(file), moment_path(moment),
                     (long long)elements);
    }
done:
    return status;
}

mb_status mb_trainer_state_read(mb_h5 *file, mb_trainer_state *out_state)
{
    mb_status status = MB_OK;
    mb_trainer_state state = {0};
    char format[64] = "";
    int64_t seed = 0, version = 0;
    if (read_text(file, "format", format, sizeof format) != MB_OK || strcmp(format, "moebatch-trainer") != 0)
        MB_RAISE(MB_EFORMAT, "%s: not a trainer's state", mb_h5_path(file));
    MB_TRY(mb_h5_get_int(file, "/", "version", &version));
    if (version != 1)
        MB_RAISE(MB_EUNSUPPORTED, "%s: a trainer's state of version %lld, this program reads version 1",
                 mb_h5_path(file), (long long)version);
    MB_TRY(mb_h5_get_int(file, "/", "step", &state.step));
    MB_TRY(mb_h5_get_int(file, "/", "epoch", &state.epoch));
    MB_TRY(mb_h5_get_int(file, "/", "sample", &state.sample));
    MB_TRY(mb_h5_get_int(file, "/", "elements", &state.elements));
    MB_TRY(mb_h5_get_int(file, "/", "seed", &seed));
    state.seed = (uint64_t)seed;
    MB_TRY(read_text(file, "key", state.key, sizeof state.key));
    MB_TRY(read_text(file, "environment", state.environment, sizeof state.environment));
    MB_TRY(check_moments(file, state.elements));
    *out_state = state;
done:
    return status;
}

mb_status mb_trainer_state_create_moment(mb_h5 *file, int moment)
{
    return mb_h5_create_rows(file, moment_path(moment), MB_F32, 0, NULL, CHUNK_BYTES);
}

mb_status mb_trainer_state_append_moment(mb_h5 *file, int moment, const float *values, int64_t n)
{
    return mb_h5_append_rows(file, moment_path(moment), values, n);
}

bool mb_trainer_state_has_moment(mb_h5 *file, int moment)
{
    return mb_h5_has(file, moment_path(moment));
}

mb_status mb_trainer_state_read_moment(mb_h5 *file, int moment, int64_t first, int64_t n, float *out)
{
    return mb_h5_read_rows(file, moment_path(moment), MB_F32, first, n, out);
}
