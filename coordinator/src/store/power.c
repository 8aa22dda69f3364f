/* Preloaded into a process, records every change to files below $SWEEP_TEST_POWER_FOLDER in
 * $SWEEP_TEST_POWER_LOG, with what was there before, and every fsync and fdatasync. From that record a
 * test makes the disk that a power cut may leave: everything since the last sync of a file may be lost.
 *
 * One record: kind, length of path, offset, file length before, number of old and of new bytes, then path, old
 * bytes, new bytes. Kinds: w write, t truncate (offset: new length), s sync of a file or folder,
 * c creation, r rename (new bytes: the new path). sync_file_range is no sync and leaves no record.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static int record_fd = -1;

struct head {
    uint32_t kind, path_length;
    uint64_t offset, length_before;
    uint32_t n_old, n_new;
};

static int is_ours(const char *path) {
    const char *folder = getenv("SWEEP_TEST_POWER_FOLDER");
    return folder && !strncmp(path, folder, strlen(folder));
}

static int path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, PATH_MAX - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return is_ours(path);
}

static void put(const void *bytes, size_t n) {
    if (syscall(SYS_write, record_fd, bytes, n) != (ssize_t)n) abort();
}

static void note(char kind, const char *path, uint64_t offset, uint64_t before, const void *old,
                 size_t n_old, const void *new, size_t n_new) {
    if (record_fd < 0) {
        const char *name = getenv("SWEEP_TEST_POWER_LOG");
        record_fd = syscall(SYS_openat, AT_FDCWD, name, O_WRONLY | O_CREAT | O_APPEND, 0600);
        if (record_fd < 0) abort();
    }
    struct head head = {kind, strlen(path), offset, before, n_old, n_new};
    put(&head, sizeof head);
    put(path, head.path_length);
    put(old, n_old);
    put(new, n_new);
}

static uint64_t length_of(int fd) {
    struct stat found;
    return fstat(fd, &found) ? 0 : (uint64_t)found.st_size;
}

static void note_change(char kind, int fd, const char *path, uint64_t offset, const void *new,
                        size_t n_new) {
    uint64_t before = length_of(fd);
    uint64_t end = kind == 't' ? before : offset + n_new;
    size_t n_old = 0;
    char *old = NULL;
    if (offset < before) {
        n_old = (end < before ? end : before) - offset;
        old = malloc(n_old);
        /* A descriptor of its own: the one that writes may not read. */
        int reader = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY, 0);
        if (!old || syscall(SYS_pread64, reader, old, n_old, offset) != (ssize_t)n_old) abort();
        syscall(SYS_close, reader);
    }
    note(kind, path, offset, before, old, n_old, new, n_new);
    free(old);
}

ssize_t pwrite64(int fd, const void *bytes, size_t n, off64_t offset) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return syscall(SYS_pwrite64, fd, bytes, n, offset);
    pthread_mutex_lock(&turn);
    note_change('w', fd, path, offset, bytes, n);
    ssize_t done = syscall(SYS_pwrite64, fd, bytes, n, offset);
    pthread_mutex_unlock(&turn);
    return done;
}
ssize_t pwrite(int fd, const void *bytes, size_t n, off_t offset) {
    return pwrite64(fd, bytes, n, offset);
}

ssize_t write(int fd, const void *bytes, size_t n) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return syscall(SYS_write, fd, bytes, n);
    pthread_mutex_lock(&turn);
    int at_end = fcntl(fd, F_GETFL) & O_APPEND;
    note_change('w', fd, path, at_end ? length_of(fd) : (uint64_t)lseek(fd, 0, SEEK_CUR), bytes, n);
    ssize_t done = syscall(SYS_write, fd, bytes, n);
    pthread_mutex_unlock(&turn);
    return done;
}

int ftruncate64(int fd, off64_t length) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return syscall(SYS_ftruncate, fd, length);
    pthread_mutex_lock(&turn);
    note_change('t', fd, path, length, NULL, 0);
    int done = syscall(SYS_ftruncate, fd, length);
    pthread_mutex_unlock(&turn);
    return done;
}
int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

static int synced(int fd, long call) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return syscall(call, fd);
    pthread_mutex_lock(&turn);
    int done = syscall(call, fd);
    if (!done) note('s', path, 0, 0, NULL, 0, NULL, 0);
    pthread_mutex_unlock(&turn);
    return done;
}
int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

static int opened(int at, const char *name, int flags, mode_t mode) {
    int is_new = (flags & O_CREAT) && is_ours(name) && access(name, F_OK);
    int fd = syscall(SYS_openat, at, name, flags, mode);
    if (is_new && fd >= 0) {
        pthread_mutex_lock(&turn);
        note('c', name, 0, 0, NULL, 0, NULL, 0);
        pthread_mutex_unlock(&turn);
    }
    return fd;
}
#define OPENED(at)                            \
    mode_t mode = 0;                          \
    if (flags & (O_CREAT | O_TMPFILE)) {      \
        va_list rest;                         \
        va_start(rest, flags);                \
        mode = va_arg(rest, mode_t);          \
        va_end(rest);                         \
    }                                         \
    return opened(at, name, flags, mode)
int open64(const char *name, int flags, ...) { OPENED(AT_FDCWD); }
int open(const char *name, int flags, ...) { OPENED(AT_FDCWD); }
int openat64(int at, const char *name, int flags, ...) { OPENED(at); }
int openat(int at, const char *name, int flags, ...) { OPENED(at); }

int rename(const char *from, const char *to) {
    if (is_ours(from)) {
        pthread_mutex_lock(&turn);
        note('r', from, 0, 0, NULL, 0, to, strlen(to));
        pthread_mutex_unlock(&turn);
    }
    return syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}
