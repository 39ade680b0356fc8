//! What the machine allows, as text. The host did the looking; here it is only laid out.

use crate::host::{Finding, State};
use std::fmt::Write;

/// One block per section, in the order the findings come; ends with a newline.
pub fn render(findings: &[Finding]) -> String {
    let name_width = findings
        .iter()
        .map(|finding| finding.name.chars().count())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    let mut section = None;
    for finding in findings {
        if section != Some(&finding.section) {
            if section.is_some() {
                text.push('\n');
            }
            let _ = writeln!(text, "{}", finding.section);
            section = Some(&finding.section);
        }
        let mark = match finding.state {
            State::Fact => "     ",
            State::Works => "yes  ",
            State::Limited => "part ",
            State::Missing => "no   ",
        };
        let line = format!("  {mark}{:<name_width$}  {}", finding.name, finding.text);
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(section: &str, name: &str, state: State, text: &str) -> Finding {
        Finding {
            section: section.into(),
            name: name.into(),
            state,
            text: text.into(),
        }
    }

    #[test]
    fn sections_are_blocks_and_names_line_up() {
        let text = render(&[
            finding("machine", "kernel", State::Fact, "Linux 6.18"),
            finding("machine", "cores", State::Fact, "2"),
            finding("what works here", "process lane", State::Works, ""),
            finding("what works here", "cgroup", State::Missing, "no controller"),
        ]);
        assert_eq!(
            text,
            "machine\n       kernel        Linux 6.18\n       cores         2\n\n\
             what works here\n  yes  process lane\n  no   cgroup        no controller\n"
        );
    }
}
