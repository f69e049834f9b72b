//! The behaviour of token files and data sets, through their public interface.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use toroid_torus::job::{DataConfig, SampleOrder};

use super::source::Listing;
use super::tokens::HEADER_BYTES;
use super::*;

fn config(path: &Path, extensions: &[&str]) -> DataConfig {
    DataConfig {
        path: path.into(),
        extensions: extensions.iter().map(|e| e.to_string()).collect(),
        max_bytes: 1 << 40,
        order: SampleOrder::Sequential,
        stride: 4,
        validation: 0.0,
    }
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

fn prepare(config: &DataConfig) -> Result<TokenFile, DataError> {
    let cache = tempfile::tempdir().unwrap();
    TokenFile::prepare(config, cache.path(), &mut |_: u64| {})
}

fn check_text(config: &DataConfig, expected: &[u8]) {
    let tokens = prepare(config).unwrap();
    assert_eq!(String::from_utf8_lossy(tokens.tokens()), String::from_utf8_lossy(expected));
    assert_eq!(tokens.len(), expected.len() as u64);
    assert_eq!(tokens.digest(), *blake3::hash(expected).as_bytes());
}

fn check_error(config: &DataConfig, expected: &[&str]) {
    let error = prepare(config).map(|t| t.source_summary()).unwrap_err().to_string();
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
    let digest = |f: &tempfile::TempDir| prepare(&config(f.path(), &["rs"])).unwrap().digest();
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
        prepare(&config(&text.path().join("a.bin"), &[])).unwrap().source_summary().starts_with("3 bytes of text in ")
    );
}

#[test]
fn text_ends_at_max_bytes_exactly() {
    let text = folder(&[("a", b"123"), ("b", b"456"), ("c", b"789")]);
    let all = b"123\n456\n789";
    for max in 1..=all.len() + 1 {
        let config = DataConfig { max_bytes: max as u64, ..config(text.path(), &[]) };
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
    let summary = |extensions| prepare(&config(text.path(), extensions)).unwrap().source_summary();
    assert_eq!(
        summary(&["rs"]),
        format!("2 files, 123.5 kB of .rs text under {}", root.display()).replace("123.5 kB", "0.1 MB")
    );
    assert_eq!(summary(&["md"]), format!("1 file, 1 bytes of .md text under {}", root.display()));
}

/// Counts how often `prepare` makes the file rather than find it.
fn prepare_counted(config: &DataConfig, cache: &Path) -> (TokenFile, usize) {
    let mut last = None;
    let tokens = TokenFile::prepare(config, cache, &mut |bytes: u64| last = Some(bytes)).unwrap();
    assert!(last.is_none_or(|last| last == tokens.len()), "progress ended at {last:?} of {}", tokens.len());
    let was_made = !tokens.was_cached();
    (tokens, usize::from(was_made))
}

#[test]
fn a_token_file_is_made_once_and_again_when_its_source_changes() {
    let text = folder(&[("a.rs", b"hello")]);
    let cache = tempfile::tempdir().unwrap();
    let cache = cache.path().join("not/yet/there");
    let rust = config(text.path(), &["rs"]);
    assert_eq!(prepare_counted(&rust, &cache).1, 1);
    assert_eq!(prepare_counted(&rust, &cache).1, 0);
    // The order of samples and the share held out are not of the tokens.
    let other = DataConfig { order: SampleOrder::Shuffled, stride: 9, validation: 0.5, ..rust.clone() };
    assert_eq!(prepare_counted(&other, &cache).1, 0);
    assert_eq!(prepare_counted(&DataConfig { max_bytes: 2, ..rust.clone() }, &cache).1, 1);
    assert_eq!(prepare_counted(&config(text.path(), &["rs", "md"]), &cache).1, 1);

    fs::write(text.path().join("a.rs"), "world!").unwrap();
    let (tokens, made) = prepare_counted(&rust, &cache);
    assert_eq!((tokens.tokens(), made), (&b"world!"[..], 1));
    fs::write(text.path().join("b.rs"), "new").unwrap();
    assert_eq!(prepare_counted(&rust, &cache).0.tokens(), b"world!\nnew");
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
            let tokens = TokenFile::prepare(&config, cache.path(), &mut |_: u64| {}).unwrap();
            assert_eq!(tokens.tokens(), [b'x'; 100_000]);
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
    let config = DataConfig { max_bytes: 4, ..config(text.path(), &["rs"]) };
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
    config: DataConfig,
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
    let result = TokenFile::prepare_within(&locked.config, locked.cache.path(), LONG, &mut attended);
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
    let tokens = TokenFile::prepare_within(&locked.config, locked.cache.path(), LONG, &mut other).unwrap();
    assert_eq!((tokens.tokens(), tokens.was_cached()), (&b"hello"[..], false));
    // Bytes of the text follow once the file is made here.
    assert_eq!(other.seen[..3], [1, 2, 3]);
}

#[test]
fn who_has_the_lock_and_does_nothing_is_not_waited_for() {
    let locked = locked();
    let mut attended = Attended::default();
    let patience = Duration::from_millis(20);
    let tokens = TokenFile::prepare_within(&locked.config, locked.cache.path(), patience, &mut attended).unwrap();
    assert_eq!((tokens.tokens(), tokens.was_cached()), (&b"hello"[..], false));
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
    let left_out = |config: &DataConfig| {
        let tokens = TokenFile::prepare(config, cache.path(), &mut |_: u64| {}).unwrap();
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
    let (found, _) = left_out(&DataConfig { max_bytes: 7, ..config(text.path(), &["txt"]) });
    assert_eq!(found[1], "2 beyond data.max_bytes 10 e.txt,f.txt");
    let one = DataConfig { max_bytes: 2, ..config(&text.path().join("a.txt"), &[]) };
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
    assert_eq!(prepare_counted(&config, cache.path()).0.tokens(), b"hello");
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
    let error = TokenFile::prepare(&config(text.path(), &["rs"]), &cache, &mut |_: u64| {}).map(|_| ()).unwrap_err();
    assert!(matches!(&error, DataError::Lock { path, .. } if path.starts_with(&cache)), "{error}");
}

/// A text of the bytes 0, 1, 2, ... so that a token is its position.
fn dataset(len: u8, seq: usize, stride: usize, validation: f64) -> Result<Dataset, DataError> {
    let text = folder(&[("text", &(0..len).collect::<Vec<u8>>())]);
    let config = DataConfig { stride, validation, ..config(&text.path().join("text"), &[]) };
    Dataset::new(Arc::new(prepare(&config).unwrap()), seq, &config)
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
                let (mut inputs, mut targets) = (vec![999; seq], vec![999; seq]);
                if is_validation {
                    dataset.validation_sample(id as u64, &mut inputs, &mut targets);
                } else {
                    dataset.train_sample(id as u64, &mut inputs, &mut targets);
                }
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
    dataset(30, 8, 8, 0.0).unwrap().train_sample(3, &mut [0; 8], &mut [0; 8]);
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
