//! Texts from seeds: a language of its own, with duplicates of all kinds.

use toroid_corpus::doc::mix;

pub fn random(seed: u64, n: u64) -> u64 {
    mix(mix(seed).wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// A word of a vocabulary of some thousands, frequent ones first.
pub fn word(seed: u64) -> String {
    const COMMON: [&str; 8] = ["the", "of", "and", "to", "that", "with", "be", "have"];
    const SYLLABLES: [&str; 16] =
        ["ka", "lo", "mi", "ren", "tu", "sa", "vel", "do", "pri", "nim", "or", "ast", "ele", "gu", "hin", "bra"];
    if random(seed, 0).is_multiple_of(3) {
        return COMMON[(random(seed, 1) % 8) as usize].to_owned();
    }
    let num = 2 + random(seed, 2) % 2;
    (0..num).map(|n| SYLLABLES[(random(seed, 3 + n) % 16) as usize]).collect()
}

pub fn sentence(seed: u64) -> String {
    let num = 8 + random(seed, 100) % 12;
    let words: Vec<String> = (0..num).map(|n| word(random(seed, 200 + n))).collect();
    let text = words.join(" ");
    text[..1].to_uppercase() + &text[1..] + "."
}

pub fn text(seed: u64, num_sentences: u64) -> String {
    (0..num_sentences).map(|n| sentence(random(seed, 1000 + n))).collect::<Vec<_>>().join(" ")
}

/// Replaces a share of the words, in thousandths.
pub fn edited(text: &str, seed: u64, per_mille: u64) -> String {
    let change = |(n, old): (usize, &str)| {
        let seed = random(seed, n as u64);
        if seed % 1000 < per_mille { word(mix(seed)) } else { old.to_owned() }
    };
    text.split(' ').enumerate().map(change).collect::<Vec<_>>().join(" ")
}

pub fn json(id: &str, url: &str, text: &str) -> String {
    serde_json::json!({"id": id, "url": url, "text": text}).to_string() + "\n"
}

/// An archive of tar with these files.
pub fn archive(files: impl Iterator<Item = (String, Vec<u8>)>) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, contents) in files {
        let mut header = vec![0; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..135].copy_from_slice(format!("{:011o}", contents.len()).as_bytes());
        header[156] = b'0';
        header[148..156].fill(b' ');
        let sum: u64 = header.iter().map(|b| u64::from(*b)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        archive.extend(&header);
        archive.extend(&contents);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.extend([0; 1024]);
    archive
}
