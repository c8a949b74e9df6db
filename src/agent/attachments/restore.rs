//! Takes over, when a process starts, the endpoints that the one before left: what is still there goes
//! on, what is not is forgotten, except that a Docker container may come back.

use tracing::{debug, info, warn};

use super::{
    super::{
        namespace::Target,
        records::{Device, EndpointRecord},
    },
    Attachments,
};

/// What has become of an endpoint of the process before.
enum Restored {
    /// Its device is in use.
    Taken(Target),
    /// Its container does not run.
    Stopped {
        /// The name of its device.
        made_again_as: String,
    },
    /// Nothing is left of it.
    Ended,
}

impl Attachments {
    /// Takes the devices of the endpoints that the process before left. Those whose container has
    /// ended are forgotten; the cluster hears of that when the manager is there.
    ///
    /// # Errors
    /// The records cannot be read.
    pub async fn restore(&self) -> anyhow::Result<()> {
        let _turn = self.turn.lock().await;
        let (records, damaged) = self.records.endpoints()?;
        for error in damaged {
            warn!(error = format!("{error:#}"), "an endpoint is lost");
        }
        let found = records.len();
        for (id, record) in records {
            match self.restore_one(&record).await {
                Ok(Restored::Taken(target)) => {
                    self.watch.watch(id, target.clone(), record.namespace);
                    self.held().insert(id, EndpointRecord { target, ..record });
                }
                Ok(Restored::Stopped { made_again_as }) => {
                    let device = Device::Stopped { made_again_as };
                    self.hold_stopped(EndpointRecord { device, ..record });
                }
                Ok(Restored::Ended) => {
                    info!(endpoint = %record.endpoint.name, "its container ended meanwhile");
                    self.forget(id);
                }
                // The record stays: what is in the way may be gone at the next start.
                Err(error) => warn!(
                    endpoint = %record.endpoint.name,
                    error = format!("{error:#}"),
                    "an endpoint's interface is not forwarded"
                ),
            }
        }
        if found > 0 {
            info!(endpoints = self.held().len(), of = found, "endpoints taken over");
        }
        // What containers did while nobody looked is asked.
        self.container_attached.notify_one();
        Ok(())
    }

    async fn restore_one(&self, record: &EndpointRecord) -> anyhow::Result<Restored> {
        let (id, target) = (record.endpoint.id, record.target.still(record.namespace));
        let interface = match &record.device {
            Device::Made(interface) => interface.clone(),
            Device::Stopped { made_again_as } => {
                return Ok(Restored::Stopped { made_again_as: made_again_as.clone() });
            }
            Device::Making => {
                // The attachment was cut off by the end of the process; nobody was told that it is there.
                if let Some(target) = target {
                    self.dataplane.clear(id, &target).await?;
                }
                return Ok(Restored::Ended);
            }
        };
        let made_again_as = interface.name.clone();
        let taken = match &target {
            Some(target) => self.dataplane.take(record.network.id, id, target, interface).await,
            None => Ok(None),
        };
        match (target, taken, record.target.container()) {
            (Some(target), Ok(Some(())), _) => Ok(Restored::Taken(target)),
            (_, Ok(_), None) => Ok(Restored::Ended),
            (_, Err(error), None) => Err(error),
            (_, Ok(_), Some(_)) => Ok(Restored::Stopped { made_again_as }),
            // It ended this moment; or it did not, and the device is made anew.
            (_, Err(error), Some(_)) => {
                debug!(endpoint = %id, error = format!("{error:#}"), "the device is not taken");
                Ok(Restored::Stopped { made_again_as })
            }
        }
    }
}
