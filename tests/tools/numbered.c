/* Numbered datagrams: finds every gap and every duplicate.
 *
 *   numbered receive ADDR PORT           prints `ready`, and after SIGTERM
 *                                        `received R highest H gaps G duplicates D reordered E flows F overflow O per_second P`
 *   numbered send ADDR PORT RATE SECONDS [FLOWS]
 *                                        evenly (RATE 0: as fast as it goes), until its time is over or
 *                                        SIGTERM, from so many ports in turn; prints `sent N per_second P`
 *
 * reordered counts those that came after a later one of their flow, which is their source port.
 * overflow is what the receiving socket itself dropped (SO_RXQ_OVFL): loss after delivery.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#ifndef SIZE
#define SIZE 1200          /* bytes a datagram */
#endif
#define MOST (1u << 27)    /* numbers that the bitmap holds */
#define MOST_FLOWS 1024

static volatile sig_atomic_t stop;
static void on_signal(int number) { (void)number; stop = 1; }

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static int open_socket(const char *addr, const char *port, int receive) {
    struct addrinfo hints = {.ai_socktype = SOCK_DGRAM, .ai_flags = AI_NUMERICHOST}, *found;
    if (getaddrinfo(addr, port, &hints, &found)) { fprintf(stderr, "bad address %s\n", addr); exit(2); }
    int s = socket(found->ai_family, SOCK_DGRAM, 0);
    int failed = receive ? bind(s, found->ai_addr, found->ai_addrlen) : connect(s, found->ai_addr, found->ai_addrlen);
    if (s < 0 || failed) { perror(addr); exit(1); }
    freeaddrinfo(found);
    return s;
}

static int receive(int s) {
    int bytes = 64 << 20, on = 1;
    if (setsockopt(s, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes))
        setsockopt(s, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
    setsockopt(s, SOL_SOCKET, SO_RXQ_OVFL, &on, sizeof on);
    struct timeval patience = {0, 50000};
    setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    uint8_t *seen = calloc(MOST / 8, 1);
    uint64_t *next = calloc(1 << 16, sizeof *next); /* by source port: one more than the highest number */
    uint64_t received = 0, duplicates = 0, highest = 0, reordered = 0, flows = 0;
    uint32_t overflow = 0;
    double first = 0, last = 0;
    puts("ready");
    fflush(stdout);
    for (;;) {
        char data[2048], control[64];
        struct iovec part = {data, sizeof data};
        struct sockaddr_in6 from; /* IPv4 has its port in the same place */
        struct msghdr m = {.msg_name = &from, .msg_namelen = sizeof from, .msg_iov = &part, .msg_iovlen = 1,
                           .msg_control = control, .msg_controllen = sizeof control};
        ssize_t length = recvmsg(s, &m, 0);
        if (length < 0) { if (stop) break; continue; } /* what is queued is read before the end */
        last = now();
        if (!received++) first = last;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c))
            if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SO_RXQ_OVFL) memcpy(&overflow, CMSG_DATA(c), 4);
        uint64_t number;
        memcpy(&number, data, sizeof number);
        if (length != SIZE || number >= MOST) { fprintf(stderr, "a foreign datagram\n"); return 1; }
        if (seen[number / 8] & (1 << number % 8)) duplicates++;
        seen[number / 8] |= 1 << number % 8;
        if (number > highest) highest = number;
        uint64_t *flow = &next[ntohs(from.sin6_port)];
        if (!*flow) flows++;
        if (number + 1 < *flow) reordered++;
        else *flow = number + 1;
    }
    uint64_t gaps = received ? highest + 1 - (received - duplicates) : 0;
    printf("received %lu highest %lu gaps %lu duplicates %lu reordered %lu flows %lu overflow %u per_second %.0f\n", received,
           highest, gaps, duplicates, reordered, flows, overflow, last > first ? received / (last - first) : 0);
    return 0;
}

static int send_all(const int *sockets, int flows, double rate, double seconds) {
    char data[SIZE] = {0};
    uint64_t sent = 0;
    double start = now(), t;
    while (!stop && (t = now()) - start < seconds && sent < MOST) {
        if (rate > 0 && sent >= (t - start) * rate) {
            struct timespec pause = {0, 100000};
            nanosleep(&pause, NULL);
            continue;
        }
        memcpy(data, &sent, sizeof sent);
        if (send(sockets[sent % flows], data, sizeof data, 0) == SIZE) sent++;
        else if (errno != ENOBUFS && errno != EAGAIN && errno != EINTR) { perror("send"); return 1; }
    }
    printf("sent %lu per_second %.0f\n", sent, sent / (now() - start));
    return 0;
}

int main(int count, char **words) {
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL);
    if (count == 4 && !strcmp(words[1], "receive")) return receive(open_socket(words[2], words[3], 1));
    int flows = count == 7 ? atoi(words[6]) : 1, sockets[MOST_FLOWS];
    if ((count == 6 || count == 7) && !strcmp(words[1], "send") && flows > 0 && flows <= MOST_FLOWS) {
        for (int flow = 0; flow < flows; flow++) sockets[flow] = open_socket(words[2], words[3], 0);
        return send_all(sockets, flows, atof(words[4]), atof(words[5]));
    }
    fprintf(stderr, "usage: numbered receive ADDR PORT | send ADDR PORT RATE SECONDS [FLOWS]\n");
    return 2;
}
