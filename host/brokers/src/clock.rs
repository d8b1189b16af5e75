//! Where brokers learn what time it is: from a function that is handed in, so that tests can turn the clock.

use std::sync::Arc;
use std::time::SystemTime;

use synapse_core::Timestamp;

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The system's clock.
pub fn system_clock() -> Clock {
    Arc::new(|| {
        // A clock before 1970 or beyond the year 294247 is as wrong as one at its bound.
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_micros(i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX))
    })
}
