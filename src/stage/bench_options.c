/* bench_options.c: the table; lists of lengths.
 *
 * 1. options   2. one list   3. the grid
 */
#include "stage/bench_options.h"

#include <string.h>

#include "base/log.h"

/* ---- 1. options ---- */

#define OPTIONS mb_bench_program

const mb_option *mb_bench_option_table(int64_t *out_count)
{
    static const mb_option options[] = {
        MB_OPTION_JSON(
            OPTIONS, experts, "bench.experts", NULL,
            "experts to measure: name=folder,name=folder or a list of groups { name, path, adapter }; "
            "a folder is a model, quantised or not; default: model.path alone",
            NULL),
        MB_OPTION_TEXT(OPTIONS, name, "bench.name", NULL, NULL,
                       "name of model.path where bench.experts is not given; default: its folder's", NULL),
        MB_OPTION_JSON(OPTIONS, inputs, "bench.inputs", NULL,
                       "mode join: folders of earlier measurements: name=folder,name=folder", NULL),
        MB_OPTION_LIST(OPTIONS, prompt_tokens, "bench.prompt_tokens", NULL,
                       "prompt lengths in tokens; default 16,64,256, cut to the experts' positions", NULL),
        MB_OPTION_LIST(OPTIONS, output_tokens, "bench.output_tokens", NULL,
                       "output lengths in tokens, no early stop; default 1,16,64, cut likewise", NULL),
        MB_OPTION_INT(OPTIONS, repeats, "bench.repeats", "10", 1, 1e6, "rounds",
                      "rounds that are kept, of every pair of lengths", NULL),
        MB_OPTION_INT(OPTIONS, warmup, "bench.warmup", "2", 0, 1e6, "rounds",
                      "rounds before them that are not", NULL),
        MB_OPTION_INT(
            OPTIONS, reference_prompt, "bench.reference_prompt", "0", 0, 1 << 24, "tokens",
            "prompt length that compute_seconds and energy_joules are of (measured too when the list "
            "has it not); 0: the middle of the list",
            NULL),
        MB_OPTION_INT(OPTIONS, reference_output, "bench.reference_output", "0", 0, 1 << 24, "tokens",
                      "the same for the output", NULL),
        MB_OPTION_TEXT(OPTIONS, dataset, "dataset.path", NULL, NULL,
                       "records whose texts, one behind the other, make the prompts; default: random ids",
                       NULL),
        MB_OPTION_TEXT(
            OPTIONS, field, "bench.field", NULL, NULL,
            "field with the text; default: the first there is of text, prompt, question, instruction", NULL),
        MB_OPTION_TEXT(OPTIONS, tokenizer, "tokenizer.path", NULL, NULL,
                       "tokenizer of the texts; default: the model's folder", NULL),
        MB_OPTION_INT(OPTIONS, seed, "bench.seed", "42", 0, 9e18, "", "seed of random ids", NULL),
        MB_OPTION_TEXT(
            OPTIONS, energy, "bench.energy", "auto", "auto|counter|power_model",
            "where joules come from: counters (NVML on a GPU, RAPL on processors) or the power stated "
            "below; auto: counters where there are any",
            NULL),
        MB_OPTION_REAL(OPTIONS, energy_seconds, "bench.energy_seconds", "1", 0, 3600, "s",
                       "with a counter: rounds of a pair of lengths go on until they took so long together",
                       NULL),
        MB_OPTION_REAL(OPTIONS, watts_per_core, "bench.watts_per_core", "8", 0, 1e4, "W",
                       "power model: of a busy core, above rest", "bench.watts"),
        MB_OPTION_REAL(OPTIONS, watts_idle, "bench.watts_idle", "20", 0, 1e5, "W",
                       "power model: of the node at rest", NULL),
        MB_OPTION_REAL(OPTIONS, watts_gpu, "bench.watts_gpu", "300", 0, 1e5, "W",
                       "power model: of the GPU, where one computes", NULL),
        MB_OPTION_REAL(OPTIONS, link_latency, "bench.link_latency", "0", 0, 3600, "s",
                       "transfer_seconds: one way of the stated link to an expert; with ranks, and no link "
                       "stated, measured",
                       NULL),
        MB_OPTION_REAL(OPTIONS, link_rate, "bench.link_rate", "0", 0, 1e15, "bytes/s",
                       "transfer_seconds: rate of the stated link; 0: no limit", NULL),
    };
    *out_count = sizeof options / sizeof *options;
    return options;
}

/* ---- 2. one list ---- */

static int64_t insert(int64_t *list, int64_t n, int64_t value)
{
    int64_t at = n;
    for (int64_t i = 0; i < n; i++)
        if (list[i] == value) return n;
    for (; at > 0 && list[at - 1] > value; at--) list[at] = list[at - 1];
    list[at] = value;
    return n + 1;
}

static mb_status read_list(const char *key, const char *text, int64_t *list, int64_t *out_count)
{
    mb_status status = MB_OK;
    char **words = NULL;
    int64_t n = 0, count = 0;
    MB_TRY(mb_option_list_split(text, &words, &n));
    if (n >= MB_BENCH_LENGTHS)
        MB_RAISE(MB_EUSAGE, "%s: %lld lengths; at most %d", key, (long long)n, MB_BENCH_LENGTHS - 1);
    for (int64_t i = 0; i < n; i++) {
        int64_t value = 0;
        if (mb_str_parse_int(words[i], &value) != MB_OK || value < 1 || value > 1 << 24)
            MB_RAISE(MB_EUSAGE, "%s: '%s' is no number of tokens; give whole numbers from 1, as 16,64,256",
                     key, words[i]);
        count = insert(list, count, value);
    }
    *out_count = count;
done:
    mb_option_list_free(&words, n);
    return status;
}

/* Lengths over `most` become most. */
static int64_t cut(int64_t *list, int64_t n, int64_t most)
{
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++) count = insert(list, count, list[i] < most ? list[i] : most);
    return count;
}

/* ---- 3. the grid ---- */

static mb_status check_fits(const mb_bench_grid *grid, int64_t positions, const char *whose)
{
    const long long prompt = (long long)grid->prompt[grid->prompts - 1],
                    output = (long long)grid->output[grid->outputs - 1];
    if (prompt + output <= positions) return MB_OK;
    return mb_fail(
        MB_EUSAGE,
        "bench.prompt_tokens and bench.output_tokens: %lld and %lld tokens need %lld positions, and "
        "%s has %lld; give shorter ones",
        prompt, output, prompt + output, whose, (long long)positions);
}

/* Half of the positions for outputs, what is left for prompts; lists that were given stay. */
static void cut_defaults(const mb_bench_program *own, int64_t positions, const char *whose,
                         mb_bench_grid *grid)
{
    const mb_bench_grid before = *grid;
    if (own->output_tokens == NULL && own->reference_output <= positions / 2)
        grid->outputs = cut(grid->output, grid->outputs, positions / 2);
    const int64_t left = positions - grid->output[grid->outputs - 1];
    if (own->prompt_tokens == NULL && left >= 1 && own->reference_prompt <= left)
        grid->prompts = cut(grid->prompt, grid->prompts, left);
    if (before.output[before.outputs - 1] != grid->output[grid->outputs - 1] ||
        before.prompt[before.prompts - 1] != grid->prompt[grid->prompts - 1])
        mb_warn("%s has %lld positions: the longest prompt is of %lld tokens, the longest output of %lld",
                whose, (long long)positions, (long long)grid->prompt[grid->prompts - 1],
                (long long)grid->output[grid->outputs - 1]);
}

mb_status mb_bench_grid_get(const mb_bench_program *own, int64_t positions, const char *whose,
                            mb_bench_grid *out_grid)
{
    mb_status status = MB_OK;
    mb_bench_grid grid = {0};
    MB_TRY(read_list("bench.prompt_tokens", own->prompt_tokens != NULL ? own->prompt_tokens : "16,64,256",
                     grid.prompt, &grid.prompts));
    MB_TRY(read_list("bench.output_tokens", own->output_tokens != NULL ? own->output_tokens : "1,16,64",
                     grid.output, &grid.outputs));
    if (grid.prompts == 0 || grid.outputs == 0)
        MB_RAISE(MB_EUSAGE, "bench.%s_tokens is empty; give lengths, as 16,64",
                 grid.prompts == 0 ? "prompt" : "output");
    if (own->reference_prompt > 0) grid.prompts = insert(grid.prompt, grid.prompts, own->reference_prompt);
    if (own->reference_output > 0) grid.outputs = insert(grid.output, grid.outputs, own->reference_output);
    cut_defaults(own, positions, whose, &grid);
    MB_TRY(check_fits(&grid, positions, whose));
    grid.reference_prompt =
        own->reference_prompt > 0 ? own->reference_prompt : grid.prompt[(grid.prompts - 1) / 2];
    grid.reference_output =
        own->reference_output > 0 ? own->reference_output : grid.output[(grid.outputs - 1) / 2];
    *out_grid = grid;
done:
    return status;
}
