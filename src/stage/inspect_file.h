/* inspect_file: say what any of our files or an HF folder is, and whether it is whole.
 *
 * Layer: stage.  Uses: store, model, text.
 */
#ifndef MB_INSPECT_FILE_H
#define MB_INSPECT_FILE_H

#include <stdbool.h>

#include "base/status.h"

/* Prints to standard output. want_hash: also (or only, for plain files) the content hash. MB_ENOTFOUND,
 * MB_EFORMAT (not whole: says what is wrong). */
mb_status mb_inspect_file_run(const char *path, bool want_hash);

#endif
