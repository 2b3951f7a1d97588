/* router_bias: one step of the bias, on the host: a few numbers per layer and step.
 *
 * Loads are compared with their mean as E x load with the sum: whole numbers, no rounding decides a sign.
 */
#include "learn/router_bias.h"

/* bias[good] of one router. */
static void update_router(const int64_t *loads, int64_t good, float rate, float *bias)
{
    int64_t sum = 0;
    for (int64_t e = 0; e < good; e++) sum += loads[e];
    for (int64_t e = 0; e < good; e++) {
        const int64_t mine = loads[e] * good;
        if (mine < sum) bias[e] += rate;
        if (mine > sum) bias[e] -= rate;
    }
}

mb_status mb_router_bias_update(mb_lm *lm, const int64_t *loads, double rate)
{
    mb_status status = MB_OK;
    const mb_arch *arch = mb_lm_arch(lm);
    const int64_t routers = mb_lm_routers(lm), gates = mb_arch_gates(arch);
    float *bias = NULL;
    if (rate == 0) goto done;
    MB_NEW_ARRAY(bias, routers * gates);
    MB_TRY(mb_lm_router_bias_read(lm, bias));
    for (int64_t r = 0; r < routers; r++)
        update_router(loads + r * gates, mb_arch_good(arch), (float)rate, bias + r * gates);
    MB_TRY(mb_lm_router_bias_write(lm, bias));
done:
    mb_free(bias);
    return status;
}
