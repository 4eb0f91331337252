/* Faults at the boundary of the C library, for whatever runs under LD_PRELOAD: no ptrace, and C++ code is seen as well.
 *
 * Only calls that touch the folder named to faults_arm count: by path, or by a descriptor that was opened below it.
 * faults_arm(folder, n, action, error): the n-th such call, counted from 1, is struck; n = 0 only counts.
 *   action 0: killed before the call     1: killed after it     2: the call fails with `error`
 *   action 3: a write takes one byte less than it was asked to (other calls go through)
 *   action 4: this call and all that follow fail with `error`
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { KILL_BEFORE, KILL_AFTER, FAIL, SHORT, FAIL_ON };
enum { MOST_DESCRIPTORS = 4096, MOST_CALLS = 65536 };

static char folder[PATH_MAX];
static int armed, strike, action, error_number, count;
static char watched[MOST_DESCRIPTORS];
static char names[MOST_CALLS]; /* one letter a counted call */

void faults_arm(const char *path, int n, int what, int error) {
  snprintf(folder, sizeof folder, "%s", path);
  strike = n, action = what, error_number = error, count = 0, armed = 1;
}

int faults_disarm(void) {
  armed = 0;
  return count;
}

const char *faults_names(void) {
  names[count < MOST_CALLS ? count : MOST_CALLS - 1] = 0;
  return names;
}

static int below(const char *path) { return armed && path && strncmp(path, folder, strlen(folder)) == 0; }
static int is_watched(int fd) { return armed && fd >= 0 && fd < MOST_DESCRIPTORS && watched[fd]; }
static void watch(int fd, int on) {
  if (fd >= 0 && fd < MOST_DESCRIPTORS) watched[fd] = on;
}

/* Count a call; 1 where it must fail now. */
static int struck(char name) {
  int at = count++;
  if (at < MOST_CALLS - 1) names[at] = name;
  if (!strike || (count != strike && !(action == FAIL_ON && count > strike))) return 0;
  if (action == KILL_BEFORE) raise(SIGKILL);
  if (action == FAIL || action == FAIL_ON) {
    errno = error_number;
    return 1;
  }
  return 0;
}

static void passed(void) {
  if (strike && count == strike && action == KILL_AFTER) raise(SIGKILL);
}

#define REAL(type, name, ...) \
  static type (*real)(__VA_ARGS__); \
  if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

#define ON_PATH(name, letter, declared, mine, ...) \
  int name declared { \
    static int(*real) declared; \
    if (!real) real = (int(*) declared)dlsym(RTLD_NEXT, #name); \
    if (!(mine)) return real(__VA_ARGS__); \
    if (struck(letter)) return -1; \
    int result = real(__VA_ARGS__); \
    passed(); \
    return result; \
  }

ON_PATH(link, 'l', (const char *a, const char *b), below(b), a, b)
ON_PATH(linkat, 'l', (int d, const char *a, int e, const char *b, int f), below(b), d, a, e, b, f)
ON_PATH(rename, 'r', (const char *a, const char *b), below(b), a, b)
ON_PATH(renameat, 'r', (int d, const char *a, int e, const char *b), below(b), d, a, e, b)
ON_PATH(unlink, 'u', (const char *a), below(a), a)
ON_PATH(unlinkat, 'u', (int d, const char *a, int f), below(a), d, a, f)
ON_PATH(mkdir, 'm', (const char *a, mode_t m), below(a), a, m)
ON_PATH(fsync, 's', (int fd), is_watched(fd), fd)
ON_PATH(fdatasync, 's', (int fd), is_watched(fd), fd)
ON_PATH(ftruncate, 't', (int fd, off_t n), is_watched(fd), fd, n)
ON_PATH(ftruncate64, 't', (int fd, off64_t n), is_watched(fd), fd, n)

#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    REAL(int, name, const char *, int, ...); \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = va_arg(rest, mode_t); \
    va_end(rest); \
    if (!below(path)) return real(path, flags, mode); \
    if (struck('o')) return -1; \
    int fd = real(path, flags, mode); \
    watch(fd, 1); \
    passed(); \
    return fd; \
  }

OPEN(open)
OPEN(open64)

int close(int fd) {
  REAL(int, close, int);
  if (!is_watched(fd)) return real(fd);
  if (struck('c')) { /* a close that fails has closed all the same */
    int number = errno;
    real(fd);
    watch(fd, 0);
    errno = number;
    return -1;
  }
  watch(fd, 0);
  int result = real(fd);
  passed();
  return result;
}

#define READ(name, declared, ...) \
  ssize_t name declared { \
    static ssize_t(*real) declared; \
    if (!real) real = (ssize_t(*) declared)dlsym(RTLD_NEXT, #name); \
    if (!is_watched(fd)) return real(__VA_ARGS__); \
    if (struck('d')) return -1; \
    ssize_t result = real(__VA_ARGS__); \
    passed(); \
    return result; \
  }

READ(read, (int fd, void *data, size_t size), fd, data, size)
READ(pread, (int fd, void *data, size_t size, off_t at), fd, data, size, at)
READ(pread64, (int fd, void *data, size_t size, off64_t at), fd, data, size, at)

ssize_t write(int fd, const void *data, size_t size) {
  REAL(ssize_t, write, int, const void *, size_t);
  if (!is_watched(fd)) return real(fd, data, size);
  if (struck('w')) return -1;
  if (strike && count == strike && action == SHORT && size > 1) size--;
  ssize_t result = real(fd, data, size);
  passed();
  return result;
}
