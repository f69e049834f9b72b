//! The behaviour of token files and data sets, through their public interface.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use toroid_tokens::{BYTES_TOKENIZER, file_of};
use toroid_torus::job::{self, JobSpec, SourceConfig};
use toroid_torus::mixture::Drawn;

use super::source::Listing;
use super::text::HEADER_BYTES;
use super::*;

fn config(path: &Path, extensions: &[&str]) -> SourceConfig {
    let extensions = extensions.iter().map(|e| e.to_string()).collect();
    SourceConfig { extensions, ..SourceConfig::unnamed(path) }
}

/// Writes `files` (path, contents) below a new folder, in the order given.
fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, contents) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }
    folder
}

fn prepared(config: &SourceConfig) -> Result<Tokens, DataError> {
    let cache = tempfile::tempdir().unwrap();
    prepare(config, cache.path(), &mut |_: u64| {})
}

/// All of them, as bytes.
fn bytes(tokens: &Tokens) -> Vec<u8> {
    read_all(tokens).into_iter().map(|token| u8::try_from(token).unwrap()).collect()
}

fn read_all(tokens: &Tokens) -> Vec<u32> {
    let mut all = vec![0; tokens.len() as usize];
    tokens.read(0, &mut all);
    all
}

fn check_text(config: &SourceConfig, expected: &[u8]) {
    let tokens = prepared(config).unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes(&tokens)), String::from_utf8_lossy(expected));
    assert_eq!(tokens.len(), expected.len() as u64);
    assert_eq!(tokens.digest(), *blake3::hash(expected).as_bytes());
}

fn check_error(config: &SourceConfig, expected: &[&str]) {
    let error = prepared(config).map(|t| t.source_summary()).unwrap_err().to_string();
    for part in expected {
        assert!(error.contains(part), "`{part}` is not in `{error}`");
    }
}

/// Paths are compared as bytes: `-` and `.` come before `/`.
#[test]
fn a_folder_is_read_in_the_order_of_relative_paths() {
    let files: [(&str, &[u8]); 5] =
        [("b.rs", b"5"), ("a/z.rs", b"3"), ("a-1/x.rs", b"1"), ("a.rs", b"2"), ("a/zz/a.rs", b"4")];
    let text = folder(&files);
    check_text(&config(text.path(), &["rs"]), b"1\n2\n3\n4\n5");
    let mut reversed = files;
    reversed.reverse();
    let elsewhere = folder(&reversed);
    let digest = |f: &tempfile::TempDir| prepared(&config(f.path(), &["rs"])).unwrap().digest();
    assert_eq!(digest(&text), digest(&elsewhere));
}

#[test]
fn extensions_choose_files_by_the_end_of_their_names() {
    let text =
        folder(&[("a.rs", b"a"), ("b.md", b"b"), ("c.tar.gz", b"c"), ("rs", b"d"), ("e.RS", b"e"), ("f.rs", b"")]);
    check_text(&config(text.path(), &["rs"]), b"a");
    check_text(&config(text.path(), &[".md", "tar.gz"]), b"b\nc");
    check_error(&config(text.path(), &["py", "c"]), &["no file in it that ends with .py or .c", "data.extensions"]);
}

#[test]
fn without_extensions_a_folder_gives_the_files_that_are_text() {
    let late = |tail: &[u8]| [&vec![b'x'; (1 << 20) - 1], tail].concat();
    // A character over the border of two reads is text; half of one, and Latin-1, are not.
    let (cut, torn) = (late("ü".as_bytes()), late(&"ü".as_bytes()[..1]));
    let files: [(&str, &[u8]); 6] = [
        ("1 text", "größer".as_bytes()),
        ("2 nul", b"a\0b"),
        ("3 latin", b"gr\xf6\xdfer"),
        ("4 cut", &cut),
        ("5 torn", &torn),
        ("6 empty", b""),
    ];
    let text = folder(&files);
    check_text(&config(text.path(), &[]), &[files[0].1, b"\n", &cut].concat());
    let binary = folder(&files[1..3]);
    check_error(&config(binary.path(), &[]), &["none of its 2 files is UTF-8 text"]);
}

#[test]
fn one_file_is_taken_as_it_is() {
    let text = folder(&[("a.bin", b"a\0\xff")]);
    check_text(&config(&text.path().join("a.bin"), &[]), b"a\0\xff");
    assert!(
        prepared(&config(&text.path().join("a.bin"), &[])).unwrap().source_summary().starts_with("3 bytes of text in ")
    );
}

#[test]
fn text_ends_at_max_bytes_exactly() {
    let text = folder(&[("a", b"123"), ("b", b"456"), ("c", b"789")]);
    let all = b"123\n456\n789";
    for max in 1..=all.len() + 1 {
        let config = SourceConfig { max_bytes: max as u64, ..config(text.path(), &[]) };
        check_text(&config, &all[..max.min(all.len())]);
    }
}

#[test]
fn links_are_not_followed() {
    let text = folder(&[("a.rs", b"a")]);
    let outside = folder(&[("b.rs", b"b")]);
    std::os::unix::fs::symlink(outside.path(), text.path().join("folder")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("b.rs"), text.path().join("b.rs")).unwrap();
    std::os::unix::fs::symlink(text.path(), text.path().join("loop")).unwrap();
    check_text(&config(text.path(), &["rs"]), b"a");
}

#[test]
fn the_summary_says_what_it_is_made_of() {
    let text = folder(&[("a.rs", &[b'a'; 123_456]), ("b.rs", b"b"), ("c.md", b"c")]);
    let root = text.path().canonicalize().unwrap();
    let summary = |extensions| prepared(&config(text.path(), extensions)).unwrap().source_summary();
    assert_eq!(
        summary(&["rs"]),
        format!("2 files, 123.5 kB of .rs text under {}", root.display()).replace("123.5 kB", "0.1 MB")
    );
    assert_eq!(summary(&["md"]), format!("1 file, 1 bytes of .md text under {}", root.display()));
}

/// Counts how often `prepare` makes the file rather than find it.
fn prepare_counted(config: &SourceConfig, cache: &Path) -> (Tokens, usize) {
    let mut last = None;
    let tokens = prepare(config, cache, &mut |bytes: u64| last = Some(bytes)).unwrap();
    assert!(last.is_none_or(|last| last == tokens.len()), "progress ended at {last:?} of {}", tokens.len());
    let was_made = !tokens.was_cached();
    (tokens, usize::from(was_made))
}

/// A file that is replaced by a rename is another one: what is mapped stays.
#[test]
fn a_file_that_is_written_to_is_refused_and_one_that_is_replaced_is_not() {
    let folder = folder(&[("a.txt", b"to be or not to be")]);
    let cache = tempfile::tempdir().unwrap();
    let tokens = prepare(&config(folder.path(), &[]), cache.path(), &mut |_: u64| {}).unwrap();
    tokens.check_file(0).unwrap();
    let path = tokens.files[0].path.clone();
    let (moved, whole) = (path.with_extension("moved"), std::fs::read(&path).unwrap());
    std::fs::rename(&path, &moved).unwrap();
    tokens.check_file(0).unwrap();
    std::fs::write(&path, &whole).unwrap();
    tokens.check_file(0).unwrap();
    std::fs::rename(&moved, &path).unwrap();
    tokens.check_file(0).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let error = tokens.check_file(0).unwrap_err().to_string();
    assert!(
        error.contains("was written to while the job reads it") && error.contains(path.to_str().unwrap()),
        "{error}"
    );
}

#[test]
fn a_token_file_is_made_once_and_again_when_its_source_changes() {
    let text = folder(&[("a.rs", b"hello")]);
    let cache = tempfile::tempdir().unwrap();
    let cache = cache.path().join("not/yet/there");
    let rust = config(text.path(), &["rs"]);
    assert_eq!(prepare_counted(&rust, &cache).1, 1);
    assert_eq!(prepare_counted(&rust, &cache).1, 0);
    // The share of the samples is not of the tokens.
    let other = SourceConfig { name: "other".into(), weight: Some(2.0), ..rust.clone() };
    assert_eq!(prepare_counted(&other, &cache).1, 0);
    assert_eq!(prepare_counted(&SourceConfig { max_bytes: 2, ..rust.clone() }, &cache).1, 1);
    assert_eq!(prepare_counted(&config(text.path(), &["rs", "md"]), &cache).1, 1);

    fs::write(text.path().join("a.rs"), "world!").unwrap();
    let (tokens, made) = prepare_counted(&rust, &cache);
    assert_eq!((&bytes(&tokens)[..], made), (&b"world!"[..], 1));
    fs::write(text.path().join("b.rs"), "new").unwrap();
    assert_eq!(bytes(&prepare_counted(&rust, &cache).0), b"world!\nnew");
    // The same size at another time is another file.
    let file = fs::File::options().write(true).open(text.path().join("b.rs")).unwrap();
    file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(5)).unwrap();
    assert_eq!(prepare_counted(&rust, &cache).1, 1);
    let left: Vec<_> = fs::read_dir(&cache).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(left.iter().all(|name| name.ends_with(".tokens") || name.ends_with(".lock")), "{left:?}");
}

#[test]
fn of_several_that_start_at_once_one_makes_the_file() {
    let text = folder(&[("a.rs", &[b'x'; 100_000])]);
    let cache = tempfile::tempdir().unwrap();
    let (config, barrier) = (config(text.path(), &["rs"]), Barrier::new(8));
    let made: usize = std::thread::scope(|scope| {
        let start = || {
            barrier.wait();
            // Whoever waits is told of what another writes, which is more than the text.
            let tokens = prepare(&config, cache.path(), &mut |_: u64| {}).unwrap();
            assert_eq!(bytes(&tokens), [b'x'; 100_000]);
            usize::from(!tokens.was_cached())
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    assert_eq!(made, 1);
}

#[test]
fn a_garbled_token_file_is_made_anew() {
    let text = folder(&[("a.rs", b"hello")]);
    let cache = tempfile::tempdir().unwrap();
    // The note says what is beyond it.
    let config = SourceConfig { max_bytes: 4, ..config(text.path(), &["rs"]) };
    let (tokens, _) = prepare_counted(&config, cache.path());
    let digest = tokens.digest();
    drop(tokens);
    let key = Listing::of(&config).unwrap().key().to_hex();
    let path = cache.path().join(format!("{key}.tokens"));
    let good = fs::read(&path).unwrap();
    let header = HEADER_BYTES;
    // The tokens and the note, too: what a disk has spoilt since is not believed because the header is right.
    let flipped = (0..good.len()).map(|byte| {
        let mut bytes = good.clone();
        bytes[byte] ^= 1 << (byte % 8);
        bytes
    });
    let cut = [0, 1, header - 1, header, good.len() - 1].map(|len| good[..len].to_vec());
    for garbled in flipped.chain(cut).chain([[&good[..], b"!"].concat()]) {
        // A new inode, as a new disk would have: maps of the old one stay what they are.
        fs::remove_file(&path).unwrap();
        fs::write(&path, &garbled).unwrap();
        let (tokens, made) = prepare_counted(&config, cache.path());
        assert_eq!((made, tokens.digest()), (1, digest));
        assert_eq!(fs::read(&path).unwrap(), good);
    }
}

/// Counts what it is told, and says that it is over when it should be.
#[derive(Default)]
struct Attended {
    num_advances: usize,
    waits: Vec<bool>,
    is_over: bool,
}

impl Attend for Attended {
    fn advance(&mut self, _: u64) {
        self.num_advances += 1;
    }

    fn waits(&mut self, is_waiting: bool) {
        self.waits.push(is_waiting);
    }

    fn is_over(&self) -> bool {
        self.is_over && !self.waits.is_empty()
    }
}

/// A text whose token file another is about to make: it has the lock. `partial`: where it writes to.
struct Locked {
    config: SourceConfig,
    cache: tempfile::TempDir,
    partial: std::path::PathBuf,
    _text: tempfile::TempDir,
    lock: fs::File,
}

fn locked() -> Locked {
    let text = folder(&[("a.rs", b"hello")]);
    let cache = tempfile::tempdir().unwrap();
    let config = config(text.path(), &["rs"]);
    let key = Listing::of(&config).unwrap().key().to_hex();
    let lock = fs::File::create(cache.path().join(format!("{key}.lock"))).unwrap();
    lock.lock().unwrap();
    let partial = cache.path().join(format!("{key}.partial"));
    Locked { config, cache, partial, _text: text, lock }
}

const LONG: Duration = Duration::from_secs(600);

/// Waiting is said, is no progress, and ends with the epoch.
#[test]
fn waiting_for_another_that_makes_the_file_is_no_progress_and_ends_with_the_epoch() {
    let locked = locked();
    let mut attended = Attended { is_over: true, ..Attended::default() };
    let result = text::prepare_within(&locked.config, locked.cache.path(), LONG, &mut attended);
    assert!(matches!(result, Err(DataError::Over)), "{result:?}");
    assert_eq!((attended.num_advances, attended.waits), (0, vec![true, false]));
    drop(locked.lock);
}

/// The one that is waited for is another process; here it writes whenever the waiting one has told what it saw before.
#[test]
fn what_the_other_writes_is_progress() {
    struct Other<'a> {
        locked: &'a Locked,
        seen: Vec<u64>,
    }
    impl Other<'_> {
        fn goes_on(&self) {
            match self.seen.len() as u64 {
                len @ 0..3 => fs::write(&self.locked.partial, vec![0; len as usize + 1]).unwrap(),
                _ => self.locked.lock.unlock().unwrap(),
            }
        }
    }
    impl Attend for Other<'_> {
        fn advance(&mut self, bytes: u64) {
            self.seen.push(bytes);
            self.goes_on();
        }

        fn waits(&mut self, is_waiting: bool) {
            if is_waiting {
                self.goes_on();
            }
        }
    }
    let locked = locked();
    let mut other = Other { locked: &locked, seen: Vec::new() };
    let tokens = text::prepare_within(&locked.config, locked.cache.path(), LONG, &mut other).unwrap();
    assert_eq!((&bytes(&tokens)[..], tokens.was_cached()), (&b"hello"[..], false));
    // Bytes of the text follow once the file is made here.
    assert_eq!(other.seen[..3], [1, 2, 3]);
}

#[test]
fn who_has_the_lock_and_does_nothing_is_not_waited_for() {
    let locked = locked();
    let mut attended = Attended::default();
    let patience = Duration::from_millis(20);
    let tokens = text::prepare_within(&locked.config, locked.cache.path(), patience, &mut attended).unwrap();
    assert_eq!((&bytes(&tokens)[..], tokens.was_cached()), (&b"hello"[..], false));
    assert_eq!(attended.waits, [true, false]);
    drop(locked.lock);
}

/// T-12.
#[test]
fn what_gives_no_text_is_counted_by_reason_with_the_first_names() {
    let text = folder(&[
        ("a.txt", b"first"),
        ("b.bin", b"\xff\xfe\xfd"),
        ("c/d.bin", b"\0\0"),
        ("e.txt", b"second"),
        ("f.txt", b"third"),
    ]);
    std::os::unix::fs::symlink("a.txt", text.path().join("link")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(text.path().join("socket")).unwrap();
    let cache = tempfile::tempdir().unwrap();
    let left_out = |config: &SourceConfig| {
        let tokens = prepare(config, cache.path(), &mut |_: u64| {}).unwrap();
        let in_words = |l: &LeftOut| format!("{} {} {} {}", l.num_files, l.reason.words(), l.bytes, l.first.join(","));
        (tokens.left_out().iter().map(in_words).collect::<Vec<_>>(), tokens.was_cached())
    };
    let all = config(text.path(), &[]);
    let expected = [
        "2 not UTF-8 text 5 b.bin,c/d.bin",
        "1 links, which are not followed 0 link",
        "1 neither a file nor a folder 0 socket",
    ];
    // Also where the file is found in the cache.
    for is_cached in [false, true] {
        let (found, was_cached) = left_out(&all);
        assert_eq!((found.as_slice(), was_cached), (expected.map(String::from).as_slice(), is_cached));
    }
    let (found, _) = left_out(&config(text.path(), &["txt"]));
    assert_eq!(found[0], "2 another ending than data.extensions 5 b.bin,c/d.bin");
    // "first", a newline and one byte of the second.
    let (found, _) = left_out(&SourceConfig { max_bytes: 7, ..config(text.path(), &["txt"]) });
    assert_eq!(found[1], "2 beyond data.max_bytes 10 e.txt,f.txt");
    let one = SourceConfig { max_bytes: 2, ..config(&text.path().join("a.txt"), &[]) };
    let (found, _) = left_out(&one);
    let root = text.path().canonicalize().unwrap();
    assert_eq!(found, [format!("1 beyond data.max_bytes 3 {}", root.join("a.txt").display())]);
}

#[test]
fn endings_that_contradict_the_one_file_that_is_named_are_refused() {
    let text = folder(&[("a.txt", b"first")]);
    let one = text.path().join("a.txt");
    check_text(&config(&one, &["txt"]), b"first");
    check_error(&config(&one, &["rs", "md"]), &["a.txt", ".rs or .md", "leave data.extensions out"]);
}

#[test]
fn what_a_maker_that_died_has_left_does_no_harm() {
    let text = folder(&[("a.rs", b"hello")]);
    let cache = tempfile::tempdir().unwrap();
    let config = config(text.path(), &["rs"]);
    let key = Listing::of(&config).unwrap().key().to_hex();
    fs::write(cache.path().join(format!("{key}.partial")), [1; 500]).unwrap();
    assert_eq!(bytes(&prepare_counted(&config, cache.path()).0), b"hello");
    assert!(!cache.path().join(format!("{key}.partial")).exists());
}

#[test]
fn sources_without_text_are_refused() {
    let text = folder(&[("empty.rs", b"")]);
    check_error(&config(&text.path().join("none"), &[]), &["none", "No such file", "data.path names"]);
    check_error(&config(&text.path().join("empty.rs"), &[]), &["the file is empty"]);
    check_error(&config(text.path(), &["rs"]), &["has anything in it"]);
}

/// Also root cannot read a file that is gone, or of which a part is gone.
#[test]
fn a_file_that_cannot_be_read_is_named_and_not_left_out() {
    let text = folder(&[("a.rs", b"first"), ("b.rs", b"second"), ("c.rs", b"third")]);
    let listing = Listing::of(&config(text.path(), &["rs"])).unwrap();
    let gone = text.path().canonicalize().unwrap().join("b.rs");
    fs::write(&gone, b"sec").unwrap();
    let error = listing.read(|_| Ok(())).unwrap_err();
    assert!(matches!(&error, DataError::Changed { path, expected: 6, found: 3 } if path == &gone), "{error}");
    fs::remove_file(&gone).unwrap();
    let error = listing.read(|_| Ok(())).unwrap_err();
    assert!(matches!(&error, DataError::Read { path, .. } if path == &gone), "{error}");
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let text = folder(&[("a.rs", b"hello")]);
    let cache = text.path().join("a.rs");
    let error = prepare(&config(text.path(), &["rs"]), &cache, &mut |_: u64| {}).map(|_| ()).unwrap_err();
    assert!(matches!(&error, DataError::Lock { path, .. } if path.starts_with(&cache)), "{error}");
}

/// A job with one layer, and samples of `seq` tokens; `data`: keys of `[data]`.
fn spec(seq: usize, data: &str) -> JobSpec {
    let toml = format!("steps = 5\nbatch.global = 4\neval.micro_batches = 0\nmodel.seq = {seq}\n[data]\n{data}");
    job::parse(&toml).unwrap_or_else(|e| panic!("{toml}: {e}"))
}

/// A text of the bytes 0, 1, 2, ... so that a token is its position.
fn dataset(len: u8, seq: usize, stride: usize, validation: f64) -> Result<Dataset, DataError> {
    let text = folder(&[("text", &(0..len).collect::<Vec<u8>>())]);
    let tokens = prepared(&config(&text.path().join("text"), &[])).unwrap();
    Dataset::new(Arc::new(tokens), &spec(seq, &format!("path = 'x'\nstride = {stride}\nvalidation = {validation:?}")))
}

/// Against the definition: all starts at multiples of the stride from which seq + 1 tokens lie within the part.
#[test]
fn samples_are_cut_by_stride_and_never_leave_their_part() {
    for (len, seq, stride, validation) in
        [(100, 8, 8, 0.0), (100, 8, 8, 0.25), (100, 8, 3, 0.25), (100, 8, 20, 0.5), (9, 8, 1, 0.0), (18, 8, 5, 0.5)]
    {
        let dataset = dataset(len, seq, stride, validation).unwrap();
        let border = u32::from(len) - (f64::from(len) * validation).floor() as u32;
        let parts = [(0..border, dataset.num_train()), (border..u32::from(len), dataset.num_validation())];
        for (is_validation, (part, num_samples)) in [false, true].into_iter().zip(parts) {
            let starts: Vec<u32> = part.clone().step_by(stride).filter(|s| s + (seq as u32) < part.end).collect();
            assert_eq!(num_samples, starts.len() as u64, "{len} {seq} {stride} {validation}");
            for (id, start) in starts.into_iter().enumerate() {
                let mut batch = Batch::new(&spec(seq, "path = 'x'"));
                if is_validation {
                    dataset.validation_sample(id as u64, 0, &mut batch);
                } else {
                    dataset.train_sample(id as u64, 0, &mut batch);
                }
                let (inputs, targets) = (&batch.inputs[..seq], &batch.targets[..seq]);
                assert!(inputs.iter().copied().eq(start..start + seq as u32), "{inputs:?} of {id}");
                assert!(targets.iter().copied().eq(start + 1..start + 1 + seq as u32), "{targets:?} of {id}");
            }
        }
    }
}

#[test]
fn too_little_text_is_refused() {
    let error = |len, validation| dataset(len, 8, 8, validation).map(|_| ()).unwrap_err().to_string();
    let train = error(8, 0.0);
    assert!(train.contains("too little text for training: 8 tokens") && train.contains("at least 9"), "{train}");
    let validation = error(80, 0.1);
    assert!(
        validation.contains("for validation: 8 tokens") && validation.contains("raise data.validation"),
        "{validation}"
    );
}

#[test]
#[should_panic(expected = "sample 3 of 3")]
fn a_sample_that_is_not_there_is_a_bug() {
    dataset(30, 8, 8, 0.0).unwrap().train_sample(3, 0, &mut Batch::new(&spec(8, "path = 'x'")));
}

#[test]
fn the_registry_is_looked_for_below_cargo_home_and_then_home() {
    let folder = folder(&[(".cargo/registry/src/index/a.rs", b"a"), ("cargo/registry/src/index/b.rs", b"b")]);
    let at = |name: &str| Some(folder.path().join(name).into_os_string());
    let found = |home: &str| Some(folder.path().join(home).join("registry/src"));
    assert_eq!(registry_sources(at("cargo"), at("")), found("cargo"));
    assert_eq!(registry_sources(None, at("")), found(".cargo"));
    assert_eq!(registry_sources(Some("".into()), at("")), found(".cargo"));
    assert_eq!(registry_sources(at("none"), at("")), None);
    assert_eq!(registry_sources(None, None), None);
}

/// A token file of these documents, of a vocabulary of so many tokens of the tokenizer 7, 7, ...; one of 0 is that of bytes.
fn token_file(documents: &[&[u32]], vocabulary: u32) -> Vec<u8> {
    match vocabulary {
        0 => file_of(documents, 256, BYTES_TOKENIZER),
        _ => file_of(documents, vocabulary, [7; 32]),
    }
}

fn sources_of(spec: &JobSpec) -> Result<Sources, DataError> {
    let tokens = spec.data.all_sources().iter().map(prepared).collect::<Result<Vec<_>, _>>()?;
    Sources::new(spec, &tokens.into_iter().map(Arc::new).collect::<Vec<_>>())
}

/// Documents and files follow each other without a gap, in the order of the files' names, whatever their width.
#[test]
fn token_files_of_each_width_are_one_stream() {
    for vocabulary in [0, 256, 300, 65_536, 65_537, 129_280] {
        let last = vocabulary.max(256) - 1;
        let files = [
            ("a.tokens", token_file(&[&[1, 2], &[], &[3]], vocabulary)),
            ("b.tokens", token_file(&[], vocabulary)),
            ("c.tokens", token_file(&[&[last, 0, 5, 6]], vocabulary)),
        ];
        let tokens = folder(&files.each_ref().map(|(name, bytes)| (*name, &bytes[..])));
        let found = prepared(&config(tokens.path(), &[])).unwrap();
        assert_eq!(read_all(&found), [1, 2, 3, last, 0, 5, 6], "vocabulary {vocabulary}");
        assert_eq!((found.len(), found.vocabulary(), found.are_bytes()), (7, last + 1, vocabulary == 0));
        for (at, len) in (0..7).flat_map(|at| (1..=7 - at).map(move |len| (at, len))) {
            let mut part = vec![99; len];
            found.read(at as u64, &mut part);
            assert_eq!(part, read_all(&found)[at..at + len], "{len} from {at}");
        }
        let size = size(&config(tokens.path(), &[])).unwrap();
        assert_eq!(size, Size { num_tokens: 7, num_documents: 4, vocabulary: last + 1, is_exact: true });
        let one = prepared(&config(&tokens.path().join("c.tokens"), &["tokens"])).unwrap();
        assert_eq!(read_all(&one), [last, 0, 5, 6]);
        assert_ne!(one.digest(), found.digest());
    }
}

#[test]
fn tokens_that_are_bytes_give_the_samples_of_their_text() {
    let text: Vec<u8> = (0..200).map(|n| (n * 7 % 251) as u8).collect();
    let ids: Vec<u32> = text.iter().map(|byte| u32::from(*byte)).collect();
    let file = token_file(&[&ids[..50], &ids[50..]], 0);
    let both = folder(&[("text", &text), ("t/0.tokens", &file)]);
    let samples = |name: &str| {
        let spec = spec(16, &format!("path = {:?}\nvalidation = 0.25", both.path().join(name)));
        let sources = sources_of(&spec).unwrap();
        let mut batch = Batch::new(&spec);
        let mut of = |n: u64| {
            let Drawn { source, sample } = sources.mixture().sample(n);
            sources.dataset(source).train_sample(sample, 0, &mut batch);
            (batch.inputs[..16].to_vec(), batch.targets[..16].to_vec())
        };
        (0..30).map(&mut of).collect::<Vec<_>>()
    };
    assert_eq!(samples("text"), samples("t"));
}

#[test]
fn token_files_that_are_not_whole_are_named() {
    let good = token_file(&[&[1, 2, 3], &[300, 4]], 400);
    let of = |bytes: &[u8]| folder(&[("good.tokens", &good), ("t.tokens", bytes)]);
    let check = |bytes: &[u8], expected: &str| {
        let tokens = of(bytes);
        check_error(&config(tokens.path(), &[]), &["t.tokens", expected, "toroid data run"]);
    };
    check(b"", "it has 0 bytes, the header of a token file has 168");
    check(&good[..100], "it has 100 bytes");
    check(&good[..good.len() - 1], "its header says 200");
    check(&[&good[..], b"!"].concat(), "its header says 200");
    for (at, expected) in [
        (0, "it does not begin with `TOROIDTK`"),
        (8, "it has version 2, 3 and 4 are read here"),
        (20, "the digest of its header is another"),
        (168, "the digest of its tokens is another"),
        (190, "the digest of its ends is another"),
    ] {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        check(&bytes, expected);
    }
    // By whom it was written is nothing that one can see: a token that no embedding has would be read beyond its end.
    let mut outside = file_of(&[&[1, 2, 300]], 301, [7; 32]);
    let mut header = toroid_tokens::Header::parse(&outside).unwrap();
    header.vocabulary = 300;
    outside[..toroid_tokens::HEADER_BYTES].copy_from_slice(&header.to_bytes());
    let alone = folder(&[("t.tokens", &outside)]);
    check_error(&config(alone.path(), &[]), &["token 2 is 300, the vocabulary has 300"]);
    // Dialogues are no text: what users say in them would be trained on, too.
    let dialogues = toroid_tokens::dialogues_file_of(&[(&[1, 2], &[false, true])], 256, BYTES_TOKENIZER);
    let mixed = folder(&[("a.tokens", &good), ("b.tokens", &dialogues)]);
    check_error(&config(mixed.path(), &[]), &["it has dialogues, and text is wanted here", "supervised fine-tuning"]);
    // One of this process's own, of a text.
    let text = folder(&[("a.rs", &[b'x'; 100])]);
    let cache = tempfile::tempdir().unwrap();
    prepare(&config(text.path(), &[]), cache.path(), &mut |_: u64| {}).unwrap();
    check_error(&config(cache.path(), &[]), &["it has version 2, 3 and 4 are read here"]);
}

/// What was found right once is looked at again when it has changed.
#[test]
fn a_token_file_that_changes_is_gone_through_again() {
    let tokens = folder(&[("t.tokens", &token_file(&[&[1, 2, 3]], 400))]);
    let mut advanced = 0;
    let mut open = || {
        prepare(&config(tokens.path(), &[]), Path::new("/nowhere"), &mut |bytes: u64| advanced = bytes)
            .map(|tokens| (tokens.digest(), std::mem::take(&mut advanced)))
    };
    let (digest, first) = open().unwrap();
    assert_eq!((first, open().unwrap()), (6, (digest, 0)));
    let mut bytes = token_file(&[&[1, 2, 3]], 400);
    bytes[HEADER_BYTES + 32] ^= 1;
    fs::remove_file(tokens.path().join("t.tokens")).unwrap();
    fs::write(tokens.path().join("t.tokens"), bytes).unwrap();
    assert!(matches!(open(), Err(DataError::TokenFile { .. })));
}

#[test]
fn what_does_not_fit_together_is_refused_with_both_sides() {
    let (of_seven, bytes) = (token_file(&[&[1; 40]], 400), token_file(&[&[1; 40]], 0));
    let more =
        folder(&[("a/a.tokens", &of_seven), ("a/b.tokens", &bytes), ("b/a.tokens", &of_seven), ("t/t", &[b'x'; 40])]);
    let found = prepared(&config(&more.path().join("a"), &[])).map(|_| ()).unwrap_err().to_string();
    assert!(found.contains("b.tokens has tokens of bytes (vocabulary 256)"), "{found}");
    assert!(found.contains("a.tokens of 0707070707070707 (vocabulary 400)"), "{found}");
    // Over sources: token files and text.
    let source = |name: &str| format!("[[data.source]]\nname = '{name}'\npath = {:?}\n", more.path().join(name));
    let error =
        sources_of(&spec(8, &format!("validation = 0.0\n{}{}", source("b"), source("t")))).map(|_| ()).unwrap_err();
    assert!(matches!(&error, DataError::Tokenizers { found, .. } if found.contains("bytes")), "{error}");
    // The model has no row for some of the tokens.
    let toml = format!(
        "steps = 5\nmodel = {{ seq = 8, vocab = 256 }}\ndata = {{ path = {:?}, validation = 0.0 }}",
        more.path().join("b")
    );
    let error = sources_of(&job::parse(&toml).unwrap()).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("below 400, and model.vocab is 256; set model.vocab to 400 or more"), "{error}");
    let limited = SourceConfig { max_bytes: 7, ..config(&more.path().join("b"), &[]) };
    check_error(&limited, &["max_bytes = 7 is for text"]);
    check_error(&config(&more.path().join("t"), &["tokens"]), &["no file in it ends with .tokens"]);
    let empty = folder(&[("a.tokens", &token_file(&[&[], &[]], 400))]);
    check_error(&config(empty.path(), &[]), &["its token files have no tokens"]);
}

/// T-12.
#[test]
fn what_lies_beside_token_files_is_counted() {
    let tokens =
        folder(&[("a.tokens", &token_file(&[&[1; 40]], 400)), ("tokenizer.json", b"{}"), ("deep/b.tokens", b"x")]);
    std::os::unix::fs::symlink("a.tokens", tokens.path().join("link.tokens")).unwrap();
    let found = prepared(&config(tokens.path(), &[])).unwrap();
    let in_words = |l: &LeftOut| format!("{} {} {}", l.num_files, l.reason.words(), l.first.join(","));
    let found: Vec<String> = found.left_out().iter().map(in_words).collect();
    assert_eq!(
        found,
        ["1 links, which are not followed link.tokens", "2 no token files, beside some deep,tokenizer.json"]
    );
    // Where endings are asked for, it is text.
    let text = folder(&[("a.tokens", &token_file(&[&[1; 40]], 400)), ("a.txt", b"some text")]);
    check_text(&config(text.path(), &["txt"]), b"some text");
}

#[test]
fn sources_are_mixed_by_weights_sizes_or_temperature() {
    let text = |len: usize| vec![b'x'; len];
    let data = folder(&[("a", &text(8 * 64 + 1)), ("b", &text(8 * 16 + 1))]);
    let source = |name: &str, more: &str| {
        format!("[[data.source]]\nname = '{name}'\npath = {:?}\n{more}\n", data.path().join(name))
    };
    let sources = |head: &str, a: &str, b: &str| {
        sources_of(&spec(8, &format!("validation = 0.0\n{head}\n{}{}", source("a", a), source("b", b))))
    };
    let given = |found: &Sources| found.mixture().given(1000);
    let by_size = sources("", "", "").unwrap();
    assert_eq!((given(&by_size), by_size.num_train()), (vec![800, 200], 80));
    assert_eq!(given(&sources("", "weight = 1.0", "weight = 3.0").unwrap()), [250, 750]);
    assert_eq!(given(&sources("temperature = 2.0", "", "").unwrap()), [667, 333]);
    // Shares and limits are of the digest: workers that have others take other samples.
    let digests = [
        by_size.digest(),
        sources("temperature = 2.0", "", "").unwrap().digest(),
        sources("", "max_epochs = 5.0", "").unwrap().digest(),
    ];
    assert!(digests[0] != digests[1] && digests[0] != digests[2], "{digests:?}");
    // The job takes 20 samples; `b` gives its share of the first 15, and `a` what is left.
    let limited = sources("", "", "max_epochs = 0.1875").unwrap();
    assert_eq!((limited.mixture().ends().len(), given(&limited)[1]), (1, 3));
    let error = sources("", "max_epochs = 0.1", "max_epochs = 0.1").map(|_| ()).unwrap_err().to_string();
    let expected = "the sources have 7 samples in all with their max_epochs, and the job takes 20 (5 steps of 4): a has 64 samples a pass and gives at most 6";
    assert!(error.contains(expected), "{error}");
}
