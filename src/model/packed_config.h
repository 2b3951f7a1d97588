/* packed_config: what config.json says of a model whose matrices are kept in 4 bits, as compressed-tensors
 * writes it ("quantization_config", format pack-quantized).
 *
 * Layer: model.  Uses: base.
 * Source: compressed-tensors (QuantizationConfig, QuantizationArgs); transformers' CompressedTensorsConfig.
 *
 * Read: weights alone, integers of 4 bits, symmetric, one scale per group of columns or per row, with or
 * without an order of activations that leaves the groups where they are ("weight", "static"). Anything else
 * (another method or format, activations, zero points, sparsity, kept keys) is refused by name:
 * MB_EUNSUPPORTED.
 */
#ifndef MB_PACKED_CONFIG_H
#define MB_PACKED_CONFIG_H

#include "base/json.h"

enum { MB_PACKED_BITS = 4 };

/* config: the whole of config.json. 0 bits where it holds no quantization_config (or null). out_group:
 * columns that share a scale in most matrices, 0 for one scale per row; each matrix's own is seen from its
 * tensors. */
mb_status mb_packed_config_read(const json_t *config, const char *where, int *out_bits, int64_t *out_group);

/* Matrices whose group is not that of the rest: a regular expression over module names, group 0: a scale per
 * row. */
typedef struct mb_packed_exception {
    char pattern[160];
    int64_t group;
} mb_packed_exception;
/* A new quantization_config: every Linear in groups of `group` but for the exceptions, and those of `ignore`
 * (an array of module names and "re:" patterns, borrowed) not at all. */
mb_status mb_packed_config_make(int64_t group, bool act_order, const mb_packed_exception *exceptions,
                                int64_t count, const json_t *ignore, json_t **out_config);

#endif
