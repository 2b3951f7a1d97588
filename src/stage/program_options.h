/* program_options: the options that belong to one program alone, and the list of every table of every
 * program.
 *
 * Layer: stage.  Uses: the option tables of the layers below.
 *
 * They stand together so that a study file's defaults can be checked against the keys of all programs, not
 * only of the one that reads it.
 */
#ifndef MB_PROGRAM_OPTIONS_H
#define MB_PROGRAM_OPTIONS_H

#include "choose/select.h"
#include "learn/trainer.h"
#include "measure/embedder.h"
#include "measure/scorer.h"
#include "measure/teacher_maker.h"
#include "model/convert.h"
#include "model/convert_upcycle.h"
#include "serve/generate.h"
#include "stage/category_options.h"
#include "stage/fuse_options.h"
#include "stage/model_options.h"
#include "stage/quantize_options.h"
#include "store/shard_build.h"

typedef struct mb_shard_program {
    mb_shard_build_options build;
    int64_t vocab_size, min_frequency;
} mb_shard_program;
const mb_option *mb_program_options_shard(int64_t *out_count);

typedef struct mb_train_program {
    mb_model_options model;
    mb_fuse_options_stage fuse;
    mb_trainer_options trainer;
    mb_objective_options objective;
    char *shard_path;                /* dataset.path */
    char *peft_mode;                 /* training.peft_mode */
    char *train_parts;               /* training.trainable */
    int64_t num_experts_to_train;    /* training.num_experts_to_train */
    char *experts_to_train;          /* training.experts_to_train */
    char *validation_path;           /* training.validation_path */
    char *student_init;              /* training.student_init */
    char *teacher, *teacher_adapter; /* teacher.path, teacher.adapter: asked while training */
    char *teacher_quantize;          /* teacher.quantize none|int8|int4 */
    char *teacher_type;              /* teacher.type auto|model|ensemble|btm */
    int64_t lora_r;
    double lora_alpha, lora_dropout;
    char *lora_targets;
    bool use_rslora;
} mb_train_program;
const mb_option *mb_program_options_train(int64_t *out_count);

typedef struct mb_score_program {
    mb_model_options model;
    mb_fuse_options_stage fuse;
    mb_scorer_options scorer;
    char *shard_path, *source_model, *cache_dir;
} mb_score_program;
const mb_option *mb_program_options_score(int64_t *out_count);

typedef struct mb_teacher_program {
    mb_model_options model;
    mb_fuse_options_stage fuse;
    mb_teacher_maker_options maker;
    char *shard_path, *cache_dir;
} mb_teacher_program;
const mb_option *mb_program_options_teacher(int64_t *out_count);

typedef struct mb_select_program {
    mb_shard_build_options build;
    mb_select_options select;
    char *scores_path, *score, *score_layers, *labels_path, *a, *b;
} mb_select_program;
const mb_option *mb_program_options_select(int64_t *out_count);

typedef struct mb_convert_program {
    mb_model_options model;
    mb_convert_trash_options trash;
    mb_convert_upcycle_options upcycle;
    char *trash_init;
    int64_t seed;
    bool verify;
    char *config, *tokenizer, *against;
} mb_convert_program;
const mb_option *mb_program_options_convert(int64_t *out_count);

typedef struct mb_eval_program {
    mb_model_options model;
    mb_fuse_options_stage fuse;
    mb_category_program category;
    char *shard_path, *tasks, *tokenizer, *softmax_dtype, *routing_over, *reference;
    char *questions, *question_style; /* eval.questions, eval.question_style */
    int64_t fewshot, limit, max_length, tile_tokens, routing_permutations, routing_seed;
    int64_t draws, draw_seed; /* eval.draws, eval.seed */
    double near_tie, beta, level;
    bool log_samples, only_masked, routing;
} mb_eval_program;
const mb_option *mb_program_options_eval(int64_t *out_count);

typedef struct mb_inspect_program {
    mb_objective_options objective;
    mb_model_options model;
    char *tokens, *out, *tokenizer, *input, *train, *objective_name;
    bool add_special_tokens, skip_special_tokens, hash;
} mb_inspect_program;
const mb_option *mb_program_options_inspect(int64_t *out_count);

typedef struct mb_infer_program {
    mb_model_options model;
    mb_fuse_options_stage fuse;
    mb_generate_options generate;
    char *input, *prompt, *form, *fields, *tmpl, *template_dir, *tokenizer, *on_bad;
    int64_t limit;
    bool show_router_stats, router_stats_tokens;
} mb_infer_program;
const mb_option *mb_program_options_infer(int64_t *out_count);

typedef struct mb_embed_program {
    mb_model_options model;
    mb_embedder_options embed;
    mb_shard_build_options build; /* only what its options below fill */
    char *shard_path, *tokenizer;
    int64_t max_length;
    bool npy;
} mb_embed_program;
const mb_option *mb_program_options_embed(int64_t *out_count);

#define MB_PROGRAM_OPTIONS_TABLES 48
/* Every table of every program, for checking and documentation (target NULL). At most `room`; returns how
 * many. */
int64_t mb_program_options_all(mb_option_table *tables, int64_t room);

#endif
