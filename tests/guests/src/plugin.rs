//! `plugin` for every test guest, and its log.

/// Defines `Guest` with its `plugin` interface, and `log`, beside the bindings of a world.
#[macro_export]
macro_rules! plugin {
    () => {
        struct Guest;

        impl exports::synapse::plugin::plugin::Guest for Guest {
            fn describe() -> synapse::plugin::types::Manifest {
                if env!("CARGO_CRATE_NAME") == "endless_describe" {
                    $crate::spin();
                }
                synapse::plugin::types::Manifest {
                    name: env!("CARGO_CRATE_NAME").to_owned(),
                    version: "1.2.3".to_owned(),
                    summary: "A guest for tests.".to_owned(),
                    config_schema: r#"{"type": "object"}"#.to_owned(),
                }
            }

            fn configure(config: String) -> Result<(), String> {
                $crate::configure(&config)
            }
        }

        fn log(error: bool, message: &str) {
            use synapse::plugin::log::{Level, write};
            write(if error { Level::Error } else { Level::Info }, message);
        }
    };
}
