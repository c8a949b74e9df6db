#!/bin/bash
# init and join refuse what cannot be, in one line, and leave the node as it was: it can join after.
#
#   n1 ===underlay=== n2        n1 becomes manager, n2 tries tokens
. "$(dirname "$0")/lib.sh"

underlay 2
start 1
start 2
alone=$(oc 2 info 2>&1 || true)

refused '1|2' 'no such name!' oc 1 init --name 'no such name!'
refused 1 '198\.51\.100\.9' oc 1 init --advertise-addr 198.51.100.9
refused '1|2' '10\.0\.0\.1/8' oc 1 init --default-addr-pool 10.0.0.1/8
refused '1|2' '(mask|length|40)' oc 1 init --default-addr-pool-mask-length 40
refused 1 'init' oc 1 network ls
refused 1 'init' oc 1 join-token worker -q
oc 1 init --name n1 >"$WORK/init.out"
refused 1 '(already|part of)' oc 1 init --name again

token=$(oc 1 join-token worker -q)
IFS=- read -r head version digest secret <<<"$token"
other() { tr 'a-y0-8' 'b-z1-9' <<<"$1"; }
try() { timeout 60 "$BIN/overlayctl" --socket "$(socket 2)" join --token "$1" "${2:-$(manager)}" --name n2; }
refused 1 'token' try "$head-$version-$(other "$digest")-$secret"
refused 1 'token' try "$head-$version-$digest-$(other "$secret")"
refused '1|2' 'token' try "$head-$version-$digest"
refused '1|2' 'token' try "${token:0:20}"
refused '1|2' 'token' try nonsense
refused 1 '192\.0\.2\.77' try "$token" 192.0.2.77:2377
refused 1 '192\.0\.2\.1:9' try "$token" 192.0.2.1:9
assert_eq "$(oc 2 info 2>&1 || true)" "$alone" "n2 after refused joins"
assert_eq "$(oc 1 --json node ls | json 'len(d)')" 1 "nodes after refused joins"

join 2 >"$WORK/join.out"
refused 1 '(already|part of)' join 2
assert_eq "$(oc 1 --json node ls | json 'len(d)')" 2 "nodes"
refused 1 '192\.0\.2\.1' oc 2 network create blue
refused 1 '192\.0\.2\.1' oc 2 join-token worker
