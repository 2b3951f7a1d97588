/* choice_groups: MMLU's subjects and their four categories.
 *
 * Layer: measure.  Uses: nothing.
 * Source: lm-evaluation-harness 4e7e0d4, tasks/mmlu/default/ (the tag of each subject).
 */
#ifndef MB_CHOICE_GROUPS_H
#define MB_CHOICE_GROUPS_H

/* "stem", "other", "social_sciences", "humanities" in this order; NULL ends. */
extern const char *const mb_choice_groups_categories[];
/* Category of a subject ("high_school_biology"), NULL when it is none of MMLU's. */
const char *mb_choice_groups_find(const char *subject);

#endif
