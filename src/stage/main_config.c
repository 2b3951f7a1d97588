/* moe-config: look into a study file, for people and scripts. */
#include <stdio.h>

#include "config/config.h"
#include "stage/program.h"

typedef struct config_program {
    char *file, *group, *key;
} config_program;

static const mb_option own_options[] = {
    MB_OPTION_TEXT(config_program, file, "file", NULL, NULL, "the study file", NULL),
    MB_OPTION_TEXT(config_program, group, "group", NULL, NULL, "the stage whose group counts first", NULL),
    MB_OPTION_TEXT(config_program, key, "key", NULL, NULL, "mode get: the key to print", NULL),
};

static mb_status declare(mb_program *program)
{
    mb_status status = MB_OK;
    config_program *own;
    MB_NEW(own);
    program->own = own;
    MB_TRY(mb_program_add_table(program, "what to look for", own_options,
                                sizeof own_options / sizeof *own_options, own));
done:
    return status;
}

static mb_status run(mb_program *program)
{
    mb_status status = MB_OK;
    config_program *own = program->own;
    mb_config *config = NULL;
    mb_str text = MB_STR_EMPTY;
    if (own->file == NULL) MB_RAISE(MB_EUSAGE, "file= is missing: the study file");
    MB_TRY(mb_config_open(own->file, own->group, &config));
    if (mb_str_equal(program->mode, "groups")) {
        MB_TRY(mb_config_groups(config, &text));
    } else {
        if (own->key == NULL) MB_RAISE(MB_EUSAGE, "get needs key=, like key=training.learning_rate");
        MB_TRY(mb_config_text(config, own->key, &text));
    }
    printf("%s\n", mb_str_text(&text));
done:
    mb_str_destroy(&text);
    mb_config_close(&config);
    return status;
}

int main(int argc, char **argv)
{
    static const mb_program_spec spec = {
        .name = "moe-config",
        .purpose = "print a key of a study file, or its groups (a program's whole resolved configuration: "
                   "that program with --print-config)",
        .modes = "get|groups",
        .example = "  moe-config get file=conf/study/demo.cfg group=warmup key=training.learning_rate",
        .declare = declare,
        .run = run};
    return mb_program_main(argc, argv, &spec);
}
