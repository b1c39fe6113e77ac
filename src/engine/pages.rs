//! The KV cache: a pool of pages per layer, counted references, prefixes found again.

use std::collections::{BTreeMap, HashMap};

use crate::dtype::Dtype;
use crate::gpu::{Gpu, GpuError};
use crate::models::ModelShape;
use crate::ops::{Attention, KvLayer};

/// Positions a page. A prefix is shared in whole pages, so small pages share more; 16 are still 4 KiB of
/// keys in f16 for 8 heads of 16, enough for full cache lines.
pub const PAGE_SIZE: usize = 16;

/// Pages of keys and values in device memory, and who uses them.
pub struct KvPages {
    layers: Vec<KvLayer>,
    free: Vec<u32>,
    pages: Vec<Page>,
    /// Full pages by what they hold: the node before and the tokens of the page.
    known: HashMap<(Node, [u32; PAGE_SIZE]), u32>,
    /// Pages that a finished sequence left partly filled, by the node before; the next turn of a conversation
    /// goes on in them.
    unfinished: HashMap<Node, (u32, Vec<u32>)>,
    /// Known and unfinished pages that no sequence uses, least recently used first.
    idle: BTreeMap<u64, u32>,
    clock: u64,
}

/// A page's content, all tokens before it included: a number that is never given twice.
pub(super) type Node = u64;

/// The content before the first page.
pub(super) const ROOT: Node = 0;

#[derive(Clone, Default)]
struct Page {
    n_users: u32,
    known_as: Option<(Node, [u32; PAGE_SIZE])>,
    unfinished_after: Option<Node>,
    node: Node,
    idle_since: u64,
}

impl KvPages {
    /// Allocates `n_pages` pages in each layer.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`], [`GpuError::OutOfMemory`].
    pub fn new(gpu: &Gpu, shape: &ModelShape, n_pages: usize, dtype: Dtype) -> Result<Self, GpuError> {
        let layers = shape.attention.iter().enumerate();
        let layers = layers.map(|(i, a)| KvLayer::new(gpu, i, n_pages, Self::width(a), dtype));
        Ok(KvPages {
            layers: layers.collect::<Result<_, GpuError>>()?,
            free: (0..n_pages as u32).rev().collect(),
            pages: vec![Page::default(); n_pages],
            known: HashMap::new(),
            unfinished: HashMap::new(),
            idle: BTreeMap::new(),
            clock: ROOT,
        })
    }

    /// Keys, or values, of one layer's page.
    pub(super) fn width(attention: &Attention) -> usize {
        attention.n_kv_heads * PAGE_SIZE * attention.head_dim
    }

    /// Bytes that one page takes in all layers.
    pub fn page_bytes(shape: &ModelShape, dtype: Dtype) -> usize {
        shape.attention.iter().map(|a| 2 * KvLayer::bytes(dtype, Self::width(a))).sum()
    }

    /// The tensors of each layer.
    pub fn layers(&self) -> &[KvLayer] {
        &self.layers
    }

    /// The beginning of sequences that share nothing with those that have another one.
    pub fn new_root(&mut self) -> Node {
        self.clock += 1;
        self.clock
    }

    /// Takes `n_pages` pages for a sequence that starts with `prompt` after `root`: first those that hold its longest
    /// known prefix (leaving at least one token to compute), then free ones. Returns the pages and how many
    /// tokens they hold already; `None`, and nothing taken, if there are too few.
    pub fn take(&mut self, root: Node, prompt: &[u32], n_pages: usize) -> Option<(Vec<u32>, usize)> {
        let usable = &prompt[..prompt.len().saturating_sub(1)];
        let (full, _) = usable.as_chunks::<PAGE_SIZE>();
        let mut pages = Vec::with_capacity(n_pages);
        let mut node = root;
        for tokens in full {
            match self.known.get(&(node, *tokens)) {
                Some(page) if pages.len() < n_pages => {
                    node = self.pages[*page as usize].node;
                    pages.push(*page);
                }
                _ => break,
            }
        }
        let mut n_cached = pages.len() * PAGE_SIZE;
        // What follows may stand at the beginning of a page that nobody goes on in.
        let rest = &usable[n_cached..];
        let begun = self.unfinished.get(&node).and_then(|(page, tokens)| {
            let n_same = tokens.iter().zip(rest).take_while(|(a, b)| a == b).count();
            (n_same > 0 && pages.len() < n_pages).then_some((*page, n_same))
        });
        let n_found = pages.len() + usize::from(begun.is_some());
        let idle_among_found =
            pages.iter().chain(begun.iter().map(|(page, _)| page)).filter(|p| self.is_idle(**p)).count();
        if n_pages - n_found > self.free.len() + self.idle.len() - idle_among_found {
            return None;
        }
        if let Some((page, n_same)) = begun {
            self.forget(page);
            pages.push(page);
            n_cached += n_same;
        }
        for page in &pages {
            self.use_again(*page);
        }
        while pages.len() < n_pages {
            let page = self.free.pop().or_else(|| self.evict())?;
            self.pages[page as usize].n_users = 1;
            pages.push(page);
        }
        Some((pages, n_cached))
    }

    fn is_idle(&self, page: u32) -> bool {
        self.pages[page as usize].n_users == 0
    }

    /// Nobody finds the page's content any more.
    fn forget(&mut self, page: u32) {
        let state = &mut self.pages[page as usize];
        if let Some(key) = state.known_as.take() {
            self.known.remove(&key);
        }
        if let Some(node) = state.unfinished_after.take() {
            self.unfinished.remove(&node);
        }
    }

    fn use_again(&mut self, page: u32) {
        let state = &mut self.pages[page as usize];
        if state.n_users == 0 {
            self.idle.remove(&state.idle_since);
        }
        state.n_users += 1;
    }

    /// Forgets the least recently used page that nobody uses.
    fn evict(&mut self) -> Option<u32> {
        let (_, page) = self.idle.pop_first()?;
        self.forget(page);
        Some(page)
    }

    /// Makes the full pages of a sequence known, so that others share them: `tokens` are those whose keys
    /// and values are written once everything recorded so far is done.
    /// Returns the node after them.
    pub fn publish(&mut self, root: Node, pages: &[u32], tokens: &[u32]) -> Node {
        let mut node = root;
        for (page, tokens) in pages.iter().zip(tokens.as_chunks::<PAGE_SIZE>().0) {
            let key = (node, *tokens);
            // Another sequence may have published the same content; its page stays the known one.
            let same = *self.known.entry(key).or_insert(*page);
            if same == *page && self.pages[*page as usize].known_as.is_none() {
                self.clock += 1;
                let state = &mut self.pages[*page as usize];
                state.known_as = Some(key);
                state.node = self.clock;
            }
            node = self.pages[same as usize].node;
        }
        node
    }

    /// Publishes what a finished sequence leaves behind: its full pages, and the one that it was filling.
    pub fn leave(&mut self, root: Node, pages: &[u32], tokens: &[u32]) {
        let node = self.publish(root, pages, tokens);
        let (full, rest) = tokens.as_chunks::<PAGE_SIZE>();
        if let (Some(page), false) = (pages.get(full.len()), rest.is_empty()) {
            // The latest conversation wins: it is the likeliest to go on.
            if let Some((old, _)) = self.unfinished.insert(node, (*page, rest.to_vec())) {
                self.pages[old as usize].unfinished_after = None;
            }
            self.pages[*page as usize].unfinished_after = Some(node);
        }
    }

    /// Gives a sequence's pages back. Known ones stay until their room is needed, later pages going first.
    pub fn release(&mut self, pages: &[u32]) {
        for page in pages.iter().rev() {
            let state = &mut self.pages[*page as usize];
            state.n_users -= 1;
            if state.n_users > 0 {
                continue;
            }
            if state.known_as.is_some() || state.unfinished_after.is_some() {
                self.clock += 1;
                state.idle_since = self.clock;
                self.idle.insert(self.clock, *page);
            } else {
                self.free.push(*page);
            }
        }
    }
}
