/* forecast_makers.c: a line of the list as a stage of its own. */
#include "stage/forecast_makers.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_WORDS = 512, MOST_STAGES = 32 };

/* Fields of a line, cut at its tabs in place; how many. */
static int64_t split(char *line, const char **field)
{
    int64_t n = 0;
    line[strcspn(line, "\n")] = 0;
    for (char *at = line; at != NULL && n < MOST_WORDS;) {
        char *tab = strchr(at, '\t');
        if (tab != NULL) *tab = 0;
        field[n++] = at;
        at = tab != NULL ? tab + 1 : NULL;
    }
    return n;
}

static bool is_below(const char *path, const char *folder)
{
    const size_t n = strlen(folder);
    return n > 0 && strncmp(path, folder, n) == 0 && (path[n] == '/' || path[n] == 0);
}

/* The line of the stage that makes `path` (free), NULL: none. */
static mb_status find_line(const char *list, const char *path, char **out_line)
{
    mb_status status = MB_OK;
    FILE *file = fopen(list, "r");
    char *line = NULL;
    size_t room = 0;
    *out_line = NULL;
    if (file == NULL) MB_RAISE(MB_ENOTFOUND, "makers=%s cannot be read", list);
    while (*out_line == NULL && getline(&line, &room, file) >= 0) {
        const size_t n = strcspn(line, "\t\n");
        if (line[n] != '\t')
            MB_RAISE(MB_EFORMAT, "makers=%s: a line is folder, program and words, parted by tabs", list);
        line[n] = 0;
        if (is_below(path, line)) {
            line[n] = '\t';
            *out_line = line;
            line = NULL;
            room = 0;
        }
    }
done:
    free(line);
    if (file != NULL) fclose(file);
    return status;
}

mb_status mb_forecast_makers_find(const mb_forecast_stage *stage, const char *path,
                                  mb_forecast_stage *out_maker, bool *out_found)
{
    mb_status status = MB_OK;
    char *line = NULL;
    const char *field[MOST_WORDS];
    *out_maker = (mb_forecast_stage){0};
    *out_found = false;
    if (stage->makers == NULL || path == NULL) goto done;
    if (stage->depth >= MOST_STAGES)
        MB_RAISE(MB_EUSAGE, "%s: %d stages wait for each other; does one wait for itself?", path,
                 MOST_STAGES);
    MB_TRY(find_line(stage->makers, path, &line));
    if (line == NULL) goto done;
    const int64_t n = split(line, field);
    MB_TRY(mb_forecast_stage_open(field[1], field + 2, n - 2, out_maker));
    out_maker->makers = stage->makers;
    out_maker->depth = stage->depth + 1;
    *out_found = true;
done:
    free(line);
    return status;
}
