/* convert_upcycle_tensor: where a tensor of an upcycled model comes from, and its values.
 *
 * Layer: model.  Uses: convert_upcycle, convert_folder, params_source.
 */
#ifndef MB_CONVERT_UPCYCLE_TENSOR_H
#define MB_CONVERT_UPCYCLE_TENSOR_H

#include "model/convert_folder.h"
#include "model/convert_upcycle.h"
#include "model/params_source.h"

typedef struct mb_convert_upcycle_model {
    char *path;
    mb_convert_folder folder; /* its arch and file */
} mb_convert_upcycle_model;

/* The source and its siblings, the plan, and the lists of tensors of both sides. */
typedef struct mb_convert_upcycle_set {
    const mb_convert_upcycle_options *options;
    mb_convert_upcycle_plan plan;
    mb_convert_upcycle_model *models; /* [count] the source first */
    int64_t count;
    int64_t first;         /* models from here on give experts and averages: 0, or 1 for siblings alone */
    mb_params *source;     /* names and shapes of the source (and of each sibling) */
    mb_params *target;     /* of the result */
    float *prompted;       /* [L, rows, D] of gates from prompts; NULL: drawn, zero, or not known */
    int64_t prompted_rows; /* r with virtual groups, else E */
} mb_convert_upcycle_set;

typedef enum mb_convert_upcycle_kind {
    MB_CONVERT_UPCYCLE_SAME,   /* the source's, or the mean of the siblings' */
    MB_CONVERT_UPCYCLE_EXPERT, /* a matrix of one expert */
    MB_CONVERT_UPCYCLE_ROUTER
} mb_convert_upcycle_kind;

typedef struct mb_convert_upcycle_tensor {
    mb_convert_upcycle_kind kind;
    const mb_param *target;
    const mb_param *source; /* of a router: the dense gate projection, for its dtype */
    int64_t giver;          /* model it is from; of an average the first */
    int64_t shard;          /* of an expert, 0..g-1 */
    int part;               /* of an expert: 0 gate, 1 up, 2 down */
    bool is_averaged;
    bool is_computed; /* not the stored bytes: averaged, scaled, with noise, another dtype, a router */
    mb_dtype dtype;   /* it is written in */
} mb_convert_upcycle_tensor;

/* Room for one tensor at a time. Start zeroed. */
typedef struct mb_convert_upcycle_work {
    float *values;
    char *bytes;
    size_t values_room, bytes_room;
} mb_convert_upcycle_work;
void mb_convert_upcycle_tensor_reset(mb_convert_upcycle_work *work);

/* Open and check everything: MB_ESHAPE, MB_EUSAGE for a sibling that does not fit, MB_EDATA for a tensor of a
 * folder that belongs to nothing. Start zeroed; reset in any case. */
mb_status mb_convert_upcycle_set_open(mb_convert_upcycle_set *set, const char *source,
                                      const mb_convert_upcycle_options *options);
void mb_convert_upcycle_set_reset(mb_convert_upcycle_set *set);

/* What tensor i of set->target is. */
mb_status mb_convert_upcycle_tensor_find(mb_convert_upcycle_set *set, int64_t i,
                                         mb_convert_upcycle_tensor *out_tensor);
/* Its bytes in its dtype: in a map or in work, until the next call. */
mb_status mb_convert_upcycle_tensor_read(mb_convert_upcycle_set *set, const mb_convert_upcycle_tensor *tensor,
                                         mb_convert_upcycle_work *work, const void **out_bytes,
                                         size_t *out_n);

#endif
