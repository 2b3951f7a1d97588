/* merge_formats.c: see the header.
 *
 * 1. members   2. unified   3. MMLU   4. MMLU-Pro   5. ARC and OpenBookQA   6. SciQ   7. AGIEval
 * 8. Social IQa   9. OLMo   10. mapped   11. the list
 */
#include "stage/merge_formats.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "base/option.h"

/* ---- 1. members ---- */

static bool has(const json_t *record, const char *name)
{
    return json_object_get(record, name) != NULL;
}

/* The first of several members that is there and not null. */
static const json_t *first_of(const json_t *record, const char *const *names, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const json_t *value = json_object_get(record, names[i]);
        if (value != NULL && !json_is_null(value)) return value;
    }
    return NULL;
}

/* "question.stem" */
static const json_t *at_path(const json_t *record, const char *path)
{
    char name[64];
    for (;;) {
        const size_t n = strcspn(path, ".");
        snprintf(name, sizeof name, "%.*s", (int)n, path);
        record = json_object_get(record, name);
        if (record == NULL || path[n] == 0) return record;
        path += n + 1;
    }
}

static mb_status is_right_only(const mb_merge_body *body, int64_t expected)
{
    if (body->answer_mask == 1U << expected) return MB_OK;
    return mb_fail(MB_EDATA, "answer and answer_index name different options");
}

/* ---- 2. unified ---- */

static bool fits_unified(const json_t *record)
{
    return has(record, "chance") && has(record, "kind") && has(record, "options") && has(record, "id");
}

static mb_status read_unified(const json_t *record, const mb_merge_reading *reading, mb_merge_body *body,
                              bool *out_has)
{
    mb_status status = MB_OK;
    mb_question question = {0};
    (void)reading, (void)out_has;
    status = mb_question_from_json(record, &question);
    if (status == MB_EFORMAT) status = MB_EDATA;
    if (status != MB_OK) goto done;
    MB_TRY(mb_merge_body_ask(body, NULL, json_object_get(record, "question")));
    MB_TRY(mb_merge_body_subject(body, json_object_get(record, "subject")));
    if (question.kind == MB_QUESTION_CLOZE) {
        MB_TRY(mb_merge_body_cloze(body, json_object_get(record, "answer")));
        json_decref(body->accepted);
        body->accepted = json_deep_copy(question.accepted);
        goto done;
    }
    MB_TRY(mb_merge_body_options(body, json_object_get(record, "options")));
    MB_TRY(mb_merge_body_answer(body, json_object_get(record, "answer"), NULL, 0));
done:
    mb_question_reset(&question);
    return status;
}

/* ---- 3. MMLU ---- */

bool mb_merge_format_is_mmlu_row(const json_t *record)
{
    const char *answer = json_string_value(json_object_get(record, "5"));
    return json_object_size(record) == 6 && answer != NULL && answer[0] >= 'A' && answer[0] <= 'D' &&
           answer[1] == 0;
}

static bool fits_mmlu(const json_t *record)
{
    const bool is_table = has(record, "A") && has(record, "B") && has(record, "answer");
    return mb_merge_format_is_mmlu_row(record) ||
           (has(record, "question") &&
            (is_table || (json_is_array(json_object_get(record, "choices")) && has(record, "answer"))));
}

/* A row without names, a row of named columns, or an object with choices. */
static mb_status read_mmlu(const json_t *record, const mb_merge_reading *reading, mb_merge_body *body,
                           bool *out_has)
{
    mb_status status = MB_OK;
    const bool is_row = has(record, "0");
    (void)reading, (void)out_has;
    if (is_row && json_object_size(record) != 6)
        MB_RAISE(MB_EDATA, "it has %zu fields; a row is question, A, B, C, D, answer",
                 json_object_size(record));
    MB_TRY(mb_merge_body_ask(body, NULL, json_object_get(record, is_row ? "0" : "question")));
    if (has(record, "choices")) MB_TRY(mb_merge_body_options(body, json_object_get(record, "choices")));
    for (int i = 0; i < MB_QUESTION_MAX_OPTIONS && !has(record, "choices"); i++) {
        const char name[2] = {(char)((is_row ? '1' : 'A') + i), 0};
        if ((is_row && i == 4) || !has(record, name)) break;
        MB_TRY(mb_merge_body_option(body, json_object_get(record, name)));
    }
    MB_TRY(mb_merge_body_answer(body, json_object_get(record, is_row ? "5" : "answer"), NULL, 0));
    MB_TRY(mb_merge_body_subject(body, json_object_get(record, "subject")));
done:
    return status;
}

/* ---- 4. MMLU-Pro ---- */

static bool fits_mmlu_pro(const json_t *record)
{
    return has(record, "question") && json_is_array(json_object_get(record, "options")) &&
           (has(record, "answer_index") || has(record, "answer"));
}

/* Options that are not there stand as N/A at the end. */
static mb_status read_mmlu_pro(const json_t *record, const mb_merge_reading *reading, mb_merge_body *body,
                               bool *out_has)
{
    mb_status status = MB_OK;
    static const char *const subjects[] = {"category", "subject"};
    const json_t *options = json_object_get(record, "options"),
                 *index = json_object_get(record, "answer_index"),
                 *answer = json_object_get(record, "answer");
    size_t n = json_array_size(options);
    (void)reading, (void)out_has;
    while (n > 0 && mb_str_equal(json_string_value(json_array_get(options, n - 1)), "N/A")) n--;
    MB_TRY(mb_merge_body_ask(body, NULL, json_object_get(record, "question")));
    for (size_t i = 0; i < n; i++) MB_TRY(mb_merge_body_option(body, json_array_get(options, i)));
    MB_TRY(mb_merge_body_answer(body, json_is_integer(index) ? index : answer, NULL, 0));
    if (json_is_integer(index) && json_string_length(answer) == 1)
        MB_TRY(is_right_only(body, toupper((unsigned char)json_string_value(answer)[0]) - 'A'));
    MB_TRY(mb_merge_body_subject(body, first_of(record, subjects, 2)));
done:
    return status;
}

/* ---- 5. ARC and OpenBookQA ---- */

static bool fits_arc(const json_t *record)
{
    return has(record, "answerKey") && has(record, "question");
}

static bool fits_openbookqa(const json_t *record)
{
    return has(record, "answerKey") && has(record, "question_stem");
}

/* [{text, label}, ..] or {text: [..], label: [..]}; *out_labels: new. */
static mb_status read_choices(const json_t *choices, mb_merge_body *body, json_t **out_labels)
{
    mb_status status = MB_OK;
    const json_t *one, *list = json_is_object(choices) ? json_object_get(choices, "text") : choices;
    json_t *labels = json_array();
    size_t i;
    if (labels == NULL) MB_RAISE(MB_ENOMEM, "no memory for a question");
    if (!json_is_array(list)) MB_RAISE(MB_EDATA, "its choices are missing, or no list");
    json_array_foreach(list, i, one)
    {
        json_t *label = json_is_object(choices) ? json_array_get(json_object_get(choices, "label"), i)
                                                : json_object_get(one, "label");
        if (!json_is_string(label)) MB_RAISE(MB_EDATA, "choice %zu has no label", i + 1);
        MB_TRY(mb_merge_body_option(body, json_is_object(choices) ? one : json_object_get(one, "text")));
        json_array_append(labels, label);
    }
    *out_labels = labels;
    labels = NULL;
done:
    json_decref(labels);
    return status;
}

/* The authors' files put stem and choices into `question`. */
static mb_status read_arc(const json_t *record, const mb_merge_reading *reading, mb_merge_body *body,
                          bool *out_has)
{
    mb_status status = MB_OK;
    const json_t *question = json_object_get(record, "question"), *stem = question,
                 *choices = json_object_get(record, "choices");
    json_t *labels = NULL;
    (void)reading, (void)out_has;
    if (json_is_object(question)) {
        stem = json_object_get(question, "stem");
        choices = json_object_get(question, "choices");
    } else if (question == NULL) {
        stem = json_object_get(record, "question_stem");
    }
    MB_TRY(mb_merge_body_ask(body, NULL, stem));
    MB_TRY(read_choices(choices, body, &labels));
    MB_TRY(mb_merge_body_answer(body, json_object_get(record, "answerKey"), labels, 0));
done:
    json_decref(labels);
    return status;
}

/* ---- 6. SciQ ---- */

static bool fits_sciq(const json_t *record)
{
    return has(record, "distractor1") && has(record, "correct_answer");
}

/* The options' order is that of their texts, so that the right one's place tells nothing. */
static mb_status read_sciq(const json_t *record, const mb_merge_reading *reading, mb_merge_body *body,
                           bool *out_has)
{
    mb_status status = MB_OK;
    const json_t *option[] = {json_object_get(record, "distractor1"), json_object_get(record, "distractor2"),
                              json_object_get(record, "distractor3"),
                              json_object_get(record, "correct_answer")};
    (void)out_has;
    MB_TRY(mb_merge_body_ask(body, reading->support ? json_object_get(record, "support") : NULL,
                             json_object_get(record, "question")));
    for (int i = 1; i < 4; i++) {
        for (int k = i; k > 0; k--) {
            const char *a = json_string_value(option[k - 1]), *b = json_string_value(option[k]);
            if (a == NULL || b == NULL || strcmp(a, b) <= 0) break;
            const json_t *swap = option[k];
            option[k] = option[k - 1];
            option[k - 1] = swap;
        }
    }
    for (int i = 0; i < 4; i++) MB_TRY(mb_merge_body_option(body, option[i]));
    MB_TRY(mb_merge_body_answer_text(body, json_object_get(record, "correct_answer")));
done:
    return status;
}

/* ---- 7. AGIEval ---- */

static bool fits_agieval(const json_t *record)
{
    return has(record, "passage") && has(record, "question") && has(record, "options") &&
           has(record, "label");
}

/* Cloze answers stand as mathematics, "$5$": without its marks they are accepted too. */
static mb_status read_math(const json_t *answer, mb_merge_body *body)
{
    mb_status status = MB_OK;
    mb_str bare = MB_STR_EMPTY;
    json_t *both = json_array();
    if (!json_is_string(answer)) MB_RAISE(MB_EDATA, "neither options nor an answer are there");
    for (const char *c = json_string_value(answer); *c != 0; c++)
        if (*c != '$') MB_TRY(mb_str_append(&bare, c, 1));
    json_array_append(both, (json_t *)(uintptr_t)answer);
    if (bare.length > 0) json_array_append_new(both, json_stringn(bare.data, bare.length));
    MB_TRY(mb_merge_body_cloze(body, both));
done:
    json_decref(both);
    mb_str_destroy(&bare);
    return status;
}

static mb_status read_agieval(const json_t *record, const mb_merge_reading *reading, mb_merge_body *body,
                              bool *out_has)
{
    mb_status status = MB_OK;
    const json_t *options = json_object_get(record, "options");
    (void)reading, (void)out_has;
    MB_TRY(mb_merge_body_ask(body, json_object_get(record, "passage"), json_object_get(record, "question")));
    if (json_array_size(options) == 0) {
        MB_TRY(read_math(json_object_get(record, "answer"), body));
        goto done;
    }
    MB_TRY(mb_merge_body_options(body, options));
    MB_TRY(mb_merge_body_unletter(body));
    MB_TRY(mb_merge_body_answer(body, json_object_get(record, "label"), NULL, 0));
done:
    return status;
}

/* ---- 8. Social IQa ---- */

static bool fits_socialiqa(const json_t *record)
{
    return has(record, "context") && has(record, "question") && has(record, "answerA");
}

/* Labels count from 1; the authors' own files name them A, B, C. */
static mb_status read_socialiqa(const json_t *record, const mb_merge_reading *reading, mb_merge_body *body,
                                bool *out_has)
{
    mb_status status = MB_OK;
    static const char *const answers[] = {"label", "correct"};
    (void)reading, (void)out_has;
    MB_TRY(mb_merge_body_ask(body, json_object_get(record, "context"), json_object_get(record, "question")));
    MB_TRY(mb_merge_body_option(body, json_object_get(record, "answerA")));
    MB_TRY(mb_merge_body_option(body, json_object_get(record, "answerB")));
    MB_TRY(mb_merge_body_option(body, json_object_get(record, "answerC")));
    MB_TRY(mb_merge_body_answer(body, first_of(record, answers, 2), NULL, 1));
done:
    return status;
}

/* ---- 9. OLMo ---- */

static bool fits_olmo(const json_t *record)
{
    const json_t *doc = has(record, "doc") ? json_object_get(record, "doc") : record;
    return has(doc, "query") && has(doc, "choices") && has(doc, "gold");
}

/* Requests repeat their document for every choice, and from this doc_id on once more, without a context. */
enum { FIRST_UNCONDITIONAL = 1000000 };

static mb_status read_olmo(const json_t *record, const mb_merge_reading *reading, mb_merge_body *body,
                           bool *out_has)
{
    mb_status status = MB_OK;
    static const char front[] = "Question: ", back[] = "\nAnswer:";
    const json_t *doc = has(record, "doc") ? json_object_get(record, "doc") : record,
                 *gold = json_object_get(doc, "gold");
    const char *text = json_string_value(json_object_get(doc, "query"));
    json_t *asked = NULL;
    (void)reading;
    if (doc != record && (json_integer_value(json_object_get(record, "idx")) > 0 ||
                          json_integer_value(json_object_get(record, "doc_id")) >= FIRST_UNCONDITIONAL)) {
        *out_has = false;
        goto done;
    }
    if (text == NULL) MB_RAISE(MB_EDATA, "query is missing, or no text");
    size_t n = strlen(text);
    if (mb_str_is_prefix(text, front)) text += strlen(front), n -= strlen(front);
    if (mb_str_is_suffix(text, back)) n -= strlen(back);
    asked = json_stringn(text, n);
    MB_TRY(mb_merge_body_ask(body, NULL, asked));
    MB_TRY(mb_merge_body_options(body, json_object_get(doc, "choices")));
    if (json_is_array(gold) && json_array_size(gold) == 1) gold = json_array_get(gold, 0);
    MB_TRY(mb_merge_body_answer(body, gold, NULL, 0));
done:
    json_decref(asked);
    return status;
}

/* ---- 10. mapped ---- */

mb_status mb_merge_fields_read(const char *key, const char *text, mb_merge_fields *out_fields)
{
    mb_status status = MB_OK;
    mb_merge_fields fields = {0};
    static const char *const names[] = {"question",    "passage", "options", "answer",
                                        "answer_text", "subject", "first"};
    char *const places[] = {fields.question, fields.passage,     fields.options,
                            fields.answer,   fields.answer_text, fields.subject};
    char **words = NULL;
    int64_t n = 0;
    MB_TRY(mb_option_list_split(text, &words, &n));
    for (int64_t w = 0; w < n; w++) {
        const size_t length = strcspn(words[w], "=");
        const char *value = words[w] + length + (words[w][length] == '=');
        words[w][length] = 0;
        int i = 0;
        while (i < 7 && !mb_str_equal(words[w], names[i])) i++;
        const char *near = mb_str_nearest(words[w], names, 7);
        if (i == 7)
            MB_RAISE(MB_EUSAGE, "%s: there is no '%s'%s%s; write question=..,options=..,answer=..", key,
                     words[w], near != NULL ? "; did you mean " : "", near != NULL ? near : "");
        const size_t room = i == 2 ? sizeof fields.options : sizeof fields.question;
        if (value[0] == 0 || strlen(value) >= room)
            MB_RAISE(MB_EUSAGE, "%s: %s: the name of a member is expected, of at most %zu bytes", key,
                     names[i], room - 1);
        if (i == 6 && !mb_str_equal(value, "0") && !mb_str_equal(value, "1"))
            MB_RAISE(MB_EUSAGE, "%s: first is the first option's number: 0 or 1, not '%s'", key, value);
        if (i == 6)
            fields.first = value[0] - '0';
        else
            memcpy(places[i], value, strlen(value) + 1);
    }
    if (n > 0 && (fields.question[0] == 0 || (fields.answer[0] != 0) == (fields.answer_text[0] != 0)))
        MB_RAISE(MB_EUSAGE, "%s: question and one of answer and answer_text must be there", key);
    *out_fields = fields;
done:
    mb_option_list_free(&words, n);
    return status;
}

/* {"A": "..", "B": ".."}: options by their labels; labels: a new list. */
static mb_status read_labelled(const json_t *object, mb_merge_body *body, json_t **out_labels)
{
    mb_status status = MB_OK;
    const char *label;
    json_t *text, *labels = json_array();
    if (labels == NULL) MB_RAISE(MB_ENOMEM, "no memory for a question");
    json_object_foreach((json_t *)(uintptr_t)object, label, text)
    {
        MB_TRY(mb_merge_body_option(body, text));
        json_array_append_new(labels, json_string(label));
    }
    *out_labels = labels;
    labels = NULL;
done:
    json_decref(labels);
    return status;
}

static mb_status read_mapped_options(const json_t *record, const mb_merge_fields *fields, mb_merge_body *body,
                                     json_t **out_labels)
{
    mb_status status = MB_OK;
    char name[64];
    if (strchr(fields->options, '+') == NULL) {
        const json_t *options = at_path(record, fields->options);
        const bool is_pair = json_is_array(json_object_get(options, "text"));
        const bool is_list = json_is_object(json_array_get(options, 0));
        if (is_pair || is_list) return read_choices(options, body, out_labels);
        if (json_is_object(options)) return read_labelled(options, body, out_labels);
        return mb_merge_body_options(body, options);
    }
    for (const char *at = fields->options; *at != 0;) {
        const size_t n = strcspn(at, "+");
        snprintf(name, sizeof name, "%.*s", (int)n, at);
        MB_TRY(mb_merge_body_option(body, at_path(record, name)));
        at += n + (at[n] == '+');
    }
done:
    return status;
}

static mb_status read_mapped(const json_t *record, const mb_merge_reading *reading, mb_merge_body *body,
                             bool *out_has)
{
    mb_status status = MB_OK;
    const mb_merge_fields *fields = reading->opt_fields;
    json_t *labels = NULL;
    (void)out_has;
    MB_TRY(mb_merge_body_ask(body, fields->passage[0] != 0 ? at_path(record, fields->passage) : NULL,
                             at_path(record, fields->question)));
    if (fields->subject[0] != 0) MB_TRY(mb_merge_body_subject(body, at_path(record, fields->subject)));
    const json_t *answer = at_path(record, fields->answer[0] != 0 ? fields->answer : fields->answer_text);
    if (fields->options[0] == 0) {
        MB_TRY(mb_merge_body_cloze(body, answer));
        goto done;
    }
    MB_TRY(read_mapped_options(record, fields, body, &labels));
    MB_TRY(mb_merge_body_unletter(body));
    if (fields->answer[0] != 0)
        MB_TRY(mb_merge_body_answer(body, answer, labels, fields->first));
    else
        MB_TRY(mb_merge_body_answer_text(body, answer));
done:
    json_decref(labels);
    return status;
}

/* ---- 11. the list ---- */

/* In the order in which they are recognised. */
static const mb_merge_format formats[] = {
    {"unified", "moe-merge's own", fits_unified, read_unified},
    {"agieval", "passage, question, options, label or answer", fits_agieval, read_agieval},
    {"socialiqa", "context, question, answerA, answerB, answerC, label", fits_socialiqa, read_socialiqa},
    {"sciq", "question, distractor1, .., correct_answer, support", fits_sciq, read_sciq},
    {"openbookqa", "question_stem, choices, answerKey", fits_openbookqa, read_arc},
    {"arc", "question, choices, answerKey", fits_arc, read_arc},
    {"olmo", "query, choices, gold", fits_olmo, read_olmo},
    {"mmlu_pro", "question, options, answer, answer_index", fits_mmlu_pro, read_mmlu_pro},
    {"mmlu", "question, A, B, C, D, answer; or question, choices, answer", fits_mmlu, read_mmlu},
    {"mapped", "members named by fields", NULL, read_mapped},
};
enum { FORMATS = sizeof formats / sizeof *formats };

mb_status mb_merge_format_find(const char *name, const mb_merge_format **out_format)
{
    mb_status status = MB_OK;
    int i = 0;
    while (i < FORMATS && !mb_str_equal(formats[i].name, name)) i++;
    if (i == FORMATS) MB_RAISE(MB_EUSAGE, "there is no format '%s'; take one of %s", name, MB_MERGE_FORMATS);
    *out_format = &formats[i];
done:
    return status;
}

const mb_merge_format *mb_merge_format_recognise(const json_t *record)
{
    for (int i = 0; i < FORMATS; i++)
        if (formats[i].fits != NULL && formats[i].fits(record)) return &formats[i];
    return NULL;
}
