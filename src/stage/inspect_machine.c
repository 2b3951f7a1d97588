/* inspect_machine.c: the checks of moe-inspect machine, one after the other.
 *
 * 1. options   2. libraries   3. checks
 */
#include "stage/inspect_machine.h"

#include "base/clock.h"
#include "base/files.h"
#include "base/version_info.h"
#include "comm/comm_library.h"
#include "stage/machine_disk.h"
#include "stage/machine_gpus.h"
#include "stage/machine_ranks.h"
#include "stage/machine_rates.h"
#include "store/h5_library.h"

/* ---- 1. options ---- */

static const mb_option options_table[] = {
    MB_OPTION_TEXT(mb_inspect_machine_options, dir, "dir", ".", NULL, "folder whose file system is tried",
                   NULL),
    MB_OPTION_BOOL(mb_inspect_machine_options, measure, "measure", "false",
                   "also measure products and memory, for moe-config forecast (some seconds)", NULL),
    MB_OPTION_TEXT(mb_inspect_machine_options, name, "name", NULL, NULL,
                   "name of the machine in out=; default: the first rank's host", NULL),
};

const mb_option *mb_inspect_machine_option_table(int64_t *out_count)
{
    *out_count = (int64_t)(sizeof options_table / sizeof *options_table);
    return options_table;
}

/* ---- 2. libraries ---- */

static mb_status report_libraries(mb_machine_report *report, mb_comm *comm)
{
    mb_status status = MB_OK;
    char mpi[512], hdf5[256];
    mb_comm_library(mpi, sizeof mpi);
    mb_h5_library(hdf5, sizeof hdf5);
    mb_machine_print("moebatch %s, MPI: %s (%s), %s", mb_version_source(), mpi,
                     mb_str_equal(mb_comm_name(comm), "mpi") ? "in use" : "not in use: one process", hdf5);
    MB_TRY(mb_json_set(report->json, "version", json_string(mb_version_source())));
    MB_TRY(mb_json_set(report->json, "mpi", json_string(mpi)));
    MB_TRY(mb_json_set(report->json, "hdf5", json_string(hdf5)));
done:
    return status;
}

/* ---- 3. checks ---- */

static mb_status report_head(mb_machine_report *report, mb_program *program,
                             const mb_inspect_machine_options *options, const mb_machine_rank *ranks)
{
    mb_status status = MB_OK;
    char date[32];
    int64_t threads = 0;
    mb_clock_iso(date);
    for (int i = 0; i < mb_comm_size(program->comm); i++)
        if (mb_str_equal(ranks[i].host, ranks[0].host)) threads += ranks[i].threads;
    MB_TRY(mb_json_set(report->json, "name",
                       json_string(options->name != NULL ? options->name : ranks[0].host)));
    MB_TRY(mb_json_set(report->json, "date", json_string(date)));
    MB_TRY(mb_json_set(report->json, "cores", json_integer(ranks[0].cpus_online)));
    MB_TRY(mb_json_set(report->json, "threads", json_integer(threads)));
    MB_TRY(report_libraries(report, program->comm));
    MB_TRY(mb_machine_ranks_report(report, ranks, mb_comm_size(program->comm)));
    MB_TRY(mb_machine_gpus_report(report, program->ops));
done:
    return status;
}

/* Collective: every check, each reported by rank 0 before the next begins. */
static mb_status run_checks(mb_program *program, const mb_inspect_machine_options *options,
                            mb_machine_report *report)
{
    mb_status status = MB_OK;
    mb_comm *comm = program->comm;
    mb_machine_rank *ranks = NULL;
    mb_machine_link link;
    mb_machine_disk disk;
    mb_machine_rates rates;
    const bool is_root = mb_program_is_root(program);
    MB_TRY(mb_machine_ranks_collect(program, &ranks));
    if (is_root) status = report_head(report, program, options, ranks);
    MB_TRY(mb_comm_agree(comm, status));
    MB_TRY(mb_machine_link_measure(comm, &link));
    if (is_root) status = mb_machine_link_report(report, ranks, mb_comm_size(comm), &link);
    MB_TRY(mb_comm_agree(comm, status));
    MB_TRY(mb_machine_disk_measure(comm, options->dir, &disk));
    if (is_root) status = mb_machine_disk_report(report, options->dir, &disk, ranks);
    MB_TRY(mb_comm_agree(comm, status));
    if (options->measure) {
        MB_TRY(mb_machine_rates_measure(program, ranks, &rates));
        if (is_root) status = mb_machine_rates_report(report, &rates);
        MB_TRY(mb_comm_agree(comm, status));
    }
done:
    mb_free(ranks);
    return status;
}

mb_status mb_inspect_machine_run(mb_program *program, const mb_inspect_machine_options *options,
                                 const char *opt_out)
{
    mb_status status = MB_OK;
    mb_machine_report report = {0};
    MB_TRY(mb_program_open_ops(program));
    MB_TRY(mb_machine_report_create(&report));
    MB_TRY(run_checks(program, options, &report));
    if (!mb_program_is_root(program)) goto done;
    mb_machine_report_end(&report);
    if (opt_out != NULL) MB_TRY(mb_json_write(opt_out, report.json, 2, false));
    if (report.broken > 0)
        MB_RAISE(MB_EIO, "%lld of the checks came out broken; see the lines above", (long long)report.broken);
done:
    mb_machine_report_destroy(&report);
    return status;
}
