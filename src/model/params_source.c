/* params_source: names tried one after another, then a copy or a conversion in pieces.
 *
 * 1. names
 * 2. finding
 * 3. loading
 */
#include "model/params_source.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/staging.h"

#define SOURCE_PIECE 16384 /* elements converted at a time */

/* ---- 1. names ---- */

typedef struct source_part { /* where a matrix lies in a fused tensor */
    int64_t expert;
    int half, halves;
} source_part;

/* "model.layers.0.mlp.experts.3.up_proj.weight" (Mixtral: "...block_sparse_moe.experts.3.w3.weight") ->
 * "model.layers.0.mlp.experts.gate_up_proj", expert 3, second half. */
static bool source_fused(const char *name, char *out, size_t bytes, source_part *part)
{
    const char *moe = strstr(name, ".block_sparse_moe.experts."), *mlp = strstr(name, ".mlp.experts.");
    const char *place = moe != NULL ? moe : mlp, *tail = place != NULL ? strstr(place, "experts.") : NULL;
    char kind[16];
    long long expert;
    if (tail == NULL || sscanf(tail, "experts.%lld.%15[a-z0-9_].weight", &expert, kind) != 2) return false;
    const bool down = strcmp(kind, "down_proj") == 0 || strcmp(kind, "w2") == 0;
    const bool up = strcmp(kind, "up_proj") == 0 || strcmp(kind, "w3") == 0;
    snprintf(out, bytes, "%.*s.mlp.experts.%s", (int)(place - name), name,
             down ? "down_proj" : "gate_up_proj");
    *part = (source_part){.expert = expert, .half = up, .halves = down ? 1 : 2};
    return true;
}

/* 5.x calls Mixtral's mixture mlp. */
static bool source_renamed(const char *name, char *out, size_t bytes)
{
    const char *place = strstr(name, ".block_sparse_moe.");
    if (place == NULL) return false;
    snprintf(out, bytes, "%.*s.mlp.%s", (int)(place - name), name, place + strlen(".block_sparse_moe."));
    return true;
}

/* The name as the file has it, with or without "model." in front; NULL when it has neither. */
static const char *source_name(const mb_safetensors *file, const char *name)
{
    if (mb_safetensors_has(file, name)) return name;
    if (mb_str_is_prefix(name, "model.") && mb_safetensors_has(file, name + strlen("model.")))
        return name + strlen("model.");
    return NULL;
}

static bool source_is_of(mb_params *params, const char *name)
{
    char text[256];
    if (mb_params_find(params, name) != NULL) return true;
    snprintf(text, sizeof text, "model.%s", name);
    return mb_params_find(params, text) != NULL;
}

bool mb_params_source_is_known(mb_params *params, const char *name)
{
    const bool tied = mb_params_find(params, "lm_head.weight") == NULL;
    char text[240];
    if (source_is_of(params, name) || mb_str_is_suffix(name, "rotary_emb.inv_freq")) return true;
    if (tied && strcmp(name, "lm_head.weight") == 0) return true;
    if (mb_str_is_suffix(name, ".mlp.experts.gate_up_proj") ||
        mb_str_is_suffix(name, ".mlp.experts.down_proj"))
        return true;
    const char *place = strstr(name, ".mlp.gate.");
    if (place == NULL) return false;
    snprintf(text, sizeof text, "%.*s.block_sparse_moe%s", (int)(place - name), name, place + strlen(".mlp"));
    return source_is_of(params, text);
}

bool mb_params_source_has(const mb_safetensors *file, const mb_param *param)
{
    char other[200];
    return source_name(file, param->name) != NULL ||
           (source_renamed(param->name, other, sizeof other) && source_name(file, other) != NULL);
}

bool mb_params_source_name(const mb_safetensors *file, const mb_param *param, const char *suffix,
                           char *out_name, size_t bytes)
{
    char text[200], other[200];
    const char *name;
    snprintf(text, sizeof text, "%s%s", param->name, suffix);
    name = source_name(file, text);
    if (name == NULL && source_renamed(text, other, sizeof other)) name = source_name(file, other);
    if (name == NULL) return false;
    snprintf(out_name, bytes, "%s", name);
    return true;
}

/* ---- 2. finding ---- */

static mb_status source_whole(const mb_safetensors *file, const char *folder, const char *name,
                              const mb_param *param, mb_params_source *s)
{
    mb_status status = MB_OK;
    mb_tensor view;
    char have[64], want[64];
    MB_TRY(mb_safetensors_view(file, name, &view));
    if (!mb_tensor_is_shape(&view, param->value.dims, param->value.shape)) {
        mb_tensor wanted = param->value;
        wanted.dtype = view.dtype;
        MB_RAISE(MB_ESHAPE, "%s: tensor %s is %s; this model wants %s", folder, name,
                 mb_tensor_describe(&view, have, sizeof have),
                 mb_tensor_describe(&wanted, want, sizeof want));
    }
    s->data = view.data;
    s->dtype = view.dtype;
done:
    return status;
}

static mb_status source_slice(const mb_safetensors *file, const char *folder, const char *name,
                              const source_part *part, const mb_param *param, mb_params_source *s)
{
    mb_status status = MB_OK;
    mb_tensor view;
    char text[64];
    const int64_t n = param->value.shape[0], k = param->value.shape[1];
    MB_TRY(mb_safetensors_view(file, name, &view));
    if (view.dims != 3 || part->expert >= view.shape[0] || view.shape[1] != part->halves * n ||
        view.shape[2] != k)
        MB_RAISE(MB_ESHAPE, "%s: tensor %s is %s; expected [experts, %lld, %lld]", folder, name,
                 mb_tensor_describe(&view, text, sizeof text), (long long)(part->halves * n), (long long)k);
    s->data = (const char *)view.data +
              (size_t)((part->expert * part->halves + part->half) * n * k) * mb_dtype_bytes(view.dtype);
    s->dtype = view.dtype;
done:
    return status;
}

mb_status mb_params_source_find(const mb_safetensors *file, const char *folder, const mb_param *param,
                                mb_params_source *out_source)
{
    mb_status status = MB_OK;
    mb_params_source s = {.count = param->value.shape[0] * param->value.shape[1]};
    source_part part;
    char other[200];
    const char *name = source_name(file, param->name);
    const bool is_slice = name == NULL && source_fused(param->name, other, sizeof other, &part) &&
                          (name = source_name(file, other)) != NULL;
    if (name == NULL && source_renamed(param->name, other, sizeof other)) name = source_name(file, other);
    if (name == NULL && strcmp(param->name, "lm_head.weight") == 0 &&
        !mb_safetensors_has(file, "model.norm.weight"))
        MB_RAISE(MB_ENOTFOUND,
                 "%s: tensor lm_head.weight is missing; the model was saved without its head, save it with "
                 "AutoModelForCausalLM",
                 folder);
    if (name == NULL) name = param->name; /* for the message that it is missing */
    MB_TRY(is_slice ? source_slice(file, folder, name, &part, param, &s)
                    : source_whole(file, folder, name, param, &s));
    snprintf(s.name, sizeof s.name, "%s", name);
    *out_source = s;
done:
    return status;
}

/* ---- 3. loading ---- */

/* First element of a piece that is NaN or Inf, -1: none. 16-bit kinds and f32 by their exponent's bits. */
static int64_t source_bad16(const uint16_t *piece, int64_t n, uint16_t exponent)
{
    bool bad = false;
    for (int64_t i = 0; i < n; i++) bad |= (piece[i] & exponent) == exponent;
    for (int64_t i = 0; bad && i < n; i++)
        if ((piece[i] & exponent) == exponent) return i;
    return -1;
}

static int64_t source_bad32(const float *piece, int64_t n)
{
    bool bad = false;
    for (int64_t i = 0; i < n; i++) bad |= !isfinite(piece[i]);
    for (int64_t i = 0; bad && i < n; i++)
        if (!isfinite(piece[i])) return i;
    return -1;
}

static mb_status source_raise(const mb_params_source *s, const char *folder, int64_t at)
{
    mb_status status = MB_OK;
    MB_RAISE(MB_EDATA, "%s: tensor %s holds NaN or Inf at element %lld; the model is damaged", folder,
             s->name, (long long)(s->first + at));
done:
    return status;
}

/* The same dtype on both sides. */
static mb_status source_copy(const mb_params_source *s, const char *folder, void *out)
{
    const size_t size = mb_dtype_bytes(s->dtype);
    int64_t bad = s->count;
#pragma omp parallel for schedule(static) reduction(min : bad) if (s->count > SOURCE_PIECE)
    for (int64_t first = 0; first < s->count; first += SOURCE_PIECE) {
        const int64_t n = s->count - first < SOURCE_PIECE ? s->count - first : SOURCE_PIECE;
        char *to = (char *)out + (size_t)first * size;
        memcpy(to, (const char *)s->data + (size_t)first * size, (size_t)n * size);
        const int64_t at = s->dtype == MB_BF16 ? source_bad16((const uint16_t *)(void *)to, n, 0x7f80)
                                               : source_bad32((const float *)(void *)to, n);
        if (at >= 0 && first + at < bad) bad = first + at;
    }
    return bad < s->count ? source_raise(s, folder, bad) : MB_OK;
}

static mb_status source_convert(const mb_params_source *s, const char *folder, float *out)
{
    mb_status status = MB_OK;
    const size_t size = mb_dtype_bytes(s->dtype);
    int64_t bad = s->count;
    if (s->dtype != MB_F32 && s->dtype != MB_F64 && s->dtype != MB_BF16 && s->dtype != MB_F16)
        MB_RAISE(MB_EUNSUPPORTED, "%s: tensor %s holds %s; weights of f32, bf16, f16 and f64 are read",
                 folder, s->name, mb_dtype_name(s->dtype));
#pragma omp parallel for schedule(static) reduction(min : bad) if (s->count > SOURCE_PIECE)
    for (int64_t first = 0; first < s->count; first += SOURCE_PIECE / 16) {
        uint64_t piece[SOURCE_PIECE / 16]; /* aligned: the map need not be */
        const int64_t left = s->count - first, n = left < SOURCE_PIECE / 16 ? left : SOURCE_PIECE / 16;
        memcpy(piece, (const char *)s->data + (size_t)first * size, (size_t)n * size);
        (void)mb_dtype_to_f32(s->dtype, piece, n, out + first);
        const int64_t at = source_bad32(out + first, n);
        if (at >= 0 && first + at < bad) bad = first + at;
    }
    if (bad < s->count) MB_TRY(source_raise(s, folder, bad));
done:
    return status;
}

mb_status mb_params_source_read(const mb_params_source *source, const char *folder, float *out)
{
    return source_convert(source, folder, out);
}

/* Plain values to a device, piece by piece; each in the dtype it is kept in, which is the file's or f32. */
static mb_status source_send(const mb_params_source *source, const char *folder, bool is_copy,
                             mb_param *param)
{
    mb_status status = MB_OK;
    const size_t from = mb_dtype_bytes(source->dtype), to = mb_dtype_bytes(param->value.dtype);
    const int64_t most = (int64_t)(MB_STAGING_BYTES / to);
    void *room;
    for (int64_t first = 0; first < source->count; first += most) {
        mb_params_source piece = *source;
        piece.first = first;
        piece.count = source->count - first < most ? source->count - first : most;
        piece.data = (const char *)source->data + (size_t)first * from;
        MB_TRY(mb_staging_room(param->staging, &room));
        MB_TRY(is_copy ? source_copy(&piece, folder, room) : source_convert(&piece, folder, room));
        MB_TRY(mb_staging_send(param->staging, (size_t)piece.count * to,
                               (char *)param->value.data + (size_t)first * to));
    }
done:
    return status;
}

mb_status mb_params_source_load(const mb_params_source *source, const char *folder, mb_param *param)
{
    mb_status status = MB_OK;
    float *value = NULL;
    if (param->is_elsewhere) goto done;
    const bool is_plain = param->weight.bits == 0 && param->value.data != NULL;
    const bool is_copy =
        source->dtype == param->value.dtype && (source->dtype == MB_F32 || source->dtype == MB_BF16);
    if (is_plain && param->staging != NULL && (is_copy || param->value.dtype == MB_F32)) {
        MB_TRY(source_send(source, folder, is_copy, param));
    } else if (is_plain && param->staging == NULL && is_copy) {
        MB_TRY(source_copy(source, folder, param->value.data));
    } else if (is_plain && param->staging == NULL && param->value.dtype == MB_F32) {
        MB_TRY(source_convert(source, folder, mb_tensor_f32(&param->value)));
    } else {
        MB_NEW_ARRAY(value, source->count);
        MB_TRY(source_convert(source, folder, value));
        MB_TRY(mb_params_set_f32(param, value));
        goto done;
    }
    if (param->value.dims == 2) mb_weight_changed(&param->weight);
done:
    mb_free(value);
    return status;
}
