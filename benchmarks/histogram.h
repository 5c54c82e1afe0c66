/* A histogram of nanoseconds with about 1 % resolution, from 1 ns to an hour: 64 buckets for each power of two. */
#ifndef HISTOGRAM_H
#define HISTOGRAM_H
#include <stdint.h>

enum { HISTOGRAM_BITS = 6, HISTOGRAM_SIZE = 43 << HISTOGRAM_BITS };

typedef struct {
    uint64_t count, max;
    uint64_t bucket[HISTOGRAM_SIZE];
} histogram;

static inline int histogram_index(uint64_t value) {
    if (value < 1u << HISTOGRAM_BITS) return (int)value;
    int exponent = 63 - __builtin_clzll(value) - HISTOGRAM_BITS;
    int index = (exponent << HISTOGRAM_BITS) + (int)(value >> exponent);
    return index < HISTOGRAM_SIZE ? index : HISTOGRAM_SIZE - 1;
}

static inline void histogram_add(histogram *h, int64_t value) {
    uint64_t positive = value < 0 ? 0 : (uint64_t)value;
    h->bucket[histogram_index(positive)]++;
    h->count++;
    if (positive > h->max) h->max = positive;
}

/* The value that `share` (0..1) of all lie at or below, in ns; 0 where nothing was counted. */
static inline double histogram_at(const histogram *h, double share) {
    if (!h->count) return 0;
    uint64_t wanted = (uint64_t)(share * (double)h->count), seen = 0;
    if (wanted >= h->count) return (double)h->max;
    for (int i = 0; i < HISTOGRAM_SIZE; i++) {
        seen += h->bucket[i];
        if (seen > wanted) {
            if (i < 1 << HISTOGRAM_BITS) return i;
            int exponent = (i >> HISTOGRAM_BITS) - 1;
            uint64_t low = (uint64_t)((i & ((1 << HISTOGRAM_BITS) - 1)) + (1 << HISTOGRAM_BITS)) << exponent;
            double middle = (double)low + (double)(1ull << exponent) / 2;
            return middle < (double)h->max ? middle : (double)h->max;
        }
    }
    return (double)h->max;
}
#endif
