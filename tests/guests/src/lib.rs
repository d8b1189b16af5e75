//! What the test guests do wrong, by their configuration.
//!
//! `{"mode": "loop", "id": "x"}` misbehaves at the event with id `x` only; without `id` at every event. What they do
//! when they behave is fixed: an event whose id is `drop` goes, one whose id is `reject` is rejected, others stay.

pub mod columns;
mod plugin;

use std::cell::RefCell;
use std::hint::black_box;

use serde::Deserialize;

/// The configuration of every test guest.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// What to do wrong; nothing if absent.
    pub mode: Option<String>,
    /// At which event; at every one if absent.
    pub id: Option<String>,
    /// How often, how large: what it means depends on the mode.
    #[serde(default)]
    pub amount: usize,
    /// What the filter looks for in the payload; anything if empty.
    #[serde(default)]
    pub needle: String,
}

thread_local! {
    static CONFIG: RefCell<Config> = RefCell::default();
    static LEAKED: RefCell<Vec<Vec<u8>>> = RefCell::default();
}

/// Takes the configuration; the modes that misbehave here do.
pub fn configure(text: &str) -> Result<(), String> {
    let config: Config = serde_json::from_str(text).map_err(|error| error.to_string())?;
    match config.mode.as_deref() {
        Some("refuse-config") => return Err("min-accuracy is missing".to_owned()),
        Some("loop-in-configure") => spin(),
        Some("panic-in-configure") => panic!("cannot configure"),
        _ => {}
    }
    CONFIG.set(config);
    Ok(())
}

/// The configuration that was taken.
pub fn config() -> Config {
    CONFIG.with_borrow(Clone::clone)
}

/// The mode, if any.
pub fn mode() -> String {
    CONFIG.with_borrow(|config| config.mode.clone().unwrap_or_default())
}

/// Does what the configuration says is done at the event `id`. `log` writes a line at level error or info.
pub fn misbehave(id: &str, log: impl Fn(bool, &str)) {
    let config = config();
    if config.id.as_deref().is_some_and(|wanted| wanted != id) {
        return;
    }
    match config.mode.as_deref() {
        Some("loop") => spin(),
        Some("burn") => burn(config.amount),
        Some("memory") => grow(),
        Some("leak") => LEAKED.with_borrow_mut(|leaked| leaked.push(vec![1; config.amount])),
        Some("stack") => {
            black_box(descend(black_box(1)));
        }
        Some("panic") => {
            // As the SDK does: the message goes to the log before the trap.
            log(true, &format!("panicked at event {id}"));
            panic!("panicked at event {id}");
        }
        Some("out-of-bounds") => out_of_bounds(),
        Some("log") => (0..config.amount).for_each(|n| log(false, &format!("line {n}\nof {id}"))),
        Some("log-large") => log(false, &"x".repeat(config.amount)),
        _ => {}
    }
}

/// Never ends.
pub fn spin() -> ! {
    let mut n = 0_u64;
    loop {
        n = black_box(n.wrapping_add(1));
    }
}

/// Takes a while: `amount` million steps.
fn burn(amount: usize) {
    for n in 0..amount * 1_000_000 {
        black_box(n);
    }
}

fn grow() {
    let mut hoard = Vec::new();
    loop {
        hoard.push(black_box(vec![1_u8; 1 << 20]));
    }
}

#[inline(never)]
fn descend(depth: u64) -> u64 {
    if black_box(depth) == 0 { 0 } else { 1 + descend(black_box(depth + 1)) }
}

fn out_of_bounds() {
    let far = black_box(0xffff_fff0_usize) as *const u32;
    // SAFETY: none; that is the point. The sandbox traps.
    black_box(unsafe { far.read_volatile() });
}
