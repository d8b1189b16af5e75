//! Keeps events of one type whose payload holds a text.

use synapse_plugin::{Event, Filter, Needle, Verdict};

#[derive(serde::Deserialize)]
struct Config {
    kind: String,
    needle: String,
}

struct Cost {
    kind: String,
    needle: Needle,
}

impl Filter for Cost {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        Ok(Self { kind: config.kind, needle: Needle::new(config.needle) })
    }

    fn judge(&mut self, event: &Event<'_>) -> Verdict {
        Verdict::keep_if(event.kind() == self.kind && self.needle.is_in(event.data()))
    }
}

synapse_plugin::export_filter!(Cost);
