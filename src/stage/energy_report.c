/* energy_report.c: who counts, and the sum. */
#include "stage/energy_report.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"

/* What a rank's energy is counted by. Plain bytes. */
typedef struct energy_place {
    char host[128], bus_id[MB_OPS_BUS_ID];
} energy_place;

typedef struct energy_part {
    double joules, uncertainty;
    int32_t counts, is_known;
    char source[16], why[256];
} energy_part;

mb_status mb_energy_report_begin(mb_program *program, mb_energy_report *out_report)
{
    mb_status status = MB_OK;
    mb_comm *comm = program->comm;
    energy_place mine = {.host = ""}, *all = NULL;
    mb_energy_report report = {.counts = true, .began = mb_clock_seconds()};
    gethostname(mine.host, sizeof mine.host - 1);
    snprintf(mine.bus_id, sizeof mine.bus_id, "%s", mb_ops_bus_id(program->ops));
    all = mb_calloc((size_t)mb_comm_size(comm), sizeof *all);
    MB_TRY(mb_comm_agree(comm, all != NULL ? MB_OK : MB_ENOMEM));
    MB_TRY(mb_comm_allgather(comm, &mine, sizeof mine, all));
    for (int i = 0; i < mb_comm_rank(comm); i++)
        if (memcmp(&all[i], &mine, sizeof mine) == 0) report.counts = false;
    if (report.counts) report.energy = mb_energy_begin(mine.bus_id);
    *out_report = report;
done:
    mb_free(all);
    return status;
}

static energy_part part_of(const mb_energy_report *report)
{
    energy_part part = {.counts = report->counts};
    if (!report->counts) return part;
    part.is_known = mb_energy_read(report->energy, &part.joules, &part.uncertainty);
    snprintf(part.source, sizeof part.source, "%s", mb_energy_source(report->energy));
    snprintf(part.why, sizeof part.why, "%s", mb_energy_reason(report->energy));
    return part;
}

/* In the order of ranks. False when one of them has no figure; sum->why says why. */
static bool add_parts(const energy_part *parts, int n, energy_part *sum)
{
    *sum = (energy_part){.is_known = true};
    for (int i = 0; i < n; i++) {
        if (!parts[i].counts) continue;
        if (!parts[i].is_known) {
            memcpy(sum->why, parts[i].why, sizeof sum->why);
            return false;
        }
        sum->joules += parts[i].joules;
        sum->uncertainty += parts[i].uncertainty; /* sensors of a kind err alike */
        if (sum->source[0] == 0) memcpy(sum->source, parts[i].source, sizeof sum->source);
    }
    return true;
}

mb_status mb_energy_report_end(mb_program *program, mb_energy_report *report, const char *unit, int64_t n)
{
    mb_status status = MB_OK;
    const energy_part mine = part_of(report);
    const double seconds = mb_clock_seconds() - report->began;
    energy_part *all = NULL, sum;
    char each[96] = "";
    mb_energy_report_reset(report);
    all = mb_calloc((size_t)mb_comm_size(program->comm), sizeof *all);
    MB_TRY(mb_comm_agree(program->comm, all != NULL ? MB_OK : MB_ENOMEM));
    MB_TRY(mb_comm_allgather(program->comm, &mine, sizeof mine, all));
    if (!add_parts(all, mb_comm_size(program->comm), &sum)) {
        mb_debug("energy is not known: %s", sum.why);
        goto done;
    }
    if (n > 0) snprintf(each, sizeof each, ", %.4g J a %s", sum.joules / (double)n, unit);
    mb_info("energy: %.4g J +- %.2g (%s)%s", sum.joules, sum.uncertainty, sum.source, each);
    MB_TRY(mb_program_result_real(program, "energy_joules", sum.joules));
    MB_TRY(mb_program_result_real(program, "energy_joules_uncertainty", sum.uncertainty));
    MB_TRY(mb_program_result_real(program, "energy_seconds", seconds));
    if (program->run != NULL)
        MB_TRY(mb_runfolder_result(program->run, "energy_source", json_string(sum.source)));
done:
    mb_free(all);
    return status;
}

void mb_energy_report_reset(mb_energy_report *report)
{
    mb_energy_end(&report->energy);
    report->counts = false;
}
