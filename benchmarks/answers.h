/* Reading answers: HTTP/1.1 bodies and WebSocket frames, and the tokens in them.
 *
 * Every answer is decoded as far as its framing, because a proxy may cut it anywhere; tokens are counted in what the framing held.
 */
#ifndef ANSWERS_H
#define ANSWERS_H
#define _GNU_SOURCE
#include <stdint.h>
#include <string.h>

#include "common.h"

/* --- tokens ----------------------------------------------------------------------------------------------------------------- */

enum { TAIL = 48 }; /* of the payload, kept from read to read: longer than " tok" and a time, and than "data: [DONE]" */

typedef struct {
    char tail[TAIL];
    size_t tail_size, fresh; /* of the tail, bytes that no match has been looked for from */
    long tokens;
} token_counter;

typedef void (*on_time)(void *context, long long written_us);

/* How often " tok" begins in the `n` first places of p, which holds three bytes more. Written so that compilers vectorise it. */
static inline long count_tokens(const char *p, size_t n) {
    long total = 0;
    while (n) {
        size_t block = n < 255 ? n : 255;
        unsigned char found = 0;
        for (size_t i = 0; i < block; i++)
            found = (unsigned char)(found + ((p[i] == ' ') & (p[i + 1] == 't') & (p[i + 2] == 'o') & (p[i + 3] == 'k')));
        total += found;
        p += block;
        n -= block;
    }
    return total;
}

/* Count the tokens of one more piece of payload; `told` is given the time each carries, if it is not NULL. Gives how many came. */
static inline long see_payload(token_counter *t, const char *data, size_t size, on_time told, void *context) {
    static buffer joined;
    joined.start = joined.end = 0;
    add(&joined, t->tail, t->tail_size);
    add(&joined, data, size);
    char *p = joined.data + t->tail_size - t->fresh, *end = joined.data + joined.end;
    long before = t->tokens;
    if (!told) {
        if (end - p > 3) {
            t->tokens += count_tokens(p, (size_t)(end - p - 3));
            p = end - 3;
        }
    } else {
        while ((p = memmem(p, (size_t)(end - p), " tok", 4))) {
            char *digits = p + 4;
            long long value = 0;
            while (digits < end && *digits >= '0' && *digits <= '9') value = 10 * value + (*digits++ - '0');
            if (digits == end) break; /* it may go on in the next piece */
            t->tokens++;
            told(context, value);
            p = digits;
        }
        if (!p) p = end - 3 > joined.data ? end - 3 : joined.data;
    }
    size_t kept = joined.end < TAIL ? joined.end : TAIL;
    memcpy(t->tail, end - kept, kept);
    t->tail_size = kept;
    t->fresh = (size_t)(end - p) < kept ? (size_t)(end - p) : kept;
    return t->tokens - before;
}

static inline void forget_tokens(token_counter *t) { t->tail_size = t->fresh = 0, t->tokens = 0; }

/* --- HTTP ------------------------------------------------------------------------------------------------------------------- */

enum stage { HEAD, SIZED, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER, TO_CLOSE, COMPLETE };

typedef struct {
    enum stage stage;
    int status, closes; /* `closes`: the connection ends with this answer */
    long long left;     /* bytes of the body or of the chunk */
} http_answer;

static inline int read_head(http_answer *a, buffer *in) {
    in->data[in->end] = 0;
    char *head = in->data + in->start, *end = strstr(head, "\r\n\r\n");
    if (!end) return 0;
    *end = 0;
    a->status = atoi(head + 9);
    a->closes = strcasestr(head, "\r\nconnection: close") != NULL;
    char *length = strcasestr(head, "\r\ncontent-length:");
    if (strcasestr(head, "\r\ntransfer-encoding: chunked")) a->stage = CHUNK_SIZE;
    else if (length) a->left = atoll(length + 17), a->stage = a->left ? SIZED : COMPLETE;
    else a->stage = TO_CLOSE, a->closes = 1;
    in->start = (size_t)(end + 4 - in->data);
    return 1;
}

/* Move the payload of what `in` holds to `payload`, up to the end of one answer. -1: this is no HTTP. */
static inline int read_http(http_answer *a, buffer *in, buffer *payload) {
    while (a->stage != COMPLETE) {
        size_t have = in->end - in->start;
        char *at = in->data + in->start;
        if (a->stage == HEAD) {
            if (!read_head(a, in)) return 0;
        } else if (a->stage == SIZED || a->stage == CHUNK_DATA || a->stage == TO_CLOSE) {
            size_t take = a->stage == TO_CLOSE || (size_t)a->left > have ? have : (size_t)a->left;
            if (!take) return 0;
            add(payload, at, take);
            in->start += take;
            a->left -= (long long)take;
            if (!a->left) a->stage = a->stage == SIZED ? COMPLETE : a->stage == CHUNK_DATA ? CHUNK_END : TO_CLOSE;
        } else {
            char *line = have ? memchr(at, '\n', have) : NULL;
            if (!line) return have > 8192 ? -1 : 0;
            in->start = (size_t)(line + 1 - in->data);
            if (a->stage == CHUNK_END) {
                a->stage = CHUNK_SIZE;
            } else if (a->stage == TRAILER) {
                if (line - at <= 1) a->stage = COMPLETE;
            } else {
                char *rest;
                a->left = strtoll(at, &rest, 16);
                if (rest == at || a->left < 0) return -1;
                a->stage = a->left ? CHUNK_DATA : TRAILER;
            }
        }
    }
    return 0;
}

/* --- WebSocket -------------------------------------------------------------------------------------------------------------- */

enum { WS_CONTINUE = 0, WS_TEXT = 1, WS_CLOSE = 8, WS_PING = 9, WS_PONG = 10 };

/* One whole frame of a server, if `in` holds one: its opcode, or -1 for not yet. `body` points into `in`. */
static inline int read_frame(buffer *in, char **body, size_t *size) {
    unsigned char *p = (unsigned char *)in->data + in->start;
    size_t have = in->end - in->start, head = 2, length;
    if (have < 2) return -1;
    length = p[1] & 0x7f;
    if (length == 126) {
        if (have < 4) return -1;
        length = (size_t)p[2] << 8 | p[3], head = 4;
    } else if (length == 127) {
        if (have < 10) return -1;
        length = 0, head = 10;
        for (int i = 2; i < 10; i++) length = length << 8 | p[i];
    }
    if (have < head + length) return -1;
    *body = (char *)p + head;
    *size = length;
    in->start += head + length;
    return p[0] & 0x0f;
}

/* A client's frame, masked as RFC 6455 section 5.3 asks. */
static inline void add_frame(buffer *out, int opcode, const char *body, size_t size) {
    static uint32_t random_state = 2463534242u;
    random_state ^= random_state << 13, random_state ^= random_state >> 17, random_state ^= random_state << 5;
    unsigned char head[14] = {(unsigned char)(0x80 | opcode)}, *at = head + 1, *mask;
    if (size < 126) {
        *at++ = (unsigned char)(0x80 | size);
    } else if (size < 65536) {
        *at++ = 0x80 | 126, *at++ = (unsigned char)(size >> 8), *at++ = (unsigned char)size;
    } else {
        *at++ = 0x80 | 127;
        for (int shift = 56; shift >= 0; shift -= 8) *at++ = (unsigned char)((uint64_t)size >> shift);
    }
    mask = at;
    memcpy(mask, &random_state, 4);
    reserve(out, size + sizeof head);
    add(out, (char *)head, (size_t)(mask + 4 - head));
    for (size_t i = 0; i < size; i++) out->data[out->end++] = (char)(body[i] ^ mask[i & 3]);
}
#endif
