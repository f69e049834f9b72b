//! What carries the bytes between workers, as users see it: each link that others in between can read is named as such.

use std::collections::BTreeMap;

use toroid_proto as proto;
use toroid_torus::units::names;

/// TCP as it is: `--links-plain`, or `--links tcp`.
const PLAIN: &str = "tcp";
/// Workers with plain links that are named together.
const MAX_NAMED: usize = 8;

/// "3 shm, 1 tcp in clear text"; "-" where there are none.
pub fn in_words(links: &BTreeMap<String, u32>) -> String {
    let word = |(kind, num): (&String, &u32)| {
        let clear = if kind == PLAIN { " in clear text" } else { "" };
        format!("{num} {kind}{clear}")
    };
    let words: Vec<String> = links.iter().map(word).collect();
    if words.is_empty() { "-".into() } else { words.join(", ") }
}

/// The links of all places, and which workers have plain ones; `None` while none are up. Each link has two ends.
pub fn of_job(job: &proto::Job) -> Option<String> {
    let mut ends: BTreeMap<String, u32> = BTreeMap::new();
    for (kind, num) in job.places.iter().flat_map(|place| &place.links) {
        *ends.entry(kind.clone()).or_default() += num;
    }
    if ends.is_empty() {
        return None;
    }
    let mut text = format!("ends of links: {}", in_words(&ends));
    let plain: Vec<&str> =
        job.places.iter().filter(|p| p.links.contains_key(PLAIN)).map(|p| p.worker_id.as_str()).collect();
    if !plain.is_empty() {
        text += &format!("; whoever is in between can read those of {}", names(plain, MAX_NAMED));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(kinds: &[(&str, u32)]) -> BTreeMap<String, u32> {
        kinds.iter().map(|(kind, num)| (kind.to_string(), *num)).collect()
    }

    #[test]
    fn links_that_others_can_read_are_named() {
        assert_eq!(in_words(&links(&[])), "-");
        assert_eq!(in_words(&links(&[("tls", 1), ("shm", 3), ("tcp", 2)])), "3 shm, 2 tcp in clear text, 1 tls");
        let place = |worker_id: &str, kinds: &[(&str, u32)]| proto::PlaceInfo {
            worker_id: worker_id.into(),
            links: links(kinds),
            ..Default::default()
        };
        let job = |places| proto::Job { places, ..Default::default() };
        assert_eq!(of_job(&job(vec![place("w0", &[])])), None);
        let closed = job(vec![place("w0", &[("shm", 1), ("tls", 2)]), place("w1", &[("shm", 1)])]);
        assert_eq!(of_job(&closed).as_deref(), Some("ends of links: 2 shm, 2 tls"));
        let open = job(vec![place("w0", &[("tls", 1)]), place("w1", &[("tcp", 1)])]);
        let expected = "ends of links: 1 tcp in clear text, 1 tls; whoever is in between can read those of w1";
        assert_eq!(of_job(&open).as_deref(), Some(expected));
    }
}
