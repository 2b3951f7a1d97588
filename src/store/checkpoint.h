/* checkpoint: folders that appear whole or not at all, with a manifest; and the trainer's state file.
 *
 * Layer: store.  Uses: base, trainer_state.
 *
 * A checkpoint folder is filled as `<name>.tmp.<pid>`, gets manifest.json {"files": {name: {bytes, hash}}}
 * (names relative to the folder, subfolders included), is synced and renamed. A torn one (no manifest, a file
 * of other size or content) is never used. trainer.h5 holds the state of trainer_state.h.
 */
#ifndef MB_CHECKPOINT_H
#define MB_CHECKPOINT_H

#include "base/json.h"
#include "store/trainer_state.h"

/* Begin: out_folder (mb_free) is the temporary folder to fill. An older leftover of the same name is removed.
 */
mb_status mb_checkpoint_begin(const char *path, char **out_folder);
/* Publish under path; an existing `path` is replaced (moved aside, then removed). */
mb_status mb_checkpoint_commit(const char *folder, const char *path);
/* Manifest there and sizes (deep: hashes) right? MB_EFORMAT names the file, MB_ENOTFOUND when there is no
 * checkpoint. */
mb_status mb_checkpoint_check(const char *path, bool deep);
/* The newest whole checkpoint `<folder>/<prefix><number>` (hashes compared: it is read once); *out_path
 * NULL when none. Torn ones above it are reported by mb_warn and moved to `<name>.torn`, so that the next
 * rotate does not keep them instead of whole ones. MB_EIO: one cannot be read now, and nothing is taken in
 * its place. */
mb_status mb_checkpoint_latest(const char *folder, const char *prefix, char **out_path, int64_t *out_number);
/* Remove all but the newest `keep` of them (keep <= 0: keep all). */
mb_status mb_checkpoint_rotate(const char *folder, const char *prefix, int64_t keep);

#endif
