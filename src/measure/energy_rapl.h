/* energy_rapl: joules of the processors, by the kernel's powercap files.
 *
 * Layer: measure.  Uses: base. Source: Linux kernel documentation, "Power Capping Framework"; David et al.
 * (2010) "RAPL".
 *
 * Zones intel-rapl:<n> named package-<n> (AMD's processors use the same names) and, below them, dram, which
 * packages do not include. Counters begin again after max_energy_range_uj, some minutes of full load: read
 * them more often. MB_POWERCAP in the environment names another folder than /sys/class/powercap.
 */
#ifndef MB_ENERGY_RAPL_H
#define MB_ENERGY_RAPL_H

#include <stdbool.h>
#include <stddef.h>

typedef struct mb_energy_rapl mb_energy_rapl;

/* NULL with the reason in why[bytes] when there are no such counters, or reading them is not allowed. */
mb_energy_rapl *mb_energy_rapl_open(char *why, size_t bytes);
void mb_energy_rapl_close(mb_energy_rapl **rapl);
/* Joules of all zones since open. False when a counter could not be read. */
bool mb_energy_rapl_joules(mb_energy_rapl *rapl, double *out_joules);

#endif
