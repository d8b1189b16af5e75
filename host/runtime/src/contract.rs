//! The plugin contract `synapse:plugin@0.1` as wasmtime sees it: the WIT types, the six worlds, their functions.
//!
//! Types borrow what goes into a guest and own what comes out, so that a batch crosses in one copy each way. Only
//! shapes are checked here (wasmtime compares them with the component's); what values mean is `answer`'s affair.

use wasmtime::component::{ComponentType, Lift, Lower};

use synapse_core::event::EventRef;
use synapse_core::stage::PluginKind;

/// The WIT package.
pub(crate) const PACKAGE: &str = "synapse:plugin";

/// Whether a host of this version can serve `version` of the contract: 0.1.x.
pub(crate) fn speaks(version: &str) -> bool {
    version.starts_with("0.1.")
}

/// Host interfaces that a stage must be granted to import.
pub(crate) const GRANTS: [&str; 6] = ["state", "services", "history", "metrics", "secrets", "clock"];

/// Interfaces that only name types; importing one asks for nothing.
pub(crate) const TYPE_INTERFACES: [&str; 2] = ["types", "columns"];

/// What a plugin exports beside `plugin`: it decides the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum World {
    Filter,
    Transform,
    Router,
    BatchFilter,
    BatchTransform,
    BatchRouter,
}

impl World {
    pub(crate) const ALL: [Self; 6] =
        [Self::Filter, Self::Transform, Self::Router, Self::BatchFilter, Self::BatchTransform, Self::BatchRouter];

    /// The exported interface.
    pub(crate) fn interface(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Transform => "transform",
            Self::Router => "router",
            Self::BatchFilter => "batch-filter",
            Self::BatchTransform => "batch-transform",
            Self::BatchRouter => "batch-router",
        }
    }

    /// The function in it that takes events.
    pub(crate) fn function(self) -> &'static str {
        match self.kind() {
            PluginKind::Filter => "judge",
            PluginKind::Transform => "apply",
            PluginKind::Router => "route",
        }
    }

    pub(crate) fn kind(self) -> PluginKind {
        match self {
            Self::Filter | Self::BatchFilter => PluginKind::Filter,
            Self::Transform | Self::BatchTransform => PluginKind::Transform,
            Self::Router | Self::BatchRouter => PluginKind::Router,
        }
    }

    pub(crate) fn columnar(self) -> bool {
        matches!(self, Self::BatchFilter | Self::BatchTransform | Self::BatchRouter)
    }
}

/// `types.manifest`
#[derive(Debug, ComponentType, Lift)]
#[component(record)]
pub(crate) struct Manifest {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) summary: String,
    #[component(name = "config-schema")]
    pub(crate) config_schema: String,
}

/// `columns.batch` on its way into a guest.
#[derive(Clone, Copy, ComponentType, Lower)]
#[component(record)]
pub(crate) struct ColumnsIn<'a> {
    pub(crate) stride: u32,
    pub(crate) ends: &'a [u32],
    pub(crate) bytes: &'a [u8],
}

/// `columns.batch` as a guest answered it.
#[derive(ComponentType, Lift)]
#[component(record)]
pub(crate) struct ColumnsOut {
    pub(crate) stride: u32,
    pub(crate) ends: Vec<u32>,
    pub(crate) bytes: Vec<u8>,
}

/// `columns.rejection`
#[derive(Clone, ComponentType, Lift)]
#[component(record)]
pub(crate) struct Rejection {
    pub(crate) row: u32,
    pub(crate) reason: String,
}

/// `batch-filter.selection`
#[derive(ComponentType, Lift)]
#[component(record)]
pub(crate) struct Selection {
    pub(crate) kept: Vec<u8>,
    pub(crate) rejected: Vec<Rejection>,
}

/// `batch-transform.rewrite`
#[derive(ComponentType, Lift)]
#[component(record)]
pub(crate) struct Rewrite {
    pub(crate) batch: ColumnsOut,
    pub(crate) parents: Vec<u32>,
    pub(crate) rejected: Vec<Rejection>,
}

/// `batch-router.routes`
#[derive(ComponentType, Lift)]
#[component(record)]
pub(crate) struct Routes {
    pub(crate) topics: Vec<String>,
    pub(crate) choice: Vec<u32>,
    pub(crate) choices: Vec<Vec<u32>>,
    pub(crate) rejected: Vec<Rejection>,
}

/// In `routes.choice`: on to the next stage.
pub(crate) const PASS: u32 = u32::MAX;

/// `filter.verdict`
#[derive(ComponentType, Lift)]
#[component(variant)]
pub(crate) enum Verdict {
    #[component(name = "keep")]
    Keep,
    #[component(name = "drop")]
    Drop,
    #[component(name = "reject")]
    Reject(String),
}

/// `transform.outcome`
#[derive(ComponentType, Lift)]
#[component(variant)]
pub(crate) enum Outcome {
    #[component(name = "emit")]
    Emit(Vec<EventOut>),
    #[component(name = "reject")]
    Reject(String),
}

/// `router.routing`
#[derive(ComponentType, Lift)]
#[component(variant)]
pub(crate) enum Routing {
    #[component(name = "to")]
    To(Vec<String>),
    #[component(name = "pass")]
    Pass,
    #[component(name = "reject")]
    Reject(String),
}

/// `types.attribute` on its way into a guest.
#[derive(Clone, ComponentType, Lower)]
#[component(record)]
pub(crate) struct AttributeIn<'a> {
    name: &'a str,
    value: &'a str,
}

/// `types.attribute` as a guest answered it.
#[derive(ComponentType, Lift)]
#[component(record)]
pub(crate) struct AttributeOut {
    pub(crate) name: String,
    pub(crate) value: String,
}

/// `types.event` on its way into a guest.
#[derive(Clone, ComponentType, Lower)]
#[component(record)]
pub(crate) struct EventIn<'a> {
    id: &'a str,
    source: &'a str,
    kind: &'a str,
    subject: Option<&'a str>,
    time: Option<i64>,
    #[component(name = "partition-key")]
    partition_key: Option<&'a str>,
    #[component(name = "content-type")]
    content_type: Option<&'a str>,
    attributes: Vec<AttributeIn<'a>>,
    data: &'a [u8],
}

impl<'a> From<EventRef<'a>> for EventIn<'a> {
    fn from(event: EventRef<'a>) -> Self {
        Self {
            id: event.id(),
            source: event.source(),
            kind: event.kind(),
            subject: event.subject(),
            time: event.time().map(|time| time.as_micros()),
            partition_key: event.partition_key(),
            content_type: event.content_type(),
            attributes: event.attributes().map(|(name, value)| AttributeIn { name, value }).collect(),
            data: event.data(),
        }
    }
}

/// `types.event` as a guest answered it.
#[derive(ComponentType, Lift)]
#[component(record)]
pub(crate) struct EventOut {
    pub(crate) id: String,
    pub(crate) source: String,
    pub(crate) kind: String,
    pub(crate) subject: Option<String>,
    pub(crate) time: Option<i64>,
    #[component(name = "partition-key")]
    pub(crate) partition_key: Option<String>,
    #[component(name = "content-type")]
    pub(crate) content_type: Option<String>,
    pub(crate) attributes: Vec<AttributeOut>,
    pub(crate) data: Vec<u8>,
}
