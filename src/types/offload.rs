//! The offloads of TUN devices and UDP sockets, each with its own switch.

use std::{fmt, str::FromStr};

/// Which offloads are used. All are on by default; a self-test or the operator turns some off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloads {
    /// TUN devices carry a virtio_net_hdr; without it the plain tun-tap queue is used.
    pub tun_vnet: bool,
    /// TUN devices hand over and accept partial checksums.
    pub tun_csum: bool,
    /// TCP segmentation over IPv4 at the TUN.
    pub tun_tso4: bool,
    /// TCP segmentation over IPv6 at the TUN.
    pub tun_tso6: bool,
    /// UDP segmentation over IPv4 at the TUN; together with that over IPv6 or not at all.
    pub tun_uso4: bool,
    /// UDP segmentation over IPv6 at the TUN; together with that over IPv4 or not at all.
    pub tun_uso6: bool,
    /// `UDP_SEGMENT` on sending.
    pub udp_gso: bool,
    /// `UDP_GRO` on receiving.
    pub udp_gro: bool,
}

/// Says what is wrong with an `--offload` list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OffloadError {
    /// The item is not `NAME=on` or `NAME=off`.
    #[error("'{0}' is not NAME=on or NAME=off")]
    Form(String),
    /// No offload has that name.
    #[error(
        "'{0}' is no offload; there are tun-vnet, tun-csum, tun-tso (tun-tso4, tun-tso6), tun-uso (tun-uso4, tun-uso6), udp-gso, udp-gro"
    )]
    Name(String),
}

impl Offloads {
    /// Everything on.
    pub const ALL: Self = Self {
        tun_vnet: true,
        tun_csum: true,
        tun_tso4: true,
        tun_tso6: true,
        tun_uso4: true,
        tun_uso6: true,
        udp_gso: true,
        udp_gro: true,
    };

    /// Turns off what cannot work without another: segmentation needs partial checksums, both need
    /// the virtio_net_hdr, and a TUN takes the UDP segmentation of both families or of none.
    pub fn normalised(mut self) -> Self {
        self.tun_csum &= self.tun_vnet;
        let uso = self.tun_uso4 && self.tun_uso6;
        (self.tun_uso4, self.tun_uso6) = (uso, uso);
        for segmentation in
            [&mut self.tun_tso4, &mut self.tun_tso6, &mut self.tun_uso4, &mut self.tun_uso6]
        {
            *segmentation &= self.tun_csum;
        }
        self
    }
}

impl Default for Offloads {
    fn default() -> Self {
        Self::ALL
    }
}

impl FromStr for Offloads {
    type Err = OffloadError;

    /// Reads `tun-tso=off,udp-gro=on,...`; what is not named stays on.
    fn from_str(text: &str) -> Result<Self, OffloadError> {
        let mut offloads = Self::ALL;
        for item in text.split(',').filter(|item| !item.is_empty()) {
            let form = || OffloadError::Form(item.to_owned());
            let (name, switch) = item.split_once('=').ok_or_else(form)?;
            let on = match switch {
                "on" => true,
                "off" => false,
                _ => return Err(form()),
            };
            match name {
                "tun-vnet" => offloads.tun_vnet = on,
                "tun-csum" => offloads.tun_csum = on,
                "tun-tso" => (offloads.tun_tso4, offloads.tun_tso6) = (on, on),
                "tun-tso4" => offloads.tun_tso4 = on,
                "tun-tso6" => offloads.tun_tso6 = on,
                "tun-uso" => (offloads.tun_uso4, offloads.tun_uso6) = (on, on),
                "tun-uso4" => offloads.tun_uso4 = on,
                "tun-uso6" => offloads.tun_uso6 = on,
                "udp-gso" => offloads.udp_gso = on,
                "udp-gro" => offloads.udp_gro = on,
                _ => return Err(OffloadError::Name(name.to_owned())),
            }
        }
        Ok(offloads.normalised())
    }
}

impl fmt::Display for Offloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let items = [
            ("tun-vnet", self.tun_vnet),
            ("tun-csum", self.tun_csum),
            ("tun-tso4", self.tun_tso4),
            ("tun-tso6", self.tun_tso6),
            ("tun-uso4", self.tun_uso4),
            ("tun-uso6", self.tun_uso6),
            ("udp-gso", self.udp_gso),
            ("udp-gro", self.udp_gro),
        ];
        for (i, (name, on)) in items.into_iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            write!(f, "{comma}{name}={}", if on { "on" } else { "off" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_turns_off_what_it_names_and_what_depends_on_it() {
        let parsed: Offloads = "tun-tso=off,udp-gro=off".parse().unwrap();
        assert_eq!(
            parsed,
            Offloads { tun_tso4: false, tun_tso6: false, udp_gro: false, ..Offloads::ALL }
        );
        let plain: Offloads = "tun-vnet=off".parse().unwrap();
        assert!(!plain.tun_csum && !plain.tun_uso6 && plain.udp_gso);
        assert_eq!(plain.to_string().parse(), Ok(plain));
        let one: Offloads = "tun-uso4=off".parse().unwrap();
        assert!(!one.tun_uso4 && !one.tun_uso6 && one.tun_csum && one.tun_tso6);
    }

    #[test]
    fn a_wrong_list_is_named() {
        assert_eq!("x=on".parse::<Offloads>(), Err(OffloadError::Name("x".into())));
        assert_eq!("udp-gso".parse::<Offloads>(), Err(OffloadError::Form("udp-gso".into())));
        assert_eq!("udp-gso=1".parse::<Offloads>(), Err(OffloadError::Form("udp-gso=1".into())));
    }
}
