//! Transforms: none, one or many events in the place of each.
//!
//! Invariant: an event is emitted whole or not at all: what was emitted before a rejection is taken back. Ids follow
//! from the parent's alone, so a repeated run writes the same ones.

use std::borrow::Cow;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Reject;
use crate::columns::{Batch, Column, Rejection, Rewrite, View, Writer};
use crate::event::{Attributes, Event, encode_attributes};

/// Puts other events in the place of an event. Export it with [`export_transform!`](crate::export_transform).
pub trait Transform: Sized + 'static {
    /// What the stage's `config` is read into; [`NoConfig`](crate::NoConfig) for none. Put
    /// `#[serde(deny_unknown_fields)]` on it, so that a typing error is an error.
    type Config: DeserializeOwned;

    /// JSON Schema of the configuration, shown by `synapse plugin show` and checked by the host; empty: not described.
    const CONFIG_SCHEMA: &'static str = "";

    /// Sets the plugin up. Called once on each instance, before the first event.
    ///
    /// # Errors
    /// One sentence for the operator on what is wrong with the configuration; the plugin is then not used.
    fn new(config: Self::Config) -> Result<Self, String>;

    /// Emits what takes the event's place; nothing emitted: the event is gone.
    ///
    /// # Errors
    /// A reason why the event can never be transformed: it becomes a dead letter, and nothing of it is emitted.
    fn apply(&mut self, event: &Event<'_>, out: &mut Emitter<'_>) -> Result<(), Reject>;
}

/// Takes the events that take the place of one.
pub struct Emitter<'a> {
    parent: Event<'a>,
    row: u32,
    writer: &'a mut Writer,
    parents: &'a mut Vec<u32>,
    /// How many were emitted for this parent.
    count: usize,
    /// Whether the first of them has the parent's id only because none was given.
    first_has_parents_id: bool,
}

impl Emitter<'_> {
    /// Emits the event as it came: one copy of its bytes.
    pub fn unchanged(&mut self) {
        if self.count == 0 {
            self.writer.copy(&self.parent);
            self.first_has_parents_id = true;
            self.end_event();
        } else {
            let draft = self.parent.draft();
            self.emit(draft);
        }
    }

    /// Emits the event with other data.
    pub fn data(&mut self, data: &[u8]) {
        let draft = self.parent.draft().data(data);
        self.emit(draft);
    }

    /// Emits the event with `value` as its JSON data.
    ///
    /// # Errors
    /// When `value` cannot be written as JSON.
    pub fn json<T: Serialize>(&mut self, value: &T) -> Result<(), Reject> {
        let draft = self.parent.draft().json(value)?;
        self.emit(draft);
        Ok(())
    }

    /// Emits a draft. Without an id of its own it has the parent's if it stays the only one, else `{parent}/{k}` with
    /// its place among the emitted, counted from 0.
    pub fn emit(&mut self, draft: Draft<'_>) {
        if self.count == 1 && self.first_has_parents_id {
            self.writer.lengthen_last_id(b"/0");
        }
        match &draft.id {
            Some(id) => self.writer.append(id),
            None => self.writer.append(self.parent.column(Column::Id)),
        }
        if draft.id.is_none() && self.count > 0 {
            self.writer.append(format!("/{}", self.count).as_bytes());
        }
        self.writer.end_column();
        if self.count == 0 {
            self.first_has_parents_id = draft.id.is_none();
        }
        draft.write_behind_id(self.writer);
        self.end_event();
    }

    fn end_event(&mut self) {
        self.parents.push(self.row);
        self.count += 1;
    }
}

/// An event to be emitted: the parent's fields until they are set. An empty optional text is an absent one.
#[derive(Debug, Clone)]
#[must_use = "a draft is sent with `Emitter::emit`"]
pub struct Draft<'d> {
    id: Option<Cow<'d, [u8]>>,
    source: Cow<'d, [u8]>,
    kind: Cow<'d, [u8]>,
    subject: Cow<'d, [u8]>,
    time: Option<[u8; 8]>,
    partition_key: Cow<'d, [u8]>,
    content_type: Cow<'d, [u8]>,
    /// The parent's column.
    attributes: &'d [u8],
    /// Set (`Some`) or removed (`None`), the last one counts.
    changes: Vec<(Cow<'d, str>, Option<Cow<'d, str>>)>,
    data: Cow<'d, [u8]>,
}

impl<'d> Draft<'d> {
    pub(crate) fn of(event: &Event<'d>) -> Self {
        let column = |column| Cow::Borrowed(event.column(column));
        Self {
            id: None,
            source: column(Column::Source),
            kind: column(Column::Kind),
            subject: column(Column::Subject),
            time: event.column(Column::Time).try_into().ok(),
            partition_key: column(Column::PartitionKey),
            content_type: column(Column::ContentType),
            attributes: event.column(Column::Attributes),
            changes: Vec::new(),
            data: column(Column::Data),
        }
    }

    /// Sets the id. It should follow from the parent's, so that a repeated run writes the same.
    pub fn id(mut self, id: impl Into<Cow<'d, str>>) -> Self {
        self.id = Some(into_bytes(id.into()));
        self
    }

    /// Sets the CloudEvents `source`.
    pub fn source(mut self, source: impl Into<Cow<'d, str>>) -> Self {
        self.source = into_bytes(source.into());
        self
    }

    /// Sets the CloudEvents `type`.
    pub fn kind(mut self, kind: impl Into<Cow<'d, str>>) -> Self {
        self.kind = into_bytes(kind.into());
        self
    }

    /// Sets the subject; empty: none.
    pub fn subject(mut self, subject: impl Into<Cow<'d, str>>) -> Self {
        self.subject = into_bytes(subject.into());
        self
    }

    /// Sets the time, in microseconds since the Unix epoch.
    pub fn time_us(mut self, time_us: Option<i64>) -> Self {
        self.time = time_us.map(i64::to_le_bytes);
        self
    }

    /// Sets what the event is ordered by; empty: nothing.
    pub fn partition_key(mut self, key: impl Into<Cow<'d, str>>) -> Self {
        self.partition_key = into_bytes(key.into());
        self
    }

    /// Sets the media type of the data; empty: none.
    pub fn content_type(mut self, content_type: impl Into<Cow<'d, str>>) -> Self {
        self.content_type = into_bytes(content_type.into());
        self
    }

    /// Sets an extension attribute. CloudEvents allows lower-case letters and digits in its name.
    pub fn attribute(mut self, name: impl Into<Cow<'d, str>>, value: impl Into<Cow<'d, str>>) -> Self {
        match name.into() {
            name if name == "partitionkey" => self.partition_key(value),
            name => {
                self.changes.push((name, Some(value.into())));
                self
            }
        }
    }

    /// Removes an extension attribute.
    pub fn without_attribute(mut self, name: impl Into<Cow<'d, str>>) -> Self {
        match name.into() {
            name if name == "partitionkey" => self.partition_key(""),
            name => {
                self.changes.push((name, None));
                self
            }
        }
    }

    /// Sets the payload.
    pub fn data(mut self, data: impl Into<Cow<'d, [u8]>>) -> Self {
        self.data = data.into();
        self
    }

    /// Sets the payload to `value` as JSON, and the media type with it unless that is JSON already.
    ///
    /// # Errors
    /// When `value` cannot be written as JSON.
    pub fn json<T: Serialize>(mut self, value: &T) -> Result<Self, Reject> {
        let data = serde_json::to_vec(value)?;
        if !self.content_type.ends_with(b"json") {
            self.content_type = Cow::Borrowed(b"application/json");
        }
        self.data = Cow::Owned(data);
        Ok(self)
    }

    /// Writes every column but the first.
    pub(crate) fn write_behind_id(self, writer: &mut Writer) {
        for column in [&self.source, &self.kind, &self.subject] {
            writer.column(column);
        }
        writer.column(self.time.as_ref().map_or(&[], |time| time));
        writer.column(&self.partition_key);
        writer.column(&self.content_type);
        if self.changes.is_empty() {
            writer.column(self.attributes);
        } else {
            writer.column(&self.changed_attributes());
        }
        writer.column(&self.data);
    }

    fn changed_attributes(&self) -> Vec<u8> {
        let mut pairs: Vec<(&str, &str)> = Attributes::new(self.attributes).collect();
        for (name, value) in &self.changes {
            let known = pairs.iter().position(|(known, _)| known == name);
            match (known, value) {
                (Some(index), Some(value)) => pairs[index].1 = value,
                (Some(index), None) => {
                    pairs.remove(index);
                }
                (None, Some(value)) => pairs.push((name, value)),
                (None, None) => {}
            }
        }
        let mut column = Vec::new();
        encode_attributes(pairs.into_iter(), &mut column);
        column
    }
}

fn into_bytes(text: Cow<'_, str>) -> Cow<'_, [u8]> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    }
}

/// Transforms a batch: what the exported function does.
pub(crate) fn apply<T: Transform>(transform: &mut T, batch: &Batch) -> Rewrite {
    let view = View::of(batch);
    let mut writer = Writer::with_capacity(view.rows(), batch.bytes.len());
    let mut parents = Vec::with_capacity(view.rows());
    let mut rejected = Vec::new();
    for (row, event) in view.events() {
        let before = writer.rows();
        let mut emitter = Emitter {
            parent: event,
            row,
            writer: &mut writer,
            parents: &mut parents,
            count: 0,
            first_has_parents_id: false,
        };
        if let Err(Reject(reason)) = transform.apply(&event, &mut emitter) {
            writer.truncate(before);
            parents.truncate(before);
            rejected.push(Rejection { row, reason });
        }
    }
    Rewrite { batch: writer.finish(), parents, rejected }
}
