/* program_ops: how ranks of a node divide its GPUs, whoever sees which of them. */
#include "mb_test.h"

#include "stage/program_ops.h"

enum { MOST = 16 };

/* "0 1 2 3" for each rank, "" for one that sees none, into what ranks say. */
static int read_ranks(const char *const *rows, mb_program_gpus *seen)
{
    int ranks = 0;
    for (; rows[ranks] != NULL; ranks++) {
        seen[ranks] = (mb_program_gpus){.count = 0};
        for (const char *at = rows[ranks]; *at != 0; at += strcspn(at, " ") + (at[strcspn(at, " ")] == ' ')) {
            mb_program_gpus *mine = &seen[ranks];
            snprintf(mine->name[mine->count++], MB_PROGRAM_GPU_NAME, "0000:%.*s:00.0", (int)strcspn(at, " "),
                     at);
        }
    }
    return ranks;
}

static void test_divide(void **state)
{
    static const struct {
        const char *ranks[MOST], *expected; /* number among those that the rank sees, "-" none */
        int most;
    } rows[] = {
        {{"0", NULL}, "0", 1},
        {{"0 1 2 3", "0 1 2 3", "0 1 2 3", "0 1 2 3", NULL}, "0123", 1}, /* all see all */
        {{"0", "1", "2", "3", NULL}, "0000", 1},                         /* Slurm shows each its own */
        {{"a 0", "a 0", "a 0", NULL}, "010", 2},                         /* three on two */
        {{"0 1", "1", NULL}, "00", 1},
        {{"0 1", "0", NULL}, "00", 2},                   /* the first does not know better */
        {{"0 1", "0 1", "2 3", "2 3", NULL}, "0101", 1}, /* by socket */
        {{"", "", NULL}, "--", 0},
        {{"0", "", NULL}, "0-", 1},
        {{"0 1", "0 1", "0 1", "0 1", "0 1", NULL}, "01010", 3},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        mb_program_gpus seen[MOST];
        int gpu[MOST];
        char text[MOST + 1] = "";
        const int ranks = read_ranks(rows[i].ranks, seen), most = mb_program_gpus_divide(seen, ranks, gpu);
        for (int r = 0; r < ranks; r++) text[r] = gpu[r] < 0 ? '-' : (char)('0' + gpu[r]);
        text[ranks] = 0;
        if (strcmp(text, rows[i].expected) != 0)
            fail_msg("row %zu: %s, expected %s", i, text, rows[i].expected);
        assert_int_equal(most, rows[i].most);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_divide)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
