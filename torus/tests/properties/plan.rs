//! Plans against figures computed by hand. `tiny` has 4 layers, d 128, 4 heads and 2 KV heads of 32, 8 experts of width 128, 128 tokens
//! a sample and a vocabulary of 512; a micro-batch of 4 samples is 512 tokens.

use toroid_torus::job::{JobSpec, parse};
use toroid_torus::plan::{Failures, Kind, Machine, Plan, daly, plan};

/// Links cost nothing.
const IDEAL: Machine = Machine {
    flops: 1e9,
    memory_bytes_per_s: f64::INFINITY,
    tp_bytes_per_s: f64::INFINITY,
    link_bytes_per_s: f64::INFINITY,
    latency_s: 0.0,
};
const FAILURES: Failures = Failures { mtbf_s: 1e8, detect_s: 5.0, restore_s: 120.0 };

fn job(keys: &str) -> JobSpec {
    parse(&format!("steps = 100\ndata.path = 'text'\n{keys}")).expect("a job")
}

fn planned(keys: &str) -> Plan {
    plan(&job(keys), &IDEAL, &FAILURES)
}

const CUBE: &str = "shape = { tp = 2, pp = 2, dp = 2 }";

/// A layer of one of two TP ranks has 2 norms of 128, `wq` and `wo` of 8,192, `wk` and `wv` of 4,096, `w13` of 131,072, `w2` of 65,536,
/// the router of 1,024, `shared13` of 16,384 and `shared2` of 8,192: 247,040. Two layers with half of the embedding are 526,848, with
/// half of the head and the norm 526,976.
#[test]
fn memory_is_what_one_counts_by_hand() {
    let memory = &planned(CUBE).memory;
    assert_eq!([memory[0].parameters, memory[1].parameters], [4 * 526_848, 4 * 526_976]);
    assert_eq!(memory[1].gradients, 4 * 526_976);
    assert_eq!(memory[0].shard, 12 * 526_848 / 2);
    assert_eq!(memory[0].second_shard, 16 * 526_848 / 2);
    // Of 512 tokens, by layer: attention 1 + 128 + 128 + 64 + 2 a token; routing 9 a token, 2 a row of 1,024, 16; groups 2 a row, 5;
    // experts 257 a token, 256 a row, 128 a token.
    let layer = 512 * 323 + (512 * 9 + 2 * 1024 + 16) + (2 * 1024 + 5) + (512 * 257 + 1024 * 256 + 512 * 128);
    let (slot, evaluation) = (2 * layer + 512 + 3 * 512 * 128, layer + 512 + 2 * 512 * 128);
    assert_eq!(memory[0].activations, 4 * (2 * slot + evaluation), "two in flight");
    // Split backwards keep 2 * 128 + 128 + 8 + 64 a token and 128 a row more.
    let kept = 2 * (512 * 456 + 1024 * 128);
    let zero_bubble = &planned(&format!("pipeline.schedule = 'zero-bubble'\n{CUBE}")).memory;
    assert_eq!(zero_bubble[0].activations, 4 * (2 * (slot + kept) + evaluation));
    assert!(zero_bubble[1].activations > memory[1].activations + 4 * slot, "the last stage has two in flight, too");
    // Recomputing keeps 128 a token and layer, and all of those between the two parts of a backward: one in the first stage, two in the last.
    let (inputs, all) = (2 * 512 * 128, 2 * layer + kept);
    let ends = slot - 2 * layer;
    let recompute = &planned(&format!("recompute = true\n{CUBE}")).memory;
    assert_eq!(recompute[0].activations, 4 * (2 * (inputs + ends) + evaluation));
    let both = &planned(&format!("recompute = true\npipeline.schedule = 'zero-bubble'\n{CUBE}")).memory;
    assert_eq!(both[0].activations, 4 * (2 * (inputs + ends) + all + evaluation));
    assert!(both[1].activations > recompute[1].activations + 4 * 2 * all);
    assert_eq!(memory[0].replay, 2 * 16 * 526_848 / 2);
    assert_eq!(memory[0].checkpoint, memory[0].shard);
    // One neighbour within the host, two more in the row, one in the column.
    assert_eq!(memory[0].links, (4 << 20) + 3 * (512 << 10));
    let of_all = 2 * memory[0].parameters + 2 * memory[0].shard + memory[0].second_shard + memory[0].replay;
    assert_eq!(memory[0].total(), of_all + memory[0].activations + memory[0].scratch + memory[0].links);
}

/// Of the partitions above; keys and values of 16 sequences of 128 tokens are 2 * 32 numbers of one of two TP ranks, in 2 layers.
#[test]
fn a_policy_needs_room_for_models_that_it_asks_and_for_its_answers() {
    let policy = "kind = 'ppo'\nppo = { stop_token = 0, form.tokens = [1] }";
    let memory = &planned(&format!("{policy}\n{CUBE}")).memory;
    assert_eq!(memory[0].frozen, memory[0].parameters, "the reference");
    assert_eq!(memory[0].cache, 4 * 2 * 16 * 128 * 64);
    let of = |name| memory[0].parts().into_iter().find(|(found, _)| *found == name).map(|(_, bytes)| bytes);
    assert_eq!(of("frozen models"), Some(memory[0].frozen));
    assert_eq!(of("cache of generation"), Some(memory[0].cache));
    assert_eq!(memory[0].device_bytes(), memory[0].total() - memory[0].host - memory[0].links);
    let scored = "kind = 'ppo'\nppo = { stop_token = 0, reward_model = 'r', side_by_side = 4 }";
    let both = &planned(&format!("{scored}\n{CUBE}")).memory;
    assert_eq!((both[1].frozen, both[1].cache), (2 * both[1].parameters, memory[1].cache / 4));
    let sft = &planned(&format!("kind = 'sft'\n{CUBE}")).memory[0];
    assert_eq!((sft.frozen, sft.cache, sft.parts().len()), (0, 0, 9));
}

#[test]
fn traffic_is_what_the_formulas_of_the_design_give() {
    let of = |plan: &Plan, kind: Kind| {
        let t = plan.traffic.iter().find(|t| t.kind == kind).expect("every kind is there");
        (t.bytes, t.messages)
    };
    let cube = planned(CUBE);
    // 8 micro-batches, 4 sums in the forward and in the backward and one at the end of the model, of 512 * 128 values; two routers.
    assert_eq!(of(&cube, Kind::TpSums), (8 * 9 * 4 * 512 * 128 + 4 * 2 * 1024, 2 * (8 * 9 + 1)));
    assert_eq!(of(&cube, Kind::StageTransfers), (8 * 4 * 512 * 128, 8));
    assert_eq!(of(&cube, Kind::ReduceScatter), (4 * 526_976 / 2, 1));
    assert_eq!(of(&cube, Kind::AllGather), (4 * 526_976 / 2, 1));
    assert_eq!(of(&cube, Kind::Seal), (4 * 526_976 / 2 + 16, 2));
    // 5 sums and the load of 4 layers' 8 experts, to 3 in the row and 1 in the column.
    assert_eq!(of(&cube, Kind::Commit), (4 * 8 * 37, 4));

    let large = planned("preset = '67b'\nshape = { tp = 8, pp = 4, dp = 64 }");
    assert_eq!(of(&large, Kind::ReduceScatter).1, 14, "an 8 x 8 torus");
    assert_eq!(of(&large, Kind::Commit).1, 63 + 31, "188 both ways and not 4,094");
    let alone = planned("fault_tolerance.redundancy = false\nshape.dp = 4");
    assert_eq!(of(&alone, Kind::Seal), (0, 0));
    assert_eq!((alone.memory[0].second_shard, alone.memory[0].replay), (0, 0));
    assert_eq!(planned("fault_tolerance.replay = false\nshape.dp = 4").memory[0].replay, 0);
}

/// Weights that a token meets: 49,152 of attention, 9 * 16,384 of experts and 1,024 of the router in each of 4 layers, 65,536 of the head.
#[test]
fn a_step_of_one_worker_takes_its_operations() {
    let products = 2.0 * 512.0 * (4.0 * 197_632.0 + 65_536.0);
    let attention = 4.0 * 2.0 * 4.0 * 128.0 * 128.0 * 128.0;
    let plan = planned("");
    let expected = 8.0 * (3.0 * products + 3.5 * attention) / IDEAL.flops;
    assert!((plan.step.total - expected).abs() < 1e-9 * expected, "{} and not {expected}", plan.step.total);
    assert_eq!((plan.num_active_params, plan.tokens_per_step), (2_102_400 - 4 * 6 * 49_152, 4096));
    let of_model = 8.0 * (6.0 * 512.0 * (922_752.0 - 65_536.0) + 3.0 * attention);
    assert!((plan.flops_utilization - of_model / (expected * IDEAL.flops)).abs() < 1e-9);
}

#[test]
fn speeds_are_used_where_they_belong() {
    let at = |machine: Machine| plan(&job(CUBE), &machine, &FAILURES);
    let ideal = at(IDEAL);
    assert_eq!((ideal.step.collectives, ideal.step.optimizer), (0.0, 0.0));
    let slow_links = at(Machine { link_bytes_per_s: 1e6, ..IDEAL });
    let expected = (4 * 526_976 + 4 * 526_976 / 2 + 16 + 4 * 8 * 37) as f64 / 1e6;
    assert!((slow_links.step.collectives - expected).abs() < 1e-9, "{}", slow_links.step.collectives);
    assert!(slow_links.step.pipeline > ideal.step.pipeline);
    let slow_memory = at(Machine { memory_bytes_per_s: 1e6, ..IDEAL });
    assert!((slow_memory.step.optimizer - 2.0 * 28.0 * 263_488.0 / 1e6).abs() < 1e-9);
    let slow_sums = at(Machine { tp_bytes_per_s: 1e6, ..IDEAL });
    assert!(slow_sums.step.pipeline > 8.0 * 9.0 * 4.0 * 512.0 * 128.0 / 1e6);
}

/// Stages of one kind: no embedding's sum, no head of any size.
#[test]
fn the_bubble_of_equal_stages_is_the_closed_formula() {
    let plan = planned("model = { vocab = 256, layers = 16 }\nshape.pp = 4\nbatch.micro_batches = 8");
    let bubble = |name: &str| plan.pipelines.iter().find(|p| p.schedule == name).map(|p| p.bubble_of_equal_stages);
    assert_eq!(bubble("1f1b").map(|b| (1e9 * b).round()), Some((1e9_f64 * 3.0 / 11.0).round()));
    assert_eq!(bubble("interleaved x2").map(|b| (1e9 * b).round()), Some((1e9_f64 * 3.0 / 19.0).round()));
    assert!(bubble("zero-bubble") < bubble("1f1b"));
    for p in &plan.pipelines {
        assert!(p.bubble >= p.bubble_of_equal_stages - 1e-9, "unequal stages idle more: {p:?}");
    }
    assert_eq!(planned("model.layers = 4\nshape.pp = 4").pipelines.len(), 2, "no chunk without a layer");
}

#[test]
fn goodput_is_dalys_formula() {
    assert!((daly(1.0 / 3600.0, 600.0, 120.0) - 0.888_853).abs() < 1e-5, "{}", daly(1.0 / 3600.0, 600.0, 120.0));
    assert_eq!(daly(0.0, 600.0, 120.0), 1.0);
    // Rare failures: half of a segment and the restart are lost each time.
    assert!((daly(1e-6, 600.0, 120.0) - (1.0 - 1e-6 * 420.0)).abs() < 1e-6);
    let keys = "preset = '67b'\nshape = { tp = 8, pp = 4, dp = 64 }";
    let goodput = plan(&job(keys), &Machine { flops: 4e14, ..IDEAL }, &FAILURES).goodput;
    assert!((goodput.failures_per_day - 2048.0 * 86_400.0 / 1e8).abs() < 1e-9);
    assert_eq!((goodput.recovery_s, goodput.checkpoint_interval_s), (5.0, 600.0));
    // Checkpoints of a policy are an iteration apart at least.
    let policy = planned("kind = 'ppo'\ncheckpoint.interval_s = 1e-3\nppo = { stop_token = 0, form.tokens = [1] }");
    assert_eq!(policy.goodput.checkpoint_interval_s, 4.0 * policy.step.total);
    let without = daly(2048.0 / 1e8, 600.0, 125.0);
    assert!((goodput.without_redundancy - without).abs() < 1e-12);
    assert!(1.0 - goodput.with_redundancy < 0.1 * (1.0 - without), "{goodput:?}");
}
