"""Configurations as files: one YAML file or preset, checked by pydantic, refused in one sentence."""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from lsda_fast.errors import InputError

__all__ = ["Section", "read_config"]

Config = TypeVar("Config", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """Dates stay the text that they are."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - yaml's own is one of the class, too
        first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class Section(BaseModel):
    """A part of a configuration: frozen, and without keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def read_config(
    kind: type[Config], source: str | Path, room: str, presets: Sequence[str], overrides: Mapping[str, Any]
) -> Config:
    """A configuration from a preset of a room by name, or from a YAML file; overrides that are not None win.

    Raises
    ------
    InputError
        No such preset or file, or a value that is not accepted: one sentence, naming the key.
    """
    if str(source) in presets:
        text = resources.files(room).joinpath("presets", f"{source}.yaml").read_text()
    elif Path(source).is_file():
        try:
            text = Path(source).read_text()
        except UnicodeDecodeError as error:
            raise InputError(f"configuration {source}: not text; accepted is YAML") from error
    else:
        raise InputError(f"configuration {str(source)!r}: no such file; presets are {', '.join(presets)}")
    try:
        values = yaml.load(text, _Loader) or {}
        if not isinstance(values, dict):
            raise InputError(f"configuration {source}: a {type(values).__name__} came; accepted are keys with values")
        return kind.model_validate(values | {k: v for k, v in overrides.items() if v is not None})
    except yaml.YAMLError as error:
        raise InputError(f"configuration {source}: not YAML: {str(error).splitlines()[0]}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        text = f"{key}: {first['msg']} (got {first['input']!r})" if key else first["msg"]
        raise InputError(f"configuration {source}: {text}") from error
