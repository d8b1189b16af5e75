//! Tests of Synapse with real brokers, real components and the real binary.
