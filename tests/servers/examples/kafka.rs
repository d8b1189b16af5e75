//! Runs a Kafka for a try by hand, until its input ends: `cargo run -p synapse-test-servers --example kafka [BROKERS]`.

use std::io::Read;

use synapse_test_servers::kafka::Kafka;

fn main() -> anyhow::Result<()> {
    let brokers = std::env::args().nth(1).map_or(Ok(1), |count| count.parse())?;
    let kafka = Kafka::start_with(brokers, "")?;
    eprintln!("bootstrap = \"{}\"", kafka.bootstrap());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
