//! Write plugins for Synapse, the event bus programmed with WebAssembly.
