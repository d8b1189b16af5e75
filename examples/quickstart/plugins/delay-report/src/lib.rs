//! A transform: a short report in the place of each late flight.
//!
//! The attribute `delayclass` says how bad it was, for a router behind; `reportversion` which version said so.

use std::borrow::Cow;

use synapse_plugin::{Emitter, Event, NoConfig, Reject, Transform};

const VERSION: &str = if cfg!(feature = "v2") { "2" } else { "1" };

struct DelayReport;

#[derive(serde::Deserialize)]
struct Flight<'a> {
    carrier: Cow<'a, str>,
    flight: u32,
    origin: Cow<'a, str>,
    dest: Cow<'a, str>,
    dep_delay: f64,
}

#[derive(serde::Serialize)]
struct Report<'a> {
    flight: String,
    from: &'a str,
    to: &'a str,
    minutes_late: f64,
}

fn class(minutes: f64) -> &'static str {
    match minutes {
        severe if cfg!(feature = "v2") && severe >= 120.0 => "severe",
        major if major >= 60.0 => "major",
        _ => "minor",
    }
}

impl Transform for DelayReport {
    type Config = NoConfig;

    fn new(_: NoConfig) -> Result<Self, String> {
        Ok(Self)
    }

    fn apply(&mut self, event: &Event<'_>, out: &mut Emitter<'_>) -> Result<(), Reject> {
        let flight: Flight = event.json()?;
        let report = Report {
            flight: format!("{}{}", flight.carrier, flight.flight),
            from: &flight.origin,
            to: &flight.dest,
            minutes_late: flight.dep_delay,
        };
        let draft = event.draft().kind("flight.late").json(&report)?;
        out.emit(draft.attribute("delayclass", class(flight.dep_delay)).attribute("reportversion", VERSION));
        Ok(())
    }
}

synapse_plugin::export_transform!(DelayReport);

#[cfg(test)]
mod tests {
    use super::class;

    #[test]
    fn an_hour_is_major() {
        assert_eq!([15.0, 59.0, 60.0, 119.0].map(class), ["minor", "minor", "major", "major"]);
        assert_eq!(class(300.0), if cfg!(feature = "v2") { "severe" } else { "major" });
    }
}
