/* rotary: rotary positions and their scalings.
 *
 * 1. reading: which object counts, its fields, refusals
 * 2. writing (4.x names)
 * 3. frequencies per type
 * 4. the table
 * 5. rows of long sequences
 */
#include "model/rotary.h"

#include <math.h>
#include <string.h>

static const char *const rotary_names[] = {
    [MB_ROTARY_DEFAULT] = "default", [MB_ROTARY_LINEAR] = "linear", [MB_ROTARY_DYNAMIC] = "dynamic",
    [MB_ROTARY_LLAMA3] = "llama3",   [MB_ROTARY_YARN] = "yarn",     [MB_ROTARY_LONGROPE] = "longrope"};
#define ROTARY_TYPES (sizeof rotary_names / sizeof rotary_names[0])

/* ---- 1. reading ---- */

/* The type an object names; an absent or empty object, or one without a type, is default. */
static mb_status rotary_read_type(const json_t *config, const char *key, const char *where,
                                  mb_rotary_type *out_type)
{
    mb_status status = MB_OK;
    const json_t *rope = json_object_get(config, key);
    const char *type = NULL, *older = NULL, *name, *inner;
    json_t *value;
    double partial = 1;
    *out_type = MB_ROTARY_DEFAULT;
    if (!json_is_object(rope)) goto done;
    json_object_foreach((json_t *)rope, inner, value) if (json_is_object(value))
        MB_RAISE(MB_EUNSUPPORTED, "%s: %s of layer type '%s' by itself is not supported", where, key, inner);
    MB_TRY(mb_json_opt_string(rope, "rope_type", where, &type));
    MB_TRY(mb_json_opt_string(rope, "type", where, &older));
    if (type != NULL && older != NULL && strcmp(type, older) != 0)
        MB_RAISE(MB_EFORMAT, "%s: %s has rope_type '%s' and type '%s'; remove one", where, key, type, older);
    name = type != NULL ? type : older != NULL ? older : "default";
    MB_TRY(mb_json_opt_real(rope, "partial_rotary_factor", where, &partial));
    if (partial != 1)
        MB_RAISE(MB_EUNSUPPORTED, "%s: %s partial_rotary_factor %g is not supported; only 1 is", where, key,
                 partial);
    for (size_t i = 0; i < ROTARY_TYPES; i++)
        if (strcmp(name, rotary_names[i]) == 0) {
            *out_type = (mb_rotary_type)i;
            goto done;
        }
    MB_RAISE(MB_EUNSUPPORTED,
             "%s: %s type '%s' is not supported; default, linear, dynamic, llama3, yarn and "
             "longrope are",
             where, key, name);
done:
    return status;
}

/* Type and object that count: rope_scaling if it holds anything, else rope_parameters (NULL: neither). */
static mb_status rotary_find(const json_t *config, const char *where, mb_rotary_type *out_type,
                             const json_t **out_rope)
{
    mb_status status = MB_OK;
    const json_t *scaling = json_object_get(config, "rope_scaling");
    const json_t *parameters = json_object_get(config, "rope_parameters");
    const bool has_scaling = json_object_size(scaling) > 0, has_parameters = json_object_size(parameters) > 0;
    mb_rotary_type older, newer;
    MB_TRY(rotary_read_type(config, "rope_scaling", where, &older));
    MB_TRY(rotary_read_type(config, "rope_parameters", where, &newer));
    if (has_scaling && has_parameters && older != newer)
        MB_RAISE(MB_EFORMAT, "%s: rope_scaling says '%s' and rope_parameters '%s'; remove one", where,
                 rotary_names[older], rotary_names[newer]);
    *out_type = has_scaling ? older : newer;
    *out_rope = has_scaling ? scaling : has_parameters ? parameters : NULL;
done:
    return status;
}

static mb_status rotary_read_llama3(const json_t *rope, const char *where, mb_rotary *r)
{
    mb_status status = MB_OK;
    MB_TRY(mb_json_get_real(rope, "low_freq_factor", where, &r->low_freq_factor));
    MB_TRY(mb_json_get_real(rope, "high_freq_factor", where, &r->high_freq_factor));
    MB_TRY(mb_json_get_int(rope, "original_max_position_embeddings", where, &r->original_positions));
    if (!(r->low_freq_factor > 0) || !(r->high_freq_factor > r->low_freq_factor))
        MB_RAISE(MB_ERANGE,
                 "%s: rope scaling low_freq_factor %g and high_freq_factor %g must rise from above 0", where,
                 r->low_freq_factor, r->high_freq_factor);
done:
    return status;
}

static double rotary_magnitude(double factor, double scale)
{
    return factor <= 1 ? 1 : 0.1 * scale * log(factor) + 1;
}

/* The original length defaults to max_position_embeddings; the factor, as in 5.x, to their ratio. */
static mb_status rotary_read_stretch(const json_t *rope, int64_t max_positions, const char *where,
                                     mb_rotary *r)
{
    mb_status status = MB_OK;
    const json_t *factor = json_object_get(rope, "factor");
    MB_TRY(mb_json_opt_int(rope, "original_max_position_embeddings", where, &r->original_positions));
    if (r->original_positions != 0 && (factor == NULL || json_is_null(factor)))
        r->factor = (double)max_positions / (double)r->original_positions;
    else
        MB_TRY(mb_json_get_real(rope, "factor", where, &r->factor));
    if (r->original_positions == 0) r->original_positions = max_positions;
done:
    return status;
}

/* 0 stands for "not given" in lengths, mscale and the betas, as in transformers. */
static mb_status rotary_read_yarn(const json_t *rope, int64_t max_positions, const char *where, mb_rotary *r)
{
    mb_status status = MB_OK;
    double scale = 0, scale_all = 0;
    r->truncate = true;
    MB_TRY(rotary_read_stretch(rope, max_positions, where, r));
    MB_TRY(mb_json_opt_bool(rope, "truncate", where, &r->truncate));
    MB_TRY(mb_json_opt_real(rope, "beta_fast", where, &r->beta_fast));
    MB_TRY(mb_json_opt_real(rope, "beta_slow", where, &r->beta_slow));
    MB_TRY(mb_json_opt_real(rope, "mscale", where, &scale));
    MB_TRY(mb_json_opt_real(rope, "mscale_all_dim", where, &scale_all));
    if (r->beta_fast == 0) r->beta_fast = 32;
    if (r->beta_slow == 0) r->beta_slow = 1;
    r->attention_factor = scale != 0 && scale_all != 0
                              ? rotary_magnitude(r->factor, scale) / rotary_magnitude(r->factor, scale_all)
                              : rotary_magnitude(r->factor, 1);
    MB_TRY(mb_json_opt_real(rope, "attention_factor", where, &r->attention_factor));
    if (!(r->beta_slow > 0) || !(r->beta_fast >= r->beta_slow))
        MB_RAISE(MB_ERANGE,
                 "%s: rope scaling beta_fast %g and beta_slow %g must be positive, beta_fast the larger",
                 where, r->beta_fast, r->beta_slow);
    if (!(r->attention_factor > 0) || !(r->attention_factor < 1e6))
        MB_RAISE(MB_ERANGE, "%s: rope scaling attention_factor %g is out of range", where,
                 r->attention_factor);
done:
    return status;
}

static mb_status rotary_read_factors(const json_t *rope, const char *key, int64_t pairs, const char *where,
                                     float *out_factors)
{
    mb_status status = MB_OK;
    const json_t *list = json_object_get(rope, key);
    if (!json_is_array(list) || (int64_t)json_array_size(list) != pairs)
        MB_RAISE(MB_EFORMAT, "%s: rope scaling %s must be a list of %lld numbers, one per pair", where, key,
                 (long long)pairs);
    for (int64_t i = 0; i < pairs; i++) {
        const json_t *value = json_array_get(list, (size_t)i);
        out_factors[i] = (float)json_number_value(value);
        if (!json_is_number(value) || !(out_factors[i] > 0) || !(out_factors[i] < 1e9f))
            MB_RAISE(MB_ERANGE, "%s: rope scaling %s, entry %lld must be a positive number", where, key,
                     (long long)i);
    }
done:
    return status;
}

/* The original length stands at the top of the file (4.x) or in the object (5.x); 4.x then takes the ratio of
 * the lengths for the attention factor, 5.x the field `factor`: where they differ, neither is right. */
static mb_status rotary_longrope_factor(const json_t *rope, int64_t max_positions, bool has_top,
                                        const char *where, mb_rotary *r)
{
    mb_status status = MB_OK;
    const double ratio = (double)max_positions / (double)r->original_positions;
    double factor = ratio;
    MB_TRY(mb_json_opt_real(rope, "factor", where, &factor));
    if (!(factor > 0) || !(factor < 1e9))
        MB_RAISE(MB_ERANGE, "%s: rope scaling factor %g is out of range", where, factor);
    if (has_top && !(fabs(factor - ratio) <= 1e-6 * ratio))
        MB_RAISE(
            MB_EUNSUPPORTED,
            "%s: rope scaling factor %g is not max_position_embeddings / "
            "original_max_position_embeddings = %g, and releases of transformers differ on which counts; "
            "set attention_factor",
            where, factor, ratio);
    r->attention_factor = factor <= 1 ? 1 : sqrt(1 + log(factor) / log((double)r->original_positions));
done:
    return status;
}

static mb_status rotary_read_longrope(const json_t *config, const json_t *rope, int64_t max_positions,
                                      int64_t width, const char *where, mb_rotary *r)
{
    mb_status status = MB_OK;
    const json_t *given = json_object_get(rope, "attention_factor");
    int64_t top = 0;
    if (width / 2 > MB_ROTARY_MAX_PAIRS)
        MB_RAISE(MB_EUNSUPPORTED, "%s: rope scaling 'longrope' of heads wider than %d is not supported",
                 where, 2 * MB_ROTARY_MAX_PAIRS);
    MB_TRY(rotary_read_factors(rope, "short_factor", width / 2, where, r->short_factor));
    MB_TRY(rotary_read_factors(rope, "long_factor", width / 2, where, r->long_factor));
    MB_TRY(mb_json_opt_int(rope, "original_max_position_embeddings", where, &r->original_positions));
    MB_TRY(mb_json_opt_int(config, "original_max_position_embeddings", where, &top));
    if (top != 0) r->original_positions = top;
    if (r->original_positions == 0) r->original_positions = max_positions;
    if (r->original_positions < 2 || r->original_positions > (int64_t)1 << 30)
        MB_RAISE(MB_ERANGE, "%s: original_max_position_embeddings is %lld; it must be at least 2", where,
                 (long long)r->original_positions);
    if (given != NULL && !json_is_null(given))
        MB_TRY(mb_json_get_real(rope, "attention_factor", where, &r->attention_factor));
    else
        MB_TRY(rotary_longrope_factor(rope, max_positions, top != 0, where, r));
    if (!(r->attention_factor > 0) || !(r->attention_factor < 1e6))
        MB_RAISE(MB_ERANGE, "%s: rope scaling attention_factor %g is out of range", where,
                 r->attention_factor);
done:
    return status;
}

static mb_status rotary_read_factor(const json_t *rope, int64_t max_positions, int64_t width,
                                    const char *where, mb_rotary *r)
{
    mb_status status = MB_OK;
    if (r->type == MB_ROTARY_DYNAMIC && width <= 2)
        MB_RAISE(MB_ERANGE, "%s: rope scaling 'dynamic' needs heads wider than 2", where);
    if (r->type == MB_ROTARY_YARN)
        MB_TRY(rotary_read_yarn(rope, max_positions, where, r));
    else
        MB_TRY(mb_json_get_real(rope, "factor", where, &r->factor));
    if (r->type == MB_ROTARY_LLAMA3) MB_TRY(rotary_read_llama3(rope, where, r));
    if (r->type == MB_ROTARY_DYNAMIC) r->original_positions = max_positions;
    if (!(r->factor >= 1) || !(r->factor < 1e9))
        MB_RAISE(MB_ERANGE, "%s: rope scaling factor %g must be at least 1", where, r->factor);
    const bool has_original = r->type == MB_ROTARY_LLAMA3 || r->type == MB_ROTARY_YARN;
    if (has_original && (r->original_positions < 1 || r->original_positions > (int64_t)1 << 30))
        MB_RAISE(MB_ERANGE, "%s: rope scaling original_max_position_embeddings is %lld; it must be positive",
                 where, (long long)r->original_positions);
done:
    return status;
}

mb_status mb_rotary_read(const json_t *config, int64_t max_positions, int64_t width, const char *where,
                         mb_rotary *out_rotary)
{
    mb_status status = MB_OK;
    mb_rotary r;
    const json_t *rope = NULL;
    memset(&r, 0, sizeof r);
    MB_TRY(rotary_find(config, where, &r.type, &rope));
    if (r.type == MB_ROTARY_LONGROPE)
        MB_TRY(rotary_read_longrope(config, rope, max_positions, width, where, &r));
    else if (r.type != MB_ROTARY_DEFAULT)
        MB_TRY(rotary_read_factor(rope, max_positions, width, where, &r));
    *out_rotary = r;
done:
    return status;
}

/* ---- 2. writing ---- */

static mb_status rotary_write_list(json_t *rope, const char *key, const float *factors, int64_t pairs)
{
    mb_status status = MB_OK;
    json_t *list = json_array();
    if (list == NULL) MB_RAISE(MB_ENOMEM, "config: no memory");
    for (int64_t i = 0; i < pairs; i++)
        if (json_array_append_new(list, json_real((double)factors[i])) < 0)
            MB_RAISE(MB_ENOMEM, "config: no memory");
    MB_TRY(mb_json_set(rope, key, json_incref(list)));
done:
    json_decref(list);
    return status;
}

static mb_status rotary_write_fields(const mb_rotary *r, int64_t width, json_t *rope)
{
    mb_status status = MB_OK;
    MB_TRY(mb_json_set(rope, "rope_type", json_string(rotary_names[r->type])));
    if (json_object_get(rope, "type") != NULL)
        MB_TRY(mb_json_set(rope, "type", json_string(rotary_names[r->type])));
    if (r->type != MB_ROTARY_LONGROPE) MB_TRY(mb_json_set(rope, "factor", json_real(r->factor)));
    if (r->type >= MB_ROTARY_LLAMA3)
        MB_TRY(mb_json_set(rope, "original_max_position_embeddings", json_integer(r->original_positions)));
    if (r->type == MB_ROTARY_LLAMA3) {
        MB_TRY(mb_json_set(rope, "low_freq_factor", json_real(r->low_freq_factor)));
        MB_TRY(mb_json_set(rope, "high_freq_factor", json_real(r->high_freq_factor)));
    }
    if (r->type == MB_ROTARY_YARN) {
        MB_TRY(mb_json_set(rope, "beta_fast", json_real(r->beta_fast)));
        MB_TRY(mb_json_set(rope, "beta_slow", json_real(r->beta_slow)));
        MB_TRY(mb_json_set(rope, "truncate", json_boolean(r->truncate)));
    }
    if (r->type >= MB_ROTARY_YARN)
        MB_TRY(mb_json_set(rope, "attention_factor", json_real(r->attention_factor)));
    if (r->type == MB_ROTARY_LONGROPE) {
        MB_TRY(rotary_write_list(rope, "short_factor", r->short_factor, width / 2));
        MB_TRY(rotary_write_list(rope, "long_factor", r->long_factor, width / 2));
    }
done:
    return status;
}

mb_status mb_rotary_write(const mb_rotary *rotary, int64_t width, json_t *config)
{
    mb_status status = MB_OK;
    const json_t *source = json_object_get(config, "rope_scaling");
    json_t *rope = NULL;
    if (json_object_size(source) == 0) source = json_object_get(config, "rope_parameters");
    if (rotary->type != MB_ROTARY_DEFAULT) {
        rope = json_is_object(source) ? json_deep_copy(source) : json_object();
        if (rope == NULL) MB_RAISE(MB_ENOMEM, "config: no memory");
        json_object_del(rope, "rope_theta");
        json_object_del(rope, "partial_rotary_factor");
        MB_TRY(rotary_write_fields(rotary, width, rope));
    }
    if (rotary->type == MB_ROTARY_LONGROPE) /* where 4.x looks for it */
        MB_TRY(mb_json_set(config, "original_max_position_embeddings",
                           json_integer(rotary->original_positions)));
    MB_TRY(mb_json_set(config, "rope_scaling", rope != NULL ? json_incref(rope) : json_null()));
    json_object_del(config, "rope_parameters");
done:
    json_decref(rope);
    return status;
}

/* ---- 3. frequencies ---- */

/* Positions per unit of angle of pair i, unscaled. */
static float rotary_length(double theta, int64_t width, int64_t i)
{
    return powf((float)theta, (float)(2 * i) / (float)width);
}

static void rotary_llama3(const mb_rotary *r, int64_t half, float *frequencies)
{
    const double original = (double)r->original_positions;
    const float longest = (float)(original / r->low_freq_factor);
    const float shortest = (float)(original / r->high_freq_factor);
    const float low = (float)r->low_freq_factor, span = (float)(r->high_freq_factor - r->low_freq_factor);
    for (int64_t i = 0; i < half; i++) {
        const float f = frequencies[i], wave = 1 / f * (float)(2 * M_PI);
        if (wave > longest) {
            frequencies[i] = f / (float)r->factor;
        } else if (wave >= shortest) {
            const float smooth = (1 / wave * (float)original - low) / span;
            frequencies[i] = (1 - smooth) * f / (float)r->factor + smooth * f;
        }
    }
}

/* The (fractional) pair that turns so often within the original length. */
static double rotary_yarn_pair(const mb_rotary *r, double rotations, double theta, int64_t width)
{
    return (double)width * log((double)r->original_positions / (rotations * 2 * M_PI)) / (2 * log(theta));
}

static void rotary_yarn(const mb_rotary *r, double theta, int64_t width, float *frequencies)
{
    double low = rotary_yarn_pair(r, r->beta_fast, theta, width);
    double high = rotary_yarn_pair(r, r->beta_slow, theta, width);
    if (r->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, (double)(width - 1));
    if (low == high) high += 0.001;
    for (int64_t i = 0; i < width / 2; i++) {
        const float place = ((float)i - (float)low) / (float)(high - low);
        const float keep = 1 - fminf(fmaxf(place, 0), 1);
        const float stretched = 1 / ((float)r->factor * rotary_length(theta, width, i));
        frequencies[i] = stretched * (1 - keep) + frequencies[i] * keep;
    }
}

/* The base that a sequence of this length is stretched to. */
static double rotary_dynamic_theta(const mb_rotary *r, double theta, int64_t width, int64_t length)
{
    const double original = (double)r->original_positions;
    const double longer = (double)length > original ? (double)length : original;
    return theta * pow(r->factor * longer / original - (r->factor - 1), (double)width / (double)(width - 2));
}

static bool rotary_is_long(const mb_rotary *r, int64_t length)
{
    return (r->type == MB_ROTARY_DYNAMIC || r->type == MB_ROTARY_LONGROPE) && length > r->original_positions;
}

void mb_rotary_frequencies(const mb_rotary *rotary, double theta, int64_t width, int64_t length,
                           float *out_frequencies)
{
    const mb_rotary *r = rotary;
    const bool is_long = rotary_is_long(r, length);
    const float *factors = is_long ? r->long_factor : r->short_factor;
    if (is_long && r->type == MB_ROTARY_DYNAMIC) theta = rotary_dynamic_theta(r, theta, width, length);
    for (int64_t i = 0; i < width / 2; i++)
        out_frequencies[i] =
            1 / ((r->type == MB_ROTARY_LONGROPE ? factors[i] : 1) * rotary_length(theta, width, i));
    if (r->type == MB_ROTARY_LINEAR)
        for (int64_t i = 0; i < width / 2; i++) out_frequencies[i] /= (float)r->factor;
    if (r->type == MB_ROTARY_LLAMA3) rotary_llama3(r, width / 2, out_frequencies);
    if (r->type == MB_ROTARY_YARN) rotary_yarn(r, theta, width, out_frequencies);
}

/* ---- 4. the table ---- */

static float rotary_scale(const mb_rotary *r)
{
    return r->type >= MB_ROTARY_YARN ? (float)r->attention_factor : 1;
}

/* One row from frequencies, which may lie in the row's first half. */
static void rotary_row(const float *frequencies, int32_t position, int64_t half, float scale, float *row)
{
    for (int64_t i = 0; i < half; i++) {
        const float angle = (float)position * frequencies[i];
        row[half + i] = sinf(angle) * scale;
        row[i] = cosf(angle) * scale;
    }
}

void mb_rotary_table(const mb_rotary *rotary, double theta, int64_t positions, int64_t width, float *table)
{
    mb_rotary_frequencies(rotary, theta, width, 1, table); /* row 0: its angles are 0 whatever they are */
    for (int64_t p = positions - 1; p >= 0; p--)
        rotary_row(table, (int32_t)p, width / 2, rotary_scale(rotary), table + p * width);
}

/* ---- 5. rows of long sequences ---- */

int64_t mb_rotary_limit(const mb_rotary *rotary, int64_t max_positions)
{
    const double longest = rotary->factor * (double)max_positions;
    if (rotary->type != MB_ROTARY_DYNAMIC) return max_positions;
    return longest < (double)INT32_MAX ? (int64_t)longest : INT32_MAX;
}

static int64_t rotary_segment_length(const int32_t *positions, const int32_t *offsets, int64_t segment)
{
    int64_t length = 0;
    for (int32_t t = offsets[segment]; t < offsets[segment + 1]; t++)
        if (positions[t] >= length) length = positions[t] + 1;
    return length;
}

bool mb_rotary_is_long(const mb_rotary *rotary, const int32_t *positions, const int32_t *offsets,
                       int64_t segments)
{
    for (int64_t s = 0; rotary->type != MB_ROTARY_DEFAULT && s < segments; s++)
        if (rotary_is_long(rotary, rotary_segment_length(positions, offsets, s))) return true;
    return false;
}

void mb_rotary_rows(const mb_rotary *rotary, double theta, int64_t width, const int32_t *positions,
                    const int32_t *offsets, int64_t segments, float *table)
{
    for (int64_t s = 0; s < segments; s++) {
        const int32_t first = offsets[s], end = offsets[s + 1];
        if (first == end) continue;
        /* The frequencies lie in the segment's last row until that is made. */
        float *frequencies = table + (end - 1) * width;
        mb_rotary_frequencies(rotary, theta, width, rotary_segment_length(positions, offsets, s),
                              frequencies);
#pragma omp parallel for schedule(static) if (end - first > 64)
        for (int32_t t = first; t < end - 1; t++)
            rotary_row(frequencies, positions[t], width / 2, rotary_scale(rotary), table + t * width);
        rotary_row(frequencies, positions[end - 1], width / 2, rotary_scale(rotary), frequencies);
    }
}
