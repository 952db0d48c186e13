//! Telling a walk-through: headings, explanations, commands with their output, and what was checked.

use std::io::{IsTerminal, Write};

use anyhow::{Result, bail};

/// Lines of output shown of one command, before the rest is summed up.
const LINES: usize = 24;
/// Columns that explanations are wrapped to.
const COLUMNS: usize = 96;

/// Writes the story to standard output.
#[derive(Debug)]
pub(crate) struct Narrator {
    chapter: u32,
    colour: bool,
}

impl Narrator {
    pub(crate) fn new() -> Self {
        Self { chapter: 0, colour: std::io::stdout().is_terminal() }
    }

    /// Begins a chapter.
    pub(crate) fn chapter(&mut self, title: &str) {
        self.chapter += 1;
        let number = self.chapter;
        self.line(&format!("\n{}", self.paint("1;36", &format!("── {number}. {title} ──"))));
    }

    /// Explains.
    pub(crate) fn say(&self, text: &str) {
        self.line(&format!("\n{}", wrap(text)));
    }

    /// Shows a command as it would be typed, on `place`.
    pub(crate) fn command(&self, place: &str, command: &str) {
        self.line(&format!("\n  {} {}", self.paint("32", &format!("{place}$")), self.paint("1", command)));
    }

    /// Shows output, shortened.
    pub(crate) fn output(&self, text: &str) {
        let lines: Vec<&str> = text.trim_end().lines().collect();
        for line in lines.iter().take(LINES) {
            self.line(&format!("    {line}"));
        }
        if lines.len() > LINES {
            self.line(&format!("    … and {} lines more", lines.len() - LINES));
        }
    }

    /// States what was checked, or ends the walk-through because it is not so.
    pub(crate) fn check(&self, holds: bool, what: &str) -> Result<()> {
        if !holds {
            bail!("the walk-through stopped, because this is not so: {what}");
        }
        self.line(&format!("  {} {what}", self.paint("32", "✔")));
        Ok(())
    }

    /// Draws lines as they are, after an empty one.
    pub(crate) fn picture(&self, text: &str) {
        self.line(&format!("\n{}", text.trim_end_matches(' ')));
    }

    /// Draws one line as it is.
    pub(crate) fn picture_line(&self, text: &str) {
        self.line(text.trim_end());
    }

    fn line(&self, text: &str) {
        // A reader that has gone away (`| head`) ends the output, not the walk-through.
        let _ = writeln!(std::io::stdout(), "{text}");
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Breaks text at spaces.
fn wrap(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().map_or(0, |line| line.chars().count());
        if line > 0 && line + 1 + word.chars().count() > COLUMNS {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_wrapped_between_words() {
        let text = wrap(&"word ".repeat(40));
        assert!(text.lines().all(|line| line.len() <= COLUMNS && !line.ends_with(' ')), "{text}");
        assert_eq!(text.split_whitespace().count(), 40);
    }

    #[test]
    fn what_does_not_hold_ends_the_story() {
        let error = Narrator::new().check(false, "the router is there").unwrap_err().to_string();
        assert!(error.ends_with("the router is there"), "{error}");
    }
}
