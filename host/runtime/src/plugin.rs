//! A loaded plugin: its compiled code, what it says of itself, and the stages made from it.
//!
//! Invariant: a [`Compiled`] has been run once (its `describe`), so its exports have the contract's shapes. It knows no
//! batch.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use synapse_core::spec::{StageLimits, StageSpec};
use synapse_core::stage::{Digest, Plugin, PluginError, PluginErrorKind, PluginInfo, PluginKind, Stage};
use synapse_core::topic::Label;

use crate::contract::Manifest;
use crate::host::{self, LogGate};
use crate::inspect;
use crate::merge::Trouble;
use crate::runtime::Shared;
use crate::sandbox::{Blueprint, Sandbox};
use crate::stage::LaneStage;
use crate::text;

/// Grants that this version has host functions for.
const GRANTS_BUILT: [&str; 0] = [];

/// For `describe` no stage has said its limits yet.
fn describe_limits() -> StageLimits {
    StageLimits {
        memory_bytes_max: 256 << 20,
        cpu_max: Duration::from_secs(1),
        output_bytes_max: 1 << 20,
        log_lines_per_second_max: NonZeroU32::new(10).expect("10 is not 0"),
    }
}

/// A compiled component, shared by all its stages.
pub(crate) struct Compiled {
    pub(crate) runtime: Arc<Shared>,
    pub(crate) info: PluginInfo,
    pub(crate) blueprint: Blueprint,
}

impl Compiled {
    /// Compiles and describes a component. `name` is the file's, for sentences.
    pub(crate) async fn new(
        runtime: &Arc<Shared>,
        name: &str,
        bytes: Vec<u8>,
        digest: Digest,
    ) -> Result<Self, PluginError> {
        let unusable = |sentence: String| PluginError::new(PluginErrorKind::Unusable, format!("{name} {sentence}"));
        let internal =
            |error: wasmtime::Error| PluginError::new(PluginErrorKind::Internal, format!("{name}: {error:#}"));
        let size_bytes = bytes.len();
        let component = runtime.compile(name, bytes, digest).await?;
        let interfaces = inspect::interfaces(&runtime.engine, &component).map_err(unusable)?;
        let mut linker = host::linker(&runtime.engine).map_err(internal)?;
        if !interfaces.wants.is_empty() {
            // `describe` needs no grants; a stage without them is refused before anything else is called.
            linker.define_unknown_imports_as_traps(&component).map_err(internal)?;
        }
        let pre = linker
            .instantiate_pre(&component)
            .map_err(|error| unusable(format!("imports the host's functions in another shape: {error:#}")))?;
        let blueprint = Blueprint {
            world: interfaces.world,
            pre,
            describe: interfaces.describe,
            configure: interfaces.configure,
            work: interfaces.work,
            memories: interfaces.memories,
        };
        let manifest = describe(runtime, &blueprint, name, digest).await.map_err(|trouble| match trouble {
            Trouble::Guest(fault) => unusable(format!("cannot be asked what it is: {}", fault.reason)),
            Trouble::Host(error) => error,
        })?;
        check(&manifest).map_err(unusable)?;
        let info = PluginInfo {
            name: manifest.name,
            version: manifest.version,
            summary: text::clean(&manifest.summary),
            config_schema: manifest.config_schema,
            digest,
            kind: interfaces.world.kind(),
            columnar: interfaces.world.columnar(),
            wants: interfaces.wants,
            size_bytes,
        };
        Ok(Self { runtime: runtime.clone(), info, blueprint })
    }

    /// Whether a stage may be made to this spec.
    fn check(&self, spec: &StageSpec) -> Result<(), PluginError> {
        let PluginInfo { name, kind, wants, .. } = &self.info;
        let refuse = |kind, sentence| Err(PluginError::new(kind, format!("stage `{}`: {sentence}", spec.name)));
        if let Some(missing) = wants.iter().find(|want| !spec.grants.contains(want)) {
            let sentence = format!(
                "plugin `{name}` imports `{missing}`, which the stage was not granted; add grants = [\"{missing}\"] to it"
            );
            return refuse(PluginErrorKind::Unusable, sentence);
        }
        if let Some(missing) = wants.iter().find(|want| !GRANTS_BUILT.contains(&want.as_str())) {
            let sentence =
                format!("plugin `{name}` needs the grant `{missing}`, which this version of Synapse does not have yet");
            return refuse(PluginErrorKind::Unusable, sentence);
        }
        if !spec.routes.is_empty() && *kind != PluginKind::Router {
            let sentence = format!("it lists routes, but plugin `{name}` is a {kind}; only routers choose topics");
            return refuse(PluginErrorKind::Misconfigured, sentence);
        }
        let (wanted, max) = (spec.limits.memory_bytes_max, self.runtime.options.memory_bytes_max);
        if wanted > max {
            let (wanted, max) = (text::bytes(wanted), text::bytes(max));
            let sentence = format!("limits.memory is {wanted}, but this host gives an instance at most {max}");
            return refuse(PluginErrorKind::Misconfigured, sentence);
        }
        Ok(())
    }
}

async fn describe(
    runtime: &Arc<Shared>,
    blueprint: &Blueprint,
    name: &str,
    digest: Digest,
) -> Result<Manifest, Trouble> {
    let limits = describe_limits();
    let log = LogGate::new(String::new(), name.to_owned(), digest, limits.log_lines_per_second_max);
    let permit = runtime.room_for(blueprint.memories).await.map_err(Trouble::Host)?;
    let mut sandbox = Sandbox::new(blueprint, &runtime.ticker, Arc::new(log), limits, permit).await?;
    sandbox.describe(blueprint).await
}

/// Whether operators, file names and metrics can live with what a plugin says of itself.
fn check(manifest: &Manifest) -> Result<(), String> {
    if let Err(error) = manifest.name.parse::<Label>() {
        return Err(format!("has a bad name in its manifest: {}", text::clean(&error.to_string())));
    }
    if semver::Version::parse(&manifest.version).is_err() {
        let version = text::clean(&manifest.version);
        return Err(format!("has a bad version in its manifest: `{version}` is not a semantic version such as 1.2.0"));
    }
    let schema = &manifest.config_schema;
    if !schema.is_empty()
        && let Err(error) = serde_json::from_str::<serde_json::Value>(schema)
    {
        return Err(format!("has a bad config schema in its manifest: it is not JSON: {error}"));
    }
    Ok(())
}

/// What the engine holds of a compiled component.
pub(crate) struct Loaded(pub(crate) Arc<Compiled>);

#[async_trait]
impl Plugin for Loaded {
    fn info(&self) -> &PluginInfo {
        &self.0.info
    }

    async fn stage(&self, pipeline: &Label, spec: &StageSpec) -> Result<Box<dyn Stage>, PluginError> {
        self.0.check(spec)?;
        Ok(Box::new(LaneStage::new(self.0.clone(), pipeline, spec).await?))
    }
}
