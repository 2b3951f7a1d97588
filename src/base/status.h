/* status: what every function that can fail returns, and the thread's error record behind it.
 *
 * Layer: base.  Uses: nothing.
 *
 * A function that can fail returns mb_status and leaves its out_ arguments untouched on failure. The first
 * failure writes a message (file, place, fix) into the thread's record with MB_RAISE or mb_fail; every MB_TRY
 * on the way up adds a trace line. Only `stage` prints the record. A user's mistake is returned; our own
 * mistake is an assert.
 *
 *     mb_status mb_foo_read(const char *path, mb_foo **out_foo)
 *     {
 *         mb_status status = MB_OK;
 *         mb_foo *foo = NULL;
 *         MB_TRY(mb_foo_create(&foo));
 *         if (bad) MB_RAISE(MB_EFORMAT, "%s: the header is cut off; copy the file again", path);
 *         *out_foo = foo;
 *         foo = NULL;
 *     done:
 *         mb_foo_destroy(&foo);
 *         return status;
 *     }
 */
#ifndef MB_STATUS_H
#define MB_STATUS_H

#include <stddef.h>

typedef enum mb_status {
    MB_OK = 0,
    MB_EUSAGE,       /* bad command line, configuration key or value              -> exit 2  */
    MB_EDATA,        /* bad input data: a record, a shard, a tokenizer, a model   -> exit 3  */
    MB_EFORMAT,      /* a file is not what its format says                        -> exit 3  */
    MB_ESHAPE,       /* shapes do not fit                                         -> exit 3  */
    MB_ERANGE,       /* a value outside its range                                 -> exit 3  */
    MB_ENOTFOUND,    /* file, tensor, key or dataset is missing                   -> exit 3  */
    MB_EUNSUPPORTED, /* valid, but not something we do; message says what to do   -> exit 3  */
    MB_ENUMERIC,     /* NaN or Inf where numbers were expected                    -> exit 1  */
    MB_EIO,          /* the operating system refused a read or write              -> exit 1  */
    MB_ENOSPACE,     /* not enough disk space                                     -> exit 1  */
    MB_ENOMEM,       /* not enough memory                                         -> exit 1  */
    MB_ECOMM,        /* MPI failed, or another rank did                           -> exit 1  */
    MB_EDEVICE,      /* the GPU, its driver or its libraries failed               -> exit 1  */
    MB_EEXIST,       /* output is there already, or another job holds the stage   -> exit 1  */
    MB_ESTOPPED,     /* stopped at a checkpoint; run again                        -> exit 75 */
    MB_STATUS_COUNT
} mb_status;

/* Short name of a status ("bad input data"). Never NULL. */
const char *mb_status_name(mb_status status);

/* Exit code of a program that ends with this status: 0, 1, 2, 3 or 75. */
int mb_status_exit_code(mb_status status);

/* Start a new error record in this thread: message from a printf format, trace begins at file:line. Returns
 * status. */
mb_status mb_status_fail(mb_status status, const char *function, const char *file, int line,
                         const char *format, ...) __attribute__((format(printf, 5, 6)));

/* Add a caller to this thread's trace. Returns status. */
mb_status mb_status_trace(mb_status status, const char *function, const char *file, int line);

/* Put text in front of this thread's message ("config.json: " ...), to add what only a caller knows. */
void mb_status_prefix(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The message of the last failure in this thread, "" if none. Borrowed until the next failure. */
const char *mb_status_message(void);

/* The trace of the last failure, one "  at function (file:line)\n" per level, "" if none. Borrowed likewise.
 */
const char *mb_status_trace_text(void);

/* Forget the record (a failure that was handled). */
void mb_status_reset(void);

#define mb_fail(code, ...) mb_status_fail((code), __func__, __FILE__, __LINE__, __VA_ARGS__)

#define MB_RAISE(code, ...)                                                                                  \
    do {                                                                                                     \
        status = mb_fail((code), __VA_ARGS__);                                                               \
        goto done;                                                                                           \
    } while (0)

#define MB_TRY(call)                                                                                         \
    do {                                                                                                     \
        status = (call);                                                                                     \
        if (status != MB_OK) {                                                                               \
            mb_status_trace(status, __func__, __FILE__, __LINE__);                                           \
            goto done;                                                                                       \
        }                                                                                                    \
    } while (0)

#endif
