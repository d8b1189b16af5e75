//! Brokers of Synapse: memory, embedded log, Redis Streams.
