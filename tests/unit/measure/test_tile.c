/* test_tile: every record in one tile of its window, longest first; and the same tiles through the reading
 * thread, in any order, with failures brought over. */
#include "measure_fixture.h"

#include <fcntl.h>

#include "measure/tile_stream.h"

enum { RECORDS = 60, LONGEST = 90, LIMIT = 50, TILE = 120, WINDOW = 400 };

static int64_t plan_tile_tokens(const mb_shard *shard, const mb_tile_plan *plan, int64_t t)
{
    int64_t tokens = 0;
    for (int64_t i = plan->first[t]; i < plan->first[t + 1]; i++)
        tokens += mb_tile_length(shard, plan->order[i], LIMIT);
    return tokens;
}

static void check_window(const mb_shard *shard, const mb_tile_plan *plan, int64_t w, bool *seen)
{
    const int64_t first = plan->first[plan->window[w]], end = plan->first[plan->window[w + 1]];
    int64_t tokens = 0, before = INT64_MAX;
    for (int64_t i = first; i < end; i++) {
        const int64_t record = plan->order[i], n = mb_tile_length(shard, record, LIMIT);
        assert_in_range(record, first, end - 1);
        assert_false(seen[record]);
        assert_true(n <= before);
        seen[record] = true;
        before = n;
        tokens += n;
    }
    if (w + 1 < plan->windows) assert_true(tokens >= WINDOW && tokens < WINDOW + LONGEST);
}

static void test_plan(void **state)
{
    (void)state;
    fixture f = fixture_open("ref");
    mb_shard *shard = fixture_shard(&f, "a.h5", RECORDS, LONGEST, true);
    mb_tile_plan plan;
    bool seen[RECORDS] = {0};
    mb_test_ok(mb_tile_plan_create(shard, LIMIT, TILE, WINDOW, &plan));
    assert_true(plan.windows > 2);
    assert_int_equal(plan.window[plan.windows], plan.count);
    assert_int_equal(plan.first[plan.count], RECORDS);
    assert_int_equal(plan.tokens, mb_tile_tokens(shard, LIMIT));
    for (int64_t w = 0; w < plan.windows; w++) check_window(shard, &plan, w, seen);
    for (int64_t r = 0; r < RECORDS; r++) assert_true(seen[r]);
    for (int64_t t = 0; t < plan.count; t++) assert_true(plan_tile_tokens(shard, &plan, t) <= TILE);
    mb_tile_plan_reset(&plan);
    mb_test_ok(
        mb_tile_plan_create(shard, LIMIT, 1, 0, &plan)); /* every record alone, every window one record */
    assert_int_equal(plan.count, RECORDS);
    mb_tile_plan_reset(&plan);
    mb_shard_close(&shard);
    fixture_close(&f);
}

/* Parts: whole tiles, some dozens, never too many; shares cover the plan. */
static void test_parts(void **state)
{
    (void)state;
    static const struct {
        int64_t tokens, tile, part;
    } rows[] = {{0, 512, 512},          {10000, 512, 512},      {64000, 512, 1000},      {64000, 8192, 8192},
                {1 << 22, 8192, 65536}, {1 << 26, 8192, 65536}, {1 << 28, 8192, 1 << 18}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        assert_int_equal(mb_tile_part_tokens(rows[i].tokens, rows[i].tile), rows[i].part);
    fixture f = fixture_open("ref");
    mb_shard *shard = fixture_shard(&f, "a.h5", RECORDS, LONGEST, true);
    mb_tile_plan plan;
    mb_test_ok(mb_tile_plan_create(shard, LIMIT, TILE, WINDOW, &plan));
    const mb_tile_part whole = mb_tile_plan_share(&plan, (mb_share){0}, shard, LIMIT);
    assert_true(whole.windows == plan.windows && whole.tiles == plan.count);
    assert_true(whole.records == RECORDS && whole.tokens == plan.tokens);
    mb_tile_part sum = {0};
    for (int64_t k = 0; k < 3; k++) {
        const mb_tile_part part = mb_tile_plan_share(&plan, (mb_share){k, 3}, shard, LIMIT);
        sum.windows += part.windows, sum.tiles += part.tiles, sum.records += part.records,
            sum.tokens += part.tokens;
    }
    assert_memory_equal(&sum, &whole, sizeof sum);
    mb_tile_plan_reset(&plan);
    mb_shard_close(&shard);
    fixture_close(&f);
}

static void same_tile(const mb_tile *a, const mb_tile *b)
{
    assert_int_equal(a->tokens, b->tokens);
    assert_int_equal(a->heads, b->heads);
    assert_int_equal(a->records, b->records);
    assert_memory_equal(a->ids, b->ids, (size_t)a->tokens * sizeof *a->ids);
    assert_memory_equal(a->offsets, b->offsets, (size_t)(a->segments + 1) * sizeof *a->offsets);
    assert_memory_equal(a->targets, b->targets, (size_t)a->heads * sizeof *a->targets);
    assert_memory_equal(a->record, b->record, (size_t)a->records * sizeof *a->record);
}

static void test_stream(void **state)
{
    (void)state;
    fixture f = fixture_open("ref");
    mb_shard *shard = fixture_shard(&f, "a.h5", RECORDS, LONGEST, true);
    mb_tile_plan plan;
    mb_tile_stream *stream = NULL;
    mb_tile direct = {0};
    const mb_tile *tile;
    mb_test_ok(mb_tile_plan_create(shard, LIMIT, TILE, WINDOW, &plan));
    mb_test_ok(mb_tile_stream_create(shard, &plan, LIMIT, MB_TILE_MASKED_TARGETS, 1, &stream));
    for (int64_t i = 0; i < 2 * plan.count; i++) {
        const int64_t t = i * 7 % plan.count;
        mb_tile_stream_start(stream, t);
        mb_tile_stream_wait(stream); /* the shard is ours until the next start */
        mb_test_ok(mb_tile_read(&direct, shard, &plan, t, LIMIT, MB_TILE_MASKED_TARGETS));
        mb_test_ok(mb_tile_stream_take(stream, &tile));
        same_tile(tile, &direct);
    }
    assert_true(mb_tile_stream_waited(stream) > 0);
    mb_tile_stream_start(stream, 0);
    mb_tile_stream_destroy(&stream); /* with a read under way */
    mb_tile_destroy(&direct);
    mb_tile_plan_reset(&plan);
    mb_shard_close(&shard);
    fixture_close(&f);
}

/* With two held, a tile stays as it is while the next is in use and the one after that is read. */
static void test_stream_held(void **state)
{
    (void)state;
    fixture f = fixture_open("ref");
    mb_shard *shard = fixture_shard(&f, "a.h5", RECORDS, LONGEST, true);
    mb_tile_plan plan;
    mb_tile_stream *stream = NULL;
    mb_tile direct = {0};
    const mb_tile *tile = NULL, *last = NULL;
    mb_test_ok(mb_tile_plan_create(shard, LIMIT, TILE, WINDOW, &plan));
    mb_test_ok(mb_tile_stream_create(shard, &plan, LIMIT, MB_TILE_ALL_TARGETS, 2, &stream));
    mb_tile_stream_start(stream, 0);
    for (int64_t t = 0; t < plan.count; t++) {
        last = tile;
        mb_test_ok(mb_tile_stream_take(stream, &tile));
        if (t + 1 < plan.count) mb_tile_stream_start(stream, t + 1);
        mb_tile_stream_wait(stream);
        mb_test_ok(mb_tile_read(&direct, shard, &plan, t, LIMIT, MB_TILE_ALL_TARGETS));
        same_tile(tile, &direct);
        if (last == NULL) continue;
        mb_test_ok(mb_tile_read(&direct, shard, &plan, t - 1, LIMIT, MB_TILE_ALL_TARGETS));
        same_tile(last, &direct);
    }
    mb_tile_stream_destroy(&stream);
    mb_tile_destroy(&direct);
    mb_tile_plan_reset(&plan);
    mb_shard_close(&shard);
    fixture_close(&f);
}

/* Flips a byte inside the tokens of a record. */
static void damage(const char *path, int64_t record)
{
    uint32_t tokens[FIXTURE_MOST];
    uint8_t mask[FIXTURE_MOST];
    mb_str data = MB_STR_EMPTY;
    const int64_t n = fixture_record(record, LONGEST, tokens, mask);
    mb_test_ok(mb_files_read(path, 1 << 30, &data));
    char *at = memmem(data.data, data.length, tokens, (size_t)n * sizeof *tokens);
    assert_non_null(at);
    at[4] ^= 1;
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data.data, 1, data.length, file), data.length);
    fclose(file);
    mb_str_destroy(&data);
}

/* A damaged chunk is found by the reader and said by take, with the file's name; HDF5 itself, which has a
 * switch per thread, says nothing on stderr. */
static void test_stream_failure(void **state)
{
    (void)state;
    fixture f = fixture_open("ref");
    mb_shard *shard = fixture_shard(&f, "a.h5", 3000, LONGEST, false);
    char *path = mb_test_path(f.folder, "a.h5"), *said = mb_test_path(f.folder, "said");
    mb_tile_plan plan;
    mb_tile_stream *stream = NULL;
    const mb_tile *tile;
    mb_status status = MB_OK;
    mb_shard_close(&shard);
    damage(path, 2990);
    mb_test_ok(mb_shard_open(path, 0, &shard));
    mb_test_ok(mb_tile_plan_create(shard, LIMIT, TILE, WINDOW, &plan));
    mb_test_ok(mb_tile_stream_create(shard, &plan, LIMIT, MB_TILE_NO_TARGETS, 1, &stream));
    const int kept = dup(STDERR_FILENO), file = open(said, O_CREAT | O_WRONLY, 0600);
    assert_true(kept >= 0 && file >= 0 && dup2(file, STDERR_FILENO) >= 0);
    for (int64_t t = 0; t < plan.count && status == MB_OK; t++) {
        mb_tile_stream_start(stream, t);
        status = mb_tile_stream_take(stream, &tile);
    }
    assert_int_equal(dup2(kept, STDERR_FILENO), STDERR_FILENO);
    mb_test_fails(status, MB_EFORMAT, "a.h5");
    assert_int_equal(lseek(file, 0, SEEK_END), 0);
    close(kept);
    close(file);
    mb_tile_stream_destroy(&stream);
    mb_tile_plan_reset(&plan);
    mb_shard_close(&shard);
    mb_free(path);
    mb_free(said);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_plan), cmocka_unit_test(test_parts),
                                       cmocka_unit_test(test_stream), cmocka_unit_test(test_stream_held),
                                       cmocka_unit_test(test_stream_failure)};
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
