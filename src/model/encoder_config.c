/* encoder_config.c: the shape of an encoder.
 *
 * 1. fields   2. rotary positions   3. families   4. sizes
 */
#include "model/encoder_config.h"

#include <math.h>
#include <string.h>

#include "base/files.h"

/* ---- 1. fields ---- */

static mb_status read_size(const json_t *json, const char *key, const char *where, int64_t low, int64_t high,
                           int64_t *out)
{
    mb_status status = MB_OK;
    int64_t value = 0;
    MB_TRY(mb_json_get_int(json, key, where, &value));
    if (value < low || value > high)
        MB_RAISE(MB_ERANGE, "%s: \"%s\" is %lld; it must be %lld to %lld", where, key, (long long)value,
                 (long long)low, (long long)high);
    *out = value;
done:
    return status;
}

static mb_status read_activation(const json_t *json, const char *where, mb_encoder_config *config)
{
    mb_status status = MB_OK;
    const char *name = "gelu";
    MB_TRY(mb_json_opt_string(json, "hidden_act", where, &name));
    config->is_gelu_tanh = strcmp(name, "gelu_new") == 0 || strcmp(name, "gelu_pytorch_tanh") == 0;
    if (!config->is_gelu_tanh && strcmp(name, "gelu") != 0)
        MB_RAISE(MB_EUNSUPPORTED,
                 "%s: hidden_act \"%s\" is not done for encoders; gelu, gelu_new and gelu_pytorch_tanh are",
                 where, name);
done:
    return status;
}

/* Fields that every family has. */
static mb_status read_shape(const json_t *json, const char *where, mb_encoder_config *c)
{
    mb_status status = MB_OK;
    c->eps = 1e-12;
    MB_TRY(read_size(json, "hidden_size", where, 1, 1 << 20, &c->width));
    MB_TRY(read_size(json, "num_hidden_layers", where, 1, 4096, &c->layers));
    MB_TRY(read_size(json, "num_attention_heads", where, 1, 65536, &c->heads));
    MB_TRY(read_size(json, "intermediate_size", where, 1, 1 << 24, &c->ffn));
    MB_TRY(read_size(json, "vocab_size", where, 1, INT32_MAX, &c->vocab));
    MB_TRY(read_size(json, "max_position_embeddings", where, 1, 1 << 24, &c->max_positions));
    MB_TRY(mb_json_opt_real(json, "layer_norm_eps", where, &c->eps));
    MB_TRY(mb_json_opt_int(json, "type_vocab_size", where, &c->types));
    if (c->width % c->heads != 0)
        MB_RAISE(MB_ESHAPE, "%s: hidden_size %lld is not a multiple of num_attention_heads %lld", where,
                 (long long)c->width, (long long)c->heads);
    if (!(c->eps > 0) || c->types < 0)
        MB_RAISE(MB_ERANGE, "%s: layer_norm_eps must be above 0 and type_vocab_size not below", where);
    c->head_width = c->width / c->heads;
    MB_TRY(read_activation(json, where, c));
done:
    return status;
}

/* A flag that must not be set. */
static mb_status refuse_flag(const json_t *json, const char *key, const char *where)
{
    mb_status status = MB_OK;
    bool value = false;
    MB_TRY(mb_json_opt_bool(json, key, where, &value));
    if (value) MB_RAISE(MB_EUNSUPPORTED, "%s: \"%s\": true is not done for encoders", where, key);
done:
    return status;
}

/* A text that may only have one value. */
static mb_status expect_text(const json_t *json, const char *key, const char *only, const char *where)
{
    mb_status status = MB_OK;
    const char *value = only;
    MB_TRY(mb_json_opt_string(json, key, where, &value));
    if (strcmp(value, only) != 0)
        MB_RAISE(MB_EUNSUPPORTED, "%s: \"%s\": \"%s\" is not done here; only \"%s\" is", where, key, value,
                 only);
done:
    return status;
}

/* ---- 2. rotary positions ---- */

/* new-impl: rope_theta, rope_scaling {"type": "ntk", "factor": s}. */
static mb_status read_rope_new(const json_t *json, const char *where, mb_encoder_config *c)
{
    mb_status status = MB_OK;
    const json_t *scaling = json_object_get(json, "rope_scaling");
    const char *type = NULL;
    c->rope_theta = 10000;
    MB_TRY(mb_json_opt_real(json, "rope_theta", where, &c->rope_theta));
    if (scaling == NULL || json_is_null(scaling)) goto done;
    if (!json_is_object(scaling)) MB_RAISE(MB_EFORMAT, "%s: \"rope_scaling\" is not an object", where);
    if (json_object_get(scaling, "type") != NULL)
        MB_TRY(mb_json_get_string(scaling, "type", where, &type));
    else
        MB_TRY(mb_json_get_string(scaling, "rope_type", where, &type));
    if (strcmp(type, "default") == 0) goto done;
    if (strcmp(type, "ntk") != 0)
        MB_RAISE(MB_EUNSUPPORTED, "%s: rope_scaling type \"%s\" is not done for encoders; \"ntk\" is", where,
                 type);
    const json_t *mixed = json_object_get(scaling, "mixed_b");
    if (mixed != NULL && !json_is_null(mixed))
        MB_RAISE(MB_EUNSUPPORTED, "%s: rope_scaling \"mixed_b\" (mixed ntk) is not done here", where);
    MB_TRY(mb_json_get_real(scaling, "factor", where, &c->rope_factor));
    if (!(c->rope_factor >= 1)) MB_RAISE(MB_ERANGE, "%s: rope_scaling factor must be 1 or more", where);
done:
    return status;
}

/* transformers 5: rope_parameters {"rope_type": "default", "rope_theta"}; its form of mGTE has the
 * scaled base. */
static mb_status read_rope_gte(const json_t *json, const char *where, mb_encoder_config *c)
{
    mb_status status = MB_OK;
    const json_t *rope = json_object_get(json, "rope_parameters");
    const char *type = "default";
    c->rope_theta = 160000;
    MB_TRY(mb_json_opt_real(json, "rope_theta", where, &c->rope_theta));
    if (rope == NULL || json_is_null(rope)) goto done;
    if (!json_is_object(rope)) MB_RAISE(MB_EFORMAT, "%s: \"rope_parameters\" is not an object", where);
    MB_TRY(mb_json_opt_string(rope, "rope_type", where, &type));
    if (strcmp(type, "default") != 0)
        MB_RAISE(MB_EUNSUPPORTED, "%s: rope_type \"%s\" is not done for model_type gte; \"default\" is",
                 where, type);
    MB_TRY(mb_json_opt_real(rope, "rope_theta", where, &c->rope_theta));
done:
    return status;
}

/* As the original computes it: single precision, the angle of a position by one multiplication. */
void mb_encoder_config_rope(const mb_encoder_config *c, float *table)
{
    const int64_t half = c->head_width / 2;
    const double d = (double)c->head_width, s = c->rope_factor;
    for (int64_t i = 0; i < half; i++) {
        float frequency = 1.0f / powf((float)(c->rope_theta * s), (float)(2 * i) / (float)c->head_width);
        if (s != 1) frequency /= (float)pow(s, 2 / d);
        for (int64_t p = 0; p < c->max_positions; p++) {
            const float angle = (float)p * frequency;
            table[p * c->head_width + i] = cosf(angle);
            table[p * c->head_width + half + i] = sinf(angle);
        }
    }
}

/* ---- 3. families ---- */

static mb_status read_bert(const json_t *json, bool is_roberta, const char *where, mb_encoder_config *c)
{
    mb_status status = MB_OK;
    int64_t pad = 1;
    if (json_object_get(json, "type_vocab_size") == NULL) c->types = 2;
    c->position_rows = c->max_positions;
    MB_TRY(expect_text(json, "position_embedding_type", "absolute", where));
    MB_TRY(refuse_flag(json, "is_decoder", where));
    MB_TRY(refuse_flag(json, "add_cross_attention", where));
    if (!is_roberta) goto done;
    MB_TRY(mb_json_opt_int(json, "pad_token_id", where, &pad));
    if (pad < 0 || pad + 1 >= c->position_rows)
        MB_RAISE(MB_ERANGE, "%s: pad_token_id %lld leaves no positions", where, (long long)pad);
    c->first_position = pad + 1;
    c->max_positions = c->position_rows - c->first_position;
done:
    return status;
}

static mb_status read_gte(const json_t *json, bool is_new, const char *where, mb_encoder_config *c)
{
    mb_status status = MB_OK;
    c->family = MB_ENCODER_GTE;
    if (json_object_get(json, "type_vocab_size") == NULL) c->types = 1;
    if (c->head_width % 2 != 0)
        MB_RAISE(MB_ESHAPE, "%s: heads of odd width %lld cannot have rotary positions", where,
                 (long long)c->head_width);
    if (!is_new) {
        MB_TRY(read_rope_gte(json, where, c));
    } else {
        MB_TRY(expect_text(json, "position_embedding_type", "rope", where));
        MB_TRY(expect_text(json, "layer_norm_type", "layer_norm", where));
        MB_TRY(refuse_flag(json, "logn_attention_scale", where));
        MB_TRY(read_rope_new(json, where, c));
    }
    if (!(c->rope_theta > 0)) MB_RAISE(MB_ERANGE, "%s: rope_theta must be above 0", where);
done:
    return status;
}

static const struct {
    const char *type;
    bool is_gte, is_variant; /* positions behind the padding id; new-impl */
} families[] = {{"bert", false, false},     {"roberta", false, true}, {"xlm-roberta", false, true},
                {"camembert", false, true}, {"new", true, true},      {"gte", true, false}};
enum { FAMILIES = sizeof families / sizeof *families };

static int find_family(const json_t *json)
{
    const char *type = json_string_value(json_object_get(json, "model_type"));
    for (int i = 0; type != NULL && i < FAMILIES; i++)
        if (strcmp(type, families[i].type) == 0) return i;
    return -1;
}

mb_status mb_encoder_config_from_json(const json_t *json, const char *where, mb_encoder_config *out_config)
{
    mb_status status = MB_OK;
    mb_encoder_config c = {.rope_factor = 1};
    const char *type = "";
    const int family = find_family(json);
    MB_TRY(mb_json_opt_string(json, "model_type", where, &type));
    if (family < 0)
        MB_RAISE(MB_EUNSUPPORTED,
                 "%s: model_type \"%s\" is not an encoder that is read here; those are bert, roberta, "
                 "xlm-roberta, camembert, new and gte",
                 where, type);
    MB_TRY(read_shape(json, where, &c));
    if (families[family].is_gte)
        MB_TRY(read_gte(json, families[family].is_variant, where, &c));
    else
        MB_TRY(read_bert(json, families[family].is_variant, where, &c));
    *out_config = c;
done:
    return status;
}

static mb_status read_json(const char *folder, char **out_path, json_t **out_json)
{
    mb_status status = MB_OK;
    *out_path = mb_files_join(folder, "config.json");
    if (*out_path == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", folder);
    MB_TRY(mb_json_read(*out_path, out_json));
done:
    return status;
}

mb_status mb_encoder_config_read(const char *folder, mb_encoder_config *out_config)
{
    mb_status status = MB_OK;
    json_t *json = NULL;
    char *path = NULL;
    MB_TRY(read_json(folder, &path, &json));
    MB_TRY(mb_encoder_config_from_json(json, path, out_config));
done:
    json_decref(json);
    mb_free(path);
    return status;
}

bool mb_encoder_config_is(const char *folder)
{
    json_t *json = NULL;
    char *path = NULL;
    bool is = read_json(folder, &path, &json) == MB_OK && find_family(json) >= 0;
    json_decref(json);
    mb_free(path);
    mb_status_reset();
    return is;
}

/* ---- 4. sizes ---- */

/* Elements of one layer's matrices. */
static int64_t layer_matrices(const mb_encoder_config *c)
{
    return 4 * c->width * c->width + (c->family == MB_ENCODER_GTE ? 3 : 2) * c->width * c->ffn;
}

int64_t mb_encoder_config_parameters(const mb_encoder_config *c)
{
    const int64_t vectors = 9 * c->width + (c->family == MB_ENCODER_GTE ? 0 : c->ffn);
    return (c->vocab + c->position_rows + c->types + 2) * c->width +
           c->layers * (layer_matrices(c) + vectors);
}

double mb_encoder_config_flops(const mb_encoder_config *c, double context)
{
    return (double)c->layers * (2.0 * (double)layer_matrices(c) + 4.0 * context * (double)c->width);
}
