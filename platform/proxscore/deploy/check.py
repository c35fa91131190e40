"""Check a cluster file before `ray up` reads it: one line names the key at fault and the nearest right one.

python -m proxscore.deploy.check cluster.yaml

Ray's own schema and validator decide. What they leave to the cloud (`provider`, and `node_config` of a kind of machine) is not
looked into. Exit status: 0 in order; 2 refused.
"""

from __future__ import annotations

import argparse
import copy
import difflib
import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
from ray import autoscaler
from ray.autoscaler._private.util import prepare_config, validate_config

from proxscore.config import ConfigError, masked
from proxscore.config.yaml_text import read_yaml

PLACEHOLDER = re.compile(r"[\w-]*CHANGE-ME")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="cluster file of `ray up`")
    options = parser.parse_args(arguments)
    logging.getLogger("ray").setLevel(logging.WARNING)
    try:
        check(options.file)
    except ConfigError as error:
        print(f"error: {masked(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    print(f"{options.file}: in order, as far as it can be told without asking the cloud")
    return 0


def check(path: Path) -> None:
    """Refuse what `ray up` would refuse, and values that are still to be changed.

    Raises:
        ConfigError: names the file, the key, and what would be right.
    """
    tree = read_yaml(path)
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: is no cluster file: it has no keys")
    if "apiVersion" in tree:
        raise ConfigError(f"{path}: is a Kubernetes manifest: `kubectl apply --dry-run=server -f {path}` checks it")
    schema = json.loads((Path(autoscaler.__file__).parent / "ray-schema.json").read_text())
    for error in jsonschema.Draft7Validator(schema).iter_errors(tree):
        if error.validator != "required":  # Ray adds defaults
            raise ConfigError(f"{path}: {_told(error)}")
    try:
        validate_config(prepare_config(copy.deepcopy(tree)))
    except jsonschema.ValidationError as error:
        raise ConfigError(f"{path}: {_told(error)}") from error
    except Exception as error:  # Ray raises whatever its defaults meet
        raise ConfigError(f"{path}: {str(error) or type(error).__name__}") from error
    if left := sorted({found for text in _texts(tree) for found in PLACEHOLDER.findall(text)}):
        raise ConfigError(f"{path}: still has {', '.join(left)}: put your own values there")


def _told(error: jsonschema.ValidationError) -> str:
    where = ".".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties" and "properties" in error.schema:
        known = list(error.schema["properties"])
        unknown = next(key for key in error.instance if key not in known)
        nearest = difflib.get_close_matches(str(unknown), known, n=1, cutoff=0.0)[0]
        return f"{where}{'.' if where else ''}{unknown} is no key of a cluster file; nearest: {nearest}"
    return f"{where or 'at the top'}: {error.message}"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, str):
        yield value


if __name__ == "__main__":
    sys.exit(main())
