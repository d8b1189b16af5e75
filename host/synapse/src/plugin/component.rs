//! From a core module to a component, and from a component to what it is.
//!
//! Invariant: whatever [`inspect`] accepts exports one kind of plugin, type-checked against the contract in `wit/`, and
//! imports nothing but that contract. Bytes come from outside: they are validated before anything else looks at them.
//! This module must not run a component, and knows nothing of files or Cargo.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};
use wit_component::{ComponentEncoder, DecodedWasm};
use wit_parser::{PackageName, Resolve, UnresolvedPackageGroup, WorldId, WorldItem, WorldKey};

/// The files of the contract, as the host was built with them.
const CONTRACT: [(&str, &str); 5] = [
    ("types.wit", include_str!("../../../../wit/types.wit")),
    ("host.wit", include_str!("../../../../wit/host.wit")),
    ("filter.wit", include_str!("../../../../wit/filter.wit")),
    (
        "transform.wit",
        include_str!("../../../../wit/transform.wit"),
    ),
    ("router.wit", include_str!("../../../../wit/router.wit")),
];

/// Interfaces of the contract that every plugin may import: they are types, or are always granted.
const FREE_IMPORTS: [&str; 3] = ["types", "columns", "log"];

/// Interfaces that a plugin imports to ask for a grant of the same name.
const GRANTS: [&str; 6] = [
    "state", "services", "history", "metrics", "secrets", "clock",
];

/// What a plugin does with an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Keeps, drops or rejects it.
    Filter,
    /// Puts none, one or many events in its place, or rejects it.
    Transform,
    /// Names the topics it goes to, or rejects it.
    Router,
}

impl Kind {
    /// Every kind, in the order the documentation lists them.
    pub const ALL: [Self; 3] = [Self::Filter, Self::Transform, Self::Router];

    /// The word used in WIT, on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Transform => "transform",
            Self::Router => "router",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == word)
            .ok_or_else(|| {
                format!("`{word}` is not a kind of plugin: use filter, transform or router")
            })
    }
}

/// How events cross into a plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum World {
    /// As columns, without an allocation per event: what the Rust SDK exports.
    Batch,
    /// As a list of records: for languages without an SDK.
    Typed,
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Batch => "batch",
            Self::Typed => "typed",
        })
    }
}

/// What a component is, judged by its type.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct PluginShape {
    /// Filter, transform or router.
    pub kind: Kind,
    /// Columns or records.
    pub world: World,
    /// The grants it wants, sorted: `state`, `services`, `history`, `metrics`, `secrets`, `clock`.
    pub grants: Vec<String>,
}

/// Why bytes are not a plugin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither a module nor a component.
    #[error(
        "this is not WebAssembly (it does not start with `\\0asm`): give a component built by `synapse plugin build`"
    )]
    NotWasm,
    /// A core module where a component belongs.
    #[error(
        "this is a core WebAssembly module, not a component: build it with `synapse plugin build`, or wrap it with `wasm-tools component new`"
    )]
    CoreModule,
    /// The bytes do not decode or do not validate.
    #[error("the component is damaged or uses WebAssembly features unknown to this host: {reason}")]
    Invalid {
        /// The validator's words.
        reason: String,
    },
    /// A core module that cannot be wrapped.
    #[error("the module cannot be made a component: {reason}")]
    Unwrappable {
        /// The encoder's words.
        reason: String,
    },
    /// A WIT package or another binary without code.
    #[error("this is a WIT package, not a component: build the plugin that implements it")]
    WitPackage,
    /// A core module with imports that no host interface provides.
    #[error("the module imports `{module}::{name}`, which no host provides: {hint}")]
    ForeignModuleImport {
        /// The import's module.
        module: String,
        /// The import's name.
        name: String,
        /// How such an import usually gets in, and the way out.
        hint: &'static str,
    },
    /// WASI is not linked, so it may not be imported.
    #[error("the plugin imports `{interface}`, but plugins run without WASI: {hint}")]
    Wasi {
        /// The interface with its version.
        interface: String,
        /// How it usually gets in, and the way out.
        hint: &'static str,
    },
    /// An import that is neither WASI nor part of the contract.
    #[error(
        "the plugin imports `{import}`, which this host does not have: it links `synapse:plugin/*@{version}` only, with the grants {}",
        GRANTS.join(", ")
    )]
    UnknownImport {
        /// What is imported.
        import: String,
        /// The version of the contract in this host.
        version: String,
    },
    /// No kind of plugin, or more than one.
    #[error(
        "the component exports {found}, but a plugin exports exactly one of `synapse:plugin/filter`, `transform`, `router`, `batch-filter`, `batch-transform`, `batch-router` (@{version}): {hint}"
    )]
    NotOneKind {
        /// What it exports instead.
        found: String,
        /// The version of the contract in this host.
        version: String,
        /// What to do.
        hint: &'static str,
    },
    /// The interface every plugin exports is missing.
    #[error(
        "the component exports a {kind}, but not `synapse:plugin/plugin@{version}` with `describe` and `configure`: export that interface, too"
    )]
    NoPlugin {
        /// The kind it exports.
        kind: Kind,
        /// The version of the contract in this host.
        version: String,
    },
    /// The names are right, the types are not.
    #[error(
        "the component's {kind} does not have the types of `synapse:plugin@{version}`: {reason}; build it against the `wit/` folder of this host"
    )]
    WrongTypes {
        /// The kind it exports.
        kind: Kind,
        /// The version of the contract in this host.
        version: String,
        /// The validator's words.
        reason: String,
    },
}

/// Wraps a core module that carries the type section of `wit-bindgen` into a component, and validates it.
///
/// The result is a valid component, not yet a plugin: [`inspect`] says whether it is one.
///
/// # Errors
/// When the bytes are not a core module, when the module imports functions that no component can provide, and when its
/// imports and exports do not fit the types it carries.
pub fn from_module(module: &[u8]) -> Result<Vec<u8>, Error> {
    match layer(module)? {
        Layer::Module => {}
        Layer::Component => {
            return Err(Error::Unwrappable {
                reason: "it is a component already".to_owned(),
            });
        }
    }
    reject_foreign_imports(module)?;
    let mut encoder = ComponentEncoder::default();
    encoder
        .module(module)
        .and_then(|encoder| encoder.validate(true).encode())
        .map_err(|error| Error::Unwrappable {
            reason: format!("{error:#}"),
        })
}

/// Validates a component and says what kind of plugin it is and which grants it wants.
///
/// # Errors
/// One sentence on the first thing that keeps the component from being a plugin of this host.
pub fn inspect(bytes: &[u8]) -> Result<PluginShape, Error> {
    match layer(bytes)? {
        Layer::Module => return Err(Error::CoreModule),
        Layer::Component => {}
    }
    let (resolve, world) = match wit_component::decode(bytes) {
        Ok(DecodedWasm::Component(resolve, world)) => (resolve, world),
        Ok(DecodedWasm::WitPackage(..)) => return Err(Error::WitPackage),
        Err(error) => {
            return Err(Error::Invalid {
                reason: format!("{error:#}"),
            });
        }
    };
    let contract = Contract::load();
    let grants = imported_grants(&contract, &resolve, world)?;
    let (kind, flavour) = exported_kind(&contract, &resolve, world)?;
    contract.check_types(kind, flavour, bytes)?;
    Ok(PluginShape {
        kind,
        world: flavour,
        grants,
    })
}

/// The digest a plugin is known by: SHA-256 of the component's bytes, in lower-case hexadecimal.
pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .fold(String::with_capacity(64), |mut hex, byte| {
            for nibble in [byte >> 4, byte & 15] {
                hex.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
            }
            hex
        })
}

enum Layer {
    Module,
    Component,
}

fn layer(bytes: &[u8]) -> Result<Layer, Error> {
    if wasmparser::Parser::is_component(bytes) {
        Ok(Layer::Component)
    } else if wasmparser::Parser::is_core_wasm(bytes) {
        Ok(Layer::Module)
    } else {
        Err(Error::NotWasm)
    }
}

/// The contract that this host was built with.
struct Contract {
    resolve: Resolve,
    package: PackageName,
    /// For each kind and flavour the world that imports every grant.
    worlds: Vec<(Kind, World, WorldId)>,
}

impl Contract {
    /// Parses `wit/` and adds, for each kind, a world that has every import a plugin may have: what a component is
    /// checked against.
    fn load() -> Self {
        let mut sources = wit_parser::SourceMap::default();
        for (name, text) in CONTRACT {
            sources.push_str(name, text);
        }
        let cases = Kind::ALL
            .into_iter()
            .flat_map(|kind| [(kind, World::Batch), (kind, World::Typed)]);
        let imports: String = FREE_IMPORTS
            .iter()
            .chain(&GRANTS)
            .map(|name| format!("import {name}; "))
            .collect();
        let worlds: String = cases
            .clone()
            .map(|(kind, flavour)| {
                let export = interface_name(kind, flavour);
                format!("world any-{export} {{ {imports} export plugin; export {export}; }}\n")
            })
            .collect();
        sources.push_str("any.wit", worlds);
        let group: UnresolvedPackageGroup = sources
            .parse()
            .unwrap_or_else(|(_, error)| panic!("the contract in wit/ parses, a test sees to it: {error}"));
        let mut resolve = Resolve::default();
        let package = resolve
            .push_group(group)
            .expect("the contract in wit/ resolves, a test sees to it");
        let worlds = cases
            .map(|(kind, flavour)| {
                let name = format!("any-{}", interface_name(kind, flavour));
                let world = resolve.packages[package].worlds[&name];
                (kind, flavour, world)
            })
            .collect();
        let package = resolve.packages[package].name.clone();
        Self {
            resolve,
            package,
            worlds,
        }
    }

    fn version(&self) -> String {
        self.package
            .version
            .as_ref()
            .expect("the contract is versioned")
            .to_string()
    }

    /// Whether `other` names this contract in a version that links with ours: the same 0.x, any patch.
    fn is_same(&self, other: &PackageName) -> bool {
        let same_series = match (&self.package.version, &other.version) {
            (Some(ours), Some(theirs)) => {
                ours.major == theirs.major && (ours.major > 0 || ours.minor == theirs.minor)
            }
            _ => false,
        };
        self.package.namespace == other.namespace && self.package.name == other.name && same_series
    }

    fn check_types(&self, kind: Kind, flavour: World, component: &[u8]) -> Result<(), Error> {
        let world = self
            .worlds
            .iter()
            .find(|(k, f, _)| *k == kind && *f == flavour)
            .map(|(_, _, world)| *world)
            .expect("a world was made for every kind and flavour");
        wit_component::targets(&self.resolve, world, component, true).map_err(|error| {
            Error::WrongTypes {
                kind,
                version: self.version(),
                reason: format!("{:#}", error.root_cause()),
            }
        })
    }
}

fn interface_name(kind: Kind, flavour: World) -> String {
    match flavour {
        World::Batch => format!("batch-{kind}"),
        World::Typed => kind.name().to_owned(),
    }
}

/// The full name of an import or export, and its package and interface when it is an interface.
fn item_name<'a>(
    resolve: &'a Resolve,
    key: &WorldKey,
    item: &WorldItem,
) -> (String, Option<(&'a PackageName, &'a str)>) {
    let full = resolve.name_world_key(key);
    let WorldItem::Interface { id, .. } = item else {
        return (full, None);
    };
    let interface = &resolve.interfaces[*id];
    let named = match (key, interface.package, &interface.name) {
        (WorldKey::Interface(_), Some(package), Some(name)) => {
            Some((&resolve.packages[package].name, name.as_str()))
        }
        _ => None,
    };
    (full, named)
}

fn imported_grants(
    contract: &Contract,
    resolve: &Resolve,
    world: WorldId,
) -> Result<Vec<String>, Error> {
    let mut grants = Vec::new();
    for (key, item) in &resolve.worlds[world].imports {
        match item_name(resolve, key, item) {
            (full, Some((package, _))) if package.namespace == "wasi" => {
                return Err(Error::Wasi {
                    hint: wasi_hint(&package.name),
                    interface: full,
                });
            }
            (_, Some((package, name))) if contract.is_same(package) && GRANTS.contains(&name) => {
                grants.push(name.to_owned());
            }
            (_, Some((package, name)))
                if contract.is_same(package) && FREE_IMPORTS.contains(&name) => {}
            (full, _) => {
                return Err(Error::UnknownImport {
                    import: full,
                    version: contract.version(),
                });
            }
        }
    }
    grants.sort_unstable();
    Ok(grants)
}

fn exported_kind(
    contract: &Contract,
    resolve: &Resolve,
    world: WorldId,
) -> Result<(Kind, World), Error> {
    let mut kinds = Vec::new();
    let mut names = Vec::new();
    let mut has_plugin = false;
    for (key, item) in &resolve.worlds[world].exports {
        let (full, named) = item_name(resolve, key, item);
        names.push(format!("`{full}`"));
        let Some((_, name)) = named.filter(|(package, _)| contract.is_same(package)) else {
            continue;
        };
        has_plugin |= name == "plugin";
        kinds.extend(
            contract
                .worlds
                .iter()
                .filter(|(kind, flavour, _)| interface_name(*kind, *flavour) == name)
                .map(|(kind, flavour, _)| (*kind, *flavour)),
        );
    }
    match kinds.as_slice() {
        [(kind, _)] if !has_plugin => Err(Error::NoPlugin {
            kind: *kind,
            version: contract.version(),
        }),
        [only] => Ok(*only),
        _ => Err(Error::NotOneKind {
            found: if names.is_empty() {
                "nothing".to_owned()
            } else {
                names.join(", ")
            },
            version: contract.version(),
            hint: if names.is_empty() {
                "a Rust plugin names its type in `synapse_plugin::export_filter!`, `export_transform!` or `export_router!`"
            } else {
                "ship one component for each kind, built against the `wit/` folder of this host"
            },
        }),
    }
}

/// Names imports that no component can have, before the encoder trips over them with words about itself.
fn reject_foreign_imports(module: &[u8]) -> Result<(), Error> {
    for payload in wasmparser::Parser::new(0).parse_all(module) {
        let payload = payload.map_err(invalid)?;
        let wasmparser::Payload::ImportSection(section) = payload else {
            continue;
        };
        for import in section.into_imports() {
            let import = import.map_err(invalid)?;
            if let Some(hint) = foreign_hint(import.module) {
                return Err(Error::ForeignModuleImport {
                    module: import.module.to_owned(),
                    name: import.name.to_owned(),
                    hint,
                });
            }
        }
    }
    Ok(())
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the shape that `map_err` wants"
)]
fn invalid(error: wasmparser::BinaryReaderError) -> Error {
    Error::Invalid {
        reason: error.to_string(),
    }
}

fn foreign_hint(module: &str) -> Option<&'static str> {
    if module.starts_with("wasi") {
        Some(
            "it was built for a WASI target; build for `wasm32-unknown-unknown`, as `synapse plugin build` does, and do without files, clocks and sockets",
        )
    } else if module.starts_with("__wbindgen") {
        Some(
            "it comes from wasm-bindgen, usually through a `js` feature of getrandom, chrono or uuid; switch that feature off",
        )
    } else if module == "env" {
        Some(
            "an `extern \"C\"` function was left without a definition, usually by a dependency that wraps a C library; use one in pure Rust",
        )
    } else {
        None
    }
}

fn wasi_hint(package: &str) -> &'static str {
    match package {
        "clocks" => {
            "it gets in through std::time (Instant::now, SystemTime::now) on a WASI target; use the event's own time or the grant `clock`, and build Rust for wasm32-unknown-unknown"
        }
        "filesystem" => {
            "it gets in through std::fs or File on a WASI target; give the plugin what it needs as config, and build Rust for wasm32-unknown-unknown"
        }
        "cli" => {
            "it gets in through println!, std::env or std::process on a WASI target; write with the interface `log`, take settings from config, and build Rust for wasm32-unknown-unknown (componentize-py: --stub-wasi, componentize-js: disableFeatures)"
        }
        "random" => {
            "it gets in through HashMap's random state, rand or getrandom on a WASI target; hash the event's id instead, and build Rust for wasm32-unknown-unknown (componentize-js: disableFeatures random)"
        }
        "sockets" | "http" => {
            "plugins cannot reach the network; let a router send the event to a topic or a webhook sink"
        }
        _ => {
            "it gets in through the standard library of a WASI target (std::time, std::fs, println!, HashMap); build Rust for wasm32-unknown-unknown, or stub WASI (componentize-py: --stub-wasi, componentize-js: disableFeatures)"
        }
    }
}
