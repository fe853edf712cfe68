"""`bertxfer info`: versions, devices, and which implementation each op uses."""

from __future__ import annotations

import argparse
import json
from typing import Any

from .. import __version__
from ..errors import user_input


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser("info", help="versions, devices, and which implementation each op uses")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> None:
    """Print the environment, as text or JSON."""
    with user_input():  # the operators read the environment when they are imported
        from ..evaluation.environment import environment

    facts = environment(__version__)
    if args.json:
        print(json.dumps(facts, indent=2, default=str))
        return
    for section in ("versions", "devices", "build"):
        print(section)
        for key, value in facts[section].items():
            print(f"  {key}: {value}")
    print("ops")
    for op, devices in facts["ops"].items():
        for device, choice in devices.items():
            reasons = "; ".join(f"{name}: {why}" for name, why in choice["reasons"].items())
            print(
                f"  {op} on {device}: {choice['implementation']}" + (f" (not {reasons})" if reasons else "")
            )
