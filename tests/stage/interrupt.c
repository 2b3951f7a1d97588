/* interrupt.c: a library to preload, which signals its own process at a chosen call that changes files. So a
 * test interrupts at one place, every time, however busy the machine is.
 *
 *     MB_INTERRUPT=SIGNAL:NUMBER[:when[:rank]]   at the NUMBER-th call (from 1; 0: only count) whose path
 *                                                holds MB_INTERRUPT_PATH; when: before or after it (after)
 *     MB_INTERRUPT_CALL=NAME                     only calls whose name begins so
 *     MB_INTERRUPT_MARK=FILE                     gets "NUMBER CALL PATH" at the signal, and with 0 the number
 *                                                of calls at the end: the proof that it happened
 *
 * Calls: write, pwrite, rename, renameat2, fsync, unlink, unlinkat, rmdir, mkdir, symlink, ftruncate. Those
 * of C streams inside the C library are not seen.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static atomic_llong calls;

static void leave_mark(const char *text)
{
    const char *path = getenv("MB_INTERRUPT_MARK");
    if (path == NULL) return;
    const int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0 || syscall(SYS_write, fd, text, strlen(text)) < 0) _exit(99);
    close(fd);
}

static int is_my_rank(const char *wanted)
{
    const char *rank = getenv("OMPI_COMM_WORLD_RANK");
    if (rank == NULL) rank = getenv("PMIX_RANK");
    return atoi(wanted) == (rank != NULL ? atoi(rank) : 0);
}

/* "SIGNAL:NUMBER:when:rank" */
static void consider(const char *call, const char *path, const char *when)
{
    const char *wish = getenv("MB_INTERRUPT"), *part = getenv("MB_INTERRUPT_PATH"),
               *name = getenv("MB_INTERRUPT_CALL");
    int signal_number = 0;
    long long number = 0;
    char at[16] = "after", rank[16] = "0", text[4200];
    if (wish == NULL || path == NULL || (part != NULL && strstr(path, part) == NULL)) return;
    if (name != NULL && strncmp(call, name, strlen(name)) != 0) return;
    if (sscanf(wish, "%d:%lld:%15[^:]:%15s", &signal_number, &number, at, rank) < 2) _exit(98);
    if (!is_my_rank(rank) || strcmp(when, number == 0 ? "after" : at) != 0) return;
    if (atomic_fetch_add(&calls, 1) + 1 != number) return;
    snprintf(text, sizeof text, "%lld %s %s\n", number, call, path);
    leave_mark(text);
    kill(getpid(), signal_number); /* the whole process, whichever thread this is */
}

static void consider_open(const char *call, int fd, const char *when)
{
    char link[64], path[4096];
    const char *wish = getenv("MB_INTERRUPT");
    if (wish == NULL || fd < 3) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t n = readlink(link, path, sizeof path - 1);
    if (n <= 0 || path[0] != '/') return;
    path[n] = 0;
    consider(call, path, when);
}

__attribute__((destructor)) static void tell_count(void)
{
    int signal_number = 0;
    long long number = -1;
    char text[32];
    const char *wish = getenv("MB_INTERRUPT");
    if (wish == NULL || sscanf(wish, "%d:%lld", &signal_number, &number) != 2 || number != 0) return;
    if (atomic_load(&calls) == 0) return; /* a launcher, a shell */
    snprintf(text, sizeof text, "%lld\n", (long long)atomic_load(&calls));
    leave_mark(text);
}

/* The C library's own function of this name. */
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define WRAP_PATH(result, name, path, arguments, ...)                                                        \
    result name arguments                                                                                    \
    {                                                                                                        \
        consider(#name, path, "before");                                                                     \
        const result answer = REAL(name)(__VA_ARGS__);                                                       \
        consider(#name, path, "after");                                                                      \
        return answer;                                                                                       \
    }
#define WRAP_OPEN(result, name, arguments, ...)                                                              \
    result name arguments                                                                                    \
    {                                                                                                        \
        consider_open(#name, fd, "before");                                                                  \
        const result answer = REAL(name)(__VA_ARGS__);                                                       \
        consider_open(#name, fd, "after");                                                                   \
        return answer;                                                                                       \
    }

WRAP_PATH(int, rename, to, (const char *from, const char *to), from, to)
WRAP_PATH(int, renameat2, to, (int a, const char *from, int b, const char *to, unsigned int flags), a, from,
          b, to, flags)
WRAP_PATH(int, unlink, path, (const char *path), path)
WRAP_PATH(int, unlinkat, path, (int fd, const char *path, int flags), fd, path, flags)
WRAP_PATH(int, rmdir, path, (const char *path), path)
WRAP_PATH(int, mkdir, path, (const char *path, mode_t mode), path, mode)
WRAP_PATH(int, symlink, to, (const char *from, const char *to), from, to)
WRAP_OPEN(ssize_t, write, (int fd, const void *data, size_t n), fd, data, n)
WRAP_OPEN(ssize_t, pwrite, (int fd, const void *data, size_t n, off_t at), fd, data, n, at)
WRAP_OPEN(ssize_t, pwrite64, (int fd, const void *data, size_t n, off64_t at), fd, data, n, at)
WRAP_OPEN(int, fsync, (int fd), fd)
WRAP_OPEN(int, ftruncate, (int fd, off_t length), fd, length)
WRAP_OPEN(int, ftruncate64, (int fd, off64_t length), fd, length)
