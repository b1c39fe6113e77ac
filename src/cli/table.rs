//! Tables as text, Markdown and CSV. In the former two, which people read, cells are escaped and cut.

use std::io::Write;

use clap::ValueEnum;

use super::failure::Failure;
use super::format;

/// Most characters of a cell that people read.
pub const MOST: usize = 200;

/// The format of a table; JSON has its data.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Md,
    Csv,
    Json,
}

/// Rows under headers. Columns whose header begins with a blank hold numbers and are aligned to the right.
pub struct Table {
    headers: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(headers: &[impl ToString]) -> Table {
        Table { headers: headers.iter().map(ToString::to_string).collect(), rows: Vec::new() }
    }

    pub fn push(&mut self, row: Vec<String>) {
        self.rows.push(row);
    }

    pub fn write(&self, format: Format, out: &mut dyn Write) -> Result<(), Failure> {
        match format {
            Format::Md => self.markdown(out),
            Format::Csv => self.csv(out),
            Format::Table | Format::Json => self.text(out),
        }
    }

    fn lines(&self) -> impl Iterator<Item = Vec<&str>> {
        let header = self.headers.iter().map(|h| h.trim()).collect();
        std::iter::once(header).chain(self.rows.iter().map(|row| row.iter().map(String::as_str).collect()))
    }

    /// The cells as people see them.
    fn shown(&self) -> impl Iterator<Item = Vec<String>> {
        self.lines().map(|line| line.into_iter().map(|cell| format::shown(cell, MOST)).collect())
    }

    fn is_number(&self, column: usize) -> bool {
        self.headers.get(column).is_some_and(|h| h.starts_with(' '))
    }

    fn text(&self, out: &mut dyn Write) -> Result<(), Failure> {
        let lines: Vec<Vec<String>> = self.shown().collect();
        let width = |c: usize| lines.iter().filter_map(|l| l.get(c).map(|t| t.chars().count())).max();
        let widths: Vec<usize> = (0..self.headers.len()).map(|c| width(c).unwrap_or(0)).collect();
        for line in &lines {
            let mut text = String::new();
            for (c, cell) in line.iter().enumerate() {
                // Counted in characters, as the formatter does.
                let w = widths.get(c).copied().unwrap_or(0);
                text += &if self.is_number(c) { format!("{cell:>w$}  ") } else { format!("{cell:<w$}  ") };
            }
            writeln!(out, "{}", text.trim_end())?;
        }
        Ok(())
    }

    fn markdown(&self, out: &mut dyn Write) -> Result<(), Failure> {
        for (i, line) in self.shown().enumerate() {
            let cells: Vec<String> = line.into_iter().map(|cell| cell.replace('|', "\\|")).collect();
            writeln!(out, "| {} |", cells.join(" | "))?;
            if i == 0 {
                let rule = (0..self.headers.len()).map(|c| if self.is_number(c) { "---:" } else { "---" });
                writeln!(out, "|{}|", rule.collect::<Vec<_>>().join("|"))?;
            }
        }
        Ok(())
    }

    /// RFC 4180, but for line ends.
    fn csv(&self, out: &mut dyn Write) -> Result<(), Failure> {
        for line in self.lines() {
            let quoted = |cell: &str| {
                if cell.contains([',', '"', '\n', '\r']) {
                    format!("\"{}\"", cell.replace('"', "\"\""))
                } else {
                    cell.to_string()
                }
            };
            writeln!(out, "{}", line.into_iter().map(quoted).collect::<Vec<_>>().join(","))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_formats() {
        let mut table = Table::new(&["name", " n"]);
        table.push(vec!["a, b".into(), "1".into()]);
        table.push(vec!["µ|".into(), "100".into()]);
        let write = |format| {
            let mut out = Vec::new();
            table.write(format, &mut out).expect("memory can be written");
            String::from_utf8(out).expect("UTF-8")
        };
        assert_eq!(write(Format::Table), "name    n\na, b    1\nµ|    100\n");
        assert_eq!(write(Format::Md), "| name | n |\n|---|---:|\n| a, b | 1 |\n| µ\\| | 100 |\n");
        assert_eq!(write(Format::Csv), "name,n\n\"a, b\",1\nµ|,100\n");
    }

    #[test]
    fn cells_of_files_are_escaped_and_cut() {
        let mut table = Table::new(&["na\x1bme", " n"]);
        table.push(vec!["\x1b[2Ja\nb".into(), "1".into()]);
        table.push(vec!["x".repeat(1 << 20), "2".into()]);
        for format in [Format::Table, Format::Md] {
            let mut out = Vec::new();
            table.write(format, &mut out).expect("memory can be written");
            let text = String::from_utf8(out).expect("UTF-8");
            assert!(
                !text.contains('\x1b') && text.contains("\\u{1b}[2Ja\\nb") && text.len() < 2000,
                "{text}"
            );
            assert!(text.starts_with("na\\u{1b}me") || text.starts_with("| na\\u{1b}me |"), "{text}");
        }
    }
}
