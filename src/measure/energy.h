/* energy: joules that a GPU, or the processors of a node, took since a moment.
 *
 * Layer: measure.  Uses: base, pthreads; energy_nvml (NVML, opened at run time), energy_rapl (the kernel's
 * counters of Intel's and AMD's processors). Source: NVML reference, nvmlDeviceGetTotalEnergyConsumption and
 * nvmlDeviceGetPowerUsage; Linux powercap framework; Yang et al. (2024) "Part-time power measurements" for
 * what NVML's readings are worth.
 *
 * What is counted is the device that computes: with a GPU its board, all that runs on it; else all processor
 * packages of the node and their memory where that is counted too, whoever uses them. Never fails a run:
 * where nothing can be read the source is "none", with the reason.
 */
#ifndef MB_ENERGY_H
#define MB_ENERGY_H

#include <stdbool.h>
#include <stdint.h>

typedef struct mb_energy mb_energy;

/* Begin to count. opt_bus_id: the GPU in use (mb_ops_bus_id); NULL or "": the processors. NULL without
 * memory, which all others take for source "none". */
mb_energy *mb_energy_begin(const char *opt_bus_id);
void mb_energy_end(mb_energy **energy);

/* "nvml": the chip's own counter. "nvml power": its power, read 20 times a second and integrated (chips
 * without a counter). "rapl": the processors' counters. "none". */
const char *mb_energy_source(const mb_energy *energy);
const char *mb_energy_reason(const mb_energy *energy); /* why none; "" */

/* Joules since begin, and what they may be off by: the sensors' own error (5 %), and what one period of
 * reading can hide. False when the source is none, or was lost meanwhile (the reason says how). */
bool mb_energy_read(mb_energy *energy, double *out_joules, double *out_uncertainty);

#endif
