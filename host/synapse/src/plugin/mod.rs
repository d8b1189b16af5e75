//! Plugins as files: building a crate into a component, looking into one, starting one from a template.
//!
//! Invariant: nothing here runs a plugin. A component is judged by its type alone, so this module must not know
//! wasmtime, brokers or pipelines.

pub mod build;
pub mod cases;
pub mod component;
pub mod new;

pub use build::{BuildOptions, BuiltPlugin, build_crate};
pub use component::{PluginShape, World, digest, inspect};
