#!/bin/bash
# A daemon that cannot work says why in one line and leaves nothing; so does a command without one.
#
#   n1        no daemon, or one that lacks a right, a device or a sense of its flags
. "$(dirname "$0")/lib.sh"

underlay 1
mkdir "$WORK/n1"
before=$(ip_in n1 -o link show; ls "$WORK/n1")
# overlayd with the words before `--` between it and its namespace
try() {
    local -a wrap=()
    while [ "$1" != -- ]; do wrap+=("$1"); shift; done
    shift
    in_ns n1 timeout 20 "${wrap[@]}" "$BIN/overlayd" --state-dir "$WORK/n1/state" --socket "$(socket 1)" "$@"
}
nothing_left() {
    rm -rf "$WORK/n1/state"
    assert_eq "$(ip_in n1 -o link show; ls "$WORK/n1")" "$before" "what is left"
}

refused 1 'NET_ADMIN' try setpriv --bounding-set=-net_admin --
nothing_left
# shellcheck disable=SC2016 # the inner shell's words
refused 1 '/dev/net/tun' try unshare --mount sh -c 'mount -t tmpfs none /dev/net && exec "$@"' sh --
nothing_left
refused '1|2' 'no-such-offload' try -- --offload no-such-offload=off
refused '1|2' 'tun-tso=maybe' try -- --offload tun-tso=maybe
refused '1|2' 'workers' try -- --workers 0
refused '1|2' 'rekey' try -- --rekey-interval soon
refused 2 'no-such-flag' try -- --no-such-flag
echo 'no-such-key = 1' >"$WORK/config.toml"
refused 1 'no-such-key' try -- --config "$WORK/config.toml"
refused 1 'missing.toml' try -- --config "$WORK/missing.toml"
rm "$WORK/config.toml"
nothing_left

refused 1 "$(socket 1).*overlayd" oc 1 info
start 1
chmod 000 "$(socket 1)"
without_rights() { setpriv --bounding-set=-dac_override,-dac_read_search "$BIN/overlayctl" --socket "$(socket 1)" info; }
refused 1 "$(socket 1).*([Pp]ermission|not permitted)" without_rights
chmod 660 "$(socket 1)"
refused 2 'no-such-flag' oc 1 info --no-such-flag
refused 2 'no-such-verb' oc 1 no-such-verb
