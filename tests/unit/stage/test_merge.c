/* merge: every benchmark's form read from a sample of it, what is wrong with a record said with its line, solved
 * examples, Python literals, duplicates by their hashes, questions shared out to parts. */
#include "mb_test.h"

#include "stage/merge_examples.h"
#include "stage/merge_line.h"
#include "stage/merge_literal.h"
#include "stage/merge_parts.h"
#include "stage/merge_seen.h"

/* ---- reading ---- */

/* What a file gave: lines "question|option;option|answer", and what was wrong. */
typedef struct seen {
    mb_str lines, problems;
    int64_t count;
    mb_question_kind kind;
    char subject[64];
} seen;

static mb_status take(void *own, const mb_merge_taken *taken)
{
    seen *s = own;
    if (taken->opt_body == NULL) return mb_str_add_format(&s->problems, "%s\n", taken->problem);
    const mb_merge_body *body = taken->opt_body;
    mb_test_ok(mb_str_add_format(&s->lines, "%s|", mb_str_text(&body->text)));
    for (int i = 0; i < body->option_count; i++)
        mb_test_ok(mb_str_add_format(&s->lines, "%s%s", i > 0 ? ";" : "", mb_str_text(&body->option[i])));
    mb_test_ok(mb_str_add_format(&s->lines, "|%u", body->answer_mask));
    for (size_t i = 0; i < json_array_size(body->accepted); i++)
        mb_test_ok(mb_str_add_format(&s->lines, "=%s", json_string_value(json_array_get(body->accepted, i))));
    mb_test_ok(mb_str_add(&s->lines, "\n"));
    s->kind = body->kind;
    snprintf(s->subject, sizeof s->subject, "%s", mb_str_text(&body->subject));
    s->count++;
    return MB_OK;
}

static void seen_destroy(seen *s)
{
    mb_str_destroy(&s->lines);
    mb_str_destroy(&s->problems);
}

/* Read one file as an input; the format that was found. */
static const char *read_file(const char *path, const char *format, const char *opt_fields, bool support,
                             seen *out)
{
    char *input = mb_str_format("set=%s", path);
    const mb_merge_input_options options = {
        .key = "merge.inputs", .inputs = input, .format = format, .fields = opt_fields};
    mb_merge_inputs inputs = {0};
    mb_test_ok(mb_merge_inputs_open(&options, &inputs));
    assert_int_equal(inputs.count, 1);
    const char *name = inputs.file[0].format->name;
    mb_test_ok(mb_merge_inputs_read(&inputs.file[0], support, take, out));
    mb_merge_inputs_close(&inputs);
    mb_free(input);
    return name;
}

static void test_every_form(void **state)
{
    (void)state;
    char *folder = mb_test_folder_make();
    static const struct {
        const char *file, *format, *text, *expected, *subject;
        mb_question_kind kind;
    } rows[] = {
        {"anatomy_test.csv", "mmlu", "What is it?,one,two,three,\"f,our\",C\n",
         "What is it?|one;two;three;f,our|4\n", "anatomy", MB_QUESTION_SINGLE},
        {"header.csv", "mmlu", "question,A,B,C,D,answer\nWhat?,1,2,3,4,B\n", "What?|1;2;3;4|2\n", "",
         MB_QUESTION_SINGLE},
        {"mmlu.jsonl", "mmlu",
         "{\"question\": \"What?\", \"subject\": \"law\", \"choices\": [\"a\", \"b\"], \"answer\": 1}\n",
         "What?|a;b|2\n", "law", MB_QUESTION_SINGLE},
        {"pro.jsonl", "mmlu_pro",
         "{\"question_id\": 3, \"question\": \" Which one? \", \"options\": [\"a\", \"b\", \"c\", \"N/A\"], "
         "\"answer\": \"C\", \"answer_index\": 2, \"category\": \"biology\"}\n",
         "Which one?|a;b;c|4\n", "biology", MB_QUESTION_SINGLE},
        {"arc.jsonl", "arc",
         "{\"id\": \"M1\", \"question\": {\"stem\": \"Why?\", \"choices\": [{\"text\": \"x\", \"label\": "
         "\"1\"}, "
         "{\"text\": \"y\", \"label\": \"2\"}]}, \"answerKey\": \"2\"}\n",
         "Why?|x;y|2\n", "", MB_QUESTION_SINGLE},
        {"arc_hf.jsonl", "arc",
         "{\"question\": \"Why?\", \"choices\": {\"text\": [\"x\", \"y\", \"z\"], \"label\": [\"A\", \"B\", "
         "\"C\"]}, \"answerKey\": \"A\"}\n",
         "Why?|x;y;z|1\n", "", MB_QUESTION_SINGLE},
        {"obqa.jsonl", "openbookqa",
         "{\"question_stem\": \"Predators eat\", \"choices\": {\"text\": [\"lions\", \"bunnies\"], "
         "\"label\": "
         "[\"A\", \"B\"]}, \"answerKey\": \"B\"}\n",
         "Predators eat|lions;bunnies|2\n", "", MB_QUESTION_SINGLE},
        {"sciq.jsonl", "sciq",
         "{\"question\": \"What organism?\", \"distractor3\": \"viruses\", \"distractor1\": \"protozoa\", "
         "\"distractor2\": \"gymnosperms\", \"correct_answer\": \"mesophilic\", \"support\": \"Mesophiles "
         "grow.\"}\n",
         "Mesophiles grow.\n\nWhat organism?|gymnosperms;mesophilic;protozoa;viruses|2\n", "",
         MB_QUESTION_SINGLE},
        {"aqua.jsonl", "agieval",
         "{\"passage\": null, \"question\": \"How far?\", \"options\": [\"(A)5\", \"(B)6 km\"], \"label\": "
         "\"B\", "
         "\"answer\": null, \"other\": null}\n",
         "How far?|5;6 km|2\n", "", MB_QUESTION_SINGLE},
        {"jec.jsonl", "agieval",
         "{\"passage\": \"Law.\", \"question\": \"Which?\", \"options\": [\"(A)a\", \"(B)b\", \"(C)c\"], "
         "\"label\": [\"A\", \"C\"], \"answer\": null}\n",
         "Law.\n\nWhich?|a;b;c|5\n", "", MB_QUESTION_MULTIPLE},
        {"cloze.jsonl", "agieval",
         "{\"passage\": null, \"question\": \"1+1=?\", \"options\": null, \"label\": null, \"answer\": "
         "\"$2$\"}\n",
         "1+1=?||0=$2$=2\n", "", MB_QUESTION_CLOZE},
        {"social.jsonl", "socialiqa",
         "{\"context\": \"Tracy stayed.\", \"question\": \"Why?\", \"answerA\": \"a\", \"answerB\": \"b\", "
         "\"answerC\": \"c\", \"label\": \"3\", \"query\": \"Question: ..\", \"choices\": [\"a\"], \"gold\": "
         "2}\n",
         "Tracy stayed.\n\nWhy?|a;b;c|4\n", "", MB_QUESTION_SINGLE},
        {"olmo.jsonl", "olmo",
         "{\"id\": \"q\", \"query\": \"Question: What is it?\\nAnswer:\", \"choices\": [\"a\", \"b\"], "
         "\"gold\": 0}\n",
         "What is it?|a;b|1\n", "", MB_QUESTION_SINGLE},
        {"requests.jsonl", "olmo",
         "{\"doc_id\": 0, \"idx\": 0, \"doc\": {\"query\": \"Why?\", \"choices\": [\"a\", \"b\"], \"gold\": "
         "1}}\n"
         "{\"doc_id\": 0, \"idx\": 1, \"doc\": {\"query\": \"Why?\", \"choices\": [\"a\", \"b\"], \"gold\": "
         "1}}\n",
         "Why?|a;b|2\n", "", MB_QUESTION_SINGLE},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        seen s = {0};
        char *path = mb_test_write(folder, rows[i].file, rows[i].text);
        assert_string_equal(read_file(path, "auto", NULL, true, &s), rows[i].format);
        assert_string_equal(mb_str_text(&s.problems), "");
        assert_string_equal(mb_str_text(&s.lines), rows[i].expected);
        assert_string_equal(s.subject, rows[i].subject);
        assert_int_equal(s.kind, rows[i].kind);
        seen_destroy(&s);
        mb_free(path);
    }
    seen s = {0};
    char *path = mb_test_path(folder, "sciq.jsonl");
    read_file(path, "sciq", NULL, false, &s);
    assert_string_equal(mb_str_text(&s.lines), "What organism?|gymnosperms;mesophilic;protozoa;viruses|2\n");
    seen_destroy(&s);
    mb_free(path);
    mb_test_folder_remove(&folder);
}

static void test_mapped_members(void **state)
{
    (void)state;
    char *folder = mb_test_folder_make();
    static const struct {
        const char *text, *fields, *expected;
    } rows[] = {
        {"{\"q\": \"Why?\", \"a\": \"x\", \"b\": \"y\", \"key\": \"2\"}\n",
         "question=q,options=a+b,answer=key,first=1", "Why?|x;y|2\n"},
        {"{\"q\": \"Why?\", \"c\": {\"list\": [\"3\", \"4\"]}, \"right\": \"4\", \"t\": \"Sums.\"}\n",
         "question=q,passage=t,options=c.list,answer_text=right", "Sums.\n\nWhy?|3;4|2\n"},
        {"{\"q\": \"Why?\", \"options\": {\"A\": \"x\", \"B\": \"y\"}, \"key\": \"B\"}\n",
         "question=q,options=options,answer=key", "Why?|x;y|2\n"},
        {"{\"q\": \"Why?\", \"o\": [\"A. x\", \"B. y\"], \"key\": [\"a\", \"b\"]}\n",
         "question=q,options=o,answer=key", "Why?|x;y|3\n"},
        {"{\"q\": \"Capital?\", \"right\": [\"Paris\", \"City of Paris\"]}\n", "question=q,answer=right",
         "Capital?||0=Paris=City of Paris\n"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        seen s = {0};
        char *path = mb_test_write(folder, "mine.jsonl", rows[i].text);
        assert_string_equal(read_file(path, "auto", rows[i].fields, true, &s), "mapped");
        assert_string_equal(mb_str_text(&s.problems), "");
        assert_string_equal(mb_str_text(&s.lines), rows[i].expected);
        seen_destroy(&s);
        mb_free(path);
    }
    mb_merge_fields fields;
    mb_test_fails(mb_merge_fields_read("merge.fields", "question=q,optoins=o,answer=a", &fields), MB_EUSAGE,
                  "did you mean options");
    mb_test_fails(mb_merge_fields_read("merge.fields", "question=q,options=o", &fields), MB_EUSAGE,
                  "answer_text");
    mb_test_fails(mb_merge_fields_read("merge.fields", "question=q,answer=a,first=2", &fields), MB_EUSAGE,
                  "0 or 1");
    mb_test_folder_remove(&folder);
}

/* Letters in front of options: each in parentheses by itself, others only where all options have theirs. */
static void test_letters_in_front(void **state)
{
    (void)state;
    static const struct {
        const char *options[4], *expected[4];
    } rows[] = {
        {{"(A)x", "(B) y", "(C)z", "plain"}, {"x", "y", "z", "plain"}},
        {{"A x", "B.y", "C、z", "D．w"}, {"x", "y", "z", "w"}},
        {{"A man", "Boys", "C", "D"}, {"A man", "Boys", "C", "D"}},
        {{"A", "B", "C", "D"}, {"A", "B", "C", "D"}},
        {{"(B)x", "(A)y", "(C)z", "(D)"}, {"(B)x", "(A)y", "z", "(D)"}},
    };
    mb_merge_body body = {0};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        mb_merge_body_reset(&body);
        for (int k = 0; k < 4; k++) {
            json_t *text = json_string(rows[i].options[k]);
            mb_test_ok(mb_merge_body_option(&body, text));
            json_decref(text);
        }
        mb_test_ok(mb_merge_body_unletter(&body));
        for (int k = 0; k < 4; k++) assert_string_equal(mb_str_text(&body.option[k]), rows[i].expected[k]);
    }
    mb_merge_body_destroy(&body);
}

/* ---- what is wrong ---- */

static void test_bad_records_are_named_with_their_line(void **state)
{
    (void)state;
    char *folder = mb_test_folder_make();
    static const struct {
        const char *line, *problem;
    } rows[] = {
        {"{\"question\": \"Q\", \"options\": [\"a\", \"b\"], \"answer\": \"D\", \"answer_index\": 3}",
         "the answer 3 is none of the 2 options"},
        {"{\"question\": \"Q\", \"options\": [\"a\", \"b\"], \"answer\": \"A\", \"answer_index\": 1}",
         "answer and answer_index name different options"},
        {"{\"question\": \"Q\", \"options\": [\"a\"], \"answer\": \"A\", \"answer_index\": 0}",
         "it has 1 options; 2 to 10"},
        {"{\"question\": \"Q\", \"options\": [1,2,3,4,5,6,7,8,9,10,11], \"answer\": \"A\", \"answer_index\": "
         "0}",
         "more than 10 options"},
        {"{\"question\": \"  \", \"options\": [\"a\", \"b\"], \"answer\": \"A\", \"answer_index\": 0}",
         "the question is empty"},
        {"{\"question\": 0.5, \"options\": [\"a\", null], \"answer\": \"A\", \"answer_index\": 0}",
         "option B is missing"},
        {"{\"options\": [\"a\", \"b\"], \"answer\": \"A\", \"answer_index\": 0}", "the question is missing"},
        {"{\"question\": [1], \"options\": [\"a\", \"b\"], \"answer\": \"A\", \"answer_index\": 0}",
         "the question is no text"},
        {"{\"question\": \"Q\", \"options\": [\"a\", \"a \"], \"answer\": \"A\", \"answer_index\": 0}",
         "options A and B are the same text, and one of them is right"},
        {"{\"question\": \"Q\", \"options\": [\"a\", \"b\"], \"answer\": [], \"answer_index\": null}",
         "the list of right answers is empty"},
        {"{\"question\": \"Q\", \"options\": [\"a\", \"b\"], \"answer\": [\"A\", \"A\"]}",
         "names option A twice"},
        {"{\"question\": \"Q\", \"options\": [\"a\", \"b\"]}", "the answer is missing"},
        {"{broken", "JSON"},
    };
    mb_str file = MB_STR_EMPTY;
    mb_test_ok(mb_str_add(&file,
                          "{\"question\": \"Q\", \"options\": [\"a\", \"b\", \"b\"], \"answer\": \"A\", "
                          "\"answer_index\": 0}\n"));
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        mb_test_ok(mb_str_add_format(&file, "%s\n", rows[i].line));
    char *path = mb_test_write(folder, "pro.jsonl", file.data);
    seen s = {0};
    read_file(path, "mmlu_pro", NULL, true, &s);
    assert_int_equal(s.count, 1);
    const char *at = mb_str_text(&s.problems);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char line[32];
        const char *end = strchr(at, '\n');
        snprintf(line, sizeof line, "line %zu: ", i + 2);
        assert_non_null(end);
        assert_true(mb_str_is_prefix(at, line));
        const char *found = strstr(at, rows[i].problem);
        if (found == NULL || found > end)
            print_message("# '%s' in %.*s\n", rows[i].problem, (int)(end - at), at);
        assert_true(found != NULL && found < end);
        at = end + 1;
    }
    assert_string_equal(at, "");
    seen_destroy(&s);
    mb_str_destroy(&file);
    mb_free(path);
    mb_test_folder_remove(&folder);
}

static void test_inputs_that_are_refused(void **state)
{
    (void)state;
    char *folder = mb_test_folder_make();
    mb_free(mb_test_write(folder, "odd.jsonl", "{\"who\": 1, \"why\": 2}\n"));
    mb_free(mb_test_write(folder, "empty.jsonl", "\n"));
    mb_free(mb_test_write(folder, "x.parquet", "PAR1"));
    mb_free(
        mb_test_write(folder, "arc.jsonl", "{\"question\": \"Q\", \"choices\": [], \"answerKey\": \"A\"}\n"));
    static const struct {
        const char *file, *format, *fields, *message;
        mb_status status;
    } rows[] = {
        {"odd.jsonl", "auto", NULL, "no known format has the members who, why", MB_EDATA},
        {"odd.jsonl", "mapped", NULL, "format mapped needs them", MB_EUSAGE},
        {"odd.jsonl", "arc", "question=who,answer=why", "fields belong to format mapped", MB_EUSAGE},
        {"empty.jsonl", "auto", NULL, "no record can be read", MB_EDATA},
        {"x.parquet", "auto", NULL, "export_hf.py", MB_EUNSUPPORTED},
        {"none.jsonl", "auto", NULL, "there is no such file", MB_ENOTFOUND},
        {"odd.jsonl", "hellaswag", NULL, "there is no format 'hellaswag'", MB_EUSAGE},
    };
    mb_merge_inputs inputs = {0};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char *input = mb_str_format("set=%s/%s", folder, rows[i].file);
        const mb_merge_input_options options = {
            .key = "merge.inputs", .inputs = input, .format = rows[i].format, .fields = rows[i].fields};
        mb_test_fails(mb_merge_inputs_open(&options, &inputs), rows[i].status, rows[i].message);
        mb_free(input);
    }
    /* a whole file without a question */
    char *input = mb_str_format("set=%s/arc.jsonl", folder);
    const mb_merge_input_options options = {.key = "merge.inputs", .inputs = input, .format = "auto"};
    seen s = {0};
    mb_test_ok(mb_merge_inputs_open(&options, &inputs));
    mb_test_fails(mb_merge_inputs_read(&inputs.file[0], true, take, &s), MB_EDATA,
                  "arc.jsonl: no record is a question of format arc; line 1: the answer 'A'");
    seen_destroy(&s);
    mb_merge_inputs_close(&inputs);
    mb_free(input);
    mb_test_folder_remove(&folder);
}

/* ---- folders and examples ---- */

static void test_folder_of_tables_with_examples(void **state)
{
    (void)state;
    char *folder = mb_test_folder_make(), *test = mb_test_path(folder, "test"),
         *dev = mb_test_path(folder, "dev");
    mb_test_ok(mb_files_make_folders(test));
    mb_test_ok(mb_files_make_folders(dev));
    mb_free(mb_test_write(test, "law_test.csv", "L1?,a,b,c,d,A\nL2?,a,b,c,d,B\n"));
    mb_free(mb_test_write(test, "art_test.csv", "A1?,a,b,c,d,C\n"));
    mb_free(mb_test_write(test, "notes.txt", "no data"));
    mb_free(
        mb_test_write(dev, "law_dev.csv", "L1?,a,b,c,d,A\nD1?,a,b,c,d,B\nD2?,a,b,c,d,D\nD3?,a,b,c,d,D\n"));
    char *input = mb_str_format("mmlu=%s", folder);
    const mb_merge_input_options options = {.key = "merge.inputs", .inputs = input, .format = "auto"};
    mb_merge_inputs inputs = {0};
    mb_merge_examples *examples = NULL;
    mb_test_ok(mb_merge_inputs_open(&options, &inputs));
    assert_int_equal(inputs.count, 2);
    assert_string_equal(inputs.file[0].opt_subject, "art");
    assert_null(inputs.file[0].opt_examples);
    assert_string_equal(inputs.file[1].opt_subject, "law");
    mb_test_ok(mb_merge_examples_open(&inputs.file[0], true, true, &examples));
    assert_int_equal(mb_merge_examples_count(examples), 0);
    mb_merge_examples_close(&examples);
    mb_test_ok(mb_merge_examples_open(&inputs.file[1], true, true, &examples));
    assert_int_equal(mb_merge_examples_count(examples), 4);
    /* the first two, without the one that is asked */
    mb_merge_body body = {0};
    json_t *text = json_string("l1"), *list = NULL;
    mb_test_ok(mb_merge_body_ask(&body, NULL, text));
    mb_test_ok(mb_merge_examples_get(examples, &body, 2, &list));
    assert_int_equal(json_array_size(list), 2);
    assert_string_equal(json_string_value(json_object_get(json_array_get(list, 0), "question")), "D1?");
    assert_int_equal(json_integer_value(json_object_get(json_array_get(list, 1), "answer")), 3);
    json_decref(list);
    body.kind = MB_QUESTION_CLOZE;
    mb_test_ok(mb_merge_examples_get(examples, &body, 2, &list));
    assert_int_equal(json_array_size(list), 0);
    json_decref(list);
    json_decref(text);
    mb_merge_body_destroy(&body);
    mb_merge_examples_close(&examples);
    mb_merge_inputs_close(&inputs);
    mb_free(input);
    mb_free(test);
    mb_free(dev);
    mb_test_folder_remove(&folder);
}

static void test_agieval_examples(void **state)
{
    (void)state;
    char *folder = mb_test_folder_make();
    mb_free(mb_test_write(
        folder, "lsat-ar.jsonl",
        "{\"passage\": \"P\", \"question\": \"Q\", \"options\": [\"(A)a\", \"(B)b\"], \"label\": "
        "\"A\", \"answer\": null}\n"));
    mb_free(mb_test_write(folder, "few_shot_prompts.csv",
                          ",lsat-ar,other\n"
                          "sample 1,\"{'passage': \"\"It's so\"\", 'question': 'Why?\\nSay.', 'options': "
                          "['(A)x', '(B)y'], 'label': "
                          "'B', 'answer': None}\",\n"
                          "explanation 1,because,\n"
                          "sample 2,\"{'passage': None, 'question': 'One?', 'options': ['(A)x'], 'label': "
                          "'A', 'answer': None}\",\n"));
    char *input = mb_str_format("lsat=%s/lsat-ar.jsonl", folder);
    const mb_merge_input_options options = {.key = "merge.inputs", .inputs = input, .format = "auto"};
    mb_merge_inputs inputs = {0};
    mb_merge_examples *examples = NULL;
    mb_merge_body body = {0};
    json_t *text = json_string("other"), *list = NULL;
    mb_test_ok(mb_merge_inputs_open(&options, &inputs));
    mb_test_fails(mb_merge_examples_open(&inputs.file[0], true, true, &examples), MB_EDATA,
                  "sample 2, column lsat-ar: it has 1 options");
    mb_test_ok(mb_merge_examples_open(&inputs.file[0], true, false, &examples));
    assert_int_equal(mb_merge_examples_count(examples), 1);
    mb_test_ok(mb_merge_body_ask(&body, NULL, text));
    mb_test_ok(mb_merge_examples_get(examples, &body, 5, &list));
    const json_t *one = json_array_get(list, 0);
    assert_string_equal(json_string_value(json_object_get(one, "question")), "It's so\n\nWhy?\nSay.");
    assert_string_equal(json_string_value(json_array_get(json_object_get(one, "options"), 1)), "y");
    assert_int_equal(json_integer_value(json_object_get(one, "answer")), 1);
    json_decref(list);
    json_decref(text);
    mb_merge_body_destroy(&body);
    mb_merge_examples_close(&examples);
    mb_merge_inputs_close(&inputs);
    mb_free(input);
    mb_test_folder_remove(&folder);
}

static void test_python_literals(void **state)
{
    (void)state;
    static const struct {
        const char *literal, *json;
    } rows[] = {
        {"{'a': None, \"b\": [True, False, -3, 2.5],}", "{\"a\": null, \"b\": [true, false, -3, 2.5]}"},
        {"('x', \"it's\", 'say \\'so\\'')", "[\"x\", \"it's\", \"say 'so'\"]"},
        {"'a\\n\\t\\\\\\d\\x41\\u00e9\\U0001F600'", "\"a\\n\\t\\\\\\\\dA\\u00e9\\ud83d\\ude00\""},
        {" [ ] ", "[]"},
    };
    static const char *const wrong[] = {"{'a' 1}", "['a'",      "'a",        "{1: 2}", "[1, 2] 3", "1-2",
                                        "nothing", "'\\ud800'", "['a' 'b']", "1.2.3",  ""};
    json_t *json = NULL;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        json_t *expected = json_loads(rows[i].json, JSON_DECODE_ANY, NULL);
        assert_non_null(expected);
        mb_test_ok(mb_merge_literal_read(rows[i].literal, &json));
        assert_true(json_equal(json, expected));
        json_decref(json);
        json_decref(expected);
    }
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        mb_test_fails(mb_merge_literal_read(wrong[i], &json), MB_EDATA, "of the literal");
    char deep[200] = "";
    memset(deep, '[', sizeof deep - 1);
    mb_test_fails(mb_merge_literal_read(deep, &json), MB_EDATA, "less nesting");
}

/* ---- the same, lines, parts ---- */

static void test_what_is_the_same(void **state)
{
    (void)state;
    const mb_question_body a = {
        .text = "What is it?", .options = {"One", "two"}, .option_count = 2, .answer_mask = 1};
    const mb_question_body b = {
        .text = "what  is it", .options = {"TWO", "one."}, .option_count = 2, .answer_mask = 2};
    const mb_question_body c = {
        .text = "What is it?", .options = {"one", "three"}, .option_count = 2, .answer_mask = 2};
    uint64_t key[3][3], answer[3];
    const mb_question_body *const all[] = {&a, &b, &c};
    for (int i = 0; i < 3; i++) {
        for (int same = 0; same < 3; same++)
            mb_test_ok(mb_merge_same_hash(all[i], (mb_merge_same)same, &key[i][same]));
        mb_test_ok(mb_merge_answer_hash(all[i], &answer[i]));
    }
    assert_true(key[0][MB_MERGE_SAME_OPTIONS] == key[1][MB_MERGE_SAME_OPTIONS]);
    assert_true(key[0][MB_MERGE_SAME_ORDER] != key[1][MB_MERGE_SAME_ORDER]);
    assert_true(key[0][MB_MERGE_SAME_OPTIONS] != key[2][MB_MERGE_SAME_OPTIONS]);
    assert_true(key[0][MB_MERGE_SAME_QUESTION] == key[2][MB_MERGE_SAME_QUESTION]);
    assert_true(answer[0] == answer[1]);
    assert_true(answer[0] != answer[2]);
    /* many keys, some of them again */
    mb_merge_seen *table = NULL;
    int64_t first;
    mb_test_ok(mb_merge_seen_create(&table));
    for (int64_t i = 0; i < 5000; i++) {
        mb_test_ok(mb_merge_seen_add(table, (uint64_t)(i % 3000) << 20, i, &first));
        assert_int_equal(first, i < 3000 ? -1 : i - 3000);
    }
    assert_int_equal(mb_merge_seen_get(table, (uint64_t)7 << 20), 7);
    assert_int_equal(mb_merge_seen_get(table, 7), -1);
    mb_merge_seen_destroy(&table);
}

/* A body of every kind is a line that reads back as itself. */
static void test_lines_read_back(void **state)
{
    (void)state;
    static const char *const records[] = {
        "{\"passage\": null, \"question\": \"Q\", \"options\": [\"a\", \"b\"], \"label\": \"B\", \"answer\": "
        "null}",
        "{\"passage\": \"P\", \"question\": \"Q\", \"options\": [\"a\", \"b\", \"c\"], \"label\": [\"B\", "
        "\"C\"], \"answer\": null}",
        "{\"passage\": null, \"question\": \"Q?\", \"options\": null, \"label\": null, \"answer\": \"$x$\"}",
    };
    static const char *const ends[] = {"\"chance\": 0.5", "\"chance\": 0.1428571428571428",
                                       "\"chance\": 0.0"};
    const mb_merge_format *format;
    const mb_merge_origin origin = {.source = "set", .source_index = 4};
    mb_test_ok(mb_merge_format_find("agieval", &format));
    for (size_t i = 0; i < 3; i++) {
        mb_merge_body body = {0}, again = {0};
        mb_str lines = MB_STR_EMPTY, twice = MB_STR_EMPTY;
        json_t *record, *none = json_array();
        char id[MB_QUESTION_ID], same[MB_QUESTION_ID];
        bool has = true;
        const mb_merge_reading reading = {0};
        mb_test_ok(mb_json_parse(records[i], strlen(records[i]), "record", &record));
        mb_test_ok(format->read(record, &reading, &body, &has));
        mb_test_ok(mb_merge_line_add(&body, &origin, none, &lines, id));
        assert_non_null(strstr(lines.data, ends[i]));
        json_decref(record);
        mb_test_ok(mb_json_parse(lines.data, lines.length, "line", &record));
        const mb_merge_format *unified = mb_merge_format_recognise(record);
        assert_string_equal(unified->name, "unified");
        mb_test_ok(unified->read(record, &reading, &again, &has));
        mb_test_ok(mb_merge_line_add(&again, &origin, none, &twice, same));
        assert_string_equal(lines.data, twice.data);
        assert_string_equal(id, same);
        json_decref(record);
        json_decref(none);
        mb_str_destroy(&lines);
        mb_str_destroy(&twice);
        mb_merge_body_destroy(&body);
        mb_merge_body_destroy(&again);
    }
}

/* Counts of n questions of a source over the parts; parts[n] is none. */
static void share_out(const mb_merge_parts *parts, const char *source, int from, int n, int64_t *out)
{
    for (int i = from; i < n; i++) {
        char text[32];
        int64_t part;
        snprintf(text, sizeof text, "question %d", i);
        const mb_question q = {.source = source, .body = {.text = text}};
        mb_test_ok(mb_merge_parts_get(parts, &q, 7, &part));
        out[part < 0 ? parts->count : part]++;
    }
}

static void test_parts(void **state)
{
    (void)state;
    mb_merge_parts parts = {0}, groups = {0};
    mb_test_ok(
        mb_merge_parts_read("split.parts", "train=0.7,test=0.1,gate=0.8:mmlu:arc,held=0.2:mmlu", &parts));
    int64_t other[5] = {0}, mmlu[5] = {0}, arc[5] = {0}, all[5] = {0};
    share_out(&parts, "sciq", 0, 10000, other);
    share_out(&parts, "mmlu", 0, 10000, mmlu);
    share_out(&parts, "arc", 0, 10000, arc);
    assert_true(llabs(other[0] - 7000) < 200 && llabs(other[1] - 1000) < 120 && other[2] + other[3] == 0);
    assert_true(mmlu[0] + mmlu[1] == 0 && llabs(mmlu[2] - 8000) < 200 && mmlu[2] + mmlu[3] == 10000);
    assert_true(llabs(arc[2] - 8000) < 200 && arc[2] + arc[4] == 10000);
    /* the first half stays where it was when a second is added */
    share_out(&parts, "sciq", 0, 5000, all);
    share_out(&parts, "sciq", 5000, 10000, all);
    assert_memory_equal(all, other, sizeof all);
    mb_test_ok(mb_merge_parts_read(
        "split.parts",
        "[{\"name\": \"train\", \"share\": 0.7}, {\"name\": \"test\", \"share\": 0.1}, "
        "{\"name\": \"gate\", \"share\": 0.8, \"sources\": [\"mmlu\", \"arc\"]}, {\"name\": "
        "\"held\", \"share\": 0.2, \"sources\": \"mmlu\"}]",
        &groups));
    int64_t again[5] = {0};
    share_out(&groups, "mmlu", 0, 10000, again);
    assert_memory_equal(again, mmlu, sizeof mmlu);
    mb_merge_parts_reset(&parts);
    mb_merge_parts_reset(&groups);
    static const struct {
        const char *text, *message;
    } wrong[] = {{"train=0.9,test=0.2", "come to 1.1"},
                 {"a=0.9:mmlu,b=0.2:mmlu", "the shares of mmlu come to 1.1"},
                 {"train", "has no share"},
                 {"train=x", "a number up to 1"},
                 {"train=0", "above 0"},
                 {"a=0.5,a=0.2", "two parts are named a"},
                 {"a/b=0.5", "is no name"},
                 {"", "is empty"},
                 {"[{\"name\": \"a\", \"part\": 1}]", "unknown key 'part'"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        mb_test_fails(mb_merge_parts_read("split.parts", wrong[i].text, &parts), MB_EUSAGE, wrong[i].message);
}

/* ---- real data ---- */

static void test_shared_benchmarks(void **state)
{
    (void)state;
    char *agieval = mb_test_data("datasets/agieval"), *choice = mb_test_data("datasets/multiple-choice");
    if (agieval == NULL || choice == NULL) {
        mb_free(agieval);
        mb_free(choice);
        mb_test_skip("no benchmarks in the shared data");
    }
    char *inputs_text = mb_str_format("agieval=%s,mc=%s", agieval, choice);
    const mb_merge_input_options options = {.key = "merge.inputs", .inputs = inputs_text, .format = "auto"};
    mb_merge_inputs inputs = {0};
    static const char *const bad_lines = "line 212: the list of right answers is empty\n";
    int64_t total = 0;
    mb_test_ok(mb_merge_inputs_open(&options, &inputs));
    assert_int_equal(inputs.count, 13);
    for (int64_t i = 0; i < inputs.count; i++) {
        seen s = {0};
        const mb_merge_file *file = &inputs.file[i];
        mb_test_ok(mb_merge_inputs_read(file, true, take, &s));
        total += s.count;
        if (mb_str_equal(file->opt_subject, "jec-qa-kd")) {
            assert_string_equal(file->format->name, "agieval");
            assert_int_equal(s.count, 998);
            assert_true(mb_str_is_prefix(mb_str_text(&s.problems), bad_lines));
            assert_null(strstr(s.lines.data, "|(A)"));
        }
        if (mb_str_equal(file->opt_subject, "arc_easy")) assert_int_equal(s.count, 2376);
        if (mb_str_equal(file->opt_subject, "socialiqa_val")) assert_int_equal(s.count, 1934);
        seen_destroy(&s);
    }
    assert_int_equal(total, 3749 + 2376 + 500 + 1934);
    mb_merge_inputs_close(&inputs);
    mb_free(inputs_text);
    mb_free(agieval);
    mb_free(choice);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_form),
        cmocka_unit_test(test_mapped_members),
        cmocka_unit_test(test_letters_in_front),
        cmocka_unit_test(test_bad_records_are_named_with_their_line),
        cmocka_unit_test(test_inputs_that_are_refused),
        cmocka_unit_test(test_folder_of_tables_with_examples),
        cmocka_unit_test(test_agieval_examples),
        cmocka_unit_test(test_python_literals),
        cmocka_unit_test(test_what_is_the_same),
        cmocka_unit_test(test_lines_read_back),
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_shared_benchmarks),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, mb_test_teardown);
}
