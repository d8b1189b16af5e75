//! From a core module to a component, and from a component to what it is.
//!
//! Invariant: whatever [`inspect`] accepts exports one kind of plugin, type-checked against the contract in `wit/`, and
//! imports nothing but that contract. Bytes come from outside: they are validated before anything else looks at them.
//! This module must not run a component, and knows nothing of files or Cargo.

use std::fmt;

use sha2::{Digest as _, Sha256};
use synapse_core::stage::{Digest, PluginKind};
use wit_component::{ComponentEncoder, DecodedWasm};
use wit_parser::{PackageName, Resolve, UnresolvedPackageGroup, WorldId, WorldItem, WorldKey};

/// The files of the contract, as the host was built with them.
const CONTRACT: [(&str, &str); 5] = [
    ("types.wit", include_str!("../../../../wit/types.wit")),
    ("host.wit", include_str!("../../../../wit/host.wit")),
    ("filter.wit", include_str!("../../../../wit/filter.wit")),
    ("transform.wit", include_str!("../../../../wit/transform.wit")),
    ("router.wit", include_str!("../../../../wit/router.wit")),
];

/// Interfaces of the contract that every plugin may import: they are types, or are always granted.
const FREE_IMPORTS: [&str; 3] = ["types", "columns", "log"];

/// Interfaces that a plugin imports to ask for a grant of the same name.
const GRANTS: [&str; 6] = ["state", "services", "history", "metrics", "secrets", "clock"];

/// The kinds, in the order in which the documentation lists them.
const KINDS: [PluginKind; 3] = [PluginKind::Filter, PluginKind::Transform, PluginKind::Router];

/// How events cross into a plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginShape {
    /// Filter, transform or router.
    pub kind: PluginKind,
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
        kind: PluginKind,
        /// The version of the contract in this host.
        version: String,
    },
    /// The names are right, the types are not.
    #[error(
        "the component's {kind} does not have the types of `synapse:plugin@{version}`: {reason}; build it against the `wit/` folder of this host"
    )]
    WrongTypes {
        /// The kind it exports.
        kind: PluginKind,
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
            return Err(Error::Unwrappable { reason: "it is a component already".to_owned() });
        }
    }
    reject_foreign_imports(module)?;
    let mut encoder = ComponentEncoder::default();
    encoder
        .module(module)
        .and_then(|encoder| encoder.validate(true).encode())
        .map_err(|error| Error::Unwrappable { reason: format!("{error:#}") })
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
            return Err(Error::Invalid { reason: format!("{error:#}") });
        }
    };
    let contract = Contract::load();
    let grants = imported_grants(&contract, &resolve, world)?;
    let (kind, flavour) = exported_kind(&contract, &resolve, world)?;
    contract.check_types(kind, flavour, bytes)?;
    Ok(PluginShape { kind, world: flavour, grants })
}

/// The digest a plugin is known by: SHA-256 of the component's bytes.
pub fn digest(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
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
    worlds: Vec<(PluginKind, World, WorldId)>,
}

impl Contract {
    /// Parses `wit/` and adds, for each kind, a world that has every import a plugin may have: what a component is
    /// checked against.
    fn load() -> Self {
        let mut sources = wit_parser::SourceMap::default();
        for (name, text) in CONTRACT {
            sources.push_str(name, text);
        }
        let cases = KINDS.into_iter().flat_map(|kind| [(kind, World::Batch), (kind, World::Typed)]);
        let imports: String = FREE_IMPORTS.iter().chain(&GRANTS).map(|name| format!("import {name}; ")).collect();
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
        let package = resolve.push_group(group).expect("the contract in wit/ resolves, a test sees to it");
        let worlds = cases
            .map(|(kind, flavour)| {
                let name = format!("any-{}", interface_name(kind, flavour));
                let world = resolve.packages[package].worlds[&name];
                (kind, flavour, world)
            })
            .collect();
        let package = resolve.packages[package].name.clone();
        Self { resolve, package, worlds }
    }

    fn version(&self) -> String {
        self.package.version.as_ref().expect("the contract is versioned").to_string()
    }

    /// Whether `other` names this contract in a version that links with ours: the same 0.x, any patch.
    fn is_same(&self, other: &PackageName) -> bool {
        let same_series = match (&self.package.version, &other.version) {
            (Some(ours), Some(theirs)) => ours.major == theirs.major && (ours.major > 0 || ours.minor == theirs.minor),
            _ => false,
        };
        self.package.namespace == other.namespace && self.package.name == other.name && same_series
    }

    fn check_types(&self, kind: PluginKind, flavour: World, component: &[u8]) -> Result<(), Error> {
        let world = self
            .worlds
            .iter()
            .find(|(k, f, _)| *k == kind && *f == flavour)
            .map(|(_, _, world)| *world)
            .expect("a world was made for every kind and flavour");
        wit_component::targets(&self.resolve, world, component, true).map_err(|error| Error::WrongTypes {
            kind,
            version: self.version(),
            reason: format!("{:#}", error.root_cause()),
        })
    }
}

fn interface_name(kind: PluginKind, flavour: World) -> String {
    match flavour {
        World::Batch => format!("batch-{kind}"),
        World::Typed => kind.to_string(),
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
        (WorldKey::Interface(_), Some(package), Some(name)) => Some((&resolve.packages[package].name, name.as_str())),
        _ => None,
    };
    (full, named)
}

fn imported_grants(contract: &Contract, resolve: &Resolve, world: WorldId) -> Result<Vec<String>, Error> {
    let mut grants = Vec::new();
    for (key, item) in &resolve.worlds[world].imports {
        match item_name(resolve, key, item) {
            (full, Some((package, _))) if package.namespace == "wasi" => {
                return Err(Error::Wasi { hint: wasi_hint(&package.name), interface: full });
            }
            (_, Some((package, name))) if contract.is_same(package) && GRANTS.contains(&name) => {
                grants.push(name.to_owned());
            }
            (_, Some((package, name))) if contract.is_same(package) && FREE_IMPORTS.contains(&name) => {}
            (full, _) => {
                return Err(Error::UnknownImport { import: full, version: contract.version() });
            }
        }
    }
    grants.sort_unstable();
    Ok(grants)
}

fn exported_kind(contract: &Contract, resolve: &Resolve, world: WorldId) -> Result<(PluginKind, World), Error> {
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
        [(kind, _)] if !has_plugin => Err(Error::NoPlugin { kind: *kind, version: contract.version() }),
        [only] => Ok(*only),
        _ => Err(Error::NotOneKind {
            found: if names.is_empty() { "nothing".to_owned() } else { names.join(", ") },
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

#[expect(clippy::needless_pass_by_value, reason = "the shape that `map_err` wants")]
fn invalid(error: wasmparser::BinaryReaderError) -> Error {
    Error::Invalid { reason: error.to_string() }
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

#[cfg(test)]
mod tests {
    use wit_component::{StringEncoding, dummy_module, embed_component_metadata};
    use wit_parser::ManglingAndAbi;

    use super::*;

    /// A core module that has the shape of `world`, with every function a trap.
    fn module(world: &str) -> Vec<u8> {
        let mut sources = wit_parser::SourceMap::default();
        for (name, text) in CONTRACT {
            sources.push_str(name, text);
        }
        sources.push_str("world.wit", world);
        let group = sources.parse().map_err(|(_, error)| error).unwrap();
        let mut resolve = Resolve::default();
        let package = resolve.push_group(group).unwrap();
        let world = resolve.packages[package].worlds["it"];
        let mut module = dummy_module(&resolve, world, ManglingAndAbi::Standard32);
        embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8, false).unwrap();
        module
    }

    fn shape(world: &str) -> Result<PluginShape, Error> {
        inspect(&from_module(&module(world))?)
    }

    fn check_error(world: &str, expected: &str) {
        let error = shape(world).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn every_world_of_the_contract_is_recognised() {
        for kind in KINDS {
            for (world, prefix) in [(World::Batch, "batch-"), (World::Typed, "")] {
                let found = shape(&format!("world it {{ include {prefix}{kind}-plugin; }}")).unwrap();
                let expected = PluginShape { kind, world, grants: Vec::new() };
                assert_eq!(found, expected);
            }
        }
    }

    #[test]
    fn imports_are_the_grants() {
        let found = shape("world it { include batch-filter-plugin; import state; import clock; }").unwrap();
        assert_eq!(found.grants, ["clock", "state"]);
    }

    #[test]
    fn wasi_is_named_with_the_way_it_got_in() {
        check_error(
            "package wasi:clocks@0.2.3 { interface wall-clock { now: func() -> u64; } }
             world it { include batch-filter-plugin; import wasi:clocks/wall-clock@0.2.3; }",
            "imports `wasi:clocks/wall-clock@0.2.3`, but plugins run without WASI: it gets in through std::time",
        );
    }

    #[test]
    fn only_the_contract_is_imported() {
        check_error(
            "package other:thing@1.0.0 { interface face { f: func(); } }
             world it { include batch-filter-plugin; import other:thing/face@1.0.0; }",
            "imports `other:thing/face@1.0.0`, which this host does not have",
        );
        check_error(
            "world it { include batch-filter-plugin; import f: func(); }",
            "imports `f`, which this host does not have",
        );
    }

    #[test]
    fn a_plugin_has_one_kind() {
        check_error("world it { include batch-filter-plugin; export router; }", "exports exactly one of");
        check_error("world it { import log; }", "the component exports nothing, but a plugin exports");
        check_error("world it { export filter; }", "exports a filter, but not `synapse:plugin/plugin@0.1.0`");
    }

    #[test]
    fn names_without_the_types_are_not_enough() {
        let altered =
            component_with("judge: func(batch: batch) -> selection;", "judge: func(batch: batch) -> list<u8>;");
        let error = inspect(&altered).unwrap_err();
        assert!(matches!(error, Error::WrongTypes { kind: PluginKind::Filter, .. }), "{error}");
    }

    #[test]
    fn a_later_patch_of_the_contract_is_accepted_and_a_later_minor_is_not() {
        let patch = component_with("@0.1.0", "@0.1.7");
        assert_eq!(inspect(&patch).unwrap().kind, PluginKind::Filter);
        let minor = component_with("@0.1.0", "@0.2.0");
        assert!(inspect(&minor).is_err());
    }

    /// A batch filter against a contract in which `from` was replaced by `to`.
    fn component_with(from: &str, to: &str) -> Vec<u8> {
        let mut sources = wit_parser::SourceMap::default();
        for (name, text) in CONTRACT {
            sources.push_str(name, text.replace(from, to));
        }
        let group = sources.parse().map_err(|(_, error)| error).unwrap();
        let mut resolve = Resolve::default();
        let package = resolve.push_group(group).unwrap();
        let world = resolve.packages[package].worlds["batch-filter-plugin"];
        let mut module = dummy_module(&resolve, world, ManglingAndAbi::Standard32);
        embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8, false).unwrap();
        from_module(&module).unwrap()
    }

    #[test]
    fn what_is_not_a_component_is_named() {
        assert!(matches!(inspect(b"hello"), Err(Error::NotWasm)));
        assert!(matches!(inspect(b"\0asm\x01\0\0\0"), Err(Error::CoreModule)));
        assert!(matches!(from_module(b"\0asm\x0d\0\x01\0"), Err(Error::Unwrappable { .. })));
    }

    #[test]
    fn foreign_imports_of_a_module_are_explained() {
        let module = module_importing("wasi_snapshot_preview1", "clock_time_get");
        let error = from_module(&module).unwrap_err().to_string();
        assert!(error.contains("`wasi_snapshot_preview1::clock_time_get`"), "{error}");
        assert!(error.contains("wasm32-unknown-unknown"), "{error}");
    }

    /// The smallest module with an import: a function type, and a function of it.
    fn module_importing(module: &str, name: &str) -> Vec<u8> {
        let mut bytes = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x02".to_vec();
        bytes.push(u8::try_from(module.len() + name.len() + 5).unwrap());
        bytes.push(1);
        for text in [module, name] {
            bytes.push(u8::try_from(text.len()).unwrap());
            bytes.extend_from_slice(text.as_bytes());
        }
        bytes.extend_from_slice(&[0, 0]);
        bytes
    }

    #[test]
    fn damaged_components_are_refused_without_a_panic() {
        let whole = from_module(&module("world it { include batch-router-plugin; }")).unwrap();
        // A cut may fall behind the last section that matters, and a changed byte into a name that nothing reads.
        let harmless = |bytes: &[u8]| inspect(bytes).map_or(true, |shape| shape.kind == PluginKind::Router);
        assert!(inspect(&whole[..whole.len() / 2]).is_err());
        for at in (0..whole.len()).step_by(3) {
            assert!(harmless(&whole[..at]), "cut at {at}");
            let mut bent = whole.clone();
            bent[at] ^= 0x55;
            assert!(harmless(&bent), "changed at {at}");
        }
    }

    #[test]
    fn digests_are_sha256() {
        assert_eq!(digest(b"abc").to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
