/* generate: continuations of prompts by a language model, many at a time.
 *
 * Layer: serve.  Uses: comm, text (tokenizer), model (lm).
 * Source: continuous batching: Yu et al. (2022) "Orca"; stopping rules as transformers' generate().
 *
 * A sequence has a slot of the key/value cache, taken as long as it lives and given to the next prompt at
 * once. One forward pass per step holds one row of every sequence that is being answered, and pieces of
 * prompts that are new. Pieces of a prompt are cut at fixed places of it, products are row stable, and
 * draws are keyed by (seed, record, sample, position): an answer does not depend on the others in the batch
 * (bitwise where the backend is row stable).
 *
 * Ranks of a group (a model whose members lie on several ranks, fuse.h) make every step together: the first
 * has the source, its prompts and the tokens it draws are everyone's, and an error or a stop of one is agreed
 * before the next step.
 */
#ifndef MB_GENERATE_H
#define MB_GENERATE_H

#include "base/option.h"
#include "model/lm.h"
#include "text/tokenizer.h"

typedef struct mb_generate_options {
    int64_t max_new_tokens;    /* generate.max_new_tokens 128 */
    double temperature;        /* generate.temperature 0: greedy */
    int64_t top_k;             /* generate.top_k 0 */
    double top_p, min_p;       /* generate.top_p 1, generate.min_p 0 */
    double repetition_penalty; /* generate.repetition_penalty 1 */
    int64_t samples;           /* generate.num_return_sequences 1 */
    int64_t seed;              /* generate.seed 42 */
    char *stop;                /* generate.stop: JSON list or one string */
    bool ignore_eos;           /* generate.ignore_eos false */
    bool cache;                /* generate.cache true */
    int64_t batch_sequences;   /* generate.batch_sequences 64 */
    int64_t batch_tokens;      /* generate.batch_tokens 32768 */
    int64_t prefill_tokens;    /* generate.prefill_tokens 512 */
} mb_generate_options;
const mb_option *mb_generate_option_table(int64_t *out_count);

typedef enum mb_generate_finish {
    MB_GENERATE_STOP,       /* an end-of-text token */
    MB_GENERATE_LENGTH,     /* max_new_tokens, or the model's positions */
    MB_GENERATE_STOP_STRING /* the text is cut before it */
} mb_generate_finish;
const char *mb_generate_finish_name(mb_generate_finish finish); /* "stop", "length", "stop_string" */

typedef struct mb_generate_prompt {
    int64_t record; /* number of the record in the data; < 2^40 */
    const uint32_t *ids;
    int64_t count; /* 1 .. mb_generate_longest */
} mb_generate_prompt;

typedef struct mb_generate_answer {
    int64_t record, sample;
    const uint32_t *ids; /* the end-of-text token included */
    int64_t count;
    const char *text; /* NULL without a tokenizer */
    size_t length;
    mb_generate_finish finish;
    double logprob; /* sum of log-probabilities of the tokens, in the model's own distribution */
} mb_generate_answer;

/* An answer that goes on: prompt and what there is of it. */
typedef struct mb_generate_growth {
    int64_t record, sample;
    const uint32_t *ids; /* prompt and answer */
    int64_t prompt, count;
} mb_generate_growth;

/* What the routers said about a piece of a sequence, of the forward that computed it. */
typedef struct mb_generate_routing {
    int64_t record, sample; /* of a prompt that several samples share: once, as sample 0's */
    const uint32_t *ids;    /* the prompt, and what is known of the answer */
    int64_t prompt;         /* tokens of the prompt */
    int64_t first, count;   /* positions first .. first + count - 1: every one once, rising */
    int64_t routers, width;
    const float *const *logits; /* [routers] of [count, width] */
} mb_generate_routing;

/* Where prompts come from and answers go to. */
typedef struct mb_generate_source {
    void *own;
    /* The next prompt; *out_has false: none left. ids are borrowed until the next call. */
    mb_status (*next)(void *own, mb_generate_prompt *out_prompt, bool *out_has);
    /* An answer that is ready, in no certain order; borrowed. */
    mb_status (*take)(void *own, const mb_generate_answer *answer);
    /* NULL: not wanted. After every token of an answer that does not end it. Borrowed. */
    mb_status (*grow)(void *own, const mb_generate_growth *growth);
    /* NULL: not wanted (the routers' logits are not fetched then). After every forward, for each of its
     * sequences. Borrowed. */
    mb_status (*route)(void *own, const mb_generate_routing *routing);
    mb_comm *opt_group; /* these ranks run one generation: same arguments on all of them, and only the
                           functions of the first are called */
} mb_generate_source;

/* Counts are 0 on all ranks of a group but the first. */
typedef struct mb_generate_report {
    int64_t prompts, answers;
    int64_t prompt_tokens, tokens; /* read; generated */
    double seconds;                /* of forward passes and sampling */
    int64_t step_tokens;           /* generated by steps that held no piece of a prompt ... */
    double step_seconds;           /* ... and their time */
} mb_generate_report;

/* Tokens that end a text: eos_token_id of generation_config.json, else of config.json, else the tokenizer's
 * own. ids is appended to. */
mb_status mb_generate_ends_read(const char *folder, const mb_tokenizer *opt_tokenizer, mb_ids *ids);

/* Longest prompt that can be answered: one token fewer than the model's positions, and than the cache holds
 * for one of all samples. */
int64_t mb_generate_longest(const mb_lm *lm, const mb_generate_options *options);

/* Answer all prompts of the source. opt_tokenizer: for texts and stop strings (MB_EUSAGE for the latter
 * without it). Collective over the source's group. MB_ESTOPPED when the stop flag is set. MB_ERANGE: a prompt
 * longer than mb_generate_longest, or logits that are not finite. Memory: mb_kv_cache_plan of batch_tokens
 * rows. */
mb_status mb_generate_run(mb_lm *lm, const mb_tokenizer *opt_tokenizer, const mb_ids *ends,
                          const mb_generate_options *options, const mb_generate_source *source,
                          mb_generate_report *out_report);

#endif
