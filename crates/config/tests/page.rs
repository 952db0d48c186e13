//! `docs/configuration.md` says what the table of options says.

use std::path::Path;

#[test]
fn the_page_is_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    let page = evergate_config::document::page();
    if std::env::var_os("EVERGATE_WRITE_DOCS").is_some() {
        std::fs::write(&path, &page).expect("the documents can be written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "docs/configuration.md is out of date: EVERGATE_WRITE_DOCS=1 cargo test -p evergate-config --test page"
    );
}
