//! What a job came to, as a table.

use toroid_proto as proto;
use toroid_proto::json::state_word;

use crate::format::{bytes, count, duration, percent, rate, short_count, table};
use crate::{incidents, status};

/// Of a job with its curve.
pub fn text(job: &proto::Job) -> String {
    let mut rows = vec![row("job", format!("{}, {}: {}", job.id, state_word(job.state()), job.reason))];
    if let Some(s) = &job.shape {
        let places = format!("tp {} x pp {} x dp {} on a {} x {} torus", s.tp, s.pp, s.dp, s.tp * s.dx, s.pp * s.dy);
        rows.push(row("model", format!("{} parameters, {places}", short_count(job.num_params))));
    }
    let known = || job.curve.iter().filter(|r| !r.missing);
    if let (Some(first), Some(last)) = (known().next(), known().next_back()) {
        let losses = format!("{:.4} at step {}, {:.4} at step {}", first.loss, first.step, last.loss, last.step);
        rows.push(row("loss", losses));
        if let (Some(before), Some(after)) = (&first.policy, &last.policy) {
            let scores =
                format!("{:.4} at step {}, {:.4} at step {}", before.score, first.step, after.score, last.step);
            rows.push(row("score", scores));
            rows.push(row("policy", status::policy(after)));
        }
        rows.push(row("speed", speed(known())));
        rows.push(row("goodput", format!("{} of the time went into steps that count", percent(job.goodput))));
    }
    if let Some(last) = job.incidents.last() {
        rows.push(row("incidents", incidents::totals(job)));
        rows.push(row("the last", incidents::line(last)));
    }
    rows.extend(validation(&job.validations));
    let sources = job.inputs.iter().flat_map(|inputs| &inputs.sources).map(status::source);
    rows.extend(sources.enumerate().map(|(i, source)| row(if i == 0 { "sources" } else { "" }, source)));
    rows.push(row("checkpoints", checkpoints(&job.checkpoints)));
    if !job.folder.is_empty() {
        rows.push(row("curve", format!("{}/curve.csv", job.folder)));
    }
    table(&rows)
}

fn row(name: &str, value: String) -> Vec<String> {
    vec![name.to_string(), value]
}

fn speed<'a>(known: impl Iterator<Item = &'a proto::StepRecord> + Clone) -> String {
    let tokens: u64 = known.clone().map(|r| r.tokens).sum();
    let step_s: f64 = known.clone().map(|r| r.step_s).sum();
    let per_s = rate(tokens as f64 / step_s);
    format!("{per_s} tokens/s over {} steps, {} tokens in {}", known.count(), count(tokens), duration(step_s))
}

/// Before and after, in both units.
fn validation(validations: &[proto::Validation]) -> Vec<Vec<String>> {
    let (Some(first), Some(last)) = (validations.first(), validations.last()) else { return Vec::new() };
    let change = |unit: &str, value: fn(&proto::Validation) -> f64| match first.step == last.step {
        true => format!("{:.4} {unit} at step {}", value(first), first.step),
        false => format!("{:.4} {unit} at step {}, {:.4} at step {}", value(first), first.step, value(last), last.step),
    };
    let of_bytes = row("", change("bits per byte", |v| v.bits_per_byte));
    // Of tokens that are no bytes it is not known.
    let is_known = last.bits_per_byte != 0.0;
    if last.correct + last.ties > 0 {
        return vec![row("validation", change("nats per pair", |v| v.ce)), row("", status::accuracy(last))];
    }
    std::iter::once(row("validation", change("nats per token", |v| v.ce))).chain(is_known.then_some(of_bytes)).collect()
}

fn checkpoints(checkpoints: &[proto::CheckpointInfo]) -> String {
    match checkpoints.iter().max_by_key(|c| c.step) {
        None => "none".into(),
        Some(newest) => {
            let kept = checkpoints.len();
            format!("{kept} kept, the newest of step {}, {}: {}", newest.step, bytes(newest.bytes), newest.path)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_done_job_shows_what_it_came_to() {
        let step = |step, loss| proto::StepRecord { step, loss, tokens: 8192, step_s: 0.5, ..Default::default() };
        let validation =
            |step, ce| proto::Validation { step, ce, bits_per_byte: ce / 2f64.ln(), tokens: 64, ..Default::default() };
        let job = proto::Job {
            id: "tiny-1".into(),
            state: proto::JobState::Done.into(),
            reason: "all 200 steps are made".into(),
            shape: Some(proto::Shape { tp: 2, pp: 2, dp: 2, dx: 2, dy: 1 }),
            num_params: 1_900_000,
            curve: vec![step(1, 5.55), step(2, 5.25)],
            validations: vec![validation(0, 5.5), validation(2, 2.75)],
            goodput: 0.981,
            checkpoints: vec![proto::CheckpointInfo {
                step: 2,
                path: "/r/checkpoints/step-2".into(),
                bytes: 27_100_000,
                ..Default::default()
            }],
            folder: "/r".into(),
            ..Default::default()
        };
        assert_eq!(
            text(&job),
            "job          tiny-1, done: all 200 steps are made\n\
             model        1.9 M parameters, tp 2 x pp 2 x dp 2 on a 4 x 2 torus\n\
             loss         5.5500 at step 1, 5.2500 at step 2\n\
             speed        16,384 tokens/s over 2 steps, 16,384 tokens in 1.0 s\n\
             goodput      98.1% of the time went into steps that count\n\
             validation   5.5000 nats per token at step 0, 2.7500 at step 2\n\
             \x20            7.9348 bits per byte at step 0, 3.9674 at step 2\n\
             checkpoints  1 kept, the newest of step 2, 27.1 MB: /r/checkpoints/step-2\n\
             curve        /r/curve.csv\n"
        );
    }

    #[test]
    fn a_policy_shows_what_its_answers_were_worth() {
        let policy =
            |score| proto::PolicyStep { score, kl: 2.0, answer_tokens: 12.0, stopped: 1.0, ..Default::default() };
        let step =
            |step, score| proto::StepRecord { step, step_s: 0.5, policy: Some(policy(score)), ..Default::default() };
        let job = proto::Job { curve: vec![step(1, 0.125), step(2, 0.5), step(3, 0.875)], ..Default::default() };
        let text = text(&job);
        assert!(text.contains("score        0.1250 at step 1, 0.8750 at step 3\n"), "{text}");
        assert!(text.contains("policy       score 0.8750; KL 2.000 nats an answer"), "{text}");
    }

    #[test]
    fn a_job_that_never_began_says_why() {
        let job = proto::Job {
            id: "tiny-1".into(),
            state: proto::JobState::Failed.into(),
            reason: "cannot read /nowhere".into(),
            ..Default::default()
        };
        assert_eq!(
            text(&job),
            "job          tiny-1, failed: cannot read /nowhere\n\
             checkpoints  none\n"
        );
    }
}
