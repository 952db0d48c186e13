//! What the server asks of its allocator. A process of its own: others' blocks would be counted.

#![expect(clippy::unwrap_used, reason = "a test that does not find what it expects has failed")]

use evergate_kernel::sys::return_large_blocks;

const BLOCK: usize = 1 << 20;
const BLOCKS: usize = 64;

/// Bytes that are in memory.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<usize>().unwrap() << 10
}

#[test]
fn large_blocks_go_back_to_the_kernel_when_they_are_freed() {
    return_large_blocks();
    // The allocator would learn from this one to keep the next.
    drop(vec![1_u8; BLOCK]);
    let before = resident();
    let blocks: Vec<_> = (0..BLOCKS).map(|_| vec![1_u8; BLOCK]).collect();
    // What lies behind them does not hold them.
    let small = vec![1_u8; 1000];
    assert!(resident() > before + BLOCKS * BLOCK * 9 / 10);
    drop(blocks);
    assert!(resident() < before + BLOCKS * BLOCK / 10, "{} of {before}", resident());
    drop(small);
}
