//! Runs the fast part of the conformance kit (`conformance/run.py`): command lines of the stock client against a
//! real server on loopback. It needs the client in `.venv` (`make deps`).

use std::path::Path;
use std::process::Command;

#[test]
fn the_stock_client_finds_what_it_expects() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(root.join(".venv/bin/python"))
        .arg(root.join("conformance/run.py"))
        .args(["client", "--fast", "--evergate", env!("CARGO_BIN_EXE_evergate")])
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("there is a Python in .venv after `make deps`");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains(" passed, 0 failed"), "{said}");
}
