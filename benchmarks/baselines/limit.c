/* The lower bound: rooms of WebSockets on epoll, and send(2) in a loop for each notification.
 *
 *   limit PORT
 *
 * It implements just enough of HTTP and RFC 6455 for the load generator: handshakes, POST
 * /rooms/{room}/broadcast, which forwards the body, and POST /broadcast as the SDK sends it. It
 * validates nothing and ignores the clients' frames.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
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
#include <unistd.h>

#define BUCKETS 65536
#define MAX_HEAD 8192
#define MAX_BODY (1 << 20)

typedef struct Room {
    struct Room *next;
    int *members, count, room_for;
    char name[];
} Room;

typedef struct {
    char *data; /* of an incomplete request */
    size_t length, room_for;
    Room *room; /* of a WebSocket */
    int place;
} Connection;

static Room *rooms[BUCKETS];
static Connection *connections; /* by descriptor */
static int poller;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static Room *room_of(const char *name, size_t length) {
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < length; i++) hash = (hash ^ (unsigned char)name[i]) * 16777619u;
    Room **at = &rooms[hash % BUCKETS];
    for (; *at; at = &(*at)->next)
        if (strlen((*at)->name) == length && !memcmp((*at)->name, name, length)) return *at;
    *at = calloc(1, sizeof(Room) + length + 1);
    memcpy((*at)->name, name, length);
    return *at;
}

static void leave(int fd) {
    Connection *connection = &connections[fd];
    if (connection->room) {
        Room *room = connection->room;
        int last = room->members[--room->count];
        room->members[connection->place] = last;
        connections[last].place = connection->place;
        if (!room->count) free(room->members), room->members = NULL, room->room_for = 0;
    }
    free(connection->data);
    memset(connection, 0, sizeof *connection);
    close(fd);
}

/* Block on a slow reader: there is no queue. */
static void send_all(int fd, const char *data, size_t length) {
    while (length) {
        ssize_t sent = send(fd, data, length, MSG_NOSIGNAL);
        if (sent >= 0) {
            data += sent;
            length -= (size_t)sent;
        } else if (errno == EAGAIN) {
            struct pollfd wait = {fd, POLLOUT, 0};
            poll(&wait, 1, 1000);
        } else if (errno != EINTR) {
            return; /* disconnected; epoll reports that, too */
        }
    }
}

/* RFC 6455, section 5.2: one unmasked text frame, encoded once for the room. */
static int deliver(Room *room, const char *text, size_t length) {
    static char frame[MAX_BODY + 16];
    size_t head = 2;
    frame[0] = (char)0x81;
    if (length < 126) {
        frame[1] = (char)length;
    } else if (length < 65536) {
        frame[1] = 126;
        frame[2] = (char)(length >> 8);
        frame[3] = (char)length;
        head = 4;
    } else {
        frame[1] = 127;
        for (int i = 0; i < 8; i++) frame[2 + i] = (char)((uint64_t)length >> (56 - 8 * i));
        head = 10;
    }
    memcpy(frame + head, text, length);
    for (int i = 0; i < room->count; i++) send_all(room->members[i], frame, head + length);
    return room->count;
}

/* Each of {"notifications":[{…,"rooms":["…",…]},…]}: its end is found by counting braces. */
static void deliver_batch(const char *body, const char *end) {
    static const char mark[] = ",\"rooms\":[";
    static char text[MAX_BODY];
    body = memchr(body, '[', (size_t)(end - body));
    while (body && (body = memchr(body, '{', (size_t)(end - body)))) {
        const char *at = body + 1, *rooms = NULL, *rest;
        int depth = 1, in_string = 0;
        for (; at < end && depth; at++) {
            if (in_string) {
                if (*at == '\\') at++;
                else if (*at == '"') in_string = 0;
            } else if (*at == '"') in_string = 1;
            else if (*at == '{') depth++;
            else if (*at == '}') depth--;
            else if (*at == ',' && depth == 1 && end - at > 10 && !memcmp(at, mark, sizeof mark - 1)) rooms = at;
        }
        if (!rooms || !(rest = memchr(rooms, ']', (size_t)(at - rooms)))) return;
        size_t before = (size_t)(rooms - body), after = (size_t)(at - rest - 1);
        memcpy(text, body, before);
        memcpy(text + before, rest + 1, after);
        for (const char *name = rooms + sizeof mark; name < rest;) {
            size_t length = (size_t)((const char *)memchr(name, '"', (size_t)(end - name)) - name);
            deliver(room_of(name, length), text, before + after);
            name += length + 3; /* after "," and the quotes */
        }
        body = at;
    }
}

static uint32_t roll(uint32_t x, int by) { return x << by | x >> (32 - by); }

/* SHA-1 (FIPS 180-4) of less than 120 bytes. */
static void sha1(const char *text, size_t length, unsigned char out[20]) {
    unsigned char blocks[128] = {0};
    uint32_t h[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};
    size_t count = length + 9 > 64 ? 2 : 1;
    memcpy(blocks, text, length);
    blocks[length] = 0x80;
    for (int i = 0; i < 4; i++)
        blocks[count * 64 - 1 - (size_t)i] = (unsigned char)((length * 8) >> (8 * i));
    for (size_t b = 0; b < count; b++) {
        uint32_t w[80], a = h[0], B = h[1], c = h[2], d = h[3], e = h[4];
        for (int i = 0; i < 16; i++) {
            unsigned char *p = blocks + b * 64 + i * 4;
            w[i] = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
        }
        for (int i = 16; i < 80; i++) w[i] = roll(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
        for (int i = 0; i < 80; i++) {
            uint32_t f = i < 20   ? (B & c) | (~B & d)
                         : i < 40 ? B ^ c ^ d
                         : i < 60 ? (B & c) | (B & d) | (c & d)
                                  : B ^ c ^ d;
            static const uint32_t k[4] = {0x5a827999, 0x6ed9eba1, 0x8f1bbcdc, 0xca62c1d6};
            uint32_t next = roll(a, 5) + f + e + k[i / 20] + w[i];
            e = d, d = c, c = roll(B, 30), B = a, a = next;
        }
        h[0] += a, h[1] += B, h[2] += c, h[3] += d, h[4] += e;
    }
    for (int i = 0; i < 20; i++) out[i] = (unsigned char)(h[i / 4] >> (24 - 8 * (i % 4)));
}

/* RFC 6455, section 4.2.2. */
static void accept_websocket(int fd, const char *key, size_t length) {
    static const char set[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char joined[100], code[29] = {0}, answer[256];
    unsigned char hash[21] = {0};
    if (length > 40) length = 40;
    memcpy(joined, key, length);
    memcpy(joined + length, "258EAFA5-E914-47DA-95CA-C5AB0DC85B11", 36);
    sha1(joined, length + 36, hash);
    for (int i = 0; i < 7; i++) {
        uint32_t three = (uint32_t)hash[i * 3] << 16 | (uint32_t)hash[i * 3 + 1] << 8 | hash[i * 3 + 2];
        for (int j = 0; j < 4; j++) code[i * 4 + j] = set[three >> (18 - 6 * j) & 63];
    }
    code[27] = '=';
    int size = snprintf(answer, sizeof answer,
                        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                        "Connection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n", code);
    send_all(fd, answer, (size_t)size);
}

static void join(int fd, Room *room) {
    if (room->count == room->room_for) {
        room->room_for = room->room_for ? room->room_for * 2 : 1;
        room->members = realloc(room->members, sizeof(int) * (size_t)room->room_for);
    }
    connections[fd].room = room;
    connections[fd].place = room->count;
    room->members[room->count++] = fd;
}

static void answer_json(int fd, const char *json) {
    char answer[256];
    int size = snprintf(answer, sizeof answer,
                        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                        "Content-Length: %zu\r\n\r\n%s", strlen(json), json);
    send_all(fd, answer, (size_t)size);
}

/* Process one request; return its length, or 0 if it is incomplete. */
static size_t take_request(int fd, char *data, size_t length) {
    char *end = memmem(data, length, "\r\n\r\n", 4);
    if (!end) return 0;
    size_t head = (size_t)(end - data) + 4, body = 0;
    end[2] = 0;
    char *header = strcasestr(data, "\r\ncontent-length:");
    if (header) body = strtoul(header + 17, NULL, 10);
    if (length < head + body) {
        end[2] = '\r';
        return 0;
    }
    char *path = strchr(data, ' '), *stop = path ? strchr(path + 1, ' ') : NULL;
    if (!stop) return head + body;
    path++;
    if (!strncmp(path, "/rooms/", 7)) {
        char *name = path + 7, *slash = memchr(name, '/', (size_t)(stop - name));
        Room *room = slash ? room_of(name, (size_t)(slash - name)) : NULL;
        char *key = strcasestr(data, "\r\nsec-websocket-key:");
        if (room && key && !strncmp(slash, "/subscribe", 10)) {
            key += 20;
            while (*key == ' ') key++;
            accept_websocket(fd, key, strcspn(key, "\r"));
            join(fd, room);
        } else if (room && !strncmp(slash, "/broadcast", 10)) {
            char json[64];
            snprintf(json, sizeof json, "{\"success\":true,\"broadcastCount\":%d}",
                     deliver(room, data + head, body));
            answer_json(fd, json);
        }
    } else if (!strncmp(path, "/broadcast", 10)) {
        deliver_batch(data + head, data + head + body);
        answer_json(fd, "{\"success\":true}");
    } else {
        answer_json(fd, "{\"status\":\"ok\"}");
    }
    return head + body;
}

static void serve(int fd) {
    static char buffer[MAX_BODY + MAX_HEAD];
    Connection *connection = &connections[fd];
    size_t length = connection->length;
    if (length) memcpy(buffer, connection->data, length);
    ssize_t got = recv(fd, buffer + length, sizeof buffer - 1 - length, 0);
    if (got <= 0) {
        if (got == 0 || (errno != EAGAIN && errno != EINTR)) leave(fd);
        return;
    }
    if (connection->room) return; /* ignore a client's frame */
    length += (size_t)got;
    char *at = buffer;
    size_t taken;
    buffer[length] = 0;
    while (length && (taken = take_request(fd, at, length))) {
        at += taken;
        length -= taken;
    }
    if (length > connection->room_for) {
        connection->room_for = length;
        connection->data = realloc(connection->data, length);
    }
    if (length) {
        memcpy(connection->data, at, length);
    } else if (connection->data) {
        free(connection->data);
        connection->data = NULL;
        connection->room_for = 0;
    }
    connection->length = length;
}

int main(int count, char **arguments) {
    if (count != 2) return 2;
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    connections = calloc(files.rlim_max, sizeof *connections);
    int on = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)atoi(arguments[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(listener, (struct sockaddr *)&address, sizeof address)) die("bind");
    if (listen(listener, 4096)) die("listen");
    poller = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[256];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int ready = epoll_wait(poller, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd != listener) {
                serve(fd);
                continue;
            }
            for (int n = 0; n < 64; n++) {
                fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
                if (fd < 0) break;
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                event.data.fd = fd;
                epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
            }
        }
    }
}
