//! The loader: checks names, shapes and types of a model's tensors, and allocates them. Nothing is uploaded here.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::Names;
use super::upload::{Item, Layout, Part, Source, Upload};
use crate::dtype::{BLOCK, Dtype};
use crate::gpu::{Gpu, Tensor};
use crate::weights::{Entry, Order, Weights, WeightsError};

/// Where matrices of experts are in a checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct ExpertNames<'a> {
    /// What comes before all names.
    pub prefix: &'a str,
    /// The matrices of an expert that are one product: `{prefix}.{expert}.{part}.weight` each, or all experts' in
    /// `{prefix}.{part}.weight` `[n_experts, n_own, n_in]`.
    pub parts: &'a [&'a str],
    /// The name of all parts in one, `{prefix}.{joined}` `[n_experts, n_parts·n_own, n_in]`.
    pub joined: &'a str,
    /// Whether the latter is `[n_experts, n_in, n_parts·n_own]`, or in MXFP4, and the outputs of two parts alternate.
    pub transposed: bool,
}

/// Makes tensors from a checkpoint, or random ones. Matrices keep their stored type unless they are quantised. Vectors
/// (norms, biases), a thousandth of a model, become F32, so that one kernel reads them all.
///
/// Each method allocates a tensor; the [`Upload`] from [`Loader::finish`] fills them. So all names, shapes and types
/// are checked before anything is uploaded.
pub struct Loader {
    gpu: Gpu,
    weights: Arc<Weights>,
    quantize: Option<Dtype>,
    /// Whether the head over the vocabulary is left out.
    omits_head: bool,
    taken: HashSet<String>,
    /// The number of heads by which the rows of a tensor lie.
    by_head: HashMap<String, usize>,
    items: Vec<Item>,
    /// Total size of the items.
    n_bytes: usize,
}

impl Loader {
    /// A loader for a device, which quantises matrices to `quantize`. Default: as stored.
    pub fn new(gpu: &Gpu, weights: Arc<Weights>, quantize: Option<Dtype>) -> Self {
        Loader {
            gpu: gpu.clone(),
            weights,
            quantize,
            omits_head: false,
            taken: HashSet::new(),
            by_head: HashMap::new(),
            items: Vec::new(),
            n_bytes: 0,
        }
    }

    /// Leaves the head over the vocabulary out: the model reads whole texts, and has no logits.
    pub fn omit_head(&mut self) {
        self.omits_head = true;
    }

    /// Whether the head over the vocabulary is left out.
    pub fn omits_head(&self) -> bool {
        self.omits_head
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Whether the checkpoint has the tensor.
    pub fn has(&self, name: &str) -> bool {
        self.weights.get(name).is_some() || self.weights.random_dtype().is_some()
    }

    /// The prefix of the checkpoint's names: that of `names`, or nothing if it was saved from the bare model.
    pub fn root(&self, names: &Names) -> &'static str {
        names.root(&self.weights)
    }

    /// Says that the family's checkpoints have the rows of `{name}.weight` and `{name}.bias` as queries, keys and values of
    /// one head after the other. They are loaded as the queries of all heads, then the keys, then the values.
    pub fn lies_by_head(&mut self, name: &str, n_heads: usize) {
        self.by_head.extend(["weight", "bias"].map(|suffix| (format!("{name}.{suffix}"), n_heads)));
    }

    /// The embedding of tokens, `[n_rows, n_cols]`, as [`Loader::table`]. If it is absent and `tied` to the head, the
    /// head has its weights. `tables` are the names of both.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub fn embedding(
        &mut self,
        [embedding, head]: [&str; 2],
        shape: [usize; 2],
        tied: bool,
    ) -> Result<Tensor, WeightsError> {
        let is_head = tied && !self.has(embedding) && self.has(head);
        self.table(if is_head { head } else { embedding }, shape)
    }

    /// Whether the checkpoint has both tensors, and they differ.
    ///
    /// # Errors
    /// [`WeightsError::Io`].
    pub fn differ(&self, a: &str, b: &str) -> Result<bool, WeightsError> {
        match (self.weights.get(a), self.weights.get(b)) {
            (Some(a), Some(b)) => Ok(!self.weights.are_equal(a, b)?),
            _ => Ok(false),
        }
    }

    /// A matrix, `[n_rows, n_cols]`.
    ///
    /// # Errors
    /// [`WeightsError::Missing`], [`WeightsError::Shape`], [`WeightsError::Dtype`], [`WeightsError::Gpu`].
    pub fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Result<Tensor, WeightsError> {
        self.stack(&[(name, shape[0])], shape[1])
    }

    /// An embedding or a head, `[n_rows, n_cols]`. Quantised to `Q8_0` if matrices are quantised, because an error
    /// there affects every token (llama.cpp keeps them in 6 bits if the rest has 4).
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub fn table(&mut self, name: &str, [n_rows, n_cols]: [usize; 2]) -> Result<Tensor, WeightsError> {
        let target = self.quantize.map(|_| Dtype::Q8_0);
        self.stacked(&[(name, n_rows)], n_cols, target)
    }

    /// A matrix that is not quantised, `[n_rows, n_cols]`.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub fn as_stored(&mut self, name: &str, [n_rows, n_cols]: [usize; 2]) -> Result<Tensor, WeightsError> {
        self.stacked(&[(name, n_rows)], n_cols, None)
    }

    /// The weights of a convolution over rows, stored as `[n_out, n_in, width]`, as a matrix `[n_out, n_in·width]` that
    /// is not quantised.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub fn convolution(
        &mut self,
        name: &str,
        [n_out, n_in, width]: [usize; 3],
    ) -> Result<Tensor, WeightsError> {
        if self.weights.random_dtype().is_some() {
            return self.as_stored(name, [n_out, n_in * width]);
        }
        let (entry, dtype) = self.entry(name, &[n_out, n_in, width])?;
        let source = Source::Stacked(vec![Part::rows((entry, dtype))]);
        self.later(name, [n_out, n_in * width], dtype, dtype, source)
    }

    /// Matrices of the same width, one below the other: `[(name, n_rows)…, n_cols]`. If their types differ, each keeps its
    /// own, and the result is a stack.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub fn stack(&mut self, parts: &[(&str, usize)], n_cols: usize) -> Result<Tensor, WeightsError> {
        self.stacked(parts, n_cols, self.quantize)
    }

    /// A matrix that is stored as `[n_cols, n_rows]`, transposed to `[n_rows, n_cols]` (GPT-2's `Conv1D`).
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub fn transposed(&mut self, name: &str, [n_rows, n_cols]: [usize; 2]) -> Result<Tensor, WeightsError> {
        if self.weights.random_dtype().is_some() {
            return self.matrix(name, [n_rows, n_cols]);
        }
        if self.weights.get(name).is_some_and(|entry| entry.order == Order::Transposed) {
            return self.matrix(name, [n_rows, n_cols]);
        }
        let (entry, written) = self.entry(name, &[n_cols, n_rows])?;
        if written.is_quantised() {
            let found = written.name().into();
            return Err(WeightsError::Dtype { name: entry.stored_name, found });
        }
        let dtype = self.quantize.unwrap_or(written);
        let layout = Layout::Columns { alternate: false };
        let source = Source::Stacked(vec![Part { entry, dtype: written, layout }]);
        self.later(name, [n_rows, n_cols], dtype, written, source)
    }

    /// A vector as F32, `[1, n]`.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub fn vector(&mut self, name: &str, n: usize) -> Result<Tensor, WeightsError> {
        self.vectors(&[(name, n)])
    }

    /// Vectors one after the other as F32, `[1, n + …]`. An empty name gives zeros.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub fn vectors(&mut self, parts: &[(&str, usize)]) -> Result<Tensor, WeightsError> {
        let n_cols = parts.iter().map(|(_, n)| n).sum();
        let label = parts.iter().map(|(name, _)| *name).find(|name| !name.is_empty()).unwrap_or_default();
        if self.weights.random_dtype().is_some() {
            let mean = if label.ends_with(".bias") { 0.0 } else { 1.0 };
            let source = Source::Random { seed: self.seed(), mean, scale: 0.05 };
            return self.later(label, [1, n_cols], Dtype::F32, Dtype::F32, source);
        }
        let mut entries = Vec::with_capacity(parts.len());
        for (name, n) in parts {
            let entry = if name.is_empty() { None } else { Some(self.entry(name, &[*n])?) };
            if let Some((entry, dtype)) = entry.as_ref().filter(|(_, dtype)| dtype.is_quantised()) {
                let (name, found) = (entry.stored_name.clone(), dtype.name().into());
                return Err(WeightsError::Dtype { name, found });
            }
            entries.push((entry, *n));
        }
        self.later(label, [1, n_cols], Dtype::F32, Dtype::F32, Source::Vectors(entries))
    }

    /// Matrices of experts, each `[n_own, n_in]` for each of `names.parts`. All experts one below the other are one
    /// tensor, in each of them the parts one below the other; if the types of the parts differ, a tensor for each part.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub fn experts(
        &mut self,
        names: ExpertNames<'_>,
        n_experts: usize,
        [n_own, n_in]: [usize; 2],
    ) -> Result<Vec<Tensor>, WeightsError> {
        let n_parts = names.parts.len();
        let label = format!("{}.{}", names.prefix, names.joined);
        if let Some(dtype) = self.weights.random_dtype() {
            let (shape, to) = ([n_experts * n_parts * n_own, n_in], self.quantize.unwrap_or(dtype));
            let source = Source::Random { seed: self.seed(), mean: 0.0, scale: (n_in as f32).powf(-0.5) };
            let tensor = Tensor::experts(&self.gpu, &label, shape, to, n_parts * n_own)?;
            return Ok(vec![self.fill(tensor, dtype, source)]);
        }
        let parts = self.expert_parts(names, n_experts, [n_own, n_in])?;
        let first = parts[0][0].dtype;
        let is_one = parts.iter().flatten().all(|part| part.dtype == first);
        // By experts, or the parts apart.
        let groups: Vec<Vec<Part>> = match is_one {
            true => vec![parts.concat()],
            false => (0..parts[0].len()).map(|i| parts.iter().map(|own| own[i].clone()).collect()).collect(),
        };
        let mut tensors = Vec::with_capacity(groups.len());
        for group in groups {
            let stored = group[0].dtype;
            if let Some(odd) = group.iter().find(|part| part.dtype != stored) {
                let found = format!("{} beside experts in {stored}", odd.dtype);
                return Err(WeightsError::Dtype { name: odd.entry.stored_name.clone(), found });
            }
            let to = self.quantize.filter(|_| !stored.is_quantised()).unwrap_or(stored);
            let n_rows = group.iter().map(Part::n_rows).sum::<usize>();
            let tensor = Tensor::experts(&self.gpu, &label, [n_rows, n_in], to, n_rows / n_experts)?;
            tensors.push(self.fill(tensor, stored, Source::Stacked(group)));
        }
        Ok(tensors)
    }

    /// For each expert its matrices, however they are stored.
    fn expert_parts(
        &mut self,
        names: ExpertNames<'_>,
        n_experts: usize,
        [n_own, n_in]: [usize; 2],
    ) -> Result<Vec<Vec<Part>>, WeightsError> {
        let ExpertNames { prefix, parts, joined, transposed } = names;
        let n_out = parts.len() * n_own;
        let all = format!("{prefix}.{joined}");
        let apart = format!("{prefix}.{}.weight", parts[0]);
        let of_each = |entries: &[(Entry, Dtype)]| {
            let own = |e| entries.iter().map(|(entry, dtype)| Part::rows((entry.part(e), *dtype))).collect();
            (0..n_experts).map(own).collect()
        };
        if self.has(&apart) {
            let name =
                |part: &&str| self.entry(&format!("{prefix}.{part}.weight"), &[n_experts, n_own, n_in]);
            let entries = parts.iter().map(name).collect::<Result<Vec<_>, _>>()?;
            return Ok(of_each(&entries));
        }
        if self.has(&all) {
            if !transposed {
                let entry = self.entry(&all, &[n_experts, n_out, n_in])?;
                return Ok(of_each(&[entry]));
            }
            let (entry, dtype) = self.entry(&all, &[n_experts, n_in, n_out])?;
            let layout = Layout::Columns { alternate: parts.len() > 1 };
            let own = |e| vec![Part { entry: entry.part(e), dtype, layout: layout.clone() }];
            return Ok((0..n_experts).map(own).collect());
        }
        let blocks = format!("{all}_blocks");
        if transposed && self.has(&blocks) && n_in.is_multiple_of(BLOCK) {
            let n_blocks = n_in / BLOCK;
            let mut found = |suffix: &str, shape: &[usize]| {
                let mut entry = self.found(&format!("{all}_{suffix}"), shape)?;
                if entry.dtype != "U8" {
                    return Err(WeightsError::Dtype { name: entry.stored_name, found: entry.dtype });
                }
                if parts.len() > 1 {
                    entry.order = Order::Alternating { n_heads: 1 };
                }
                Ok(entry)
            };
            let blocks = found("blocks", &[n_experts, n_out, n_blocks, 16])?;
            let scales = found("scales", &[n_experts, n_out, n_blocks])?;
            let own = |e| {
                let layout = Layout::Mxfp4 { scales: scales.part(e) };
                vec![Part { entry: blocks.part(e), dtype: Dtype::MXFP4, layout }]
            };
            return Ok((0..n_experts).map(own).collect());
        }
        let own = |e| {
            let part = |part: &&str| {
                let name = format!("{prefix}.{e}.{part}.weight");
                Ok(Part::rows(self.entry(&name, &[n_own, n_in])?))
            };
            parts.iter().map(part).collect()
        };
        (0..n_experts).map(own).collect()
    }

    /// The biases of [`Loader::experts`] as F32, `[1, n_experts·n_parts·n_own]`.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub fn expert_biases(
        &mut self,
        names: ExpertNames<'_>,
        n_experts: usize,
        n_own: usize,
    ) -> Result<Tensor, WeightsError> {
        let ExpertNames { prefix, parts, joined, .. } = names;
        let (all, n_out) = (format!("{prefix}.{joined}_bias"), parts.len() * n_own);
        if self.weights.random_dtype().is_some() {
            return self.vector(&format!("{prefix}.{joined}.bias"), n_experts * n_out);
        }
        let mut own = Vec::with_capacity(n_experts * parts.len());
        let entries = match self.has(&all) {
            true => {
                let (mut entry, dtype) = self.entry(&all, &[n_experts, n_out])?;
                if parts.len() > 1 {
                    entry.order = Order::Alternating { n_heads: 1 };
                }
                vec![(entry, dtype)]
            }
            false => {
                let name = |part: &&str| self.entry(&format!("{prefix}.{part}.bias"), &[n_experts, n_own]);
                parts.iter().map(name).collect::<Result<Vec<_>, _>>()?
            }
        };
        if let Some((entry, dtype)) = entries.iter().find(|(_, dtype)| dtype.is_quantised()) {
            let (name, found) = (entry.stored_name.clone(), dtype.name().into());
            return Err(WeightsError::Dtype { name, found });
        }
        for e in 0..n_experts {
            own.extend(entries.iter().map(|(entry, dtype)| (Some((entry.part(e), *dtype)), entry.shape[1])));
        }
        self.later(&all, [1, n_experts * n_out], Dtype::F32, Dtype::F32, Source::Vectors(own))
    }

    /// Counts tensors whose names begin with `prefix` as used: checkpoints may have them, but models do not need them.
    /// Returns whether there are any.
    pub fn ignore(&mut self, prefix: &str) -> bool {
        let names = self.weights.entries().iter().map(|e| &e.name).filter(|name| name.starts_with(prefix));
        let n_taken = self.taken.len();
        self.taken.extend(names.cloned());
        self.taken.len() > n_taken
    }

    /// As [`Loader::ignore`] for what a model of images and text has beside its text model, and says so.
    pub fn ignore_vision(&mut self) {
        let vision = ["vision_tower.", "multi_modal_projector."];
        let prefixes = vision.iter().flat_map(|part| ["", "model."].map(|before| format!("{before}{part}")));
        let n_found = prefixes.filter(|prefix| self.ignore(prefix)).count();
        if n_found > 0 && !self.gpu.is_plan() {
            log::info!("the vision tower is left out: the model reads text only");
        }
    }

    /// Names of unused tensors, as in the file.
    pub fn unused(&self) -> Vec<&str> {
        let unused = self.weights.entries().iter().filter(|entry| !self.taken.contains(&entry.name));
        unused.map(|entry| entry.stored_name.as_str()).collect()
    }

    /// Bytes in device memory of the tensors so far.
    pub fn device_bytes(&self) -> u64 {
        self.items.iter().map(|item| item.tensor.size_bytes()).sum()
    }

    /// Most bytes that the upload takes besides, on the device or in the driver.
    pub fn staging_bytes(&self) -> u64 {
        super::upload::staging_bytes(&self.gpu, &self.items)
    }

    /// The upload that fills the tensors.
    pub fn finish(self) -> Upload {
        Upload::new(&self.gpu, self.weights, self.items)
    }

    fn stacked(
        &mut self,
        parts: &[(&str, usize)],
        n_cols: usize,
        target: Option<Dtype>,
    ) -> Result<Tensor, WeightsError> {
        if let Some(dtype) = self.weights.random_dtype() {
            let shape = [parts.iter().map(|(_, n)| n).sum(), n_cols];
            // This scale keeps the size of a product's input, so that logits stay finite.
            let source = Source::Random { seed: self.seed(), mean: 0.0, scale: (n_cols as f32).powf(-0.5) };
            return self.later(parts[0].0, shape, target.unwrap_or(dtype), dtype, source);
        }
        let entries =
            parts.iter().map(|(name, n)| self.entry(name, &[*n, n_cols])).collect::<Result<Vec<_>, _>>()?;
        // What is quantised already stays as it is.
        let becomes = |stored: Dtype| target.filter(|_| !stored.is_quantised()).unwrap_or(stored);
        let mut tensors = Vec::with_capacity(1);
        for group in entries.chunk_by(|(_, a), (_, b)| becomes(*a) == becomes(*b)) {
            let (first, stored) = &group[0];
            let n_rows = group.iter().map(|(entry, _)| entry.shape[0]).sum();
            let written = if group.iter().all(|(_, dtype)| dtype == stored) { *stored } else { Dtype::F32 };
            let (name, source) = (first.name.clone(), stacked(group));
            tensors.push(self.later(&name, [n_rows, n_cols], becomes(*stored), written, source)?);
        }
        Ok(if tensors.len() == 1 { tensors.remove(0) } else { Tensor::stack(tensors) })
    }

    fn later(
        &mut self,
        name: &str,
        shape: [usize; 2],
        dtype: Dtype,
        written: Dtype,
        source: Source,
    ) -> Result<Tensor, WeightsError> {
        let tensor = Tensor::weights(&self.gpu, name, shape, dtype)?;
        Ok(self.fill(tensor, written, source))
    }

    /// Fills a tensor later.
    fn fill(&mut self, tensor: Tensor, written: Dtype, source: Source) -> Tensor {
        let item = Item { tensor: tensor.clone(), written, source };
        self.n_bytes += item.n_bytes();
        self.items.push(item);
        tensor
    }

    /// A different seed for each random tensor: the bytes before it.
    fn seed(&self) -> u32 {
        self.n_bytes as u32
    }

    /// The tensor of that name and its type.
    fn entry(&mut self, name: &str, shape: &[usize]) -> Result<(Entry, Dtype), WeightsError> {
        let entry = self.found(name, shape)?;
        let dtype = dtype_of(&entry)?;
        Ok((entry, dtype))
    }

    /// The tensor of that name.
    fn found(&mut self, name: &str, shape: &[usize]) -> Result<Entry, WeightsError> {
        let entry = self.weights.get(name).ok_or_else(|| {
            // The same tensor of another layer is the best example of the checkpoint's names.
            let is_number = |part: &str| part.parse::<usize>().is_ok();
            let suffix =
                name.split('.').skip_while(|part| !is_number(part)).skip(1).collect::<Vec<_>>().join(".");
            let entries = self.weights.entries();
            let alike = entries.iter().find(|e| !suffix.is_empty() && e.name.ends_with(&suffix));
            let alike = alike.or(entries.first());
            let like = alike.map_or(String::new(), |entry| format!(", such as `{}`", entry.stored_name));
            let found = format!("{} tensors{like}", entries.len());
            WeightsError::Missing { name: self.weights.stored_name(name), found }
        })?;
        if entry.shape != shape {
            return Err(WeightsError::Shape {
                name: entry.stored_name.clone(),
                expected: shape.to_vec(),
                found: entry.shape.clone(),
            });
        }
        let mut entry = entry.clone();
        if let (Some(n_heads), Order::Plain) = (self.by_head.get(name).copied(), entry.order) {
            assert!(shape[0].is_multiple_of(3 * n_heads), "`{name}`: {shape:?} of {n_heads} heads");
            entry.order = Order::ByHead { n_heads };
        }
        self.taken.insert(name.to_string());
        Ok(entry)
    }
}

fn stacked(entries: &[(Entry, Dtype)]) -> Source {
    Source::Stacked(entries.iter().cloned().map(Part::rows).collect())
}

fn dtype_of(entry: &Entry) -> Result<Dtype, WeightsError> {
    Dtype::from_name(&entry.dtype)
        .ok_or_else(|| WeightsError::Dtype { name: entry.stored_name.clone(), found: entry.dtype.clone() })
}
