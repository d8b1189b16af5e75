//! TLS and logins, by the client's own properties.

use std::path::Path;
use std::process::Command;

use synapse_brokers::kafka::{KafkaBroker, KafkaOptions};
use synapse_core::Broker;
use synapse_core::broker::BrokerErrorKind;
use synapse_core::spec::ReadFrom;
use synapse_test_servers::kafka::Kafka;

use crate::support::*;

/// A Kafka that takes nothing but TLS with a login, and the authority that its certificate is from.
fn secured(dir: &Path) -> Kafka {
    let openssl = |arguments: &[&str]| {
        let made = Command::new("openssl").args(arguments).current_dir(dir).output().expect("openssl is installed");
        assert!(made.status.success(), "{made:?}");
    };
    let subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"];
    let request =
        ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", "key.pem", "-out", "ca.pem"];
    openssl(&[&request[..], &subject].concat());
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    std::fs::write(dir.join("server.pem"), read("key.pem") + &read("ca.pem")).unwrap();
    let module = "org.apache.kafka.common.security.plain.PlainLoginModule";
    Kafka::start_with(
        1,
        &format!(
            "listeners=SASL_SSL://127.0.0.1:{{port}},CONTROLLER://127.0.0.1:{{controller}}\n\
             advertised.listeners=SASL_SSL://127.0.0.1:{{port}}\n\
             listener.security.protocol.map=CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL\n\
             inter.broker.listener.name=SASL_SSL\n\
             sasl.mechanism.inter.broker.protocol=PLAIN\n\
             sasl.enabled.mechanisms=PLAIN\n\
             ssl.keystore.type=PEM\n\
             ssl.keystore.location={server}\n\
             ssl.truststore.type=PEM\n\
             ssl.truststore.location={ca}\n\
             listener.name.sasl_ssl.plain.sasl.jaas.config={module} required username=\"admin\" password=\"admin\" \
             user_admin=\"admin\" user_synapse=\"s3cret\";",
            server = dir.join("server.pem").display(),
            ca = dir.join("ca.pem").display(),
        ),
    )
    .unwrap()
}

fn client(kafka: &Kafka, ca: &Path, password: &str) -> KafkaBroker {
    let ca = ca.to_str().unwrap();
    let properties = [
        ("security.protocol", "SASL_SSL"),
        ("sasl.mechanism", "PLAIN"),
        ("sasl.username", "synapse"),
        ("sasl.password", password),
        ("ssl.ca.location", ca),
    ];
    let client = properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let timeout = std::time::Duration::from_secs(5);
    KafkaBroker::new("kafka".parse().unwrap(), KafkaOptions { client, timeout, ..KafkaOptions::new(kafka.bootstrap()) })
        .unwrap()
}

#[tokio::test]
async fn tls_and_a_login_work_and_a_wrong_password_is_told_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let kafka = secured(dir.path());
    let ca = dir.path().join("ca.pem");
    let broker = client(&kafka, &ca, "s3cret");
    let topic: synapse_core::TopicName = fresh("t").parse().unwrap();
    broker.publish(&output(&topic, 0..3)).await.unwrap();
    let mut source = broker.read(&topic, 0, ReadFrom::Earliest).await.unwrap();
    assert_eq!(next_ids(&mut *source, 3).await, ["0", "1", "2"]);
    let (mut committer, _source) = open(&broker, &lane("p", &topic, 0)).await;
    committer.commit(&covering(&[synapse_core::Offset::Number(1)])).await.unwrap();

    let wrong = client(&kafka, &ca, "wr0ng");
    let error = wrong.health().await.unwrap_err();
    assert_eq!(error.kind, BrokerErrorKind::Refused, "{error}");
    assert!(error.message.contains("`sasl.*`") && !error.message.contains("wr0ng"), "{error}");

    let stranger = dir.path().join("stranger.pem");
    let other = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x", "-keyout", "/dev/null", "-out"];
    let made = Command::new("openssl").args(other).arg(&stranger).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let error = client(&kafka, &stranger, "s3cret").health().await.unwrap_err();
    assert_eq!(error.kind, BrokerErrorKind::Refused, "{error}");
    assert!(error.message.contains("`ssl.*`"), "{error}");
}
