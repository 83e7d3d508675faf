"""Reads what a runtime is to run: its config.json and the bundle that it names."""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from runtimes.process import masking
from runtimes.process.connectors.base import ConfigError
from runtimes.protocol import BundleContent, RuntimeConfig, decode, digest_of


@dataclass(frozen=True, slots=True)
class Loaded:
    config: RuntimeConfig
    bundle: BundleContent


def load(path: Path) -> Loaded:
    """The configuration and its verified bundle.

    Raises:
        ConfigError: naming the file, the field and the remedy.
    """
    try:
        config = decode(RuntimeConfig, path.read_bytes())
    except OSError as error:
        raise ConfigError(f"the configuration {path} cannot be read: {error.strerror}") from error
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise ConfigError(f"the configuration {path} is not valid: {error}") from error
    try:
        data = Path(config.bundle).read_bytes()
    except OSError as error:
        raise ConfigError(f"the bundle {config.bundle} cannot be read: {error.strerror}; deploy this runtime again") from error
    if digest_of(data) != config.digest:
        raise ConfigError(f"the bundle {config.bundle} is not the one that was deployed: its SHA-256 differs; deploy this runtime again")
    try:
        bundle = decode(BundleContent, data)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise ConfigError(f"the bundle {config.bundle} is not valid: {error}") from error
    masking.hide(bundle.secrets)
    _check(config, bundle)
    return Loaded(config, bundle)


def _check(config: RuntimeConfig, bundle: BundleContent) -> None:
    known = {group.id for group in bundle.groups}
    for flow in bundle.flows:
        if flow.group is not None and flow.group not in known:
            raise ConfigError(f"flow {flow.name}: group {flow.group} is not in the bundle; make a new release")
    if len({flow.id for flow in bundle.flows}) != len(bundle.flows):
        raise ConfigError("two flows of the bundle have the same id; make a new release")
    timing = config.timing
    if not 0 < timing.guard < timing.ttl or timing.renewal <= 0 or timing.renewal >= timing.ttl - timing.guard:
        raise ConfigError(
            f"timing: renewal {timing.renewal:g} s must be below ttl - guard = {timing.ttl - timing.guard:g} s, and guard between 0 and ttl"
        )
