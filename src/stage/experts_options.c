/* experts_options.c: see the header.
 *
 * 1. the table   2. the plan
 */
#include "stage/experts_options.h"

#include "base/log.h"
#include "base/memory.h"

/* ---- 1. the table ---- */

static const mb_option table[] = {
    MB_OPTION_JSON(mb_experts_options, experts, "infer.experts", NULL,
                   "mode experts: models that answer together, name=folder,name=folder or a list of groups "
                   "{ name, path, adapter, rank }; all of the gate's must be there",
                   NULL),
    MB_OPTION_TEXT(
        mb_experts_options, gate, "gate.path", NULL, NULL,
        "mode experts: the gate (moe-gate train's folder or gate.h5); model.path is the model that "
        "made its embeddings",
        NULL),
    MB_OPTION_TEXT(mb_experts_options, questions, "questions.path", NULL, NULL,
                   "mode experts: a file of questions in moe-merge's form, or its folder", NULL),
    MB_OPTION_INT(mb_experts_options, top_k, "infer.top_k", "0", 0, 1 << 20, "experts",
                  "mode experts: so many are asked, those the gate prefers; 0: all", NULL),
    MB_OPTION_TEXT(
        mb_experts_options, rule, "infer.rule", "gate_weighted", "majority|gate_weighted|mean_prob|gate_top1",
        "mode experts: how answers are fused: most votes, votes weighted by the gate, the mean of the "
        "probabilities of the options, or the answer of the one the gate prefers",
        NULL),
    MB_OPTION_REAL(
        mb_experts_options, timeout, "infer.timeout_s", "60", 0.001, 1e6, "s",
        "mode experts: an expert that has not answered a request after so long is left out of that "
        "answer",
        NULL),
    MB_OPTION_INT(mb_experts_options, strikes, "infer.strikes", "3", 1, 1 << 20, "",
                  "mode experts: so many times late without an answer in time between, and an expert is not "
                  "asked any more, until it gives a sign of life",
                  NULL),
    MB_OPTION_INT(
        mb_experts_options, batch, "infer.batch", "8", 1, 1 << 20, "requests",
        "mode experts: requests that an expert computes together, at most; it is sent twice as many", NULL),
    MB_OPTION_INT(mb_experts_options, open, "infer.open", "64", 1, 1 << 20, "questions",
                  "mode experts: questions under way at a time", NULL),
    MB_OPTION_INT(mb_experts_options, limit, "infer.limit", "0", 0, 1e12, "questions",
                  "mode experts: only the first so many; 0: all", NULL),
    MB_OPTION_TEXT(mb_experts_options, style, "infer.question_style", "letters", "letters|texts",
                   "mode experts: as eval.question_style", NULL),
    MB_OPTION_INT(mb_experts_options, few_shot, "infer.num_fewshot", "0", 0, 100, "examples",
                  "mode experts: as eval.num_fewshot", NULL),
    MB_OPTION_TEXT(mb_experts_options, embed_text, "infer.embed_text", "question", "question|options|prompt",
                   "mode experts: what is embedded for the gate, as records.text was for the embeddings it "
                   "learned from",
                   NULL),
    MB_OPTION_INT(mb_experts_options, max_length, "infer.max_length", "0", 0, 1 << 24, "tokens",
                  "mode experts: as eval.max_length", NULL),
    MB_OPTION_INT(mb_experts_options, tile_tokens, "infer.tile_tokens", "8192", 16, 1 << 24, "tokens",
                  "mode experts: tokens computed together, of a batch of requests and of questions embedded",
                  NULL),
    MB_OPTION_TEXT(mb_experts_options, softmax_dtype, "infer.softmax_dtype", "f32", "f32|bf16",
                   "mode experts: as eval.softmax_dtype", NULL),
    MB_OPTION_TEXT(mb_experts_options, match, "infer.match", "text", "text|number",
                   "mode experts, cloze questions: as eval.match", NULL),
    MB_OPTION_INT(mb_experts_options, max_new_tokens, "infer.max_new_tokens", "128", 1, 1 << 24, "tokens",
                  "mode experts, cloze questions: longest answer", NULL),
    MB_OPTION_TEXT(
        mb_experts_options, stop, "infer.stop", NULL, NULL,
        "mode experts, cloze questions: where an answer ends: a JSON list of strings, or one string; "
        "default: with its line",
        NULL),
    MB_OPTION_LIST(
        mb_experts_options, fail, "infer.fail", NULL,
        "mode experts, for tests: failures on order, name:die@N (its process is killed at its N-th "
        "request), name:sleep=S, name:sleep=S@N-M (its batches take S seconds longer)",
        NULL),
};

const mb_option *mb_experts_options_table(int64_t *out_count)
{
    *out_count = (int64_t)(sizeof table / sizeof *table);
    return table;
}

/* ---- 2. the plan ---- */

enum { RANK = 1 }; /* place of "rank" among the further members */

void mb_experts_options_reset(mb_experts_plan *plan)
{
    mb_named_paths_reset(&plan->experts);
    mb_free(plan->names);
    mb_free(plan->rank);
    mb_experts_fail_reset(&plan->fail);
    *plan = (mb_experts_plan){0};
}

static mb_status place(mb_experts_plan *plan, int ranks)
{
    mb_status status = MB_OK;
    const int64_t n = plan->experts.count;
    int turn = 0;
    MB_NEW_ARRAY(plan->names, n);
    MB_NEW_ARRAY(plan->rank, n);
    for (int64_t x = 0; x < n; x++) {
        const mb_named_path *item = &plan->experts.item[x];
        int64_t rank = 0;
        plan->names[x] = item->name;
        if (ranks > 1) plan->rank[x] = 1 + turn++ % (ranks - 1);
        if (item->more[RANK] == NULL) continue;
        MB_TRY(mb_str_parse_int(item->more[RANK], &rank));
        if (rank < 0 || rank >= ranks)
            MB_RAISE(MB_EUSAGE, "infer.experts, '%s': rank %lld, but the ranks are 0 to %d", item->name,
                     (long long)rank, ranks - 1);
        plan->rank[x] = (int)rank;
        turn -= ranks > 1;
    }
    if (ranks - 1 > n)
        mb_warn("%d ranks for a gate and %lld experts: the last ones have nothing to do", ranks,
                (long long)n);
done:
    return status;
}

/* The gate's experts to the front, in its order; the others are taken off. */
static mb_status choose(mb_named_paths *given, char *const *wanted, int64_t n)
{
    mb_status status = MB_OK;
    for (int64_t x = 0; x < n; x++) {
        int64_t at = x;
        while (at < given->count && !mb_str_equal(given->item[at].name, wanted[x])) at++;
        if (at == given->count)
            MB_RAISE(MB_EUSAGE, "infer.experts lacks '%s', which the gate chooses among", wanted[x]);
        const mb_named_path found = given->item[at];
        given->item[at] = given->item[x];
        given->item[x] = found;
    }
    for (; given->count > n; given->count--) {
        mb_named_path *last = &given->item[given->count - 1];
        mb_info("infer.experts: the gate does not know '%s': it is left out", last->name);
        mb_free(last->name);
        mb_free(last->path);
        for (int k = 0; k < MB_NAMED_PATHS_MORE; k++) mb_free(last->more[k]);
        *last = (mb_named_path){0};
    }
done:
    return status;
}

mb_status mb_experts_options_plan(const mb_experts_options *o, char *const *wanted, int64_t n, int ranks,
                                  mb_experts_plan *out_plan)
{
    static const char *const further[] = {"adapter", [RANK] = "rank"};
    mb_status status = MB_OK;
    mb_experts_plan plan = {0};
    if (o->experts == NULL || o->experts[0] == 0)
        MB_RAISE(MB_EUSAGE, "infer.experts is missing: the models that answer, name=folder,name=folder");
    MB_TRY(mb_vote_parse(o->rule, &plan.rule));
    MB_TRY(mb_question_style_parse(o->style, &plan.style));
    MB_TRY(mb_answer_match_parse(o->match, &plan.match));
    MB_TRY(mb_dtype_parse(o->softmax_dtype, &plan.softmax_dtype));
    MB_TRY(mb_named_paths_read("infer.experts", o->experts, further, 2, &plan.experts));
    MB_TRY(choose(&plan.experts, wanted, n));
    MB_TRY(place(&plan, ranks));
    if (o->top_k > n)
        MB_RAISE(MB_EUSAGE, "infer.top_k is %lld, but there are %lld experts", (long long)o->top_k,
                 (long long)n);
    MB_TRY(
        mb_experts_fail_read("infer.fail", o->fail, (const char *const *)(void *)plan.names, n, &plan.fail));
    *out_plan = plan;
    plan = (mb_experts_plan){0};
done:
    mb_experts_options_reset(&plan);
    return status;
}

mb_status mb_experts_options_check(const mb_experts_plan *plan)
{
    mb_status status = MB_OK;
    for (int64_t i = 0; i < plan->fail.count; i++) {
        const mb_experts_fail_rule *r = &plan->fail.rule[i];
        if (r->dies && plan->rank[r->expert] == 0)
            MB_RAISE(MB_EUSAGE,
                     "infer.fail: %s is on the gate's rank, which would die with it; start more ranks",
                     plan->names[r->expert]);
    }
done:
    return status;
}
