/* moe-inspect: prove the engine from outside: forward passes, gradients, token ids, and what a file is. */
#include <stdio.h>
#include <string.h>

#include "base/files.h"
#include "base/log.h"
#include "stage/inspect_file.h"
#include "stage/inspect_model.h"
#include "stage/program.h"
#include "stage/program_options.h"
#include "text/tokenizer.h"

static mb_status declare(mb_program *program)
{
    mb_status status = MB_OK;
    int64_t n;
    mb_inspect_program *own;
    const mb_option *table;
    MB_NEW(own);
    program->own = own;
    table = mb_program_options_inspect(&n);
    MB_TRY(mb_program_add_table(program, "what to inspect", table, n, own));
    table = mb_objective_option_table(&n);
    MB_TRY(mb_program_add_table(program, "objective (gradients)", table, n, &own->objective));
done:
    return status;
}

/* ---- encode ---- */

static mb_status encode_line(const mb_tokenizer *tokenizer, mb_tokenizer_scratch *scratch, const json_t *text,
                             bool add_special, mb_ids *ids, mb_str *out)
{
    mb_status status = MB_OK;
    mb_ids_reset(ids);
    MB_TRY(mb_tokenizer_encode(tokenizer, scratch, json_string_value(text), json_string_length(text),
                               add_special, ids));
    MB_TRY(mb_str_add(out, "["));
    for (int64_t i = 0; i < ids->count; ++i) MB_TRY(mb_str_add_format(out, i ? ", %u" : "%u", ids->data[i]));
    MB_TRY(mb_str_add(out, "]\n"));
done:
    return status;
}

static mb_status run_encode(mb_program *program)
{
    mb_status status = MB_OK;
    mb_inspect_program *own = program->own;
    mb_tokenizer *tokenizer = NULL;
    mb_tokenizer_scratch *scratch = NULL;
    mb_ids ids = {0};
    mb_str text = MB_STR_EMPTY, out = MB_STR_EMPTY;
    int64_t line = 0;
    if (own->tokenizer == NULL || own->input == NULL || own->out == NULL)
        MB_RAISE(MB_EUSAGE, "encode needs tokenizer=, input= (one JSON string per line) and out=");
    MB_TRY(mb_tokenizer_open(own->tokenizer, &tokenizer));
    MB_TRY(mb_tokenizer_scratch_create(tokenizer, &scratch));
    MB_TRY(mb_files_read(own->input, 0, &text));
    for (char *p = text.data, *end = p + text.length; p != NULL && p < end; ++line) {
        char *stop = memchr(p, '\n', (size_t)(end - p));
        if (stop == NULL) stop = end;
        json_t *value = json_loadb(p, (size_t)(stop - p), JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
        status =
            json_is_string(value)
                ? encode_line(tokenizer, scratch, value, own->add_special_tokens, &ids, &out)
                : mb_fail(MB_EDATA, "%s: line %lld is not a JSON string", own->input, (long long)line + 1);
        json_decref(value);
        MB_TRY(status);
        p = stop + 1;
    }
    MB_TRY(mb_files_write(own->out, mb_str_text(&out), out.length));
done:
    mb_ids_destroy(&ids);
    mb_str_destroy(&text);
    mb_str_destroy(&out);
    mb_tokenizer_scratch_destroy(&scratch);
    mb_tokenizer_close(&tokenizer);
    return status;
}

static mb_status run_model(mb_program *program)
{
    mb_status status = MB_OK;
    mb_inspect_program *own = program->own;
    mb_free(own->objective.objective);
    own->objective.objective = mb_strdup(own->objective_name);
    const mb_inspect_model inspect = {.lm = {.path = own->model,
                                             .opt_adapter = own->adapter,
                                             .trash_expert_ratio = own->trash_expert_ratio},
                                      .tokens = own->tokens,
                                      .out = own->out,
                                      .objective = &own->objective,
                                      .opt_train = own->train};
    MB_TRY(mb_program_open_ops(program));
    if (mb_str_equal(program->mode, "forward"))
        MB_TRY(mb_inspect_model_forward(program->ops, &inspect));
    else
        MB_TRY(mb_inspect_model_gradients(program->ops, &inspect));
done:
    return status;
}

/* ---- main ---- */

static mb_status run(mb_program *program)
{
    mb_inspect_program *own = program->own;
    if (program->is_dry_run) return MB_OK;
    if (mb_str_equal(program->mode, "forward") || mb_str_equal(program->mode, "gradients"))
        return run_model(program);
    if (mb_str_equal(program->mode, "encode")) return run_encode(program);
    if (program->operand == NULL) return mb_fail(MB_EUSAGE, "file needs a path: moe-inspect file PATH");
    return mb_inspect_file_run(program->operand, own->hash);
}

int main(int argc, char **argv)
{
    static const mb_program_spec spec = {
        .name = "moe-inspect",
        .purpose = "prove the engine from outside: forward passes, gradients, token ids, and what a file is "
                   "and whether it is whole",
        .modes = "forward|gradients|encode|file",
        .has_operand = true,
        .example =
            "  moe-inspect forward model=DIR tokens=ids.json out=o.h5 [adapter=DIR]\n"
            "  moe-inspect gradients model=DIR tokens=ids.json objective=router_warmup out=g.h5 "
            "[training.constraint_loss=barrier ...]\n"
            "  moe-inspect encode tokenizer=DIR input=strings.jsonl out=ids.jsonl add_special_tokens=false\n"
            "  moe-inspect file PATH [--hash]",
        .declare = declare,
        .run = run};
    return mb_program_main(argc, argv, &spec);
}
