//! Shows how far a download is.

use wginfer::hub::{Download, HubName};

use super::{format, terminal};

/// Runs `work`, which may download `name`, with a bar on a terminal, and with a line of log anywhere.
pub fn shown<T>(name: &HubName, work: impl FnOnce(&mut dyn FnMut(Download<'_>)) -> T) -> T {
    let mut bar = None;
    let done = work(&mut |at| {
        // Another process may have brought it in the meantime.
        if bar.is_none() && at.done_bytes == at.total_bytes {
            return;
        }
        let bar = bar.get_or_insert_with(|| {
            let left = format::bytes(at.total_bytes - at.done_bytes);
            match at.done_bytes {
                0 => log::info!("downloading `{name}`: {left}"),
                _ => log::info!("downloading `{name}`: {left} of {}", format::bytes(at.total_bytes)),
            }
            let bar = terminal::download(at.total_bytes);
            // The rate is that of what is still to come.
            bar.set_position(at.done_bytes);
            bar.reset_eta();
            bar
        });
        bar.set_message(format::shown(at.file, 60));
        bar.set_position(at.done_bytes);
    });
    if let Some(bar) = bar {
        terminal::finish(&bar);
    }
    done
}
