/* merge_formats: the forms that benchmarks come in, and how a record of each becomes a question.
 *
 * Layer: stage.  Uses: merge_body, base.
 * Source: the files that the benchmarks' authors publish, and those of their Hugging Face data sets: MMLU
 * (Hendrycks et al. 2021), MMLU-Pro (Wang et al. 2024), ARC (Clark et al. 2018), SciQ (Welbl et al. 2017),
 * AGIEval (Zhong et al. 2023), OpenBookQA (Mihaylov et al. 2018), Social IQa (Sap et al. 2019); OLMo's
 * evaluation files (query, choices, gold).
 */
#ifndef MB_MERGE_FORMATS_H
#define MB_MERGE_FORMATS_H

#include "stage/merge_body.h"

/* Which of a record's members is what, for format mapped; "" where there is none. A member within another is
 * named "question.stem"; options may stand in several members, "a+b+c", in a list, or in an object by their
 * labels. Without options a question is cloze. */
typedef struct mb_merge_fields {
    char question[64], passage[64], options[320], answer[64], answer_text[64], subject[64];
    int first; /* number of the first option */
} mb_merge_fields;
/* "question=stem,options=a+b+c,answer=key,passage=text,subject=topic,first=1" or answer_text instead of
 * answer. MB_EUSAGE. NULL and "" give no fields. */
mb_status mb_merge_fields_read(const char *key, const char *text, mb_merge_fields *out_fields);

typedef struct mb_merge_reading {
    const mb_merge_fields *opt_fields; /* of format mapped */
    bool support;                      /* SciQ: the supporting paragraph in front */
} mb_merge_reading;

typedef struct mb_merge_format {
    const char *name, *what;
    bool (*fits)(const json_t *record); /* by its members; NULL: never recognised */
    /* *out_has false: a record that repeats a question of another one (OLMo's requests). MB_EDATA. */
    mb_status (*read)(const json_t *record, const mb_merge_reading *reading, mb_merge_body *body,
                      bool *out_has);
} mb_merge_format;

/* All names as an option's choices: "auto|unified|mmlu|...". */
#define MB_MERGE_FORMATS "auto|unified|mmlu|mmlu_pro|arc|openbookqa|sciq|agieval|socialiqa|olmo|mapped"
/* By name; MB_EUSAGE for an unknown one. */
mb_status mb_merge_format_find(const char *name, const mb_merge_format **out_format);
/* By the members of a record; NULL when none fits. */
const mb_merge_format *mb_merge_format_recognise(const json_t *record);
/* A row of MMLU's tables, which have no header: question, options A to D, a letter. */
bool mb_merge_format_is_mmlu_row(const json_t *record);

#endif
