/* stop.c: signals set a flag; a second INT ends the process.
 *
 * 1. stop
 */
#include "base/stop.h"

#include <math.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>

static volatile sig_atomic_t stop_flag;
static volatile sig_atomic_t interrupts;

static void on_signal(int number)
{
    stop_flag = 1;
    if (number != SIGINT) return;
    if (interrupts) {
        signal(SIGINT, SIG_DFL);
        raise(SIGINT); /* pending until we return, then final */
    }
    interrupts = 1;
}

void mb_stop_install(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGUSR2, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
}

void mb_stop_request(void)
{
    stop_flag = 1;
}

bool mb_stop_is_set(void)
{
    return stop_flag != 0;
}

void mb_stop_reset(void)
{
    stop_flag = 0;
    interrupts = 0;
}

double mb_stop_deadline(void)
{
    const char *text = getenv("MB_END_TIME");
    if (text == NULL || *text == 0) text = getenv("SLURM_JOB_END_TIME");
    if (text == NULL || *text < '0' || *text > '9') return 0;
    char *end = NULL;
    double seconds = strtod(text, &end);
    return *end == 0 && isfinite(seconds) ? seconds : 0;
}
