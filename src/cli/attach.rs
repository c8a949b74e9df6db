//! `attach` and `detach`.

use std::net::IpAddr;

use clap::Args;

use super::{
    Failure, Format,
    client::{Client, answer},
    endpoint::EndpointView,
    output::show,
};
use crate::api::proto::{AttachRequest, AttachResponse, DetachRequest, Host, attach_request};

/// `overlayctl attach`.
#[derive(Args, Debug)]
pub struct Attach {
    /// netns:NAME, netns:/PATH, pid:N, container:NAME (Docker), or host
    #[arg(value_parser = target)]
    target: attach_request::Target,
    #[command(flatten)]
    on: On,
    /// The interface's name in the container; the first free ethN unless given
    #[arg(long, value_name = "NAME")]
    ifname: Option<String>,
    /// Make this network the container's way out
    #[arg(long)]
    default_route: bool,
}

/// Where on which network: what `attach` and `run` have in common.
#[derive(Args, Debug)]
pub struct On {
    /// The network: name, id, or the start of an id
    #[arg(long, value_name = "NET")]
    network: String,
    /// An address, at most one of each subnet; the next free one unless given
    #[arg(long = "ip", value_name = "IP")]
    addresses: Vec<IpAddr>,
    /// The endpoint's name; the start of its id unless given
    #[arg(long)]
    name: Option<String>,
}

/// `overlayctl detach`.
#[derive(Args, Debug)]
pub struct Detach {
    /// Name, id, or the start of an id
    endpoint: String,
}

impl Attach {
    pub async fn execute(self, client: &Client, format: Format) -> Result<(), Failure> {
        let what = format!("attach {}", shown(&self.target));
        let request = AttachRequest {
            interface: self.ifname,
            default_route: self.default_route,
            ..self.on.request(self.target)
        };
        let attached = answer(&what, client.local().await?.attach(request)).await?;
        warn_of_lagging(&attached);
        let endpoint = attached.endpoint.ok_or_else(|| Failure::bent(&what))?;
        let view = EndpointView::new(endpoint)?;
        show(format, &view, || {
            view.addresses.iter().map(|address| format!("{address}\n")).collect::<String>()
        })
    }
}

impl On {
    /// Makes the request for a target.
    pub fn request(self, target: attach_request::Target) -> AttachRequest {
        AttachRequest {
            target: Some(target),
            network: self.network,
            addresses: self.addresses.iter().map(ToString::to_string).collect(),
            aliases: Vec::new(),
            name: self.name,
            interface: None,
            default_route: false,
        }
    }
}

impl Detach {
    pub async fn execute(self, client: &Client, format: Format) -> Result<(), Failure> {
        let what = format!("detach {}", self.endpoint);
        let request = DetachRequest { reference: self.endpoint };
        let detached = answer(&what, client.local().await?.detach(request)).await?;
        let endpoint = detached.endpoint.ok_or_else(|| Failure::bent(&what))?;
        let name = endpoint.name.clone();
        let view = EndpointView::new(endpoint)?;
        show(format, &view, || format!("{name}\n"))
    }
}

/// Says on stderr which nodes do not know of the endpoint yet.
pub fn warn_of_lagging(attached: &AttachResponse) {
    if !attached.lagging.is_empty() {
        let nodes = attached.lagging.join(", ");
        eprintln!("overlayctl: warning: not acknowledged yet by {nodes}; see 'overlayctl node ls'");
    }
}

/// Reads TARGET.
fn target(text: &str) -> Result<attach_request::Target, String> {
    let allowed = "use netns:NAME, netns:/PATH, pid:N, container:NAME or host";
    if text == "host" {
        return Ok(attach_request::Target::Host(Host {}));
    }
    match text.split_once(':') {
        Some(("netns", name)) if !name.is_empty() => {
            Ok(attach_request::Target::Netns(name.to_owned()))
        }
        Some(("container", name)) if !name.is_empty() => {
            Ok(attach_request::Target::Container(name.to_owned()))
        }
        Some(("pid", pid)) => match pid.parse() {
            Ok(pid) if pid > 0 => Ok(attach_request::Target::Pid(pid)),
            Ok(_) | Err(_) => Err(format!("'{pid}' is no process; {allowed}")),
        },
        Some(_) | None => Err(format!("no such kind of target; {allowed}")),
    }
}

fn shown(target: &attach_request::Target) -> String {
    match target {
        attach_request::Target::Netns(name) => format!("netns:{name}"),
        attach_request::Target::Pid(pid) => format!("pid:{pid}"),
        attach_request::Target::Container(name) => format!("container:{name}"),
        attach_request::Target::Host(_) => "host".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::proto::LocalEndpoint, cli::output::golden};

    #[test]
    fn targets_are_read_and_others_say_what_is_allowed() {
        for text in ["netns:c1", "netns:/var/run/netns/c1", "pid:42", "container:web", "host"] {
            assert_eq!(shown(&target(text).unwrap()), text);
        }
        for text in ["c1", "planet:mars", "host:", "netns:", "container:"] {
            let why = "no such kind of target; use netns:NAME, netns:/PATH, pid:N, container:NAME or host";
            assert_eq!(target(text).unwrap_err(), why, "{text}");
        }
        for text in ["pid:x", "pid:0", "pid:-1"] {
            assert!(target(text).unwrap_err().contains("is no process; use netns:NAME"), "{text}");
        }
    }

    #[test]
    fn attach_and_detach_keep_their_json() {
        let endpoint = LocalEndpoint {
            id: vec![1; 16],
            name: "web".into(),
            network: "blue".into(),
            node: "n1".into(),
            addresses: vec!["10.0.0.2/24".into()],
            aliases: Vec::new(),
            interface: Some("eth0".into()),
            mtu: Some(1436),
        };
        golden("attach", &EndpointView::new(endpoint).unwrap());
    }
}
