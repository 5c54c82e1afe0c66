/* The rest of load.c: options, what is due when, and the result. Included there, once. */

static long long due_dial, next_hangup;
static int dialled, hung_up, announced;
static long next_scheduled;

static long long seconds(const char *text) { return (long long)(atof(text) * 1e9); }

static void read_schedule(const char *path) {
    FILE *file = fopen(path, "r");
    if (!file) die(path);
    long long at;
    int tokens;
    size_t size;
    for (long room = 0; fscanf(file, "%lld %d %zu", &at, &tokens, &size) == 3; schedule_size++) {
        if (schedule_size == room) schedule = checked(realloc(schedule, (size_t)(room = 2 * room + 1024) * sizeof *schedule));
        schedule[schedule_size].at = at * 1000;
        schedule[schedule_size].tokens = tokens > 0 ? tokens : 1;
        schedule[schedule_size].size = size;
    }
    fclose(file);
    if (!schedule_size) {
        fprintf(stderr, "load: %s holds no line \"AT_US TOKENS PROMPT_CHARACTERS\"\n", path);
        exit(2);
    }
}

static void read_options(int count, char **arguments) {
    int timed_by_requests = 0;
    want.ws = count > 1 && !strcmp(arguments[1], "ws");
    if (!want.ws && (count < 2 || strcmp(arguments[1], "http"))) {
        fprintf(stderr, "usage: load http|ws --port P ... (see the top of load.c)\n");
        exit(2);
    }
    want.path = want.ws ? "/websocket" : "/v1/chat/completions";
    for (int i = 2; i < count; i++) {
        const char *name = arguments[i], *value = i + 1 < count ? arguments[i + 1] : "";
        int taken = 1;
        if (!strcmp(name, "--stream")) want.stream = 1, taken = 0;
        else if (!strcmp(name, "--timed")) want.timed = want.stream = 1, taken = 0;
        else if (!strcmp(name, "--hold")) want.hold = 1, taken = 0;
        else if (!strcmp(name, "--port")) want.port = atoi(value);
        else if (!strcmp(name, "--connections")) want.connections = atoi(value);
        else if (!strcmp(name, "--seconds")) want.length = seconds(value), timed_by_requests = -1;
        else if (!strcmp(name, "--warmup")) want.warmup = seconds(value);
        else if (!strcmp(name, "--ramp")) want.ramp = seconds(value);
        else if (!strcmp(name, "--requests")) want.requests = atol(value), timed_by_requests += !timed_by_requests;
        else if (!strcmp(name, "--hangup")) want.hangup = atoll(value) * 1000;
        else if (!strcmp(name, "--provider")) want.provider = atoi(value);
        else if (!strcmp(name, "--pace")) want.pace_ms = atoi(value);
        else if (!strcmp(name, "--tokens")) want.tokens = atoi(value);
        else if (!strcmp(name, "--header") && want.header_count < 4 && strlen(value) < 250) want.headers[want.header_count++] = value;
        else if (!strcmp(name, "--key")) want.key = value;
        else if (!strcmp(name, "--model")) want.model = value;
        else if (!strcmp(name, "--path")) want.path = value;
        else if (!strcmp(name, "--schedule")) read_schedule(want.schedule = value);
        else {
            fprintf(stderr, "load: unknown option %s\n", name);
            exit(2);
        }
        i += taken;
    }
    if (want.port < 1 || want.connections < 1 || strlen(want.key) + strlen(want.model) + strlen(want.path) > 256) {
        fprintf(stderr, "load: --port and --connections must be positive; key, model and path together at most 256 characters\n");
        exit(2);
    }
    if (timed_by_requests == 1 || want.schedule) want.length = 3600 * SECOND;
}

/* --- what is due ------------------------------------------------------------------------------------------------------------ */

static connection *free_connection(void) {
    for (int i = 0; i < want.connections; i++)
        if (all[i].state == IDLE) return &all[i];
    for (int i = 0; i < want.connections; i++)
        if (all[i].state == CLOSED) return &all[i];
    return NULL;
}

/* Open loop: what is due is sent, on a connection that is free; if there is none it waits, and its latency counts from its time. */
static long long do_schedule(long long now) {
    while (next_scheduled < schedule_size && began + schedule[next_scheduled].at <= now) {
        connection *c = free_connection();
        if (!c) return now + SECOND / 1000;
        c->expected = schedule[next_scheduled].tokens;
        c->prompt_size = schedule[next_scheduled].size;
        c->due = began + schedule[next_scheduled++].at;
        if (c->state == CLOSED) dial(c);
        else if (ask(c)) lost(c);
    }
    return next_scheduled < schedule_size ? began + schedule[next_scheduled].at : now + SECOND;
}

static long long do_hangups(long long now) {
    if (!next_hangup) {
        int begun = 0;
        for (int i = 0; i < want.connections; i++) begun += all[i].last != 0;
        if (begun < want.connections) {
            char counts[64];
            if (now < began + PATIENCE) return now + SECOND / 50;
            failed(&all[0], "streams begun within 15 s", counts, (size_t)sprintf(counts, "%d of %d", begun, want.connections));
            return now;
        }
        next_hangup = now + SECOND / 4;
    }
    if (next_hangup <= now && hung_up < want.connections) {
        connection *c = &all[hung_up];
        if (c->state == WAITING) closed_at[hung_up] = now_ns();
        else failed(c, "no stream to hang up", "", 0);
        hang_up(c);
        hung_up++;
        next_hangup = now + (hung_up < want.connections ? want.hangup : SECOND / 2);
    }
    return next_hangup;
}

/* Do what is due; gives when something is due next. */
static long long do_due(long long now) {
    if (want.schedule) return do_schedule(now);
    while (dialled < want.connections && due_dial <= now) {
        dial(&all[dialled++]);
        due_dial = began + want.ramp / want.connections * dialled;
        if (want.ws && !want.ramp) break; /* a handshake costs the server: no burst that fills its backlog */
    }
    if (dialled < want.connections) return due_dial;
    if (want.hangup) return do_hangups(now);
    if (want.hold && held == want.connections && !announced) {
        announced = 1;
        printf("held\n");
        fflush(stdout);
    }
    return now + SECOND / 10;
}

static int finished(long long now) {
    if (stopping) return 1;
    if (want.hold) {
        struct pollfd input = {.fd = 0, .events = POLLIN};
        if (announced && held != want.connections) {
            failed(&all[0], "connections lost while held", "", 0);
            return 1;
        }
        return now > measure_to || poll(&input, 1, 0) > 0;
    }
    if (want.hangup) return hung_up == want.connections && next_hangup <= now;
    long long end = want.schedule ? began + schedule[schedule_size - 1].at : measure_to;
    if (now > end + PATIENCE + (want.schedule ? 2 * PATIENCE : 0)) {
        failed(&all[0], "unfinished at the end", "", 0);
        return 1;
    }
    if (want.schedule) return next_scheduled == schedule_size && !under_way && started == schedule_size;
    return dialled == want.connections && !may_start(now) && !under_way;
}

/* --- the result ------------------------------------------------------------------------------------------------------------- */

/* What the provider noted since it was last asked. */
static void read_aborts(buffer *body) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((unsigned short)want.provider)};
    http_answer http = {0};
    buffer answer = {0};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&to, sizeof to)) die("provider");
    if (write(fd, "GET /aborts HTTP/1.1\r\n\r\n", 24) != 24) die("provider");
    for (ssize_t n = 1; n > 0 && http.stage != COMPLETE;) {
        reserve(&answer, 65536);
        n = read(fd, answer.data + answer.end, 65536);
        if (n > 0) answer.end += (size_t)n;
        if (read_http(&http, &answer, body)) break;
    }
    close(fd);
    free(answer.data);
    reserve(body, 0);
    body->data[body->end] = 0;
}

/* Ask the provider until it has noticed every hang-up, or ten seconds have passed. */
static void ask_when_noticed(void) {
    memset(&got.whole, 0, sizeof got.whole);
    got.answers = 0;
    for (int tries = 0; tries < 100 && got.answers < want.connections; tries++) {
        buffer body = {0};
        if (tries) usleep(100000);
        read_aborts(&body);
        for (char *at = body.data; (at = strchr(at, '[')); at++) {
            int number;
            long long noticed_us;
            if (sscanf(at, "[%d,%lld", &number, &noticed_us) != 2 || number < 0 || number >= want.connections) continue;
            if (!closed_at[number] || noticed_us * 1000 + 1000 < closed_at[number]) continue;
            closed_at[number] = (histogram_add(&got.whole, noticed_us * 1000 - closed_at[number]), 0);
            got.answers++;
        }
        free(body.data);
    }
    char counts[64];
    int n = sprintf(counts, "%ld of %d", got.answers, want.connections);
    if (got.answers != want.connections) failed(&all[0], "the provider did not notice every hang-up within 10 s", counts, (size_t)n);
}

static void print_times(const char *name, const histogram *h) {
    printf(",\"%s_us\":{\"count\":%lu,\"p50\":%.1f,\"p90\":%.1f,\"p99\":%.1f,\"max\":%.1f}", name, (unsigned long)h->count,
           histogram_at(h, 0.5) / 1e3, histogram_at(h, 0.9) / 1e3, histogram_at(h, 0.99) / 1e3, (double)h->max / 1e3);
}

static void print_result(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) + 1e-6 * (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
    long long until = want.requests || want.schedule || want.hangup ? got.last_at : measure_to;
    double span = until > measure_from ? (double)(until - measure_from) / 1e9 : 0;
    printf("{\"seconds\":%.3f,\"started\":%ld,\"answers\":%ld,\"errors\":%ld,\"reconnects\":%ld,\"tokens\":%ld,\"token_frames\":%ld,"
           "\"bytes\":%ld,\"cpu_seconds\":%.3f,\"held\":%ld", span, started, got.answers, errors, reconnects, got.tokens,
           got.token_frames, got.bytes, cpu, held);
    printf(",\"answers_per_second\":%.1f,\"tokens_per_second\":%.1f", span > 0 ? (double)got.answers / span : 0,
           span > 0 ? (double)got.tokens / span : 0);
    print_times(want.hangup ? "noticed" : "whole", &got.whole);
    print_times("first", &got.first);
    print_times("gap", &got.gap);
    print_times("age", &got.age);
    printf("}\n");
}
