/* infer_one: one prompt from the command line. */
#include "stage/infer_one.h"

#include <stdio.h>
#include <string.h>

#include "base/log.h"

typedef struct one_prompt {
    mb_ids ids;
    bool is_given, prints;
} one_prompt;

static mb_status give_prompt(void *own, mb_generate_prompt *out_prompt, bool *out_has)
{
    one_prompt *one = own;
    *out_has = !one->is_given;
    one->is_given = true;
    *out_prompt = (mb_generate_prompt){.ids = one->ids.data, .count = one->ids.count};
    return MB_OK;
}

static mb_status print_text(void *own, const mb_generate_answer *answer)
{
    const one_prompt *one = own;
    if (one->prints) printf("%.*s\n", (int)answer->length, answer->text);
    return MB_OK;
}

mb_status mb_infer_one_run(const mb_program *program, mb_lm *lm, mb_infer_prompts *prompts,
                           const mb_ids *ends)
{
    mb_status status = MB_OK;
    const mb_infer_program *own = program->own;
    one_prompt one = {.prints = mb_program_is_root(program)};
    const mb_generate_source source = {.own = &one, .next = give_prompt, .take = print_text};
    mb_generate_report report;
    MB_TRY(mb_infer_prompts_text(prompts, own->prompt, strlen(own->prompt), &one.ids));
    MB_TRY(mb_generate_run(lm, mb_infer_prompts_tokenizer(prompts), ends, &own->generate, &source, &report));
    mb_info("%lld tokens in %.2f s", (long long)report.tokens, report.seconds);
done:
    mb_ids_destroy(&one.ids);
    return status;
}
