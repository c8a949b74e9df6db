//! What is checked before any expensive step of a handshake.
//!
//! * mac1 proves that the sender knows our public key: cheap, and true of peers only.
//! * mac2, under load, proves that the sender receives at its address and port: it is made with a
//!   cookie that we sent there.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    constant_time, digest, hmac,
};

use crate::wire::handshake::{COOKIE_LEN, CookieReply, MAC_LEN};

/// The mac1 of messages to the node with one public key, and the seal of its cookies.
pub(super) struct MacKey {
    mac1: hmac::Key,
    cookie: LessSafeKey,
}

impl MacKey {
    /// Derives both from a public key.
    pub(super) fn new(public: &[u8; 32]) -> Self {
        let cookie = hash(b"overlay cookie v1", public);
        Self {
            mac1: hmac::Key::new(hmac::HMAC_SHA256, &hash(b"overlay mac1 v1", public)),
            // 32 bytes are always a key of AES-256.
            cookie: LessSafeKey::new(
                UnboundKey::new(&AES_256_GCM, &cookie).expect("a key of 32 bytes"),
            ),
        }
    }

    /// Computes mac1 over what stands before it.
    pub(super) fn mac1(&self, before: &[u8]) -> [u8; MAC_LEN] {
        truncate(hmac::sign(&self.mac1, before).as_ref())
    }

    /// Compares mac1 in constant time.
    pub(super) fn verify_mac1(&self, before: &[u8], mac1: &[u8; MAC_LEN]) -> bool {
        constant_time::verify_slices_are_equal(&self.mac1(before), mac1).is_ok()
    }

    /// Seals a cookie for the sender of a message with this mac1.
    pub(super) fn seal_cookie(
        &self,
        receiver: u32,
        cookie: [u8; COOKIE_LEN],
        mac1: &[u8; MAC_LEN],
        nonce: [u8; 12],
    ) -> Option<CookieReply> {
        let mut sealed = [0; COOKIE_LEN + 16];
        sealed[..COOKIE_LEN].copy_from_slice(&cookie);
        let (body, place) = sealed.split_at_mut(COOKIE_LEN);
        let unique = Nonce::assume_unique_for_key(nonce);
        let tag = self.cookie.seal_in_place_separate_tag(unique, Aad::from(mac1), body).ok()?;
        place.copy_from_slice(tag.as_ref());
        Some(CookieReply { receiver, nonce, sealed })
    }

    /// Opens a cookie that answers our message with this mac1.
    pub(super) fn open_cookie(
        &self,
        reply: &CookieReply,
        mac1: &[u8; MAC_LEN],
    ) -> Option<[u8; COOKIE_LEN]> {
        let mut sealed = reply.sealed;
        let nonce = Nonce::assume_unique_for_key(reply.nonce);
        let cookie = self.cookie.open_in_place(nonce, Aad::from(mac1), &mut sealed).ok()?;
        (&*cookie).try_into().ok()
    }
}

/// Computes mac2 over what stands before it.
pub(super) fn mac2(cookie: &[u8; COOKIE_LEN], before: &[u8]) -> [u8; MAC_LEN] {
    truncate(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, cookie), before).as_ref())
}

/// Compares mac2 in constant time.
pub(super) fn verify_mac2(cookie: &[u8; COOKIE_LEN], before: &[u8], mac: &[u8; MAC_LEN]) -> bool {
    constant_time::verify_slices_are_equal(&mac2(cookie, before), mac).is_ok()
}

/// Makes cookies bound to an address and port, under a secret that changes.
pub(super) struct CookieSecret(hmac::Key);

impl CookieSecret {
    /// Takes a secret drawn by the caller.
    pub(super) fn new(secret: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// Returns the cookie of an address and port.
    pub(super) fn cookie(&self, source: std::net::SocketAddr) -> [u8; COOKIE_LEN] {
        let mut context = hmac::Context::with_key(&self.0);
        match source.ip() {
            std::net::IpAddr::V4(v4) => context.update(&v4.octets()),
            std::net::IpAddr::V6(v6) => context.update(&v6.octets()),
        }
        context.update(&source.port().to_be_bytes());
        truncate(context.sign().as_ref())
    }
}

fn hash(label: &[u8], public: &[u8; 32]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(label);
    context.update(public);
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// Takes the first 16 of at least 16 bytes.
fn truncate(tag: &[u8]) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&tag[..16]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_comes_through_only_to_the_message_that_asked() {
        let key = MacKey::new(&[7; 32]);
        let reply = key.seal_cookie(1, [2; 16], &[3; 16], [4; 12]).unwrap();
        assert_eq!(key.open_cookie(&reply, &[3; 16]), Some([2; 16]));
        assert_eq!(key.open_cookie(&reply, &[5; 16]), None);
        assert_eq!(MacKey::new(&[8; 32]).open_cookie(&reply, &[3; 16]), None);
    }

    #[test]
    fn a_cookie_is_bound_to_address_and_port() {
        let secret = CookieSecret::new(&[1; 32]);
        let cookie = |text: &str| secret.cookie(text.parse().unwrap());
        assert_eq!(cookie("10.0.0.1:1"), cookie("10.0.0.1:1"));
        assert_ne!(cookie("10.0.0.1:1"), cookie("10.0.0.1:2"));
        assert_ne!(cookie("10.0.0.1:1"), cookie("10.0.0.2:1"));
        assert_ne!(cookie("[fd::1]:1"), cookie("[fd::2]:1"));
    }

    #[test]
    fn macs_depend_on_key_and_message() {
        let key = MacKey::new(&[7; 32]);
        let mac = key.mac1(b"message");
        assert!(key.verify_mac1(b"message", &mac));
        assert!(!key.verify_mac1(b"messagf", &mac));
        assert!(!MacKey::new(&[8; 32]).verify_mac1(b"message", &mac));
        assert!(verify_mac2(&[1; 16], b"m", &mac2(&[1; 16], b"m")));
        assert!(!verify_mac2(&[2; 16], b"m", &mac2(&[1; 16], b"m")));
    }
}
