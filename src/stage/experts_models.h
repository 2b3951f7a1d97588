/* experts_models: the experts of one rank, and how they answer requests: options by their log-likelihood
 * behind the prompt, without options by a greedy text. The numbers are those of moe-eval with
 * eval.questions.
 *
 * Layer: stage.  Uses: model, measure (choice), serve (generate, experts_wire), experts_options,
 * infer_prompts.
 */
#ifndef MB_EXPERTS_MODELS_H
#define MB_EXPERTS_MODELS_H

#include "comm/comm.h"
#include "serve/experts_wire.h"
#include "stage/experts_options.h"
#include "stage/model_options.h"

typedef struct mb_experts_models mb_experts_models;

/* The experts that the plan puts on this rank. alone: a comm of this rank alone. storage: dtype and the
 * like; its path and adapter are not read. Everything is borrowed. The message names the expert. */
mb_status mb_experts_models_open(mb_comm *alone, int rank, mb_ops *ops, const mb_model_options *storage,
                                 const mb_experts_options *options, const mb_experts_plan *plan,
                                 mb_experts_models **out_models);
void mb_experts_models_close(mb_experts_models **models);
int64_t mb_experts_models_count(const mb_experts_models *models); /* experts here */
/* Hash of an expert's model with its adapter; NULL: it is not here. Borrowed. */
const char *mb_experts_models_hash(mb_experts_models *models, int64_t expert);

/* own: the mb_experts_models. As experts_serve.h says. */
mb_status mb_experts_models_answer(void *own, int64_t expert, const mb_experts_request *requests, int64_t n,
                                   mb_experts_answer *answers);

#endif
