/* machine_gpus.c: what NVML says. */
#include "stage/machine_gpus.h"

#include <stdio.h>
#include <string.h>

#include "measure/energy.h"
#include "measure/energy_nvml.h"

enum { MOST_GPUS = 32 };

typedef struct gpu_view {
    mb_energy_gpu gpu[MOST_GPUS];
    int count;
    char driver[80];
} gpu_view;

static void look(gpu_view *view)
{
    char why[256];
    *view = (gpu_view){.count = 0};
    mb_energy_nvml *nvml = mb_energy_nvml_open(why, sizeof why);
    if (nvml == NULL) return;
    view->count = mb_energy_nvml_list(nvml, view->gpu, MOST_GPUS, view->driver, sizeof view->driver);
    mb_energy_nvml_close(&nvml);
}

static double gib(double bytes)
{
    return bytes / 1073741824;
}

void mb_machine_gpus_summary(char *out_text, size_t bytes)
{
    gpu_view view;
    out_text[0] = 0;
    look(&view);
    if (view.count == 0) return;
    bool is_one_kind = true;
    for (int i = 1; i < view.count; i++) is_one_kind &= strcmp(view.gpu[i].name, view.gpu[0].name) == 0;
    snprintf(out_text, bytes, "%d x %s%s, %.1f GiB each, driver %s", view.count, view.gpu[0].name,
             is_one_kind ? "" : " and others", gib(view.gpu[0].memory_bytes), view.driver);
}

double mb_machine_gpus_memory(void)
{
    gpu_view view;
    double least = 0;
    look(&view);
    for (int i = 0; i < view.count; i++)
        if (i == 0 || view.gpu[i].memory_bytes < least) least = view.gpu[i].memory_bytes;
    return least;
}

static mb_status report_gpu(mb_machine_report *report, const gpu_view *view, int i)
{
    const mb_energy_gpu *g = &view->gpu[i];
    mb_machine_print("GPU %d: %s at %s, %.1f GiB, %.0f W of at most %.0f, driver %s; energy: %s", i, g->name,
                     g->bus_id, gib(g->memory_bytes), g->watts, g->limit_watts, view->driver,
                     g->has_counter ? "counted by NVML"
                     : g->watts > 0 ? "by its power, read 20 times a second"
                                    : "not told");
    json_t *json = json_pack("{s:s,s:s,s:f,s:f,s:f,s:s,s:b}", "name", g->name, "bus_id", g->bus_id,
                             "memory_bytes", g->memory_bytes, "watts", g->watts, "limit_watts",
                             g->limit_watts, "driver", view->driver, "counts_energy", g->has_counter);
    if (json == NULL || json_array_append_new(json_object_get(report->json, "gpu_list"), json) != 0)
        return mb_fail(MB_ENOMEM, "no memory for the report of a GPU");
    return MB_OK;
}

mb_status mb_machine_gpus_report(mb_machine_report *report, const mb_ops *ops)
{
    mb_status status = MB_OK;
    gpu_view view;
    mb_energy *energy = mb_energy_begin(mb_ops_bus_id(ops));
    look(&view);
    MB_TRY(mb_json_set(report->json, "backend", json_string(mb_ops_name(ops))));
    MB_TRY(mb_json_set(report->json, "gpu_list", json_array()));
    for (int i = 0; i < view.count; i++) MB_TRY(report_gpu(report, &view, i));
    MB_TRY(mb_json_set(report->json, "energy_source", json_string(mb_energy_source(energy))));
    if (strcmp(mb_energy_source(energy), "none") == 0)
        mb_machine_print("energy of runs: not known (%s)", mb_energy_reason(energy));
    else
        mb_machine_print("energy of runs: counted by %s", mb_energy_source(energy));
done:
    mb_energy_end(&energy);
    return status;
}
