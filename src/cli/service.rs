//! `service create`, `update`, `scale`, `rollback`, `ls`, `ps`, `inspect` and `rm`.

mod definition;
mod progress;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;

use self::definition::Definition;
use super::{
    Failure, Format,
    client::{Client, answer},
    output::{Removed, Table, remove_each, short, show},
    task::TaskView,
};
use crate::{
    api::proto::{
        CreateServiceRequest, ListServicesRequest, ListTasksRequest, ServiceRequest,
        UpdateServiceRequest,
    },
    types::{Mode, Service, ServiceSpec},
};

/// `overlayctl service`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a service
    Create(Create),
    /// Change a service
    Update(Update),
    /// Set how many tasks replicated services have
    Scale {
        /// Name or id, and how many
        #[arg(required = true, value_name = "SERVICE=N", value_parser = scale)]
        services: Vec<(String, u32)>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Take a service back to what it was before its last change
    Rollback {
        /// Name, id, or the start of an id
        service: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// List the services
    Ls,
    /// List the tasks of a service
    Ps {
        /// Name, id, or the start of an id
        service: String,
    },
    /// Show one service
    Inspect {
        /// Name, id, or the start of an id
        service: String,
    },
    /// End services and their tasks
    Rm {
        /// Names, ids, or starts of ids
        #[arg(required = true)]
        services: Vec<String>,
    },
}

/// `overlayctl service create`.
#[derive(Args, Debug)]
pub struct Create {
    /// The service's name
    #[arg(long)]
    name: String,
    /// Whether it has so many tasks, or one on every node
    #[arg(long, value_enum, default_value = "replicated")]
    mode: ModeName,
    #[command(flatten)]
    definition: Definition,
    #[command(flatten)]
    wait: Wait,
    /// The command of its tasks, and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

/// `overlayctl service update`.
#[derive(Args, Debug)]
pub struct Update {
    #[command(flatten)]
    definition: Definition,
    /// Replace all tasks, even if nothing else changes
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    wait: Wait,
    /// Name, id, or the start of an id
    service: String,
    /// Another command for its tasks
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Whether to wait.
#[derive(Args, Clone, Copy, Debug)]
pub struct Wait {
    /// Return at once instead of when all tasks are as they are to be
    #[arg(short, long)]
    detach: bool,
}

/// What `--mode` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum ModeName {
    Replicated,
    Global,
}

impl Command {
    pub async fn execute(self, client: &Client, format: Format) -> Result<ExitCode, Failure> {
        match self {
            Self::Create(create) => return create.execute(client, format).await,
            Self::Update(update) => return update.execute(client, format).await,
            Self::Scale { services, wait } => {
                return scale_all(client, format, services, wait).await;
            }
            Self::Rollback { service, wait } => {
                let what = format!("roll back service {service}");
                let request = ServiceRequest { reference: service };
                let back = answer(&what, client.services().await?.roll_back(request)).await?;
                return done(client, format, &what, parse(&what, &back.service)?, wait).await;
            }
            Self::Ls => list(client, format).await?,
            Self::Ps { service } => tasks(client, format, service).await?,
            Self::Inspect { service } => inspect(client, format, service).await?,
            Self::Rm { services } => remove(client, format, services).await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Create {
    async fn execute(self, client: &Client, format: Format) -> Result<ExitCode, Failure> {
        let what = format!("create service {}", self.name);
        let mode = match (self.mode, self.definition.replicas) {
            (ModeName::Replicated, replicas) => {
                Mode::Replicated { replicas: replicas.unwrap_or(1) }
            }
            (ModeName::Global, None) => Mode::Global,
            (ModeName::Global, Some(_)) => {
                return Err(Failure::new(
                    what,
                    "a global service has one task a node; leave --replicas out",
                ));
            }
        };
        let mut spec = ServiceSpec {
            mode,
            task: Default::default(),
            update: Default::default(),
            rollback: Default::default(),
            labels: Default::default(),
        };
        self.definition.apply(client, &what, &mut spec).await?;
        spec.task.command = self.command;
        let spec = json(&what, &spec)?;
        let request = CreateServiceRequest { name: self.name, spec };
        let made = answer(&what, client.services().await?.create(request)).await?;
        done(client, format, &what, parse(&what, &made.service)?, self.wait).await
    }
}

impl Update {
    async fn execute(self, client: &Client, format: Format) -> Result<ExitCode, Failure> {
        let what = format!("update service {}", self.service);
        let service = find(client, &what, self.service).await?;
        let mut spec = service.spec.clone();
        self.definition.apply(client, &what, &mut spec).await?;
        match (self.definition.replicas, &mut spec.mode) {
            (Some(wanted), Mode::Replicated { replicas }) => *replicas = wanted,
            (Some(_), Mode::Global) => {
                return Err(Failure::new(
                    what,
                    "a global service has one task a node; leave --replicas out",
                ));
            }
            (None, Mode::Replicated { .. } | Mode::Global) => {}
        }
        if !self.command.is_empty() {
            spec.task.command = self.command;
        }
        spec.task.forced += u64::from(self.force);
        let updated = update(client, &what, &service, &spec).await?;
        done(client, format, &what, updated, self.wait).await
    }
}

async fn scale_all(
    client: &Client,
    format: Format,
    services: Vec<(String, u32)>,
    wait: Wait,
) -> Result<ExitCode, Failure> {
    let mut scaled = Vec::new();
    for (reference, wanted) in services {
        let what = format!("scale service {reference}");
        let service = find(client, &what, reference).await?;
        let mut spec = service.spec.clone();
        match &mut spec.mode {
            Mode::Replicated { replicas } => *replicas = wanted,
            Mode::Global => {
                return Err(Failure::new(what, "a global service has one task a node"));
            }
        }
        scaled.push((what.clone(), update(client, &what, &service, &spec).await?));
    }
    let mut code = ExitCode::SUCCESS;
    for (what, service) in scaled {
        if done(client, format, &what, service, wait).await? != ExitCode::SUCCESS {
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

async fn update(
    client: &Client,
    what: &str,
    service: &Service,
    spec: &ServiceSpec,
) -> Result<Service, Failure> {
    let (id, version) = (service.id.to_bytes().to_vec(), service.version);
    let request = UpdateServiceRequest { id, version, spec: json(what, spec)? };
    let updated = answer(what, client.services().await?.update(request)).await?;
    parse(what, &updated.service)
}

/// Prints the service's id, and waits until it has what it wants unless that is not wanted.
async fn done(
    client: &Client,
    format: Format,
    what: &str,
    service: Service,
    wait: Wait,
) -> Result<ExitCode, Failure> {
    show(format, &service, || format!("{}\n", service.id))?;
    if wait.detach {
        return Ok(ExitCode::SUCCESS);
    }
    progress::wait(client, what, &service).await
}

async fn find(client: &Client, what: &str, reference: String) -> Result<Service, Failure> {
    let request = client.reading(ServiceRequest { reference });
    let found = answer(what, client.services().await?.find(request)).await?;
    parse(what, &found.service)
}

#[derive(Debug, Serialize)]
struct ServiceView {
    id: String,
    name: String,
    mode: &'static str,
    running: u32,
    wanted: u32,
    command: Vec<String>,
}

async fn list(client: &Client, format: Format) -> Result<(), Failure> {
    let what = "list services";
    let request = client.reading(ListServicesRequest {});
    let listed = answer(what, client.services().await?.list(request)).await?;
    let mut views = Vec::new();
    for summary in listed.services {
        let service: Service = parse(what, &summary.service)?;
        let mode = match service.spec.mode {
            Mode::Replicated { .. } => "replicated",
            Mode::Global => "global",
        };
        views.push(ServiceView {
            id: service.id.to_string(),
            name: service.name.to_string(),
            mode,
            running: summary.running,
            wanted: summary.wanted,
            command: service.spec.task.command,
        });
    }
    views.sort_by(|a, b| a.name.cmp(&b.name));
    show(format, &views, || {
        let mut table = Table::new(&["ID", "NAME", "MODE", "REPLICAS", "COMMAND"]);
        for view in &views {
            table.row(vec![
                short(&view.id),
                view.name.clone(),
                view.mode.to_owned(),
                format!("{}/{}", view.running, view.wanted),
                view.command.join(" "),
            ]);
        }
        table.text()
    })
}

async fn tasks(client: &Client, format: Format, service: String) -> Result<(), Failure> {
    let what = format!("list the tasks of service {service}");
    let request = ListTasksRequest { service: Some(service), node: None };
    let request = client.reading(request);
    let listed = answer(&what, client.services().await?.list_tasks(request)).await?;
    let views = TaskView::all(&what, listed)?;
    show(format, &views, || TaskView::table(&views).text())
}

async fn inspect(client: &Client, format: Format, service: String) -> Result<(), Failure> {
    let what = format!("inspect service {service}");
    let service = find(client, &what, service).await?;
    // A definition is a tree, which JSON shows best.
    show(format, &service, || {
        serde_json::to_string_pretty(&service).map_or_else(|_| String::new(), |text| text + "\n")
    })
}

async fn remove(client: &Client, format: Format, services: Vec<String>) -> Result<(), Failure> {
    remove_each(format, services, async |reference| {
        let what = format!("remove service {reference}");
        let request = ServiceRequest { reference };
        let answer = answer(&what, client.services().await?.remove(request)).await?;
        let service: Service = parse(&what, &answer.service)?;
        Ok(Removed { id: service.id.to_string(), name: service.name.to_string() })
    })
    .await
}

fn parse(what: &str, text: &[u8]) -> Result<Service, Failure> {
    serde_json::from_slice(text).map_err(|_| Failure::bent(what))
}

fn json(what: &str, spec: &ServiceSpec) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(spec).map_err(|error| Failure::new(what, error.to_string()))
}

fn scale(text: &str) -> Result<(String, u32), String> {
    let parsed = text.split_once('=').filter(|(service, _)| !service.is_empty());
    let parsed =
        parsed.and_then(|(service, count)| Some((service.to_owned(), count.parse().ok()?)));
    parsed.ok_or_else(|| "use SERVICE=N".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::golden;

    #[test]
    fn services_keep_their_json() {
        let command = vec!["sleep".to_owned(), "1000".to_owned()];
        let (id, name) = ("1".repeat(25), "web".to_owned());
        let view = ServiceView { id, name, mode: "replicated", running: 2, wanted: 3, command };
        golden("service-ls", &[view]);
        golden("service-rm", &[Removed { id: "1".repeat(25), name: "web".to_owned() }]);
    }

    #[test]
    fn scaling_is_read() {
        assert_eq!(scale("web=3"), Ok(("web".to_owned(), 3)));
        for text in ["web", "=3", "web=x", "web=-1"] {
            assert_eq!(scale(text), Err("use SERVICE=N".to_owned()), "{text}");
        }
    }
}
