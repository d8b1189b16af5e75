//! What the rdkafka crate does not offer: one partition's records, many at a time, records to send whose topic and headers
//! need no texts of their own, and to wait for deliveries without looking for them again and again (a look of the crate's
//! is busy in its last millisecond).
//!
//! The one module of this crate with unsafe code. It hides pointers: what it hands out is plain and safe. It must not
//! know topics' contents, lanes or events.
#![expect(unsafe_code, reason = "librdkafka's C interface, behind safe types")]

use std::collections::VecDeque;
use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::bindings as sys;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{IsError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};
use rdkafka::util::IntoOpaque;
use tokio::sync::Notify;

use super::client::Context;

/// How many records one look takes over.
const RECORDS_MAX: usize = 1024;

/// Records of one partition as librdkafka fetches them, apart from the consumer's common queue. What is fetched and not
/// taken is bounded by the consumer's `queued.max.messages.kbytes`: then librdkafka stops fetching this partition.
pub(super) struct PartitionQueue {
    queue: NonNull<sys::rd_kafka_queue_t>,
    /// What the callback is given: told when the queue is no longer empty.
    wake: *const Notify,
    /// Taken over and not handed out yet. Freed before the consumer that they belong to.
    taken: VecDeque<Message>,
    /// The client that queue and messages are parts of.
    _consumer: Arc<BaseConsumer<Context>>,
}

// SAFETY: librdkafka's queues and messages may be used from any thread, one at a time.
unsafe impl Send for PartitionQueue {}

/// A record, or something that happened at its place.
pub(super) enum Fetched<'q> {
    /// A record.
    Record(Record<'q>),
    /// Everything before this offset was handed out; for now nothing follows.
    End(i64),
    /// What keeps librdkafka from fetching this partition.
    Failed(RDKafkaErrorCode),
}

impl PartitionQueue {
    /// Cuts a partition's queue off the consumer's. Call it before the partition is assigned: then nothing is fetched
    /// past it. `wake` is told whenever something comes while the queue is empty.
    pub(super) fn open(
        consumer: &Arc<BaseConsumer<Context>>,
        topic: &str,
        partition: i32,
        wake: Arc<Notify>,
    ) -> Option<Self> {
        let topic = CString::new(topic).ok()?;
        // SAFETY: the client lives as long as `consumer`; the topic's name is only read during the call.
        let queue =
            unsafe { sys::rd_kafka_queue_get_partition(consumer.client().native_ptr(), topic.as_ptr(), partition) };
        let queue = NonNull::new(queue)?;
        let wake = Arc::into_raw(wake);
        // SAFETY: the queue was just handed out; `wake` stays valid until `drop` takes the callback away.
        unsafe {
            sys::rd_kafka_queue_forward(queue.as_ptr(), ptr::null_mut());
            sys::rd_kafka_queue_cb_event_enable(queue.as_ptr(), Some(not_empty), wake.cast_mut().cast());
        }
        Some(Self { queue, wake, taken: VecDeque::new(), _consumer: Arc::clone(consumer) })
    }

    /// What comes next, if it is there; it stays the next until [`PartitionQueue::next`] is called. Does not block.
    pub(super) fn peek(&mut self) -> Option<Fetched<'_>> {
        if self.taken.is_empty() {
            self.take();
        }
        self.taken.front().map(Message::fetched)
    }

    /// Goes past what [`PartitionQueue::peek`] shows.
    pub(super) fn next(&mut self) {
        self.taken.pop_front();
    }

    fn take(&mut self) {
        let mut messages = [ptr::null_mut(); RECORDS_MAX];
        // SAFETY: the array has room for as many pointers as are asked for, and the queue is ours.
        let count =
            unsafe { sys::rd_kafka_consume_batch_queue(self.queue.as_ptr(), 0, messages.as_mut_ptr(), RECORDS_MAX) };
        // An error is told as a negative count; there is nothing to take then.
        let count = usize::try_from(count).unwrap_or_default();
        self.taken.extend(messages[..count].iter().filter_map(|&message| NonNull::new(message).map(Message)));
    }
}

impl Drop for PartitionQueue {
    fn drop(&mut self) {
        // SAFETY: once the callback is taken away, which waits for one that is running, nobody uses `wake` but us.
        unsafe {
            sys::rd_kafka_queue_cb_event_enable(self.queue.as_ptr(), None, ptr::null_mut());
            drop(Arc::from_raw(self.wake));
        }
        self.taken.clear();
        // SAFETY: our reference of the queue, given back once.
        unsafe { sys::rd_kafka_queue_destroy(self.queue.as_ptr()) };
    }
}

/// Called on one of librdkafka's threads.
unsafe extern "C" fn not_empty(_: *mut sys::rd_kafka_t, wake: *mut c_void) {
    // SAFETY: `PartitionQueue` keeps what it gave alive until this callback is taken away.
    let wake = unsafe { &*wake.cast::<Notify>() };
    wake.notify_one();
}

/// A message of librdkafka's; freed when dropped.
struct Message(NonNull<sys::rd_kafka_message_t>);

impl Message {
    fn fetched(&self) -> Fetched<'_> {
        // SAFETY: the message is ours and lives as long as `self`.
        let message = unsafe { self.0.as_ref() };
        match message.err {
            sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Fetched::Record(Record { message }),
            sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__PARTITION_EOF => Fetched::End(message.offset),
            error => Fetched::Failed(error.into()),
        }
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        // SAFETY: it was handed to us alone and is freed once.
        unsafe { sys::rd_kafka_message_destroy(self.0.as_ptr()) };
    }
}

/// One record, as it lies in librdkafka's buffers.
#[derive(Clone, Copy)]
pub(super) struct Record<'q> {
    message: &'q sys::rd_kafka_message_t,
}

impl<'q> Record<'q> {
    pub(super) fn offset(self) -> i64 {
        self.message.offset
    }

    /// Milliseconds since the Unix epoch; `None` if the record has no time.
    pub(super) fn time_ms(self) -> Option<i64> {
        let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is valid; the kind is written to our own variable.
        let time = unsafe { sys::rd_kafka_message_timestamp(self.message, &mut kind) };
        (time >= 0).then_some(time)
    }

    pub(super) fn key(self) -> Option<&'q [u8]> {
        // SAFETY: librdkafka says that the key has this many bytes; they live as long as the message.
        unsafe { bytes(self.message.key, self.message.key_len) }
    }

    /// Empty for a record without a value.
    pub(super) fn value(self) -> &'q [u8] {
        // SAFETY: as for the key.
        unsafe { bytes(self.message.payload, self.message.len) }.unwrap_or_default()
    }

    /// In the record's order; a header whose name is no text is left out.
    pub(super) fn headers(self) -> Headers<'q> {
        let mut headers = ptr::null_mut();
        // SAFETY: the message is valid; the headers stay its own. An error means that there are none.
        let error = unsafe { sys::rd_kafka_message_headers(self.message, &mut headers) };
        let found = error == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
        Headers { headers: if found { headers } else { ptr::null_mut() }, index: 0, record: self }
    }
}

/// The headers of a record.
pub(super) struct Headers<'q> {
    headers: *mut sys::rd_kafka_headers_t,
    index: usize,
    /// Whose headers they are: they live as long as the message.
    record: Record<'q>,
}

impl<'q> Iterator for Headers<'q> {
    type Item = (&'q str, &'q [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.headers.is_null() {
                return None;
            }
            let (mut name, mut value, mut size): (*const c_char, *const c_void, usize) = (ptr::null(), ptr::null(), 0);
            // SAFETY: the headers belong to `record`, which is still there; what is written are our own variables.
            let error =
                unsafe { sys::rd_kafka_header_get_all(self.headers, self.index, &mut name, &mut value, &mut size) };
            if error != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                return None;
            }
            self.index += 1;
            let _: Record<'q> = self.record;
            // SAFETY: a name is a C string and a value has `size` bytes; both live as long as the message.
            let (name, value) = unsafe { (CStr::from_ptr(name), bytes(value, size).unwrap_or_default()) };
            if let Ok(name) = name.to_str() {
                return Some((name, value));
            }
        }
    }
}

/// Waits until nothing that a producer was given is under way any more; tells whether that was so before `timeout`.
/// Records whose delivery is told to the application count until it was told.
pub(super) fn wait_delivered<C: ProducerContext>(producer: &BaseProducer<C>, timeout: Duration) -> bool {
    let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the client lives as long as the producer. The crate's clients are told of deliveries by events, so this only
    // waits: it calls nothing back and takes no event away.
    let error = unsafe { sys::rd_kafka_flush(producer.client().native_ptr(), timeout) };
    !error.is_error()
}

/// A topic that a producer sends to.
pub(super) struct Destination<'p, C: ProducerContext + 'static> {
    topic: NonNull<sys::rd_kafka_topic_t>,
    producer: &'p BaseProducer<C>,
}

// SAFETY: librdkafka's topics may be used from any thread, as its clients may.
unsafe impl<C: ProducerContext> Send for Destination<'_, C> {}
// SAFETY: as above, also at the same time.
unsafe impl<C: ProducerContext> Sync for Destination<'_, C> {}

impl<'p, C: ProducerContext> Destination<'p, C> {
    /// # Errors
    /// A name that cannot be one.
    pub(super) fn open(producer: &'p BaseProducer<C>, topic: &str) -> Result<Self, RDKafkaErrorCode> {
        let topic = CString::new(topic).map_err(|_| RDKafkaErrorCode::InvalidTopic)?;
        // SAFETY: the client lives as long as the producer; the name is copied; no configuration means the client's.
        let topic = unsafe { sys::rd_kafka_topic_new(producer.client().native_ptr(), topic.as_ptr(), ptr::null_mut()) };
        NonNull::new(topic).map(|topic| Self { topic, producer }).ok_or(RDKafkaErrorCode::InvalidTopic)
    }

    /// Queues a record; what becomes of it is told to the producer's context with `opaque`. All is copied.
    ///
    /// # Errors
    /// Why it was not queued; then nothing is told.
    pub(super) fn send(
        &self,
        partition: i32,
        key: Option<&[u8]>,
        value: &[u8],
        headers: NewHeaders,
        opaque: C::DeliveryOpaque,
    ) -> Result<(), RDKafkaErrorCode> {
        let (key, key_len) = key.map_or((ptr::null(), 0), |key| (key.as_ptr(), key.len()));
        let opaque = opaque.into_ptr();
        // SAFETY: each kind of argument is followed by those of its type, and the last is `END`; what is pointed to is
        // copied before the call ends, but for the headers, which are handed over if it succeeds.
        let error = unsafe {
            sys::rd_kafka_producev(
                self.producer.client().native_ptr(),
                sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_RKT,
                self.topic.as_ptr(),
                sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_PARTITION,
                partition,
                sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_MSGFLAGS,
                sys::RD_KAFKA_MSG_F_COPY,
                sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_VALUE,
                value.as_ptr(),
                value.len(),
                sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_KEY,
                key,
                key_len,
                sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_OPAQUE,
                opaque,
                sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_HEADERS,
                headers.0.as_ptr(),
                sys::rd_kafka_vtype_t::RD_KAFKA_VTYPE_END,
            )
        };
        if error.is_error() {
            // SAFETY: it comes from `into_ptr` above, and nobody else has it since the record was not taken.
            drop(unsafe { C::DeliveryOpaque::from_ptr(opaque) });
            return Err(error.into());
        }
        // They are librdkafka's now.
        std::mem::forget(headers);
        Ok(())
    }
}

impl<C: ProducerContext> Drop for Destination<'_, C> {
    fn drop(&mut self) {
        // SAFETY: our reference of the topic, given back once, while its client is there.
        unsafe { sys::rd_kafka_topic_destroy(self.topic.as_ptr()) };
    }
}

/// Headers of a record that is to be sent.
pub(super) struct NewHeaders(NonNull<sys::rd_kafka_headers_t>);

impl NewHeaders {
    /// None yet, with room for so many.
    pub(super) fn new(room: usize) -> Self {
        // SAFETY: librdkafka ends the process if it cannot allocate.
        let headers = unsafe { sys::rd_kafka_headers_new(room) };
        Self(NonNull::new(headers).expect("it allocates or ends the process"))
    }

    pub(super) fn add(&mut self, name: &str, value: &[u8]) {
        // No slice is longer.
        let [name_len, value_len] = [name.len(), value.len()].map(|len| isize::try_from(len).unwrap_or(isize::MAX));
        // SAFETY: the headers are ours; name and value are copied. It cannot fail for headers that are not read-only.
        unsafe {
            sys::rd_kafka_header_add(self.0.as_ptr(), name.as_ptr().cast(), name_len, value.as_ptr().cast(), value_len)
        };
    }
}

impl Drop for NewHeaders {
    fn drop(&mut self) {
        // SAFETY: they are ours until a record takes them.
        unsafe { sys::rd_kafka_headers_destroy(self.0.as_ptr()) };
    }
}

/// # Safety
/// If `start` is not null, `len` bytes can be read there for as long as `'a`.
unsafe fn bytes<'a>(start: *const c_void, len: usize) -> Option<&'a [u8]> {
    // SAFETY: the caller says so.
    (!start.is_null()).then(|| unsafe { std::slice::from_raw_parts(start.cast(), len) })
}
