//! Runs Synapse plugins: the only crate that names wasmtime.
