//! `overlayctl`: flags in, one call to the node's socket, a table or one JSON value out. One file a
//! noun; what a failure looks like is in `failure`, what answers look like in `output`.

mod attach;
mod backup;
mod ca;
mod client;
mod cluster;
mod endpoint;
mod failure;
mod leave;
mod network;
mod node;
mod output;
mod peers;
mod run;
mod service;
mod stats;
mod task;

use std::{io, path::PathBuf, process::ExitCode};

use clap::{CommandFactory as _, Parser, Subcommand};

use self::{client::Client, failure::Failure};

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "overlayctl", version, about = "Container networks across hosts, encrypted")]
pub struct Cli {
    /// The socket of the node's overlayd
    #[arg(
        long,
        global = true,
        env = "OVERLAY_SOCKET",
        default_value = "/run/overlay/overlayd.sock",
        value_name = "PATH"
    )]
    socket: PathBuf,
    /// Print one JSON value instead of a table
    #[arg(long, global = true)]
    json: bool,
    /// List and inspect what this node's manager has, even if it is cut off from the others
    #[arg(long, global = true)]
    stale: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a cluster with this node as its manager
    Init(cluster::Init),
    /// Make this node a member of a cluster
    Join(cluster::Join),
    /// Print what another node joins with
    JoinToken(cluster::JoinToken),
    /// Take this node out of its cluster
    Leave(leave::Leave),
    /// The root certificate of the cluster
    #[command(subcommand)]
    Ca(ca::Command),
    /// Show what this node is
    Info,
    /// The nodes of the cluster
    #[command(subcommand)]
    Node(node::Command),
    /// The networks of the cluster
    #[command(subcommand)]
    Network(network::Command),
    /// The services of the cluster
    #[command(subcommand)]
    Service(Box<service::Command>),
    /// The tasks of services
    #[command(subcommand)]
    Task(task::Command),
    /// Put a container on a network
    Attach(attach::Attach),
    /// Take a container off a network
    Detach(attach::Detach),
    /// The attachments of containers
    #[command(subcommand)]
    Endpoint(endpoint::Command),
    /// Run a command in a fresh network namespace on a network
    Run(run::Run),
    /// Show the tunnels to other nodes
    Peers(peers::Peers),
    /// Show this node's counters
    Stats,
    /// Write everything that this manager keeps to a file
    Backup(backup::Backup),
    /// Print completions for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Table,
    Json,
}

impl Cli {
    /// Does what the command line says.
    pub async fn run(self) -> ExitCode {
        let format = if self.json { Format::Json } else { Format::Table };
        let client = Client::new(self.socket, self.stale);
        match execute(self.command, &client, format).await {
            Ok(code) => code,
            Err(failure) => {
                eprintln!("overlayctl: {failure}");
                ExitCode::FAILURE
            }
        }
    }
}

async fn execute(command: Command, client: &Client, format: Format) -> Result<ExitCode, Failure> {
    match command {
        Command::Init(init) => init.execute(client, format).await?,
        Command::Join(join) => join.execute(client, format).await?,
        Command::JoinToken(token) => token.execute(client, format).await?,
        Command::Ca(command) => command.execute(client, format).await?,
        Command::Backup(backup) => backup.execute(client, format).await?,
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "overlayctl", &mut io::stdout());
        }
        Command::Leave(leave) => leave.execute(client, format).await?,
        Command::Info => cluster::info(client, format).await?,
        Command::Node(command) => command.execute(client, format).await?,
        Command::Network(command) => command.execute(client, format).await?,
        Command::Service(command) => return command.execute(client, format).await,
        Command::Task(command) => command.execute(client, format).await?,
        Command::Attach(attach) => attach.execute(client, format).await?,
        Command::Detach(detach) => detach.execute(client, format).await?,
        Command::Endpoint(command) => command.execute(client, format).await?,
        Command::Run(run) => return run.execute(client).await,
        Command::Peers(peers) => peers.execute(client, format).await?,
        Command::Stats => stats::execute(client, format).await?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_usage_ends_with_2() {
        let check = |args: &[&str]| {
            let error = Cli::try_parse_from([&["overlayctl"], args].concat()).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{args:?}");
        };
        check(&[]);
        check(&["frobnicate"]);
        check(&["join", "192.0.2.1"]);
        check(&["attach", "netns:c1"]);
        check(&["attach", "c1", "--network", "blue"]);
        check(&["attach", "planet:mars", "--network", "blue"]);
        check(&["network", "create", "blue", "--subnet", "10.1.0.0"]);
        check(&["network", "create", "blue", "--ip", "10.1.0.1"]);
        check(&["network", "create", "blue", "--label", "x"]);
        check(&["network", "rm"]);
        check(&["join-token", "leader"]);
        check(&["join-token", "worker", "--rotate", "--ttl", "1h"]);
        check(&["join-token", "worker", "--rotate", "--uses", "1"]);
        check(&["join-token", "worker", "--uses", "0"]);
        check(&["join-token", "worker", "--ttl", "soon"]);
        check(&["init", "--cert-expiry", "30s"]);
        check(&["ca"]);
        check(&["run", "--network", "blue"]);
        check(&["peers", "--watch", "extra"]);
        check(&["service", "create", "--name", "web"]);
        check(&["service", "create", "--", "true"]);
        check(&["service", "create", "--name", "web", "--constraint", "x", "--", "true"]);
        check(&["service", "scale", "web"]);
        check(&["service", "rm"]);
    }

    #[test]
    fn every_form_of_the_contract_is_understood() {
        let check = |args: &str| {
            let args = ["overlayctl"].into_iter().chain(args.split(' '));
            Cli::try_parse_from(args).unwrap();
        };
        check("init --advertise-addr eth0:2377 --listen-addr [::]:2377 --data-path-addr eth1");
        check("init --default-addr-pool 10.0.0.0/8 --default-addr-pool-mask-length 24 --name n1");
        check("join --token T 192.0.2.1:2377 --advertise-addr eth0 --name n2");
        check("join-token worker -q");
        check("node inspect self --json");
        check("node update n2 --availability drain --label-add disk=ssd --label-rm old");
        check("node rm --force n2 n3");
        check("backup /tmp/b --passphrase-file /tmp/p");
        check("completion bash");
        check("init --force-new-cluster");
        check("leave --force");
        check("join-token worker --rotate");
        check("join-token worker --ttl 1h --uses 3");
        check("info --json");
        check("--json --socket /tmp/s node ls");
        check("network create blue --subnet 10.1.0.0/24 --subnet fd00::/64 --gateway 10.1.0.9");
        check("network create blue --ipv6 --mtu 1400 --internal --vni 7 --label a=b --label c=");
        check("network rm a b");
        check("attach netns:c1 --network blue --ip 10.1.0.5 --name web --ifname eth7");
        check("attach pid:1 --network blue --default-route");
        check("detach web");
        check("endpoint ls --network blue --all");
        check("endpoint inspect web");
        check("init --cert-expiry 1h");
        check("ca rotate --json");
        check("run --network blue -- ip addr");
        check("peers --network blue --watch --json");
        check("stats --json");
        check("service create --name web --replicas 3 --network blue,alias=w --env A=b -- sh -c x");
        check("service create --name web --mode global -d --mount type=volume,src=a,dst=/a -- x");
        check(
            "service create --name web --constraint node.labels.a==b --placement-pref spread=node.labels.z -- x",
        );
        check(
            "service create --name web --reserve-cpu 0.5 --reserve-memory 64m --limit-cpu 1 --limit-memory 1g --limit-pids 9 --replicas-max-per-node 2 -- x",
        );
        check(
            "service create --name web --restart-condition on-failure --restart-delay 1s --restart-max-attempts 3 --restart-window 1m -- x",
        );
        check(
            "service create --name web --health-cmd true --health-interval 1s --health-timeout 1s --health-retries 2 --health-start-period 9s -- x",
        );
        check(
            "service create --name web --stop-grace-period 1s --stop-signal INT --user a:b --workdir /a --hostname h --cap-add NET_ADMIN --cap-drop ALL --label a=b -- x",
        );
        check(
            "service update web --update-parallelism 2 --update-delay 1s --update-order start-first --update-monitor 1s --update-failure-action rollback --update-max-failure-ratio 0.5 --rollback-order stop-first",
        );
        check(
            "service update web --force --env-add A=b --env-rm B --network-rm blue --mount-rm /a --constraint-rm node.role==worker --label-rm a",
        );
        check("service scale web=3 db=1");
        check("service rollback web");
        check("service ls");
        check("service ps web --json");
        check("service inspect web");
        check("service rm web db");
        check("task ls");
    }
}
