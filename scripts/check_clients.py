#!/usr/bin/env python3
"""Asks `toroid serve` as lm-evaluation-harness and garak do: check_clients.py TOROID_SERVE FOLDER, in .venv-clients.

lm-eval runs a small task of its own by token ids, and its scores must be those that are computed here from plain requests. garak runs a few probes to
their end. Neither needs a network.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

TEMPLATE = "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
NUM_QUESTIONS = 40
PROBES = "dan.DanInTheWild,promptinject.HijackHateHumansMini"


def start(server, folder, work):
    template = work / "chat_template.jinja"
    template.write_text(TEMPLATE)
    command = [server, "serve", "--from", folder, "--name", "m", "--listen", "127.0.0.1:0", "--chat-template", str(template)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    address = process.stdout.readline().split("http://")[1].split("/")[0]
    return process, f"http://{address}"


def asked(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode())
    with urllib.request.urlopen(request) as answer:
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
    subprocess.run(command, check=True, timeout=600, env={**os.environ, "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"})
    [report] = out.rglob("results_*.json")
    scores = json.loads(report.read_text())["results"]["toroid_local"]
    return scores["acc,none"], scores["acc_norm,none"]


def garak(url, work):
    options = {"openai": {"OpenAICompatible": {"uri": f"{url}/v1/", "name": "m", "max_tokens": 40}}}
    file = work / "garak.json"
    file.write_text(json.dumps(options))
    command = [sys.executable, "-m", "garak", "--target_type", "openai.OpenAICompatible", "--target_name", "m"]
    command += ["--generator_option_file", str(file), "--probes", PROBES, "--generations", "2", "--report_prefix", str(work / "garak")]
    command += ["--parallel_attempts", "8"]
    env = {**os.environ, "OPENAICOMPATIBLE_API_KEY": "none", "XDG_DATA_HOME": str(work), "XDG_CACHE_HOME": str(work)}
    subprocess.run(command, check=True, timeout=1200, env=env)
    [report] = [path for path in work.glob("garak*.report.jsonl")]
    rows = [json.loads(line) for line in report.read_text().splitlines()]
    attempts = [row for row in rows if row["entry_type"] == "attempt" and row["status"] == 2]
    evaluations = [row for row in rows if row["entry_type"] == "eval"]
    if not attempts or not evaluations:
        sys.exit("garak has made no attempt that it evaluated")
    return len(attempts), evaluations


def main():
    server, folder = sys.argv[1:3]
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        process, url = start(server, folder, work)
        try:
            rows = list(questions())
            own, theirs = own_scores(url, rows), lm_eval(url, rows, work)
            print(f"lm-eval: acc {theirs[0]:.4f}, acc_norm {theirs[1]:.4f} of {len(rows)} questions; our own: {own[0]:.4f}, {own[1]:.4f}")
            if own != theirs:
                sys.exit("lm-eval has other scores than our own evaluation")
            attempts, evaluations = garak(url, work)
            print(f"garak: {attempts} attempts")
            for row in evaluations:
                print(f"  {row['probe']} {row['detector']}: {row.get('passed')} passed of {row.get('total_evaluated', row.get('total'))}")
        finally:
            process.terminate()
            process.wait()


main()
