/* energy_nvml: the few functions of NVIDIA's management library that we use, opened at run time.
 *
 * Layer: measure.  Uses: base, dl. Source: NVML API reference; prototypes are written by hand, so that no
 * header is needed.
 *
 * MB_NVML_LIBRARY in the environment names another library than libnvidia-ml.so.1. NVML counts all GPUs of
 * the node, whatever CUDA_VISIBLE_DEVICES says.
 */
#ifndef MB_ENERGY_NVML_H
#define MB_ENERGY_NVML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct mb_energy_nvml mb_energy_nvml;

/* NULL with the reason in why[bytes] when there is no such library, or it does not start. */
mb_energy_nvml *mb_energy_nvml_open(char *why, size_t bytes);
void mb_energy_nvml_close(mb_energy_nvml **nvml);

/* The GPU of this bus id from now on. False with the reason. */
bool mb_energy_nvml_choose(mb_energy_nvml *nvml, const char *bus_id, char *why, size_t bytes);
/* Of the chosen GPU; false: it does not say. */
bool mb_energy_nvml_joules(mb_energy_nvml *nvml, double *out_joules); /* since the driver was loaded */
bool mb_energy_nvml_watts(mb_energy_nvml *nvml, double *out_watts);

typedef struct mb_energy_gpu {
    char name[96], bus_id[32];
    double memory_bytes, watts, limit_watts; /* 0: not said */
    bool has_counter;                        /* of energy */
} mb_energy_gpu;
/* All GPUs that can be asked, at most `room`; returns how many. driver: its version. */
int mb_energy_nvml_list(mb_energy_nvml *nvml, mb_energy_gpu *gpus, int room, char *driver, size_t bytes);

#endif
