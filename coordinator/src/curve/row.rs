//! A row of a curve as text, and read back to the same bits.

use std::fmt::Write as _;

use toroid_proto::StepRecord;
use toroid_torus::ids::Step;

use crate::machine::missing_record;

pub const HEADER: &str = "step,loss,ce,z_loss,balance_loss,grad_norm,lr,weight_decay,tokens,tokens_per_s,step_s,skipped,epoch,hidden_s,exposed_s,expert_load";
const NUM_PLAIN_COLUMNS: usize = 15;

pub fn format(r: &StepRecord) -> String {
    if r.missing {
        return format_missing(r.step);
    }
    let mut row = format!("{},{},{},{},{},{}", r.step, r.loss, r.ce, r.z_loss, r.balance_loss, r.grad_norm);
    let columns = (r.lr, r.weight_decay, r.tokens, r.tokens_per_s, r.step_s, r.skipped, r.epoch);
    let (lr, weight_decay, tokens, tokens_per_s, step_s, skipped, epoch) = columns;
    let (hidden_s, exposed_s) = (r.hidden_s, r.exposed_s);
    let written = write!(
        row,
        ",{lr},{weight_decay},{tokens},{tokens_per_s},{step_s},{skipped},{epoch},{hidden_s},{exposed_s},\""
    );
    written.expect("a string takes everything");
    let num_experts = r.expert_load.len() / (r.num_layers as usize).max(1);
    for (i, load) in r.expert_load.iter().enumerate() {
        let separator = match i {
            0 => "",
            i if num_experts > 0 && i % num_experts == 0 => ";",
            _ => " ",
        };
        write!(row, "{separator}{load}").expect("a string takes everything");
    }
    row.push_str("\"\n");
    row
}

fn format_missing(step: u64) -> String {
    format!("{step}{},\"\"\n", ",".repeat(NUM_PLAIN_COLUMNS - 1))
}

pub fn parse(line: &str) -> Result<StepRecord, String> {
    let (plain, load) = line.split_once(",\"").ok_or("it has no quoted last column")?;
    let load = load.strip_suffix('"').ok_or("its last column does not end with a quote")?;
    let columns: Vec<&str> = plain.split(',').collect();
    if columns.len() != NUM_PLAIN_COLUMNS {
        return Err(format!("it has {} columns before the last, expected {NUM_PLAIN_COLUMNS}", columns.len()));
    }
    if load.is_empty() && columns[1..].iter().all(|c| c.is_empty()) {
        return Ok(missing_record(Step::new(number(columns[0], "step")?)));
    }
    let layers: Vec<&str> = if load.is_empty() { Vec::new() } else { load.split(';').collect() };
    let counts = layers.iter().flat_map(|l| l.split(' '));
    let expert_load: Result<Vec<u64>, String> = counts.map(|c| number(c, "a count of expert_load")).collect();
    Ok(StepRecord {
        step: number(columns[0], "step")?,
        loss: number(columns[1], "loss")?,
        ce: number(columns[2], "ce")?,
        z_loss: number(columns[3], "z_loss")?,
        balance_loss: number(columns[4], "balance_loss")?,
        grad_norm: number(columns[5], "grad_norm")?,
        lr: number(columns[6], "lr")?,
        weight_decay: number(columns[7], "weight_decay")?,
        tokens: number(columns[8], "tokens")?,
        tokens_per_s: number(columns[9], "tokens_per_s")?,
        step_s: number(columns[10], "step_s")?,
        skipped: number(columns[11], "skipped")?,
        epoch: number(columns[12], "epoch")?,
        hidden_s: number(columns[13], "hidden_s")?,
        exposed_s: number(columns[14], "exposed_s")?,
        expert_load: expert_load?,
        num_layers: layers.len() as u32,
        missing: false,
    })
}

fn number<T: std::str::FromStr>(text: &str, column: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("`{text}` is no {column}"))
}
