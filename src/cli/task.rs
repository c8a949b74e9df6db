//! `task ls`, and tasks as tables and JSON show them.

use std::{collections::BTreeMap, time::Duration};

use clap::Subcommand;
use serde::Serialize;

use super::{
    Failure, Format,
    client::{Client, answer},
    output::{Table, instant, short, show},
};
use crate::{
    api::proto::{ListTasksRequest, ListTasksResponse, TaskSummary},
    types::{Desired, Exit, Slot, Task, TaskState},
};

/// `overlayctl task`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List all tasks
    Ls,
}

impl Command {
    pub async fn execute(self, client: &Client, format: Format) -> Result<(), Failure> {
        match self {
            Self::Ls => {
                let (what, request) = ("list tasks", ListTasksRequest::default());
                let request = client.reading(request);
                let listed = answer(what, client.services().await?.list_tasks(request)).await?;
                let views = TaskView::all(what, listed)?;
                show(format, &views, || TaskView::table(&views).text())
            }
        }
    }
}

/// A task.
#[derive(Debug, Serialize)]
pub struct TaskView {
    id: String,
    name: String,
    slot: Option<u32>,
    node: Option<String>,
    desired: Desired,
    current: TaskState,
    since: String,
    addresses: BTreeMap<String, Vec<String>>,
    error: Option<String>,
    #[serde(skip)]
    since_ms: u64,
}

impl TaskView {
    /// Reads all of an answer, those of a slot together, the newest first.
    pub fn all(what: &str, listed: ListTasksResponse) -> Result<Vec<Self>, Failure> {
        let read = |summary: TaskSummary| {
            let task: Task =
                serde_json::from_slice(&summary.task).map_err(|_| Failure::bent(what))?;
            Ok((summary.service.clone(), task.slot, task.is_wanted(), Self::new(task, summary)?))
        };
        let mut views = listed.tasks.into_iter().map(read).collect::<Result<Vec<_>, Failure>>()?;
        views.sort_by(|a, b| {
            let newest = (b.2, b.3.since_ms).cmp(&(a.2, a.3.since_ms));
            (&a.0, a.1).cmp(&(&b.0, b.1)).then(newest)
        });
        Ok(views.into_iter().map(|(.., view)| view).collect())
    }

    fn new(task: Task, summary: TaskSummary) -> Result<Self, Failure> {
        let (name, slot) = match task.slot {
            Slot::Replica(number) => (format!("{}.{number}", summary.service), Some(number)),
            Slot::Node(_) => (summary.service, None),
        };
        let failed = task.status.exit.filter(|exit| *exit != Exit::Status(0));
        let error = task.status.message.or(failed.map(|exit| exit.to_string()));
        let addresses = summary.addresses.into_iter();
        Ok(Self {
            id: task.id.to_string(),
            name,
            slot,
            node: Some(summary.node).filter(|node| !node.is_empty()),
            desired: task.desired,
            current: task.status.state,
            since: instant(Duration::from_millis(task.status.since_ms))?,
            addresses: addresses.map(|of| (of.network, of.addresses)).collect(),
            error,
            since_ms: task.status.since_ms,
        })
    }

    /// Shows them.
    pub fn table(views: &[Self]) -> Table {
        let headers = ["ID", "NAME", "NODE", "DESIRED", "CURRENT", "ADDRESSES", "ERROR"];
        let mut table = Table::new(&headers);
        for view in views {
            let addresses: Vec<String> = view.addresses.values().flatten().cloned().collect();
            table.row(vec![
                short(&view.id),
                view.name.clone(),
                view.node.clone().unwrap_or_default(),
                view.desired.to_string(),
                format!("{} {}", view.current, age(view.since_ms)),
                addresses.join(","),
                view.error.clone().unwrap_or_default(),
            ]);
        }
        table
    }
}

/// How long ago that was, in its largest unit.
fn age(since_ms: u64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now_ms = now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
    let seconds = Duration::from_millis(now_ms.saturating_sub(since_ms)).as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::proto::TaskAddresses,
        cli::output::golden,
        types::{NodeId, ServiceId, TaskId, TaskStatus},
    };

    fn summary(id: u128, slot: Slot, desired: Desired, status: TaskStatus) -> TaskSummary {
        let task = Task {
            id: TaskId::from_u128(id),
            service: ServiceId::from_u128(1),
            slot,
            version: 1,
            desired,
            status,
            node: Some(NodeId::from_u128(2)),
            endpoints: Vec::new(),
            attempt: 0,
            window_start_ms: 0,
        };
        let addresses = match desired {
            Desired::Running => {
                vec![TaskAddresses { network: "blue".into(), addresses: vec!["10.0.0.5".into()] }]
            }
            Desired::Ready | Desired::Shutdown | Desired::Remove => Vec::new(),
        };
        TaskSummary {
            task: serde_json::to_vec(&task).unwrap(),
            service: "web".into(),
            node: "n2".into(),
            addresses,
        }
    }

    #[test]
    fn tasks_keep_their_json() {
        let at = 1_700_000_000_123;
        let status = |state, exit| TaskStatus { state, since_ms: at, message: None, exit };
        let (runs, failed) = (TaskState::Running, TaskState::Failed);
        let slot = Slot::Replica(1);
        let tasks = vec![
            summary(7, slot, Desired::Shutdown, status(failed, Some(Exit::Status(3)))),
            summary(8, slot, Desired::Running, status(runs, None)),
        ];
        let views = TaskView::all("list tasks", ListTasksResponse { tasks }).unwrap();
        golden("service-ps", &views);
        let text = TaskView::table(&views).text();
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[1].starts_with("000000000000   web.1   n2     running    running "),
            "{text}"
        );
        assert!(lines[2].ends_with("exit status 3"), "{text}");
    }

    #[test]
    fn ages_have_their_largest_unit() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let now_ms = u64::try_from(now.as_millis()).unwrap();
        for (before_s, text) in [(0, "0 s"), (61, "1 min"), (7300, "2 h"), (200_000, "2 d")] {
            assert_eq!(age(now_ms - before_s * 1000), text);
        }
    }
}
