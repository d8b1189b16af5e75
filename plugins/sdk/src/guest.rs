//! What the export macros wire up in a guest: bindings, one instance of the plugin, and the panic hook.
//!
//! Invariant: bindings are seen here and by the macros only. Columns are moved in and out, never copied. The contract
//! has one world for each kind; here its parts are exported separately, and the component is their union, so that this
//! crate can hold the parts of every kind at once.

use std::cell::RefCell;
use std::thread::LocalKey;

use crate::columns::{Batch, Rejection};
use crate::filter::{self, Filter};
use crate::log::Level;
use crate::parse_config;
use crate::router::{self, Router};
use crate::transform::{self, Transform};

pub use wit_bindgen::rt;

/// The interface that every plugin exports, and `log`.
pub mod base {
    wit_bindgen::generate!({
        inline: "
            package synapse:sdk;
            world base { import synapse:plugin/log@0.1.0; export synapse:plugin/plugin@0.1.0; }
        ",
        path: "../../wit",
        world: "synapse:sdk/base",
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_base",
        default_bindings_module: "::synapse_plugin::guest::base",
        runtime_path: "::synapse_plugin::guest::rt",
    });
}

/// The columnar filter.
pub mod for_filter {
    wit_bindgen::generate!({
        inline: "
            package synapse:sdk;
            world only-filter { export synapse:plugin/batch-filter@0.1.0; }
        ",
        path: "../../wit",
        world: "synapse:sdk/only-filter",
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_kind",
        default_bindings_module: "::synapse_plugin::guest::for_filter",
        runtime_path: "::synapse_plugin::guest::rt",
    });
}

/// The columnar transform.
pub mod for_transform {
    wit_bindgen::generate!({
        inline: "
            package synapse:sdk;
            world only-transform { export synapse:plugin/batch-transform@0.1.0; }
        ",
        path: "../../wit",
        world: "synapse:sdk/only-transform",
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_kind",
        default_bindings_module: "::synapse_plugin::guest::for_transform",
        runtime_path: "::synapse_plugin::guest::rt",
    });
}

/// The columnar router.
pub mod for_router {
    wit_bindgen::generate!({
        inline: "
            package synapse:sdk;
            world only-router { export synapse:plugin/batch-router@0.1.0; }
        ",
        path: "../../wit",
        world: "synapse:sdk/only-router",
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_kind",
        default_bindings_module: "::synapse_plugin::guest::for_router",
        runtime_path: "::synapse_plugin::guest::rt",
    });
}

use base::exports::synapse::plugin::plugin as base_export;
use for_filter::exports::synapse::plugin::batch_filter;
use for_router::exports::synapse::plugin::batch_router;
use for_transform::exports::synapse::plugin::batch_transform;

/// What a macro says of the plugin it exports.
pub trait Exported {
    /// The plugin.
    type Plugin: 'static;
    /// Its package's name.
    const NAME: &'static str;
    /// Its package's version.
    const VERSION: &'static str;
    /// Its package's description.
    const SUMMARY: &'static str;
    /// Its configuration's JSON Schema.
    const CONFIG_SCHEMA: &'static str;

    /// Where the configured instance is kept.
    fn slot() -> &'static LocalKey<RefCell<Option<Self::Plugin>>>;

    /// Makes the instance.
    fn set_up(config: &str) -> Result<Self::Plugin, String>;
}

/// [`Exported::set_up`] of a filter.
pub fn set_up_filter<F: Filter>(config: &str) -> Result<F, String> {
    F::new(parse_config(config)?)
}

/// [`Exported::set_up`] of a transform.
pub fn set_up_transform<T: Transform>(config: &str) -> Result<T, String> {
    T::new(parse_config(config)?)
}

/// [`Exported::set_up`] of a router.
pub fn set_up_router<R: Router>(config: &str) -> Result<R, String> {
    R::new(parse_config(config)?)
}

impl<E: Exported> base_export::Guest for E {
    fn describe() -> base_export::Manifest {
        base_export::Manifest {
            name: E::NAME.to_owned(),
            version: E::VERSION.to_owned(),
            summary: E::SUMMARY.to_owned(),
            config_schema: E::CONFIG_SCHEMA.to_owned(),
        }
    }

    fn configure(config: String) -> Result<(), String> {
        std::panic::set_hook(Box::new(log_panic));
        let plugin = E::set_up(&config)?;
        E::slot().with(|slot| slot.replace(Some(plugin)));
        Ok(())
    }
}

impl<E: Exported<Plugin: Filter>> batch_filter::Guest for E {
    fn judge(batch: batch_filter::Batch) -> batch_filter::Selection {
        let batch = Batch { stride: batch.stride, ends: batch.ends, bytes: batch.bytes };
        let selection = with_plugin::<E, _>(|plugin| filter::judge(plugin, &batch));
        let rejected = rejections(selection.rejected, |row, reason| batch_filter::Rejection { row, reason });
        batch_filter::Selection { kept: selection.kept, rejected }
    }
}

impl<E: Exported<Plugin: Transform>> batch_transform::Guest for E {
    fn apply(batch: batch_transform::Batch) -> batch_transform::Rewrite {
        let batch = Batch { stride: batch.stride, ends: batch.ends, bytes: batch.bytes };
        let rewrite = with_plugin::<E, _>(|plugin| transform::apply(plugin, &batch));
        let rejected = rejections(rewrite.rejected, |row, reason| batch_transform::Rejection { row, reason });
        let Batch { stride, ends, bytes } = rewrite.batch;
        let batch = batch_transform::Batch { stride, ends, bytes };
        batch_transform::Rewrite { batch, parents: rewrite.parents, rejected }
    }
}

impl<E: Exported<Plugin: Router>> batch_router::Guest for E {
    fn route(batch: batch_router::Batch) -> batch_router::Routes {
        let batch = Batch { stride: batch.stride, ends: batch.ends, bytes: batch.bytes };
        let routing = with_plugin::<E, _>(|plugin| router::route(plugin, &batch));
        let rejected = rejections(routing.rejected, |row, reason| batch_router::Rejection { row, reason });
        batch_router::Routes { topics: routing.topics, choice: routing.choice, choices: routing.choices, rejected }
    }
}

fn with_plugin<E: Exported, T>(run: impl FnOnce(&mut E::Plugin) -> T) -> T {
    E::slot().with_borrow_mut(|slot| run(slot.as_mut().expect("the host calls `configure` before the first batch")))
}

fn rejections<R>(rejected: Vec<Rejection>, make: impl Fn(u32, String) -> R) -> Vec<R> {
    rejected.into_iter().map(|Rejection { row, reason }| make(row, reason)).collect()
}

pub(crate) fn write_log(level: Level, message: &str) {
    use base::synapse::plugin::log;
    let level = match level {
        Level::Trace => log::Level::Trace,
        Level::Debug => log::Level::Debug,
        Level::Info => log::Level::Info,
        Level::Warn => log::Level::Warn,
        Level::Error => log::Level::Error,
    };
    log::write(level, message);
}

/// The trap that follows says nothing of the reason: this does.
fn log_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let message = panic.payload_as_str().unwrap_or("the panic carries no text");
    match panic.location() {
        Some(place) => write_log(Level::Error, &format!("panic at {}:{}: {message}", place.file(), place.line())),
        None => write_log(Level::Error, &format!("panic: {message}")),
    }
}
