//! `cargo bench`: the kernels that a model runs, at the shapes of a small one, compared with the last run, to find
//! regressions. `wginfer bench kernels` compares them with the device's limits.

use std::cell::RefCell;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use wginfer::bench::{Pool, Shape, Timer, Workload};
use wginfer::dtype::Dtype;
use wginfer::gpu::{Gpu, GpuOptions, Recorder};

const ROWS: [usize; 3] = [1, 8, 128];
const ROTATE_BYTES: u64 = 64 << 20;

fn main() -> Result<(), wginfer::Error> {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(50))
        .measurement_time(Duration::from_millis(300))
        .configure_from_args();
    let gpu = Gpu::open(&GpuOptions::default())?;
    let shape = Shape::open("llama-15m")?;
    let mut pool = Pool::new(&gpu, ROTATE_BYTES);
    let timer = RefCell::new(Timer::new(&gpu)?);
    let mut group = criterion.benchmark_group(gpu.info().name.clone());
    for n_rows in ROWS {
        let work = Workload {
            caps: gpu.caps(),
            shape: &shape,
            n_rows,
            dtype: Dtype::F16,
            is_first_dtype: true,
            rotate_bytes: ROTATE_BYTES,
        };
        for case in work.cases() {
            let prepared = case.prepare(&mut pool)?;
            let mut rec = Recorder::new(&gpu)?;
            let variants = rec.variants(|rec| prepared.launch(rec, 0));
            if prepared.default_variants(&mut rec).is_some_and(|default| default != variants) {
                continue; // no model runs it
            }
            gpu.compile(&variants)?;
            group.throughput(Throughput::Bytes(case.cost.bytes as u64));
            group.bench_function(case.label(), |bencher| {
                bencher.iter_custom(|n_runs| {
                    let ms =
                        timer.borrow_mut().time(&mut rec, &|rec, i| prepared.launch(rec, i), n_runs as usize);
                    // A lost device has no times. criterion takes no errors, so panic with the message.
                    Duration::from_secs_f64(ms.expect("the device works") * 1e-3)
                });
            });
        }
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}
