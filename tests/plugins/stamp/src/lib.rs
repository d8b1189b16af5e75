//! A transform for tests: says on each event which build of this plugin handled it.

use synapse_plugin::{Emitter, Event, NoConfig, Reject, Transform};

struct Stamp;

impl Transform for Stamp {
    type Config = NoConfig;

    fn new(_: NoConfig) -> Result<Self, String> {
        Ok(Self)
    }

    fn apply(&mut self, event: &Event<'_>, out: &mut Emitter<'_>) -> Result<(), Reject> {
        let build = if cfg!(feature = "second") { "second" } else { "first" };
        out.emit(event.draft().attribute("build", build));
        Ok(())
    }
}

synapse_plugin::export_transform!(Stamp);
