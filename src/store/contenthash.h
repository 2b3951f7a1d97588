/* contenthash: the identity of any of our files and folders.
 *
 * Layer: store.  Uses: base, h5.
 *
 * HDF5: by content (h5.h). Other files: by bytes. A folder: names and content hashes of its files in byte
 * order, without done.json, *.log, manifest.json, lease files and metrics.jsonl times.
 */
#ifndef MB_CONTENTHASH_H
#define MB_CONTENTHASH_H

#include "base/hash.h"

mb_status mb_contenthash_path(const char *path, char out_text[MB_HASH_TEXT]);

#endif
