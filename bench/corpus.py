"""The text that the comparisons train on: the same for Toroid and for its peers."""
import os, pathlib, sys


def corpus(path, size=16 << 20):
    """The Rust sources in cargo's registry folder, sorted by path, cut to `size` bytes."""
    home = pathlib.Path(os.environ.get("CARGO_HOME", pathlib.Path.home() / ".cargo"))
    text = bytearray()
    for file in sorted((home / "registry" / "src").rglob("*.rs")):
        text += file.read_bytes()
        if len(text) >= size:
            break
    if not text:
        sys.exit(f"no Rust sources under {home}/registry/src; build Toroid first, or set CARGO_HOME")
    path.write_bytes(text[:size])
