//! Cross-entropy over a vocabulary that one rank holds, or several.

use toroid_worker::device::{Buffer, Device};

use super::*;

const TOKENS: usize = 70;
const VOCAB: usize = 90;
const SCALE: f64 = 0.125;

fn targets() -> Vec<u32> {
    (0..TOKENS as u32).map(|n| (n * 37 + 5) % VOCAB as u32).collect()
}

fn logits() -> Vec<f64> {
    values(1, TOKENS * VOCAB).iter().map(|x| 8.0 * x).collect()
}

fn loss(logits: &[f64], target: u32) -> f64 {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + logits.iter().map(|l| (l - max).exp()).sum::<f64>().ln() - logits[target as usize]
}

pub fn cross_entropy_and_its_gradient<D: Device>(device: &D) {
    check_ranks(device, &[0, VOCAB]);
}

pub fn cross_entropy_over_ranks<D: Device>(device: &D) {
    check_ranks(device, &[0, 30, 60, VOCAB]);
}

/// Rank `r` holds rows `bounds[r]..bounds[r + 1]` of the vocabulary.
fn check_ranks<D: Device>(device: &D, bounds: &[usize]) {
    let ranks: Vec<_> = bounds.windows(2).map(|pair| pair[0]..pair[1]).collect();
    let (logits, targets) = (logits(), targets());
    let ids = upload_ids(device, &targets);
    let part = |x: &[f64], rows: &std::ops::Range<usize>| -> Vec<f64> {
        x.chunks(VOCAB).flat_map(|row| row[rows.clone()].to_vec()).collect()
    };
    let mut stats = device.alloc(ranks.len() * TOKENS * 3);
    for (rank, rows) in ranks.iter().enumerate() {
        let own = stats.view_mut(rank * TOKENS * 3..(rank + 1) * TOKENS * 3);
        device.cross_entropy_local(&ids, rows.start, upload(device, &part(&logits, rows)).all(), own);
    }
    let [mut lse, mut losses] = [TOKENS; 2].map(|len| device.alloc(len));
    device.cross_entropy_combine(stats.all(), lse.all_mut(), losses.all_mut());
    let rows = || logits.chunks(VOCAB).zip(&targets);
    let expected: Vec<f64> = rows().map(|(row, target)| loss(row, *target)).collect();
    check("losses", &download(device, &losses), &expected, 1e-6);

    let gradient: Vec<f64> =
        rows().flat_map(|(row, target)| derivative(row, |row| SCALE * loss(row, *target))).collect();
    for rows in &ranks {
        let mut own = upload(device, &part(&logits, rows));
        device.cross_entropy_backward(&ids, rows.start, SCALE as f32, lse.all(), own.all_mut());
        check(&format!("gradient of rows {rows:?}"), &download(device, &own), &part(&gradient, rows), 2e-6);
    }
}
