//! A filter for tests: misbehaves on the events that tell it to, and keeps the others.

use synapse_plugin::{Event, Filter, NoConfig, Verdict};

struct Picky;

impl Filter for Picky {
    type Config = NoConfig;

    fn new(_: NoConfig) -> Result<Self, String> {
        Ok(Self)
    }

    fn judge(&mut self, event: &Event<'_>) -> Verdict {
        match event.kind() {
            "panic" => panic!("it was told to"),
            "loop" => endless(event.data().len() as u64),
            "bomb" => bomb(),
            "reject" => Verdict::reject("not this one"),
            "drop" => Verdict::Drop,
            "work" => work(event.data()),
            _ => Verdict::Keep,
        }
    }
}

/// Keeps a processor core busy for about 10 microseconds with each 100 bytes.
fn work(data: &[u8]) -> Verdict {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = (0..100).fold(0xcbf2_9ce4_8422_2325, |hash, _| std::hint::black_box(data).iter().fold(hash, step));
    std::hint::black_box(hash);
    Verdict::Keep
}

/// Never ends; the compiler cannot know.
fn endless(mut state: u64) -> Verdict {
    while std::hint::black_box(state) != u64::MAX {
        state = state.wrapping_mul(3) % (1 << 40);
    }
    Verdict::Drop
}

/// Takes memory until there is none.
fn bomb() -> Verdict {
    let mut kept = Vec::new();
    loop {
        kept.push(std::hint::black_box(vec![1u8; 1 << 20]));
    }
}

synapse_plugin::export_filter!(Picky);
