/* machine_disk.c: file system of a folder.
 *
 * 1. kind and room   2. speed   3. locks and links   4. seen by all ranks   5. all   6. verdicts
 */
#include "stage/machine_disk.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/files.h"
#include "base/rng.h"

enum { TEST_BYTES = 64 << 20, PIECE_BYTES = 1 << 20, SMALL_FILES = 200, FOLDER_BYTES = 4096 };

/* ---- 1. kind and room ---- */

/* statfs(2) and the kernel's magic numbers. */
static const char *type_name(unsigned long number)
{
    static const struct {
        unsigned long number;
        const char *name;
    } known[] = {
        {0xEF53, "ext4"},         {0x58465342, "xfs"},    {0x9123683E, "btrfs"}, {0x2FC12FC1, "zfs"},
        {0x01021994, "tmpfs"},    {0x858458F6, "ramfs"},  {0x6969, "nfs"},       {0x0BD00BD0, "lustre"},
        {0x47504653, "gpfs"},     {0x19830326, "beegfs"}, {0x00C36400, "ceph"},  {0x65735546, "fuse"},
        {0x794C7630, "overlay"},  {0x01021997, "9p"},     {0xFF534D42, "cifs"},  {0xFE534D42, "smb2"},
        {0x20030528, "orangefs"}, {0xAAD7AAEA, "panfs"},  {0x5346414F, "afs"},   {0x7461636F, "ocfs2"},
        {0x01161970, "gfs2"},     {0xF2F52010, "f2fs"}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].number == number) return known[i].name;
    return NULL;
}

static mb_status read_room(const char *dir, mb_machine_disk *disk)
{
    struct statfs kind;
    struct statvfs room;
    if (statfs(dir, &kind) != 0 || statvfs(dir, &room) != 0)
        return mb_fail(MB_EIO, "%s: cannot see its file system: %s", dir, strerror(errno));
    const unsigned long number = (unsigned long)kind.f_type & 0xFFFFFFFF;
    const char *name = type_name(number);
    if (name != NULL)
        snprintf(disk->type, sizeof disk->type, "%s", name);
    else
        snprintf(disk->type, sizeof disk->type, "type 0x%lx", number);
    disk->bytes = (double)room.f_blocks * (double)room.f_frsize;
    disk->bytes_free = (double)room.f_bavail * (double)room.f_frsize;
    disk->files = (double)room.f_files;
    disk->files_free = (double)room.f_favail;
    return MB_OK;
}

/* ---- 2. speed ---- */

/* Bytes that no file system can press together. */
static void fill(uint32_t *words, size_t n)
{
    for (size_t i = 0; i + 4 <= n; i += 4) mb_rng_block(1, MB_RNG_DATA, 0, i, words + i);
}

static mb_status write_big(const char *path, const char *piece, double *out_mb_per_s)
{
    mb_status status = MB_OK;
    const int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) MB_RAISE(MB_EIO, "%s: cannot be created: %s", path, strerror(errno));
    const double started = mb_clock_seconds();
    for (int64_t done = 0; done < TEST_BYTES;) {
        const ssize_t n = write(fd, piece + done % PIECE_BYTES, (size_t)(PIECE_BYTES - done % PIECE_BYTES));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) MB_RAISE(MB_EIO, "%s: cannot be written: %s", path, strerror(errno));
        done += n;
    }
    if (fsync(fd) != 0) MB_RAISE(MB_EIO, "%s: cannot be flushed: %s", path, strerror(errno));
    *out_mb_per_s = 1e-6 * TEST_BYTES / (mb_clock_seconds() - started);
done:
    if (fd >= 0) close(fd);
    return status;
}

static mb_status read_big(const char *path, const char *piece, char *scratch, double *out_mb_per_s)
{
    mb_status status = MB_OK;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) MB_RAISE(MB_EIO, "%s: cannot be opened: %s", path, strerror(errno));
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    const double started = mb_clock_seconds();
    for (int64_t done = 0; done < TEST_BYTES;) {
        const size_t at = (size_t)(done % PIECE_BYTES);
        const ssize_t n = read(fd, scratch + at, PIECE_BYTES - at);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) MB_RAISE(MB_EIO, "%s: cannot be read: %s", path, strerror(errno));
        if (n == 0 || memcmp(scratch + at, piece + at, (size_t)n) != 0)
            MB_RAISE(MB_EIO, "%s: byte %lld and on are not what was written", path, (long long)done);
        done += n;
    }
    *out_mb_per_s = 1e-6 * TEST_BYTES / (mb_clock_seconds() - started);
done:
    if (fd >= 0) close(fd);
    return status;
}

static mb_status measure_big(const char *folder, mb_machine_disk *disk)
{
    mb_status status = MB_OK;
    char *path = mb_files_join(folder, "big"), *piece = NULL, *scratch = NULL;
    MB_NEW_ARRAY(piece, PIECE_BYTES);
    MB_NEW_ARRAY(scratch, PIECE_BYTES);
    if (path == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory for a name", folder);
    fill((uint32_t *)(void *)piece, PIECE_BYTES / sizeof(uint32_t));
    MB_TRY(mb_files_check_space(folder, 2 * (int64_t)TEST_BYTES, "a test of its speed"));
    MB_TRY(write_big(path, piece, &disk->write_mb_per_s));
    MB_TRY(read_big(path, piece, scratch, &disk->read_mb_per_s));
done:
    mb_free(path);
    mb_free(piece);
    mb_free(scratch);
    return status;
}

static mb_status measure_small(const char *folder, double *out_seconds)
{
    mb_status status = MB_OK;
    char path[FOLDER_BYTES + 32];
    const double started = mb_clock_seconds();
    for (int i = 0; i < SMALL_FILES; i++) {
        snprintf(path, sizeof path, "%s/small%d", folder, i);
        const int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (fd < 0 || write(fd, path, strlen(path)) < 0 || close(fd) != 0)
            MB_RAISE(MB_EIO, "%s: cannot be written: %s", path, strerror(errno));
    }
    *out_seconds = mb_clock_seconds() - started;
done:
    return status;
}

/* ---- 3. locks and links ---- */

/* A lock that a second handle is refused, and gets after the first is closed. */
static bool has_flock(const char *path)
{
    const int first = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600), second = open(path, O_RDWR | O_CLOEXEC);
    bool works = first >= 0 && second >= 0 && flock(first, LOCK_EX | LOCK_NB) == 0 &&
                 flock(second, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    if (first >= 0) close(first);
    works = works && flock(second, LOCK_EX | LOCK_NB) == 0;
    if (second >= 0) close(second);
    return works;
}

/* A second name for a file, refused where the name is taken. */
static bool has_link(const char *from, const char *to)
{
    return link(from, to) == 0 && link(from, to) != 0 && errno == EEXIST;
}

static void try_locks(const char *folder, mb_machine_disk *disk)
{
    char *lock = mb_files_join(folder, "lock"), *other = mb_files_join(folder, "lock2");
    if (lock != NULL && other != NULL) {
        disk->has_flock = has_flock(lock);
        disk->has_link = has_link(lock, other);
    }
    mb_free(lock);
    mb_free(other);
}

/* ---- 4. seen by all ranks ---- */

/* Network file systems may show a new file late: ask for three seconds. */
static bool sees(const char *path)
{
    const struct timespec pause = {.tv_nsec = 100000000};
    for (int i = 0; i < 30; i++) {
        if (mb_files_is_file(path)) return true;
        nanosleep(&pause, NULL);
    }
    return false;
}

static mb_status find_blind_rank(mb_comm *comm, const char *path, int *out_rank)
{
    mb_status status = MB_OK;
    int64_t first = sees(path) ? mb_comm_size(comm) : mb_comm_rank(comm);
    MB_TRY(mb_comm_allreduce_i64(comm, &first, 1, MB_COMM_MIN));
    *out_rank = first < mb_comm_size(comm) ? (int)first : -1;
done:
    return status;
}

/* ---- 5. all ---- */

/* A new folder below dir; "" on failure. */
static mb_status make_folder(const char *dir, char out_folder[FOLDER_BYTES])
{
    mb_status status = MB_OK;
    char host[128] = "";
    gethostname(host, sizeof host - 1);
    const int n = snprintf(out_folder, FOLDER_BYTES, "%s/moe-inspect.%s.%ld", dir, host, (long)getpid());
    if (n >= FOLDER_BYTES) MB_RAISE(MB_EUSAGE, "%.60s...: this name is too long", dir);
    if (mkdir(out_folder, 0700) != 0)
        MB_RAISE(MB_EIO, "%s: no folder can be made there: %s", dir, strerror(errno));
done:
    if (status != MB_OK) out_folder[0] = 0;
    return status;
}

/* Rank 0's part. */
static mb_status measure_here(const char *folder, mb_machine_disk *disk)
{
    mb_status status = MB_OK;
    char *mark = mb_files_join(folder, "mark");
    if (mark == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory for a name", folder);
    MB_TRY(mb_files_write(mark, "seen\n", 5));
    try_locks(folder, disk);
    MB_TRY(measure_small(folder, &disk->create_seconds));
    MB_TRY(measure_big(folder, disk));
    disk->is_measured = true;
done:
    mb_free(mark);
    return status;
}

mb_status mb_machine_disk_measure(mb_comm *comm, const char *dir, mb_machine_disk *out_disk)
{
    mb_status status = MB_OK;
    mb_machine_disk disk = {.blind_rank = -1};
    char folder[FOLDER_BYTES] = "", mark[FOLDER_BYTES + 8];
    if (mb_comm_rank(comm) == 0) {
        mb_status here = read_room(dir, &disk);
        if (here == MB_OK) here = make_folder(dir, folder);
        if (here == MB_OK) here = measure_here(folder, &disk);
        if (here != MB_OK) snprintf(disk.error, sizeof disk.error, "%s", mb_status_message());
    }
    MB_TRY(mb_comm_bcast(comm, folder, sizeof folder, 0));
    snprintf(mark, sizeof mark, "%s/mark", folder);
    if (folder[0] != 0) MB_TRY(find_blind_rank(comm, mark, &disk.blind_rank));
    MB_TRY(mb_comm_barrier(comm));
    *out_disk = disk;
done:
    if (mb_comm_rank(comm) == 0 && folder[0] != 0) (void)mb_files_remove_tree(folder);
    return status;
}

/* ---- 6. verdicts ---- */

static void judge_room(mb_machine_report *report, const char *dir, const mb_machine_disk *disk)
{
    if (disk->bytes_free < 10e9)
        mb_machine_verdict(
            report, MB_MACHINE_WARN,
            "%s has %.2f GB free; checkpoints of a model take several times its size: make room or use "
            "another folder",
            dir, 1e-9 * disk->bytes_free);
    if (disk->files > 0 && disk->files_free < 20000)
        mb_machine_verdict(
            report, MB_MACHINE_WARN,
            "%s has room for %.0f more files; remove old runs or ask for a larger quota of inodes", dir,
            disk->files_free);
    if (strcmp(disk->type, "tmpfs") == 0 || strcmp(disk->type, "ramfs") == 0)
        mb_machine_verdict(report, MB_MACHINE_WARN,
                           "%s lies in memory (%s) and is gone after a restart; keep runs on a disk", dir,
                           disk->type);
}

static void judge_speed(mb_machine_report *report, const char *dir, const mb_machine_disk *disk)
{
    const bool is_slow = disk->write_mb_per_s < 30 || disk->read_mb_per_s < 30;
    if (is_slow)
        mb_machine_verdict(
            report, MB_MACHINE_WARN,
            "%s writes %.0f and reads %.0f MB/s; take a faster file system for runs, and node-local "
            "copies of models (mb_site_scratch in slurm/site)",
            dir, disk->write_mb_per_s, disk->read_mb_per_s);
    if (disk->create_seconds > 4)
        mb_machine_verdict(
            report, MB_MACHINE_WARN,
            "%s takes %.0f ms to make a small file; fewer and longer jobs in a sweep, or another file system",
            dir, 1e3 * disk->create_seconds / SMALL_FILES);
    if (!is_slow && disk->create_seconds <= 4)
        mb_machine_verdict(report, MB_MACHINE_OK, "%s is fast enough", dir);
}

static void judge_abilities(mb_machine_report *report, const char *dir, const mb_machine_disk *disk,
                            const mb_machine_rank *ranks)
{
    if (!disk->has_link)
        mb_machine_verdict(
            report, MB_MACHINE_BROKEN,
            "%s has no hard links, by which a stage takes its run folder; use another file system for "
            "output.dir",
            dir);
    if (!disk->has_flock)
        mb_machine_verdict(
            report, MB_MACHINE_WARN,
            "%s has no working flock; set HDF5_USE_FILE_LOCKING=FALSE, and never start a stage twice at "
            "the same time (Lustre: mount with -o flock)",
            dir);
    if (disk->has_link && disk->has_flock)
        mb_machine_verdict(report, MB_MACHINE_OK, "%s has locks and hard links", dir);
    if (disk->blind_rank >= 0)
        mb_machine_verdict(
            report, MB_MACHINE_BROKEN,
            "rank %d on %s does not see in %s what rank 0 on %s wrote there; runs need a folder that all "
            "nodes share: give it with dir=",
            disk->blind_rank, ranks[disk->blind_rank].host, dir, ranks[0].host);
}

mb_status mb_machine_disk_report(mb_machine_report *report, const char *dir, const mb_machine_disk *disk,
                                 const mb_machine_rank *ranks)
{
    mb_status status = MB_OK;
    if (disk->bytes > 0)
        mb_machine_print("folder %s: %s, %.1f of %.1f GB free, room for %.0f more files", dir, disk->type,
                         1e-9 * disk->bytes_free, 1e-9 * disk->bytes, disk->files_free);
    if (disk->is_measured)
        mb_machine_print(
            "  64 MB written and flushed at %.0f MB/s, read at %.0f MB/s; %d small files in %.3f s",
            disk->write_mb_per_s, disk->read_mb_per_s, SMALL_FILES, disk->create_seconds);
    json_t *json =
        json_pack("{s:s,s:s,s:f,s:f,s:f,s:f,s:b,s:b,s:b}", "path", dir, "type", disk->type, "bytes",
                  disk->bytes, "bytes_free", disk->bytes_free, "files_free", disk->files_free,
                  "seconds_for_200_files", disk->create_seconds, "flock", disk->has_flock, "link",
                  disk->has_link, "seen_by_all_ranks", disk->blind_rank < 0);
    MB_TRY(mb_json_set(report->json, "file_system", json));
    if (disk->error[0] != 0)
        mb_machine_verdict(report, MB_MACHINE_BROKEN, "%s; name a folder for results with dir=", disk->error);
    if (disk->bytes > 0) judge_room(report, dir, disk);
    if (!disk->is_measured) goto done;
    MB_TRY(mb_json_set(report->json, "disk_write_mb_per_s", json_real(disk->write_mb_per_s)));
    MB_TRY(mb_json_set(report->json, "disk_read_mb_per_s", json_real(disk->read_mb_per_s)));
    judge_speed(report, dir, disk);
    judge_abilities(report, dir, disk, ranks);
done:
    return status;
}
