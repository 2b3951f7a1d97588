/* contenthash: the identity of any of our files and folders.
 *
 * Layer: store.  Uses: base, h5.
 *
 * HDF5: by content (h5.h). Other files: by bytes. A folder: names and content hashes of its files in byte
 * order, without what tells of the run (done.json, progress.json, failure.json and those of parts,
 * attempts.tsv, *.log, manifest.json, lease files) and metrics.jsonl times. Where a node-local copy of a
 * file stands (mb_files_staged), that is read.
 */
#ifndef MB_CONTENTHASH_H
#define MB_CONTENTHASH_H

#include "base/hash.h"

mb_status mb_contenthash_path(const char *path, char out_text[MB_HASH_TEXT]);

#endif
