//! JSON that is taken apart only where a pointer leads.
//!
//! Invariant: what no pointer reaches is copied from the text as it stands. Objects keep their members' order, and
//! members with the same name.

use std::borrow::Cow;
use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use synapse_plugin::Reject;
use synapse_plugin::json::Pointer;

/// One part of a place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Part {
    /// `*`: every element or member.
    Every,
    /// A member's name or an element's index.
    Name(String),
}

/// The parts that a pointer consists of.
pub(crate) fn parts(pointer: &Pointer) -> Vec<Part> {
    let part = |token: Cow<'_, str>| if token == "*" { Part::Every } else { Part::Name(token.into_owned()) };
    pointer.tokens().map(part).collect()
}

impl Part {
    fn names_member(&self, name: &str) -> bool {
        match self {
            Self::Every => true,
            Self::Name(known) => known == name,
        }
    }

    fn names_element(&self, index: usize) -> bool {
        match self {
            Self::Every => true,
            Self::Name(known) => known.parse() == Ok(index),
        }
    }
}

/// A JSON value.
pub(crate) enum Node<'a> {
    /// As it stands in the text.
    Raw(&'a RawValue),
    /// A new text.
    Text(String),
    Array(Vec<Node<'a>>),
    Object(Vec<(Cow<'a, str>, Node<'a>)>),
}

impl<'a> Node<'a> {
    /// Checks the whole text, takes nothing apart.
    pub(crate) fn parse(data: &'a [u8]) -> Result<Self, Reject> {
        serde_json::from_slice(data).map(Self::Raw).map_err(|error| Reject(format!("the data is not JSON: {error}")))
    }

    pub(crate) fn to_json(&self) -> Result<Vec<u8>, Reject> {
        Ok(serde_json::to_vec(self)?)
    }

    /// A string's content, or a number or truth value as it stands.
    pub(crate) fn text(&self) -> Option<Cow<'a, str>> {
        match self {
            Self::Raw(raw) => synapse_plugin::json::find(raw.get().as_bytes(), "")?.as_text(),
            _ => None,
        }
    }

    /// Takes an array or object one level apart.
    fn open(&mut self) {
        let Self::Raw(raw) = *self else { return };
        let opened = match raw.get().as_bytes().first() {
            Some(b'{') => serde_json::from_str(raw.get()).map(|Members(members)| Self::Object(members)),
            Some(b'[') => serde_json::from_str::<Vec<&RawValue>>(raw.get())
                .map(|elements| Self::Array(elements.into_iter().map(Self::Raw).collect())),
            _ => return,
        };
        *self = opened.expect("the text was checked when it was parsed");
    }

    /// Calls `change` with each value at `place`.
    pub(crate) fn for_each(&mut self, place: &[Part], change: &mut dyn FnMut(&mut Self)) {
        let Some((part, rest)) = place.split_first() else { return change(self) };
        self.open();
        match self {
            Self::Object(members) => {
                members
                    .iter_mut()
                    .filter(|(name, _)| part.names_member(name))
                    .for_each(|(_, node)| node.for_each(rest, change));
            }
            Self::Array(elements) => {
                let elements = elements.iter_mut().enumerate().filter(|(index, _)| part.names_element(*index));
                elements.for_each(|(_, node)| node.for_each(rest, change));
            }
            Self::Raw(_) | Self::Text(_) => {}
        }
    }

    /// Takes out each value at `place`, which is not empty.
    pub(crate) fn remove(&mut self, place: &[Part]) -> Vec<Self> {
        let mut removed = Vec::new();
        let Some((last, parent)) = place.split_last() else { return removed };
        self.for_each(parent, &mut |node| {
            node.open();
            match node {
                Self::Object(members) => {
                    removed.extend(members.extract_if(.., |(name, _)| last.names_member(name)).map(|(_, node)| node));
                }
                Self::Array(elements) => {
                    let mut indices = 0..;
                    removed.extend(
                        elements.extract_if(.., |_| indices.next().is_some_and(|index| last.names_element(index))),
                    );
                }
                Self::Raw(_) | Self::Text(_) => {}
            }
        });
        removed
    }

    /// Leaves what lies at one of `places`, and what leads there; whether anything does.
    pub(crate) fn project(&mut self, places: &[&[Part]]) -> bool {
        if places.iter().any(|place| place.is_empty()) {
            return true;
        }
        let below = |fits: &dyn Fn(&Part) -> bool| -> Vec<&[Part]> {
            places
                .iter()
                .filter_map(|place| place.split_first())
                .filter(|(part, _)| fits(part))
                .map(|(_, rest)| rest)
                .collect()
        };
        self.open();
        match self {
            Self::Object(members) => {
                members.retain_mut(|(name, node)| node.project(&below(&|part| part.names_member(name))));
                !members.is_empty()
            }
            Self::Array(elements) => {
                let mut indices = 0..;
                elements.retain_mut(|node| {
                    let index = indices.next().unwrap_or(usize::MAX);
                    node.project(&below(&|part| part.names_element(index)))
                });
                !elements.is_empty()
            }
            Self::Raw(_) | Self::Text(_) => false,
        }
    }

    /// Puts a value at a place, in the stead of what is there; objects on the way are made.
    pub(crate) fn put(&mut self, place: &[String], value: Self) -> Result<(), Reject> {
        let Some((name, rest)) = place.split_first() else {
            *self = value;
            return Ok(());
        };
        self.open();
        let Self::Object(members) = self else {
            return Err(Reject(format!("there is no object for the field `{name}` to be put into")));
        };
        let index = members.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
            members.push((Cow::Owned(name.clone()), Self::Object(Vec::new())));
            members.len() - 1
        });
        members[index].1.put(rest, value)
    }
}

impl Serialize for Node<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Raw(raw) => raw.serialize(serializer),
            Self::Text(text) => serializer.serialize_str(text),
            Self::Array(elements) => serializer.collect_seq(elements),
            Self::Object(members) => {
                let mut map = serializer.serialize_map(Some(members.len()))?;
                for (name, node) in members {
                    map.serialize_entry(name, node)?;
                }
                map.end()
            }
        }
    }
}

/// An object's members, none of them taken apart.
struct Members<'a>(Vec<(Cow<'a, str>, Node<'a>)>);

/// Borrows the name unless it has escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::with_capacity(map.size_hint().unwrap_or(8));
                while let Some((Name(name), value)) = map.next_entry()? {
                    members.push((name, Node::Raw(value)));
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}
