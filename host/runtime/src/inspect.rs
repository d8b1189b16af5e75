//! Says whether bytes are a plugin, and if not, in one sentence, why.
//!
//! Two looks: at the raw bytes, before anything is compiled, and at the compiled component's imports and exports. A
//! sentence starts with its verb, for the caller to put the plugin's name before it. Nothing here runs guest code.

use wasmparser::{CanonicalFunction, CanonicalOption, Parser, Payload};
use wasmtime::Engine;
use wasmtime::component::{Component, ComponentExportIndex};

use crate::contract::{self, World};
use crate::engine::MEMORIES_PER_COMPONENT_MAX;
use crate::text;

/// Size of one function's code: compiling takes more than linear time in it. The largest seen in interpreters compiled
/// to wasm are a few hundred KiB.
const FUNCTION_BYTES_MAX: usize = 1 << 20;

/// Looks at the raw bytes.
///
/// # Errors
/// The reason why these bytes cannot be a plugin.
pub(crate) fn scan(bytes: &[u8]) -> Result<(), String> {
    match bytes.get(..8) {
        Some([b'\0', b'a', b's', b'm', 0x0d, 0, 1, 0]) => {}
        Some([b'\0', b'a', b's', b'm', 1, 0, 0, 0]) => {
            return Err("is a core module; `synapse plugin build` makes a component of it".to_owned());
        }
        Some([b'\0', b'a', b's', b'm', ..]) => {
            return Err("is WebAssembly of a version that Synapse does not know".to_owned());
        }
        _ => return Err("is not WebAssembly".to_owned()),
    }
    for payload in Parser::new(0).parse_all(bytes) {
        let malformed = |error| format!("is damaged: {error}");
        match payload.map_err(malformed)? {
            Payload::CodeSectionEntry(body) => {
                let size = body.as_bytes().len();
                if size > FUNCTION_BYTES_MAX {
                    let (size, max) = (text::bytes(size), text::bytes(FUNCTION_BYTES_MAX));
                    return Err(format!("has a function of {size}; at most {max} can be compiled in bounded time"));
                }
            }
            Payload::ComponentCanonicalSection(functions) => {
                for function in functions {
                    if is_async(&function.map_err(malformed)?) {
                        return Err("uses asynchronous functions of the component model; \
                                    functions of a plugin are synchronous"
                            .to_owned());
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn is_async(function: &CanonicalFunction) -> bool {
    match function {
        CanonicalFunction::Lift { options, .. } | CanonicalFunction::Lower { options, .. } => {
            options.contains(&CanonicalOption::Async)
        }
        _ => false,
    }
}

/// What a component imports and exports, in terms of the contract.
#[derive(Debug)]
pub(crate) struct Interfaces {
    pub(crate) world: World,
    /// Grants that its imports ask for, in the contract's order.
    pub(crate) wants: Vec<String>,
    pub(crate) describe: ComponentExportIndex,
    pub(crate) configure: ComponentExportIndex,
    pub(crate) work: ComponentExportIndex,
    /// Linear memories of an instance.
    pub(crate) memories: u32,
}

/// Looks at a compiled component.
///
/// # Errors
/// The reason why it is not a plugin.
pub(crate) fn interfaces(engine: &Engine, component: &Component) -> Result<Interfaces, String> {
    let ty = component.component_type();
    let wants = wants(ty.imports(engine).map(|(name, _)| name))?;
    let exports: Vec<&str> = ty.exports(engine).map(|(name, _)| name).collect();
    let (world, plugin, work) = world(&exports)?;
    let function = |interface: &str, function: &str| {
        let instance = component.get_export_index(None, interface);
        instance
            .and_then(|instance| component.get_export_index(Some(&instance), function))
            .ok_or_else(|| format!("exports `{interface}` without its function `{function}`"))
    };
    // One without memory takes a place all the same.
    let memories = component.resources_required().map(|required| required.num_memories.max(1));
    Ok(Interfaces {
        world,
        wants,
        describe: function(plugin, "describe")?,
        configure: function(plugin, "configure")?,
        work: function(work, world.function())?,
        memories: memories.filter(|&memories| memories <= MEMORIES_PER_COMPONENT_MAX).ok_or_else(|| {
            format!("is composed of too many parts: at most {MEMORIES_PER_COMPONENT_MAX} linear memories are given")
        })?,
    })
}

/// The interface of the contract that `name` (`synapse:plugin/filter@0.1.0`) names, or the reason why it cannot be
/// served; `None` if it is of another package.
fn interface(name: &str) -> Option<Result<&str, String>> {
    let (interface, version) = name.strip_prefix(contract::PACKAGE)?.strip_prefix('/')?.split_once('@')?;
    Some(if contract::speaks(version) {
        Ok(interface)
    } else {
        Err(format!("was made for version {version} of the plugin contract; this Synapse speaks 0.1"))
    })
}

fn wants<'a>(imports: impl Iterator<Item = &'a str>) -> Result<Vec<String>, String> {
    let mut wanted = Vec::new();
    for name in imports {
        match interface(name).transpose()? {
            Some("log") => {}
            Some(interface) if contract::TYPE_INTERFACES.contains(&interface) => {}
            Some(interface) if contract::GRANTS.contains(&interface) => wanted.push(interface),
            Some(_) => return Err(format!("imports `{name}`, which this version of Synapse does not have")),
            None if name.starts_with("wasi:") => {
                return Err(format!(
                    "imports `{name}`, but a plugin gets nothing of WASI; build it without \
                     (Rust: target wasm32-unknown-unknown; Python and JavaScript: with WASI stubbed out)"
                ));
            }
            None => return Err(format!("imports `{name}`, which is not an interface for plugins")),
        }
    }
    Ok(contract::GRANTS.into_iter().filter(|grant| wanted.contains(grant)).map(str::to_owned).collect())
}

/// The world that the exports make, and the names by which `plugin` and the world's interface are exported.
fn world<'a>(exports: &[&'a str]) -> Result<(World, &'a str, &'a str), String> {
    let mut plugin = None;
    let mut found = Vec::new();
    for &name in exports {
        let Some(interface) = interface(name).transpose()? else { continue };
        if interface == "plugin" {
            plugin = Some(name);
        }
        found.extend(World::ALL.into_iter().filter(|world| world.interface() == interface).map(|world| (world, name)));
    }
    match (plugin, found.as_slice()) {
        (Some(plugin), &[(world, work)]) => Ok((world, plugin, work)),
        (Some(_), &[(one, _), (other, _), ..]) => {
            Err(format!("exports both `{}` and `{}`; a plugin is one of them", one.interface(), other.interface()))
        }
        (None, &[(world, _), ..]) => {
            Err(format!("exports `{}` but not `{}/plugin`", world.interface(), contract::PACKAGE))
        }
        (_, &[]) => Err(format!(
            "is a component of another world: it exports {}; a plugin exports `{}/plugin` and one of {}",
            listed(exports.iter().copied()),
            contract::PACKAGE,
            listed(World::ALL.into_iter().map(World::interface))
        )),
    }
}

fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    const NAMES_MAX: usize = 8;
    let names: Vec<String> = names.take(NAMES_MAX).map(|name| format!("`{}`", text::clean(name))).collect();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_component_are_named() {
        assert_eq!(scan(b"").unwrap_err(), "is not WebAssembly");
        assert_eq!(scan(&[0; 1 << 20]).unwrap_err(), "is not WebAssembly");
        assert_eq!(
            scan(b"\0asm\x01\0\0\0").unwrap_err(),
            "is a core module; `synapse plugin build` makes a component of it"
        );
        assert_eq!(scan(b"\0asm\x02\0\0\0").unwrap_err(), "is WebAssembly of a version that Synapse does not know");
        assert!(scan(b"\0asm\x0d\0\x01\0\x55\x55").unwrap_err().starts_with("is damaged: "));
        assert_eq!(scan(b"\0asm\x0d\0\x01\0"), Ok(()));
    }

    #[test]
    fn a_function_too_large_to_compile_is_refused() {
        let nops = "nop ".repeat(FUNCTION_BYTES_MAX);
        let bytes = wat::parse_str(format!("(component (core module (func {nops})))")).unwrap();
        assert_eq!(
            scan(&bytes).unwrap_err(),
            "has a function of 1.0 MiB; at most 1 MiB can be compiled in bounded time"
        );
    }

    #[test]
    fn imports_are_wants_or_refused_by_name() {
        let check = |imports: &[&str]| wants(imports.iter().copied());
        let plain = ["synapse:plugin/log@0.1.0", "synapse:plugin/types@0.1.0", "synapse:plugin/columns@0.1.7"];
        assert_eq!(check(&plain), Ok(vec![]));
        let granted = ["synapse:plugin/clock@0.1.0", "synapse:plugin/state@0.1.2"];
        assert_eq!(check(&granted).unwrap(), ["state", "clock"]);
        assert!(
            check(&["wasi:cli/environment@0.2.0"]).unwrap_err().starts_with("imports `wasi:cli/environment@0.2.0`")
        );
        for (name, sentence) in [
            (
                "synapse:plugin/magic@0.1.0",
                "imports `synapse:plugin/magic@0.1.0`, which this version of Synapse does not have",
            ),
            ("acme:db/query", "imports `acme:db/query`, which is not an interface for plugins"),
            ("synapse:plugin/log@0.2.0", "was made for version 0.2.0 of the plugin contract; this Synapse speaks 0.1"),
        ] {
            assert_eq!(check(&[name]).unwrap_err(), sentence);
        }
    }

    #[test]
    fn exports_decide_the_world() {
        let plugin = "synapse:plugin/plugin@0.1.0";
        let filter = "synapse:plugin/batch-filter@0.1.0";
        assert_eq!(world(&[filter, "x", plugin]), Ok((World::BatchFilter, plugin, filter)));
        assert_eq!(world(&[filter]).unwrap_err(), "exports `batch-filter` but not `synapse:plugin/plugin`");
        let both = world(&[plugin, filter, "synapse:plugin/router@0.1.0"]).unwrap_err();
        assert_eq!(both, "exports both `batch-filter` and `router`; a plugin is one of them");
        assert_eq!(
            world(&["wasi:cli/run@0.2.0"]).unwrap_err(),
            "is a component of another world: it exports `wasi:cli/run@0.2.0`; a plugin exports `synapse:plugin/plugin` \
             and one of `filter`, `transform`, `router`, `batch-filter`, `batch-transform`, `batch-router`"
        );
        assert!(world(&[]).unwrap_err().contains("it exports nothing;"));
    }
}
