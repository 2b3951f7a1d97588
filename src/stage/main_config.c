/* moe-config: look into a study file, for people and scripts, and forecast what its stages will need. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/config.h"
#include "stage/config_forecast.h"
#include "stage/program.h"

typedef struct config_program {
    char *file, *group, *key;
    mb_config_forecast forecast;
} config_program;

static const mb_option own_options[] = {
    MB_OPTION_TEXT(config_program, file, "file", NULL, NULL, "the study file", NULL),
    MB_OPTION_TEXT(config_program, group, "group", NULL, NULL, "the stage whose group counts first", NULL),
    MB_OPTION_TEXT(config_program, key, "key", NULL, NULL, "mode get: the key to print", NULL),
};

/* The program's description together with the words that are not its own: those of the stage whose forecast
 * is asked for. */
typedef struct config_spec {
    mb_program_spec spec; /* first: a pointer to it is one to the whole */
    const char **words;
    int64_t count;
} config_spec;

static mb_status declare(mb_program *program)
{
    mb_status status = MB_OK;
    config_program *own;
    int64_t n;
    MB_NEW(own);
    program->own = own;
    MB_TRY(mb_program_add_table(program, "what to look for", own_options,
                                sizeof own_options / sizeof *own_options, own));
    const mb_option *table = mb_config_forecast_table(&n);
    MB_TRY(mb_program_add_table(program, "forecast", table, n, &own->forecast));
done:
    return status;
}

static mb_status look(mb_program *program)
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

static mb_status run(mb_program *program)
{
    const config_program *own = program->own;
    const config_spec *all = (const config_spec *)program->spec;
    if (!mb_str_equal(program->mode, "forecast")) return look(program);
    return mb_config_forecast_run(&own->forecast, own->file, own->group, program->options.threads, all->words,
                                  all->count);
}

/* Words of the stage leave argv: all behind "--", and before it those that are no option of the forecast. */
static int take_words(int argc, char **argv, config_spec *all)
{
    bool is_forecast = false, is_behind = false;
    int kept = 1;
    for (int i = 1; i < argc; i++)
        is_forecast =
            is_forecast || strcmp(argv[i], "forecast") == 0 || strcmp(argv[i], "mode=forecast") == 0;
    if (!is_forecast) return argc;
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        if (!is_behind && strcmp(word, "--") == 0)
            is_behind = true;
        else if (!is_behind && (word[0] == '-' || strcmp(word, "forecast") == 0 ||
                                strcmp(word, "mode=forecast") == 0 || mb_config_forecast_is_own(word)))
            argv[kept++] = argv[i];
        else
            all->words[all->count++] = word;
    }
    argv[kept] = NULL;
    return kept;
}

int main(int argc, char **argv)
{
    config_spec all = {
        .spec = {.name = "moe-config",
                 .purpose =
                     "print a key of a study file, or its groups (a program's whole resolved "
                     "configuration: that program with --print-config); forecast memory, time and files "
                     "of a stage before it runs",
                 .modes = "get|groups|forecast",
                 .example =
                     "  moe-config get file=conf/study/demo.cfg group=warmup key=training.learning_rate\n"
                     "  moe-config forecast file=conf/study/demo.cfg group=warmup nodes=2 ranks_per_node=4\n"
                     "  moe-config forecast program=moe-train ranks=8 nodes=2 node_memory_gib=64 -- "
                     "STUDY.cfg stage=warmup model.path=... (the stage's own words)",
                 .declare = declare,
                 .run = run}};
    all.words =
        calloc((size_t)argc + 1, sizeof *all.words); /* outlives the program's count of its own blocks */
    if (all.words == NULL) return 1;
    const int code = mb_program_main(take_words(argc, argv, &all), argv, &all.spec);
    free(all.words);
    return code;
}
