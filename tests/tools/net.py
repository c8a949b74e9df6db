#!/usr/bin/env python3
"""Traffic for the scripts of netns-scripts, and what captures hold.

    tcp-serve ADDR PORT               takes connections; answers each with the SHA-256 of what came
    tcp-send ADDR PORT BYTES [MARK]   sends bytes (random, or MARK again and again); fails unless the answer agrees
    tcp-echo ADDR PORT                takes connections, each sends back what comes
    tcp-talk ADDR PORT GAP FILE [WAKE]  one connection: says something every GAP seconds (or once WAKE is there), checks
                                      what comes back, and writes to FILE how often that was right
    udp-flow ADDR PORT GAP            sends a datagram every GAP seconds, and takes no notice of errors
    udp-count ADDR PORT FILE          writes to FILE how many datagrams came
    take-tun NAME [UID]               tries, as that user, to take an interface that nobody holds
    udp-echo ADDR PORT                sends back what comes
    udp-check ADDR PORT SIZE...       sends a datagram of each size and checks what comes back, byte by byte
    udp-train ADDR PORT SIZE COUNT    sends datagrams of SIZE in one call (UDP_SEGMENT); all must come back
    mark ADDR PORT MARK               one echo request and one datagram filled with MARK; both must come back
    pcap-find FILE MARK               how many packets hold MARK
    pcap-mss FILE SOURCE              the MSS of every SYN sent by SOURCE, sorted, each once
    pcap-ports FILE SOURCE            how many source ports the UDP datagrams of SOURCE have
    pcap-count FILE MTU SOURCE        packets and bytes sent by SOURCE, super-packets split as for MTU
"""
import fcntl
import hashlib
import os
import socket
import struct
import sys
import threading
import time

UDP_SEGMENT = 103


def family(addr):
    return socket.AF_INET6 if ":" in addr else socket.AF_INET


def blocks(size, mark):
    """Yields `size` bytes: numbered random blocks, or `mark` repeated."""
    base = (mark * (1 + (1 << 20) // len(mark)))[: 1 << 20] if mark else os.urandom(1 << 20)
    number = 0
    while size > 0:
        block = base if mark else struct.pack("!Q", number) + base[8:]
        yield block[:size]
        size -= len(block)
        number += 1


def tcp_serve(addr, port):
    with socket.create_server((addr, int(port)), family=family(addr)) as server:
        print("ready", flush=True)
        while True:
            stream, _ = server.accept()
            digest = hashlib.sha256()
            with stream:
                while data := stream.recv(1 << 20):
                    digest.update(data)
                stream.sendall(digest.digest())


def tcp_send(addr, port, size, mark=""):
    digest = hashlib.sha256()
    with socket.create_connection((addr, int(port)), timeout=60) as stream:
        for block in blocks(int(size), mark.encode()):
            digest.update(block)
            stream.sendall(block)
        stream.shutdown(socket.SHUT_WR)
        answer = b""
        while data := stream.recv(64):
            answer += data
    if answer != digest.digest():
        sys.exit(f"what arrived has SHA-256 {answer.hex()}, sent was {digest.hexdigest()}")


def write(path, number):
    with open(path + ".new", "w") as file:
        file.write(str(number))
    os.rename(path + ".new", path)


def tcp_echo(addr, port):
    def serve(stream):
        with stream:
            while data := stream.recv(1 << 16):
                stream.sendall(data)

    with socket.create_server((addr, int(port)), family=family(addr)) as server:
        print("ready", flush=True)
        while True:
            stream, _ = server.accept()
            threading.Thread(target=serve, args=(stream,), daemon=True).start()


def tcp_talk(addr, port, gap, path, wake=None):
    count = 0
    with socket.create_connection((addr, int(port)), timeout=60) as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            said = struct.pack("!Q", count) * 25
            stream.sendall(said)
            back = b""
            while len(back) < len(said):
                back += stream.recv(len(said) - len(back)) or sys.exit("the connection ended")
            if back != said:
                sys.exit("other bytes came back")
            count += 1
            write(path, count)
            if count == 1:
                print("ready", flush=True)
            until = time.monotonic() + float(gap)
            while time.monotonic() < until and not (wake and os.path.exists(wake)):
                time.sleep(min(0.05, float(gap)))


def udp_flow(addr, port, gap):
    with socket.socket(family(addr), socket.SOCK_DGRAM) as sock:
        while True:
            try:
                sock.sendto(b"x" * 100, (addr, int(port)))
            except OSError:
                pass
            time.sleep(float(gap))


def udp_count(addr, port, path):
    with socket.socket(family(addr), socket.SOCK_DGRAM) as sock:
        sock.bind((addr, int(port)))
        print("ready", flush=True)
        count = 0
        while True:
            sock.recv(65535)
            count += 1
            write(path, count)


def take_tun(name, uid=None):
    tun_tap_set_iff, tun, no_pi, vnet_hdr = 0x400454CA, 1, 0x1000, 0x4000
    with open("/dev/net/tun", "r+b", buffering=0) as file:
        if uid:
            os.setgroups([])
            os.setuid(int(uid))
        try:
            fcntl.ioctl(file, tun_tap_set_iff, struct.pack("16sH22x", name.encode(), tun | no_pi | vnet_hdr))
        except OSError as error:
            sys.exit(error.strerror)


def udp_echo(addr, port):
    with socket.socket(family(addr), socket.SOCK_DGRAM) as sock:
        sock.bind((addr, int(port)))
        print("ready", flush=True)
        while True:
            data, peer = sock.recvfrom(65535)
            sock.sendto(data, peer)


def udp_ask(addr, port, data):
    with socket.socket(family(addr), socket.SOCK_DGRAM) as sock:
        sock.connect((addr, int(port)))
        sock.settimeout(3)
        sock.send(data)
        try:
            back = sock.recv(65535)
        except TimeoutError:
            sys.exit(f"no answer to a datagram of {len(data)} bytes")
    if back != data:
        sys.exit(f"a datagram of {len(data)} bytes came back as other bytes ({len(back)})")


def udp_check(addr, port, *sizes):
    for size in sizes:
        udp_ask(addr, port, os.urandom(int(size)))


def udp_train(addr, port, size, count):
    size, count = int(size), int(count)
    data = [struct.pack("!I", number) * (size // 4) for number in range(count)]
    with socket.socket(family(addr), socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
        sock.connect((addr, int(port)))
        sock.settimeout(3)
        sock.send(b"".join(data))
        try:
            back = [sock.recv(65535) for _ in data]
        except TimeoutError:
            sys.exit("not all of a train came back")
    if sorted(back) != sorted(data):
        sys.exit("a train came back as other bytes")


def mark_once(addr, port, mark):
    data = mark.encode() * 4
    udp_ask(addr, port, data)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.settimeout(3)
        head = struct.pack("!BBHHH", 8, 0, 0, 7, 7)
        words = struct.unpack(f"!{(len(head) + len(data)) // 2}H", head + data)
        total = sum(words)
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        packet = head[:2] + struct.pack("!H", ~total & 0xFFFF) + head[4:] + data
        sock.sendto(packet, (addr, 0))
        while True:
            back = sock.recv(65535)
            inner = back[(back[0] & 15) * 4:]
            if inner[0] == 0 and inner[8:] == data:
                return


def packets(path):
    """Yields (length, bytes kept) of each packet of a capture, from the IP header on."""
    with open(path, "rb") as file:
        file.read(24)
        while head := file.read(16):
            _, _, kept, length = struct.unpack("<IIII", head)
            yield length, file.read(kept)


def pcap_find(path, mark):
    print(sum(mark.encode() in data for _, data in packets(path)))


def header(data):
    """Returns the length of the IP header, the protocol and the sender; None for what is not IP."""
    version = data[0] >> 4
    if version == 4:
        return (data[0] & 15) * 4, data[9], data[12:16]
    if version == 6:
        return 40, data[6], data[8:24]
    return None


def pcap_mss(path, source):
    source = socket.inet_pton(family(source), source)
    found = set()
    for _, data in packets(path):
        if not (ip := header(data)) or ip[1:] != (6, source) or not data[ip[0] + 13] & 2:
            continue
        options = data[ip[0] + 20 : ip[0] + (data[ip[0] + 12] >> 4) * 4]
        while options and options[0] != 0:
            if options[0] == 2:
                found.add(struct.unpack("!H", options[2:4])[0])
            options = options[1 if options[0] == 1 else options[1]:]
    print(*sorted(found))


def pcap_ports(path, source):
    source = socket.inet_pton(family(source), source)
    sent = ((header(data), data) for _, data in packets(path))
    print(len({data[ip[0] : ip[0] + 2] for ip, data in sent if ip and ip[1:] == (17, source)}))


def pcap_count(path, mtu, source):
    """Counts as the wire would see it: a TCP super-packet is as many packets as its MTU asks for."""
    source = socket.inet_pton(family(source), source)
    count = size = 0
    for length, data in packets(path):
        if not (ip := header(data)):
            continue
        head, proto, sender = ip
        if sender != source:
            continue
        if proto == 6:
            head += (data[head + 12] >> 4) * 4
            parts = max(1, -(-(length - head) // (int(mtu) - head)))
        else:
            head, parts = 0, 1
        count += parts
        size += length + (parts - 1) * head
    print(count, size)


VERBS = {
    "tcp-serve": tcp_serve, "tcp-send": tcp_send, "tcp-echo": tcp_echo,
    "tcp-talk": tcp_talk, "udp-flow": udp_flow, "udp-count": udp_count, "take-tun": take_tun, "udp-echo": udp_echo, "udp-check": udp_check,
    "udp-train": udp_train,
    "mark": mark_once, "pcap-find": pcap_find, "pcap-mss": pcap_mss, "pcap-ports": pcap_ports, "pcap-count": pcap_count,
}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in VERBS:
        sys.exit(__doc__)
    VERBS[sys.argv[1]](*sys.argv[2:])
