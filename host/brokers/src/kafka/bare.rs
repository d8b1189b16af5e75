//! Kafka without Synapse, for the benchmark: records copied from one topic to another by librdkafka alone.
//!
//! Records are taken in batches and handed on with key, value and headers as they are, without being looked at. That is
//! the least that anything on librdkafka can do, so a pipeline is measured against it. No part of a running host.
#![expect(unsafe_code, reason = "librdkafka's C interface, without anything of ours in between")]

use std::ffi::CString;
use std::ptr;
use std::time::{Duration, Instant};

use rdkafka::bindings as sys;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{IsError, KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, DefaultProducerContext, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::native::wait_delivered;

/// Records of one commit, at-least-once: it waits for the deliveries of each, and more at once was slower.
const BATCH: usize = 4096;
/// Records of one transaction, whose own round trips are to be spread over many.
const TRANSACTION: usize = 32768;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Copies the first `records` records of partition 0 of `from` to partition 0 of `to`, as the group `group`; records
/// and position in one transaction if that is wanted. Answers with the records a second.
///
/// # Errors
/// What librdkafka says.
pub fn copy(bootstrap: &str, [from, to, group]: [&str; 3], records: usize, exactly_once: bool) -> KafkaResult<f64> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("message.max.bytes", "16777216");
    let consumer: BaseConsumer = config
        .clone()
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("isolation.level", "read_committed")
        .set("queued.max.messages.kbytes", "8192")
        .set("fetch.queue.backoff.ms", "5")
        .create()?;
    let metadata = consumer.group_metadata().ok_or(KafkaError::Canceled)?;
    config.set("enable.idempotence", "true").set("linger.ms", "1").set("delivery.report.only.error", "true");
    if exactly_once {
        config.set("transactional.id", group);
    }
    let producer: BaseProducer = config.create()?;
    if exactly_once {
        producer.init_transactions(PATIENCE)?;
    }
    let began = Instant::now();
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(from, 0, Offset::Beginning)?;
    consumer.assign(&assignment)?;
    let (mut done, target) = (0, CString::new(to)?);
    let batch = if exactly_once { TRANSACTION } else { BATCH };
    while done < records {
        if exactly_once {
            producer.begin_transaction()?;
        }
        let (count, next) = pass_on(&consumer, &producer, &target, batch.min(records - done))?;
        done += count;
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(from, 0, Offset::Offset(next))?;
        if exactly_once {
            // While the records are under way.
            producer.send_offsets_to_transaction(&offsets, &metadata, PATIENCE)?;
        }
        if !wait_delivered(&producer, PATIENCE) {
            return Err(KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut));
        }
        if exactly_once {
            producer.commit_transaction(PATIENCE)?;
        } else {
            consumer.commit(&offsets, CommitMode::Async)?;
        }
    }
    Ok(done as f64 / began.elapsed().as_secs_f64())
}

/// Hands up to `max` records on: how many, and the offset behind them.
fn pass_on(
    consumer: &BaseConsumer,
    producer: &BaseProducer<DefaultProducerContext>,
    to: &CString,
    max: usize,
) -> KafkaResult<(usize, i64)> {
    let (mut messages, mut count, mut next) = (vec![ptr::null_mut(); max], 0, 0);
    let began = Instant::now();
    // SAFETY: both clients outlive the calls; each message is freed once and its headers are owned by whom they are
    // handed to; the array has room for as many pointers as are asked for.
    unsafe {
        let queue = sys::rd_kafka_queue_get_consumer(consumer.client().native_ptr());
        while count < max {
            let got = sys::rd_kafka_consume_batch_queue(queue, 10, messages.as_mut_ptr(), max - count);
            let mut sent = Ok(());
            for &message in &messages[..usize::try_from(got).unwrap_or_default()] {
                if (*message).err == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                    sent = sent.and_then(|()| send(producer, to, message));
                    (count, next) = (count + 1, (*message).offset + 1);
                }
                sys::rd_kafka_message_destroy(message);
            }
            if began.elapsed() > PATIENCE {
                sent = sent.and(Err(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut)));
            }
            if let Err(error) = sent {
                sys::rd_kafka_queue_destroy(queue);
                return Err(error);
            }
        }
        sys::rd_kafka_queue_destroy(queue);
    }
    Ok((count, next))
}

/// # Safety
/// The message is valid, and nobody else has to do with its headers.
unsafe fn send(
    producer: &BaseProducer<DefaultProducerContext>,
    to: &CString,
    message: *mut sys::rd_kafka_message_t,
) -> KafkaResult<()> {
    // SAFETY: the caller's word; what is taken from the message is copied before the call ends, but for the headers,
    // which then belong to the producer.
    unsafe {
        let mut headers = ptr::null_mut();
        sys::rd_kafka_message_detach_headers(message, &mut headers);
        loop {
            let error = sys::rd_kafka_producev(
                producer.client().native_ptr(),
                sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_TOPIC,
                to.as_ptr(),
                sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_PARTITION,
                0_i32,
                sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_MSGFLAGS,
                sys::RD_KAFKA_MSG_F_COPY,
                sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_VALUE,
                (*message).payload,
                (*message).len,
                sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_KEY,
                (*message).key,
                (*message).key_len,
                sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_HEADERS,
                headers,
                sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_END,
            );
            match error {
                _ if !error.is_error() => return Ok(()),
                sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__QUEUE_FULL => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                _ => {
                    // They are still ours.
                    if !headers.is_null() {
                        sys::rd_kafka_headers_destroy(headers);
                    }
                    return Err(KafkaError::MessageProduction(error.into()));
                }
            }
        }
    }
}
