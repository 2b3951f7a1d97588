/* power_model.c: the formula, and the same in words. */
#include "measure/power_model.h"

double mb_power_model_joules(const mb_power_model *model, double seconds, double core_seconds)
{
    return (model->watts_idle + model->watts_gpu) * seconds + model->watts_per_core * core_seconds;
}

mb_status mb_power_model_text(const mb_power_model *model, mb_str *text)
{
    mb_status status = MB_OK;
    MB_TRY(
        mb_str_add_format(text,
                          "stated power model, not measured: %g W per busy core x core-seconds (CPU time of "
                          "the process) + %g W for the node at rest x seconds",
                          model->watts_per_core, model->watts_idle));
    if (model->watts_gpu > 0)
        MB_TRY(mb_str_add_format(text, " + %g W for the GPU x seconds", model->watts_gpu));
done:
    return status;
}
