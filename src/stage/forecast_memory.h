/* forecast_memory: bytes per rank by kind of any stage, by the plans of the modules that will take them,
 * before anything is opened.
 *
 * Layer: stage.  Uses: forecast_stage, forecast_model, forecast_data, model (lm_plan), comm (lanes, scatter).
 *
 * Where the stage computes on GPUs (stage.on_gpu), what lies on a rank's GPU is told apart from what the node
 * holds.
 *
 * Training: what mb_trainer_forecast says of an open model, from the architecture alone (a test holds the two
 * together), and besides the data's index and a program's own memory.
 */
#ifndef MB_FORECAST_MEMORY_H
#define MB_FORECAST_MEMORY_H

#include "stage/forecast_data.h"
#include "stage/forecast_model.h"

typedef enum mb_forecast_memory_kind {
    MB_FORECAST_WEIGHTS,
    MB_FORECAST_BLOCKS,
    MB_FORECAST_TRAINED,
    MB_FORECAST_OPTIMISER,
    MB_FORECAST_GRADIENTS,
    MB_FORECAST_ACTIVATIONS,
    MB_FORECAST_CHECKPOINT,
    MB_FORECAST_OTHER,
    MB_FORECAST_CACHE,
    MB_FORECAST_DATA,
    MB_FORECAST_PROGRAM,
    MB_FORECAST_MEMORY_KINDS
} mb_forecast_memory_kind;

typedef struct mb_forecast_memory {
    double bytes[MB_FORECAST_MEMORY_KINDS];
    double gpu;  /* of a rank, on its GPU; 0: computed on the host */
    double rank; /* sum of the rest: of the rank that needs most */
    double node; /* of the ranks of one node */
    /* Of the model, by the way: */
    double parameters, tensors;     /* in all, adapters left out */
    double teacher;                 /* parameters of a model that is asked while another trains */
    double trained;                 /* elements */
    double router, router_tensors;  /* elements and tensors of a fused model's routers */
    double adapter, adapter_active; /* an adapter's elements; those a token passes */
} mb_forecast_memory;

const char *mb_forecast_memory_name(mb_forecast_memory_kind kind); /* "blocks brought in" */
/* Does it lie on the GPU where a stage computes on one? */
bool mb_forecast_memory_is_of_gpu(mb_forecast_memory_kind kind);

/* opt_source: of moe-score, the unconverted model, NULL when no score needs it; of a distillation, the
 * teacher that is asked while training. ranks in all, node_ranks of them on a node. MB_EUSAGE: more ranks
 * than lanes. */
mb_status mb_forecast_memory_get(mb_forecast_stage *stage, const mb_forecast_model *opt_model,
                                 const mb_forecast_model *opt_source, const mb_forecast_data *data,
                                 int64_t ranks, int64_t node_ranks, mb_forecast_memory *out_memory);

/* What trains, as main_train says it (train_parts.h; mb_free): "none", "all", "router", "lora" or a list; and
 * the adapter (NULL: none) with its options in *storage. */
mb_status mb_forecast_memory_trained(const mb_forecast_stage *stage, const mb_forecast_model *model,
                                     mb_lora_options *storage, const mb_lora_options **out_lora,
                                     char **out_train);

#endif
