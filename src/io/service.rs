//! The service manager that started this process, if one did (sd_notify(3)).

use std::{
    env,
    io::{Error, ErrorKind, Result},
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

/// Tells it that this process is ready. Without one nothing is told.
///
/// # Errors
/// There is one and it cannot be told.
pub fn tell_ready() -> Result<()> {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(&path)?,
        _ => return Err(Error::new(ErrorKind::InvalidInput, "NOTIFY_SOCKET is no address")),
    };
    UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address)?;
    Ok(())
}
