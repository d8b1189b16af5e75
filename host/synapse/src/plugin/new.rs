//! Starting a plugin from the template.
//!
//! Invariant: what is written builds and its tests pass at once, provided the SDK was found; nothing that exists is
//! written over. The template is part of the binary. This module runs no Cargo.

use std::io;
use std::path::{Path, PathBuf};

use synapse_core::stage::PluginKind;

/// Names Cargo or the template has taken, and Rust's words.
const RESERVED: &[&str] = &[
    "abstract",
    "alloc",
    "as",
    "async",
    "await",
    "become",
    "box",
    "break",
    "const",
    "continue",
    "core",
    "crate",
    "do",
    "dyn",
    "else",
    "enum",
    "extern",
    "false",
    "final",
    "fn",
    "for",
    "gen",
    "if",
    "impl",
    "in",
    "let",
    "loop",
    "macro",
    "match",
    "mod",
    "move",
    "mut",
    "override",
    "priv",
    "proc-macro",
    "pub",
    "ref",
    "return",
    "self",
    "serde",
    "serde-json",
    "static",
    "std",
    "struct",
    "super",
    "synapse-plugin",
    "test",
    "trait",
    "true",
    "try",
    "type",
    "typeof",
    "unsafe",
    "unsized",
    "use",
    "virtual",
    "where",
    "while",
    "yield",
];

/// Where the new crate takes the SDK from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sdk {
    /// A folder with the crate `synapse-plugin`: `plugins/sdk` of a checkout.
    Path(PathBuf),
    /// A version from a registry.
    Version(String),
    /// Not found: the manifest gets a line to fill in.
    Unknown,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPlugin {
    /// The new crate.
    pub dir: PathBuf,
    /// What was written, relative to it.
    pub files: Vec<PathBuf>,
    /// What the user has to do before it builds; `None` if nothing.
    pub to_do: Option<String>,
}

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name that cannot be a crate's.
    #[error(
        "`{name}` cannot be a plugin's name: use lower-case letters, digits and single hyphens between them, beginning with a letter, and no word of Rust's own"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// Something is there already.
    #[error("{} exists and is not empty: choose another name or folder", .dir.display())]
    Exists {
        /// The folder.
        dir: PathBuf,
    },
    /// A file could not be written.
    #[error("could not write {}: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// Looks for the SDK: at the path in `SYNAPSE_SDK` if that is given, else in `plugins/sdk` of `from` and the folders
/// above it.
pub fn find_sdk(from: &Path, synapse_sdk: Option<&Path>) -> Sdk {
    let is_sdk = |dir: &Path| {
        std::fs::read_to_string(dir.join("Cargo.toml"))
            .is_ok_and(|manifest| manifest.lines().any(|line| line.trim() == "name = \"synapse-plugin\""))
    };
    let from = std::path::absolute(from).unwrap_or_else(|_| from.to_owned());
    let candidates: Vec<PathBuf> = match synapse_sdk {
        Some(path) => vec![from.join(path)],
        None => from.ancestors().map(|dir| dir.join("plugins/sdk")).collect(),
    };
    candidates.into_iter().find(|dir| is_sdk(dir)).map_or(Sdk::Unknown, Sdk::Path)
}

/// Writes a new plugin crate into `dir`, which is made unless it is there and empty.
///
/// # Errors
/// For a name that no crate may have, a folder with something in it, and what the file system refuses.
pub fn create(name: &str, kind: PluginKind, dir: &Path, sdk: &Sdk) -> Result<NewPlugin, Error> {
    if !is_name(name) {
        return Err(Error::Name { name: name.to_owned() });
    }
    let occupied = std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some());
    if occupied || dir.is_file() {
        return Err(Error::Exists { dir: dir.to_owned() });
    }
    let mut files = Vec::new();
    for (file, template) in template(kind) {
        let path = dir.join(file);
        let failed = |source| Error::Io { path: path.clone(), source };
        std::fs::create_dir_all(path.parent().unwrap_or(dir)).map_err(failed)?;
        std::fs::write(&path, filled(template, name, kind, sdk)).map_err(failed)?;
        files.push(PathBuf::from(file));
    }
    let to_do = (*sdk == Sdk::Unknown).then(|| {
        format!(
            "the SDK was not found: name `plugins/sdk` of a checkout of Synapse under `synapse-plugin` in {}, or set SYNAPSE_SDK to it before `synapse plugin new`",
            dir.join("Cargo.toml").display()
        )
    });
    Ok(NewPlugin { dir: dir.to_owned(), files, to_do })
}

fn is_name(name: &str) -> bool {
    let words_fit = name
        .split('-')
        .all(|word| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()));
    words_fit
        && name.len() <= 64
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && !RESERVED.contains(&name)
}

macro_rules! template_file {
    ($path:literal) => {
        include_str!(concat!("../../../../plugins/template/", $path))
    };
}

/// Where each file goes, and what it is made of.
fn template(kind: PluginKind) -> [(&'static str, &'static str); 5] {
    let (code, cases) = match kind {
        PluginKind::Filter => (template_file!("filter/lib.rs"), template_file!("filter/cases.ndjson")),
        PluginKind::Transform => (template_file!("transform/lib.rs"), template_file!("transform/cases.ndjson")),
        PluginKind::Router => (template_file!("router/lib.rs"), template_file!("router/cases.ndjson")),
    };
    [
        ("Cargo.toml", template_file!("Cargo.toml")),
        (".gitignore", template_file!("gitignore")),
        ("README.md", template_file!("README.md")),
        ("cases.ndjson", cases),
        ("src/lib.rs", code),
    ]
}

fn filled(template: &str, name: &str, kind: PluginKind, sdk: &Sdk) -> String {
    let (summary, config) = match kind {
        PluginKind::Filter => {
            ("Keeps events with a number that is high enough.", "{ pointer = \"/accuracy\", min = 0.9 }")
        }
        PluginKind::Transform => ("Puts the data of events into an envelope.", "{ type = \"named\" }"),
        PluginKind::Router => {
            ("Sends events to a topic for each severity.", "{ prefix = \"alerts-\" }\nroutes = [\"alerts-*\"]")
        }
    };
    [
        ("{{name}}", name),
        ("{{Type}}", &type_name(name)),
        ("{{kind}}", &kind.to_string()),
        ("{{summary}}", summary),
        ("{{config}}", config),
        ("{{sdk}}", &dependency(sdk)),
    ]
    .iter()
    .fold(template.to_owned(), |text, (placeholder, value)| text.replace(placeholder, value))
}

/// `ready-only` becomes `ReadyOnly`. `Plugin` is put behind names that would hide what the template uses.
fn type_name(name: &str) -> String {
    let mut text = String::new();
    for word in name.split('-') {
        text.extend(word.chars().take(1).map(|first| first.to_ascii_uppercase()));
        text.extend(word.chars().skip(1));
    }
    let used = [
        "Config",
        "Data",
        "Emitter",
        "Envelope",
        "Err",
        "Event",
        "Filter",
        "None",
        "Ok",
        "Option",
        "Outcome",
        "Pointer",
        "Reject",
        "Result",
        "Router",
        "Routes",
        "Some",
        "String",
        "Transform",
        "Vec",
        "Verdict",
        "Deserialize",
        "Serialize",
    ];
    if used.contains(&text.as_str()) {
        text.push_str("Plugin");
    }
    text
}

fn dependency(sdk: &Sdk) -> String {
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    match sdk {
        Sdk::Path(path) => format!("synapse-plugin = {{ path = {} }}", quoted(&path.to_string_lossy())),
        Sdk::Version(version) => format!("synapse-plugin = {}", quoted(version)),
        Sdk::Unknown => "# Fill in where the SDK is: `plugins/sdk` of the checkout of Synapse that your host was built from, or its\n\
                         # repository.\n\
                         synapse-plugin = { git = \"https://your-git-host.example/synapse\" }"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [PluginKind; 3] = [PluginKind::Filter, PluginKind::Transform, PluginKind::Router];

    fn check_manifest(sdk: &Sdk, expected: &str) {
        for kind in KINDS {
            let root = tempfile::tempdir().unwrap();
            let dir = root.path().join("ready-only");
            let new = create("ready-only", kind, &dir, sdk).unwrap();
            for file in &new.files {
                let text = std::fs::read_to_string(dir.join(file)).unwrap();
                assert!(!text.contains("{{"), "{} of a {kind}", file.display());
            }
            let manifest: toml::Table =
                toml::from_str(&std::fs::read_to_string(dir.join("Cargo.toml")).unwrap()).unwrap();
            assert_eq!(manifest["package"]["name"].as_str(), Some("ready-only"));
            assert_eq!(manifest["dependencies"]["synapse-plugin"].to_string(), expected);
            assert_eq!(new.to_do.is_some(), *sdk == Sdk::Unknown);
        }
    }

    #[test]
    fn the_template_is_filled_in() {
        check_manifest(&Sdk::Path(PathBuf::from("/a \"b\"/sdk")), r#"{ path = '/a "b"/sdk' }"#);
        check_manifest(&Sdk::Version("0.1.0".to_owned()), r#""0.1.0""#);
        check_manifest(&Sdk::Unknown, r#"{ git = "https://your-git-host.example/synapse" }"#);
    }

    #[test]
    fn names_are_checked() {
        for name in ["a", "ready-only", "x2-y"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "Ready", "2a", "a--b", "-a", "a-", "a_b", "a/b", "match", "serde", "../a", "é"] {
            assert!(!is_name(name), "{name}");
        }
        assert_eq!(type_name("ready-only"), "ReadyOnly");
        assert_eq!(type_name("filter"), "FilterPlugin");
    }

    #[test]
    fn nothing_is_written_over() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("mine.txt"), "mine").unwrap();
        let error = create("a", PluginKind::Filter, root.path(), &Sdk::Unknown).unwrap_err();
        assert!(error.to_string().contains("exists and is not empty"), "{error}");
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_sdk_is_found_above() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let Sdk::Path(found) = find_sdk(&here.join("src"), None) else { panic!("not found") };
        assert!(found.ends_with("plugins/sdk"), "{}", found.display());
        assert_eq!(find_sdk(Path::new("/"), Some(&found)), Sdk::Path(found.clone()));
        assert_eq!(find_sdk(here, Some(Path::new("src"))), Sdk::Unknown);
    }
}
