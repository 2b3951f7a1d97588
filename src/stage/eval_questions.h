/* eval_questions: one model's answers to a file of unified questions.
 *
 * Layer: stage.  Uses: measure (question_loglik), eval_generate, question_answers.
 *
 * Options are scored as choices, cloze questions answered greedily up to the end of a line. Both leave parts
 * in <output.dir>/parts, so a run that is stopped goes on where it was; ranks share them, and the results are
 * the same for any number of them.
 */
#ifndef MB_EVAL_QUESTIONS_H
#define MB_EVAL_QUESTIONS_H

#include "stage/program.h"
#include "stage/program_options.h"
#include "store/h5.h"

/* eval.questions is read and can be judged (eval.match): MB_EUSAGE, MB_EDATA, or what mb_questions_open
 * says. Nothing is scored before that is known. */
mb_status mb_eval_questions_check(const mb_eval_program *options);
/* answers.h5 in the run folder, member "questions" of `results`, /questions/accuracy in the file (rank 0;
 * NULL elsewhere), a line per source and kind in the log. Collective. */
mb_status mb_eval_questions_run(mb_program *program, mb_lm *lm, json_t *results, mb_h5 *opt_file);

#endif
