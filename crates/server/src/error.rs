//! Errors of the API, under Neutron's names, with Neutron's status codes and texts.
//!
//! Clients match on `type` and show `message`, so both are part of the contract. Every body is built
//! by [`ApiError::body`] and nowhere else.

use std::fmt;

use serde_json::{Value, json};

use crate::store::{StoreError, TxError};

/// Declares each error once: its type name, fields, status and text.
macro_rules! api_errors {
    ($($(#[$doc:meta])* $name:ident { $($field:ident),* } $status:literal $text:literal;)*) => {
        /// An answer other than success.
        #[derive(Debug)]
        #[expect(missing_docs, reason = "fields are the words of the message beside them")]
        pub enum ApiError {
            $($(#[$doc])* $name { $($field: String),* },)*
            /// The store failed, or refused the write after all.
            Store(StoreError),
        }

        impl ApiError {
            fn declared(&self) -> Option<(u16, &'static str)> {
                match self {
                    $(Self::$name { .. } => Some(($status, stringify!($name))),)*
                    Self::Store(_) => None,
                }
            }
        }

        impl fmt::Display for ApiError {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$name { $($field),* } => write!(f, $text),)*
                    Self::Store(StoreError::Constraint { .. }) => {
                        write!(f, "The request conflicts with another one that was handled at the same time.")
                    }
                    Self::Store(StoreError::Contended(_)) => {
                        write!(f, "The request met others that changed the same things. Try again soon.")
                    }
                    Self::Store(StoreError::Unstorable) => {
                        write!(f, "Invalid input for operation: a text has a character of code 0 in it.")
                    }
                    // The outage alone, in words of our own: what the database said may name what it holds.
                    Self::Store(StoreError::Unavailable { outage, .. }) => {
                        write!(f, "The database cannot be used: {outage}. Try again soon.")
                    }
                    Self::Store(_) => {
                        write!(f, "Request Failed: internal server error while processing your request.")
                    }
                }
            }
        }
    };
}

api_errors! {
    /// The request as such is wrong: attributes, JSON, query.
    HTTPBadRequest { message } 400 "{message}";
    /// Policy forbids it.
    HTTPForbidden { message } 403 "{message}";
    /// No such URL, or an object that the caller must not know of.
    HTTPNotFound { message } 404 "{message}";
    /// The URL exists, the verb does not.
    HTTPMethodNotAllowed { message } 405 "{message}";
    /// The verb is known to Neutron but not offered here.
    HTTPNotImplemented { message } 501 "{message}";
    /// The request's body took too long.
    HTTPRequestTimeout { message } 408 "{message}";
    /// The request's body is larger than any request needs.
    HTTPRequestEntityTooLarge { message } 413 "{message}";
    /// Too many requests are under way.
    HTTPServiceUnavailable { message } 503 "{message}";
    /// Neutron has no limit of this kind; the status is what its clients understand.
    HTTPTooManyRequests { seconds } 429 "Too many requests: try again in {seconds} s.";
    /// A generic conflict.
    HTTPConflict { message } 409 "{message}";
    /// Our own mistake.
    HTTPInternalServerError { message } 500 "{message}";
    /// A value that passes the attribute's validation and still cannot be used.
    InvalidInput { reason } 400 "Invalid input for operation: {reason}.";
    /// A request that contradicts the state of things.
    BadRequest { resource, reason } 400 "Bad {resource} request: {reason}.";

    NetworkNotFound { id } 404 "Network {id} could not be found.";
    SubnetNotFound { id } 404 "Subnet {id} could not be found.";
    SubnetPoolNotFound { id } 404 "Subnet pool {id} could not be found.";
    AddressScopeNotFound { id } 404 "Address scope {id} could not be found.";
    PortNotFound { id } 404 "Port {id} could not be found.";
    RouterNotFound { id } 404 "Router {id} could not be found";
    FloatingIPNotFound { id } 404 "Floating IP {id} could not be found";
    PortForwardingNotFound { id } 404 "Port Forwarding {id} could not be found.";
    AgentNotFound { id } 404 "Agent {id} could not be found.";
    ExtensionNotFound { alias } 404 "Extension with alias {alias} does not exist";
    AvailabilityZoneNotFound { zone } 404 "AvailabilityZone {zone} could not be found.";
    TagNotFound { tag } 404 "Tag {tag} could not be found.";

    NetworkInUse { id, reason } 409 "Unable to complete operation on network {id}. {reason}.";
    SubnetInUse { id, reason } 409 "Unable to complete operation on subnet {id}: {reason}.";
    PortInUse { id, network, device } 409 "Unable to complete operation on port {id} for network {network}. Port already has an attached device {device}.";
    ServicePortInUse { id, reason } 409 "Port {id} cannot be deleted directly via the port API: {reason}.";
    PortBound { id, vif_type, old_mac, new_mac } 409 "Unable to complete operation on port {id}, port is already bound, port type: {vif_type}, old_mac {old_mac}, new_mac {new_mac}.";
    MacAddressInUse { network, mac } 409 "Unable to complete operation for network {network}. The mac address {mac} is in use.";
    MacAddressGenerationFailure { network } 503 "Unable to generate unique mac on network {network}.";
    IpAddressInUse { network, ip } 409 "Unable to complete operation for network {network}. The IP address {ip} is in use.";
    IpAddressAlreadyAllocated { ip, subnet } 409 "IP address {ip} already allocated in subnet {subnet}";
    IpAddressGenerationFailure { network } 409 "No more IP addresses available on network {network}.";
    ExternalIpAddressExhausted { network } 400 "Unable to find any IP address on external network {network}.";
    InvalidIpForNetwork { ip } 400 "IP address {ip} is not a valid IP for any of the subnets on the specified network.";
    InvalidIpForSubnet { ip } 400 "IP address {ip} is not a valid IP for the specified subnet.";
    InvalidAllocationPool { pool } 400 "The allocation pool {pool} is not valid.";
    OutOfBoundsAllocationPool { pool, cidr } 400 "The allocation pool {pool} spans beyond the subnet cidr {cidr}.";
    OverlappingAllocationPools { first, second, cidr } 409 "Found overlapping allocation pools: {first} {second} for subnet {cidr}.";
    GatewayConflictWithAllocationPools { gateway, pool } 409 "Gateway ip {gateway} conflicts with allocation pool {pool}.";
    GatewayIpInUse { ip, port } 409 "Current gateway ip {ip} already in use by port {port}. Unable to update.";
    DNSNameServersExhausted { subnet, quota } 400 "Unable to complete operation for {subnet}. The number of DNS nameservers exceeds the limit {quota}.";
    HostRoutesExhausted { subnet, quota } 400 "Unable to complete operation for {subnet}. The number of host routes exceeds the limit {quota}.";
    SubnetMismatchForPort { port, subnet } 400 "Subnet on port {port} does not match the requested subnet {subnet}.";

    EmptySubnetPoolPrefixList {} 400 "Empty subnet pool prefix list.";
    PrefixVersionMismatch {} 400 "Cannot mix IPv4 and IPv6 prefixes in a subnet pool.";
    IllegalSubnetPoolPrefixBounds { prefix_type, prefixlen, base_type, base } 400 "Illegal prefix bounds: {prefix_type}={prefixlen}, {base_type}={base}.";
    IllegalSubnetPoolPrefixUpdate { reason } 400 "Illegal update to prefixes: {reason}.";
    IllegalSubnetPoolUpdate { reason } 400 "Illegal subnetpool update : {reason}.";
    IllegalSubnetPoolAssociationToAddressScope { pool, scope } 400 "Illegal subnetpool association: subnetpool {pool} cannot be associated with address scope {scope}.";
    IllegalSubnetPoolIpVersionAssociationToAddressScope { pool, scope, version } 400 "Illegal subnetpool association: subnetpool {pool} cannot associate with address scope {scope} because subnetpool ip_version is not {version}.";
    AddressScopePrefixConflict {} 409 "Failed to associate address scope: subnetpools within an address scope must have unique prefixes.";
    AddressScopeInUse { id } 409 "Unable to complete operation on address scope {id}. There are one or more subnet pools in use on the address scope.";
    AddressScopeUpdateError { id, reason } 400 "Unable to update address scope {id} : {reason}.";
    NetworkAddressScopeAffinityError {} 400 "Subnets of the same address family hosted on the same network must all be allocated from the same address scope.";
    NetworkSubnetPoolAffinityError {} 400 "Subnets hosted on the same network must be allocated from the same subnet pool.";
    SubnetPoolDeleteError { reason } 400 "Unable to delete subnet pool: {reason}.";
    SubnetPoolQuotaExceeded {} 409 "Per-tenant subnet pool prefix quota exceeded.";
    /// Deviation: Neutron answers 500.
    SubnetAllocationError { reason } 409 "Failed to allocate subnet: {reason}.";
    MinPrefixSubnetAllocationError { prefixlen, min } 400 "Unable to allocate subnet with prefix length {prefixlen}, minimum allowed prefix is {min}.";
    MaxPrefixSubnetAllocationError { prefixlen, max } 400 "Unable to allocate subnet with prefix length {prefixlen}, maximum allowed prefix is {max}.";

    NetworkMTUSubnetConflict { network, mtu } 409 "MTU of {network} is not valid, subnet requires a minimum of {mtu}";
    NoNetworkAvailable {} 503 "Unable to create the network. No tenant network is available for allocation.";
    TunnelIdInUse { vni } 409 "Unable to create the network. The tunnel ID {vni} is in use.";
    FlatNetworkInUse { physical_network } 409 "Unable to create the flat network. Physical network {physical_network} is in use.";
    InvalidSharedSetting { network } 409 "Unable to reconfigure sharing settings for network {network}. Multiple tenants are using it.";
    ExternalNetworkInUse { id } 409 "External network {id} cannot be updated to be made non-external, since it has existing gateway ports.";
    DefaultExternalNetworkExists { id } 409 "A default external network already exists: {id}.";

    RouterInUse { id, reason } 409 "Router {id} {reason}";
    RouterInterfaceNotFound { id, port } 404 "Router {id} does not have an interface with id {port}";
    RouterInterfaceNotFoundForSubnet { id, subnet } 404 "Router {id} has no interface on subnet {subnet}";
    RouterInterfaceInUseByFloatingIP { id, subnet } 409 "Router interface for subnet {subnet} on router {id} cannot be deleted, as it is required by one or more floating IPs.";
    RouterInterfaceInUseByRoute { id, subnet } 409 "Router interface for subnet {subnet} on router {id} cannot be deleted, as it is required by one or more routes.";
    RouterExternalGatewayInUseByFloatingIp { id, network } 409 "Gateway cannot be updated for router {id}, since a gateway to external network {network} is required by one or more floating IPs.";
    InvalidRoutes { routes, reason } 400 "Invalid format for routes: {routes}, {reason}";
    ExternalGatewayForFloatingIPNotFound { network, subnet, port } 404 "External network {network} is not reachable from subnet {subnet}.  Therefore, cannot associate Port {port} with a Floating IP.";
    FloatingIPPortAlreadyAssociated { address, id, port, fixed_ip, network } 409 "Cannot associate floating IP {address} ({id}) with port {port} using fixed IP {fixed_ip}, as that fixed IP already has a floating IP on external network {network}.";

    FipInUseByPortForwarding { id } 409 "Floating IP {id} in use by Port Forwarding resources.";
    PortHasPortForwarding { port } 400 "Cannot associate floating IP to port {port} because it already has a Port Forwarding binding.";
    PortHasBindingFloatingIP { address, id, port, fixed_ip } 409 "Cannot create port forwarding to floating IP {address} ({id}) with port {port} using fixed IP {fixed_ip}, as that port already has a binding floating IP.";

    InvalidL3Agent { id } 404 "Agent {id} is not a L3 Agent or has been disabled";
    RouterHostedByL3Agent { router, agent } 409 "The router {router} has been already hosted by the L3 Agent {agent}.";
    RouterNotHostedByL3Agent { router, agent } 409 "The router {router} is not hosted by L3 agent {agent}.";
    DVRL3CannotAssignToDvrAgent {} 409 "Not allowed to manually assign a router to an agent in 'dvr' mode.";
    DVRL3CannotRemoveFromDvrAgent {} 409 "Not allowed to manually remove a router from an agent in 'dvr' mode.";
    RouterL3AgentMismatch { router, agent } 409 "Cannot host distributed router {router} on legacy L3 agent {agent}.";
    NoVRIDAvailable { router } 409 "No more Virtual Router Identifier (VRID) available when creating router {router}. The limit of number of HA Routers per tenant is 254.";
    AllowedAddressPairExhausted { quota } 400 "The number of allowed address pair exceeds the maximum {quota}.";
    AddressPairAndPortSecurityRequired {} 409 "Port Security must be enabled in order to have allowed address pairs on a port.";

    PortSecurityAndIPRequiredForSecurityGroups {} 400 "Port security must be enabled and port must have an IP address in order to use security groups.";
    PortSecurityPortHasSecurityGroup {} 409 "Port has security group associated. Cannot disable port security or IP address until security group is removed.";

    SecurityGroupNotFound { id } 404 "Security group {id} does not exist";
    SecurityGroupRuleNotFound { id } 404 "Security group rule {id} does not exist";
    SecurityGroupInUse { id, reason } 409 "Security Group {id} {reason}.";
    SecurityGroupDefaultAlreadyExists {} 409 "Default security group already exists.";
    SecurityGroupCannotRemoveDefault {} 409 "Insufficient rights for removing default security group.";
    SecurityGroupCannotUpdateDefault {} 409 "Updating default security group not allowed.";
    SecurityGroupRuleExists { id } 409 "Security group rule already exists. Rule id is {id}.";
    DuplicateSecurityGroupRuleInPost {} 409 "Duplicate Security Group Rule in POST.";
    SecurityGroupNotSingleGroupRules {} 400 "Only allowed to update rules for one security profile at a time";
    SecurityGroupRulesNotSingleProject {} 400 "Multiple project_ids in bulk security group rule create not allowed";
    SecurityGroupConflict { reason } 409 "Error {reason} while attempting the operation.";
    SecurityGroupRemoteGroupAndRemoteIpPrefix {} 400 "Only remote_ip_prefix or remote_group_id may be provided.";
    SecurityGroupRuleInvalidEtherType { ethertype, values } 400 "Security group rule for ethertype '{ethertype}' not supported. Allowed values are {values}.";
    SecurityGroupRuleInvalidProtocol { protocol, values } 400 "Security group rule protocol {protocol} not supported. Only protocol values {values} and integer representations [0 to 255] are supported.";
    SecurityGroupRuleParameterConflict { ethertype, cidr } 400 "Conflicting value ethertype {ethertype} for CIDR {cidr}";
    SecurityGroupEthertypeConflictWithProtocol { ethertype, protocol } 400 "Invalid ethertype {ethertype} for protocol {protocol}.";
    SecurityGroupProtocolRequiredWithPorts {} 400 "Must also specify protocol if port range is given.";
    SecurityGroupInvalidPortRange {} 400 "For TCP/UDP protocols, port_range_min must be <= port_range_max";
    SecurityGroupInvalidPortValue { port } 400 "Invalid value for port {port}";
    SecurityGroupInvalidIcmpValue { field, attr, value } 400 "Invalid value for ICMP {field} ({attr}) {value}. It must be 0 to 255.";
    SecurityGroupMissingIcmpType { value } 400 "ICMP code (port-range-max) {value} is provided but ICMP type (port-range-min) is missing.";
    SecurityGroupInvalidProtocolForPort { protocol, valid } 400 "Invalid protocol {protocol} for port range, only supported for {valid}.";
    InvalidCIDR { input } 400 "Invalid CIDR {input} given as IP prefix.";

    RbacPolicyNotFound { id } 404 "RBAC policy with ID {id} not found";
    RbacPolicyInUse { id, details } 409 "RBAC policy on object {id} cannot be removed because other objects depend on it.\nDetails: {details}";
    DuplicateRbacPolicy {} 409 "An RBAC policy already exists with those values.";
    InvalidActionForType { action, object_type, valid_actions } 400 "Invalid action '{action}' for object type '{object_type}'. Valid actions: {valid_actions}";

    OverQuota { overs } 409 "Quota exceeded for resources: {overs}.";
    TenantQuotaNotFound { project } 404 "Quota for tenant {project} could not be found.";
    QuotaMissingTenant {} 400 "Tenant-id was missing from quota request.";

    RevisionNumberConstraintFailed { expected, current } 412 "Constrained to {expected}, but current revision is {current}";
}

impl ApiError {
    /// A 400 about the request itself.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::HTTPBadRequest { message: message.into() }
    }

    /// A 400 in the words of [`ApiError::InvalidInput`].
    pub fn invalid(reason: impl Into<String>) -> Self {
        Self::InvalidInput { reason: reason.into() }
    }

    /// A 400 about a router.
    pub fn bad_router(reason: impl Into<String>) -> Self {
        Self::BadRequest { resource: "router".into(), reason: reason.into() }
    }

    /// A 400 about a floating IP.
    pub fn bad_floating_ip(reason: impl Into<String>) -> Self {
        Self::BadRequest { resource: "floatingip".into(), reason: reason.into() }
    }

    /// A 404 that names nothing.
    pub fn not_found() -> Self {
        Self::HTTPNotFound { message: "The resource could not be found.".into() }
    }

    /// A 413.
    pub fn too_large() -> Self {
        Self::HTTPRequestEntityTooLarge { message: "Request is too large.".into() }
    }

    /// A 503 to somebody who should ask again soon.
    pub fn busy() -> Self {
        Self::HTTPServiceUnavailable { message: "The server is busy. Try again soon.".into() }
    }

    /// A 500 whose reason is only logged.
    pub fn internal(reason: impl Into<String>) -> Self {
        tracing::error!(reason = reason.into(), "the API met a state that it cannot explain");
        Self::HTTPInternalServerError {
            message: "Request Failed: internal server error while processing your request.".into(),
        }
    }

    /// The HTTP status.
    pub fn status(&self) -> u16 {
        match (self.declared(), self) {
            (Some((status, _)), _) => status,
            (None, Self::Store(error)) => store_failure(error).0,
            (None, _) => 500,
        }
    }

    /// Neutron's name of the error.
    pub fn type_name(&self) -> &'static str {
        match (self.declared(), self) {
            (Some((_, name)), _) => name,
            (None, Self::Store(error)) => store_failure(error).1,
            (None, _) => "HTTPInternalServerError",
        }
    }

    /// The answer's body.
    pub fn body(&self) -> Value {
        json!({"NeutronError": {"type": self.type_name(), "message": self.to_string(), "detail": ""}})
    }
}

/// Status and type name of what the store answers.
fn store_failure(error: &StoreError) -> (u16, &'static str) {
    match error {
        StoreError::Constraint { .. } => (409, "Conflict"),
        StoreError::Unstorable => (400, "InvalidInput"),
        StoreError::Contended(_) | StoreError::Unavailable { .. } => (503, "HTTPServiceUnavailable"),
        StoreError::Database(_)
        | StoreError::Corrupt { .. }
        | StoreError::NewerSchema { .. }
        | StoreError::Unsuitable(_) => (500, "HTTPInternalServerError"),
    }
}

impl std::error::Error for ApiError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        if let Self::Store(error) = self { Some(error) } else { None }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl TxError for ApiError {
    fn store_error(&self) -> Option<&StoreError> {
        if let Self::Store(error) = self { Some(error) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_carries_neutrons_type_text_and_status() {
        let error = ApiError::IpAddressInUse { network: "n".into(), ip: "10.0.0.5".into() };
        assert_eq!(error.status(), 409);
        let body = error.body();
        assert_eq!(body["NeutronError"]["type"], "IpAddressInUse");
        assert_eq!(
            body["NeutronError"]["message"],
            "Unable to complete operation for network n. The IP address 10.0.0.5 is in use."
        );
        assert_eq!(body["NeutronError"]["detail"], "");
    }

    #[test]
    fn what_went_wrong_inside_is_not_told_to_clients() {
        let error = ApiError::from(StoreError::Corrupt { column: 1, text: "secret".into() });
        assert_eq!((error.status(), error.type_name()), (500, "HTTPInternalServerError"));
        assert!(!error.to_string().contains("secret"));
    }
}
