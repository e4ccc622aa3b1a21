//! One YAML document to a generic value, as Kubernetes reads it. Depth and number of nodes are bounded; nodes
//! behind aliases count as if they were written out.

use super::scalar;
use crate::convert::field::{FieldError, shorten};
use granit_parser::{Event, Marker, Options, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};
use serde_json::{Map, Value};
use std::collections::HashMap;

/// Limit of the nodes of a document, with aliases unfolded.
const MAX_NODES: usize = 500_000;
/// Limit of the aliases, and of the anchors, of a document.
const MAX_ANCHORS: usize = 1_000;

/// The document's value, and errors about keys that an object repeats; the last of equal keys counts.
/// `lines_before` is the number of lines of the file before the document.
pub(super) fn document(
    text: &str,
    lines_before: usize,
    max_depth: usize,
) -> Result<(Value, Vec<FieldError>), FieldError> {
    let mut options = Options::default();
    options.flow_nesting_limit = max_depth;
    options.block_nesting_limit = max_depth;
    let mut reader = DocumentReader {
        events: Parser::new_from_str_with_options(text, options),
        lines_before,
        max_depth,
        nodes: 0,
        anchors: HashMap::new(),
        aliases: 0,
        repeated_keys: Vec::new(),
    };
    let mut value = Value::Null;
    loop {
        let (event, span) = reader.next()?;
        match event {
            Event::StreamEnd => return Ok((value, reader.repeated_keys)),
            event if event.is_node() => value = reader.node(event, span, 0)?.value,
            _ => {}
        }
    }
}

/// A value with its size.
#[derive(Clone)]
struct Node {
    value: Value,
    nodes: usize,
    height: usize,
}

struct DocumentReader<'i> {
    events: Parser<'i, StrInput<'i>>,
    lines_before: usize,
    max_depth: usize,
    nodes: usize,
    anchors: HashMap<usize, Node>,
    aliases: usize,
    repeated_keys: Vec<FieldError>,
}

impl<'i> DocumentReader<'i> {
    fn next(&mut self) -> Result<(Event<'i>, Span), FieldError> {
        match self.events.next() {
            Some(Ok(next)) => Ok(next),
            Some(Err(e)) => Err(self.scan_error(&e)),
            None => Err(FieldError::plain("no valid YAML: ends too early")),
        }
    }

    fn scan_error(&self, e: &ScanError) -> FieldError {
        let info: String = e.info().chars().take(300).collect();
        self.error(*e.marker(), &info)
    }

    fn place(&self, at: Marker) -> String {
        format!("line {}, column {}", at.line().saturating_add(self.lines_before), at.col().saturating_add(1))
    }

    fn error(&self, at: Marker, reason: &str) -> FieldError {
        FieldError::plain(format!("no valid YAML: {reason} at {}", self.place(at)))
    }

    /// Counts nodes that are added to the document.
    fn count(&mut self, nodes: usize, at: Marker) -> Result<(), FieldError> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > MAX_NODES {
            return Err(self.error(at, &format!("holds more than {MAX_NODES} values")));
        }
        Ok(())
    }

    fn deep(&self, depth: usize, at: Marker) -> Result<(), FieldError> {
        if depth > self.max_depth {
            let most = self.max_depth;
            return Err(self.error(at, &format!("is nested deeper than {most} levels")));
        }
        Ok(())
    }

    fn node(&mut self, event: Event<'i>, span: Span, depth: usize) -> Result<Node, FieldError> {
        let at = span.start;
        let (anchor, node) = match event {
            Event::Alias(id) => {
                self.aliases = self.aliases.saturating_add(1);
                // An anchor is known only after its node: one that contains itself would have no end.
                let Some(node) = self.anchors.get(&id).filter(|_| self.aliases <= MAX_ANCHORS) else {
                    return Err(self.error(at, "an alias stands for what holds it, or there are too many"));
                };
                let (nodes, height) = (node.nodes, node.height);
                self.deep(depth.saturating_add(height), at)?;
                self.count(nodes, at)?;
                return self.anchors.get(&id).cloned().ok_or_else(|| self.error(at, "the alias is unknown"));
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.count(1, at)?;
                let value = self.scalar(&text, style, tag.as_deref(), at)?;
                (anchor, Node { value, nodes: 1, height: 0 })
            }
            Event::SequenceStart(_, anchor, _) => {
                self.deep(depth.saturating_add(1), at)?;
                self.count(1, at)?;
                (anchor, self.sequence(depth.saturating_add(1))?)
            }
            Event::MappingStart(_, anchor, _) => {
                self.deep(depth.saturating_add(1), at)?;
                self.count(1, at)?;
                (anchor, self.mapping(depth.saturating_add(1))?)
            }
            _ => return Err(self.error(at, "a value is missing")),
        };
        if anchor != 0 {
            if self.anchors.len() >= MAX_ANCHORS {
                return Err(self.error(at, &format!("holds more than {MAX_ANCHORS} anchors")));
            }
            // Each anchor keeps a copy of its node, and so does each anchor within it.
            self.count(node.nodes, at)?;
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn sequence(&mut self, depth: usize) -> Result<Node, FieldError> {
        let (mut list, mut nodes, mut height) = (Vec::new(), 1_usize, 0_usize);
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::SequenceEnd => {
                    return Ok(Node { value: list.into(), nodes, height: height.saturating_add(1) });
                }
                event if event.is_node() => {
                    let item = self.node(event, span, depth)?;
                    nodes = nodes.saturating_add(item.nodes);
                    height = height.max(item.height);
                    list.push(item.value);
                }
                _ => {}
            }
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<Node, FieldError> {
        let (mut map, mut merged) = (Map::new(), Vec::new());
        let (mut nodes, mut height) = (1_usize, 0_usize);
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                break;
            }
            if !event.is_node() {
                continue;
            }
            let key = self.key(event, span, depth)?;
            let (event, value_span) = loop {
                let (event, span) = self.next()?;
                if event.is_node() {
                    break (event, span);
                }
            };
            let value = self.node(event, value_span, depth)?;
            nodes = nodes.saturating_add(value.nodes).saturating_add(1);
            height = height.max(value.height);
            match key {
                Some(key) => {
                    if map.contains_key(&key) {
                        let reason = format!("key {:?} is there twice", shorten(&key));
                        self.repeated_keys.push(self.error(span.start, &reason));
                    }
                    map.insert(key, value.value);
                }
                None => merged.push((value.value, value_span.start)),
            }
        }
        for (value, at) in merged {
            self.merge(&mut map, value, at)?;
        }
        Ok(Node { value: map.into(), nodes, height: height.saturating_add(1) })
    }

    /// The text of a key; `None` for `<<`.
    fn key(&mut self, event: Event<'i>, span: Span, depth: usize) -> Result<Option<String>, FieldError> {
        let at = span.start;
        if let Event::Scalar(text, style, 0, None) = &event {
            return match (style, text.as_ref()) {
                (ScalarStyle::Plain, "<<") => Ok(None),
                (ScalarStyle::Plain, text) => scalar::plain_key(text)
                    .map(Some)
                    .map_err(|why| self.error(at, &format!("key {text:?} {why}"))),
                (_, text) => Ok(Some(text.to_owned())),
            };
        }
        match self.node(event, span, depth)?.value {
            Value::String(text) => Ok(Some(text)),
            Value::Bool(value) => Ok(Some(value.to_string())),
            Value::Number(number) => Ok(Some(number.to_string())),
            _ => Err(self.error(at, "a key must be a text")),
        }
    }

    /// Adds the fields of `<<` that the object does not have itself.
    fn merge(&self, map: &mut Map<String, Value>, value: Value, at: Marker) -> Result<(), FieldError> {
        let list = match value {
            Value::Array(list) => list,
            one => vec![one],
        };
        for value in list {
            let Value::Object(from) = value else {
                return Err(self.error(at, "\"<<\" must stand for an object or a list of objects"));
            };
            for (key, value) in from {
                map.entry(key).or_insert(value);
            }
        }
        Ok(())
    }

    fn scalar(
        &self,
        text: &str,
        style: ScalarStyle,
        tag: Option<&Tag>,
        at: Marker,
    ) -> Result<Value, FieldError> {
        let said = || format!("{:?}", shorten(text));
        let core = tag.filter(|t| t.handle() == "tag:yaml.org,2002:").map(Tag::suffix);
        match (core, tag) {
            (None, None) if style == ScalarStyle::Plain => {
                scalar::plain(text).map_err(|why| self.error(at, &format!("{} {why}", said())))
            }
            // A quoted text, `!!str`, and unknown tags.
            (None, _) | (Some("str"), _) => Ok(text.into()),
            (Some(kind), _) => {
                let value =
                    scalar::plain(text).map_err(|why| self.error(at, &format!("{} {why}", said())))?;
                let fits = match kind {
                    "int" => value.is_i64() || value.is_u64(),
                    "float" => value.is_number(),
                    "bool" => value.is_boolean(),
                    "null" => value.is_null(),
                    "timestamp" => return Ok(text.into()),
                    _ => false,
                };
                if fits {
                    Ok(value)
                } else {
                    Err(self.error(at, &format!("{} is no !!{}", said(), shorten(kind))))
                }
            }
        }
    }
}
