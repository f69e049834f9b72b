//! The router, and the way of tokens to their experts and back.

use toroid_worker::device::{Buffer, Device, Groups, NOWHERE, RouterLoss, Routing, TOP_K};

use super::layers::swiglu;
use super::*;

/// Of one token: `(first, second, weight of the first)`.
fn choose(logits: &[f64]) -> (usize, usize, f64) {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
    (order[0], order[1], 1.0 / (1.0 + (logits[order[1]] - logits[order[0]]).exp()))
}

fn lse(logits: &[f64]) -> f64 {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + logits.iter().map(|l| (l - max).exp()).sum::<f64>().ln()
}

/// Routes `logits (N, E)` and sorts for the experts `local`.
fn routed<D: Device>(
    device: &D,
    logits: &[f64],
    experts: usize,
    local: std::ops::Range<usize>,
) -> (Routing<D>, Groups<D>) {
    let tokens = logits.len() / experts;
    let (mut routing, mut groups) = (Routing::new(device, tokens, experts), Groups::new(device, tokens, local));
    device.route(None, upload(device, logits).all(), &mut routing);
    device.group(&routing, &mut groups);
    (routing, groups)
}

/// 400 tokens, 9 experts of which the middle five are local; expert 4 gets nothing, expert 3 more than a tile.
pub fn grouped_example<D: Device>(device: &D) -> (Routing<D>, Groups<D>) {
    let experts = 9;
    let mut logits = values(7, 400 * experts);
    for row in logits.chunks_mut(experts) {
        row[3] += 1.0;
        row[4] = -5.0;
    }
    routed(device, &logits, experts, 2..7)
}

pub fn num_rows<D: Device>(device: &D, groups: &Groups<D>) -> usize {
    let n = groups.local.len();
    download_ids(device, &groups.offsets, n + 1)[n] as usize
}

pub fn router_chooses_and_weighs<D: Device>(device: &D) {
    for (tokens, experts) in [(300, 8), (50, 64), (5, 2), (70, 19)] {
        let logits: Vec<f64> = values(1, tokens * experts).iter().map(|x| 4.0 * x).collect();
        let (routing, _) = routed(device, &logits, experts, 0..experts);
        let rows = || logits.chunks(experts);
        let choice: Vec<_> = rows().map(choose).collect();
        let chosen: Vec<u32> = choice.iter().flat_map(|(a, b, _)| [*a as u32, *b as u32]).collect();
        assert_eq!(download_ids(device, &routing.chosen, tokens * TOP_K), chosen);
        let weights: Vec<f64> = choice.iter().flat_map(|(_, _, w)| [*w, 1.0 - w]).collect();
        check("weights", &download(device, &routing.weights), &weights, 1e-6);
        let mut counts = vec![0; experts];
        chosen.iter().for_each(|e| counts[*e as usize] += 1);
        assert_eq!(download_ids(device, &routing.counts, experts), counts);
        let probs: Vec<f64> = rows().flat_map(|row| row.iter().map(|l| (l - lse(row)).exp())).collect();
        check("probs", &download(device, &routing.probs), &probs, 1e-6);
        check("lse", &download(device, &routing.lse), &rows().map(lse).collect::<Vec<_>>(), 1e-6);
        let mut sums = vec![0.0; experts];
        probs.chunks(experts).for_each(|row| sums = plus(&sums, row));
        check("prob_sums", &download(device, &routing.prob_sums), &sums, 1e-6);
    }
}

pub fn ties_go_to_the_lower_expert<D: Device>(device: &D) {
    let logits = [[0.5, 0.5, 0.5, 0.5], [0.1, 0.7, 0.3, 0.7], [0.9, 0.2, 0.9, 0.9], [0.0, 0.4, 0.4, 0.8]].concat();
    let (routing, _) = routed(device, &logits, 4, 0..4);
    assert_eq!(download_ids(device, &routing.chosen, 8), [0, 1, 1, 3, 0, 2, 3, 1]);
    assert_eq!(download(device, &routing.weights)[..6], [0.5; 6], "equal logits weigh the same");
}

pub fn nan_logits_stay_in_range<D: Device>(device: &D) {
    let (routing, groups) = routed(device, &[f64::NAN; 12], 4, 0..4);
    for pair in download_ids(device, &routing.chosen, 6).chunks(2) {
        assert!(pair[0] < 4 && pair[1] < 4 && pair[0] != pair[1], "experts {pair:?} of 4");
    }
    assert_eq!(num_rows(device, &groups), 6);
    assert!(!device.all_finite(routing.lse.all()), "the NaN is seen in the loss");
}

pub fn router_gradient<D: Device>(device: &D) {
    let (tokens, experts, local) = (30, 9, 2..7);
    let logits: Vec<f64> = values(1, tokens * experts).iter().map(|x| 3.0 * x).collect();
    let (routing, groups) = routed(device, &logits, experts, local.clone());
    let counts = download_ids(device, &routing.counts, experts);
    let (positions, dweights) = (download_ids(device, &groups.positions, tokens * TOP_K), values(2, tokens * TOP_K));
    for (z, balance) in [(0.0, 0.0), (0.7, 0.0), (0.0, 0.9), (0.5, 0.25)] {
        // What one token gives to the loss: the share of the assignments f is no function of the logits.
        let loss = |n: usize, row: &[f64]| {
            let (first, second, weight) = choose(row);
            let of = |k: usize, expert: usize, weight: f64| {
                let row = positions[n * TOP_K + k];
                assert_eq!(local.contains(&expert), row != NOWHERE, "rows are of local experts");
                if row == NOWHERE { 0.0 } else { weight * dweights[row as usize] }
            };
            let f = |e: usize| f64::from(counts[e]) / (tokens * TOP_K) as f64;
            let shared: f64 = (0..experts).map(|e| f(e) * (row[e] - lse(row)).exp()).sum();
            of(0, first, weight)
                + of(1, second, 1.0 - weight)
                + (z * lse(row).powi(2) + balance * experts as f64 * shared) / tokens as f64
        };
        let expected: Vec<f64> =
            logits.chunks(experts).enumerate().flat_map(|(n, row)| derivative(row, |row| loss(n, row))).collect();
        let mut dlogits = upload(device, &vec![7.0; tokens * experts]);
        let coefficients = RouterLoss { z: z as f32, balance: balance as f32 };
        let dweights = upload(device, &dweights);
        device.route_backward(&routing, &groups, coefficients, dweights.all(), dlogits.all_mut());
        check(&format!("dlogits with z {z}, balance {balance}"), &download(device, &dlogits), &expected, 1e-6);
    }
}

pub fn groups_are_sorted_and_stable<D: Device>(device: &D) {
    let (routing, groups) = grouped_example(device);
    let chosen = download_ids(device, &routing.chosen, groups.capacity);
    let offsets = download_ids(device, &groups.offsets, groups.local.len() + 1);
    let positions = download_ids(device, &groups.positions, groups.capacity);
    let assignments = download_ids(device, &groups.assignments, groups.capacity);
    let mut expected = Vec::new();
    for (e, expert) in groups.local.clone().enumerate() {
        assert_eq!(offsets[e] as usize, expected.len(), "first row of expert {expert}");
        expected.extend((0..chosen.len() as u32).filter(|a| chosen[*a as usize] as usize == expert));
    }
    assert_eq!(offsets[groups.local.len()] as usize, expected.len());
    assert_eq!(assignments[..expected.len()], expected, "sorted by expert, in the order of the tokens");
    for (assignment, position) in positions.iter().enumerate() {
        let row = expected.iter().position(|a| *a as usize == assignment);
        assert_eq!(*position, row.map_or(NOWHERE, |row| row as u32), "row of assignment {assignment}");
    }
}

pub fn rows_go_out_and_come_back<D: Device>(device: &D) {
    let d = 50;
    let (routing, groups) = grouped_example(device);
    let (rows, assignments) = (num_rows(device, &groups), download_ids(device, &groups.assignments, groups.capacity));
    let (x, out, y) = (values(1, routing.tokens * d), values(2, groups.capacity * d), values(3, routing.tokens * d));
    let mut gathered = upload(device, &vec![7.0; groups.capacity * d]);
    device.gather_rows(&groups, upload(device, &x).all(), gathered.all_mut());
    let mut y_buf = upload(device, &y);
    device.combine_rows(&groups, upload(device, &out).all(), y_buf.all_mut());

    let (mut expected, mut expected_y) = (vec![7.0; groups.capacity * d], y);
    for (row, assignment) in assignments[..rows].iter().enumerate() {
        let token = *assignment as usize / TOP_K;
        for i in 0..d {
            expected[row * d + i] = x[token * d + i];
            expected_y[token * d + i] += out[row * d + i];
        }
    }
    check("rows", &download(device, &gathered), &expected, 0.0);
    check("y", &download(device, &y_buf), &expected_y, 1e-6);
}

pub fn routed_swiglu_and_its_gradient<D: Device>(device: &D) {
    let ff = 20;
    let (routing, groups) = grouped_example(device);
    let (rows, capacity) = (num_rows(device, &groups), groups.capacity);
    let assignments = download_ids(device, &groups.assignments, rows);
    let weights = download(device, &routing.weights);
    let weight = |row: usize| f64::from(weights[assignments[row] as usize]);
    let (gate_up, dact) = (values(1, capacity * 2 * ff), values(2, capacity * ff));
    let row_of = |x: &[f64], r: usize, n: usize| x[r * n..(r + 1) * n].to_vec();
    let plain: Vec<Vec<f64>> = (0..rows).map(|r| swiglu(ff, &row_of(&gate_up, r, 2 * ff))).collect();
    let expected: Vec<f64> = (0..rows).flat_map(|r| plain[r].iter().map(move |a| a * weight(r))).collect();

    let [mut gate_up_buf, dact_buf, mut act, mut dweights] =
        [&gate_up, &dact, &vec![7.0; capacity * ff], &vec![7.0; capacity]].map(|v| upload(device, v));
    device.routed_swiglu(&groups, &routing, gate_up_buf.all(), act.all_mut());
    check("act", &download(device, &act)[..rows * ff], &expected, 1e-6);
    device.fill(act.all_mut(), 7.0);
    let (gate_up_view, act_view, dweights_view) = (gate_up_buf.all_mut(), act.all_mut(), dweights.all_mut());
    device.routed_swiglu_backward(&groups, &routing, dact_buf.all(), gate_up_view, act_view, dweights_view);
    check("act again", &download(device, &act)[..rows * ff], &expected, 1e-6);
    assert_eq!(download(device, &act)[rows * ff..], vec![7.0; (capacity - rows) * ff], "rows not in use");
    let gradient = |r: usize| {
        let dact = row_of(&dact, r, ff);
        derivative(&row_of(&gate_up, r, 2 * ff), |row| weight(r) * dot(&dact, &swiglu(ff, row)))
    };
    let found = download(device, &gate_up_buf);
    check("d(gate_up)", &found[..rows * 2 * ff], &(0..rows).flat_map(gradient).collect::<Vec<_>>(), 1e-6);
    let expected: Vec<f64> = (0..rows).map(|r| dot(&row_of(&dact, r, ff), &plain[r])).collect();
    check("dweights", &download(device, &dweights)[..rows], &expected, 1e-6);
}
