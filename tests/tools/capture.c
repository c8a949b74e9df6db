/* Writes every packet of an interface to a pcap file, from the IP header on.
 *
 *   capture DEVICE FILE [BYTES]     at most BYTES of each packet; prints `ready` once it sees packets; after
 *                                   SIGTERM it writes what came until then and prints `captured N dropped D`
 *
 * Unlike tcpdump it does not change its user, which a user namespace without setgroups refuses; its ring
 * does not count against the socket's buffer, which an ordinary user cannot raise.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define BLOCK (1u << 20)   /* holds sixteen of the largest super-packets */
#define BLOCKS 64
#define QUIET_MS 100       /* ten times the age at which the kernel hands over a block that is not full */

static volatile sig_atomic_t stop;
static void on_signal(int number) { (void)number; stop = 1; }
static void must(int failed, const char *what) { if (failed) { perror(what); exit(1); } }

static uint64_t write_block(struct tpacket_block_desc *block, FILE *file, uint32_t most) {
    struct tpacket3_hdr *p = (void *)((char *)block + block->hdr.bh1.offset_to_first_pkt);
    for (uint32_t i = 0; i < block->hdr.bh1.num_pkts; i++) {
        uint32_t kept = p->tp_snaplen < most ? p->tp_snaplen : most;
        uint32_t head[4] = {p->tp_sec, p->tp_nsec / 1000, kept, p->tp_len};
        fwrite(head, sizeof head, 1, file);
        fwrite((char *)p + p->tp_net, kept, 1, file);
        p = (void *)((char *)p + p->tp_next_offset);
    }
    return block->hdr.bh1.num_pkts;
}

int main(int count, char **words) {
    if (count < 3) { fprintf(stderr, "usage: capture DEVICE FILE [BYTES]\n"); return 2; }
    uint32_t most = count > 3 ? atoi(words[3]) : 262144;
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL);
    int version = TPACKET_V3, s = socket(AF_PACKET, SOCK_DGRAM, 0); /* no protocol yet: nothing comes */
    must(s < 0, "packet socket");
    must(setsockopt(s, SOL_PACKET, PACKET_VERSION, &version, sizeof version), "PACKET_VERSION");
    struct tpacket_req3 ring = {.tp_block_size = BLOCK, .tp_block_nr = BLOCKS, .tp_frame_size = 2048,
                                .tp_frame_nr = BLOCK / 2048 * BLOCKS, .tp_retire_blk_tov = QUIET_MS / 10};
    must(setsockopt(s, SOL_PACKET, PACKET_RX_RING, &ring, sizeof ring), "PACKET_RX_RING");
    char *memory = mmap(NULL, (size_t)BLOCK * BLOCKS, PROT_READ | PROT_WRITE, MAP_SHARED, s, 0);
    must(memory == MAP_FAILED, "mmap");
    FILE *file = fopen(words[2], "w");
    must(!file, words[2]);
    struct { uint32_t magic; uint16_t major, minor; uint32_t zone, accuracy, snap, link; } head =
        {0xa1b2c3d4, 2, 4, 0, 0, 262144, 101 /* raw IP */};
    fwrite(&head, sizeof head, 1, file);
    struct sockaddr_ll where = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL),
                                .sll_ifindex = if_nametoindex(words[1])};
    must(!where.sll_ifindex || bind(s, (void *)&where, sizeof where), words[1]);
    puts("ready");
    fflush(stdout);

    uint64_t captured = 0;
    for (unsigned next = 0;;) {
        struct tpacket_block_desc *block = (void *)(memory + (size_t)next * BLOCK);
        if (!(__atomic_load_n(&block->hdr.bh1.block_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER)) {
            struct pollfd wait = {.fd = s, .events = POLLIN};
            if (poll(&wait, 1, QUIET_MS) == 0 && stop) break;
            continue;
        }
        captured += write_block(block, file, most);
        __atomic_store_n(&block->hdr.bh1.block_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
        next = (next + 1) % BLOCKS;
    }
    struct tpacket_stats_v3 stats;
    socklen_t length = sizeof stats;
    must(getsockopt(s, SOL_PACKET, PACKET_STATISTICS, &stats, &length), "PACKET_STATISTICS");
    must(fclose(file), words[2]);
    printf("captured %lu dropped %u\n", captured, stats.tp_drops);
    return 0;
}
