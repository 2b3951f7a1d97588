/* program_options: one table per program, and the registry of all tables.
 *
 * Contents: 1. tables  2. registry
 */
#include "stage/program_options.h"

#include "stage/bench_options.h"
#include "stage/cluster_options.h"
#include "stage/experts_options.h"
#include "stage/gate_settings.h"
#include "stage/inspect_machine.h"
#include "stage/merge_options.h"
#include "stage/subset_options.h"

/* ---- 1. tables ---- */

static const mb_option shard_options[] = {
    MB_OPTION_INT(mb_shard_program, vocab_size, "tokenizer.vocab_size", "2048", 258, 1 << 20, "tokens",
                  "mode tokenizer: bytes, merges and special tokens together", NULL),
    MB_OPTION_INT(mb_shard_program, min_frequency, "tokenizer.min_frequency", "2", 1, 1e12, "",
                  "mode tokenizer: rarer pairs are not merged", NULL),
};

const mb_option *mb_program_options_shard(int64_t *out_count)
{
    *out_count = (int64_t)(sizeof shard_options / sizeof *shard_options);
    return shard_options;
}

static const mb_option train_options[] = {
    MB_OPTION_TEXT(mb_train_program, shard_path, "dataset.path", NULL, NULL,
                   "token shard, a comma-separated list of them, or a folder of them", "dataset.shard"),
    MB_OPTION_TEXT(
        mb_train_program, peft_mode, "training.peft_mode", "full", "full|full_rank|lora",
        "full: everything of training.trainable; full_rank: the same for the routers; lora: an adapter",
        "training.peft_config.mode"),
    MB_OPTION_TEXT(mb_train_program, train_parts, "training.trainable", NULL, NULL,
                   "what trains: words (all, router, experts, attention) and patterns of tensor names, ! "
                   "before one freezes it: all,!attention; default by objective: all, and router for "
                   "router_warmup",
                   NULL),
    MB_OPTION_INT(mb_train_program, num_experts_to_train, "training.num_experts_to_train", "0", 0, 65536,
                  "experts",
                  "of every layer's experts that train by training.trainable only the first so many "
                  "do; 0: all of them",
                  "num_experts_to_train"),
    MB_OPTION_LIST(mb_train_program, experts_to_train, "training.experts_to_train", NULL,
                   "the same by number, as 0,3: the others keep their bits", "experts_to_train"),
    MB_OPTION_TEXT(mb_train_program, validation_path, "training.validation_path", NULL, NULL,
                   "token shard to validate on while training: loss and terms per type and over all",
                   "training.eval_path|dataset.validation_path"),
    MB_OPTION_TEXT(
        mb_train_program, student_init, "training.student_init", NULL, NULL,
        "distil: what the student starts from, instead of model.path: foundation, sft (the folders "
        "of fuse.foundation and fuse.sft) or a folder",
        "student_init|student_model_init"),
    MB_OPTION_TEXT(
        mb_train_program, teacher, "teacher.path", NULL, NULL,
        "distil: folder of the teacher, fused or not, that is asked while training; fuse.foundation "
        "and fuse.sft, or fuse.router, name one too",
        "teacher_model|teacher_model_path"),
    MB_OPTION_TEXT(mb_train_program, teacher_adapter, "teacher.adapter", NULL, NULL,
                   "distil: PEFT adapter folder on teacher.path", NULL),
    MB_OPTION_TEXT(mb_train_program, teacher_quantize, "teacher.quantize", "none", "none|int8|int4|8|4",
                   "distil: keep the matrices of the teacher's layers in 8 or 4 bits", NULL),
    MB_OPTION_TEXT(
        mb_train_program, teacher_type, "teacher.type", "auto", "auto|model|ensemble|btm",
        "distil: what the teacher that is asked while training must be: one model, an ensemble, or "
        "a fused model with a router (btm); auto: whatever the keys name",
        "teacher_type"),
    MB_OPTION_INT(mb_train_program, lora_r, "training.lora.r", "128", 1, 65536, "", "rank of the adapter",
                  "training.peft_config.lora_r|lora_rank"),
    MB_OPTION_REAL(mb_train_program, lora_alpha, "training.lora.lora_alpha", "256", 1e-6, 1e6, "",
                   "scale of the adapter is lora_alpha / r", "training.peft_config.lora_alpha|lora_alpha"),
    MB_OPTION_REAL(mb_train_program, lora_dropout, "training.lora.lora_dropout", "0", 0, 0.99, "",
                   "dropout in front of the adapter", "training.peft_config.lora_dropout|lora_dropout"),
    MB_OPTION_LIST(mb_train_program, lora_targets, "training.lora.target_modules",
                   "q_proj,k_proj,v_proj,o_proj",
                   "modules that get an adapter, or all-linear; router_warmup: gate",
                   "training.peft_config.target_modules|lora_target"),
    MB_OPTION_BOOL(mb_train_program, use_rslora, "training.lora.use_rslora", "false",
                   "scale by lora_alpha / sqrt(r)", NULL),
};

const mb_option *mb_program_options_train(int64_t *out_count)
{
    *out_count = (int64_t)(sizeof train_options / sizeof *train_options);
    return train_options;
}

static const mb_option score_options[] = {
    MB_OPTION_TEXT(mb_score_program, shard_path, "dataset.path", NULL, NULL,
                   "token shard, a comma-separated list of them, or a folder of them", "dataset.shard"),
    MB_OPTION_TEXT(
        mb_score_program, source_model, "score.source_model", NULL, NULL,
        "the unconverted model, for perplexity and entropy; default: model.path when it has no trash", NULL),
    MB_OPTION_TEXT(mb_score_program, cache_dir, "score.cache_dir", NULL, NULL,
                   "folder where finished tables are kept by what they were made from; a run that would make "
                   "one again takes it from there",
                   NULL),
};

const mb_option *mb_program_options_score(int64_t *out_count)
{
    *out_count = (int64_t)(sizeof score_options / sizeof *score_options);
    return score_options;
}

static const mb_option teacher_options[] = {
    MB_OPTION_TEXT(mb_teacher_program, shard_path, "dataset.path", NULL, NULL,
                   "token shard, a comma-separated list of them, or a folder of them", "dataset.shard"),
    MB_OPTION_TEXT(mb_teacher_program, cache_dir, "teacher.cache_dir", NULL, NULL,
                   "folder where finished files are kept by what they were made from; a run that would make "
                   "one again takes it from there",
                   NULL),
};

const mb_option *mb_program_options_teacher(int64_t *out_count)
{
    *out_count = (int64_t)(sizeof teacher_options / sizeof *teacher_options);
    return teacher_options;
}

static const mb_option select_options[] = {
    MB_OPTION_TEXT(mb_select_program, scores_path, "scores.path", NULL, NULL, "score table to select from",
                   "select.scores"),
    MB_OPTION_TEXT(mb_select_program, score, "select.score", "good_mass", NULL, "which score of the table",
                   "data_selection.score"),
    MB_OPTION_LIST(mb_select_program, score_layers, "select.score_layers", NULL,
                   "positions of the stored layers to average; none: the score as stored", NULL),
    MB_OPTION_TEXT(mb_select_program, labels_path, "labels.path", NULL, NULL,
                   "mode auc: JSONL of {source, index, kind}, kind \"good\" or a kind of damage", NULL),
    MB_OPTION_TEXT(mb_select_program, a, "a.path", NULL, NULL, "mode compare: one selected_data.jsonl", "a"),
    MB_OPTION_TEXT(mb_select_program, b, "b.path", NULL, NULL, "mode compare: the other", "b"),
};

const mb_option *mb_program_options_select(int64_t *out_count)
{
    *out_count = (int64_t)(sizeof select_options / sizeof *select_options);
    return select_options;
}

static const mb_option convert_options[] = {
    MB_OPTION_INT(mb_convert_program, trash.trash_experts, "convert.trash_experts", "0", 0, 65536, "experts",
                  "trash experts added to every MoE layer; 0: as many as a token picks", "trash_experts"),
    MB_OPTION_TEXT(mb_convert_program, trash_init, "convert.trash_init", "normal", "normal|closed",
                   "closed: the converted model computes the source's function, and warm-up opens the trash "
                   "(training.trash_open_steps)",
                   "trash_init"),
    MB_OPTION_REAL(mb_convert_program, trash.trash_init_std, "convert.trash_init_std", "0.02", 0, 10, "",
                   "standard deviation of the new gate rows", "trash_init_std"),
    MB_OPTION_INT(mb_convert_program, upcycle.experts, "convert.experts", "8", 1, 65536, "experts",
                  "mode upcycle: experts of each layer", "num_experts|num_local_experts|convert.num_experts"),
    MB_OPTION_INT(mb_convert_program, upcycle.picks, "convert.experts_per_token", "2", 1, 65536, "experts",
                  "mode upcycle: experts a token picks",
                  "num_experts_per_tok|num_experts_per_token|convert.top_k|moe_router_topk"),
    MB_OPTION_INT(mb_convert_program, upcycle.granularity, "convert.granularity", "1", 1, 65536, "shards",
                  "mode upcycle: shards the dense FFN is cut into; an expert holds one (1: a whole copy)",
                  "moe_upcycling_granularity"),
    MB_OPTION_TEXT(mb_convert_program, upcycle.router_init, "convert.router_init", "normal",
                   "normal|zero|prompts",
                   "mode upcycle: gates drawn, zero (with virtual groups or noise), or from hidden states of "
                   "convert.prompts",
                   "gate_mode"),
    MB_OPTION_REAL(mb_convert_program, upcycle.router_init_std, "convert.router_init_std", "0.02", 0, 10, "",
                   "mode upcycle: standard deviation of drawn gates", NULL),
    MB_OPTION_LIST(mb_convert_program, upcycle.prompts, "convert.prompts", NULL,
                   "mode upcycle, router_init = prompts: one JSONL file of {\"expert\": 0, \"text\": ...} "
                   "(\"negative\": true for those it shall not take), or a text file for each expert, a "
                   "prompt a line",
                   NULL),
    MB_OPTION_REAL(mb_convert_program, upcycle.prompts_margin, "convert.prompts_margin", "2", 0, 100, "nats",
                   "mode upcycle, router_init = prompts: how far an expert's mean logit on its own prompts "
                   "lies above the others'",
                   NULL),
    MB_OPTION_BOOL(mb_convert_program, upcycle.virtual_groups, "convert.virtual_groups", "true",
                   "mode upcycle, granularity over 1: the shards of a copy share one gate row, so that whole "
                   "copies are picked",
                   NULL),
    MB_OPTION_TEXT(mb_convert_program, upcycle.scaling, "convert.scaling", "down", "none|megatron|down",
                   "mode upcycle, granularity over 1: weights multiplied so that the output keeps its size: "
                   "all on the down projection (exact), or the cube root on each matrix (Megatron)",
                   NULL),
    MB_OPTION_BOOL(mb_convert_program, upcycle.normalise, "convert.norm_topk_prob", "true",
                   "mode upcycle: the weights of a token's picks are divided by their sum; false only for "
                   "Qwen3 models",
                   NULL),
    MB_OPTION_REAL(mb_convert_program, upcycle.noise, "convert.noise", "0", 0, 10, "share",
                   "mode upcycle: normal noise on every expert matrix, by its root mean square", NULL),
    MB_OPTION_LIST(mb_convert_program, upcycle.siblings, "convert.siblings", NULL,
                   "mode upcycle: fine-tuned copies of model.path; experts come from them in turn, all else "
                   "is their mean (Branch-Train-Mix)",
                   NULL),
    MB_OPTION_BOOL(mb_convert_program, upcycle.source_is_sibling, "convert.source_is_sibling", "false",
                   "mode upcycle: model.path itself is the first of the siblings", NULL),
    MB_OPTION_LIST(mb_convert_program, upcycle.layers, "convert.layers", NULL,
                   "mode upcycle: layers that get experts, as 0,2,4-9; none given: all (Qwen3 models only)",
                   NULL),
    MB_OPTION_TEXT(mb_convert_program, upcycle.dtype, "convert.dtype", "source", "source|f32|bf16",
                   "mode upcycle: number type of the weights written", NULL),
    MB_OPTION_INT(mb_convert_program, seed, "convert.seed", "42", 0, 9e18, "", "seed of new tensors", NULL),
    MB_OPTION_BOOL(mb_convert_program, verify, "convert.verify", "true",
                   "compare checksums and logits of source and result, and fail when they do not fit", NULL),
    MB_OPTION_TEXT(mb_convert_program, config, "convert.config", NULL, NULL,
                   "mode init: config.json of the new model, or a folder that has one", NULL),
    MB_OPTION_TEXT(mb_convert_program, tokenizer, "tokenizer.path", NULL, NULL,
                   "mode init: folder whose tokenizer files are copied into the model; upcycle: tokenizer of "
                   "the prompts (default: the model's)",
                   NULL),
    MB_OPTION_TEXT(mb_convert_program, against, "convert.target", NULL, NULL,
                   "mode verify: the result to compare model.path with", NULL),
};

const mb_option *mb_program_options_convert(int64_t *out_count)
{
    *out_count = (int64_t)(sizeof convert_options / sizeof *convert_options);
    return convert_options;
}

static const mb_option eval_options[] = {
    MB_OPTION_TEXT(mb_eval_program, shard_path, "dataset.path", NULL, NULL, "token shards for perplexity",
                   "dataset.shard"),
    MB_OPTION_LIST(mb_eval_program, tasks, "eval.tasks", NULL,
                   "kind=file or name:kind=file, ...: arc_easy, arc_challenge, hellaswag, mmlu, choice (any "
                   "multiple-choice JSONL), requests",
                   "tasks"),
    MB_OPTION_TEXT(mb_eval_program, tokenizer, "tokenizer.path", NULL, NULL,
                   "tokenizer of the tasks; default: the model's folder", NULL),
    MB_OPTION_INT(
        mb_eval_program, fewshot, "eval.num_fewshot", "0", 0, 100, "examples",
        "mmlu: the first n of dev; eval.questions: solved examples in front, of those that a question "
        "brings",
        "num_fewshot"),
    MB_OPTION_INT(mb_eval_program, limit, "eval.limit", "0", 0, 1e12, "questions",
                  "only the first so many of each task; 0: all", "limit"),
    MB_OPTION_INT(mb_eval_program, max_length, "eval.max_length", "0", 0, 1 << 24, "tokens",
                  "longest request or record; 0: the model's positions", NULL),
    MB_OPTION_INT(mb_eval_program, tile_tokens, "eval.tile_tokens", "8192", 16, 1 << 24, "tokens",
                  "tokens computed together", "eval.batch_size"),
    MB_OPTION_TEXT(mb_eval_program, softmax_dtype, "eval.softmax_dtype", "f32", "f32|bf16",
                   "dtype of the log-probabilities; bf16 for parity with bf16 models", "softmax_dtype"),
    MB_OPTION_REAL(mb_eval_program, near_tie, "eval.near_tie", "0.001", 0, 10, "nats",
                   "best two choices closer than this are listed as near-ties", NULL),
    MB_OPTION_BOOL(mb_eval_program, log_samples, "eval.log_samples", "false", "write samples_<task>.jsonl",
                   "log_samples"),
    MB_OPTION_BOOL(mb_eval_program, only_masked, "eval.only_answers", "false",
                   "perplexity of the loss mask's tokens only", NULL),
    MB_OPTION_TEXT(mb_eval_program, reference, "eval.reference", NULL, NULL,
                   "dataset.path of pairs: score file with the reference's log-probabilities (moe-score "
                   "score.scores=logprob), for rewards",
                   NULL),
    MB_OPTION_REAL(mb_eval_program, beta, "eval.beta", "0.1", 0, 1e6, "",
                   "rewards are beta (ln p - ln p of the reference)", NULL),
    MB_OPTION_BOOL(mb_eval_program, routing, "eval.routing", "false",
                   "dataset.path: which experts the tokens of each type go to, and the information between "
                   "expert and type (routing.h5)",
                   NULL),
    MB_OPTION_TEXT(mb_eval_program, routing_over, "eval.routing_over", "all", "all|answers",
                   "tokens whose routing counts: all, or those of the loss mask", NULL),
    MB_OPTION_INT(mb_eval_program, routing_permutations, "eval.routing_permutations", "99", 0, 9999, "",
                  "times the types are permuted over the records, to see what information no relation gives",
                  NULL),
    MB_OPTION_INT(mb_eval_program, routing_seed, "eval.routing_seed", "42", 0, 9e18, "",
                  "seed of the permutations", NULL),
    MB_OPTION_TEXT(mb_eval_program, questions, "eval.questions", NULL, NULL,
                   "file of unified questions (moe-merge) to answer: answers.h5, for moe-gate and moe-subset",
                   NULL),
    MB_OPTION_TEXT(
        mb_eval_program, question_style, "eval.question_style", "letters", "letters|texts",
        "eval.questions: options are listed and answered by a letter, or not listed and answered by "
        "their texts, whose log-probabilities per byte count",
        NULL),
    MB_OPTION_INT(mb_eval_program, draws, "eval.draws", "2000", 100, 1e7, "",
                  "eval.questions: draws of the bootstrap for the intervals of accuracies", NULL),
    MB_OPTION_INT(mb_eval_program, draw_seed, "eval.seed", "42", 0, 9e18, "",
                  "eval.questions: seed of the draws", NULL),
    MB_OPTION_REAL(mb_eval_program, level, "eval.level", "0.95", 0.5, 0.9999, "share",
                   "eval.questions: what the intervals hold of the draws", NULL),
};

const mb_option *mb_program_options_eval(int64_t *out_count)
{
    *out_count = (int64_t)(sizeof eval_options / sizeof *eval_options);
    return eval_options;
}

static const mb_option inspect_options[] = {
    MB_OPTION_TEXT(
        mb_inspect_program, tokens, "tokens", NULL, NULL,
        "forward, gradients: JSON array of arrays of token ids, or of objects with ids and loss_mask", NULL),
    MB_OPTION_TEXT(mb_inspect_program, out, "out", NULL, NULL,
                   "file to write: .h5 (forward, gradients) or .jsonl (encode, decode)", NULL),
    MB_OPTION_TEXT(mb_inspect_program, objective_name, "objective", NULL, "lm|sft|router_warmup|dpo|btm",
                   "gradients: the objective; default training.objective", NULL),
    MB_OPTION_TEXT(mb_inspect_program, train, "train", NULL, NULL,
                   "gradients: all, router, lora or patterns; default by objective", "training.trainable"),
    MB_OPTION_TEXT(mb_inspect_program, tokenizer, "tokenizer", NULL, NULL,
                   "encode, decode: tokenizer.json or its folder", "tokenizer.path"),
    MB_OPTION_TEXT(mb_inspect_program, input, "input", NULL, NULL,
                   "encode: one JSON string per line; decode: one JSON array of ids", NULL),
    MB_OPTION_BOOL(mb_inspect_program, add_special_tokens, "add_special_tokens", "false",
                   "encode: apply the post-processor", NULL),
    MB_OPTION_BOOL(mb_inspect_program, skip_special_tokens, "skip_special_tokens", "true",
                   "decode: leave special tokens out", NULL),
    MB_OPTION_BOOL(mb_inspect_program, hash, "hash", "false", "file: print the content hash only", NULL),
};

const mb_option *mb_program_options_inspect(int64_t *out_count)
{
    *out_count = (int64_t)(sizeof inspect_options / sizeof *inspect_options);
    return inspect_options;
}

static const mb_option infer_options[] = {
    MB_OPTION_TEXT(mb_infer_program, input, "dataset.path", NULL, NULL,
                   "prompts: JSONL (objects or strings), JSON or CSV, each also gzip",
                   "input|generate.inputs"),
    MB_OPTION_TEXT(mb_infer_program, prompt, "prompt", NULL, NULL,
                   "one prompt; its continuation goes to standard output", NULL),
    MB_OPTION_TEXT(mb_infer_program, form, "dataset.form", "auto",
                   "auto|text|io|alpaca|messages|sharegpt|qa|pair|oasst", "form of the records", NULL),
    MB_OPTION_TEXT(mb_infer_program, fields, "dataset.fields", NULL, NULL,
                   "names of fields: ours=theirs, ... as in \"prompt=body\"", NULL),
    MB_OPTION_TEXT(
        mb_infer_program, tmpl, "generate.template", "auto", NULL,
        "auto: questions by the chat template of the tokenizer's folder, prompts and texts as they "
        "stand; else a name of dataset.template_dir or a .json file, for all",
        NULL),
    MB_OPTION_TEXT(mb_infer_program, template_dir, "dataset.template_dir", "conf/template", NULL,
                   "folder of the template files", NULL),
    MB_OPTION_TEXT(mb_infer_program, tokenizer, "tokenizer.path", NULL, NULL,
                   "tokenizer; default: the model's folder", NULL),
    MB_OPTION_TEXT(mb_infer_program, on_bad, "dataset.on_bad", "skip", "skip|fail",
                   "records that cannot be answered: left out and listed, or an error", NULL),
    MB_OPTION_INT(mb_infer_program, limit, "dataset.limit", "0", 0, 1e12, "records",
                  "only the first so many; 0: all", NULL),
    MB_OPTION_BOOL(mb_infer_program, show_router_stats, "infer.show_router_stats", "false",
                   "share of each member of a fused model in prompts and answers, per stage of its router: a "
                   "table for one prompt, router_stats.h5 for a file",
                   "show_router_stats"),
    MB_OPTION_BOOL(mb_infer_program, router_stats_tokens, "infer.router_stats_tokens", "false",
                   "the same for every token", "router_stats_tokens"),
};

const mb_option *mb_program_options_infer(int64_t *out_count)
{
    *out_count = (int64_t)(sizeof infer_options / sizeof *infer_options);
    return infer_options;
}

static const mb_option embed_options[] = {
    {.key = "dataset.inputs",
     .kind = MB_OPTION_KIND_JSON,
     .field = offsetof(mb_embed_program, build.inputs),
     .unit = "",
     .help = "files to read: name=path,name=path or a list of groups { name, path, form, fields, samples }",
     .aliases = "dataset.data_path|dataset.datasets"},
    MB_OPTION_TEXT(mb_embed_program, shard_path, "dataset.path", NULL, NULL,
                   "token shards of the model's tokenizer, instead of dataset.inputs", "dataset.shard"),
    MB_OPTION_TEXT(mb_embed_program, build.form, "dataset.form", "auto",
                   "auto|text|io|alpaca|messages|sharegpt|qa", "form of the records of inputs that name none",
                   NULL),
    MB_OPTION_TEXT(mb_embed_program, build.fields, "dataset.fields", NULL, NULL,
                   "field mapping ours=theirs, e.g. text=body", NULL),
    MB_OPTION_TEXT(
        mb_embed_program, build.tmpl, "dataset.template", "lines", NULL,
        "how records of several parts become one text: a name of dataset.template_dir or a .json file",
        "template"),
    MB_OPTION_TEXT(mb_embed_program, build.template_dir, "dataset.template_dir", "conf/template", NULL,
                   "folder of the template files", NULL),
    MB_OPTION_TEXT(mb_embed_program, build.on_bad, "dataset.on_bad", "skip", "skip|fail",
                   "records that cannot be read: skip and count, or fail at the first", NULL),
    MB_OPTION_INT(mb_embed_program, build.max_record_bytes, "dataset.max_record_bytes", "67108864", 64, 1e12,
                  "bytes", "longer records are bad", NULL),
    MB_OPTION_INT(
        mb_embed_program, max_length, "dataset.max_length", "0", 0, 1 << 24, "tokens",
        "longer records are cut, special tokens kept; 0: as the folder's sentence-transformers files "
        "say, else the model's positions",
        "cutoff_len|max_seq_length"),
    MB_OPTION_TEXT(mb_embed_program, tokenizer, "tokenizer.path", NULL, NULL,
                   "tokenizer; default: the model's folder", "tokenizer_path"),
    MB_OPTION_BOOL(mb_embed_program, npy, "embed.npy", "false", "write embeddings.npy too", NULL),
};

const mb_option *mb_program_options_embed(int64_t *out_count)
{
    *out_count = (int64_t)(sizeof embed_options / sizeof *embed_options);
    return embed_options;
}

/* ---- 2. registry ---- */

int64_t mb_program_options_all(mb_option_table *tables, int64_t room)
{
    static const mb_option *(*const all[])(int64_t *) = {
        mb_program_options_shard,   mb_program_options_train,   mb_program_options_score,
        mb_program_options_select,  mb_program_options_convert, mb_program_options_eval,
        mb_program_options_inspect, mb_model_option_table,      mb_shard_build_option_table,
        mb_trainer_option_table,    mb_objective_option_table,  mb_scorer_option_table,
        mb_select_option_table,     mb_program_options_infer,   mb_generate_option_table,
        mb_program_options_embed,   mb_embedder_option_table,   mb_inspect_machine_option_table,
        mb_fuse_option_table,       mb_program_options_teacher, mb_teacher_maker_option_table,
        mb_category_option_table,   mb_quantize_option_table,   mb_cluster_option_table,
        mb_kmeans_option_table,     mb_gate_settings_table,     mb_gate_option_table,
        mb_merge_option_table,      mb_experts_options_table,   mb_subset_option_table,
        mb_bench_option_table};
    int64_t n = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all && n < room; ++i) {
        tables[n] = (mb_option_table){0};
        tables[n].options = all[i](&tables[n].count);
        ++n;
    }
    return n;
}
