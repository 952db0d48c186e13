//! Identifiers, one type per kind of object, so that a port's id cannot be passed for a router's.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// Makes the id that a test or an example can name by a small number.
            pub const fn from_u128(n: u128) -> Self {
                Self(Uuid::from_u128(n))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(s: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(s).map(Self)
            }
        }
    )*};
}

ids! {
    /// A Neutron network.
    NetworkId,
    /// A Neutron subnet.
    SubnetId,
    /// A Neutron port.
    PortId,
    /// A Neutron router.
    RouterId,
    /// A Neutron floating IP.
    FloatingIpId,
    /// A Neutron agent: one role of one host.
    AgentId,
    /// A Neutron port forwarding of a floating IP.
    PortForwardingId,
    /// A Neutron address scope.
    AddressScopeId,
    /// A Neutron subnet pool.
    SubnetPoolId,
    /// A Neutron security group.
    SecurityGroupId,
    /// A Neutron security group rule.
    SecurityGroupRuleId,
}
