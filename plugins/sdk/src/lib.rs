//! Write plugins for Synapse, the event bus programmed with WebAssembly.
//!
//! A plugin is a type with a configuration and one method: [`Filter::judge`], [`Transform::apply`] or
//! [`Router::route`]. The macro of its kind exports it.
//!
//! ```
//! use synapse_plugin::{Event, Filter, Verdict};
//!
//! /// Keeps events whose `accuracy` is high enough.
//! struct Accurate {
//!     min: f64,
//! }
//!
//! #[derive(serde::Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct Config {
//!     min: f64,
//! }
//!
//! impl Filter for Accurate {
//!     type Config = Config;
//!
//!     fn new(config: Config) -> Result<Self, String> {
//!         Ok(Self { min: config.min })
//!     }
//!
//!     fn judge(&mut self, event: &Event<'_>) -> Verdict {
//!         let accuracy = event.json_at("/accuracy").and_then(|value| value.as_f64());
//!         Verdict::keep_if(accuracy.is_some_and(|accuracy| accuracy >= self.min))
//!     }
//! }
//!
//! synapse_plugin::export_filter!(Accurate);
//! # let mut bench = synapse_plugin::testing::filter::<Accurate>(&serde_json::json!({ "min": 0.9 })).unwrap();
//! # let event = synapse_plugin::testing::event("model-ready").json(&serde_json::json!({ "accuracy": 0.95 }));
//! # assert_eq!(bench.run_one(&event), synapse_plugin::cases::Outcome::Keep);
//! ```
//!
//! Built for `wasm32-unknown-unknown` the macro exports the columnar interface of the contract in `wit/`; natively it
//! exports nothing, and the same type is tested with [`testing`] by `cargo test`. Events are views into the batch that
//! the host handed over: reading one copies and allocates nothing.
//!
//! A plugin has no clock, no files, no network and no randomness; what it may use beyond [`log`] the host grants. A
//! panic is logged and traps: it costs the event at hand, which becomes a dead letter, and the instance.

// The bindings and the export macros name this crate as plugins do.
extern crate self as synapse_plugin;

mod event;
mod filter;
mod router;
mod transform;

pub mod columns;
pub mod json;
pub mod log;
pub mod pattern;
pub mod search;

#[cfg(not(target_arch = "wasm32"))]
pub mod cases;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;

#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub mod guest;

pub use event::{Attributes, Event};
pub use filter::{Filter, Verdict};
pub use pattern::Pattern;
pub use router::{Router, Routes};
pub use search::Needle;
pub use transform::{Draft, Emitter, Transform};

/// The configuration of a plugin that takes none: `{}`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoConfig {}

/// Why an event can never be processed. It becomes a dead letter, and the people who look at it read this reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject(pub String);

impl From<String> for Reject {
    fn from(reason: String) -> Self {
        Self(reason)
    }
}

impl From<&str> for Reject {
    fn from(reason: &str) -> Self {
        Self(reason.to_owned())
    }
}

impl From<serde_json::Error> for Reject {
    fn from(error: serde_json::Error) -> Self {
        Self(error.to_string())
    }
}

/// Reads the JSON text that the host hands to `configure`.
///
/// # Errors
/// One sentence for the operator, with line and column of what does not fit.
pub(crate) fn parse_config<C: serde::de::DeserializeOwned>(text: &str) -> Result<C, String> {
    serde_json::from_str(text).map_err(|error| format!("the config does not fit this plugin: {error}"))
}

/// Exports a [`Filter`] as the plugin that this crate is. Name, version and summary are those of the package.
#[macro_export]
macro_rules! export_filter {
    ($plugin:ty) => {
        $crate::__export!($plugin, Filter, set_up_filter, for_filter);
    };
}

/// Exports a [`Transform`] as the plugin that this crate is. Name, version and summary are those of the package.
#[macro_export]
macro_rules! export_transform {
    ($plugin:ty) => {
        $crate::__export!($plugin, Transform, set_up_transform, for_transform);
    };
}

/// Exports a [`Router`] as the plugin that this crate is. Name, version and summary are those of the package.
#[macro_export]
macro_rules! export_router {
    ($plugin:ty) => {
        $crate::__export!($plugin, Router, set_up_router, for_router);
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __export {
    ($plugin:ty, $kind:ident, $set_up:ident, $bindings:ident) => {
        // Without this a plugin of the wrong kind would only be found out when it is built for wasm.
        const _: () = {
            const fn is_one<P: $crate::$kind>() {}
            is_one::<$plugin>()
        };

        #[cfg(target_arch = "wasm32")]
        const _: () = {
            ::std::thread_local! {
                static PLUGIN: ::std::cell::RefCell<::std::option::Option<$plugin>> =
                    const { ::std::cell::RefCell::new(::std::option::Option::None) };
            }

            struct Exported;

            impl $crate::guest::Exported for Exported {
                type Plugin = $plugin;
                const NAME: &'static str = ::std::env!("CARGO_PKG_NAME");
                const VERSION: &'static str = ::std::env!("CARGO_PKG_VERSION");
                const SUMMARY: &'static str = ::std::env!("CARGO_PKG_DESCRIPTION");
                const CONFIG_SCHEMA: &'static str = <$plugin as $crate::$kind>::CONFIG_SCHEMA;

                fn slot() -> &'static ::std::thread::LocalKey<::std::cell::RefCell<::std::option::Option<$plugin>>> {
                    &PLUGIN
                }

                fn set_up(config: &str) -> ::std::result::Result<$plugin, ::std::string::String> {
                    $crate::guest::$set_up(config)
                }
            }

    $crate::guest::base::export_base!(Exported with_types_in $crate::guest::base);
    $crate::guest::$bindings::export_kind!(Exported with_types_in $crate::guest::$bindings);
        };
    };
}
