//! Pipelines and lanes of Synapse.
