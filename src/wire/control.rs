//! Control messages between two agents, sealed like packets (next protocol 0x11, VNI 0).
//!
//! ```text
//! keepalive      0
//! echo request   1 | 0 (24 bits) | id (32 bits) | packets sealed under this session (64 bits)
//! echo reply     2 | 0 (24 bits) | id (32 bits) | packets opened under this session (64 bits)
//! ```

/// A control message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Proves that its sender holds the key; says nothing else.
    Keepalive,
    /// Asks for a reply, for the round trip and the loss towards the receiver.
    EchoRequest {
        /// Matches the reply to the request.
        id: u32,
        /// What the sender has sealed under this session, all lanes together.
        sealed: u64,
    },
    /// The reply.
    EchoReply {
        /// The request's.
        id: u32,
        /// What the replier has opened under this session, all lanes together.
        opened: u64,
    },
}

/// Says that the bytes are no control message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// The length of the longest message.
pub const MAX_LEN: usize = 16;

impl Control {
    /// Parses a message.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        match *bytes {
            [KEEPALIVE] => Ok(Self::Keepalive),
            [kind @ (ECHO_REQUEST | ECHO_REPLY), 0, 0, 0, i0, i1, i2, i3, ref packets @ ..] => {
                let id = u32::from_be_bytes([i0, i1, i2, i3]);
                let packets = packets.try_into().map_err(|_| Malformed)?;
                let packets = u64::from_be_bytes(packets);
                if kind == ECHO_REQUEST {
                    Ok(Self::EchoRequest { id, sealed: packets })
                } else {
                    Ok(Self::EchoReply { id, opened: packets })
                }
            }
            _ => Err(Malformed),
        }
    }

    /// Writes the message and returns its length.
    pub fn emit(&self, out: &mut [u8; MAX_LEN]) -> usize {
        let (kind, id, packets) = match *self {
            Self::Keepalive => {
                out[0] = KEEPALIVE;
                return 1;
            }
            Self::EchoRequest { id, sealed } => (ECHO_REQUEST, id, sealed),
            Self::EchoReply { id, opened } => (ECHO_REPLY, id, opened),
        };
        *out = [0; MAX_LEN];
        out[0] = kind;
        out[4..8].copy_from_slice(&id.to_be_bytes());
        out[8..16].copy_from_slice(&packets.to_be_bytes());
        MAX_LEN
    }
}

const KEEPALIVE: u8 = 0;
const ECHO_REQUEST: u8 = 1;
const ECHO_REPLY: u8 = 2;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn messages_are_read_as_they_were_written(id: u32, packets: u64) {
            for message in [
                Control::Keepalive,
                Control::EchoRequest { id, sealed: packets },
                Control::EchoReply { id, opened: packets },
            ] {
                let mut out = [0xff; MAX_LEN];
                let len = message.emit(&mut out);
                prop_assert_eq!(Control::parse(&out[..len]), Ok(message));
            }
        }

        #[test]
        fn what_is_accepted_is_written_back_the_same(bytes in proptest::collection::vec(0u8..3, 0..20)) {
            if let Ok(message) = Control::parse(&bytes) {
                let mut out = [0; MAX_LEN];
                let len = message.emit(&mut out);
                prop_assert_eq!(&out[..len], &bytes[..]);
            }
        }
    }

    #[test]
    fn bent_messages_are_refused() {
        for bytes in [&[][..], &[0, 0], &[3], &[1; 16], &[1, 0, 0, 0, 0, 0, 0, 0], &[2; 17]] {
            assert_eq!(Control::parse(bytes), Err(Malformed), "{bytes:?}");
        }
    }
}
