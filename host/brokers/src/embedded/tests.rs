//! The contract on the embedded log, and what it alone promises.

use super::*;
use crate::contract::{DurableHarness, Harness};

/// A directory of its own for each promise.
struct Embedded(tempfile::TempDir);

impl Embedded {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
}

#[async_trait]
impl Harness for Embedded {
    async fn broker(&self) -> Arc<dyn Broker> {
        Arc::new(EmbeddedLog::open(self.0.path(), Options::default()).unwrap().0)
    }
}

#[async_trait]
impl DurableHarness for Embedded {
    async fn restart(&self, broker: Arc<dyn Broker>) -> Arc<dyn Broker> {
        assert_eq!(Arc::strong_count(&broker), 1);
        drop(broker);
        self.broker().await
    }
}

crate::keeps_contract!(Embedded::new());
crate::survives_restart!(Embedded::new());
