/* gate_settings.c: the table. */
#include "stage/gate_settings.h"

static const mb_option table[] = {
    MB_OPTION_JSON(mb_gate_settings, train, "gate.train", NULL,
                   "what the experts answered to the training questions: an outputs.h5 (or its folder), or "
                   "a list name=folder,name=folder of evaluations with eval.questions",
                   NULL),
    MB_OPTION_JSON(mb_gate_settings, test, "gate.test", NULL, "mode report: the same of the test questions",
                   NULL),
    MB_OPTION_JSON(mb_gate_settings, outputs, "outputs.path", NULL,
                   "modes join and apply: outputs, or a list name=folder,name=folder, as gate.train", NULL),
    MB_OPTION_TEXT(mb_gate_settings, embeddings, "gate.embeddings", NULL, NULL,
                   "embeddings of the questions, one a question in their order (moe-embed's folder or file)",
                   NULL),
    MB_OPTION_TEXT(mb_gate_settings, path, "gate.path", NULL, NULL,
                   "mode apply: the gate (moe-gate train's folder or gate.h5)", NULL),
    MB_OPTION_TEXT(mb_gate_settings, targets, "gate.targets", "soft", "soft|best|likelihood",
                   "what the gate learns: all experts that are right alike; of those the surest; or all in "
                   "proportion to the probability they give the right answer",
                   NULL),
    MB_OPTION_LIST(mb_gate_settings, experts, "gate.experts", NULL,
                   "names of the experts to choose among; default: all of the outputs", NULL),
    MB_OPTION_JSON(mb_gate_settings, experts_data, "gate.experts_data", NULL,
                   "files of questions the experts were trained on (name=path,...): questions that stand "
                   "there too are left out and counted",
                   NULL),
    MB_OPTION_LIST(mb_gate_settings, top_k, "gate.top_k", "2,3",
                   "mode report: answers of so many experts are fused, the gate's first; a list", NULL),
    MB_OPTION_INT(mb_gate_settings, draws, "gate.draws", "2000", 100, 1e7, "",
                  "mode report: draws of the bootstrap", NULL),
    MB_OPTION_REAL(mb_gate_settings, level, "gate.level", "0.95", 0.5, 0.9999, "share",
                   "mode report: what the intervals hold of the draws", NULL),
};

const mb_option *mb_gate_settings_table(int64_t *out_count)
{
    *out_count = (int64_t)(sizeof table / sizeof *table);
    return table;
}
