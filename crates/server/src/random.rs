//! Random choices: ids, addresses, VRIDs.
//!
//! Random rather than "the next free one", so that servers that allocate at the same time seldom
//! collide, and a freed address is not handed to somebody else at once.

use uuid::Uuid;

/// Fills a buffer from the operating system's generator.
///
/// # Panics
///
/// Where the operating system has no randomness: nothing safe can be done then.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut buffer = [0; N];
    getrandom::fill(&mut buffer).expect("Linux always answers getrandom(2) once it has booted");
    buffer
}

/// Picks a number below `n`, which must not be 0.
pub fn below(n: u128) -> u128 {
    // The bias of the remainder does not matter for a choice of addresses.
    u128::from_be_bytes(bytes()) % n
}

/// Makes a new object's id.
pub fn id() -> Uuid {
    Uuid::new_v4()
}

/// Makes a secret of 256 bits, in hexadecimal.
pub fn secret_hex() -> String {
    bytes::<32>().iter().map(|byte| format!("{byte:02x}")).collect()
}
