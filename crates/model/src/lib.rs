//! The words that every part of Evergate shares.
//!
//! Nothing here does I/O, reads a clock or keeps state: these are the values that cross a boundary,
//! between server and host ([`host`], [`stream`], [`join`]), between Neutron's names and the kernel's ([`names`]), and the
//! small types everything else is spelled with ([`id`], [`mac`]).
//!
//! Read [`host::HostConfig`] first: it is all that a host is ever told.

#![warn(missing_docs)]

pub mod flow;
pub mod host;
pub mod id;
pub mod join;
pub mod mac;
pub mod names;
pub mod stream;

pub use flow::{Flow, FlowKey};
pub use host::{HaState, HostConfig, HostReport};
pub use id::{
    AddressScopeId, AgentId, FloatingIpId, NetworkId, PortForwardingId, PortId, RouterId, SecurityGroupId,
    SecurityGroupRuleId, SubnetId, SubnetPoolId,
};
pub use mac::Mac;
