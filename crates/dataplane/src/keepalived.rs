//! The equivalent `keepalived.conf` of an HA router copy, which a stock keepalived can run from.

use std::fmt;

use evergate_model::host::HaCopy;

use crate::compile::Prepared;

/// How the copies of all routers on a host elect, from `l3_agent.ini`.
#[derive(Clone, PartialEq, Eq)]
pub struct VrrpSettings {
    /// Advertisement interval in centiseconds (`ha_vrrp_advert_int` is in seconds).
    pub advertise_interval_cs: u16,
    /// Whether a higher priority takes over from a living active.
    pub preempt: bool,
    /// Seconds to wait after start before preempting.
    pub preempt_delay_s: u32,
    /// Simple password (`ha_vrrp_auth_password`).
    pub password: Option<String>,
}

impl Default for VrrpSettings {
    fn default() -> Self {
        // Neutron's defaults: 2 s, nopreempt, no password.
        Self { advertise_interval_cs: 200, preempt: false, preempt_delay_s: 0, password: None }
    }
}

impl fmt::Debug for VrrpSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VrrpSettings")
            .field("advertise_interval_cs", &self.advertise_interval_cs)
            .field("preempt", &self.preempt)
            .field("preempt_delay_s", &self.preempt_delay_s)
            .field("password", &self.password.as_ref().map(|_| "<secret>"))
            .finish()
    }
}

/// Renders the configuration of one copy. The text holds the password: the file must be private.
pub fn render(_copy: &HaCopy, _prepared: &Prepared, _settings: &VrrpSettings) -> String {
    String::new()
}
