/* moe-subset's parts: costs and limits as they are read, questions that experts have seen, the tables of three
 * experts worked out by hand, and the cells they become. */
#include "mb_test.h"

#include "base/json.h"
#include "stage/subset_files.h"
#include "stage/subset_inputs.h"
#include "stage/subset_solve.h"
#include "text/question.h"

enum { X = 3, A = 1, B = 2, AB = 3, C = 4 };

/* Two options, the first is right; who is right says so with 0.9, who is wrong gives the other one 0.6: a tie
 * of two goes to the right answer. right: masks of the experts. */
static mb_outputs *make(const uint8_t *right, int64_t questions, const char *hash)
{
    static const char *const names[X] = {"a", "b", "c"};
    mb_outputs *o = NULL;
    mb_test_ok(mb_outputs_create(questions, X, 2, &o));
    for (int64_t q = 0; q < questions; q++) {
        o->options[q] = 2, o->answer[q] = 0, o->chance[q] = 0.5f;
        o->ids[q] = mb_str_format("%s-%lld", hash, (long long)q);
        for (int64_t e = 0; e < X; e++) {
            const bool is_right = (right[q] >> e & 1) != 0;
            float *p = o->choice_prob + (q * X + e) * 2;
            p[0] = is_right ? 0.9f : 0.4f, p[1] = is_right ? 0.1f : 0.6f;
            o->picked[q * X + e] = is_right ? 0 : 1;
            o->right[q * X + e] = is_right;
        }
    }
    for (int64_t e = 0; e < X; e++) {
        o->expert_names[e] = mb_strdup(names[e]);
        o->model_hashes[e] = mb_strdup(names[e]);
    }
    o->source_names = mb_calloc(1, sizeof *o->source_names);
    o->source_names[0] = mb_strdup("made");
    o->sources = 1;
    o->questions_hash = mb_strdup(hash);
    o->style = mb_strdup("letters");
    return o;
}

/* Training: a 3, b 3, c 2 of 6; ab and bc 5, ac 4, all 2. Test: a 3, b 1, c 1 of 4; ab 4, ac 3, bc 2, all 1. */
static const uint8_t train_right[6] = {A | C, A, A | B, B, B, C}, test_right[4] = {A, A | C, A, B};
static const mb_subset_costs costs = {.latency = {0.5, 1.5, 2.5}, .energy = {4, 3, 10}, .aggregation = 0.5};

typedef struct solved {
    mb_outputs *train_outputs, *test_outputs;
    mb_comm *comm;
    mb_subset *train, *test;
    mb_subset_solution solution;
} solved;

static void solve(solved *s, bool is_exhaustive)
{
    static const double latency[] = {1, 2, 3}, energy[] = {2, 3, 4, 7, 20};
    const mb_subset_options options = {.rule = MB_VOTE_MAJORITY};
    const mb_subset_solve_options how = {.is_exhaustive = is_exhaustive,
                                         .check = true,
                                         .threads = 1,
                                         .latency = latency,
                                         .energy = energy,
                                         .latencies = 3,
                                         .energies = 5};
    s->train_outputs = make(train_right, 6, "train");
    s->test_outputs = make(test_right, 4, "test");
    mb_test_ok(mb_comm_create(NULL, NULL, &s->comm));
    mb_test_ok(mb_subset_create(s->train_outputs, &options, &costs, &s->train));
    mb_test_ok(mb_subset_create(s->test_outputs, &options, &costs, &s->test));
    mb_test_ok(mb_subset_solve(s->comm, s->train, s->test, &how, &s->solution));
}

static void close_solved(solved *s)
{
    mb_subset_solution_reset(&s->solution);
    mb_subset_destroy(&s->train);
    mb_subset_destroy(&s->test);
    mb_outputs_close(&s->train_outputs);
    mb_outputs_close(&s->test_outputs);
    mb_comm_destroy(&s->comm);
}

typedef struct expected_row {
    uint64_t set;
    int64_t right, test_right;
    double latency, energy;
    uint64_t optimum;
    int64_t optimum_right;
} expected_row;

static void check_rows(const mb_subset_solution *s, int table, const expected_row *expected, int64_t n)
{
    if (s->count[table] != n) print_message("# table %s\n", mb_subset_solve_name(table));
    assert_int_equal(s->count[table], n);
    for (int64_t i = 0; i < n; i++) {
        const mb_subset_row *row = &s->rows[table][i];
        const expected_row *e = expected + i;
        if (row->train.set != e->set || row->optimum.set != e->optimum)
            print_message("# table %s, row %lld: set %d, optimum %d\n", mb_subset_solve_name(table),
                          (long long)i, (int)row->train.set, (int)row->optimum.set);
        assert_int_equal(row->train.set, e->set);
        assert_int_equal(row->train.right, e->right);
        assert_int_equal(row->test_right, e->test_right);
        assert_true(row->train.latency == e->latency && row->train.energy == e->energy);
        assert_int_equal(row->optimum.set, e->optimum);
        assert_int_equal(row->optimum.right, e->optimum_right);
        assert_int_equal(row->retrained_right, -1);
    }
}

static const expected_row only_a = {A, 3, 3, 1, 4, A, 3}, none = {0}, pair = {AB, 5, 4, 2, 7, AB, 4};

static void check_solution(const mb_subset_solution *s)
{
    const expected_row only_b = {B, 3, 1, 2, 3, B, 1};
    const expected_row b_for_a = {B, 3, 1, 2, 3, A, 3}; /* as often right in training, with less energy */
    const expected_row latency[] = {only_a, pair, pair};
    const expected_row energy[] = {none, only_b, b_for_a, pair, pair};
    const expected_row both[] = {none, none, only_a, only_a, only_a,  none, only_b, b_for_a,
                                 pair, pair, none,   only_b, b_for_a, pair, pair};
    const expected_row auto_energy[] = {only_b, pair, pair}; /* 3, 3 + 4, 3 + 4 + 10 */
    const expected_row auto_both[] = {none, only_a, only_a, only_b, pair, pair, only_b, pair, pair};
    const expected_row single[] = {
        {A, 3, 3, 1, 4, 0, 0}, {B, 3, 1, 2, 3, 0, 0}, {C, 2, 1, 3, 10, 0, 0}, {AB | C, 2, 1, 3, 17, 0, 0}};
    check_rows(s, MB_SUBSET_TABLE_LATENCY, latency, 3);
    check_rows(s, MB_SUBSET_TABLE_ENERGY, energy, 5);
    check_rows(s, MB_SUBSET_TABLE_BOTH, both, 15);
    check_rows(s, MB_SUBSET_TABLE_AUTO_LATENCY, latency, 3);
    check_rows(s, MB_SUBSET_TABLE_AUTO_ENERGY, auto_energy, 3);
    check_rows(s, MB_SUBSET_TABLE_AUTO, auto_both, 9);
    check_rows(s, MB_SUBSET_TABLE_SINGLE, single, 4);
}

static void test_tables_by_hand(void **state)
{
    (void)state;
    const expected_row front[] = {{A, 3, 3, 1, 4, 0, 0}, {B, 3, 1, 2, 3, 0, 0}, {AB, 5, 4, 2, 7, 0, 0}};
    for (int is_exhaustive = 0; is_exhaustive < 2; is_exhaustive++) {
        solved s = {0};
        solve(&s, is_exhaustive != 0);
        check_solution(&s.solution);
        check_rows(&s.solution, MB_SUBSET_TABLE_PARETO, front, 3);
        assert_int_equal(s.solution.checked, is_exhaustive != 0 ? 3 + 5 + 15 + 3 + 3 + 9 : 0);
        assert_true(s.solution.work.nodes > 0);
        for (int t = MB_SUBSET_TABLE_LATENCY; t < MB_SUBSET_TABLE_PARETO; t++)
            for (int64_t i = 0; i < s.solution.count[t]; i++) {
                assert_true(s.solution.rows[t][i].is_proved);
                assert_int_equal(s.solution.rows[t][i].bound, s.solution.rows[t][i].train.right);
            }
        close_solved(&s);
    }
}

static void test_cells(void **state)
{
    (void)state;
    static const char *const first[] = {"1",      "-",      "a",      "1", "4", "0.5000",
                                        "0.5000", "0.7500", "0.7500", "a", "-", "yes"};
    static const char *const nothing[] = {"-", "2", "none", "-", "-", "-", "-", "-", "-", "-", "-", "yes"};
    static const char *const two[] = {"-",      "7",      "a+b",    "2",   "7", "0.8333",
                                      "0.8333", "1.0000", "1.0000", "a+b", "-", "yes"};
    static const char *const alone[] = {"-", "-",      "c", "3", "10", "0.3333",
                                        "-", "0.2500", "-", "-", "-",  "-"};
    static const struct {
        int table, row;
        const char *const *cells;
    } cases[] = {{MB_SUBSET_TABLE_LATENCY, 0, first},
                 {MB_SUBSET_TABLE_ENERGY, 0, nothing},
                 {MB_SUBSET_TABLE_ENERGY, 3, two},
                 {MB_SUBSET_TABLE_SINGLE, 2, alone}};
    solved s = {0};
    solve(&s, true);
    const mb_subset_program own = {.rule = "majority", .limits = "max"};
    const mb_subset_result result = {&own, s.train_outputs, s.test_outputs, &costs, &s.solution};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mb_table table = {0};
        mb_test_ok(mb_subset_files_table(&result, cases[i].table, &table));
        assert_int_equal(table.column_count, 12);
        for (int c = 0; c < 12; c++)
            assert_string_equal(table.cells[cases[i].row * 12 + c], cases[i].cells[c]);
        mb_table_reset(&table);
    }
    json_t *root = NULL;
    mb_test_ok(mb_subset_files_json(&result, &root));
    const json_t *best = json_object_get(root, "best_single"), *all = json_object_get(root, "all");
    assert_string_equal(json_string_value(json_array_get(json_object_get(best, "experts"), 0)), "b");
    assert_true(json_real_value(json_object_get(best, "test_accuracy")) == 0.25);
    assert_int_equal(json_array_size(json_object_get(all, "experts")), 3);
    json_decref(root);
    close_solved(&s);
}

/* ---- what is read ---- */

#define LATENCY                                                                                              \
    "{\"format\": \"moebatch-latency\", \"experts\": {\"a\": {\"compute_seconds\": 1}, \"b\": "              \
    "{\"compute_seconds\": 2.5}, \"c\": {\"compute_seconds\": 0}}, \"aggregation_seconds\": 0.25"
#define ENERGY(c)                                                                                            \
    "{\"format\": \"moebatch-energy\", \"experts\": {\"b\": {\"energy_joules\": 7}, \"a\": "                 \
    "{\"energy_joules\": 0.5}, \"" c "\": {\"energy_joules\": 2}}}"

static mb_status read_costs(const char *latency, const char *energy, mb_subset_costs *out)
{
    mb_outputs *o = make(test_right, 4, "test");
    char *folder = mb_test_folder_make(), *a = mb_test_write(folder, "latency.json", latency),
         *b = mb_test_write(folder, "energy.json", energy);
    const mb_status status = mb_subset_inputs_costs(a, b, o, out);
    mb_free(a);
    mb_free(b);
    mb_test_folder_remove(&folder);
    mb_outputs_close(&o);
    return status;
}

static void test_costs(void **state)
{
    (void)state;
    mb_subset_costs got;
    mb_test_ok(
        read_costs(LATENCY ", \"transfer_seconds\": {\"c\": 0.5, \"a\": 0, \"b\": 1}}", ENERGY("c"), &got));
    assert_true(got.latency[0] == 1 && got.latency[1] == 3.5 && got.latency[2] == 0.5);
    assert_true(got.energy[0] == 0.5 && got.energy[1] == 7 && got.energy[2] == 2 && got.aggregation == 0.25);
    mb_test_ok(read_costs(LATENCY "}", ENERGY("c"), &got)); /* transfer was not measured */
    assert_true(got.latency[1] == 2.5);
    mb_test_fails(read_costs(LATENCY "}", ENERGY("d"), &got), MB_EDATA, "expert 'c' of the outputs");
    mb_test_fails(read_costs(LATENCY ", \"transfer_seconds\": {\"a\": 0}}", ENERGY("c"), &got), MB_EDATA,
                  "transfer_seconds lacks expert 'b'");
    mb_test_fails(read_costs(LATENCY ", \"transfer_seconds\": {\"a\": -1}}", ENERGY("c"), &got), MB_EDATA,
                  "expert 'a': transfer_seconds is -1");
    mb_test_fails(read_costs(ENERGY("c"), ENERGY("c"), &got), MB_EFORMAT, "not 'moebatch-latency'");
}

static void test_limits(void **state)
{
    (void)state;
    double *limits = NULL;
    int64_t n = 0;
    mb_test_ok(mb_subset_inputs_limits("k", "3,0.5,1e1", &limits, &n));
    assert_true(n == 3 && limits[0] == 0.5 && limits[1] == 3 && limits[2] == 10);
    mb_free(limits);
    mb_test_fails(mb_subset_inputs_limits("k", "1,0", &limits, &n), MB_EUSAGE, "k: 0 is no limit");
    mb_test_fails(mb_subset_inputs_limits("k", "1,2,1", &limits, &n), MB_EUSAGE, "k names 1 twice");
}

/* Question 2 of the table stands, worded alike, in a file an expert was trained on. */
static void test_seen_questions_are_left_out(void **state)
{
    (void)state;
    static const char *const line =
        "{\"id\": \"%s\", \"source\": \"s\", \"source_index\": 0, \"kind\": \"single\", \"question\": "
        "\"Which  one?\", \"options\": [\"x\", \"y\"], \"answer\": 0, \"few_shot\": [], \"chance\": 0.5}\n";
    const mb_question_body body = {
        .text = "Which  one?", .options = {"x", "y"}, .option_count = 2, .answer_mask = 1};
    mb_question question = {.body = {.text = "which one?"}};
    char id[MB_QUESTION_ID], *folder = mb_test_folder_make();
    mb_test_ok(mb_question_hash(&body, id));
    char *text = mb_str_format(line, id), *path = mb_test_write(folder, "seen.jsonl", text);
    mb_outputs *o = make(test_right, 4, "test");
    mb_named_paths seen = {0};
    int64_t *rows = NULL, shared = -1;
    mb_test_ok(mb_question_text_hash(&question, &o->text_hash[2]));
    mb_test_ok(mb_subset_inputs_leave_out(&o, &seen, &rows, &shared));
    assert_true(shared == 0 && o->questions == 4 && rows[3] == 3);
    mb_free(rows);
    mb_test_ok(mb_named_paths_read("k", path, NULL, 0, &seen));
    mb_test_ok(mb_subset_inputs_leave_out(&o, &seen, &rows, &shared));
    assert_int_equal(shared, 1);
    assert_int_equal(o->questions, 3);
    assert_true(rows[0] == 0 && rows[1] == 1 && rows[2] == 3);
    assert_string_equal(o->ids[2], "test-3");
    mb_free(rows);
    for (int q = 0; q < 3; q++) mb_test_ok(mb_question_text_hash(&question, &o->text_hash[q]));
    mb_test_fails(mb_subset_inputs_leave_out(&o, &seen, &rows, &shared), MB_EDATA, "none is left");
    mb_named_paths_reset(&seen);
    mb_outputs_close(&o);
    mb_free(text);
    mb_free(path);
    mb_test_folder_remove(&folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tables_by_hand),
        cmocka_unit_test(test_cells),
        cmocka_unit_test(test_costs),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_seen_questions_are_left_out),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
