/* The load generator: thousands of WebSocket clients and some publishers in one thread, on epoll.
 *
 * It reads one command per line, and responds to each with one line of JSON:
 *
 *   dial PORT FILE COUNT IN_FLIGHT EXPECTED TIMEOUT_S LIVE   connect the next COUNT clients of FILE
 *   publish PORTS FILE COUNT PUBLISHERS MODE RATE TIMEOUT_S  send COUNT requests, cycling through FILE
 *   redial IN_FLIGHT EXPECTED TIMEOUT_S PORTS   wait until all clients were lost and are live again
 *   ack                             acknowledge on each client what it has received since the last time
 *   tls                             speak TLS from now on
 *   hangup                          close all clients
 *
 * Between two commands it keeps reading, so that it answers the servers' pings.
 *
 * PORTS are separated by commas; publishers and clients are distributed over them. With "-", redial
 * uses the port that a client was connected to.
 *
 * FILE of clients: records "REQUEST_BYTES HELLO_BYTES\n", the handshake, and the texts to send, each
 * after a text from the server, separated by U+001E; after an empty one, the next is sent when
 * the 101 arrives. A client is live when it receives a text that contains LIVE, or with "-" after
 * the 101.
 *
 * FILE of requests: records "REQUEST_BYTES FIRST_BYTES DELIVERIES\n" and the request, whose first
 * bytes are a write of their own (many HTTP clients write head and body separately). Each
 * id of 19 "@", with or without a suffix, is replaced by the time of sending (CLOCK_MONOTONIC in
 * ns), which identifies and times each delivery. Other places of 19 "@" repeat the last one.
 * Publisher P of N sends every Nth request, beginning with the Pth.
 *
 * MODE: "closed": a publisher sends its next request after the response. "cold": the same, each on a
 * new connection. "paced": after the response and all expected deliveries. "rate": RATE requests a
 * second, regardless of the server; the latency of a request that waited for a free publisher counts
 * from its scheduled time.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define MAX_CLIENTS 60000
#define MAX_PUBLISHERS 256
#define MAX_PORTS 16
#define BUFFER (1 << 20)
#define STAMP_DIGITS 19
#define CURSOR 65
#define BETWEEN "\x1e" /* the texts of a hello */
#define RETRY_NS 2000000ull
#define MARK "\"id\":"
#define PLACE "@@@@@@@@@@@@@@@@@@@"

enum { CLIENT, PUBLISHER, TIMER };
enum { CLOSED, CONNECTING, SECURING, SHAKING, GREETING, LIVE };

typedef struct {
    int fd;
    void *tls; /* NULL: plain TCP */
} Wire;

typedef struct {
    char *request, *hello, *said; /* said: the next text of hello */
    unsigned char *rest; /* of an incomplete frame */
    uint32_t length, rest_length;
    Wire wire;
    int state, port;
    char received[CURSOR]; /* the last cursor, until it is acknowledged */
} Client;

typedef struct {
    char *data;
    size_t length, first;
    long deliveries;
} Request;

typedef struct {
    Wire wire;
    int busy, port;
    long turns;
    size_t sent, length, first; /* of the request in flight */
    char *data;
    char answer[4096]; /* the start of the response */
    char tail[5];      /* and its end */
    size_t answered;   /* bytes received */
} Publisher;

static Client clients[MAX_CLIENTS];
static Publisher publishers[MAX_PUBLISHERS];
static Request *requests;
static long request_count;
static int client_count, publisher_count, poller, timer;
static char live_mark[64];

/* Counters since the last report. */
static long live, dialling, failed, lost, delivered, expected, answered, refused, started, wanted;
static uint64_t first_live, last_live, last_delivered, last_stamp;
static uint32_t *samples; /* us */
static size_t sample_count, sample_room;
static int redialling, acknowledges;
static uint64_t dial_after;

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static double cpu_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void watch(int fd, int kind, int index, uint32_t events, int how) {
    struct epoll_event event = {.events = events,
                                .data.u64 = (uint64_t)kind << 32 | (uint32_t)index};
    epoll_ctl(poller, how, fd, &event);
}

/* ---- TLS, by the system's OpenSSL without its headers ---- */

static struct {
    void *context;
    void *(*create)(void *);
    int (*set_fd)(void *, int);
    void (*connect)(void *);
    int (*read)(void *, void *, int);
    int (*write)(void *, const void *, int);
    int (*error)(const void *, int);
    void (*release)(void *);
} tls;

static void *symbol(void *library, const char *name) {
    void *found = dlsym(library, name);
    if (!found) exit(4);
    return found;
}

/* The certificate is not verified: it is the benchmark's own, and on loopback. */
static void enable_tls(void) {
    void *library = dlopen("libssl.so.3", RTLD_NOW);
    if (!library) {
        fprintf(stderr, "load: %s\n", dlerror());
        exit(4);
    }
    void *(*method)(void) = symbol(library, "TLS_client_method");
    void *(*create_context)(void *) = symbol(library, "SSL_CTX_new");
    tls.create = symbol(library, "SSL_new");
    tls.set_fd = symbol(library, "SSL_set_fd");
    tls.connect = symbol(library, "SSL_set_connect_state");
    tls.read = symbol(library, "SSL_read");
    tls.write = symbol(library, "SSL_write");
    tls.error = symbol(library, "SSL_get_error");
    tls.release = symbol(library, "SSL_free");
    tls.context = create_context(method());
}

/* Return what recv and send would; the first write does the handshake. */
static ssize_t of_tls(Wire *wire, int done) {
    enum { WANT_READ = 2, WANT_WRITE = 3, ZERO_RETURN = 6 };
    if (done > 0) return done;
    int error = tls.error(wire->tls, done);
    if (error == ZERO_RETURN) return 0;
    errno = error == WANT_READ || error == WANT_WRITE ? EAGAIN : ECONNRESET;
    return -1;
}

static ssize_t put(Wire *wire, const void *data, size_t length) {
    if (!wire->tls) return send(wire->fd, data, length, MSG_NOSIGNAL);
    return of_tls(wire, tls.write(wire->tls, data, (int)length));
}

static ssize_t get(Wire *wire, void *data, size_t length) {
    if (!wire->tls) return recv(wire->fd, data, length, 0);
    ssize_t got, all = 0; /* a record a call: read all that OpenSSL has taken from the socket */
    while ((got = of_tls(wire, tls.read(wire->tls, (char *)data + all, (int)(length - (size_t)all)))) > 0)
        all += got;
    return all ? all : got;
}

static void hang_up(Wire *wire) {
    if (wire->tls) tls.release(wire->tls);
    close(wire->fd);
    *wire = (Wire){-1, NULL};
}

static int dial(Wire *wire, int to) {
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    *wire = (Wire){-1, NULL};
    if (fd < 0) return -1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)to),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (connect(fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) {
        close(fd);
        return -1;
    }
    wire->fd = fd;
    if (tls.context) {
        wire->tls = tls.create(tls.context);
        tls.set_fd(wire->tls, fd);
        tls.connect(wire->tls);
    }
    return 0;
}

/* ---- clients ---- */

static void drop(Client *client) {
    if (client->state == CLOSED) return;
    if (client->state == LIVE) live--, lost++;
    else dialling--, failed++;
    hang_up(&client->wire);
    free(client->rest);
    client->rest = NULL;
    client->rest_length = 0;
    client->state = CLOSED;
}

static void begin(int index) {
    Client *client = &clients[index];
    client->said = client->hello;
    if (dial(&client->wire, client->port)) {
        failed++;
        if (redialling) dial_after = now_ns() + RETRY_NS;
        return;
    }
    client->state = CONNECTING;
    dialling++;
    watch(client->wire.fd, CLIENT, index, EPOLLOUT | EPOLLIN, EPOLL_CTL_ADD);
}

/* RFC 6455, section 5.3, with a mask of zeros, which is valid. */
static void send_text(Client *client, int opcode, const char *text, size_t length) {
    char frame[4096 + 8] = {(char)(0x80 | opcode)};
    size_t head = 2;
    if (length > 4096) return;
    frame[1] = (char)(0x80 | (length < 126 ? length : 126));
    if (length >= 126) {
        frame[2] = (char)(length >> 8);
        frame[3] = (char)length;
        head = 4;
    }
    head += 4;
    memcpy(frame + head, text, length);
    if (put(&client->wire, frame, head + length) < 0 && errno != EAGAIN) drop(client);
}

static void become_live(Client *client) {
    client->state = LIVE;
    dialling--;
    live++;
    last_live = now_ns();
    if (!first_live) first_live = last_live;
}

static void count(const char *stamp, const char *end, uint64_t now) {
    uint64_t sent = 0;
    delivered++;
    last_delivered = now;
    for (; stamp < end && *stamp >= '0' && *stamp <= '9'; stamp++)
        sent = sent * 10 + (uint64_t)(*stamp - '0');
    if (sample_count == sample_room) {
        sample_room = sample_room ? sample_room * 2 : 65536;
        samples = realloc(samples, sample_room * sizeof *samples);
    }
    samples[sample_count++] = now > sent ? (uint32_t)((now - sent) / 1000) : 0;
}

/* Return where the next id begins: its key may be followed by a space. */
static const char *next_id(const char *at, const char *end) {
    while ((at = memmem(at, (size_t)(end - at), MARK, sizeof MARK - 1))) {
        at += sizeof MARK - 1;
        if (at < end && *at == ' ') at++;
        if (at < end && *at == '"') return at + 1;
    }
    return NULL;
}

static void say_next(Client *client) {
    size_t size = strcspn(client->said, BETWEEN);
    const char *next = client->said;
    client->said += size + (next[size] == *BETWEEN);
    send_text(client, 1, next, size);
}

static void keep_cursor(Client *client, const char *text, const char *end) {
    const char mark[] = "\"cursor\":\"";
    for (; (text = memmem(text, (size_t)(end - text), mark, sizeof mark - 1)); ) {
        text += sizeof mark - 1;
        size_t size = strcspn(text, "\"");
        if (size >= CURSOR) continue;
        memcpy(client->received, text, size);
        client->received[size] = 0;
    }
}

static void acknowledge(Client *client) {
    char text[CURSOR + 40];
    int size = snprintf(text, sizeof text, "{\"action\":\"ack\",\"cursor\":\"%s\"}", client->received);
    client->received[0] = 0;
    send_text(client, 1, text, (size_t)size);
}

/* A text may hold several notifications, also beside the confirmation of the subscription. */
static void on_text(Client *client, const char *text, size_t length, uint64_t now) {
    const char *at = text, *end = text + length;
    if (client->state == GREETING && memmem(text, length, live_mark, strlen(live_mark)))
        become_live(client);
    while ((at = next_id(at, end))) {
        count(at, end, now);
        if (acknowledges) keep_cursor(client, at, end);
    }
    if (client->state == GREETING && *client->said)
        say_next(client);
    else if (length == 1 && *text == '2')
        send_text(client, 1, "3", 1); /* engine.io's ping */
    else if (length == 2 && !memcmp(text, "{}", 2))
        send_text(client, 1, text, 2); /* Centrifugo's */
}

/* Process the complete frames; return their size. */
static size_t take_frames(Client *client, unsigned char *data, size_t length, uint64_t now) {
    size_t at = 0;
    while (length - at >= 2 && client->state != CLOSED) {
        size_t head = 2, size = data[at + 1] & 127;
        if (size == 126) head = 4;
        if (size == 127) head = 10;
        if (length - at < head) break;
        if (head > 2) {
            size = 0;
            for (size_t i = 2; i < head; i++) size = size << 8 | data[at + i];
        }
        if (length - at < head + size) break;
        char *text = (char *)data + at + head;
        int opcode = data[at] & 15;
        if (opcode == 1) on_text(client, text, size, now);
        if (opcode == 9) send_text(client, 10, text, size);
        if (opcode == 8) {
            drop(client);
            return length;
        }
        at += head + size;
    }
    return at;
}

static void on_client(int index, uint32_t events) {
    static unsigned char buffer[BUFFER];
    Client *client = &clients[index];
    if (client->state == CLOSED) return;
    if (client->state == CONNECTING) {
        if (events & (EPOLLERR | EPOLLHUP)) {
            if (redialling) dial_after = now_ns() + RETRY_NS;
            drop(client);
            return;
        }
        client->state = SECURING;
        watch(client->wire.fd, CLIENT, index, EPOLLIN, EPOLL_CTL_MOD);
    }
    if (client->state == SECURING) {
        if (put(&client->wire, client->request, client->length) >= 0) client->state = SHAKING;
        else if (errno != EAGAIN) drop(client);
        return;
    }
    size_t length = client->rest_length;
    if (length) memcpy(buffer, client->rest, length);
    ssize_t got = get(&client->wire, buffer + length, BUFFER - length);
    if (got <= 0) {
        if (got == 0 || errno != EAGAIN) drop(client);
        return;
    }
    length += (size_t)got;
    size_t at = 0;
    if (client->state == SHAKING) {
        char *end = memmem(buffer, length, "\r\n\r\n", 4);
        if (end) {
            if (memcmp(buffer, "HTTP/1.1 101", 12)) {
                if (!refused++) fprintf(stderr, "load: a handshake was rejected: %.200s\n", buffer);
                drop(client);
                return;
            }
            at = (size_t)(end + 4 - (char *)buffer);
            client->state = GREETING;
            if (!strcmp(live_mark, "-")) become_live(client);
            if (*client->said == *BETWEEN) {
                client->said++;
                say_next(client);
            }
        }
    }
    if (client->state >= GREETING) at += take_frames(client, buffer + at, length - at, now_ns());
    if (client->state == CLOSED) return;
    size_t left = length - at;
    if (left) {
        if (left > client->rest_length || !client->rest) client->rest = realloc(client->rest, left);
        memcpy(client->rest, buffer + at, left);
    } else {
        free(client->rest);
        client->rest = NULL;
    }
    client->rest_length = (uint32_t)left;
}

/* ---- publishers ---- */

static void push(int index) {
    Publisher *publisher = &publishers[index];
    while (publisher->sent < publisher->length) {
        size_t end = publisher->sent < publisher->first ? publisher->first : publisher->length;
        ssize_t sent = put(&publisher->wire, publisher->data + publisher->sent, end - publisher->sent);
        if (sent < 0) {
            if (errno == EAGAIN && !publisher->wire.tls)
                watch(publisher->wire.fd, PUBLISHER, index, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
            return;
        }
        publisher->sent += (size_t)sent;
    }
}

/* Each stamp is unique, because it is the notification's id. */
static void start(int index, uint64_t due) {
    Publisher *publisher = &publishers[index];
    long number = index + (long)publisher_count * publisher->turns++;
    Request *request = &requests[number % request_count];
    started++;
    publisher->data = realloc(publisher->data, request->length + 1);
    memcpy(publisher->data, request->data, request->length);
    char *at = publisher->data, *end = at + request->length;
    const char *id = next_id(at, end);
    uint64_t stamp = due ? due : now_ns();
    char digits[STAMP_DIGITS + 1] = PLACE;
    while ((at = memmem(at, (size_t)(end - at), PLACE, STAMP_DIGITS))) {
        while (id && id < at) id = next_id(id, end);
        if (at == id) {
            if (stamp <= last_stamp) stamp = last_stamp + 1;
            last_stamp = stamp;
            snprintf(digits, sizeof digits, "%019llu", (unsigned long long)stamp);
        }
        memcpy(at, digits, STAMP_DIGITS);
        at += STAMP_DIGITS;
    }
    publisher->length = request->length;
    publisher->first = request->first;
    publisher->sent = publisher->answered = 0;
    publisher->answer[0] = 0;
    publisher->busy = 1;
    expected += request->deliveries;
    push(index);
}

/* Whether the response is complete. */
static int is_answered(Publisher *publisher) {
    char *end = strstr(publisher->answer, "\r\n\r\n");
    if (!end) return 0;
    size_t head = (size_t)(end - publisher->answer) + 4;
    *end = 0;
    char *length = strcasestr(publisher->answer, "\r\ncontent-length:");
    int chunked = strcasestr(publisher->answer, "\r\ntransfer-encoding: chunked") != NULL;
    size_t body = length ? strtoul(length + 17, NULL, 10) : 0;
    *end = '\r';
    return chunked ? !memcmp(publisher->tail, "0\r\n\r\n", 5) : publisher->answered >= head + body;
}

static void keep(Publisher *publisher, const char *data, size_t length) {
    size_t room = sizeof publisher->answer - 1;
    if (publisher->answered < room) {
        size_t part = room - publisher->answered < length ? room - publisher->answered : length;
        memcpy(publisher->answer + publisher->answered, data, part);
        publisher->answer[publisher->answered + part] = 0;
    }
    size_t last = length < 5 ? length : 5;
    memmove(publisher->tail, publisher->tail + last, 5 - last);
    memcpy(publisher->tail + 5 - last, data + length - last, last);
    publisher->answered += length;
}

static void on_publisher(int index, uint32_t events) {
    static char data[BUFFER];
    Publisher *publisher = &publishers[index];
    if (publisher->wire.fd < 0) return;
    if (events & EPOLLOUT) watch(publisher->wire.fd, PUBLISHER, index, EPOLLIN, EPOLL_CTL_MOD);
    if (publisher->busy) push(index);
    if (!(events & ~(uint32_t)EPOLLOUT)) return;
    ssize_t got = get(&publisher->wire, data, sizeof data);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        fprintf(stderr, "load: a publisher was cut off: %s\n", got ? strerror(errno) : "closed");
        if (publisher->busy) refused++, answered++;
        publisher->busy = 0;
        hang_up(&publisher->wire);
        return;
    }
    if (!publisher->busy) return;
    keep(publisher, data, (size_t)got);
    if (!is_answered(publisher)) return;
    publisher->busy = 0;
    answered++;
    if (memcmp(publisher->answer, "HTTP/1.1 2", 10) ||
        strstr(publisher->answer, "\"success\":false") || strstr(publisher->answer, "\"duplicate\":true") ||
        strstr(publisher->answer, "\"error\":{")) /* Centrifugo's */
        if (!refused++) fprintf(stderr, "load: a publish was rejected: %.300s\n", publisher->answer);
}

/* ---- the loop ---- */

static void turn(int timeout_ms) {
    struct epoll_event events[512];
    int ready = epoll_wait(poller, events, 512, timeout_ms);
    for (int i = 0; i < ready; i++) {
        int index = (int)(uint32_t)events[i].data.u64;
        uint64_t ignored;
        switch (events[i].data.u64 >> 32) {
        case CLIENT: on_client(index, events[i].events); break;
        case PUBLISHER: on_publisher(index, events[i].events); break;
        default: if (read(timer, &ignored, sizeof ignored) < 0) break;
        }
    }
}

static void reset(void) {
    failed = lost = delivered = expected = answered = refused = started = 0;
    first_live = last_live = last_delivered = 0;
    sample_count = 0;
}

static int by_size(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void report(double wall, double cpu) {
    qsort(samples, sample_count, sizeof *samples, by_size);
    size_t last = sample_count ? sample_count - 1 : 0;
    printf("{\"live\":%ld,\"failed\":%ld,\"lost\":%ld,\"delivered\":%ld,\"expected\":%ld,"
           "\"answered\":%ld,\"refused\":%ld,\"wall_s\":%.6f,\"cpu_s\":%.6f,"
           "\"first_live_ns\":%llu,\"last_live_ns\":%llu,\"last_delivered_ns\":%llu,"
           "\"p50_us\":%u,\"p99_us\":%u,\"max_us\":%u}\n",
           live, failed, lost, delivered, expected, answered, refused, wall, cpu,
           (unsigned long long)first_live, (unsigned long long)last_live,
           (unsigned long long)last_delivered, sample_count ? samples[last / 2] : 0,
           sample_count ? samples[(size_t)((double)last * 0.99)] : 0,
           sample_count ? samples[last] : 0);
    fflush(stdout);
    reset();
}

/* Two numbers, a line break, the bytes of the first number (and, of clients, of the second). */
static char *read_bytes(FILE *file, size_t length) {
    char *data = malloc(length + 1);
    if (fread(data, 1, length, file) != length) exit(3);
    data[length] = 0;
    return data;
}

static int read_ports(char *list, int *ports) {
    int count = 0;
    for (char *each = strtok(list, ","); each && count < MAX_PORTS; each = strtok(NULL, ","))
        ports[count++] = atoi(each);
    return count;
}

static int load_clients(const char *path, long number, int port) {
    FILE *file = fopen(path, "r");
    size_t length, hello;
    int first = client_count;
    if (!file) return -1;
    while (number-- && client_count < MAX_CLIENTS && fscanf(file, "%zu %zu", &length, &hello) == 2) {
        fgetc(file);
        Client *client = &clients[client_count++];
        client->port = port;
        client->length = (uint32_t)length;
        client->request = read_bytes(file, length);
        client->hello = read_bytes(file, hello);
    }
    fclose(file);
    return first;
}

static int load_requests(const char *path) {
    FILE *file = fopen(path, "r");
    size_t length;
    size_t first;
    long deliveries, room = 0;
    if (!file) return -1;
    for (long i = 0; i < request_count; i++) free(requests[i].data);
    request_count = 0;
    while (fscanf(file, "%zu %zu %ld", &length, &first, &deliveries) == 3) {
        fgetc(file);
        if (request_count == room) {
            room = room ? room * 2 : 1024;
            requests = realloc(requests, (size_t)room * sizeof *requests);
        }
        requests[request_count++] = (Request){read_bytes(file, length), length, first, deliveries};
    }
    fclose(file);
    return request_count ? 0 : -1;
}

static void run_dial(int port, const char *path, long number, long in_flight, long replay, double timeout_s) {
    expected = replay;
    int next = load_clients(path, number, port), end = client_count;
    long before = live;
    uint64_t begun = now_ns(), limit = begun + (uint64_t)(timeout_s * 1e9);
    double cpu = cpu_s();
    if (next < 0) exit(3);
    wanted = before + end - next;
    while (now_ns() < limit && (next < end || dialling || delivered < expected)) {
        while (next < end && dialling < in_flight) begin(next++);
        if (next == end && !dialling && failed) break;
        turn(100);
    }
    report((double)(now_ns() - begun) / 1e9, cpu_s() - cpu);
}

static void run_redial(long in_flight, long replay, double timeout_s, char *list) {
    int ports[MAX_PORTS], port_count = strcmp(list, "-") ? read_ports(list, ports) : 0;
    expected = replay;
    for (int i = 0; port_count && i < client_count; i++) clients[i].port = ports[i % port_count];
    uint64_t limit = now_ns() + (uint64_t)(timeout_s * 1e9), begun = now_ns();
    double cpu = cpu_s();
    int next = 0;
    redialling = 1;
    dial_after = 0;
    while (now_ns() < limit &&
           !(lost >= client_count && live == client_count && delivered >= expected)) {
        uint64_t now = now_ns();
        /* Until the first handshake succeeds, only one client tries at a time. */
        long most = first_live ? in_flight : 1;
        for (int tried = 0; lost && now >= dial_after && dialling < most && tried < client_count; tried++) {
            if (clients[next].state == CLOSED) begin(next);
            next = (next + 1) % client_count;
        }
        turn(2);
    }
    redialling = 0;
    report((double)(now_ns() - begun) / 1e9, cpu_s() - cpu);
}

static void open_publisher(int index) {
    Publisher *publisher = &publishers[index];
    if (!dial(&publisher->wire, publisher->port))
        watch(publisher->wire.fd, PUBLISHER, index, EPOLLIN | EPOLLOUT, EPOLL_CTL_ADD);
}

static void run_publish(char *list, const char *path, long number, const char *mode, double rate,
                        double timeout_s) {
    int ports[MAX_PORTS], port_count = read_ports(list, ports);
    if (load_requests(path) || !port_count) exit(3);
    int paced = !strcmp(mode, "paced"), at_rate = !strcmp(mode, "rate"), cold = !strcmp(mode, "cold");
    for (int i = 0; i < publisher_count; i++) {
        publishers[i] = (Publisher){.wire = {-1, NULL}, .port = ports[i % port_count]};
        if (!cold) open_publisher(i);
    }
    if (!cold) usleep(1000); /* loopback connects meanwhile */
    uint64_t begun = now_ns(), limit = begun + (uint64_t)(timeout_s * 1e9);
    double cpu = cpu_s();
    uint64_t gap = at_rate ? (uint64_t)(1e9 / rate) : 0, due = begun;
    int was_busy = 0;
    while (now_ns() < limit && (answered < number || delivered < expected)) {
        int open = 0;
        for (int i = 0; i < publisher_count && started < number; i++) {
            Publisher *publisher = &publishers[i];
            if (publisher->busy) {
                open = 1;
                continue;
            }
            if (cold) {
                if (publisher->wire.fd >= 0) hang_up(&publisher->wire);
                open_publisher(i);
            }
            if (publisher->wire.fd < 0) continue;
            open = 1;
            if (at_rate) {
                if (now_ns() < due) {
                    was_busy = 0;
                    break;
                }
                start(i, was_busy ? due : 0);
                due += gap;
            } else if (!paced || delivered >= expected) {
                start(i, 0);
            }
        }
        if (!open && started < number) break;
        if (at_rate && started < number) {
            uint64_t now = now_ns();
            was_busy = now >= due;
            if (!was_busy) {
                struct itimerspec at = {.it_value = {(time_t)(due / 1000000000ull),
                                                     (long)(due % 1000000000ull)}};
                timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
            }
        }
        turn(100);
    }
    double wall = (double)(now_ns() - begun) / 1e9, used = cpu_s() - cpu;
    /* Count late deliveries, because one too many is an error, too. */
    for (uint64_t until = now_ns() + 20000000ull; now_ns() < until;) turn(5);
    for (int i = 0; i < publisher_count; i++) {
        if (publishers[i].wire.fd >= 0) hang_up(&publishers[i].wire);
        free(publishers[i].data);
    }
    report(wall, used);
}

int main(void) {
    char line[4096], path[2048], mode[16];
    long number, in_flight, replay;
    int port;
    char ports[128];
    double rate, timeout_s;
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGPIPE, SIG_IGN);
    poller = epoll_create1(0);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    watch(timer, TIMER, 0, EPOLLIN, EPOLL_CTL_ADD);
    setvbuf(stdin, NULL, _IONBF, 0);
    for (;;) {
        struct pollfd ready[] = {{0, POLLIN, 0}, {poller, POLLIN, 0}};
        if (poll(ready, 2, -1) < 0) continue;
        if (ready[1].revents) turn(0);
        if (!ready[0].revents) continue;
        if (!fgets(line, sizeof line, stdin)) break;
        if (sscanf(line, "dial %d %2047s %ld %ld %ld %lf %63[^\n]", &port, path, &number, &in_flight,
                   &replay, &timeout_s, live_mark) == 7) {
            run_dial(port, path, number, in_flight, replay, timeout_s);
        } else if (sscanf(line, "publish %127s %2047s %ld %d %15s %lf %lf", ports, path, &number,
                          &publisher_count, mode, &rate, &timeout_s) == 7 &&
                   publisher_count <= MAX_PUBLISHERS) {
            run_publish(ports, path, number, mode, rate, timeout_s);
        } else if (sscanf(line, "redial %ld %ld %lf %127s", &in_flight, &replay, &timeout_s, ports) == 4) {
            run_redial(in_flight, replay, timeout_s, ports);
        } else if (!strcmp(line, "ack\n")) {
            acknowledges = 1;
            for (int i = 0; i < client_count; i++)
                if (clients[i].state == LIVE && *clients[i].received) acknowledge(&clients[i]);
            report(0, 0);
        } else if (!strcmp(line, "tls\n")) {
            enable_tls();
            report(0, 0);
        } else if (!strncmp(line, "hangup", 6)) {
            for (int i = 0; i < client_count; i++) {
                drop(&clients[i]);
                free(clients[i].request);
                free(clients[i].hello);
                memset(&clients[i], 0, sizeof clients[i]);
            }
            client_count = 0;
            report(0, 0);
        } else {
            fprintf(stderr, "load: not understood: %s", line);
            return 2;
        }
    }
    return 0;
}
