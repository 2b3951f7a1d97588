/* energy.c: one meter over the two kinds of counters; a thread where readings must not be far apart.
 *
 * 1. the meter   2. the thread   3. beginning and end   4. reading
 */
#include "measure/energy.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/memory.h"
#include "measure/energy_nvml.h"
#include "measure/energy_rapl.h"

/* ---- 1. the meter ---- */

#define SENSOR_ERROR                                                                                         \
    0.05 /* NVML's documented accuracy of power; RAPL's against meters at the wall is of that size */
#define COUNTER_PERIOD 0.1  /* s: how old a counter can be */
#define POWER_PERIOD   0.05 /* s between readings of power */
#define RAPL_PERIOD    10.0 /* s: far below the minutes in which its counters begin again */

typedef enum energy_source { ENERGY_NONE, ENERGY_COUNTER, ENERGY_POWER, ENERGY_RAPL } energy_source;

struct mb_energy {
    energy_source source;
    char why[256];
    mb_energy_nvml *nvml;
    mb_energy_rapl *rapl;
    double began, counter_began; /* s, J */
    pthread_t thread;
    bool has_thread, has_lock;
    pthread_mutex_t lock; /* of all below, and of what is read */
    pthread_cond_t changed;
    bool is_ending, is_lost;
    double joules, slack; /* of integrated power; what it may be off by for steps between readings */
    double last_time, last_watts;
};

static void lose(mb_energy *e, const char *why)
{
    if (!e->is_lost) snprintf(e->why, sizeof e->why, "%s", why);
    e->is_lost = true;
}

/* One more reading; the lock is held. */
static void sample(mb_energy *e)
{
    double watts = 0, joules = 0;
    if (e->is_lost) return;
    if (e->source == ENERGY_RAPL) {
        if (mb_energy_rapl_joules(e->rapl, &joules))
            e->joules = joules;
        else
            lose(e, "a counter of the processors could not be read any more");
        return;
    }
    if (!mb_energy_nvml_watts(e->nvml, &watts)) {
        lose(e, "NVML did not give the GPU's power any more");
        return;
    }
    const double now = mb_clock_seconds(), seconds = now - e->last_time;
    e->joules += 0.5 * (watts + e->last_watts) * seconds;
    e->slack += 0.5 * fabs(watts - e->last_watts) * seconds;
    e->last_time = now;
    e->last_watts = watts;
}

/* ---- 2. the thread ---- */

static void *sampler(void *opaque)
{
    mb_energy *e = opaque;
    const double period = e->source == ENERGY_POWER ? POWER_PERIOD : RAPL_PERIOD;
    pthread_mutex_lock(&e->lock);
    while (!e->is_ending) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        const double end = (double)until.tv_sec + 1e-9 * (double)until.tv_nsec + period;
        until.tv_sec = (time_t)end;
        until.tv_nsec = (long)((end - (double)until.tv_sec) * 1e9);
        if (pthread_cond_timedwait(&e->changed, &e->lock, &until) == ETIMEDOUT) sample(e);
    }
    pthread_mutex_unlock(&e->lock);
    return NULL;
}

static bool start_thread(mb_energy *e)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    e->has_lock = true;
    e->has_thread = pthread_create(&e->thread, NULL, sampler, e) == 0;
    return e->has_thread;
}

/* ---- 3. beginning and end ---- */

static void begin_gpu(mb_energy *e, const char *bus_id)
{
    e->nvml = mb_energy_nvml_open(e->why, sizeof e->why);
    if (e->nvml == NULL || !mb_energy_nvml_choose(e->nvml, bus_id, e->why, sizeof e->why)) return;
    if (mb_energy_nvml_joules(e->nvml, &e->counter_began)) {
        e->source = ENERGY_COUNTER;
    } else if (mb_energy_nvml_watts(e->nvml, &e->last_watts)) {
        e->last_time = mb_clock_seconds();
        e->source = ENERGY_POWER;
    } else {
        snprintf(e->why, sizeof e->why, "the GPU at %s tells neither energy nor power", bus_id);
    }
}

static void begin_processors(mb_energy *e)
{
    e->rapl = mb_energy_rapl_open(e->why, sizeof e->why);
    if (e->rapl != NULL) e->source = ENERGY_RAPL;
}

mb_energy *mb_energy_begin(const char *opt_bus_id)
{
    mb_energy *e = mb_calloc(1, sizeof *e);
    if (e == NULL) return NULL;
    e->began = mb_clock_seconds();
    if (opt_bus_id != NULL && *opt_bus_id != 0)
        begin_gpu(e, opt_bus_id);
    else
        begin_processors(e);
    if ((e->source == ENERGY_POWER || e->source == ENERGY_RAPL) && !start_thread(e)) {
        e->source = ENERGY_NONE;
        snprintf(e->why, sizeof e->why,
                 "no thread to read the counters; the system's limit of processes is reached");
    }
    return e;
}

void mb_energy_end(mb_energy **energy)
{
    mb_energy *e = *energy;
    if (e == NULL) return;
    if (e->has_thread) {
        pthread_mutex_lock(&e->lock);
        e->is_ending = true;
        pthread_cond_broadcast(&e->changed);
        pthread_mutex_unlock(&e->lock);
        pthread_join(e->thread, NULL);
    }
    if (e->has_lock) {
        pthread_cond_destroy(&e->changed);
        pthread_mutex_destroy(&e->lock);
    }
    mb_energy_nvml_close(&e->nvml);
    mb_energy_rapl_close(&e->rapl);
    MB_FREE(*energy);
}

/* ---- 4. reading ---- */

const char *mb_energy_source(const mb_energy *energy)
{
    static const char *const names[] = {"none", "nvml", "nvml power", "rapl"};
    return names[energy != NULL ? energy->source : ENERGY_NONE];
}

const char *mb_energy_reason(const mb_energy *energy)
{
    return energy != NULL ? energy->why : "no memory";
}

static bool read_counter(mb_energy *e, double *out_joules)
{
    double now = 0;
    if (e->is_lost) return false;
    if (!mb_energy_nvml_joules(e->nvml, &now))
        lose(e, "NVML did not give the GPU's energy any more");
    else if (now < e->counter_began)
        lose(e, "the GPU's counter of energy began again; was its driver loaded anew?");
    if (e->is_lost) return false;
    *out_joules = now - e->counter_began;
    return true;
}

bool mb_energy_read(mb_energy *energy, double *out_joules, double *out_uncertainty)
{
    mb_energy *e = energy;
    if (e == NULL || e->source == ENERGY_NONE) return false;
    double joules = 0, slack = 0;
    const double seconds = mb_clock_seconds() - e->began;
    if (e->source == ENERGY_COUNTER) {
        if (!read_counter(e, &joules)) return false;
        slack = seconds > 0 ? joules / seconds * COUNTER_PERIOD : 0;
    } else {
        pthread_mutex_lock(&e->lock);
        sample(e);
        const bool is_lost = e->is_lost;
        joules = e->joules;
        slack = e->slack;
        pthread_mutex_unlock(&e->lock);
        if (is_lost) return false;
    }
    *out_joules = joules;
    *out_uncertainty = SENSOR_ERROR * joules + slack;
    return true;
}
