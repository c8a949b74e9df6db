//! Refusals as the answers of calls. The sentence stays; the code tells programs what kind it is.

use tonic::{Code, Status};

use crate::engine::cluster::Refusal;

/// Turns a refusal into an answer.
pub fn of_refusal(refusal: Refusal) -> Status {
    Status::new(code(&refusal), refusal.to_string())
}

/// Turns a failure of the manager itself into an answer.
pub fn of_failure(error: anyhow::Error) -> Status {
    Status::internal(format!("{error:#}; see the manager's log"))
}

fn code(refusal: &Refusal) -> Code {
    match refusal {
        Refusal::Unknown { .. } => Code::NotFound,
        Refusal::NameTaken { .. }
        | Refusal::IdUsed { .. }
        | Refusal::KeyInUse { .. }
        | Refusal::VniTaken { .. }
        | Refusal::AddressInUse { .. } => Code::AlreadyExists,
        Refusal::TooMany { .. }
        | Refusal::SubnetsExhausted { .. }
        | Refusal::VnisExhausted
        | Refusal::AddressesExhausted { .. } => Code::ResourceExhausted,
        Refusal::ClusterExists | Refusal::NoCluster | Refusal::NetworkInUse { .. } => {
            Code::FailedPrecondition
        }
        Refusal::NotYours { .. } => Code::PermissionDenied,
        Refusal::PoolUnusable { .. }
        | Refusal::Ambiguous { .. }
        | Refusal::LabelsTooLarge
        | Refusal::NotNetworkAddress { .. }
        | Refusal::SubnetTooSmall { .. }
        | Refusal::SubnetTooLarge { .. }
        | Refusal::SubnetReserved { .. }
        | Refusal::SubnetsOverlap { .. }
        | Refusal::SubnetFamilyTwice { .. }
        | Refusal::GatewayOutside { .. }
        | Refusal::GatewayReserved { .. }
        | Refusal::GatewayTwice { .. }
        | Refusal::VniZero
        | Refusal::MtuOutOfRange { .. }
        | Refusal::AddressOutside { .. }
        | Refusal::AddressReserved { .. }
        | Refusal::AddressIsGateway { .. }
        | Refusal::AddressFamilyTwice { .. }
        | Refusal::TooManyAliases => Code::InvalidArgument,
    }
}
