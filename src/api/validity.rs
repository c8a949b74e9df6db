//! When a certificate is valid, read from its bytes, and when it is due to be renewed.
//!
//! ```text
//! SEQUENCE { SEQUENCE { [0] version, INTEGER serial, SEQUENCE signature, SEQUENCE issuer,
//!                       SEQUENCE { notBefore, notAfter }, ... }, ... }      (RFC 5280, section 4.1)
//! ```

use std::time::{Duration, SystemTime};

/// How much earlier than they are made certificates are valid, so that a host whose clock is behind
/// can use its own.
pub const BACKDATED: Duration = Duration::from_secs(3600);

/// When a certificate is valid, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// From when.
    pub not_before: SystemTime,
    /// Until when.
    pub not_after: SystemTime,
}

impl Validity {
    /// Reads the validity of a certificate (DER). `None` if it is none.
    pub fn of(certificate: &[u8]) -> Option<Self> {
        let (_, certificate, _) = element(certificate)?;
        let (_, mut fields, _) = element(certificate)?;
        for _version_serial_signature_issuer in 0..4 {
            (_, _, fields) = element(fields)?;
        }
        let (_, times, _) = element(fields)?;
        let (tag, not_before, times) = element(times)?;
        let not_before = time(tag, not_before)?;
        let (tag, not_after, _) = element(times)?;
        Some(Self { not_before, not_after: time(tag, not_after)? })
    }

    /// Returns how long the certificate was to be used when it was made.
    pub fn life(&self) -> Duration {
        let all = self.not_after.duration_since(self.not_before).unwrap_or_default();
        all.saturating_sub(BACKDATED)
    }

    /// Returns after what part of its life a certificate is renewed: at 50 to 80 %, drawn, so that
    /// nodes that came together do not renew together.
    pub fn renewed_after(&self, drawn: u8) -> Duration {
        let life = self.life();
        life / 2 + life * 3 / 10 * u32::from(drawn) / u32::from(u8::MAX)
    }

    /// Returns how long it is until a certificate is renewed of which only the bytes are known, by a
    /// clock that may be wrong.
    pub fn renewed_in(&self, drawn: u8, now: SystemTime) -> Duration {
        let after = self.renewed_after(drawn);
        let at = self.not_before + BACKDATED + after;
        at.duration_since(now).unwrap_or_default().min(after)
    }
}

/// Cuts the first element off: its tag, its content, and what follows.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        // The long form: the length in so many bytes, big endian.
        0x81..=0x84 => {
            let (len, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
            (len.iter().fold(0, |len, byte| len << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(len)?;
    Some((tag, content, rest))
}

/// Reads a time, which is in UTC and has whole seconds (RFC 5280, section 4.1.2.5).
fn time(tag: u8, content: &[u8]) -> Option<SystemTime> {
    let text = std::str::from_utf8(content).ok()?;
    let digits = text.strip_suffix('Z')?;
    let digits = match tag {
        UTC_TIME if digits.get(..2)? < "50" => format!("20{digits}"),
        UTC_TIME => format!("19{digits}"),
        GENERALIZED_TIME => digits.to_owned(),
        _ => return None,
    };
    if digits.len() != 14 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (date, time) = digits.split_at(8);
    let text = format!(
        "{}-{}-{}T{}:{}:{}Z",
        &date[..4],
        &date[4..6],
        &date[6..],
        &time[..2],
        &time[2..4],
        &time[4..]
    );
    humantime::parse_rfc3339(&text).ok()
}

const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn certificate(from: (i32, u8, u8), to: (i32, u8, u8)) -> Vec<u8> {
        let mut params = CertificateParams::new(["n.example".to_owned()]).unwrap();
        params.not_before = date_time_ymd(from.0, from.1, from.2);
        params.not_after = date_time_ymd(to.0, to.1, to.2);
        let made = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        made.der().to_vec()
    }

    #[test]
    fn both_forms_of_a_time_are_read() {
        let made = certificate((2026, 2, 28), (2051, 12, 31));
        let read = Validity::of(&made).unwrap();
        let text = |time| humantime::format_rfc3339(time).to_string();
        assert_eq!(text(read.not_before), "2026-02-28T00:00:00Z");
        assert_eq!(text(read.not_after), "2051-12-31T00:00:00Z");
        for len in 0..made.len() {
            assert_eq!(Validity::of(&made[..len]), None, "cut at {len}");
        }
    }

    #[test]
    fn a_certificate_is_renewed_at_50_to_80_percent_of_its_life() {
        let made = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let life = Duration::from_secs(1000);
        let validity = Validity { not_before: made - BACKDATED, not_after: made + life };
        assert_eq!(validity.life(), life);
        let seconds = |drawn, now: SystemTime| validity.renewed_in(drawn, now).as_secs();
        assert_eq!((seconds(0, made), seconds(255, made)), (500, 800));
        assert_eq!(seconds(0, made + Duration::from_secs(400)), 100);
        assert_eq!(seconds(255, made + life), 0, "it is late");
        assert_eq!(seconds(0, made - BACKDATED), 500, "the clock is behind");
    }
}
