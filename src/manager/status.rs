//! Refusals as the answers of calls. The sentence stays; the code tells programs what kind it is.

use tonic::{Code, Status};

use super::log::ProposeError;
use crate::engine::cluster::Refusal;

/// Turns a proposal without outcome into an answer.
pub fn of_proposal(error: ProposeError) -> Status {
    match error {
        ProposeError::Refused(refusal) => of_refusal(refusal),
        ProposeError::Stopped(stopped) => Status::unavailable(stopped.to_string()),
        ProposeError::NoLeader => Status::unavailable(error.to_string()),
        ProposeError::TooLarge { .. } => Status::invalid_argument(error.to_string()),
    }
}

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
        Refusal::Unknown { .. } | Refusal::NoLabel { .. } => Code::NotFound,
        Refusal::NameTaken { .. }
        | Refusal::IdUsed { .. }
        | Refusal::KeyInUse { .. }
        | Refusal::VniTaken { .. }
        | Refusal::AddressInUse { .. } => Code::AlreadyExists,
        Refusal::TooMany { .. }
        | Refusal::TooManyTokens
        | Refusal::SubnetsExhausted { .. }
        | Refusal::VnisExhausted
        | Refusal::AddressesExhausted { .. } => Code::ResourceExhausted,
        Refusal::Versions { .. }
        | Refusal::ClusterExists
        | Refusal::NoCluster
        | Refusal::SecretRotating
        | Refusal::RootRotating { .. }
        | Refusal::OnlyManager { .. }
        | Refusal::NetworkInUse { .. }
        | Refusal::NetworkOfServices { .. }
        | Refusal::OfTask { .. }
        | Refusal::NoPrevious { .. }
        | Refusal::ModeChanged { .. } => Code::FailedPrecondition,
        Refusal::ServiceChanged { .. } => Code::Aborted,
        Refusal::NotYours { .. }
        | Refusal::TokenUnknown
        | Refusal::TokenRotated
        | Refusal::TokenExpired
        | Refusal::TokenUsedUp => Code::PermissionDenied,
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
        | Refusal::TooManyAliases
        | Refusal::Definition(_) => Code::InvalidArgument,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::log::Stopped;

    #[test]
    fn a_stopped_log_is_unavailable_and_keeps_its_sentence() {
        let stopped = Stopped::Full { path: "/s/log.redb".into(), why: "no space".into() };
        let status = of_proposal(stopped.into());
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(
            status.message(),
            "the log /s/log.redb is stopped: no space; free space on that disk, then start overlayd again"
        );
        let refused = of_proposal(Refusal::VniZero.into());
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert_eq!(of_proposal(ProposeError::TooLarge { bytes: 1 }).code(), Code::InvalidArgument);
    }
}
