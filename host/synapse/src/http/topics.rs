//! What topics there are, and what is in them.

use axum::Json;
use axum::extract::State;
use futures_util::future::join_all;
use serde::Deserialize;
use synapse_core::broker::TopicInfo;
use synapse_core::topic::{BrokerName, TopicPath};

use super::problem::{Kind, Problem};
use super::{Host, Name, Params, view};

/// Which broker is meant.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Where {
    broker: Option<String>,
}

/// `GET /v1/topics`: of all brokers, or of one. A broker that is away does not hide the others'.
pub(super) async fn list(
    State(host): State<Host>,
    Params(wanted): Params<Where>,
) -> Result<Json<view::Topics>, Problem> {
    let wanted: Option<BrokerName> = wanted
        .broker
        .map(|name| name.parse())
        .transpose()
        .map_err(|error: synapse_core::topic::NameError| Problem::new(Kind::BadRequest, error.to_string()))?;
    if let Some(name) = &wanted {
        let broker = host.broker(name)?;
        let topics = broker.topics().await?.iter().map(|info| topic(&host, name, info)).collect();
        return Ok(Json(view::Topics { topics, unavailable: Vec::new() }));
    }
    let brokers = host.api.0.brokers.all();
    let answers = join_all(brokers.iter().map(|broker| async move { (broker.name(), broker.topics().await) })).await;
    let mut all = view::Topics { topics: Vec::new(), unavailable: Vec::new() };
    for (name, answer) in answers {
        match answer {
            Ok(infos) => all.topics.extend(infos.iter().map(|info| topic(&host, name, info))),
            Err(error) => {
                all.unavailable.push(view::Unavailable { broker: name.clone(), reason: error.to_string() });
            }
        }
    }
    Ok(Json(all))
}

/// `GET /v1/topics/{topic}`.
pub(super) async fn show(
    State(host): State<Host>,
    Name(name): Name,
    Params(wanted): Params<Where>,
) -> Result<Json<view::Topic>, Problem> {
    let (path, _, info) = host.existing(&name, wanted.broker.as_deref()).await?;
    Ok(Json(topic(&host, &path.broker, &info)))
}

fn topic(host: &Host, broker: &BrokerName, info: &TopicInfo) -> view::Topic {
    let path = TopicPath { broker: broker.clone(), topic: info.name.clone() };
    let retention = host.api.0.topics.borrow().get(&path).map(|spec| view::Retention {
        age_seconds: spec.retention.age.map(|age| age.as_secs()),
        bytes: spec.retention.bytes,
        events: spec.retention.events,
    });
    let partitions = (0..).zip(&info.partitions).map(|(partition, info)| view::Partition {
        partition,
        earliest: info.earliest,
        latest: info.latest,
        events: info.events,
        bytes: info.bytes,
    });
    view::Topic {
        broker: broker.clone(),
        name: info.name.clone(),
        events: info.partitions.iter().map(|partition| partition.events).sum(),
        at_most: info.at_most,
        bytes: info.partitions.iter().map(|partition| partition.bytes).sum(),
        retention,
        partitions: partitions.collect(),
        path,
    }
}
