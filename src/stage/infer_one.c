/* infer_one: one prompt from the command line. */
#include "stage/infer_one.h"

#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "serve/stream.h"

typedef struct one_prompt {
    mb_ids ids;
    const mb_tokenizer *tokenizer;
    mb_answer_stops stops;
    mb_stream stream;
    mb_router_stats *stats; /* or NULL */
    bool is_given, prints;
    bool is_inside; /* a line that has no end yet */
} one_prompt;

static mb_status give_prompt(void *own, mb_generate_prompt *out_prompt, bool *out_has)
{
    one_prompt *one = own;
    *out_has = !one->is_given;
    one->is_given = true;
    *out_prompt = (mb_generate_prompt){.ids = one->ids.data, .count = one->ids.count};
    return MB_OK;
}

static mb_status print_bytes(const char *text, size_t n)
{
    if (n > 0 && (fwrite(text, 1, n, stdout) != n || fflush(stdout) != 0))
        return mb_fail(MB_EIO, "the answer cannot be written to standard output");
    return MB_OK;
}

static mb_status print_growth(void *own, const mb_generate_growth *growth)
{
    mb_status status = MB_OK;
    one_prompt *one = own;
    const char *text;
    size_t n;
    if (!one->prints) return MB_OK;
    MB_TRY(mb_stream_push(&one->stream, one->tokenizer, &one->stops, growth->ids, growth->prompt,
                          growth->count, &text, &n));
    if (n > 0) one->is_inside = true;
    MB_TRY(print_bytes(text, n));
done:
    return status;
}

static mb_status print_rest(void *own, const mb_generate_answer *answer)
{
    mb_status status = MB_OK;
    one_prompt *one = own;
    mb_router_query query = {0};
    const char *text;
    size_t n;
    mb_stream_end(&one->stream, answer->text, answer->length, &text, &n);
    if (one->prints) MB_TRY(print_bytes(text, n));
    if (one->prints) MB_TRY(print_bytes("\n", 1));
    one->is_inside = false;
    if (one->stats == NULL) goto done;
    MB_TRY(mb_router_stats_take(one->stats, answer, &query));
    if (one->prints) MB_TRY(mb_router_query_log(mb_router_stats_shape(one->stats), &query));
done:
    mb_router_query_reset(&query);
    return status;
}

static mb_status route_rows(void *own, const mb_generate_routing *routing)
{
    return mb_router_stats_route(((one_prompt *)own)->stats, routing);
}

mb_status mb_infer_one_run(const mb_program *program, const mb_infer_ranks *ranks, mb_lm *lm,
                           mb_infer_prompts *prompts, const mb_ids *ends, const mb_router_shape *opt_shape)
{
    mb_status status = MB_OK;
    const mb_infer_program *own = program->own;
    one_prompt one = {.tokenizer = mb_infer_prompts_tokenizer(prompts),
                      .prints = mb_program_is_root(program)};
    const mb_generate_source source = {.own = &one,
                                       .next = give_prompt,
                                       .take = print_rest,
                                       .grow = own->generate.samples == 1 ? print_growth : NULL,
                                       .route = opt_shape != NULL ? route_rows : NULL,
                                       .opt_group = ranks->group};
    mb_generate_report report;
    status = mb_infer_prompts_text(prompts, own->prompt, strlen(own->prompt), &one.ids);
    if (status == MB_OK) status = mb_answer_stops_read(own->generate.stop, &one.stops);
    if (status == MB_OK && opt_shape != NULL)
        status = mb_router_stats_create(opt_shape, one.tokenizer, own->generate.samples, &one.stats);
    MB_TRY(mb_comm_agree(program->comm, status));
    status = mb_generate_run(lm, one.tokenizer, ends, &own->generate, &source, &report);
    if (one.is_inside) (void)print_bytes("\n", 1);
    MB_TRY(mb_comm_agree(program->comm, status));
    mb_info("%lld tokens in %.2f s%s", (long long)report.tokens, report.seconds,
            ranks->group != NULL ? ", the members on ranks of their own" : "");
done:
    mb_router_stats_destroy(&one.stats);
    mb_stream_reset(&one.stream);
    mb_answer_stops_reset(&one.stops);
    mb_ids_destroy(&one.ids);
    return status;
}
