/* energy_rapl.c: the powercap folder.
 *
 * 1. files   2. zones   3. reading
 */
#include "measure/energy_rapl.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/files.h"
#include "base/memory.h"
#include "base/str.h"

enum { MOST_ZONES = 64, PATH_BYTES = 512 };

typedef struct rapl_zone {
    char path[PATH_BYTES]; /* of its counter */
    uint64_t range, last;  /* microjoules */
} rapl_zone;

struct mb_energy_rapl {
    rapl_zone zone[MOST_ZONES];
    int count;
    double joules;
};

/* ---- 1. files ---- */

/* A number in a file of the zone; false with errno. */
static bool read_number(const char *path, uint64_t *out)
{
    FILE *stream = fopen(path, "re");
    if (stream == NULL) return false;
    const bool is_read = fscanf(stream, "%" SCNu64, out) == 1;
    if (!is_read) errno = EIO;
    fclose(stream);
    return is_read;
}

static bool join(char out[PATH_BYTES], const char *folder, const char *name)
{
    const int n = snprintf(out, PATH_BYTES, "%s/%s", folder, name);
    return n > 0 && n < PATH_BYTES;
}

/* ---- 2. zones ---- */

/* Does this zone count by itself? Packages, and memory, which they leave out; not the parts of packages, nor
 * "psys", which holds them. */
static bool is_counted(const char *folder)
{
    char path[PATH_BYTES], name[64] = "";
    FILE *stream = join(path, folder, "name") ? fopen(path, "re") : NULL;
    if (stream == NULL) return false;
    if (fgets(name, sizeof name, stream) == NULL) name[0] = 0;
    fclose(stream);
    return mb_str_is_prefix(name, "package") || mb_str_is_prefix(name, "dram");
}

/* Adds the zone. False with the reason when it is there and cannot be read. */
static bool add_zone(mb_energy_rapl *rapl, const char *folder, char *why, size_t bytes)
{
    char path[PATH_BYTES];
    rapl_zone *zone = &rapl->zone[rapl->count];
    if (rapl->count == MOST_ZONES || !is_counted(folder)) return true;
    if (!join(zone->path, folder, "energy_uj") || !join(path, folder, "max_energy_range_uj")) return true;
    if (!read_number(path, &zone->range)) zone->range = 0;
    if (!read_number(zone->path, &zone->last)) {
        snprintf(why, bytes, "%s cannot be read (%s)%s", zone->path, strerror(errno),
                 errno == EACCES ? "; the node's administrator can allow it: chmod a+r" : "");
        return false;
    }
    rapl->count++;
    return true;
}

/* Zones intel-rapl:0 and their parts intel-rapl:0:0 lie side by side in the folder. */
static bool add_zones(mb_energy_rapl *rapl, const char *root, char *why, size_t bytes)
{
    char **names = NULL, folder[PATH_BYTES];
    int64_t n = 0;
    bool is_well = true;
    if (mb_files_list(root, &names, &n) != MB_OK) {
        mb_status_reset();
        return true;
    }
    for (int64_t i = 0; i < n && is_well; i++)
        if (mb_str_is_prefix(names[i], "intel-rapl:") && join(folder, root, names[i]))
            is_well = add_zone(rapl, folder, why, bytes);
    mb_files_free_names(&names, n);
    return is_well;
}

mb_energy_rapl *mb_energy_rapl_open(char *why, size_t bytes)
{
    const char *root = getenv("MB_POWERCAP");
    if (root == NULL || *root == 0) root = "/sys/class/powercap";
    mb_energy_rapl *rapl = mb_calloc(1, sizeof *rapl);
    if (rapl == NULL) {
        snprintf(why, bytes, "no memory");
        return NULL;
    }
    if (add_zones(rapl, root, why, bytes)) {
        if (rapl->count > 0) return rapl;
        snprintf(why, bytes, "%s has no counters of processors (intel-rapl:*)", root);
    }
    mb_energy_rapl_close(&rapl);
    return NULL;
}

void mb_energy_rapl_close(mb_energy_rapl **rapl)
{
    MB_FREE(*rapl);
}

/* ---- 3. reading ---- */

bool mb_energy_rapl_joules(mb_energy_rapl *rapl, double *out_joules)
{
    for (int i = 0; i < rapl->count; i++) {
        rapl_zone *zone = &rapl->zone[i];
        uint64_t now = 0;
        if (!read_number(zone->path, &now)) return false;
        if (now < zone->last && zone->range < zone->last)
            return false; /* it began again, and does not say where */
        const uint64_t since = now >= zone->last ? now - zone->last : zone->range - zone->last + now;
        zone->last = now;
        rapl->joules += 1e-6 * (double)since;
    }
    *out_joules = rapl->joules;
    return true;
}
