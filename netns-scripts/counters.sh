#!/bin/bash
# Packets and bytes of `peers --json` are those of a capture in the container, super-packets split,
# within 0.1 %; what one node sent is what the other received and dropped.
#
#   c1 --- n1 ===underlay=== n2 --- c2
. "$(dirname "$0")/lib.sh"

cluster 2
oc 1 network create blue >"$WORK/create.out"
container 1 c1 blue
container 2 c2 blue
a=$(address c1 4) b=$(address c2 4)
capture c1 eth0 "$WORK/c1.pcap" 128
capture=$PID
ping_from c1 "$b"
transfer c1 c2 "$b" 30000000
transfer c2 c1 "$a" 30000000
serve c2 "$WORK/echo.out" python3 "$TOOLS/net.py" udp-echo "$b" 5002
net c1 udp-check "$b" 5002 1 100 1300 500
end "$PID"

# counted NODE: sent packets, received, dropped, of its one peer
counted() { oc "$1" peers --json | json 'd[0]["tx"]["packets"], d[0]["rx"]["packets"], sum(d[0]["drops"].values())'; }
agree() {
    python3 - "$(counted 1)" "$(counted 2)" <<'P'
import ast, sys
one, two = map(ast.literal_eval, sys.argv[1:])
sys.exit(not (one[0] == two[1] + two[2] and two[0] == one[1] + one[2]))
P
}
wait_until 5 agree
say "n1 (tx, rx, drops) $(counted 1), n2 $(counted 2)"
end_capture "$capture" "$WORK/c1.pcap"

near() {
    python3 -c 'import sys; a, b = map(int, sys.argv[1:]); sys.exit(abs(a - b) > b / 1000)' "$1" "$2" ||
        die "$3: peers says $1, the capture $2"
}
mtu=$(mtu c1)
for way in "tx $a" "rx $b"; do
    read -r direction source <<<"$way"
    read -r packets bytes <<<"$(net c1 pcap-count "$WORK/c1.pcap" "$mtu" "$source")"
    near "$(oc 1 peers --json | json "d[0]['$direction']['packets']")" "$packets" "$direction packets"
    near "$(oc 1 peers --json | json "d[0]['$direction']['bytes']")" "$bytes" "$direction bytes"
    say "$direction: $packets packets, $bytes bytes"
done
