//! Several guests in one frame: who gets its milliseconds.

use std::time::Duration;

use super::recovery::Survivor;
use super::{Engine, EngineError, Loading, TextEncoder};

/// Of so many frames, one begins with a guest whose turn it is, whatever its priority: so everyone gets on.
const TURN_EVERY: u64 = 8;

/// What records work within the budget of a frame: an [`Engine`], a [`TextEncoder`] or a [`Loading`].
pub trait Guest {
    /// Records work for about `budget` of device time: [`Engine::advance`].
    ///
    /// # Errors
    /// As [`Engine::advance`].
    fn advance(&mut self, budget: Duration) -> Result<Vec<wgpu::CommandBuffer>, EngineError>;
    /// What the last call left of its budget, as predicted.
    fn left(&self) -> Duration;
    /// The longest time of what cannot be cut: [`Engine::smallest_slice`].
    fn smallest_slice(&self) -> Option<Duration>;
}

/// Shares the milliseconds of frames among guests on one device by their priorities.
///
/// In seven of eight frames the guests come in the order of their priorities, those with the same priority in turn: the first
/// gets the whole budget, and the next one what is left. In the eighth frame a guest comes first whose turn it is, whatever
/// its priority. So the guest with the highest priority has at least seven eighths of the frames that it needs, and `n`
/// guests get at least every `8·n`-th frame each.
///
/// ```no_run
/// use std::time::Duration;
/// use wginfer::engine::{Engine, EngineError, Frames, TextEncoder};
/// use wginfer::wgpu;
///
/// struct App {
///     chat: Engine,
///     search: TextEncoder,
///     frames: Frames,
/// }
///
/// impl App {
///     /// Called once a frame: the chat is answered first, texts are indexed in the time that it leaves.
///     fn frame(&mut self, queue: &wgpu::Queue) -> Result<(), EngineError> {
///         let App { chat, search, frames } = self;
///         for buffers in frames.advance(&mut [(chat, 2), (search, 1)], Duration::from_millis(4)) {
///             queue.submit(buffers?);
///         }
///         for _event in self.chat.events()? { /* show it */ }
///         for _text in self.search.events()? { /* keep it */ }
///         Ok(())
///     }
/// }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Frames {
    n: u64,
}

impl Frames {
    /// No frame yet.
    pub fn new() -> Self {
        Frames::default()
    }

    /// Records the work of a frame: about `budget` of device time for all `guests` together, each with its priority (a larger
    /// number comes first). Returns what each has recorded, in the order of `guests`; all of it must be submitted. An error of
    /// one guest leaves the others as they are. Never waits.
    pub fn advance(
        &mut self,
        guests: &mut [(&mut dyn Guest, u8)],
        budget: Duration,
    ) -> Vec<Result<Vec<wgpu::CommandBuffer>, EngineError>> {
        let priorities: Vec<u8> = guests.iter().map(|(_, priority)| *priority).collect();
        let mut recorded: Vec<_> = guests.iter().map(|_| Ok(Vec::new())).collect();
        let mut left = budget;
        let mut is_first = true;
        for i in order(self.n, &priorities) {
            let guest = &mut guests[i].0;
            // Nobody but the first is promised progress in this frame: the others need time for it. Of a guest that has
            // measured nothing, half a frame is taken to be enough.
            let least = guest.smallest_slice().unwrap_or(budget / 2);
            if !is_first && left < least {
                continue;
            }
            recorded[i] = guest.advance(left);
            if recorded[i].as_ref().is_ok_and(|buffers| !buffers.is_empty()) {
                left = guest.left().min(left);
                is_first = false;
            }
        }
        self.n += 1;
        recorded
    }
}

/// The guests in the order in which frame `n` serves them.
fn order(n: u64, priorities: &[u8]) -> Vec<usize> {
    let n_guests = priorities.len().max(1) as u64;
    let mut order: Vec<usize> = (0..priorities.len()).collect();
    // Equal ones begin in turn.
    order.rotate_left((n % n_guests) as usize);
    order.sort_by_key(|i| std::cmp::Reverse(priorities[*i]));
    if n % TURN_EVERY == TURN_EVERY - 1 {
        let turn = ((n / TURN_EVERY) % n_guests) as usize;
        order.sort_by_key(|i| *i != turn);
    }
    order
}

impl Guest for Engine {
    fn advance(&mut self, budget: Duration) -> Result<Vec<wgpu::CommandBuffer>, EngineError> {
        Engine::advance(self, budget)
    }

    fn left(&self) -> Duration {
        Engine::left(self)
    }

    fn smallest_slice(&self) -> Option<Duration> {
        Engine::smallest_slice(self)
    }
}

impl Guest for TextEncoder {
    fn advance(&mut self, budget: Duration) -> Result<Vec<wgpu::CommandBuffer>, EngineError> {
        TextEncoder::advance(self, budget)
    }

    fn left(&self) -> Duration {
        TextEncoder::left(self)
    }

    fn smallest_slice(&self) -> Option<Duration> {
        TextEncoder::smallest_slice(self)
    }
}

impl<E: Survivor> Guest for Loading<E> {
    fn advance(&mut self, budget: Duration) -> Result<Vec<wgpu::CommandBuffer>, EngineError> {
        Loading::advance(self, budget)
    }

    fn left(&self) -> Duration {
        Loading::left(self)
    }

    fn smallest_slice(&self) -> Option<Duration> {
        Loading::smallest_slice(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest that takes what it needs of each budget.
    struct Fake {
        needs: Duration,
        left: Duration,
        got: Duration,
        n_turns: usize,
    }

    impl Guest for Fake {
        fn advance(&mut self, budget: Duration) -> Result<Vec<wgpu::CommandBuffer>, EngineError> {
            // Command buffers need a device: that nothing comes back counts as nothing to do.
            let taken = self.needs.min(budget);
            (self.left, self.got) = (budget - taken, self.got + taken);
            self.n_turns += 1;
            Ok(Vec::new())
        }

        fn left(&self) -> Duration {
            self.left
        }

        fn smallest_slice(&self) -> Option<Duration> {
            Some(Duration::from_micros(100))
        }
    }

    #[test]
    fn the_highest_priority_comes_first_and_nobody_starves() {
        let priorities = [1, 3, 2, 3];
        let mut first = [0usize; 4];
        let n_frames = 8 * 4 * 10;
        for n in 0..n_frames {
            let order = order(n, &priorities);
            let mut all = order.clone();
            all.sort();
            assert_eq!(all, [0, 1, 2, 3], "everyone comes once");
            first[order[0]] += 1;
            if n % TURN_EVERY != TURN_EVERY - 1 {
                assert!(priorities[order[0]] == 3 && priorities[order[1]] == 3 && order[2] == 2, "{order:?}");
            }
        }
        assert_eq!([first[0], first[2]], [10, 10], "one frame of 8·4");
        assert!(first[1].abs_diff(first[3]) <= n_frames as usize / 8, "equal ones in turn: {first:?}");
    }

    #[test]
    fn guests_without_work_take_nothing_from_the_others() {
        let ms = Duration::from_millis;
        let fake = |needs| Fake { needs, left: ms(0), got: ms(0), n_turns: 0 };
        let (mut idle, mut busy) = (fake(ms(0)), fake(ms(9)));
        let mut frames = Frames::new();
        for _ in 0..80 {
            let results = frames.advance(&mut [(&mut idle, 2), (&mut busy, 1)], ms(4));
            assert!(results.len() == 2 && results.iter().all(Result::is_ok));
        }
        assert_eq!((busy.got, busy.n_turns), (ms(320), 80));
    }
}
