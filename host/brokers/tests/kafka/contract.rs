//! The promises that every broker keeps.

use std::sync::Arc;

use async_trait::async_trait;
use synapse_brokers::contract::{DurableHarness, Harness, SharedHarness};
use synapse_core::Broker;

use crate::support::broker;

struct Cluster;

#[async_trait]
impl Harness for Cluster {
    async fn broker(&self) -> Arc<dyn Broker> {
        Arc::new(broker("one"))
    }

    async fn peer(&self, _: &Arc<dyn Broker>) -> Arc<dyn Broker> {
        Arc::new(broker("two"))
    }
}

#[async_trait]
impl DurableHarness for Cluster {
    async fn restart(&self, before: Arc<dyn Broker>) -> Arc<dyn Broker> {
        before.close().await;
        drop(before);
        self.broker().await
    }
}

#[async_trait]
impl SharedHarness for Cluster {
    async fn host(&self, name: &str) -> Arc<dyn Broker> {
        Arc::new(broker(name))
    }
}

synapse_brokers::keeps_contract!(Cluster);
synapse_brokers::shares_work!(Cluster);
synapse_brokers::survives_restart!(Cluster);
