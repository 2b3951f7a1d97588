/* moe-inspect: prove the engine from outside: forward passes, gradients, token ids, what a file is, and
 * whether this machine does what runs need. */
#include <stdio.h>
#include <string.h>

#include "base/files.h"
#include "base/log.h"
#include "stage/inspect_file.h"
#include "stage/inspect_machine.h"
#include "stage/inspect_model.h"
#include "stage/program.h"
#include "stage/program_options.h"
#include "text/tokenizer.h"

/* All modes' options; the first member is what most of them use. */
typedef struct inspect_options {
    mb_inspect_program inspect;
    mb_inspect_machine_options machine;
} inspect_options;

static mb_status declare(mb_program *program)
{
    mb_status status = MB_OK;
    int64_t n;
    inspect_options *all;
    const mb_option *table;
    MB_NEW(all);
    program->own = all;
    mb_inspect_program *own = &all->inspect;
    table = mb_program_options_inspect(&n);
    MB_TRY(mb_program_add_table(program, "what to inspect", table, n, own));
    table = mb_model_option_table(&n);
    MB_TRY(mb_program_add_table(program, "model (forward, gradients)", table, n, &own->model));
    table = mb_objective_option_table(&n);
    MB_TRY(mb_program_add_table(program, "objective (gradients)", table, n, &own->objective));
    table = mb_inspect_machine_option_table(&n);
    MB_TRY(mb_program_add_table(program, "machine", table, n, &all->machine));
done:
    return status;
}

/* ---- encode and decode ---- */

/* What a line of input needs. */
typedef struct tokens {
    mb_tokenizer *tokenizer;
    mb_tokenizer_scratch *scratch;
    mb_ids ids;
    mb_str text, out;
} tokens;

static mb_status encode_line(tokens *t, const mb_inspect_program *own, const json_t *text, int64_t line)
{
    mb_status status = MB_OK;
    if (!json_is_string(text))
        MB_RAISE(MB_EDATA, "%s: line %lld is not a JSON string", own->input, (long long)line);
    MB_TRY(mb_tokenizer_encode(t->tokenizer, t->scratch, json_string_value(text), json_string_length(text),
                               own->add_special_tokens, &t->ids));
    MB_TRY(mb_str_add(&t->out, "["));
    for (int64_t i = 0; i < t->ids.count; ++i)
        MB_TRY(mb_str_add_format(&t->out, i ? ", %u" : "%u", t->ids.data[i]));
    MB_TRY(mb_str_add(&t->out, "]\n"));
done:
    return status;
}

static mb_status decode_line(tokens *t, const mb_inspect_program *own, const json_t *list, int64_t line)
{
    mb_status status = MB_OK;
    json_t *text = NULL;
    if (!json_is_array(list))
        MB_RAISE(MB_EDATA, "%s: line %lld is not a JSON array of ids", own->input, (long long)line);
    for (size_t i = 0; i < json_array_size(list); ++i) {
        const json_int_t id = json_integer_value(json_array_get(list, i));
        if (!json_is_integer(json_array_get(list, i)) || id < 0 || id > INT32_MAX)
            MB_RAISE(MB_EDATA, "%s: line %lld, entry %zu is not a token id", own->input, (long long)line, i);
        MB_TRY(mb_ids_append(&t->ids, (uint32_t)id));
    }
    mb_str_reset(&t->text);
    MB_TRY(mb_tokenizer_decode(t->tokenizer, t->ids.data, t->ids.count, own->skip_special_tokens, &t->text));
    text = json_stringn(mb_str_text(&t->text), t->text.length);
    if (text == NULL) MB_RAISE(MB_ENOMEM, "no memory for line %lld", (long long)line);
    MB_TRY(mb_json_print(text, 0, false, &t->out));
    MB_TRY(mb_str_add(&t->out, "\n"));
done:
    json_decref(text);
    return status;
}

static mb_status run_tokens(mb_program *program)
{
    mb_status status = MB_OK;
    mb_inspect_program *own = program->own;
    const bool decodes = mb_str_equal(program->mode, "decode");
    tokens t = {0};
    mb_str input = MB_STR_EMPTY;
    int64_t line = 1;
    if (own->tokenizer == NULL || own->input == NULL || own->out == NULL)
        MB_RAISE(MB_EUSAGE, "%s needs tokenizer=, input= (one JSON %s per line) and out=", program->mode,
                 decodes ? "array of ids" : "string");
    MB_TRY(mb_tokenizer_open(own->tokenizer, &t.tokenizer));
    MB_TRY(mb_tokenizer_scratch_create(t.tokenizer, &t.scratch));
    MB_TRY(mb_files_read(own->input, 0, &input));
    for (char *p = input.data, *end = p + input.length; p != NULL && p < end; ++line) {
        char *stop = memchr(p, '\n', (size_t)(end - p));
        if (stop == NULL) stop = end;
        json_t *value = json_loadb(p, (size_t)(stop - p), JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
        mb_ids_reset(&t.ids);
        status = decodes ? decode_line(&t, own, value, line) : encode_line(&t, own, value, line);
        json_decref(value);
        MB_TRY(status);
        p = stop + 1;
    }
    MB_TRY(mb_files_write(own->out, mb_str_text(&t.out), t.out.length));
done:
    mb_ids_destroy(&t.ids);
    mb_str_destroy(&t.text);
    mb_str_destroy(&t.out);
    mb_str_destroy(&input);
    mb_tokenizer_scratch_destroy(&t.scratch);
    mb_tokenizer_close(&t.tokenizer);
    return status;
}

static mb_status run_model(mb_program *program)
{
    mb_status status = MB_OK;
    mb_inspect_program *own = program->own;
    if (own->objective_name != NULL) {
        mb_free(own->objective.objective);
        own->objective.objective = mb_strdup(own->objective_name);
    }
    mb_inspect_model inspect = {.lm = {.path = own->model.path,
                                       .opt_adapter = own->model.adapter,
                                       .trash_expert_ratio = own->model.trash_expert_ratio},
                                .tokens = own->tokens,
                                .out = own->out,
                                .objective = &own->objective,
                                .opt_train = own->train};
    MB_TRY(mb_model_options_storage(&own->model, &inspect.lm));
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
    if (mb_str_equal(program->mode, "encode") || mb_str_equal(program->mode, "decode"))
        return run_tokens(program);
    if (mb_str_equal(program->mode, "machine"))
        return mb_inspect_machine_run(program, &((inspect_options *)program->own)->machine, own->out);
    if (program->operand == NULL) return mb_fail(MB_EUSAGE, "file needs a path: moe-inspect file PATH");
    return mb_inspect_file_run(program->operand, own->hash);
}

int main(int argc, char **argv)
{
    static const mb_program_spec spec = {
        .name = "moe-inspect",
        .purpose = "prove the engine from outside: forward passes, gradients, token ids, what a file is and "
                   "whether it is whole, and whether this machine does what runs need",
        .modes = "forward|gradients|encode|decode|file|machine",
        .has_operand = true,
        .example =
            "  moe-inspect forward model=DIR tokens=ids.json out=o.h5 [adapter=DIR]\n"
            "  moe-inspect gradients model=DIR tokens=ids.json objective=router_warmup out=g.h5 "
            "[training.constraint_loss=barrier ...]\n"
            "  moe-inspect encode tokenizer=DIR input=strings.jsonl out=ids.jsonl add_special_tokens=false\n"
            "  moe-inspect decode tokenizer=DIR input=ids.jsonl out=strings.jsonl skip_special_tokens=true\n"
            "  moe-inspect file PATH [--hash]\n"
            "  mpirun -np 4 moe-inspect machine dir=checkpoints [measure=true out=machine.json]",
        .declare = declare,
        .run = run};
    return mb_program_main(argc, argv, &spec);
}
