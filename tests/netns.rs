//! Runs the scripts of `netns-scripts` with the programs just built: what only a kernel can prove.
//! One at a time, since each measures or captures what the machine's few cores do. They need root, if
//! only that of a user namespace, which `cargo xtask test` makes where that is needed.

#[path = "netns/tasks.rs"]
mod tasks;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("netns-scripts")
}

/// Runs a script with arguments; it must end well.
#[track_caller]
fn run(script: &str, args: &[&str]) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let script = folder().join(script);
    let mut command = Command::new(&script);
    let programs = Path::new(env!("CARGO_BIN_EXE_overlayd")).parent().expect("it lies in a folder");
    let output = command.args(args).env("OVERLAY_BIN", programs).output();
    let output = output.unwrap_or_else(|error| panic!("start {}: {error}", script.display()));
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    println!("{}", said.concat());
    assert!(output.status.success(), "{} {args:?}: {}", script.display(), output.status);
}

#[test]
fn every_script_is_run() {
    let own = include_str!("netns.rs");
    for entry in fs::read_dir(folder()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let is_test = name.ends_with(".sh") && name != "lib.sh";
        assert!(!is_test || own.contains(&format!("run(\"{name}\"")), "{name} has no test here");
    }
}

#[test]
fn services_and_their_tasks() {
    run("services.sh", &[]);
}

#[test]
fn what_a_killed_script_left_is_taken_away() {
    run("killed.sh", &[]);
}

#[test]
fn ping_and_tcp() {
    run("ping-tcp.sh", &[]);
}

#[test]
fn ping_and_tcp_over_an_ipv6_underlay() {
    run("underlay6.sh", &[]);
}

#[test]
fn bulk_with_underlay_offloads() {
    run("bulk.sh", &["default"]);
}

#[test]
fn bulk_without_underlay_offloads() {
    run("bulk.sh", &["noffl"]);
}

#[test]
fn bulk_without_tun_tso4() {
    run("bulk.sh", &["default", "tun-tso4=off"]);
}

#[test]
fn bulk_without_tun_tso6() {
    run("bulk.sh", &["default", "tun-tso6=off"]);
}

#[test]
fn bulk_without_tun_uso() {
    run("bulk.sh", &["default", "tun-uso4=off,tun-uso6=off"]);
}

#[test]
fn bulk_without_tun_csum() {
    run("bulk.sh", &["default", "tun-csum=off"]);
}

#[test]
fn bulk_without_udp_gso() {
    run("bulk.sh", &["default", "udp-gso=off"]);
}

#[test]
fn bulk_without_udp_gro() {
    run("bulk.sh", &["default", "udp-gro=off"]);
}

#[test]
fn bulk_on_the_plain_path() {
    run("bulk.sh", &["default", "tun-vnet=off"]);
}

#[test]
fn bulk_on_the_plain_path_without_underlay_offloads() {
    run("bulk.sh", &["noffl", "tun-vnet=off,udp-gso=off,udp-gro=off"]);
}

#[test]
fn flows_keep_their_order() {
    run("order.sh", &[]);
}

#[test]
fn a_flood_of_one_container_does_not_stop_another() {
    // Four times the script's own bound: where the tests run beside other work, the time slices of a
    // scheduler of few cores come to more than what is measured. Without turns between devices the
    // pings wait for longer than this.
    run("fair.sh", &["20000"]);
}

#[test]
fn containers_of_one_node() {
    run("same-node.sh", &[]);
}

#[test]
fn large_datagrams() {
    run("large-udp.sh", &[]);
}

#[test]
fn packets_cross_a_narrow_underlay_in_pieces() {
    run("narrow.sh", &["ipv4", "1000"]);
}

#[test]
fn packets_cross_a_narrow_ipv6_underlay_in_pieces() {
    run("narrow.sh", &["ipv6", "1280"]);
}

#[test]
fn networks_with_one_subnet_stay_apart() {
    run("overlapping.sh", &[]);
}

#[test]
fn keys_are_renewed_without_loss() {
    run("rekey.sh", &[]);
}

#[test]
fn the_gateway_answers() {
    run("gateway.sh", &[]);
}

#[test]
fn nothing_crosses_the_underlay_in_clear() {
    run("plaintext.sh", &[]);
}

#[test]
fn counters_are_what_a_capture_counts() {
    run("counters.sh", &[]);
}

#[test]
fn a_daemon_that_cannot_work_says_why() {
    run("bad-start.sh", &[]);
}

#[test]
fn a_bad_init_or_join_is_refused() {
    run("bad-cluster.sh", &[]);
}

#[test]
fn a_bad_network_or_attachment_is_refused() {
    run("bad-network.sh", &[]);
}

#[test]
fn a_second_daemon_is_refused() {
    run("second-daemon.sh", &[]);
}

#[test]
fn a_killed_agent_costs_no_connection() {
    run("restart.sh", &[]);
}

#[test]
fn a_killed_manager_loses_nothing() {
    run("manager-restart.sh", &[]);
}

#[test]
fn managers_go_on_without_the_one_that_leads() {
    run("managers.sh", &["2"]);
}

#[test]
fn nodes_become_managers_and_workers_again() {
    run("roles.sh", &[]);
}

#[test]
fn managers_that_are_cut_off_let_their_agents_go() {
    run("cut-managers.sh", &[]);
}

#[test]
fn what_goes_wrong_with_one_manager_takes_no_other_with_it() {
    run("bad-managers.sh", &[]);
}

#[test]
fn the_last_of_three_managers_goes_on_alone() {
    run("lost-managers.sh", &[]);
}

#[test]
fn a_dead_node_is_down_and_a_blip_is_no_death() {
    run("alive.sh", &[]);
}

#[test]
fn certificates_keys_and_the_root_change_without_loss() {
    run("trust.sh", &[]);
}

#[test]
fn a_full_disk_stops_the_manager_and_loses_nothing() {
    run("full-disk.sh", &[]);
}

#[test]
fn a_backup_brings_the_cluster_back() {
    run("recover.sh", &[]);
}

#[test]
fn the_host_is_on_a_network() {
    run("host.sh", &[]);
}

#[test]
fn faults_leave_nothing_half_done() {
    run("faults.sh", &[]);
}

#[test]
fn the_way_out_is_the_first_network_that_has_one() {
    run("default-route.sh", &[]);
}

#[test]
fn docker_containers_keep_their_endpoints() {
    run("docker.sh", &[]);
}
