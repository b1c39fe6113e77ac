//! The page table of the KV cache: free pages, users of pages, and their contents.

use std::collections::{BTreeMap, HashMap};

/// Positions per page. Prefixes are shared in whole pages, so small pages share more; 16 positions still have 4 KiB of
/// F16 keys for 8 heads of 16, enough for full cache lines.
pub const PAGE_SIZE: usize = 16;

/// A token, with the kind of row that computes its keys and values. The kinds go through different kernels, whose sums
/// differ in their last bits. So the kind is part of a page's identity: a page that is found has the same bits as one
/// that is computed again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::engine) struct Token(u32);

impl Token {
    /// Vocabularies are smaller than 2^28 (`models::open` checks it), so the highest bit is free.
    const GENERATED: u32 = 1 << 31;

    /// A token of a prompt, computed as a prompt row.
    pub fn prompt(id: u32) -> Self {
        Token(id)
    }

    /// A token that the model generated, computed as a single row.
    pub fn generated(id: u32) -> Self {
        Token(id | Self::GENERATED)
    }

    pub fn id(self) -> u32 {
        self.0 & !Self::GENERATED
    }

    pub fn is_generated(self) -> bool {
        self.0 & Self::GENERATED != 0
    }
}

/// The identity of a page's content, including all tokens before it: a number that is never used twice.
pub(in crate::engine) type Node = u64;

/// The content before the first page.
pub(in crate::engine) const ROOT: Node = 0;

/// The content of a full page: the node before it, and its tokens.
type Content = (Node, [Token; PAGE_SIZE]);

/// The page table.
#[derive(Debug)]
pub(in crate::engine) struct PageTable {
    free: Vec<u32>,
    pages: Vec<Page>,
    /// Full pages by content.
    known: HashMap<Content, u32>,
    /// Pages that a finished sequence left partly filled, by the node before them. The next turn of a conversation
    /// continues in them.
    unfinished: HashMap<Node, (u32, Vec<Token>)>,
    /// Known and unfinished pages that no sequence uses, least recently used first.
    idle: BTreeMap<u64, u32>,
    clock: u64,
}

#[derive(Clone, Debug, Default)]
struct Page {
    n_users: u32,
    known_as: Option<Content>,
    unfinished_after: Option<Node>,
    node: Node,
    idle_since: u64,
}

/// A cached prefix.
#[derive(Debug, Default, PartialEq)]
pub(in crate::engine) struct Prefix {
    /// Its pages. The last one may be partly filled.
    pub pages: Vec<u32>,
    /// Tokens in these pages.
    pub n_tokens: usize,
    /// Pages among them that no sequence uses.
    pub n_idle: usize,
    is_unfinished: bool,
}

/// The published pages of a sequence: the node after the last one, and their number.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::engine) struct Published {
    pub node: Node,
    pub n_pages: usize,
}

impl PageTable {
    pub fn new(n_pages: usize) -> Self {
        PageTable {
            free: (0..n_pages as u32).rev().collect(),
            pages: vec![Page::default(); n_pages],
            known: HashMap::new(),
            unfinished: HashMap::new(),
            idle: BTreeMap::new(),
            clock: ROOT,
        }
    }

    /// Pages that can be taken: free ones, and those that no sequence uses.
    pub fn n_available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// A new root. Sequences with different roots share no pages.
    pub fn new_root(&mut self) -> Node {
        self.clock += 1;
        self.clock
    }

    /// The longest known prefix of `tokens` after `root`, at least one token short.
    pub fn find(&self, root: Node, tokens: &[Token]) -> Prefix {
        let usable = &tokens[..tokens.len().saturating_sub(1)];
        let mut found = Prefix::default();
        let mut node = root;
        for tokens in usable.as_chunks::<PAGE_SIZE>().0 {
            let Some(page) = self.known.get(&(node, *tokens)) else { break };
            node = self.pages[*page as usize].node;
            found.pages.push(*page);
        }
        found.n_tokens = found.pages.len() * PAGE_SIZE;
        // The rest may be the beginning of an unfinished page.
        if let Some((page, begun)) = self.unfinished.get(&node) {
            let n_same = begun.iter().zip(&usable[found.n_tokens..]).take_while(|(a, b)| a == b).count();
            if n_same > 0 {
                found.pages.push(*page);
                found.n_tokens += n_same;
                found.is_unfinished = true;
            }
        }
        found.n_idle = found.pages.iter().filter(|page| self.pages[**page as usize].n_users == 0).count();
        found
    }

    /// Takes the pages of a prefix for one more sequence.
    pub fn share(&mut self, prefix: &Prefix) {
        if let (true, Some(page)) = (prefix.is_unfinished, prefix.pages.last()) {
            self.forget(*page);
        }
        for page in &prefix.pages {
            let state = &mut self.pages[*page as usize];
            if state.n_users == 0 {
                self.idle.remove(&state.idle_since);
            }
            state.n_users += 1;
        }
    }

    /// Takes a page that no sequence uses: a free one, else the least recently used.
    pub fn take(&mut self) -> Option<u32> {
        let page = match self.free.pop() {
            Some(page) => page,
            None => {
                let (_, page) = self.idle.pop_first()?;
                self.forget(page);
                page
            }
        };
        self.pages[page as usize].n_users = 1;
        Some(page)
    }

    /// Makes the page's content unknown.
    fn forget(&mut self, page: u32) {
        let state = &mut self.pages[page as usize];
        if let Some(content) = state.known_as.take() {
            self.known.remove(&content);
        }
        if let Some(node) = state.unfinished_after.take() {
            self.unfinished.remove(&node);
        }
    }

    /// Publishes the full pages of a sequence beyond those in `published`, so that others can share them. `tokens` are
    /// those whose keys and values have been recorded.
    pub fn publish(&mut self, published: &mut Published, pages: &[u32], tokens: &[Token]) {
        let full = tokens.as_chunks::<PAGE_SIZE>().0;
        for (page, tokens) in pages.iter().zip(full).skip(published.n_pages) {
            let content = (published.node, *tokens);
            // Another sequence may have published the same content; its page stays the known one.
            let same = *self.known.entry(content).or_insert(*page);
            if same == *page && self.pages[*page as usize].known_as.is_none() {
                self.clock += 1;
                let state = &mut self.pages[*page as usize];
                state.known_as = Some(content);
                state.node = self.clock;
            }
            published.node = self.pages[same as usize].node;
            published.n_pages += 1;
        }
    }

    /// Publishes the pages of a sequence that ends: full ones, and the last, partly filled one.
    pub fn leave(&mut self, mut published: Published, pages: &[u32], tokens: &[Token]) {
        self.publish(&mut published, pages, tokens);
        let (full, rest) = tokens.as_chunks::<PAGE_SIZE>();
        if let (Some(page), false) = (pages.get(full.len()), rest.is_empty()) {
            // The latest one replaces an older one: its conversation is the most likely to continue.
            let node = published.node;
            if let Some((old, _)) = self.unfinished.insert(node, (*page, rest.to_vec())) {
                self.pages[old as usize].unfinished_after = None;
                self.tidy(old);
            }
            self.pages[*page as usize].unfinished_after = Some(node);
        }
    }

    /// Frees a page that lost its content while no sequence used it.
    fn tidy(&mut self, page: u32) {
        let state = &self.pages[page as usize];
        let holds_nothing = state.known_as.is_none() && state.unfinished_after.is_none();
        if state.n_users == 0 && holds_nothing && self.idle.remove(&state.idle_since).is_some() {
            self.free.push(page);
        }
    }

    /// Releases a sequence's pages. Pages with known content keep it until they are needed; later pages are reused
    /// first.
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

    /// Checks that every page is in exactly one state, and that its number of users matches `sequences`.
    ///
    /// # Panics
    /// If a page violates this.
    #[cfg(test)]
    pub fn check<'a>(&self, sequences: impl Iterator<Item = &'a [u32]>) {
        let mut n_users = vec![0; self.pages.len()];
        sequences.flatten().for_each(|page| n_users[*page as usize] += 1);
        let mut is_free = vec![false; self.pages.len()];
        for page in &self.free {
            assert!(!std::mem::replace(&mut is_free[*page as usize], true), "page {page} is free twice");
        }
        for (i, page) in self.pages.iter().enumerate() {
            let holds = page.known_as.is_some() || page.unfinished_after.is_some();
            assert_eq!(page.n_users, n_users[i], "users of page {i}");
            let is_idle = self.idle.get(&page.idle_since) == Some(&(i as u32));
            assert_eq!(is_idle, page.n_users == 0 && holds, "page {i} is idle");
            assert_eq!(is_free[i], page.n_users == 0 && !holds, "page {i} is free");
            if let Some(content) = &page.known_as {
                assert_eq!(self.known.get(content), Some(&(i as u32)), "page {i} is known");
            }
            if let Some(node) = page.unfinished_after {
                assert_eq!(self.unfinished.get(&node).map(|(page, _)| *page), Some(i as u32));
            }
        }
        assert_eq!(self.known.len(), self.pages.iter().filter(|page| page.known_as.is_some()).count());
        let n_unfinished = self.pages.iter().filter(|page| page.unfinished_after.is_some()).count();
        assert_eq!(self.unfinished.len(), n_unfinished);
    }
}
