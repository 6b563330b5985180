//! Cuts a long JSON document into its items while it arrives, so that only one is in memory.

use std::ops::Range;

/// Largest item that is kept whole, in bytes: a KV entry's value is at most 512 KiB
/// (`kv_max_value_size`), 683 KiB as base64. Tags have no limit, and each `<` of one comes as six
/// bytes: of what is larger only the beginning is kept.
const MAX_ITEM: usize = 1 << 20;

/// How much is kept of a larger item. What identifies a record comes first in Consul's JSON: IDs and
/// names, together at most some kB.
const MAX_CUT: usize = 64 << 10;

/// Deepest nesting that is accepted within an item: Consul's own records nest less than 10
/// deep, and `serde_json` stops at 128.
const MAX_DEPTH: usize = 100;

/// Where the items are in the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The elements of one array.
    Elements,
    /// The members of one object.
    Members,
    /// The elements of the array that is this member of one object; `null` there is an empty
    /// array. The other members are dropped.
    ElementsOf(&'static str),
}

/// One item, as raw JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item<'a> {
    /// The member's name, as a JSON string; none for an element.
    pub name: Option<&'a [u8]>,
    /// The value. Of an object that is too large only the members before the one that makes it so;
    /// of anything else that is, `null`.
    pub value: &'a [u8],
    /// Whether something is missing from the value because it is too large.
    pub is_cut: bool,
}

/// A document that is not what it has to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A byte that cannot stand there.
    #[error("expected {expected}, found byte {found:#04x} at offset {offset}")]
    Unexpected {
        /// What could have stood there.
        expected: &'static str,
        /// What does.
        found: u8,
        /// Where, from 0.
        offset: u64,
    },
    /// The document ends too early: a broken connection.
    #[error("expected {expected}, found the end after {offset} bytes")]
    Truncated {
        /// What should have come.
        expected: &'static str,
        /// How much did come.
        offset: u64,
    },
    /// One item exceeds a bound.
    #[error(
        "expected items of at most {MAX_DEPTH} levels and names of at most {MAX_CUT} bytes, found more"
    )]
    TooLarge,
    /// The member that holds the items is not there.
    #[error("expected the member {0:?}, found none")]
    MissingMember(&'static str),
    /// An item that does not decode.
    #[error("expected {expected}, found an item that is none: {reason}")]
    Item {
        /// What it should be.
        expected: &'static str,
        /// The decoder's words.
        reason: String,
    },
}

/// The cutter. Feed it chunks as they arrive, then finish it: only then was the document whole.
#[derive(Debug)]
pub struct Splitter {
    layout: Layout,
    position: Position,
    /// Whether the array that is now read lies in a member of the document's object.
    inner: bool,
    found_member: bool,
    /// The name and the value that are being read.
    buffer: Vec<u8>,
    name: Option<Range<usize>>,
    /// Whether the rest of the value that is being read is dropped.
    is_cut: bool,
    offset: u64,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    Document,
    /// An item, or the end of the (so far empty) container.
    ItemOrEnd,
    Item,
    Colon,
    MemberValue,
    /// Within a value: open brackets, and whether in a string and after a backslash.
    Value {
        start: usize,
        depth: usize,
        string: bool,
        escape: bool,
    },
    /// Within a number, `true`, `false` or `null`.
    Scalar {
        start: usize,
    },
    CommaOrEnd,
    End,
}

// === impl Splitter ===

impl Splitter {
    /// A cutter for a document of this layout.
    pub fn new(layout: Layout) -> Self {
        Self {
            layout,
            position: Position::Document,
            inner: false,
            found_member: false,
            buffer: Vec::new(),
            name: None,
            is_cut: false,
            offset: 0,
        }
    }

    /// Takes the next bytes and hands on each item that they complete.
    pub fn feed(
        &mut self,
        chunk: &[u8],
        mut each: impl FnMut(Item<'_>) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        for byte in chunk {
            self.step(*byte, &mut each)?;
            self.offset += 1;
        }
        Ok(())
    }

    /// Whether the document was whole.
    pub fn finish(self) -> Result<(), Malformed> {
        if self.position != Position::End {
            return Err(Malformed::Truncated {
                expected: self.position.expected(),
                offset: self.offset,
            });
        }
        match self.layout {
            Layout::ElementsOf(member) if !self.found_member => {
                Err(Malformed::MissingMember(member))
            }
            _ => Ok(()),
        }
    }

    fn step(
        &mut self,
        byte: u8,
        each: &mut impl FnMut(Item<'_>) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        match self.position {
            Position::Value { start, depth, string, escape } => {
                return self.value(byte, start, depth, string, escape, each);
            }
            Position::Scalar { start } if !matches!(byte, b',' | b'}' | b']') && !space(byte) => {
                self.push(byte, start)?;
                self.position = Position::Scalar { start };
                return Ok(());
            }
            Position::Scalar { start } => self.complete(start, each)?,
            _ => {}
        }
        if space(byte) {
            return Ok(());
        }
        self.structure(byte)
    }

    /// A byte between values.
    fn structure(&mut self, byte: u8) -> Result<(), Malformed> {
        let in_object = self.layout != Layout::Elements && !self.inner;
        self.position = match (self.position, byte) {
            (Position::Document, b'[') if !in_object => Position::ItemOrEnd,
            (Position::Document, b'{') if in_object => Position::ItemOrEnd,
            (Position::ItemOrEnd | Position::CommaOrEnd, b'}') if in_object => Position::End,
            (Position::ItemOrEnd | Position::CommaOrEnd, b']') if !in_object => {
                if std::mem::take(&mut self.inner) { Position::CommaOrEnd } else { Position::End }
            }
            (Position::CommaOrEnd, b',') => Position::Item,
            (Position::ItemOrEnd | Position::Item, b'"') if in_object => {
                self.buffer.push(byte);
                // A name is a value that is no item.
                Position::Value { start: 0, depth: 0, string: true, escape: false }
            }
            (Position::Colon, b':') => Position::MemberValue,
            (Position::MemberValue, b'[') if self.is_wanted_member() => {
                self.buffer.clear();
                self.name = None;
                self.inner = true;
                self.found_member = true;
                Position::ItemOrEnd
            }
            (Position::ItemOrEnd | Position::Item, _) if !in_object => self.begin(byte)?,
            (Position::MemberValue, _) => self.begin(byte)?,
            _ => return Err(self.unexpected(byte)),
        };
        Ok(())
    }

    /// The first byte of a value.
    fn begin(&mut self, byte: u8) -> Result<Position, Malformed> {
        let start = self.buffer.len();
        let position = match byte {
            b'{' | b'[' => Position::Value { start, depth: 1, string: false, escape: false },
            b'"' => Position::Value { start, depth: 0, string: true, escape: false },
            b'-' | b'0'..=b'9' | b't' | b'f' | b'n' => Position::Scalar { start },
            _ => return Err(self.unexpected(byte)),
        };
        self.push(byte, start)?;
        Ok(position)
    }

    /// A byte within a string, an array or an object.
    fn value(
        &mut self,
        byte: u8,
        start: usize,
        mut depth: usize,
        mut string: bool,
        mut escape: bool,
        each: &mut impl FnMut(Item<'_>) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        self.push(byte, start)?;
        if string {
            match byte {
                _ if escape => escape = false,
                b'\\' => escape = true,
                b'"' => string = false,
                _ => {}
            }
        } else {
            match byte {
                b'"' => string = true,
                b'{' | b'[' if depth >= MAX_DEPTH => return Err(Malformed::TooLarge),
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
        }
        self.position = Position::Value { start, depth, string, escape };
        if depth > 0 || string {
            return Ok(());
        }
        let in_object = self.layout != Layout::Elements && !self.inner;
        if in_object && self.name.is_none() {
            if self.is_cut {
                return Err(Malformed::TooLarge);
            }
            self.name = Some(0..self.buffer.len());
            self.position = Position::Colon;
            return Ok(());
        }
        self.complete(start, each)
    }

    /// Hands on the value that is in the buffer from `start`.
    fn complete(
        &mut self,
        start: usize,
        each: &mut impl FnMut(Item<'_>) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        let is_cut = std::mem::take(&mut self.is_cut);
        if is_cut {
            keep_whole_members(&mut self.buffer, start);
        }
        let value = &self.buffer[start..];
        match self.layout {
            Layout::ElementsOf(member) if !self.inner => {
                if self.is_wanted_member() {
                    if value != b"null" {
                        return Err(Malformed::Item {
                            expected: "an array or null",
                            reason: format!("member {member:?}"),
                        });
                    }
                    self.found_member = true;
                }
            }
            _ => {
                let name = self.name.clone().map(|range| &self.buffer[range]);
                each(Item { name, value, is_cut })?;
            }
        }
        self.buffer.clear();
        self.name = None;
        self.position = Position::CommaOrEnd;
        Ok(())
    }

    fn is_wanted_member(&self) -> bool {
        let (Layout::ElementsOf(member), Some(range)) = (self.layout, &self.name) else {
            return false;
        };
        // Consul writes these names without escapes.
        !self.inner && self.buffer[range.clone()].get(1..range.len() - 1) == Some(member.as_bytes())
    }

    /// Takes a byte of the value that begins at `start`, as long as there is room for it.
    fn push(&mut self, byte: u8, start: usize) -> Result<(), Malformed> {
        if self.is_cut {
            return Ok(());
        }
        if start > MAX_CUT {
            return Err(Malformed::TooLarge);
        }
        if self.buffer.len() - start >= MAX_ITEM {
            self.is_cut = true;
            self.buffer.truncate(start + MAX_CUT);
            self.buffer.shrink_to(MAX_CUT);
            return Ok(());
        }
        self.buffer.push(byte);
        Ok(())
    }

    fn unexpected(&self, found: u8) -> Malformed {
        Malformed::Unexpected { expected: self.position.expected(), found, offset: self.offset }
    }
}

// === impl Position ===

impl Position {
    fn expected(self) -> &'static str {
        match self {
            Position::Document => "an array or object of the API",
            Position::ItemOrEnd => "an item or the end",
            Position::Item | Position::MemberValue => "an item",
            Position::Colon => "a colon",
            Position::Value { .. } | Position::Scalar { .. } => "the rest of an item",
            Position::CommaOrEnd => "a comma or the end",
            Position::End => "nothing more",
        }
    }
}

/// Makes the beginning of a value, from `start`, a value of its own: an object with the members that
/// are whole, or `null`.
fn keep_whole_members(buffer: &mut Vec<u8>, start: usize) {
    let (mut depth, mut string, mut escape) = (0_usize, false, false);
    let mut end = None;
    for (index, byte) in buffer.iter().enumerate().skip(start) {
        match byte {
            _ if escape => escape = false,
            b'\\' if string => escape = true,
            b'"' => string = !string,
            _ if string => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' if depth == 1 => end = Some(index),
            _ => {}
        }
    }
    if buffer.get(start) == Some(&b'{') {
        buffer.truncate(end.unwrap_or(start + 1));
        buffer.push(b'}');
    } else {
        buffer.truncate(start);
        buffer.extend_from_slice(b"null");
    }
}

fn space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    /// The items of `text`, fed in chunks of `size` bytes.
    fn split(layout: Layout, text: &str, size: usize) -> Result<Vec<(String, Value)>, Malformed> {
        let mut splitter = Splitter::new(layout);
        let mut items = Vec::new();
        for chunk in text.as_bytes().chunks(size) {
            splitter.feed(chunk, |item| {
                let decode = |bytes| {
                    serde_json::from_slice::<Value>(bytes).map_err(|error| Malformed::Item {
                        expected: "JSON",
                        reason: error.to_string(),
                    })
                };
                let name = match item.name {
                    Some(name) => decode(name)?.as_str().unwrap_or_default().to_owned(),
                    None => String::new(),
                };
                items.push((name, decode(item.value)?));
                Ok(())
            })?;
        }
        splitter.finish().map(|()| items)
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[\\PC\\\\\"\\[\\]{},:\n]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 20, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-z\"\\\\{]{0,4}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_array_and_object_is_cut_into_its_items(
            values in prop::collection::btree_map("[a-z\"\\\\\\[]{0,5}", json(), 0..6),
            size in 1_usize..40,
            pretty: bool,
        ) {
            let text = |value: &Value| {
                if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) }
                    .unwrap()
            };
            let object = Value::Object(values.clone().into_iter().collect());
            let expected: Vec<_> = values.clone().into_iter().collect();
            prop_assert_eq!(split(Layout::Members, &text(&object), size), Ok(expected));

            let elements: Vec<Value> = values.into_values().collect();
            let expected: Vec<_> =
                elements.iter().map(|value| (String::new(), value.clone())).collect();
            let array = Value::from(elements);
            prop_assert_eq!(split(Layout::Elements, &text(&array), size), Ok(expected.clone()));

            let nested = serde_json::json!({ "Node": object, "Services": array, "Z": 1 });
            prop_assert_eq!(
                split(Layout::ElementsOf("Services"), &text(&nested), size), Ok(expected)
            );
        }

        #[test]
        fn no_prefix_of_a_document_passes_for_the_whole(value in json(), cut in 0_usize..200) {
            let text = serde_json::json!({ "Node": value, "Services": [value] }).to_string();
            let cut = (0..=cut.min(text.len() - 1)).rev().find(|at| text.is_char_boundary(*at));
            let cut = &text[..cut.unwrap_or(0)];
            for layout in [Layout::Members, Layout::ElementsOf("Services")] {
                prop_assert!(split(layout, cut, 7).is_err());
            }
        }

        #[test]
        fn no_input_panics(bytes: Vec<u8>) {
            for layout in [Layout::Members, Layout::Elements, Layout::ElementsOf("a")] {
                let mut splitter = Splitter::new(layout);
                if splitter.feed(&bytes, |_| Ok(())).is_ok() {
                    let _ = splitter.finish();
                }
            }
        }
    }

    #[test]
    fn what_is_no_such_document_is_refused() {
        let member = Layout::ElementsOf("Services");
        for (layout, text) in [
            (Layout::Elements, "{}"),
            (Layout::Members, "[]"),
            (Layout::Elements, "null"),
            (Layout::Elements, "[1,]"),
            (Layout::Elements, "[1 2]"),
            (Layout::Elements, "[1]]"),
            (Layout::Elements, "[1] x"),
            (Layout::Members, "{\"a\":1,}"),
            (Layout::Members, "{\"a\" 1}"),
            (Layout::Members, "{1:1}"),
            (Layout::Elements, "<html>"),
            (member, "{\"Node\":null}"),
            (member, "{\"Services\":{}}"),
            (member, "{\"Services\":[1}"),
        ] {
            assert!(split(layout, text, 3).is_err(), "{text} was accepted");
        }
        assert_eq!(split(member, "{\"Node\":null,\"Services\":null}", 3), Ok(vec![]));
    }

    /// An item that is too large harms no other, and its beginning tells which one it is.
    #[test]
    fn l3_of_an_item_that_is_too_large_the_beginning_is_kept() {
        let long = "<\\\"}],{".repeat(MAX_ITEM / 4);
        let tags = serde_json::json!(["a", long]);
        let large = serde_json::json!({ "ID": "1", "Large": tags, "Service": "web" });
        // In the order in which it stands there.
        let large = large.to_string();
        let small = serde_json::json!({ "ID": "2" });
        let head = serde_json::json!({ "ID": "1" });
        let elements = format!("[{large},{small},{tags},{small}]");
        let item = |value: &Value| (String::new(), value.clone());
        for (layout, text) in [
            (Layout::Elements, elements.clone()),
            (
                Layout::ElementsOf("Services"),
                format!(r#"{{"Node":{large},"Services":{elements}}}"#),
            ),
        ] {
            let expected = [item(&head), item(&small), item(&Value::Null), item(&small)];
            assert_eq!(split(layout, &text, 4_096).unwrap(), expected);
        }
        let members = format!(r#"{{"a":{large},"b":{tags},"c":{small}}}"#);
        let expected = [("a", head), ("b", Value::Null), ("c", small)];
        let expected = expected.map(|(name, value)| (name.to_owned(), value));
        assert_eq!(split(Layout::Members, &members, 4_096).unwrap(), expected);
    }

    #[test]
    fn an_item_is_bounded() {
        let long = format!("{{\"{}\":1}}", "x".repeat(MAX_ITEM));
        assert_eq!(split(Layout::Members, &long, 4_096), Err(Malformed::TooLarge));
        let deep = format!("[{}{}]", "[".repeat(200), "]".repeat(200));
        assert_eq!(split(Layout::Elements, &deep, 4_096), Err(Malformed::TooLarge));
    }
}
