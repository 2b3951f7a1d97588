/* encoder.c: opening an encoder.
 *
 * The folder's tensors are found by name: what stands in front of every name is taken from the word table's,
 * and each tensor has one or two names ("a|b"), those of the first release and those of transformers 5.
 *
 * 1. names   2. reading a tensor   3. layers   4. tables   5. open and destroy   6. plan
 */
#include "model/encoder.h"

#include <stdio.h>
#include <string.h>

#include "model/encoder_state.h"
#include "model/staging.h"
#include "store/contenthash.h"
#include "store/safetensors.h"

/* ---- 1. names ---- */

enum { NAME_BYTES = 160 };

typedef struct reader {
    mb_encoder *encoder;
    const mb_safetensors *file;
    const char *prefix;
    float *scratch;
    int64_t scratch_count;
    mb_staging *staging; /* of a device */
} reader;

static const char *const prefixes[] = {"", "bert.", "roberta.", "new.", "gte.", "model."};

static const char *find_prefix(const mb_safetensors *file)
{
    char name[NAME_BYTES];
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
        snprintf(name, sizeof name, "%sembeddings.word_embeddings.weight", prefixes[i]);
        if (mb_safetensors_has(file, name)) return prefixes[i];
    }
    return "";
}

/* "<prefix><stem with layer number>.<suffix>" of the first alternative that is there, else of the first.
 * Each alternative has one # for the number of a layer. */
static bool find_name(const reader *r, const char *stems, int64_t layer, const char *suffixes,
                      char out[NAME_BYTES])
{
    char first[NAME_BYTES] = "";
    for (const char *stem = stems; *stem != 0;) {
        const size_t n = strcspn(stem, "|"), hash = strcspn(stem, "#");
        for (const char *suffix = suffixes; *suffix != 0;) {
            const size_t m = strcspn(suffix, "|");
            if (hash < n)
                snprintf(out, NAME_BYTES, "%s%.*s%lld%.*s.%.*s", r->prefix, (int)hash, stem, (long long)layer,
                         (int)(n - hash - 1), stem + hash + 1, (int)m, suffix);
            else
                snprintf(out, NAME_BYTES, "%s%.*s.%.*s", r->prefix, (int)n, stem, (int)m, suffix);
            if (mb_safetensors_has(r->file, out)) return true;
            if (first[0] == 0) memcpy(first, out, sizeof first);
            suffix += m + (suffix[m] == '|');
        }
        stem += n + (stem[n] == '|');
    }
    memcpy(out, first, sizeof first);
    return false;
}

/* ---- 2. reading a tensor ---- */

static mb_status add_buffer(mb_encoder *e, size_t bytes, void **out_data)
{
    mb_status status = MB_OK;
    if (e->buffer_count == e->buffer_capacity) {
        const int64_t n = e->buffer_capacity * 2 + 64;
        mb_buffer **bigger = mb_realloc(e->buffers, (size_t)n, sizeof *bigger);
        if (bigger == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", e->folder);
        e->buffers = bigger;
        e->buffer_capacity = n;
    }
    MB_TRY(mb_buffer_create(mb_ops_allocator(e->ops), bytes, &e->buffers[e->buffer_count]));
    *out_data = e->buffers[e->buffer_count++]->data;
done:
    return status;
}

/* n values in dtype to where they stay. */
static mb_status put_values(reader *r, const float *values, int64_t n, mb_dtype dtype, void *data)
{
    mb_status status = MB_OK;
    const size_t bytes = mb_dtype_bytes(dtype);
    const int64_t most = (int64_t)(MB_STAGING_BYTES / bytes);
    void *room;
    if (r->staging == NULL) {
        MB_TRY(mb_dtype_from_f32(dtype, values, n, data));
        goto done;
    }
    for (int64_t first = 0; first < n; first += most) {
        const int64_t piece = n - first < most ? n - first : most;
        MB_TRY(mb_staging_room(r->staging, &room));
        MB_TRY(mb_dtype_from_f32(dtype, values + first, piece, room));
        MB_TRY(mb_staging_send(r->staging, (size_t)piece * bytes, (char *)data + (size_t)first * bytes));
    }
done:
    return status;
}

/* Part `part` of `parts` equal runs of rows of a tensor [parts * rows, width] (width 0: a vector),
 * in dtype. */
static mb_status read_tensor(reader *r, const char *name, int64_t rows, int64_t width, int part, int parts,
                             mb_dtype dtype, mb_tensor *out)
{
    mb_status status = MB_OK;
    const int64_t n = rows * (width > 0 ? width : 1), all = n * parts;
    const int64_t shape[2] = {rows * parts, width};
    void *data = NULL;
    if (all > r->scratch_count) {
        MB_FREE(r->scratch);
        r->scratch_count = 0;
        MB_NEW_ARRAY(r->scratch, all);
        r->scratch_count = all;
    }
    MB_TRY(mb_safetensors_read_f32(r->file, name, width > 0 ? 2 : 1, shape, r->scratch));
    MB_TRY(add_buffer(r->encoder, (size_t)n * mb_dtype_bytes(dtype), &data));
    MB_TRY(put_values(r, r->scratch + n * part, n, dtype, data));
    *out = width > 0 ? mb_tensor_view2(dtype, data, rows, width) : mb_tensor_view1(dtype, data, rows);
done:
    return status;
}

static mb_status read_linear(reader *r, const char *stems, int64_t layer, int64_t rows, int64_t width,
                             int part, int parts, bool has_bias, mb_encoder_linear *out)
{
    mb_status status = MB_OK;
    char name[NAME_BYTES];
    mb_tensor matrix;
    find_name(r, stems, layer, "weight", name);
    MB_TRY(read_tensor(r, name, rows, width, part, parts, r->encoder->dtype, &matrix));
    mb_weight_init(&out->weight, matrix);
    if (!has_bias) goto done;
    find_name(r, stems, layer, "bias", name);
    MB_TRY(read_tensor(r, name, rows, 0, part, parts, MB_F32, &out->bias));
done:
    return status;
}

static mb_status read_norm(reader *r, const char *stems, int64_t layer, mb_encoder_norm *out)
{
    mb_status status = MB_OK;
    const int64_t width = r->encoder->config.width;
    char name[NAME_BYTES];
    find_name(r, stems, layer, "weight|gamma", name);
    MB_TRY(read_tensor(r, name, width, 0, 0, 1, MB_F32, &out->weight));
    find_name(r, stems, layer, "bias|beta", name);
    MB_TRY(read_tensor(r, name, width, 0, 0, 1, MB_F32, &out->bias));
done:
    return status;
}

/* ---- 3. layers ---- */

static mb_status read_layer_bert(reader *r, int64_t i, mb_encoder_layer *layer)
{
    mb_status status = MB_OK;
    const int64_t d = r->encoder->config.width, f = r->encoder->config.ffn;
    MB_TRY(read_linear(r, "encoder.layer.#.attention.self.query", i, d, d, 0, 1, true, &layer->q));
    MB_TRY(read_linear(r, "encoder.layer.#.attention.self.key", i, d, d, 0, 1, true, &layer->k));
    MB_TRY(read_linear(r, "encoder.layer.#.attention.self.value", i, d, d, 0, 1, true, &layer->v));
    MB_TRY(read_linear(r, "encoder.layer.#.attention.output.dense", i, d, d, 0, 1, true, &layer->o));
    MB_TRY(read_norm(r, "encoder.layer.#.attention.output.LayerNorm", i, &layer->attention_norm));
    MB_TRY(read_linear(r, "encoder.layer.#.intermediate.dense", i, f, d, 0, 1, true, &layer->up));
    MB_TRY(read_linear(r, "encoder.layer.#.output.dense", i, d, f, 0, 1, true, &layer->down));
    MB_TRY(read_norm(r, "encoder.layer.#.output.LayerNorm", i, &layer->ffn_norm));
done:
    return status;
}

/* q, k, v: the thirds of qkv_proj, or apart. up and gate: the halves of up_gate_proj, or apart. */
static mb_status read_layer_gte(reader *r, int64_t i, mb_encoder_layer *layer)
{
    mb_status status = MB_OK;
    const int64_t d = r->encoder->config.width, f = r->encoder->config.ffn;
    char name[NAME_BYTES];
    const char *qkv[3] = {"encoder.layer.#.attention.q_proj|layers.#.self_attn.q_proj",
                          "encoder.layer.#.attention.k_proj|layers.#.self_attn.k_proj",
                          "encoder.layer.#.attention.v_proj|layers.#.self_attn.v_proj"};
    const char *glu[2] = {"encoder.layer.#.mlp.up_proj|layers.#.mlp.up_proj",
                          "encoder.layer.#.mlp.gate_proj|layers.#.mlp.gate_proj"};
    const char *packed = "encoder.layer.#.attention.qkv_proj|layers.#.self_attn.qkv_proj",
               *both = "encoder.layer.#.mlp.up_gate_proj|layers.#.mlp.up_gate_proj";
    mb_encoder_linear *of_qkv[3] = {&layer->q, &layer->k, &layer->v}, *of_glu[2] = {&layer->up, &layer->gate};
    const bool is_packed = find_name(r, packed, i, "weight", name),
               is_both = find_name(r, both, i, "weight", name);
    for (int j = 0; j < 3; j++)
        MB_TRY(read_linear(r, is_packed ? packed : qkv[j], i, d, d, is_packed ? j : 0, is_packed ? 3 : 1,
                           true, of_qkv[j]));
    for (int j = 0; j < 2; j++)
        MB_TRY(read_linear(r, is_both ? both : glu[j], i, f, d, is_both ? j : 0, is_both ? 2 : 1, false,
                           of_glu[j]));
    MB_TRY(read_linear(r, "encoder.layer.#.attention.o_proj|layers.#.self_attn.o_proj", i, d, d, 0, 1, true,
                       &layer->o));
    MB_TRY(read_linear(r, "encoder.layer.#.mlp.down_proj|layers.#.mlp.down_proj", i, d, f, 0, 1, true,
                       &layer->down));
    MB_TRY(
        read_norm(r, "encoder.layer.#.attn_ln|layers.#.post_attention_layernorm", i, &layer->attention_norm));
    MB_TRY(read_norm(r, "encoder.layer.#.mlp_ln|layers.#.post_mlp_layernorm", i, &layer->ffn_norm));
done:
    return status;
}

/* ---- 4. tables ---- */

static mb_status read_table(reader *r, const char *stem, int64_t rows, mb_dtype dtype, mb_tensor *out)
{
    char name[NAME_BYTES];
    find_name(r, stem, 0, "weight", name);
    return read_tensor(r, name, rows, r->encoder->config.width, 0, 1, dtype, out);
}

static mb_status make_rotary(reader *r)
{
    mb_status status = MB_OK;
    mb_encoder *e = r->encoder;
    const mb_encoder_config *c = &e->config;
    const int64_t n = c->max_positions * c->head_width;
    void *data = NULL;
    float *table = NULL;
    if (!(c->rope_theta > 0)) goto done;
    MB_TRY(add_buffer(e, (size_t)n * sizeof *table, &data));
    MB_NEW_ARRAY(table, n);
    mb_encoder_config_rope(c, table);
    MB_TRY(put_values(r, table, n, MB_F32, data));
    e->rotary = mb_tensor_view2(MB_F32, data, c->max_positions, c->head_width);
done:
    mb_free(table);
    return status;
}

static mb_status read_all(reader *r)
{
    mb_status status = MB_OK;
    mb_encoder *e = r->encoder;
    const mb_encoder_config *c = &e->config;
    MB_TRY(read_table(r, "embeddings.word_embeddings", c->vocab, e->dtype, &e->words));
    if (c->position_rows > 0)
        MB_TRY(read_table(r, "embeddings.position_embeddings", c->position_rows, MB_F32, &e->positions));
    if (c->types > 0) MB_TRY(read_table(r, "embeddings.token_type_embeddings", c->types, MB_F32, &e->types));
    MB_TRY(read_norm(r, "embeddings.LayerNorm", 0, &e->norm));
    MB_TRY(make_rotary(r));
    for (int64_t i = 0; i < c->layers; i++)
        MB_TRY(c->family == MB_ENCODER_GTE ? read_layer_gte(r, i, &e->layers[i])
                                           : read_layer_bert(r, i, &e->layers[i]));
done:
    return status;
}

/* ---- 5. open and destroy ---- */

mb_status mb_encoder_open(mb_ops *ops, const char *folder, mb_dtype dtype, mb_encoder **out_encoder)
{
    mb_status status = MB_OK;
    mb_encoder *e = NULL;
    mb_safetensors *file = NULL;
    reader r = {0};
    int64_t width = 0;
    if (dtype != MB_F32 && dtype != MB_BF16)
        MB_RAISE(MB_EUSAGE, "%s: an encoder computes in f32 or bf16, not %s", folder, mb_dtype_name(dtype));
    MB_NEW(e);
    e->ops = ops;
    e->dtype = dtype;
    e->folder = mb_strdup(folder);
    if (e->folder == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", folder);
    MB_TRY(mb_encoder_config_read(folder, &e->config));
    MB_TRY(mb_encoder_pooling_read(folder, &e->pooling));
    MB_TRY(mb_encoder_pooling_width(&e->pooling, e->config.width, &width));
    MB_NEW_ARRAY(e->layers, e->config.layers);
    MB_TRY(mb_arena_create_on(mb_ops_allocator(ops), (size_t)1 << 16, &e->arena));
    MB_TRY(mb_arena_create_on(mb_ops_host_allocator(ops), (size_t)1 << 16, &e->host));
    MB_TRY(mb_safetensors_open(folder, &file));
    r = (reader){.encoder = e, .file = file, .prefix = find_prefix(file)};
    if (mb_ops_is_device(ops)) MB_TRY(mb_staging_create(ops, &r.staging));
    MB_TRY(read_all(&r));
    *out_encoder = e;
    e = NULL;
done:
    mb_free(r.scratch);
    mb_staging_destroy(&r.staging);
    mb_safetensors_close(&file);
    mb_encoder_destroy(&e);
    return status;
}

void mb_encoder_destroy(mb_encoder **encoder)
{
    mb_encoder *e = *encoder;
    if (e == NULL) return;
    for (int64_t i = 0; e->layers != NULL && i < e->config.layers; i++) {
        mb_encoder_layer *l = &e->layers[i];
        mb_encoder_linear *all[] = {&l->q, &l->k, &l->v, &l->o, &l->up, &l->gate, &l->down};
        for (size_t j = 0; j < sizeof all / sizeof *all; j++) mb_weight_reset(&all[j]->weight);
    }
    for (int64_t i = 0; i < e->buffer_count; i++) mb_buffer_destroy(&e->buffers[i]);
    mb_free(e->buffers);
    mb_free(e->layers);
    mb_free(e->folder);
    mb_encoder_pooling_reset(&e->pooling);
    mb_arena_destroy(&e->arena);
    mb_arena_destroy(&e->host);
    MB_FREE(*encoder);
}

const mb_encoder_config *mb_encoder_get_config(const mb_encoder *encoder)
{
    return &encoder->config;
}

mb_dtype mb_encoder_get_dtype(const mb_encoder *encoder)
{
    return encoder->dtype;
}

mb_encoder_pooling *mb_encoder_get_pooling(mb_encoder *encoder)
{
    return &encoder->pooling;
}

const char *mb_encoder_hash(mb_encoder *encoder)
{
    if (encoder->hash[0] == 0) (void)mb_contenthash_path(encoder->folder, encoder->hash);
    return encoder->hash;
}

int64_t mb_encoder_max_length(const mb_encoder *encoder)
{
    const int64_t asked = encoder->pooling.max_length, most = encoder->config.max_positions;
    return asked > 0 && asked < most ? asked : most;
}

/* ---- 6. plan ---- */

mb_encoder_plan mb_encoder_plan_get(const mb_encoder_config *c, mb_dtype dtype, int64_t tokens)
{
    const size_t bytes = mb_dtype_bytes(dtype), d = (size_t)c->width, t = (size_t)tokens;
    const size_t matrices =
        (size_t)c->layers * (4 * d * d + (c->family == MB_ENCODER_GTE ? 3 : 2) * d * (size_t)c->ffn);
    const size_t words = (size_t)c->vocab * d;
    const size_t rest = (size_t)mb_encoder_config_parameters(c) - matrices - words;
    const size_t ffn = (c->family == MB_ENCODER_GTE ? 2 : 1) * (size_t)c->ffn,
                 attention = 4 * d + (size_t)c->heads * sizeof(float) / bytes;
    const size_t rotary = c->rope_theta > 0 ? (size_t)(c->max_positions * c->head_width) * sizeof(float) : 0;
    return (mb_encoder_plan){
        .weights = (matrices + words) * bytes + rest * sizeof(float) + rotary,
        .packed = matrices * bytes,
        .activations = t * ((2 * d + (ffn > attention ? ffn : attention)) * bytes + 2 * d * sizeof(float))};
}
