"""Renders the templates of chat/tests by transformers' own code, that is by jinja2, and compares with chat/tests/golden.json.

With --record the file is written. Each row is a template and a chat, with and without the generation prompt: the text and the ranges of it
(in UTF-8 bytes) that are within `{% generation %}`; or `null` where jinja2 raises an error.
"""

import argparse
import datetime
import json
import pathlib

import jinja2
import transformers
from transformers.utils import chat_template_utils

FOLDER = pathlib.Path(__file__).parent.parent / "chat/tests"


def render(template, chat, tools, variables, prompt):
    compiled = chat_template_utils._compile_jinja_template(template)
    try:
        text, ranges = chat_template_utils._render_with_assistant_indices(
            compiled, chat["messages"], tools if chat.get("tools") else None, None, prompt, **variables
        )
    except (jinja2.TemplateError, TypeError, IndexError) as error:
        return None, str(error)
    in_bytes = lambda at: len(text[:at].encode())
    return {"text": text, "trained": [[in_bytes(a), in_bytes(b)] for a, b in ranges if a < b]}, None


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    given = json.loads((FOLDER / "chats.json").read_text())

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(*given["now"])

    chat_template_utils.datetime = Clock
    rows = {}
    for path in sorted((FOLDER / "templates").glob("*.jinja")):
        for name, chat in given["chats"].items():
            for prompt in [False, True]:
                found, error = render(path.read_text(), chat, given["tools"], given["variables"], prompt)
                rows[f"{path.stem}/{name}/{'prompt' if prompt else 'whole'}"] = found
                if error:
                    print(f"{path.stem}/{name}: {error}")
    text = json.dumps(rows, ensure_ascii=False, indent=1) + "\n"
    golden = FOLDER / "golden.json"
    if args.record:
        golden.write_text(text)
    assert golden.read_text() == text, f"{golden} is not what jinja2 {jinja2.__version__} makes of the templates"
    print(f"{len(rows)} texts by transformers {transformers.__version__} and jinja2 {jinja2.__version__}")


main()
