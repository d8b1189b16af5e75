//! Encodings of events outside: CloudEvents JSON, Kafka-style headers, Redis fields.
