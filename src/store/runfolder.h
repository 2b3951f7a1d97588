/* runfolder: a stage's folder, its lease, its record of what went in and came out.
 *
 * Layer: store.  Uses: base, contenthash, lease.
 *
 * done.json {"program", "stage", "inputs": {name: hash}, "outputs": {path: hash}, "results": {...}, "config":
 * {...}, "provenance": {...}}. A stage whose record matches its inputs and config, and whose outputs are as
 * they were, is skipped. A lease (lease.h) keeps two jobs off one stage.
 */
#ifndef MB_RUNFOLDER_H
#define MB_RUNFOLDER_H

#include <stdbool.h>

#include "base/json.h"

typedef struct mb_runfolder mb_runfolder;

/* Make the folder, take the lease. MB_EEXIST names who holds it. */
mb_status mb_runfolder_open(const char *path, const char *program, const char *stage, mb_runfolder **out_run);
/* Give the lease back. */
void mb_runfolder_close(mb_runfolder **run);
const char *mb_runfolder_path(const mb_runfolder *run);

/* Inputs: name -> content hash of a path, or of a text. */
mb_status mb_runfolder_input(mb_runfolder *run, const char *name, const char *path);
mb_status mb_runfolder_input_text(mb_runfolder *run, const char *name, const char *text);
/* The resolved configuration (takes a reference). Keys listed by the caller as not changing results (output
 * paths, log, threads...) should be left out by the caller. */
mb_status mb_runfolder_config(mb_runfolder *run, json_t *config);
/* Does done.json match the inputs and config given so far, with outputs whole? */
bool mb_runfolder_is_done(const mb_runfolder *run);
/* Why not, for the log ("dataset changed", "no record"). Borrowed. */
const char *mb_runfolder_reason(const mb_runfolder *run);
/* Output by path relative to the folder (or absolute); hashed when finished. */
mb_status mb_runfolder_output(mb_runfolder *run, const char *path);
/* A figure for the record ("loss", "records", "seconds"). */
mb_status mb_runfolder_result(mb_runfolder *run, const char *name, json_t *value);
/* Write done.json with provenance: source version, host, ranks, start, seconds, job ids (SLURM_JOB_ID ...),
 * implementation line (opt_backend). */
mb_status mb_runfolder_finish(mb_runfolder *run, int ranks, const char *opt_backend);

#endif
