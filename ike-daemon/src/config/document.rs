//! Reading TOML so that every complaint carries file, line and column, and so that all of a
//! file's errors are found in one run instead of the first.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::Range;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Whether a complaint keeps the configuration from being used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The configuration is used as described, but probably not as meant.
    Warning,
    /// The configuration is refused.
    Error,
}

/// One complaint about a configuration file, shown as `file:line:column: error: message`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// `file:line:column`, `file:line` or just the file.
    pub place: String,
    /// What was expected and what came.
    pub message: String,
    /// The line in question with a marker under it.
    pub excerpt: Option<String>,
    /// What to change.
    pub help: Option<String>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, "{}: {severity}: {}", self.place, self.message)?;
        if let Some(excerpt) = &self.excerpt {
            write!(f, "\n{excerpt}")?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n    help: {help}")?;
        }
        Ok(())
    }
}

/// Where something stands in a document, in octets from its start.
pub type Span = Range<usize>;

/// A value with the place it was read from.
#[derive(Clone, Debug)]
pub struct Located<T> {
    /// What was read.
    pub value: T,
    /// Where.
    pub span: Span,
}

/// A file's text, and the complaints about it so far.
pub struct Document<'i> {
    name: String,
    text: &'i str,
    /// Where its lines begin, ascending.
    lines: Vec<usize>,
    excerpts: bool,
    found: RefCell<Vec<Diagnostic>>,
    errors: Cell<usize>,
}

impl<'i> Document<'i> {
    /// A document called `name` in messages. Without `excerpts` no line is ever quoted,
    /// which is what a file of secrets needs.
    pub fn new(name: impl Into<String>, text: &'i str, excerpts: bool) -> Self {
        Self {
            name: name.into(),
            text,
            lines: std::iter::once(0)
                .chain(text.match_indices('\n').map(|(at, _)| at + 1))
                .collect(),
            excerpts,
            found: RefCell::default(),
            errors: Cell::new(0),
        }
    }

    /// What the document is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text of a place, empty where there is none.
    pub fn text(&self, span: &Span) -> &'i str {
        self.text.get(span.clone()).unwrap_or_default()
    }

    /// Parses the text as TOML; syntax errors are recorded and what could be read is returned.
    pub fn parse(&self) -> Spanned<DeTable<'i>> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in errors {
            // A syntax error's message may quote the text only where excerpts are allowed.
            let message = if self.excerpts {
                error.message().replace('\n', ", ")
            } else {
                "this is not valid TOML".to_owned()
            };
            self.error(&error.span().unwrap_or(0..0), message, None);
        }
        table
    }

    /// `line` and `column`, both from 1; columns count characters.
    pub fn position(&self, offset: usize) -> (usize, usize) {
        let offset = offset.min(self.text.len());
        let line = self.lines.partition_point(|start| *start <= offset);
        let start = line.checked_sub(1).and_then(|index| self.lines.get(index));
        let before = start.and_then(|start| self.text.get(*start..offset));
        (line, before.unwrap_or_default().chars().count() + 1)
    }

    /// `file:line`, the form in which settings are cited later (logs, refusals).
    pub fn origin(&self, span: &Span) -> String {
        format!("{}:{}", self.name, self.position(span.start).0)
    }

    /// Records an error.
    pub fn error(&self, span: &Span, message: impl Into<String>, help: Option<String>) {
        self.errors.set(self.errors.get() + 1);
        self.push(Severity::Error, span, message.into(), help);
    }

    /// Records a warning.
    pub fn warning(&self, span: &Span, message: impl Into<String>, help: Option<String>) {
        self.push(Severity::Warning, span, message.into(), help);
    }

    fn push(&self, severity: Severity, span: &Span, message: String, help: Option<String>) {
        let (line, column) = self.position(span.start);
        self.found.borrow_mut().push(Diagnostic {
            severity,
            place: format!("{}:{line}:{column}", self.name),
            message,
            excerpt: self.excerpts.then(|| self.excerpt(span)).flatten(),
            help,
        });
    }

    fn excerpt(&self, span: &Span) -> Option<String> {
        let (number, column) = self.position(span.start);
        let line = self.text.lines().nth(number - 1)?;
        if line.chars().count() > 160 {
            return None;
        }
        let wide = self.text.get(span.clone())?.lines().next()?.chars().count();
        let room = line.chars().count().saturating_sub(column - 1);
        // Tabs stay tabs in the margin so that the marker stands below what it marks.
        let margin: String = line
            .chars()
            .take(column - 1)
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        let marker = "^".repeat(wide.min(room).max(1));
        let gutter = " ".repeat(number.to_string().len());
        Some(format!(
            "    {number} | {line}\n    {gutter} | {margin}{marker}"
        ))
    }

    /// Whether any error was recorded.
    pub fn has_errors(&self) -> bool {
        self.errors.get() > 0
    }

    /// Errors recorded so far: compare two readings to learn whether a step went well.
    pub fn error_count(&self) -> usize {
        self.errors.get()
    }

    /// Everything recorded, in the order of the file.
    pub fn into_diagnostics(self) -> Vec<Diagnostic> {
        let mut found = self.found.into_inner();
        let key = |diagnostic: &Diagnostic| -> (usize, usize) {
            let mut numbers = diagnostic.place.rsplit(':').map(|n| n.parse().unwrap_or(0));
            let column = numbers.next().unwrap_or(0);
            (numbers.next().unwrap_or(0), column)
        };
        found.sort_by_key(key);
        found
    }
}

/// `"a", "b" or "c"` for messages.
pub fn quoted_list(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => quoted.join(""),
    }
}

/// The name among `names` that was probably meant.
pub fn nearest<'n>(name: &str, names: &[&'n str]) -> Option<&'n str> {
    names
        .iter()
        .map(|known| (strsim::damerau_levenshtein(name, known), *known))
        .min()
        .filter(|(distance, known)| *distance <= 1.max(name.len().max(known.len()) / 3))
        .map(|(_, known)| known)
}

fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the string \"{text}\""),
        DeValue::Integer(number) => format!("the integer {number}"),
        DeValue::Float(number) => format!("the number {number}"),
        DeValue::Boolean(value) => format!("the boolean {value}"),
        DeValue::Datetime(value) => format!("the date {value}"),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// A TOML table under its name, with typed and complaining access to its keys.
#[derive(Clone, Copy)]
pub struct Table<'d, 'i> {
    document: &'d Document<'i>,
    table: &'d DeTable<'i>,
    span: (usize, usize),
    path: &'d str,
}

impl<'d, 'i> Table<'d, 'i> {
    /// Wraps a parsed table; `path` is its dotted name, empty for the whole document.
    pub fn new(
        document: &'d Document<'i>,
        table: &'d DeTable<'i>,
        span: &Span,
        path: &'d str,
    ) -> Self {
        Self {
            document,
            table,
            span: (span.start, span.end),
            path,
        }
    }

    /// Its dotted name.
    pub fn path(&self) -> &'d str {
        self.path
    }

    /// Where the table stands.
    pub fn span(&self) -> Span {
        self.span.0..self.span.1
    }

    /// The document it is part of.
    pub fn document(&self) -> &'d Document<'i> {
        self.document
    }

    /// Keys and values in the order of the file.
    pub fn entries(&self) -> Vec<(&'d str, Span, &'d Spanned<DeValue<'i>>)> {
        let mut entries: Vec<_> = self
            .table
            .iter()
            .map(|(key, value)| (key.get_ref().as_ref(), key.span(), value))
            .collect();
        entries.sort_by_key(|(_, span, _)| span.start);
        entries
    }

    /// Complains about every key that is not in `known`.
    pub fn only(&self, known: &[&str]) {
        for (key, span, _) in self.entries() {
            if known.contains(&key) {
                continue;
            }
            let place = if self.path.is_empty() {
                "at the top of the file".to_owned()
            } else {
                format!("in {}", self.path)
            };
            let meant = nearest(key, known)
                .map(|meant| format!("; did you mean `{meant}`?"))
                .unwrap_or_default();
            self.document.error(
                &span,
                format!("unknown key `{key}` {place}{meant}"),
                Some(format!("known keys here: {}", known.join(", "))),
            );
        }
    }

    /// The dotted name of a key.
    pub fn name(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    /// The raw value of a key.
    pub fn value(&self, key: &str) -> Option<&'d Spanned<DeValue<'i>>> {
        self.table
            .iter()
            .find(|(known, _)| known.get_ref() == key)
            .map(|(_, value)| value)
    }

    fn mismatch(&self, key: &str, expected: &str, value: &Spanned<DeValue<'_>>) {
        let got = if self.document.excerpts {
            describe(value.get_ref())
        } else {
            format!("a value of type {}", value.get_ref().type_str())
        };
        self.document.error(
            &value.span(),
            format!("`{}` must be {expected}, found {got}", self.name(key)),
            None,
        );
    }

    /// A string.
    pub fn string(&self, key: &str, expected: &str) -> Option<Located<&'d str>> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::String(text) => Some(Located {
                value: text.as_ref(),
                span: value.span(),
            }),
            _ => {
                self.mismatch(key, expected, value);
                None
            }
        }
    }

    /// A string or a list of strings.
    pub fn strings(&self, key: &str, expected: &str) -> Option<Vec<Located<&'d str>>> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::String(text) => Some(vec![Located {
                value: text.as_ref(),
                span: value.span(),
            }]),
            DeValue::Array(items) => {
                let mut strings = Vec::new();
                for item in items.iter() {
                    match item.get_ref() {
                        DeValue::String(text) => strings.push(Located {
                            value: text.as_ref(),
                            span: item.span(),
                        }),
                        _ => self.mismatch(key, expected, item),
                    }
                }
                Some(strings)
            }
            _ => {
                self.mismatch(key, expected, value);
                None
            }
        }
    }

    /// `true` or `false`.
    pub fn boolean(&self, key: &str) -> Option<Located<bool>> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::Boolean(on) => Some(Located {
                value: *on,
                span: value.span(),
            }),
            _ => {
                self.mismatch(key, "true or false", value);
                None
            }
        }
    }

    /// A whole number within bounds.
    pub fn integer(
        &self,
        key: &str,
        bounds: std::ops::RangeInclusive<u32>,
    ) -> Option<Located<u32>> {
        let expected = format!("a whole number from {} to {}", bounds.start(), bounds.end());
        self.number(key, &expected, bounds)
    }

    /// A whole number within bounds, or `"auto"` (`None`).
    pub fn integer_or_auto(
        &self,
        key: &str,
        bounds: std::ops::RangeInclusive<u32>,
    ) -> Option<Located<Option<u32>>> {
        let value = self.value(key)?;
        if matches!(value.get_ref(), DeValue::String(text) if text == "auto") {
            return Some(Located {
                value: None,
                span: value.span(),
            });
        }
        let expected = format!(
            "\"auto\" or a whole number from {} to {}",
            bounds.start(),
            bounds.end()
        );
        let number = self.number(key, &expected, bounds)?;
        Some(Located {
            value: Some(number.value),
            span: number.span,
        })
    }

    fn number(
        &self,
        key: &str,
        expected: &str,
        bounds: std::ops::RangeInclusive<u32>,
    ) -> Option<Located<u32>> {
        let value = self.value(key)?;
        let DeValue::Integer(number) = value.get_ref() else {
            self.mismatch(key, expected, value);
            return None;
        };
        match u32::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) if bounds.contains(&number) => Some(Located {
                value: number,
                span: value.span(),
            }),
            _ => {
                self.mismatch(key, expected, value);
                None
            }
        }
    }

    /// One of a few words.
    pub fn choice<T: Copy>(&self, key: &str, choices: &[(&str, T)]) -> Option<Located<T>> {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        let text = self.string(key, &quoted_list(&names))?;
        if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == text.value) {
            return Some(Located {
                value: *choice,
                span: text.span,
            });
        }
        self.document.error(
            &text.span,
            format!(
                "`{}` must be {}, found \"{}\"",
                self.name(key),
                quoted_list(&names),
                text.value
            ),
            nearest(text.value, &names).map(|meant| format!("did you mean \"{meant}\"?")),
        );
        None
    }

    /// A length of time such as `"30s"`, `"5m"` or `"1h30m"`, within bounds.
    pub fn duration(
        &self,
        key: &str,
        bounds: std::ops::RangeInclusive<Duration>,
    ) -> Option<Located<Duration>> {
        let value = self.value(key)?;
        let expected = "a length of time such as \"30s\", \"5m\" or \"1h\"";
        let DeValue::String(text) = value.get_ref() else {
            self.mismatch(key, expected, value);
            return None;
        };
        let Some(duration) = parse_duration(text) else {
            self.mismatch(key, expected, value);
            return None;
        };
        if !bounds.contains(&duration) {
            self.document.error(
                &value.span(),
                format!(
                    "`{}` must be from {} to {}, found \"{text}\"",
                    self.name(key),
                    show_duration(*bounds.start()),
                    show_duration(*bounds.end()),
                ),
                None,
            );
            return None;
        }
        Some(Located {
            value: duration,
            span: value.span(),
        })
    }

    /// A number of octets such as `"500MB"` or `"10GiB"`, within bounds.
    pub fn size(&self, key: &str, bounds: std::ops::RangeInclusive<u64>) -> Option<Located<u64>> {
        let value = self.value(key)?;
        let expected = format!(
            "a size such as \"500MB\" or \"10GiB\", from {} to {} octets",
            bounds.start(),
            bounds.end()
        );
        let size = match value.get_ref() {
            DeValue::String(text) => parse_size(text).filter(|size| bounds.contains(size)),
            _ => None,
        };
        if size.is_none() {
            self.mismatch(key, &expected, value);
        }
        Some(Located {
            value: size?,
            span: value.span(),
        })
    }

    /// A table below this one; `path` must be [`Self::name`] of the key.
    pub fn table(&self, key: &str, path: &'d str, expected: &str) -> Option<Table<'d, 'i>> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::Table(table) => Some(Table::new(self.document, table, &value.span(), path)),
            _ => {
                self.mismatch(key, expected, value);
                None
            }
        }
    }
}

/// Units of sizes, largest first.
const SIZES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1000),
    ("B", 1),
];

/// Reads `500MB`, `10GiB` and the like.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let (_, size) = SIZES.iter().find(|(name, _)| *name == unit.trim())?;
    number.parse::<u64>().ok()?.checked_mul(*size)
}

/// The inverse of `parse_size`, in the largest unit that fits.
pub fn show_size(size: u64) -> String {
    let fits = SIZES.iter().find(|(_, unit)| size.is_multiple_of(*unit));
    let (name, unit) = fits.unwrap_or(&("B", 1));
    format!("{}{name}", size / unit)
}

/// Reads `90s`, `5m`, `1h`, `1d`, `250ms` and sums such as `1h30m`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, tail) = rest.split_at(digits);
        let number: u64 = number.parse().ok()?;
        let letters = tail
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let milliseconds = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        total = total.checked_add(Duration::from_millis(number.checked_mul(milliseconds)?))?;
        rest = tail;
    }
    Some(total)
}

/// The inverse of `parse_duration`, in the fewest units.
pub fn show_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds == 0 {
        return match duration.subsec_millis() {
            0 => "0s".to_owned(),
            milliseconds => format!("{milliseconds}ms"),
        };
    }
    let mut text = String::new();
    for (unit, size) in [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)] {
        let part = match unit {
            "d" => seconds / size,
            "h" => seconds % 86_400 / size,
            "m" => seconds % 3600 / size,
            _ => seconds % 60,
        };
        if part > 0 {
            text.push_str(&format!("{part}{unit}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_and_shown() {
        for (text, size) in [
            ("500MB", 500_000_000),
            ("10GiB", 10 << 30),
            ("3TiB", 3 << 40),
            ("1501B", 1501),
            ("64kB", 64_000),
        ] {
            assert_eq!(parse_size(text), Some(size));
            assert_eq!(show_size(size), text);
        }
        assert_eq!(parse_size("10 GiB"), Some(10 << 30));
        for wrong in ["", "10", "GB", "10G", "1.5GB", "-1MB", "99999999999TiB"] {
            assert_eq!(parse_size(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn durations_read_and_shown() {
        for (text, milliseconds) in [
            ("30s", 30_000),
            ("250ms", 250),
            ("5m", 300_000),
            ("5min", 300_000),
            ("1h30m", 5_400_000),
            ("2d", 172_800_000),
            ("0s", 0),
        ] {
            assert_eq!(
                parse_duration(text),
                Some(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
        for text in ["", "30", "s", "-1s", "1.5h", "1y", "99999999999999999999s"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
        assert_eq!(show_duration(Duration::from_secs(5400)), "1h30m");
        assert_eq!(show_duration(Duration::from_secs(86_400)), "1d");
        assert_eq!(show_duration(Duration::from_millis(250)), "250ms");
        assert_eq!(show_duration(Duration::from_secs(59)), "59s");
    }

    #[test]
    fn nearest_names_only_what_is_near() {
        assert_eq!(
            nearest("subnet", &["address", "id", "subnets"]),
            Some("subnets")
        );
        assert_eq!(
            nearest("adress", &["address", "id", "subnets"]),
            Some("address")
        );
        assert_eq!(nearest("colour", &["address", "id", "subnets"]), None);
    }

    #[test]
    fn columns_count_characters() {
        let document = Document::new("f", "ñandú = 1\nb = 2", true);
        assert_eq!(document.position(10), (1, 9));
        assert_eq!(document.position(12), (2, 1));
    }
}
