#!/bin/bash
# Networks and attachments refuse what cannot be, in one line, and leave nothing half made; a list of
# many is whole.
#
#   c1 --- n1        network blue: 10.9.0.0/24; red: 10.10.0.0/24
. "$(dirname "$0")/lib.sh"

cluster 1
oc 1 network create blue --subnet 10.9.0.0/24 >"$WORK/create.out"
networks() { oc 1 --json network ls | json 'sorted(n["name"] for n in d)'; }
create() { oc 1 network create "$@"; }

refused '1|2' 'no such name!' create 'no such name!'
refused 1 'blue' create blue
refused '1|2' '10\.11\.0\.1/24' create red --subnet 10.11.0.1/24
refused '1|2' '10\.11\.0\.0/31' create red --subnet 10.11.0.0/31
refused '1|2' '10\.11\.0\.(0/25|0/24)' create red --subnet 10.11.0.0/24 --subnet 10.11.0.0/25
refused '1|2' 'nonsense' create red --subnet nonsense
refused '1|2' '10\.12\.0\.1' create red --subnet 10.11.0.0/24 --gateway 10.12.0.1
refused '1|2' '(mtu|MTU|20)' create red --mtu 20
refused 1 'green' oc 1 network inspect green
refused 1 'green' oc 1 network rm green
assert_eq "$(networks)" "['blue']" "networks after refusals"

oc 1 network create red --subnet 10.10.0.0/24 >"$WORK/create.out"
netns c1
netns c2
here=netns:$(full c1)
attach() { oc 1 attach "$@"; }
devices() { ip_in "$1" -o link show | wc -l; }
nothing=$(devices c1)
refused 1 'no-such-namespace' attach netns:no-such-namespace --network blue
refused 1 '/no/such/path' attach netns:/no/such/path --network blue
refused 1 '4194999' attach pid:4194999 --network blue
refused '1|2' 'nonsense' attach nonsense --network blue
refused '1|2' 'planet:mars' attach planet:mars --network blue
refused 1 'green' attach "$here" --network green
refused 1 '10\.77\.0\.1' attach "$here" --network blue --ip 10.77.0.1
refused 1 '10\.9\.0\.1' attach "$here" --network blue --ip 10.9.0.1
refused '1|2' 'nonsense' attach "$here" --network blue --ip nonsense
refused '1|2' 'no such name!' attach "$here" --network blue --name 'no such name!'
refused '1|2' 'a-name-of-more-than-15' attach "$here" --network blue --ifname a-name-of-more-than-15
assert_eq "$(devices c1)" "$nothing" "devices of c1 after refusals"
assert_eq "$(oc 1 --json endpoint ls | json 'len(d)')" 0 "endpoints after refusals"

attach "$here" --network blue --name c1 --ip 10.9.0.7 >"$WORK/attach.out"
refused 1 '(c1|already)' attach "$here" --network blue --name again
refused 1 '10\.9\.0\.7' attach "netns:$(full c2)" --network blue --ip 10.9.0.7 --name c2
refused 1 'c1' attach "netns:$(full c2)" --network blue --name c1
refused 1 'eth0' attach "$here" --network red --name c1-red --ifname eth0
refused 1 'blue' oc 1 network rm blue
refused 1 'green' oc 1 detach green
assert_eq "$(devices c2)" "$nothing" "devices of c2 after refusals"
assert_eq "$(oc 1 --json endpoint ls | json 'len(d)')" 1 "endpoints"

oc 1 detach c1 >"$WORK/detach.out"
assert_eq "$(devices c1)" "$nothing" "devices of c1 after detach"
oc 1 network rm blue >"$WORK/rm.out"
assert_eq "$(networks)" "['red']" "networks at the end"

# A list that is larger than a message between nodes.
large=$(printf 'v%.0s' $(seq 16000))
for n in $(seq 270); do oc 1 network create "large$n" --label "k=$large" >"$WORK/create.out"; done
oc 1 --json network ls >"$WORK/large.json"
assert_eq "$(json 'len(d)' <"$WORK/large.json")" 271 "networks in a large list"
test "$(stat -c %s "$WORK/large.json")" -gt $((4 << 20)) || die "the list is not larger than a message"
