//! Runs the fast part of the conformance kit (`conformance/run.py`) against a real server on loopback: command lines
//! of the stock client and of the one before it, requests made out of the OpenAPI document, and those of Terraform's
//! provider. It needs the clients in `.venv` and `.venv-neutron`, and Schemathesis in `.venv-fuzz` (`make deps`).

use std::path::Path;
use std::process::Command;

#[test]
fn the_stock_client_finds_what_it_expects() {
    runs("client");
}

#[test]
fn the_client_before_it_finds_what_the_documents_expect() {
    runs("neutron");
}

#[test]
fn no_request_that_is_made_from_the_apis_description_breaks_the_server() {
    runs("fuzz");
}

#[test]
fn terraform_finds_no_difference_to_what_it_asked_for() {
    runs("terraform");
}

fn runs(suite: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(root.join(".venv/bin/python"))
        .arg(root.join("conformance/run.py"))
        .args([suite, "--fast", "--evergate", env!("CARGO_BIN_EXE_evergate")])
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("there is a Python in .venv after `make deps`");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains(" passed, 0 failed"), "{said}");
}
