/* What the provider and the load generator share: growing byte buffers, clocks, and giving up. */
#ifndef COMMON_H
#define COMMON_H
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

typedef struct {
    char *data;
    size_t start, end, capacity; /* what is held lies in data[start..end) */
} buffer;

static inline void die(const char *what) {
    perror(what);
    exit(1);
}

static inline void *checked(void *memory) {
    if (!memory) die("memory");
    return memory;
}

static inline long long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static inline long long now_us(void) { return now_ns() / 1000; }

/* Make room for `more` bytes at the end, and one for a terminating zero. */
static inline void reserve(buffer *b, size_t more) {
    if (b->start == b->end) b->start = b->end = 0;
    if (b->end + more + 1 <= b->capacity) return;
    if (b->start) memmove(b->data, b->data + b->start, b->end - b->start);
    b->end -= b->start;
    b->start = 0;
    if (b->end + more + 1 > b->capacity) {
        b->capacity = 2 * (b->end + more + 1);
        b->data = (char *)checked(realloc(b->data, b->capacity));
    }
}

static inline void add(buffer *b, const char *data, size_t size) {
    reserve(b, size);
    memcpy(b->data + b->end, data, size);
    b->end += size;
}

static inline void add_text(buffer *b, const char *text) { add(b, text, strlen(text)); }

static inline void raise_file_limit(void) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
}
#endif
