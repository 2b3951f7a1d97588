/* gate.c: the gate itself: memory, file, logits, gradient.
 *
 * 1. memory   2. file   3. logits   4. gradient
 */
#include "learn/gate.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "learn/gate_net.h"
#include "store/h5.h"

enum { GATE_ROWS = 256 }; /* of a piece of mb_gate_forward */

/* ---- 1. memory ---- */

mb_status mb_gate_create(int64_t width, int64_t hidden, int64_t experts, mb_gate **out_gate)
{
    mb_status status = MB_OK;
    mb_gate *gate = NULL;
    MB_NEW(gate);
    gate->width = width;
    gate->hidden = hidden;
    gate->experts = experts;
    gate->temperature = 1;
    MB_NEW_ARRAY(gate->w1, hidden * width);
    MB_NEW_ARRAY(gate->b1, hidden);
    MB_NEW_ARRAY(gate->w2, experts * hidden);
    MB_NEW_ARRAY(gate->b2, experts);
    MB_NEW_ARRAY(gate->mean, width);
    MB_NEW_ARRAY(gate->scale, width);
    MB_NEW_ARRAY(gate->expert_names, experts);
    for (int64_t d = 0; d < width; d++) gate->scale[d] = 1;
    *out_gate = gate;
    gate = NULL;
done:
    mb_gate_destroy(&gate);
    return status;
}

void mb_gate_destroy(mb_gate **gate)
{
    mb_gate *g = *gate;
    if (g == NULL) return;
    mb_free(g->w1);
    mb_free(g->b1);
    mb_free(g->w2);
    mb_free(g->b2);
    mb_free(g->mean);
    mb_free(g->scale);
    mb_h5_free_strings(&g->expert_names, g->experts);
    mb_free(g->embedder);
    mb_free(g->questions);
    mb_free(g->targets);
    MB_FREE(*gate);
}

/* ---- 2. file ---- */

/* The arrays of a gate with their names and shapes. */
enum { GATE_ARRAYS = 6 };
typedef struct gate_array {
    const char *name;
    mb_tensor tensor;
} gate_array;

static void list_arrays(const mb_gate *g, gate_array out[GATE_ARRAYS])
{
    out[0] = (gate_array){"/w1", mb_tensor_view2(MB_F32, g->w1, g->hidden, g->width)};
    out[1] = (gate_array){"/b1", mb_tensor_view1(MB_F32, g->b1, g->hidden)};
    out[2] = (gate_array){"/w2", mb_tensor_view2(MB_F32, g->w2, g->experts, g->hidden)};
    out[3] = (gate_array){"/b2", mb_tensor_view1(MB_F32, g->b2, g->experts)};
    out[4] = (gate_array){"/mean", mb_tensor_view1(MB_F32, g->mean, g->width)};
    out[5] = (gate_array){"/scale", mb_tensor_view1(MB_F32, g->scale, g->width)};
}

static const char *text_of(const char *opt_text)
{
    return opt_text != NULL ? opt_text : "";
}

mb_status mb_gate_write(const mb_gate *gate, const char *path)
{
    mb_status status = MB_OK;
    gate_array arrays[GATE_ARRAYS];
    mb_h5 *file = NULL;
    list_arrays(gate, arrays);
    MB_TRY(mb_h5_create(path, &file));
    MB_TRY(mb_h5_set_text(file, "/", "format", "moebatch-gate"));
    MB_TRY(mb_h5_set_int(file, "/", "version", 1));
    MB_TRY(mb_h5_set_text(file, "/", "activation", "gelu"));
    MB_TRY(mb_h5_set_real(file, "/", "temperature", gate->temperature));
    MB_TRY(mb_h5_set_text(file, "/", "embedder", text_of(gate->embedder)));
    MB_TRY(mb_h5_set_text(file, "/", "questions", text_of(gate->questions)));
    MB_TRY(mb_h5_set_text(file, "/", "targets", text_of(gate->targets)));
    MB_TRY(mb_h5_set_int(file, "/", "seed", gate->seed));
    for (int i = 0; i < GATE_ARRAYS; i++) MB_TRY(mb_h5_write(file, arrays[i].name, &arrays[i].tensor));
    MB_TRY(mb_h5_write_strings(file, "/expert_names", (const char *const *)(void *)gate->expert_names,
                               gate->experts));
    MB_TRY(mb_h5_close(&file));
done:
    mb_h5_destroy(&file);
    return status;
}

static mb_status read_text(mb_h5 *file, const char *name, char **out_text)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    MB_TRY(mb_h5_get_text(file, "/", name, &text));
    *out_text = mb_strdup(mb_str_text(&text));
    if (*out_text == NULL) MB_RAISE(MB_ENOMEM, "no memory for attribute %s", name);
done:
    mb_str_destroy(&text);
    return status;
}

static mb_status check_head(mb_h5 *file, const char *path)
{
    mb_status status = MB_OK;
    int64_t version = 0;
    mb_str text = MB_STR_EMPTY;
    if (mb_h5_get_text(file, "/", "format", &text) != MB_OK ||
        strcmp(mb_str_text(&text), "moebatch-gate") != 0)
        MB_RAISE(MB_EFORMAT, "%s: not a gate; make one with moe-gate train", path);
    MB_TRY(mb_h5_get_int(file, "/", "version", &version));
    mb_str_reset(&text);
    MB_TRY(mb_h5_get_text(file, "/", "activation", &text));
    if (version != 1 || strcmp(mb_str_text(&text), "gelu") != 0)
        MB_RAISE(MB_EUNSUPPORTED, "%s: a gate of version %lld with activation %s; this program reads 1, gelu",
                 path, (long long)version, mb_str_text(&text));
done:
    mb_str_destroy(&text);
    return status;
}

/* Sizes by w1 and w2. */
static mb_status create_like(mb_h5 *file, const char *path, mb_gate **out_gate)
{
    mb_status status = MB_OK;
    mb_dtype dtype;
    int dims[2];
    int64_t first[MB_TENSOR_MAX_DIMS], second[MB_TENSOR_MAX_DIMS];
    MB_TRY(mb_h5_shape(file, "/w1", &dtype, &dims[0], first));
    MB_TRY(mb_h5_shape(file, "/w2", &dtype, &dims[1], second));
    if (dims[0] != 2 || dims[1] != 2 || second[1] != first[0] || first[0] < 1 || first[1] < 1 ||
        second[0] < 1)
        MB_RAISE(MB_EFORMAT, "%s: /w1 [H, D] and /w2 [X, H] do not fit each other", path);
    MB_TRY(mb_gate_create(first[1], first[0], second[0], out_gate));
done:
    return status;
}

static mb_status check_numbers(const mb_gate *gate, const gate_array arrays[GATE_ARRAYS], const char *path)
{
    for (int i = 0; i < GATE_ARRAYS; i++) {
        const float *values = mb_tensor_f32(&arrays[i].tensor);
        for (int64_t j = 0; j < mb_tensor_count(&arrays[i].tensor); j++)
            if (!isfinite(values[j]) || (values == gate->scale && values[j] <= 0))
                return mb_fail(MB_EFORMAT, "%s: %s holds a number that cannot be (at %lld)", path,
                               arrays[i].name, (long long)j);
    }
    if (!(gate->temperature > 0) || !isfinite(gate->temperature))
        return mb_fail(MB_EFORMAT, "%s: temperature is %g", path, gate->temperature);
    return MB_OK;
}

mb_status mb_gate_open(const char *path, mb_gate **out_gate)
{
    mb_status status = MB_OK;
    gate_array arrays[GATE_ARRAYS];
    mb_gate *gate = NULL;
    mb_h5 *file = NULL;
    char **names = NULL;
    int64_t count = 0;
    MB_TRY(mb_h5_open(path, &file));
    MB_TRY(check_head(file, path));
    MB_TRY(create_like(file, path, &gate));
    list_arrays(gate, arrays);
    for (int i = 0; i < GATE_ARRAYS; i++) MB_TRY(mb_h5_read(file, arrays[i].name, &arrays[i].tensor));
    MB_TRY(mb_h5_read_strings(file, "/expert_names", &names, &count));
    if (count != gate->experts)
        MB_RAISE(MB_EFORMAT, "%s: %lld names for %lld experts", path, (long long)count,
                 (long long)gate->experts);
    for (int64_t e = 0; e < count; e++) {
        gate->expert_names[e] = names[e];
        names[e] = NULL;
    }
    MB_TRY(mb_h5_get_real(file, "/", "temperature", &gate->temperature));
    MB_TRY(mb_h5_get_int(file, "/", "seed", &gate->seed));
    MB_TRY(read_text(file, "embedder", &gate->embedder));
    MB_TRY(read_text(file, "questions", &gate->questions));
    MB_TRY(read_text(file, "targets", &gate->targets));
    MB_TRY(check_numbers(gate, arrays, path));
    *out_gate = gate;
    gate = NULL;
done:
    mb_h5_free_strings(&names, count);
    mb_h5_destroy(&file);
    mb_gate_destroy(&gate);
    return status;
}

/* ---- 3. logits ---- */

/* Rows of x into the work's, standardised. */
static mb_status fill(const mb_gate *gate, const float *x, int64_t first, int64_t n, mb_gate_work *work)
{
    const int64_t D = gate->width;
    for (int64_t i = 0; i < n * D; i++) {
        const float value = x[first * D + i];
        if (!isfinite(value))
            return mb_fail(MB_ENUMERIC, "the embedding of row %lld is not finite",
                           (long long)(first + i / D));
        work->x[i] = (value - gate->mean[i % D]) / gate->scale[i % D];
    }
    return MB_OK;
}

mb_status mb_gate_forward(const mb_gate *gate, const float *x, int64_t rows, float *out_logits)
{
    mb_status status = MB_OK;
    mb_gate_net net = {0};
    mb_gate_work work = {0};
    const float temperature = (float)gate->temperature;
    MB_TRY(mb_gate_net_create(gate->width, gate->hidden, gate->experts, &net));
    MB_TRY(mb_gate_work_create(&net, rows < GATE_ROWS ? rows : GATE_ROWS, &work));
    mb_gate_net_load(&net, gate);
    for (int64_t first = 0; first < rows; first += GATE_ROWS) {
        const int64_t n = rows - first < GATE_ROWS ? rows - first : GATE_ROWS;
        MB_TRY(fill(gate, x, first, n, &work));
        mb_gate_net_forward(&net, n, &work);
        for (int64_t i = 0; i < n * gate->experts; i++)
            out_logits[first * gate->experts + i] =
                work.logits[i / gate->experts * net.experts_padded + i % gate->experts] / temperature;
    }
done:
    mb_gate_work_reset(&work);
    mb_gate_net_reset(&net);
    return status;
}

/* ---- 4. gradient ---- */

mb_status mb_gate_gradient_run(const mb_gate *gate, const float *x, const float *target, int64_t rows,
                               mb_gate_gradient *out)
{
    mb_status status = MB_OK;
    mb_gate_net net = {0}, gradient = {0};
    mb_gate_work work = {0};
    mb_gate as_gate = *gate;
    MB_TRY(mb_gate_net_create(gate->width, gate->hidden, gate->experts, &net));
    MB_TRY(mb_gate_net_create(gate->width, gate->hidden, gate->experts, &gradient));
    MB_TRY(mb_gate_work_create(&net, rows, &work));
    mb_gate_net_load(&net, gate);
    MB_TRY(fill(gate, x, 0, rows, &work));
    memcpy(work.target, target, (size_t)(rows * gate->experts) * sizeof *target);
    mb_gate_net_forward(&net, rows, &work);
    out->loss = mb_gate_net_backward(&net, rows, &work, &gradient);
    as_gate.w1 = out->w1;
    as_gate.b1 = out->b1;
    as_gate.w2 = out->w2;
    as_gate.b2 = out->b2;
    mb_gate_net_store(&gradient, &as_gate);
done:
    mb_gate_work_reset(&work);
    mb_gate_net_reset(&net);
    mb_gate_net_reset(&gradient);
    return status;
}
