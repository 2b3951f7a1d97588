/* scores_cache: finished score files, kept in one folder for every run that would make the same again.
 *
 * Layer: store.  Uses: base, contenthash.
 *
 * `<folder>/<key>.h5` is the file, `<folder>/<key>.json` {"hash": its content hash, "bytes", "what": {all
 * that it was made from}, "provenance": {"source", "host", "made"}}. The key is the hash of "what". Both
 * appear whole, the second last, so any number of runs on any hosts may keep and take at once: equal work
 * makes equal content, and the last to finish stays. What is taken is copied, checked by its content hash,
 * and never trusted unchecked: a damaged entry is as good as none.
 */
#ifndef MB_SCORES_CACHE_H
#define MB_SCORES_CACHE_H

#include "base/hash.h"
#include "base/json.h"

/* what: everything that changes a bit of the file. */
mb_status mb_scores_cache_key(const json_t *what, char out_key[MB_HASH_TEXT]);
/* Is a whole entry there? Then a copy of it is at `path`. What is damaged or cannot be copied counts as not
 * there, with a warning, and is left to be replaced by the next keep. */
mb_status mb_scores_cache_take(const char *folder, const char *key, const char *path, bool *out_is_taken);
/* The same without taking it: a look at the two files, not at what is in them. */
bool mb_scores_cache_has(const char *folder, const char *key);
/* Keep a copy of `path`. Warns where an entry with another content stood under the key (a machine whose
 * results differ from run to run). MB_ENOSPACE, MB_EIO. */
mb_status mb_scores_cache_keep(const char *folder, const char *key, const json_t *what, const char *path);

#endif
