//! Those scripts of `netns-scripts` that can do more than the tests ask of them, at the numbers of a
//! long run. A script's own sentences are its samples.

use std::process::ExitCode;

use anyhow::bail;

use super::Args;
use crate::{
    process::{self, command, say},
    system,
    workspace::{self, Programs},
};

/// The agents of a sender, of a receiver and of both, killed again and again.
pub fn agents(args: &Args) -> anyhow::Result<ExitCode> {
    // A round is one kill of each of the three, and a second one straight after the first.
    script("agents", "restart.sh", &[&args.points.unwrap_or(13).to_string()], args)
}

/// The manager, killed again and again under a writer.
pub fn manager(args: &Args) -> anyhow::Result<ExitCode> {
    script("manager", "manager-restart.sh", &[&args.points.unwrap_or(50).to_string()], args)
}

/// A worker's kills, cut links and blips.
pub fn alive(args: &Args) -> anyhow::Result<ExitCode> {
    script("alive", "alive.sh", &[&args.points.unwrap_or(20).to_string()], args)
}

/// Certificates, a token and the root, changed under connections and a writer.
pub fn trust(args: &Args) -> anyhow::Result<ExitCode> {
    if args.points.is_some() {
        bail!("'trust' has no number of points");
    }
    system::need(system::PROVE)?;
    script("trust", "trust.sh", &["iperf3"], args)
}

/// Every combination of offloads, each beside another one on the other node.
pub fn offloads(args: &Args) -> anyhow::Result<ExitCode> {
    let programs = prepare("offloads", args)?;
    system::need(system::ETHTOOL)?;
    let (combinations, mut all, mut code) = (combinations(), Vec::new(), ExitCode::SUCCESS);
    let count = args.points.unwrap_or(2 * combinations.len() as u64) as usize;
    for run in 0..count {
        let underlay = ["default", "noffl"][run % 2];
        let at = run / 2 % combinations.len();
        // A step that meets all of them, and never itself.
        let other = (at * 29 + 7) % combinations.len();
        let [own, other] = [at, other].map(|at| combinations[at].as_str());
        say(format_args!("{} of {count}: {underlay}, {own} and {other}", run + 1));
        let said;
        (code, said) = self::run("bulk.sh", &[underlay, own, other, "20000000"], &programs)?;
        all.extend(said);
        if code != ExitCode::SUCCESS {
            all.push(format!("failed: {underlay}, {own} and {other}"));
            break;
        }
    }
    keep("offloads", &all, code)?;
    Ok(code)
}

/// What `--offload` can ask for, without what is the same in the end: segmentation needs partial
/// checksums, both need the virtio_net_hdr, and UDP segmentation is that of both families.
fn combinations() -> Vec<String> {
    let switches = |switches: &[&[&str]]| {
        let mut lists = vec![String::new()];
        for names in switches {
            let with = |state: &str| {
                let items: String = names.iter().map(|name| format!(",{name}={state}")).collect();
                lists.iter().map(|list| format!("{list}{items}")).collect::<Vec<_>>()
            };
            lists = [with("on"), with("off")].concat();
        }
        lists
    };
    let segmentations = switches(&[&["tun-tso4"], &["tun-tso6"], &["tun-uso4", "tun-uso6"]]);
    let devices =
        segmentations.into_iter().chain(["tun-csum=off", "tun-vnet=off"].map(str::to_owned));
    let sockets = switches(&[&["udp-gso"], &["udp-gro"]]);
    let combined = devices.flat_map(|device| {
        sockets
            .iter()
            .map(move |socket| format!("{device}{socket}").trim_start_matches(',').to_owned())
    });
    combined.collect()
}

fn script(name: &str, script: &str, arguments: &[&str], args: &Args) -> anyhow::Result<ExitCode> {
    let programs = prepare(name, args)?;
    let (code, said) = run(script, arguments, &programs)?;
    keep(name, &said, code)?;
    Ok(code)
}

fn prepare(name: &str, args: &Args) -> anyhow::Result<Programs> {
    if args.plant {
        bail!("no defect is planted for '{name}'; 'powercut' and 'sim' have some");
    }
    for programs in [system::LAB, system::TESTS] {
        system::need(programs)?;
    }
    Programs::build()
}

/// Runs a script, and returns what it said.
fn run(
    script: &str,
    arguments: &[&str],
    programs: &Programs,
) -> anyhow::Result<(ExitCode, Vec<String>)> {
    let mut run = command([workspace::root().join("netns-scripts").join(script)]);
    run.args(arguments).env("OVERLAY_BIN", &programs.folder);
    let mut said = Vec::new();
    let own = format!("{}: ", script.trim_end_matches(".sh"));
    let status = process::lines(&mut run, |line| {
        if let Some(sentence) = line.strip_prefix(&own) {
            said.push(sentence.to_owned());
        }
        say(line);
    })?;
    Ok((if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }, said))
}

fn keep(name: &str, said: &[String], code: ExitCode) -> anyhow::Result<()> {
    let passed = code == ExitCode::SUCCESS;
    super::keep(name, &serde_json::json!({ "passed": passed, "said": said }).to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_combination_is_there_once_and_meets_another() {
        let all = combinations();
        assert_eq!(all.len(), 40);
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 40);
        assert_eq!(all[39], "tun-vnet=off,udp-gso=off,udp-gro=off");
        let met: BTreeSet<usize> = (0..40).map(|at| (at * 29 + 7) % 40).collect();
        assert_eq!(met.len(), 40);
        assert!((0..40).all(|at| (at * 29 + 7) % 40 != at));
    }
}
