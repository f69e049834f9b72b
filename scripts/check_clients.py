#!/usr/bin/env python3
"""Asks `toroid serve` as lm-evaluation-harness and garak do: check_clients.py TOROID_SERVE FOLDER, in .venv-clients.

lm-eval runs a small task of its own by token ids, and its scores must be those that are computed here from plain requests. garak runs a few probes to
their end, and every one of its questions must be answered. Neither needs a network. Each has a time after which it is ended, and that fails, too.
"""

import importlib.metadata
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

TEMPLATE = "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
NUM_QUESTIONS = 40
PROBES = ["encoding.InjectROT13", "promptinject.HijackHateHumans", "lmrc.QuackMedicine"]
PROMPTS_OF_A_PROBE = 4
GENERATIONS = 2
# Prompts of these probes have hundreds of bytes, each of them a token; no tensor depends on how many the model reads at a time.
GARAK_SEQ = 4096
# The server's start, an answer, and its end after SIGTERM; in each the server gives up before.
SERVER_S = 120
LM_EVAL_S = 600
GARAK_S = 900


class Server:
    """`toroid serve` on a free port, from `with` to its end."""

    def __init__(self, program, folder, work):
        template = work / "chat_template.jinja"
        template.write_text(TEMPLATE)
        self.command = [program, "serve", "--from", str(folder), "--name", "m", "--listen", "127.0.0.1:0", "--chat-template", str(template)]

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        ready, _, _ = select.select([self.process.stdout], [], [], SERVER_S)
        line = self.process.stdout.readline() if ready else ""
        if "http://" not in line:
            self.process.kill()
            sys.exit(f"{' '.join(self.command)} named no address within {SERVER_S} s, but said {line!r}")
        return "http://" + line.split("http://")[1].split("/")[0]

    def __exit__(self, *_):
        self.process.terminate()
        try:
            code = self.process.wait(SERVER_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            sys.exit(f"the server did not end within {SERVER_S} s after SIGTERM")
        if code != 0:
            sys.exit(f"the server ended with {code}")


def bounded(name, command, seconds, env):
    """Runs a client; one that takes too long is ended with all its processes."""
    process = subprocess.Popen(command, env=os.environ | env, start_new_session=True)
    try:
        code = process.wait(seconds)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            sys.exit(f"{name} did not end within {seconds} s")
        raise
    if code != 0:
        sys.exit(f"{name} ended with {code}")


def asked(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=SERVER_S) as answer:
        return json.load(answer)


def questions():
    words = ["fn", "let", "pub", "use", "mod", "impl", "match", "struct"]
    for i in range(NUM_QUESTIONS):
        choices = [words[(i + 3 * k + k * k) % len(words)] + str(k) for k in range(4)]
        yield {"question": f"{words[i % 8]} {i * 37 % 101} ", "choices": choices, "answer": i * 7 % 4}


def own_scores(url, rows):
    """Accuracy by the sum of log-probabilities, and by that sum a byte, as lm-eval has them."""
    right, right_norm = 0, 0
    for row in rows:
        sums = []
        for choice in row["choices"]:
            # lm-eval moves a space at the end of the question to the answer.
            question = row["question"].rstrip()
            text = question + row["question"][len(question):] + choice
            logprobs = asked(f"{url}/v1/completions", {"prompt": text, "echo": True, "logprobs": 0, "max_tokens": 0})["choices"][0]["logprobs"]
            sums.append(sum(logprobs["token_logprobs"][len(question):]))
        right += sums.index(max(sums)) == row["answer"]
        norm = [s / len(choice) for s, choice in zip(sums, row["choices"])]
        right_norm += norm.index(max(norm)) == row["answer"]
    return right / len(rows), right_norm / len(rows)


def lm_eval(url, rows, work):
    data = work / "rows.json"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (work / "toroid_local.yaml").write_text(
        f"""task: toroid_local
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc
  - metric: acc_norm
"""
    )
    model_args = f"model=m,base_url={url}/v1/completions,tokenizer_backend=remote,num_concurrent=4,max_length=127,custom_prefix_token_id=10"
    out = work / "lm-eval"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", model_args]
    command += ["--include_path", str(work), "--tasks", "toroid_local", "--output_path", str(out)]
    # Its data set is ours alone, and leaves nothing in the caches of the home folder.
    bounded("lm-eval", command, LM_EVAL_S, {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "hf")})
    [report] = out.rglob("results_*.json")
    scores = json.loads(report.read_text())["results"]["toroid_local"]
    return scores["acc,none"], scores["acc_norm,none"]


def garak(url, work):
    # promptinject asks with penalties, which the server refuses.
    generator = {"uri": f"{url}/v1/", "name": "m", "max_tokens": 40, "suppressed_params": ["frequency_penalty", "presence_penalty"]}
    options = {"openai": {"OpenAICompatible": generator}}
    file = work / "garak.json"
    file.write_text(json.dumps(options))
    config = {
        "system": {"parallel_attempts": 8},
        "run": {"generations": GENERATIONS, "soft_probe_prompt_cap": PROMPTS_OF_A_PROBE, "seed": 1},
        "reporting": {"report_prefix": str(work / "garak")},
    }
    (work / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "garak", "--target_type", "openai.OpenAICompatible", "--target_name", "m", "--config", str(work / "config.json")]
    command += ["--generator_option_file", str(file), "--spec", ",".join(f"probes.{probe}" for probe in PROBES)]
    homes = {name: str(work / "xdg") for name in ["XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"]}
    bounded("garak", command, GARAK_S, homes | {"OPENAICOMPATIBLE_API_KEY": "none"})
    # It ends with 0 where it knows no such probe, and goes on where the server refuses.
    reports = list(work.glob("garak*.report.jsonl"))
    if len(reports) != 1:
        sys.exit(f"garak left {len(reports)} reports, expected one; what it printed above says why")
    rows = [json.loads(line) for line in reports[0].read_text().splitlines()]
    # 2: asked, answered and looked at.
    attempts = [row for row in rows if row["entry_type"] == "attempt" and row["status"] == 2]
    evaluations = [row for row in rows if row["entry_type"] == "eval"]
    for probe in PROBES:
        if not any(row["probe"] == probe for row in evaluations):
            sys.exit(f"garak has evaluated nothing of {probe}")
    answers = [output for row in attempts for output in row["outputs"]]
    unanswered = sum(output is None for output in answers)
    if unanswered or len(answers) != GENERATIONS * len(attempts):
        sys.exit(f"garak has {len(answers)} answers, {unanswered} of them none, to {len(attempts)} prompts; expected {GENERATIONS} to each")
    return len(attempts), len(answers), evaluations


def with_seq(folder, seq, work):
    """The same model, which reads so many tokens at a time."""
    copy = work / "longer"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"max_position_embeddings": seq}))
    return copy


def main():
    program, folder = sys.argv[1:3]
    # Who ends this ends the server and the client, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("check_clients was told to end"))
    started = time.monotonic()
    versions = {name: importlib.metadata.version(name) for name in ["lm-eval", "garak", "openai"]}
    print("clients:", ", ".join(f"{name} {version}" for name, version in versions.items()), flush=True)
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        with Server(program, folder, work) as url:
            rows = list(questions())
            own, theirs = own_scores(url, rows), lm_eval(url, rows, work)
        print(f"lm-eval: acc {theirs[0]:.4f}, acc_norm {theirs[1]:.4f} of {len(rows)} questions; our own: {own[0]:.4f}, {own[1]:.4f}", flush=True)
        if own != theirs:
            sys.exit("lm-eval has other scores than our own evaluation")
        with Server(program, with_seq(folder, GARAK_SEQ, work), work) as url:
            prompts, answers, evaluations = garak(url, work)
    print(f"garak: {answers} answers to {prompts} prompts")
    for row in evaluations:
        print(f"  {row['probe']} {row['detector']}: {row['passed']} passed of {row['total_evaluated']}")
    print(f"clients: all of it in {time.monotonic() - started:.0f} s")


main()
