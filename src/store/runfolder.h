/* runfolder: a stage's folder, its lease, its record of what went in and came out.
 *
 * Layer: store.  Uses: base, contenthash, lease, share.
 *
 * done.json {"program", "stage", "inputs": {name: hash}, "outputs": {path: hash}, "results": {...}, "config":
 * {...}, "provenance": {...}}. A stage whose record matches its inputs and config, and whose outputs are as
 * they were, is skipped. A lease (lease.h) keeps two jobs off one stage.
 *
 * A run that does one share of the work (share.h) has its own record done-<k>of<n>.json and its own lease;
 * the record of the whole counts for it too.
 */
#ifndef MB_RUNFOLDER_H
#define MB_RUNFOLDER_H

#include <stdbool.h>

#include "base/hash.h"
#include "base/json.h"
#include "store/share.h"

typedef struct mb_runfolder mb_runfolder;

/* To look only: the folder need not be there, nothing is made, no lease is taken (until
 * mb_runfolder_claim). */
mb_status mb_runfolder_view(const char *path, const char *program, const char *stage, mb_share share,
                            mb_runfolder **out_run);
/* Make the folder, take the lease of the share. MB_EEXIST names who holds it. */
mb_status mb_runfolder_claim(mb_runfolder *run);
/* Both. */
mb_status mb_runfolder_open(const char *path, const char *program, const char *stage, mb_share share,
                            mb_runfolder **out_run);
/* Give the lease back. */
void mb_runfolder_close(mb_runfolder **run);
const char *mb_runfolder_path(const mb_runfolder *run);
/* MB_OK while the lease is ours; MB_EEXIST with a message when it is not, or was never taken. */
mb_status mb_runfolder_is_mine(const mb_runfolder *run);

/* A folder with a finished result of other work (even_if_done: or of this) is never written over: rename
 * it to `<path>.1`, `.2`, ..., the first that is free, under the lease of the whole, when no share of it
 * is at work; waits a minute for others, then MB_EEXIST. *out_aside: the new name (mb_free), NULL when
 * there was nothing to move (any more). Our own lease is given back: claim again. */
mb_status mb_runfolder_move_aside(mb_runfolder *run, bool even_if_done, char **out_aside);

/* Inputs: name -> content hash of a path, or of a text. */
mb_status mb_runfolder_input(mb_runfolder *run, const char *name, const char *path);
mb_status mb_runfolder_input_text(mb_runfolder *run, const char *name, const char *text);
/* The hash of an input given so far, NULL for none of that name. Borrowed. */
const char *mb_runfolder_input_hash(const mb_runfolder *run, const char *name);
/* The resolved configuration (takes a reference). Keys listed by the caller as not changing results (output
 * paths, log, threads...) should be left out by the caller. */
mb_status mb_runfolder_config(mb_runfolder *run, json_t *config);
/* Does done.json match the inputs and config given so far, with outputs whole? Of a share: its own record, or
 * that of the whole. */
bool mb_runfolder_is_done(const mb_runfolder *run);
/* Of the whole, also where the run is that of a share. */
bool mb_runfolder_is_whole_done(const mb_runfolder *run);
/* What the inputs and config given so far come to: a name for files that only this work may go on with. */
mb_status mb_runfolder_hash(const mb_runfolder *run, char out_text[MB_HASH_TEXT]);
/* Why not, for the log ("dataset changed", "no record"). Borrowed. */
const char *mb_runfolder_reason(const mb_runfolder *run);
/* Output by path relative to the folder (or absolute); hashed when finished. */
mb_status mb_runfolder_output(mb_runfolder *run, const char *path);
/* A figure for the record ("loss", "records", "seconds"). */
mb_status mb_runfolder_result(mb_runfolder *run, const char *name, json_t *value);
typedef struct mb_runfolder_machine {
    int ranks, threads;
    const char *opt_backend; /* implementation line */
} mb_runfolder_machine;
/* Write the record with provenance: source version, host, ranks, threads, start, end, seconds, restarts,
 * share, Slurm's job ids and nodes. MB_EEXIST when the lease is not ours any more: nothing is written. */
mb_status mb_runfolder_finish(mb_runfolder *run, const mb_runfolder_machine *machine);

#endif
