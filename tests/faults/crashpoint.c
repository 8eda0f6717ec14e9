/* Counts every durable operation below one directory and ends the process at a chosen one.
 *
 * Loaded with LD_PRELOAD, it stands between a program and libc, so that writers in C++ and Rust (safetensors,
 * llama.cpp) are seen as well as Python's. The count and the target live in a file that is mapped by the process and
 * by every child it starts. At operation number `target`:
 *
 *     BEFORE    nothing of it has happened
 *     TORN      the first half of a write has
 *     AFTER     all of it has
 *
 * and then `leader` and the process itself get SIGKILL. With the mode FULL nobody is killed: from that operation on
 * the disk is full, and whatever would need room on it fails with ENOSPC. Sockets are counted beside.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { BEFORE, TORN, AFTER, FULL };

struct state {
    long count;
    long target; /* 0: only count */
    long mode;
    long leader; /* the process that used this file first */
    long done; /* 1 once the blow has fallen */
    long sockets; /* how many were opened, of any kind */
    char root[PATH_MAX];
    char log[PATH_MAX];
};

static struct state *state;

/* Use the state file at `path`; called once a process, or again in a forked one. */
int crashpoint_use(const char *path) {
    int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0) return -1;
    void *map = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (map == MAP_FAILED) return -1;
    state = map;
    __sync_bool_compare_and_swap(&state->leader, 0, (long)syscall(SYS_getpid));
    return 0;
}

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("CRASHPOINT_STATE");
    if (path && *path) crashpoint_use(path);
}

/* ---- is it ours, and is it the one -------------------------------------------------------------------------- */

static void blow(void) {
    if (__sync_lock_test_and_set(&state->done, 1)) return;
    syscall(SYS_kill, (pid_t)state->leader, SIGKILL);
    syscall(SYS_kill, (pid_t)syscall(SYS_getpid), SIGKILL);
    for (;;) pause();
}

/* The absolute path of `path` below directory `dirfd` into `full`; 0 if it cannot be had. */
static int absolute(int dirfd, const char *path, char *full) {
    if (path[0] == '/') return snprintf(full, PATH_MAX, "%s", path) < PATH_MAX;
    char directory[PATH_MAX];
    if (dirfd == AT_FDCWD) {
        if (!getcwd(directory, sizeof directory)) return 0;
    } else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", dirfd);
        ssize_t length = readlink(link, directory, sizeof directory - 1);
        if (length < 0) return 0;
        directory[length] = 0;
    }
    return snprintf(full, PATH_MAX, "%s/%s", directory, path) < PATH_MAX;
}

static int below(const char *full) {
    size_t length = strlen(state->root);
    return length && !strncmp(full, state->root, length) && full[length] == '/';
}

/* Count an operation on `full`. Returns how it is to be done: 0 as asked; TORN or AFTER, the blow follows; FULL, not. */
static int operation(const char *kind, const char *full, long size, int grows) {
    long number = __sync_add_and_fetch(&state->count, 1);
    if (state->log[0]) {
        char line[PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%ld\t%s\t%ld\t%s\n", number, kind, size,
                              full + strlen(state->root) + 1);
        int fd = syscall(SYS_openat, AT_FDCWD, state->log, O_WRONLY | O_APPEND | O_CREAT, 0644);
        syscall(SYS_write, fd, line, length);
        syscall(SYS_close, fd);
    }
    if (state->target && state->mode == FULL) return grows && number >= state->target ? FULL : 0;
    if (number != state->target) return 0;
    if (state->mode == BEFORE) blow();
    return (int)state->mode;
}

static int on_path(const char *kind, int dirfd, const char *path) {
    char full[PATH_MAX];
    if (!state || !path || !absolute(dirfd, path, full) || !below(full)) return 0;
    /* to make what is there, or to remove what is not, is no operation */
    int there = !faccessat(AT_FDCWD, full, F_OK, AT_SYMLINK_NOFOLLOW);
    if ((there && !strcmp(kind, "mkdir")) || (!there && (!strcmp(kind, "unlink") || !strcmp(kind, "rmdir")))) return 0;
    return operation(kind, full, 0, !there && (!strcmp(kind, "open") || !strcmp(kind, "mkdir")));
}

static int on_fd(const char *kind, int fd, long size) {
    if (!state) return 0;
    char link[64], full[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, full, sizeof full - 1);
    if (length < 0) return 0;
    full[length] = 0;
    if (!below(full)) return 0;
    return operation(kind, full, size, 1);
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)
#define THEN(how) \
    if (how) blow()
#define UNLESS_FULL(how, failure) \
    if (how == FULL) { \
        errno = ENOSPC; \
        return failure; \
    }

/* ---- open for write ------------------------------------------------------------------------------------------ */

static int writes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC)); }

#define OPENING(name, declared, called, dirfd) \
    int name declared { \
        mode_t mode = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { \
            va_list rest; \
            va_start(rest, flags); \
            mode = va_arg(rest, mode_t); \
            va_end(rest); \
        } \
        int how = writes(flags) ? on_path("open", dirfd, path) : 0; \
        UNLESS_FULL(how, -1) \
        int fd = called; \
        THEN(how); \
        return fd; \
    }

OPENING(open, (const char *path, int flags, ...), syscall(SYS_openat, AT_FDCWD, path, flags, mode), AT_FDCWD)
OPENING(open64, (const char *path, int flags, ...), syscall(SYS_openat, AT_FDCWD, path, flags | O_LARGEFILE, mode),
        AT_FDCWD)
OPENING(openat, (int dirfd, const char *path, int flags, ...), syscall(SYS_openat, dirfd, path, flags, mode), dirfd)
OPENING(openat64, (int dirfd, const char *path, int flags, ...),
        syscall(SYS_openat, dirfd, path, flags | O_LARGEFILE, mode), dirfd)

#define OPENING_STREAM(name) \
    FILE *name(const char *path, const char *mode) { \
        REAL(FILE *, name, const char *, const char *); \
        int how = strpbrk(mode, "wa+") ? on_path("open", AT_FDCWD, path) : 0; \
        UNLESS_FULL(how, NULL) \
        FILE *file = real(path, mode); \
        THEN(how); \
        return file; \
    }

OPENING_STREAM(fopen)
OPENING_STREAM(fopen64)

/* ---- write, whole and torn ------------------------------------------------------------------------------------ */

ssize_t write(int fd, const void *data, size_t size) {
    int how = on_fd("write", fd, (long)size);
    UNLESS_FULL(how, -1)
    ssize_t done = syscall(SYS_write, fd, data, how == TORN ? size / 2 : size);
    THEN(how);
    return done;
}

#define WRITING_AT(name) \
    ssize_t name(int fd, const void *data, size_t size, off_t at) { \
        int how = on_fd("write", fd, (long)size); \
        UNLESS_FULL(how, -1) \
        ssize_t done = syscall(SYS_pwrite64, fd, data, how == TORN ? size / 2 : size, at); \
        THEN(how); \
        return done; \
    }

WRITING_AT(pwrite)
WRITING_AT(pwrite64)

ssize_t writev(int fd, const struct iovec *parts, int count) {
    long size = 0;
    for (int i = 0; i < count; i++) size += (long)parts[i].iov_len;
    int how = on_fd("write", fd, size);
    UNLESS_FULL(how, -1)
    ssize_t done = how == TORN ? syscall(SYS_write, fd, parts[0].iov_base, (parts[0].iov_len + 1) / 2)
                               : syscall(SYS_writev, fd, parts, count);
    THEN(how);
    return done;
}

size_t fwrite(const void *data, size_t size, size_t count, FILE *file) {
    REAL(size_t, fwrite, const void *, size_t, size_t, FILE *);
    int how = on_fd("write", fileno(file), (long)(size * count));
    UNLESS_FULL(how, 0)
    if (how) {
        size_t done = real(data, 1, how == TORN ? size * count / 2 : size * count, file);
        fflush(file);
        blow();
        return done;
    }
    return real(data, size, count, file);
}

static long left_in(int fd, const off_t *at) {
    struct stat file;
    return fstat(fd, &file) ? 0 : (long)(file.st_size - (at ? *at : lseek(fd, 0, SEEK_CUR)));
}

#define SENDING(name) \
    ssize_t name(int to, int from, off_t *at, size_t size) { \
        long left = left_in(from, at); \
        int how = left > 0 ? on_fd("write", to, left) : 0; \
        UNLESS_FULL(how, -1) \
        ssize_t done = syscall(SYS_sendfile, to, from, at, how == TORN ? (size_t)left / 2 : size); \
        THEN(how); \
        return done; \
    }

SENDING(sendfile)
SENDING(sendfile64)

#define TRUNCATING(name) \
    int name(int fd, off_t size) { \
        int how = on_fd("truncate", fd, (long)size); \
        UNLESS_FULL(how, -1) \
        int done = (int)syscall(SYS_ftruncate, fd, size); \
        THEN(how); \
        return done; \
    }

TRUNCATING(ftruncate)
TRUNCATING(ftruncate64)

/* ---- fsync, rename, unlink, rmdir, mkdir ------------------------------------------------------------------------ */

#define ON_FD(name, kind) \
    int name(int fd) { \
        REAL(int, name, int); \
        int how = on_fd(kind, fd, 0); \
        UNLESS_FULL(how, -1) \
        int done = real(fd); \
        THEN(how); \
        return done; \
    }

ON_FD(fsync, "fsync")
ON_FD(fdatasync, "fsync")

#define ON_PATH(name, kind, declared, types, arguments, dirfd, path) \
    int name declared { \
        REAL(int, name, types); \
        int how = on_path(kind, dirfd, path); \
        UNLESS_FULL(how, -1) \
        int done = real arguments; \
        THEN(how); \
        return done; \
    }
#define TYPES(...) __VA_ARGS__

ON_PATH(rename, "rename", (const char *from, const char *to), TYPES(const char *, const char *), (from, to), AT_FDCWD,
        to)
ON_PATH(renameat, "rename", (int one, const char *from, int other, const char *to),
        TYPES(int, const char *, int, const char *), (one, from, other, to), other, to)
ON_PATH(renameat2, "rename", (int one, const char *from, int other, const char *to, unsigned flags),
        TYPES(int, const char *, int, const char *, unsigned), (one, from, other, to, flags), other, to)
ON_PATH(unlink, "unlink", (const char *path), TYPES(const char *), (path), AT_FDCWD, path)
ON_PATH(unlinkat, flags & AT_REMOVEDIR ? "rmdir" : "unlink", (int dirfd, const char *path, int flags),
        TYPES(int, const char *, int), (dirfd, path, flags), dirfd, path)
ON_PATH(rmdir, "rmdir", (const char *path), TYPES(const char *), (path), AT_FDCWD, path)
ON_PATH(mkdir, "mkdir", (const char *path, mode_t mode), TYPES(const char *, mode_t), (path, mode), AT_FDCWD, path)
ON_PATH(mkdirat, "mkdir", (int dirfd, const char *path, mode_t mode), TYPES(int, const char *, mode_t),
        (dirfd, path, mode), dirfd, path)

/* ---- sockets: only counted ---------------------------------------------------------------------------------- */

int socket(int domain, int type, int protocol) {
    if (state) __sync_add_and_fetch(&state->sockets, 1);
    return (int)syscall(SYS_socket, domain, type, protocol);
}
