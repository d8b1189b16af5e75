//! Events, batches, positions and the interfaces of Synapse. No I/O.
