/* named_paths: a list of named files or folders, as options give them: "name=path,name=path", or a list of
 * groups ( { name = "..."; path = "..."; more = "..."; }, ... ).
 *
 * Layer: stage.  Uses: base.
 */
#ifndef MB_NAMED_PATHS_H
#define MB_NAMED_PATHS_H

#include <stdint.h>

#include "base/status.h"

enum { MB_NAMED_PATHS_MORE = 4 };

typedef struct mb_named_path {
    char *name, *path;
    char *more[MB_NAMED_PATHS_MORE]; /* of the further members' names, in their order; NULL: not given */
} mb_named_path;

typedef struct mb_named_paths {
    mb_named_path *item; /* [count] owned */
    int64_t count;
} mb_named_paths;

/* key: the option, for messages. further [n]: what a group may have besides name and path, all texts. A path
 * without a name gets that of its file without folder and endings. MB_EUSAGE: two of one name, a name that is
 * not made of letters, digits, "_", "-", "+" and ".", an unknown member. NULL or "" gives none. */
mb_status mb_named_paths_read(const char *key, const char *text, const char *const *further, int64_t n,
                              mb_named_paths *out_paths);
void mb_named_paths_reset(mb_named_paths *paths);

#endif
