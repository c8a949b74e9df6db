#!/usr/bin/env python3
"""Writes to a cluster without a pause, and knows what it was told.

    writer.py OVERLAYCTL MANAGER_SOCKET WORKER_SOCKET NETWORK STOP NAMESPACE...

Makes and removes networks on the manager, and attaches and detaches the namespaces on the worker, until
the file STOP is there. What was acknowledged must be so at the end; what was not may be either way. Prints
one line of JSON, and fails if anything acknowledged is lost or an address is held twice.
"""
import json
import os
import random
import subprocess
import sys
import time

ctl, manager, worker, network, stop, *namespaces = sys.argv[1:]
rng = random.Random(7)


def run(socket, *words):
    done = subprocess.run([ctl, "--socket", socket, *words], capture_output=True, text=True)
    return done.returncode == 0, done.stdout, done.stderr


class Known:
    """Objects by name: there, gone, or in doubt since a command failed."""

    def __init__(self):
        self.state = {}

    def told(self, name, ok, there):
        self.state[name] = there if ok else None

    def wrong(self, seen):
        return [name for name, there in self.state.items() if there is not None and there != (name in seen)]


networks, endpoints = Known(), Known()
acknowledged = failed = made = 0
print("ready", flush=True)
while not os.path.exists(stop):
    if rng.random() < 0.5:
        there = [name for name, is_there in networks.state.items() if is_there]
        if len(there) > 20:
            name = rng.choice(there)
            ok, _, _ = run(manager, "network", "rm", name)
            networks.told(name, ok, False)
        else:
            made += 1
            name = f"w{made}"
            ok, _, _ = run(manager, "network", "create", name)
            networks.told(name, ok, True)
    else:
        namespace = rng.choice(namespaces)
        if endpoints.state.get(namespace):
            ok, _, _ = run(worker, "detach", namespace)
            endpoints.told(namespace, ok, False)
        else:
            ok, _, said = run(worker, "attach", f"netns:{namespace}", "--network", network, "--name", namespace)
            endpoints.told(namespace, ok or "already" in said, True)
    acknowledged += ok
    failed += not ok

deadline = time.monotonic() + 20
while True:
    ok_networks, listed_networks, _ = run(manager, "network", "ls", "--json")
    ok_endpoints, listed_endpoints, _ = run(manager, "endpoint", "ls", "--all", "--json")
    if ok_networks and ok_endpoints:
        break
    if time.monotonic() > deadline:
        sys.exit("the manager does not answer")
    time.sleep(0.05)
seen = {entry["name"] for entry in json.loads(listed_networks)}
held = json.loads(listed_endpoints)
addresses = [(entry["network"], address) for entry in held for address in entry["addresses"]]
result = {
    "acknowledged": acknowledged, "failed": failed,
    "lost": networks.wrong(seen) + endpoints.wrong({entry["name"] for entry in held}),
    "twice": sorted({address for address in addresses if addresses.count(address) > 1}),
}
print(json.dumps(result), flush=True)
sys.exit(bool(result["lost"] or result["twice"] or not acknowledged))
