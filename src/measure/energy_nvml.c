/* energy_nvml.c: NVML by dlopen.
 *
 * 1. the library   2. one GPU   3. all GPUs
 */
#include "measure/energy_nvml.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

/* ---- 1. the library ---- */

enum { NVML_SUCCESS = 0 };
typedef struct nvml_device nvml_device; /* nvmlDevice_t points to one */
typedef struct nvml_memory {
    unsigned long long total, free, used;
} nvml_memory;

struct mb_energy_nvml {
    void *library;
    bool has_started;
    nvml_device *device; /* chosen */
    int (*init)(void);
    int (*shutdown)(void);
    const char *(*error_text)(int);
    int (*driver_version)(char *, unsigned);
    int (*count)(unsigned *);
    int (*by_index)(unsigned, nvml_device **);
    int (*by_bus_id)(const char *, nvml_device **);
    int (*name)(nvml_device *, char *, unsigned);
    int (*bus_id)(nvml_device *, void *);
    int (*memory)(nvml_device *, nvml_memory *);
    int (*energy)(nvml_device *, unsigned long long *);
    int (*power)(nvml_device *, unsigned *);
    int (*power_limit)(nvml_device *, unsigned *);
};

/* POSIX gives functions as void *; copying the bytes keeps to C. False: the library has not got it. */
static bool find(void *library, const char *name, void *out_function)
{
    void *symbol = dlsym(library, name);
    memcpy(out_function, &symbol, sizeof symbol);
    return symbol != NULL;
}

/* The last two are missing in old ones, and not needed. */
static bool find_all(mb_energy_nvml *n)
{
    void *l = n->library;
    const bool has_all =
        find(l, "nvmlInit_v2", &n->init) && find(l, "nvmlShutdown", &n->shutdown) &&
        find(l, "nvmlErrorString", &n->error_text) &&
        find(l, "nvmlSystemGetDriverVersion", &n->driver_version) &&
        find(l, "nvmlDeviceGetCount_v2", &n->count) &&
        find(l, "nvmlDeviceGetHandleByIndex_v2", &n->by_index) &&
        find(l, "nvmlDeviceGetHandleByPciBusId_v2", &n->by_bus_id) &&
        find(l, "nvmlDeviceGetName", &n->name) && find(l, "nvmlDeviceGetPciInfo_v3", &n->bus_id) &&
        find(l, "nvmlDeviceGetMemoryInfo", &n->memory) && find(l, "nvmlDeviceGetPowerUsage", &n->power);
    (void)find(l, "nvmlDeviceGetTotalEnergyConsumption", &n->energy);
    (void)find(l, "nvmlDeviceGetEnforcedPowerLimit", &n->power_limit);
    return has_all;
}

mb_energy_nvml *mb_energy_nvml_open(char *why, size_t bytes)
{
    const char *path = getenv("MB_NVML_LIBRARY");
    if (path == NULL || *path == 0) path = "libnvidia-ml.so.1";
    mb_energy_nvml *nvml = mb_calloc(1, sizeof *nvml);
    if (nvml == NULL) {
        snprintf(why, bytes, "no memory");
        return NULL;
    }
    nvml->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (nvml->library == NULL) {
        snprintf(why, bytes, "NVML could not be opened (%s)", dlerror());
    } else if (!find_all(nvml)) {
        snprintf(why, bytes, "%s lacks functions of NVML", path);
    } else {
        const int error = nvml->init();
        nvml->has_started = error == NVML_SUCCESS;
        if (nvml->has_started) return nvml;
        snprintf(why, bytes, "NVML does not start: %s", nvml->error_text(error));
    }
    mb_energy_nvml_close(&nvml);
    return NULL;
}

void mb_energy_nvml_close(mb_energy_nvml **nvml)
{
    if (*nvml == NULL) return;
    if ((*nvml)->has_started) (void)(*nvml)->shutdown();
    if ((*nvml)->library != NULL) dlclose((*nvml)->library);
    MB_FREE(*nvml);
}

/* ---- 2. one GPU ---- */

bool mb_energy_nvml_choose(mb_energy_nvml *nvml, const char *bus_id, char *why, size_t bytes)
{
    const int error = nvml->by_bus_id(bus_id, &nvml->device);
    if (error == NVML_SUCCESS) return true;
    snprintf(why, bytes, "NVML does not give the GPU at %s: %s", bus_id, nvml->error_text(error));
    nvml->device = NULL;
    return false;
}

bool mb_energy_nvml_joules(mb_energy_nvml *nvml, double *out_joules)
{
    unsigned long long millijoules = 0;
    if (nvml->energy == NULL || nvml->energy(nvml->device, &millijoules) != NVML_SUCCESS) return false;
    *out_joules = 1e-3 * (double)millijoules;
    return true;
}

bool mb_energy_nvml_watts(mb_energy_nvml *nvml, double *out_watts)
{
    unsigned milliwatts = 0;
    if (nvml->power(nvml->device, &milliwatts) != NVML_SUCCESS) return false;
    *out_watts = 1e-3 * (double)milliwatts;
    return true;
}

/* ---- 3. all GPUs ---- */

/* nvmlPciInfo_t of version 3 begins with the short form of the bus id [16] and four numbers, five in all,
 * and ends with the long form [32]. */
typedef struct nvml_pci {
    char short_id[16];
    unsigned numbers[5];
    char bus_id[32];
} nvml_pci;

static void describe(mb_energy_nvml *nvml, nvml_device *device, mb_energy_gpu *out)
{
    nvml_memory memory = {0};
    nvml_pci pci = {.short_id = ""};
    unsigned limit = 0;
    double joules;
    *out = (mb_energy_gpu){.name = ""};
    if (nvml->name(device, out->name, sizeof out->name) != NVML_SUCCESS)
        snprintf(out->name, sizeof out->name, "a GPU without a name");
    if (nvml->bus_id(device, &pci) == NVML_SUCCESS) {
        pci.bus_id[sizeof pci.bus_id - 1] = 0;
        memcpy(out->bus_id, pci.bus_id, sizeof out->bus_id);
    }
    if (nvml->memory(device, &memory) == NVML_SUCCESS) out->memory_bytes = (double)memory.total;
    if (nvml->power_limit != NULL && nvml->power_limit(device, &limit) == NVML_SUCCESS)
        out->limit_watts = 1e-3 * limit;
    nvml->device = device;
    if (!mb_energy_nvml_watts(nvml, &out->watts)) out->watts = 0;
    out->has_counter = mb_energy_nvml_joules(nvml, &joules);
}

int mb_energy_nvml_list(mb_energy_nvml *nvml, mb_energy_gpu *gpus, int room, char *driver, size_t bytes)
{
    unsigned count = 0;
    int n = 0;
    nvml_device *const chosen = nvml->device;
    if (bytes > 0 && nvml->driver_version(driver, (unsigned)bytes) != NVML_SUCCESS) driver[0] = 0;
    if (nvml->count(&count) != NVML_SUCCESS) return 0;
    for (unsigned i = 0; i < count && n < room; i++) {
        nvml_device *device = NULL;
        if (nvml->by_index(i, &device) == NVML_SUCCESS) describe(nvml, device, &gpus[n++]);
    }
    nvml->device = chosen;
    return n;
}
