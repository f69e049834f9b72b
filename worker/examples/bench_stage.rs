//! Tokens per second of whole steps on one place: forward and backward of 8 micro-batches of 4 samples, gradient norm,
//! AdamW.
//!
//! ```text
//! cargo run --release -p toroid-worker --example bench_stage -- [preset] [threads] [steps]
//! ```

use std::time::Duration;

use toroid_torus::geometry::Place;
use toroid_torus::job::{self, JobSpec};
use toroid_torus::partition::{self, Partition};
use toroid_worker::device::{AdamW, Buffer, CpuDevice, Device};
use toroid_worker::model::{Alone, Input, Stage};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let preset = args.first().map_or("tiny", String::as_str);
    let threads = args.get(1).map_or(Ok(1), |t| t.parse())?;
    let steps: usize = args.get(2).map_or(Ok(5), |t| t.parse())?;
    let products = args.get(3).map_or("f32", String::as_str);
    let spec = job::parse(&format!(
        "products = \"{products}\"\npreset = \"{preset}\"\nsteps = 1000\n[data]\npath = \"none\"\n"
    ))?;
    partition::check(&spec.model, &spec.shape)?;

    let place = Place { tp: 0, pp: 0, dp: 0 };
    let partition = partition::partition(&spec.model, &spec.shape, 0, 0);
    let device = CpuDevice::new(threads);
    println!("{preset}, {} parameters, {threads} thread(s), {}", partition.len, device.fingerprint());
    let mut stage = Stage::new(device.clone(), &spec, &spec.shape, place, &partition, 1);
    device.write(stage.params_mut().all_mut(), &initial_values(&partition));
    let mut bench = Bench {
        moments: [0, 1].map(|_| device.alloc(partition.padded_len)),
        gradients: device.alloc(partition.padded_len),
        stage,
        spec,
    };

    let mut times: Vec<[Duration; 3]> = (0..=steps).map(|_| bench.step()).collect();
    times.remove(0);
    times.sort_by_key(|parts| parts.iter().sum::<Duration>());
    let [forward, backward, update] = times[times.len() / 2];
    let tokens = (bench.spec.batch.samples() as usize * bench.spec.model.seq) as f64;
    let total = forward + backward + update;
    println!(
        "{:.0} tokens/s: forward {forward:.1?}, backward {backward:.1?}, update {update:.1?}",
        tokens / total.as_secs_f64()
    );
    Ok(())
}

/// Values spread like the initial ones; which, does not matter to the time.
fn initial_values(partition: &Partition) -> Vec<f32> {
    let mut state = 1_u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let mut values = vec![0.0; partition.padded_len];
    for slice in &partition.slices {
        let is_norm = slice.global_shape.len() == 1;
        values[slice.offset..slice.offset + slice.len].fill_with(|| if is_norm { 1.0 } else { 0.07 * uniform() });
    }
    values
}

struct Cpu(Duration);
impl Cpu {
    fn now() -> Cpu {
        let mut ns = 0;
        for t in std::fs::read_dir("/proc/self/task").unwrap() {
            let s = std::fs::read_to_string(t.unwrap().path().join("schedstat")).unwrap();
            ns += s.split(' ').next().unwrap().parse::<u64>().unwrap();
        }
        Cpu(Duration::from_nanos(ns))
    }
    fn elapsed(&self) -> Duration {
        Cpu::now().0 - self.0
    }
}

struct Bench {
    spec: JobSpec,
    stage: Stage<CpuDevice>,
    gradients: <CpuDevice as Device>::Buf,
    moments: [<CpuDevice as Device>::Buf; 2],
}

impl Bench {
    /// Times of the forwards, the backwards and the update of one step.
    fn step(&mut self) -> [Duration; 3] {
        let num = self.spec.batch.num_micro_batches;
        let tokens = self.spec.batch.micro_batch * self.spec.model.seq;
        let [mut forward, mut backward] = [Duration::ZERO; 2];
        for i in 0..num {
            let text: Vec<u32> = (0..=tokens).map(|n| ((n * n * 7 + n * 13 + i * 31) % 256) as u32).collect();
            let start = Cpu::now();
            let Ok(_) = self.stage.forward(0, Input::Tokens(&text[..tokens]), Some(&text[1..]), &mut Alone, None);
            forward += start.elapsed();
            let start = Cpu::now();
            let Ok(()) = self.stage.backward(0, None, 1.0 / num as f32, &mut Alone, None);
            backward += start.elapsed();
        }
        let start = Cpu::now();
        self.update();
        [forward, backward, start.elapsed()]
    }

    fn update(&mut self) {
        let device = self.stage.device().clone();
        let norm = device.sum_of_squares(self.stage.grads().all()).sqrt();
        std::mem::swap(self.stage.grads_mut(), &mut self.gradients);
        let [m, v] = &mut self.moments;
        let hyper = AdamW {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            bias1: 0.1,
            bias2: 0.05,
            grad_scale: self.spec.optimizer.clip_scale(norm),
        };
        let params = self.stage.params_mut().all_mut();
        device.adamw(params, m.all_mut(), v.all_mut(), self.gradients.all(), &hyper);
        self.stage.zero_grads();
    }
}
