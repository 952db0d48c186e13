//! What hosts are told: each its [`HostConfig`], as parts of one [`Picture`] of what they all need.
//!
//! A host needs the networks of the ports bound to it, of the routers it has copies of and of the distributed
//! routers it routes for, with every port on them and the hosts that share them. Whatever else there is, it is
//! not told.
//!
//! Many hosts need the same networks and routers. So each is read once, in a form that does not depend on the host
//! ([`network`], [`router`]), and what a host is told is derived from that when it is sent ([`host`]). The picture
//! is brought to a newer revision by reading what the change log names and nothing else ([`picture`]). It is no
//! truth: it can be thrown away at any time, and is what reading everything anew would give, which is what
//! [`host_config`] does.

mod host;
mod line;
mod network;
mod picture;
mod presence;
mod router;
mod rows;

use std::sync::Arc;

use evergate_model::HostConfig;

use crate::error::ApiError;
use crate::options::Options;
use crate::store::Tx;

pub use host::HostView;
pub use line::{Line, change, say, snapshot};
pub use picture::{News, Picture};

/// A host's name.
pub type Name = Arc<str>;

/// Builds what a host is told at the transaction's revision, from scratch.
///
/// # Errors
///
/// When the store cannot be read.
pub fn host_config(tx: &Tx<'_>, options: &Options, host: &str) -> Result<HostConfig, ApiError> {
    let mut picture = Picture::default();
    let news = picture.look(tx, options, &[host.into()])?;
    picture.take(news);
    let view = picture.view(host).ok_or_else(|| ApiError::internal("a host that was asked for has no view"))?;
    Ok(view.config(picture.revision()))
}
