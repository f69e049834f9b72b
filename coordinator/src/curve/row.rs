//! A row of a curve as text, and read back to the same bits.
//!
//! Curves of jobs that train on dialogues or preferences have four columns more, those of policies eleven besides; which ones a file has is in
//! its first line.

use std::fmt::Write as _;

use toroid_proto::{PolicyStep, StepRecord};
use toroid_torus::ids::Step;

use crate::machine::missing_record;

/// The columns of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Columns {
    #[default]
    Plain,
    /// With `trained_tokens,pairs,correct,ties` before the load of the experts.
    Texts,
    /// With what a [`PolicyStep`] has behind those.
    Policy,
}

/// What all have before the load of the experts, and what some have behind that.
macro_rules! columns {
    () => {
        "step,loss,ce,z_loss,balance_loss,grad_norm,lr,weight_decay,tokens,tokens_per_s,step_s,skipped,epoch,hidden_s,exposed_s"
    };
    (texts) => {
        concat!(columns!(), ",trained_tokens,pairs,correct,ties")
    };
    (policy) => {
        concat!(columns!(texts), ",policy_loss,value_loss,clip_fraction,approx_kl,mean_ratio,score,kl,kl_coef,answer_tokens,stopped,entropy")
    };
}
const PLAIN: &str = concat!(columns!(), ",expert_load");
const TEXTS: &str = concat!(columns!(texts), ",expert_load");
const POLICY: &str = concat!(columns!(policy), ",expert_load");
const NUM_PLAIN_COLUMNS: usize = 15;
const NUM_TEXTS_COLUMNS: usize = 19;
const NUM_POLICY_COLUMNS: usize = 30;

impl Columns {
    const ALL: [Columns; 3] = [Columns::Plain, Columns::Texts, Columns::Policy];

    pub fn header(self) -> &'static str {
        match self {
            Columns::Plain => PLAIN,
            Columns::Texts => TEXTS,
            Columns::Policy => POLICY,
        }
    }

    /// Of a file that begins with this line.
    pub fn of_header(line: &str) -> Option<Columns> {
        Columns::ALL.into_iter().find(|columns| columns.header() == line)
    }

    /// Of a file whose first row this is.
    pub fn of_record(r: &StepRecord) -> Columns {
        match r.policy {
            Some(_) => Columns::Policy,
            None if r.trained_tokens.is_some() || r.pairs > 0 => Columns::Texts,
            None => Columns::Plain,
        }
    }

    /// Of a file whose first row is this line.
    pub fn of_row(line: &str) -> Columns {
        let num = line.split_once(",\"").map_or(0, |(plain, _)| plain.split(',').count());
        Columns::ALL.into_iter().find(|columns| columns.num() == num).unwrap_or_default()
    }

    /// Columns before the last.
    fn num(self) -> usize {
        match self {
            Columns::Plain => NUM_PLAIN_COLUMNS,
            Columns::Texts => NUM_TEXTS_COLUMNS,
            Columns::Policy => NUM_POLICY_COLUMNS,
        }
    }
}

pub fn format(columns: Columns, r: &StepRecord) -> String {
    if r.missing {
        return format_missing(columns, r.step);
    }
    let mut row = format!("{},{},{},{},{},{}", r.step, r.loss, r.ce, r.z_loss, r.balance_loss, r.grad_norm);
    let plain = (r.lr, r.weight_decay, r.tokens, r.tokens_per_s, r.step_s, r.skipped, r.epoch);
    let (lr, weight_decay, tokens, tokens_per_s, step_s, skipped, epoch) = plain;
    let (hidden_s, exposed_s) = (r.hidden_s, r.exposed_s);
    let mut add = |text: std::fmt::Arguments<'_>| row.write_fmt(text).expect("a string takes everything");
    add(format_args!(",{lr},{weight_decay},{tokens},{tokens_per_s},{step_s},{skipped},{epoch},{hidden_s},{exposed_s}"));
    if columns != Columns::Plain {
        let trained = r.trained_tokens.map_or_else(String::new, |num| num.to_string());
        add(format_args!(",{trained},{},{},{}", r.pairs, r.correct, r.ties));
    }
    if columns == Columns::Policy {
        match &r.policy {
            Some(policy) => policy.figures().into_iter().for_each(|(_, figure)| add(format_args!(",{figure}"))),
            None => add(format_args!("{}", ",".repeat(NUM_POLICY_COLUMNS - NUM_TEXTS_COLUMNS))),
        }
    }
    row.push_str(",\"");
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

fn format_missing(columns: Columns, step: u64) -> String {
    format!("{step}{},\"\"\n", ",".repeat(columns.num() - 1))
}

/// `None` where all are empty.
fn parse_policy(columns: &[&str]) -> Result<Option<PolicyStep>, String> {
    if columns.iter().all(|c| c.is_empty()) {
        return Ok(None);
    }
    let mut figures = PolicyStep::default().figures();
    for ((name, figure), column) in figures.iter_mut().zip(columns) {
        *figure = number(column, name)?;
    }
    Ok(Some(PolicyStep::of_figures(figures.map(|(_, figure)| figure))))
}

pub fn parse(line: &str) -> Result<StepRecord, String> {
    let (plain, load) = line.split_once(",\"").ok_or("it has no quoted last column")?;
    let load = load.strip_suffix('"').ok_or("its last column does not end with a quote")?;
    let columns: Vec<&str> = plain.split(',').collect();
    let of_texts = match columns.len() {
        NUM_PLAIN_COLUMNS => ["", "0", "0", "0"],
        NUM_TEXTS_COLUMNS | NUM_POLICY_COLUMNS => [columns[15], columns[16], columns[17], columns[18]],
        found => {
            let expected = format!("{NUM_PLAIN_COLUMNS}, {NUM_TEXTS_COLUMNS} or {NUM_POLICY_COLUMNS}");
            return Err(format!("it has {found} columns before the last, expected {expected}"));
        }
    };
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
        trained_tokens: Some(of_texts[0]).filter(|t| !t.is_empty()).map(|t| number(t, "trained_tokens")).transpose()?,
        pairs: number(of_texts[1], "pairs")?,
        correct: number(of_texts[2], "correct")?,
        ties: number(of_texts[3], "ties")?,
        policy: parse_policy(columns.get(NUM_TEXTS_COLUMNS..).unwrap_or_default())?,
    })
}

fn number<T: std::str::FromStr>(text: &str, column: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("`{text}` is no {column}"))
}
