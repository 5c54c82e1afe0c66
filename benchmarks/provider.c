/* An OpenAI-compatible provider that costs next to nothing: one thread, epoll, answers made in advance.
 *
 *   provider PORT [TOKENS] [INTERVAL_US]
 *
 * POST (any path)  a chat completion; with "stream":true, TOKENS events INTERVAL_US apart (0: all in one write, each event its
 *                  own chunk), then finish reason, usage and [DONE]
 * GET /stats       {"open","aborted","requests","streams_done"}: open connections, streams the peer left before their end, ...
 * GET /aborts      [[MARK, at_us], ...]: when marked streams were left, on CLOCK_MONOTONIC
 *
 * A request may say more, through any gateway, by what it holds:
 *   "model":"paced-TOKENSxINTERVAL_US"  this answer's own pace; each token's text is the time it was written (CLOCK_MONOTONIC in us),
 *                                       so that a load generator on the same machine can tell how old it is when it arrives
 *   mark-NUMBER (in a prompt)           the stream's name in /aborts
 *   mode-hang, mode-headers             no answer at all; a head and nothing after it
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common.h"

#define ID "\"id\":\"chatcmpl-9f3a7c21b8\""
#define CHUNK "data: {" ID ",\"object\":\"chat.completion.chunk\",\"created\":1763712000,\"model\":\"gpt-4o-mini\","
#define STREAM_HEAD "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
#define WHOLE_BODY                                                                                                              \
    "{" ID ",\"object\":\"chat.completion\",\"created\":1763712000,\"model\":\"gpt-4o-mini\",\"choices\":[{\"index\":0,"        \
    "\"message\":{\"role\":\"assistant\",\"content\":\"Hello! How can I help you today?\",\"refusal\":null},"                   \
    "\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":9,"                   \
    "\"total_tokens\":21},\"system_fingerprint\":\"fp_44709d6fcb\"}"

enum { MARKS = 65536, EVENTS = 512, READ_SIZE = 65536 };

typedef struct {
    int fd;
    buffer in, out;
    int busy;              /* an answer is being given: what else came waits in `in` */
    int hung;              /* ... and will never end */
    int tokens, sent;      /* of the stream */
    long interval_us;
    long long due_us;      /* when the next token is */
    int heap_index;        /* in `heap`; -1: not waiting */
    int mark;              /* its name in /aborts; -1: none */
    int timed;             /* tokens carry the time */
} connection;

static int epoll_fd;
static int default_tokens = 50;
static long default_interval_us = 0;
static char *ready_stream; /* a whole answer with the default pace, made once */
static size_t ready_stream_size;
static char ready_whole[2048];
static size_t ready_whole_size;

static struct { long open, aborted, requests, streams_done; } stats;
static struct { int mark; long long at_us; } aborts[MARKS];
static int abort_count;

/* --- the streams that wait for their next token: a binary heap by `due_us` ------------------------------------------------ */

static connection **heap;
static int heap_count, heap_capacity;

static void heap_put(int at, connection *c) {
    heap[at] = c;
    c->heap_index = at;
}

static void heap_settle(int at) {
    connection *c = heap[at];
    for (; at && heap[(at - 1) / 2]->due_us > c->due_us; at = (at - 1) / 2) heap_put(at, heap[(at - 1) / 2]);
    for (;;) {
        int child = 2 * at + 1;
        if (child + 1 < heap_count && heap[child + 1]->due_us < heap[child]->due_us) child++;
        if (child >= heap_count || heap[child]->due_us >= c->due_us) break;
        heap_put(at, heap[child]);
        at = child;
    }
    heap_put(at, c);
}

static void heap_add(connection *c) {
    if (heap_count == heap_capacity) {
        heap_capacity = heap_capacity ? 2 * heap_capacity : 1024;
        heap = checked(realloc(heap, (size_t)heap_capacity * sizeof *heap));
    }
    heap_put(heap_count++, c);
    heap_settle(heap_count - 1);
}

static void heap_remove(connection *c) {
    int at = c->heap_index;
    if (at < 0) return;
    c->heap_index = -1;
    connection *last = heap[--heap_count];
    if (last == c) return;
    heap_put(at, last);
    heap_settle(at);
}

/* --- answers ---------------------------------------------------------------------------------------------------------------- */

static void add_chunk(buffer *b, const char *data, size_t size) {
    char head[32];
    add(b, head, (size_t)sprintf(head, "%zx\r\n", size));
    add(b, data, size);
    add(b, "\r\n", 2);
}

static void add_token(buffer *b, int number, int timed) {
    char event[512], text[40];
    if (timed) sprintf(text, " tok%lld", now_us());
    else sprintf(text, " tok%d", number);
    int n = sprintf(event, CHUNK "\"system_fingerprint\":\"fp_44709d6fcb\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"%s\"},"
                                 "\"logprobs\":null,\"finish_reason\":null}]}\n\n", text);
    add_chunk(b, event, (size_t)n);
}

static void add_end(buffer *b, int tokens) {
    char event[512];
    int n = sprintf(event, CHUNK "\"choices\":[{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}]}\n\n");
    add_chunk(b, event, (size_t)n);
    n = sprintf(event, CHUNK "\"choices\":[],\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":%d,\"total_tokens\":%d}}\n\n",
                tokens, tokens + 12);
    add_chunk(b, event, (size_t)n);
    add_chunk(b, "data: [DONE]\n\n", 14);
    add(b, "0\r\n\r\n", 5);
}

static void prepare_answers(void) {
    buffer b = {0};
    add_text(&b, STREAM_HEAD);
    for (int i = 0; i < default_tokens; i++) add_token(&b, i, 0);
    add_end(&b, default_tokens);
    ready_stream = b.data;
    ready_stream_size = b.end;
    ready_whole_size = (size_t)snprintf(ready_whole, sizeof ready_whole,
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%s", strlen(WHOLE_BODY), WHOLE_BODY);
}

static void add_json(buffer *b, const char *body, size_t size) {
    char head[128];
    add(b, head, (size_t)sprintf(head, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n", size));
    add(b, body, size);
}

static void add_stats(buffer *b) {
    char body[256];
    int n = sprintf(body, "{\"open\":%ld,\"aborted\":%ld,\"requests\":%ld,\"streams_done\":%ld}\n", stats.open, stats.aborted,
                    stats.requests, stats.streams_done);
    add_json(b, body, (size_t)n);
}

static void add_aborts(buffer *b) {
    buffer body = {0};
    add(&body, "[", 1);
    for (int i = 0; i < abort_count; i++) {
        char pair[64];
        add(&body, pair, (size_t)sprintf(pair, "%s[%d,%lld]", i ? "," : "", aborts[i].mark, aborts[i].at_us));
    }
    add(&body, "]\n", 2);
    add_json(b, body.data, body.end);
    free(body.data);
    abort_count = 0;
}

/* --- connections ------------------------------------------------------------------------------------------------------------ */

static void watch(connection *c, unsigned events, int operation) {
    struct epoll_event e = {.events = events, .data.ptr = c};
    if (epoll_ctl(epoll_fd, operation, c->fd, &e)) die("epoll_ctl");
}

static void drop(connection *c) {
    if (c->busy) {
        stats.aborted++;
        if (c->mark >= 0 && abort_count < MARKS) {
            aborts[abort_count].mark = c->mark;
            aborts[abort_count++].at_us = now_us();
        }
    }
    heap_remove(c);
    close(c->fd);
    free(c->in.data);
    free(c->out.data);
    free(c);
    stats.open--;
}

/* Send what is there. -1: the peer is gone. */
static int flush(connection *c) {
    buffer *b = &c->out;
    while (b->start < b->end) {
        ssize_t n = write(c->fd, b->data + b->start, b->end - b->start);
        if (n < 0) {
            if (errno != EAGAIN) return -1;
            watch(c, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
            return 0;
        }
        b->start += (size_t)n;
    }
    return 0;
}

static void begin_stream(connection *c, const char *body) {
    const char *paced = strstr(body, "\"paced-");
    if (!paced && default_interval_us == 0) {
        add(&c->out, ready_stream, ready_stream_size);
        stats.streams_done++;
        return;
    }
    c->tokens = default_tokens;
    c->interval_us = default_interval_us;
    if (paced) sscanf(paced, "\"paced-%dx%ld", &c->tokens, &c->interval_us);
    c->timed = 1;
    c->sent = 0;
    c->busy = 1;
    add_text(&c->out, STREAM_HEAD);
    c->due_us = now_us() + c->interval_us;
    heap_add(c);
}

static void answer(connection *c, const char *head, const char *body) {
    const char *mark = strstr(body, "mark-");
    c->mark = mark ? atoi(mark + 5) : -1;
    if (!strncmp(head, "GET /stats", 10)) return add_stats(&c->out);
    if (!strncmp(head, "GET /aborts", 11)) return add_aborts(&c->out);
    stats.requests++;
    if (strstr(body, "mode-h")) {
        if (strstr(body, "mode-headers")) add_text(&c->out, STREAM_HEAD);
        c->busy = c->hung = 1;
    } else if (strstr(body, "\"stream\":true") || strstr(body, "\"stream\": true")) {
        begin_stream(c, body);
    } else {
        add(&c->out, ready_whole, ready_whole_size);
    }
}

/* Answer every request that is whole. -1: the peer is gone. */
static int handle(connection *c) {
    buffer *in = &c->in;
    while (!c->busy && in->start < in->end) {
        reserve(in, 0);
        char *text = in->data + in->start;
        in->data[in->end] = 0;
        char *head_end = strstr(text, "\r\n\r\n");
        if (!head_end) break;
        *head_end = 0;
        char *body = head_end + 4, *length = strcasestr(text, "content-length:");
        size_t size = length ? strtoul(length + 15, NULL, 10) : 0;
        size_t have = (size_t)(in->data + in->end - body);
        if (strcasestr(text, "transfer-encoding: chunked")) {
            char *last = strstr(body, "0\r\n\r\n");
            size = last ? (size_t)(last + 5 - body) : have + 1;
        }
        if (have < size) {
            *head_end = '\r';
            break;
        }
        char after = body[size];
        body[size] = 0;
        answer(c, text, body);
        body[size] = after;
        in->start += (size_t)(body - text) + size;
    }
    return flush(c);
}

static void next_token(connection *c) {
    if (c->sent < c->tokens) add_token(&c->out, c->sent++, c->timed);
    if (c->sent == c->tokens) {
        add_end(&c->out, c->tokens);
        c->busy = 0;
        stats.streams_done++;
    }
}

static void send_due(void) {
    long long now = now_us();
    while (heap_count && heap[0]->due_us <= now) {
        connection *c = heap[0];
        next_token(c);
        if (flush(c) < 0) {
            drop(c);
            continue;
        }
        if (c->busy) {
            c->due_us += c->interval_us;
            heap_settle(0);
        } else {
            heap_remove(c);
            if (handle(c) < 0) drop(c);
        }
    }
}

static void accept_all(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK), one = 1;
        if (fd < 0) return;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        connection *c = checked(calloc(1, sizeof *c));
        c->fd = fd;
        c->heap_index = c->mark = -1;
        watch(c, EPOLLIN, EPOLL_CTL_ADD);
        stats.open++;
    }
}

static void on_event(connection *c, unsigned events) {
    if (events & EPOLLOUT) {
        watch(c, EPOLLIN, EPOLL_CTL_MOD);
        if (flush(c) < 0) return drop(c);
    }
    if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR))) return;
    for (;;) {
        reserve(&c->in, READ_SIZE);
        ssize_t n = read(c->fd, c->in.data + c->in.end, READ_SIZE);
        if (n < 0 && errno == EAGAIN) break;
        if (n <= 0) return drop(c);
        c->in.end += (size_t)n;
        if (n < READ_SIZE) break;
    }
    if (handle(c) < 0) drop(c);
}

static int listen_on(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 4096)) die("bind");
    return fd;
}

int main(int count, char **arguments) {
    if (count < 2) {
        fprintf(stderr, "usage: provider PORT [TOKENS] [INTERVAL_US]\n");
        return 2;
    }
    if (count > 2) default_tokens = atoi(arguments[2]);
    if (count > 3) default_interval_us = atol(arguments[3]);
    raise_file_limit();
    signal(SIGPIPE, SIG_IGN);
    prepare_answers();
    int listener = listen_on(atoi(arguments[1]));
    epoll_fd = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN}, ready[EVENTS];
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &e);
    for (;;) {
        int wait_ms = -1;
        if (heap_count) {
            long long left = heap[0]->due_us - now_us();
            wait_ms = left <= 0 ? 0 : (int)((left + 999) / 1000);
        }
        int n = epoll_wait(epoll_fd, ready, EVENTS, wait_ms);
        for (int i = 0; i < n; i++) {
            if (ready[i].data.ptr) on_event(ready[i].data.ptr, ready[i].events);
            else accept_all(listener);
        }
        send_due();
    }
}
