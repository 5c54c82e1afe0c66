/* Load on a gateway: one thread, epoll, every answer checked. Prints one JSON object. The first answer that is not what
 * it should be ends the run: what was wrong goes to stderr, and the exit status is 1.
 *
 *   load http|ws --port P [--connections N] [--seconds S] [--warmup S] [--requests N] [--ramp S] [--key K] [--model M] [--path P]
 *        [--stream] [--tokens N] [--timed] [--header "NAME: VALUE"]...
 *   load ws   --port P --connections N --hold              authenticate, print "held", keep them until stdin ends
 *   load http --port P ... --timed --hangup US --provider PORT   hang up one stream each US; when did the provider notice?
 *   load http --port P ... --schedule FILE [--pace MS]     open loop: a line each request, "AT_US TOKENS PROMPT_CHARACTERS"; both
 *                                                          the C and the scripted provider understand what is then asked for
 *
 * Closed loop: each connection sends its next request when it has the answer to the last. Counted is what ends between the
 * warm-up and the end; then what is under way may finish, so that nothing is left cancelled.
 * --timed expects the provider's "paced-" models: a token's text is when it was written, so its age on arrival is known.
 * All times in the output are microseconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "answers.h"
#include "histogram.h"

enum { EVENTS = 512, READ_SIZE = 1 << 18 };
static const long long SECOND = 1000000000LL, PATIENCE = 15 * 1000000000LL;

static struct {
    int ws, port, connections, stream, tokens, timed, hold, provider, pace_ms;
    long requests;
    long long warmup, length, ramp, hangup;
    const char *key, *model, *path, *schedule, *headers[4];
    int header_count;
} want = {.connections = 1, .length = 1000000000LL, .key = "sk-bench-1234", .model = "gpt-4o-mini", .tokens = 50, .pace_ms = 20};

enum state { CLOSED, CONNECTING, UPGRADING, GREETING, IDLE, WAITING };

typedef struct {
    int fd, number, expected, answered; /* `answered`: answers this connection has given */
    enum state state;
    buffer in, out, payload;
    http_answer http;
    token_counter counter;
    long long sent, last, due; /* when the request was, and its last token; `due`: when the schedule wants it */
    size_t prompt_size;
} connection;

static int epoll_fd;
static connection *all;
static long long began, measure_from, measure_to;
static long started, under_way, errors, reconnects, held;
static struct { long answers, tokens, bytes, token_frames; long long last_at; histogram whole, first, gap, age; } got;
static long long *closed_at; /* by connection, with --hangup */
static struct { long long at; int tokens; size_t size; } *schedule;
static long schedule_size;
static int stopping;

static void failed(connection *c, const char *what, const char *detail, size_t size) {
    if (!errors++)
        fprintf(stderr, "load: connection %d: %s: %.*s\n", c->number, what, (int)(size < 500 ? size : 500), size ? detail : "");
    stopping = 1;
}

static int is_measured(long long now) { return now >= measure_from && now <= measure_to; }

static int may_start(long long now) {
    return !stopping && now < measure_to && (!want.requests || started < want.requests) && !want.schedule;
}

/* --- requests --------------------------------------------------------------------------------------------------------------- */

#define SYSTEM "You are a helpful assistant."
#define USER "Say hello to the world and tell me what you can do for me today."
static const char FILLER[] = "The quick brown fox reads the long document and sums it up in plain words. ";

static void add_http_request(connection *c) {
    static buffer body;
    char text[512];
    body.start = body.end = 0;
    if (want.schedule) {
        sprintf(text, "{\"model\":\"paced-%dx%d\",\"messages\":[{\"role\":\"user\",\"content\":\"", c->expected, want.pace_ms * 1000);
        add_text(&body, text);
        for (size_t left = c->prompt_size; left;) {
            size_t n = left < sizeof FILLER - 1 ? left : sizeof FILLER - 1;
            add(&body, FILLER, n);
            left -= n;
        }
        sprintf(text, "\\nscript: tokens %d every %dms\"}],\"max_tokens\":%d,\"stream\":true}", c->expected, want.pace_ms, c->expected);
        add_text(&body, text);
    } else {
        sprintf(text, "{\"model\":\"%s\",\"messages\":[{\"role\":\"system\",\"content\":\"" SYSTEM "\"},"
                      "{\"role\":\"user\",\"content\":\"" USER "\"}],\"temperature\":0.7,\"max_tokens\":256,\"stream\":%s}",
                want.model, want.stream ? "true" : "false");
        if (want.hangup)
            sprintf(text, "{\"model\":\"%s\",\"messages\":[{\"role\":\"user\",\"content\":\"mark-%d here\"}],\"stream\":true}",
                    want.model, c->number);
        add_text(&body, text);
    }
    char head[1536], more[1024] = "";
    for (int i = 0; i < want.header_count; i++) strcat(strcat(more, want.headers[i]), "\r\n");
    sprintf(head, "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\nAuthorization: Bearer %s\r\n"
                  "%sContent-Length: %zu\r\n\r\n", want.path, want.port, want.key, more, body.end);
    add_text(&c->out, head);
    add(&c->out, body.data, body.end);
}

static void add_ws_request(connection *c) {
    char text[512];
    int n = sprintf(text, "{\"type\":\"llm_request\",\"id\":\"r1\",\"model\":\"%s\",\"prompt\":\"" USER "\",\"parameters\":"
                          "{\"max_tokens\":256,\"temperature\":0.7,\"stream\":true}}", want.model);
    add_frame(&c->out, WS_TEXT, text, (size_t)n);
}

static void add_upgrade(connection *c) {
    char text[512];
    sprintf(text, "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                  "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n", want.path, want.port);
    add_text(&c->out, text);
}

static void add_auth(connection *c) {
    char text[512];
    int n = sprintf(text, "{\"type\":\"auth\",\"token\":\"%s\"}", want.key);
    add_frame(&c->out, WS_TEXT, text, (size_t)n);
}

/* --- connections ------------------------------------------------------------------------------------------------------------ */

static void watch(connection *c, unsigned events, int operation) {
    struct epoll_event e = {.events = events, .data.ptr = c};
    if (epoll_ctl(epoll_fd, operation, c->fd, &e)) die("epoll_ctl");
}

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

static void hang_up(connection *c) {
    if (c->state == CLOSED) return;
    if (c->state == WAITING) under_way--;
    if (c->state == IDLE && want.hold) held--;
    close(c->fd);
    c->state = CLOSED;
    c->in.start = c->in.end = c->out.start = c->out.end = 0;
}

static void dial(connection *c) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((unsigned short)want.port)};
    int one = 1;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0) die("socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(c->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS) die("connect");
    c->state = CONNECTING;
    c->answered = 0;
    watch(c, EPOLLIN | EPOLLOUT, EPOLL_CTL_ADD);
}

static int ask(connection *c) {
    if (!want.schedule) c->expected = want.stream || want.ws ? want.tokens : 0;
    if (want.ws) add_ws_request(c);
    else add_http_request(c);
    started++, under_way++;
    memset(&c->http, 0, sizeof c->http);
    forget_tokens(&c->counter);
    c->state = WAITING;
    c->payload.start = c->payload.end = 0;
    c->sent = want.schedule ? c->due : now_ns();
    c->last = 0;
    return flush(c);
}

static int ready(connection *c) {
    c->state = IDLE;
    if (want.hold) {
        held++;
        return 0;
    }
    return want.schedule ? (c->expected ? ask(c) : 0) : may_start(now_ns()) ? ask(c) : 0;
}

/* --- answers ---------------------------------------------------------------------------------------------------------------- */

static void saw_time(void *context, long long written_us) {
    long long now = *(long long *)context;
    if (is_measured(now)) histogram_add(&got.age, now - written_us * 1000);
}

static void see_tokens(connection *c, const char *data, size_t size, long long now) {
    long fresh = see_payload(&c->counter, data, size, want.timed ? saw_time : NULL, &now);
    if (!fresh) return;
    if (is_measured(now)) {
        got.tokens += fresh;
        histogram_add(c->last ? &got.gap : &got.first, now - (c->last ? c->last : c->sent));
    }
    c->last = now;
}

static void answered(connection *c, long long now) {
    under_way--;
    c->answered++;
    c->state = IDLE;
    c->expected = 0;
    if (!is_measured(now)) return;
    got.answers++;
    got.last_at = now;
    histogram_add(&got.whole, now - c->sent);
}

static int check_http(connection *c, const buffer *payload) {
    const char *text = payload->data ? payload->data + payload->start : "";
    size_t size = payload->end - payload->start;
    char counts[64];
    if (c->http.status != 200) return failed(c, "not a 200", text, size), -1;
    if (!c->expected) {
        if (!memmem(text, size, "Hello! How can I help you today?", 32)) return failed(c, "not the answer", text, size), -1;
        return 0;
    }
    int n = sprintf(counts, "%ld of %d", c->counter.tokens, c->expected);
    if (c->counter.tokens != c->expected) return failed(c, "wrong number of tokens", counts, (size_t)n), -1;
    if (!memmem(c->counter.tail, c->counter.tail_size, "[DONE]", 6)) return failed(c, "no [DONE]", "", 0), -1;
    return 0;
}

static int take_http(connection *c, long long now) {
    buffer *payload = &c->payload; /* of a stream, what this read brought; of a whole answer, all of it */
    if (c->state != WAITING) return c->in.start < c->in.end ? (failed(c, "an answer to nothing", "", 0), -1) : 0;
    if (c->expected) payload->start = payload->end = 0;
    if (read_http(&c->http, &c->in, payload)) return failed(c, "bad HTTP", c->in.data + c->in.start, 80), -1;
    if (c->expected && payload->end) see_tokens(c, payload->data, payload->end, now);
    if (c->http.stage != COMPLETE) return 0;
    int bad = check_http(c, payload), closes = c->http.closes;
    answered(c, now);
    if (bad) return -1;
    if (closes) {
        hang_up(c);
        reconnects++;
        if (may_start(now)) dial(c);
        return 0;
    }
    return ready(c);
}

static int is_type(const char *body, size_t size, const char *type) {
    const char *at = memmem(body, size, "\"type\"", 6);
    if (!at) return 0;
    at += 6;
    const char *end = body + size;
    while (at < end && (*at == ' ' || *at == ':')) at++;
    return (size_t)(end - at) > strlen(type) && !memcmp(at, type, strlen(type));
}

static int take_frame(connection *c, int opcode, char *body, size_t size, long long now) {
    char counts[64];
    if (opcode == WS_PING) return add_frame(&c->out, WS_PONG, body, size), flush(c);
    if (opcode == WS_CLOSE) return failed(c, "closed by the server", body + 2, size > 2 ? size - 2 : 0), -1;
    if (opcode != WS_TEXT) return 0;
    if (is_type(body, size, "\"error\"")) return failed(c, "error frame", body, size), -1;
    if (c->state == GREETING) return is_type(body, size, "\"auth_ok\"") ? ready(c) : 0;
    if (c->state != WAITING) return 0;
    if (is_type(body, size, "\"llm_token\"")) return got.token_frames++, see_tokens(c, body, size, now), 0;
    if (!is_type(body, size, "\"llm_response_end\"")) return 0;
    int n = sprintf(counts, "%ld of %d", c->counter.tokens, c->expected);
    int bad = c->counter.tokens != c->expected;
    answered(c, now);
    if (bad) return failed(c, "wrong number of tokens", counts, (size_t)n), -1;
    return ready(c);
}

static int take_ws(connection *c, long long now) {
    if (c->state == UPGRADING) {
        memset(&c->http, 0, sizeof c->http);
        if (!read_head(&c->http, &c->in)) return 0;
        if (c->http.status != 101) return failed(c, "no upgrade", c->in.data, 200), -1;
        c->state = GREETING;
        add_auth(c);
        if (flush(c)) return -1;
    }
    char *body;
    size_t size;
    for (int opcode; (opcode = read_frame(&c->in, &body, &size)) >= 0;)
        if (take_frame(c, opcode, body, size, now)) return -1;
    return 0;
}

/* The peer ended the connection, or it broke. A server may do so between answers. */
static void lost(connection *c) {
    int forgivable = !want.ws && c->answered && (c->state == IDLE || (c->state == WAITING && c->http.stage == HEAD));
    int again = c->state == WAITING;
    if (c->state == WAITING && c->http.stage == TO_CLOSE && c->counter.tokens == c->expected) {
        answered(c, now_ns());
        again = may_start(now_ns());
    } else if (!forgivable) {
        failed(c, "connection lost", "", 0);
        again = 0;
    } else if (again) {
        started--;
    }
    hang_up(c);
    reconnects++;
    if (again) dial(c);
}

static void on_event(connection *c, unsigned events) {
    if (c->state == CLOSED) return;
    if (c->state == CONNECTING && (events & (EPOLLOUT | EPOLLERR))) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) {
            failed(c, "connect", strerror(error), 60);
            return hang_up(c);
        }
        watch(c, EPOLLIN, EPOLL_CTL_MOD);
        if (want.ws) add_upgrade(c), c->state = UPGRADING;
        if (want.ws ? flush(c) : ready(c)) return lost(c);
    } else if (events & EPOLLOUT) {
        watch(c, EPOLLIN, EPOLL_CTL_MOD);
        if (flush(c)) return lost(c);
    }
    if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR))) return;
    reserve(&c->in, 16384);
    size_t room = c->in.capacity - c->in.end - 1;
    ssize_t n = read(c->fd, c->in.data + c->in.end, room < READ_SIZE ? room : READ_SIZE);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) return lost(c);
    c->in.end += (size_t)n;
    long long now = now_ns();
    if (is_measured(now)) got.bytes += n;
    if (want.ws ? take_ws(c, now) : take_http(c, now)) hang_up(c);
}

#include "behaviours.h"

int main(int count, char **arguments) {
    read_options(count, arguments);
    raise_file_limit();
    signal(SIGPIPE, SIG_IGN);
    epoll_fd = epoll_create1(0);
    all = checked(calloc((size_t)want.connections, sizeof *all));
    closed_at = checked(calloc((size_t)want.connections, sizeof *closed_at));
    for (int i = 0; i < want.connections; i++) all[i].number = i;
    began = now_ns();
    measure_from = began + want.warmup;
    measure_to = measure_from + want.length;
    struct epoll_event ready_now[EVENTS];
    while (!finished(now_ns())) {
        long long due = do_due(now_ns()), left = due - now_ns();
        int wait_ms = left <= 0 ? 0 : left > SECOND / 10 ? 100 : (int)(left / 1000000);
        int n = epoll_wait(epoll_fd, ready_now, EVENTS, wait_ms);
        for (int i = 0; i < n; i++) on_event(ready_now[i].data.ptr, ready_now[i].events);
    }
    if (want.hangup) ask_when_noticed();
    print_result();
    return errors ? 1 : 0;
}
