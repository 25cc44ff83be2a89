"""Options of the backend: `torch.compile(..., options={...})` and BI_COMPILE_* environment variables."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from bi_compile import inductor
from bi_compile.errors import OptionError

_ON_UNSUPPORTED = ("error", "warn", "ignore")
_DROPOUT = ("refuse", "per_sample")
_SWITCH = {True: "bi_compile_dump", "1": "bi_compile_dump", False: None, "0": None}


@dataclass(frozen=True)
class Options:
    """How one compilation behaves.

    on_unsupported: what to do with an op that has no batch-invariant lowering: "error" refuses to compile,
        "warn" leaves the op as stock PyTorch has it and says so, "ignore" leaves it and is silent.
    dump: folder into which the graphs and the report of each compilation are written; True, or "1" in the
        environment, is the folder "bi_compile_dump".
    dropout: "refuse", or "per_sample" for noise that depends on PyTorch's generator and the sample's bits,
        neither on its place in the batch nor on the other samples; equal samples lose the same elements.
    inductor: options passed through to Inductor.
    """

    on_unsupported: str = "error"
    dump: str | None = None
    dropout: str = "refuse"
    inductor: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, given: Mapping[str, Any] | None = None) -> "Options":
        """Options from the dict a user gave to torch.compile, over BI_COMPILE_* variables, over defaults.

        Raises OptionError for an unknown key or value and for Inductor options that break the promise.
        """
        given = dict(given or {})
        own = {f.name for f in fields(cls)} - {"inductor"}
        values: dict[str, Any] = {}
        for name in sorted(own):
            variable = f"BI_COMPILE_{name.upper()}"
            if name in given:
                values[name] = given.pop(name)
            elif os.environ.get(variable):
                values[name] = os.environ[variable]
        if values.get("on_unsupported", "error") not in _ON_UNSUPPORTED:
            raise OptionError.bad_value("on_unsupported", values["on_unsupported"], _ON_UNSUPPORTED)
        if values.get("dropout", "refuse") not in _DROPOUT:
            raise OptionError.bad_value("dropout", values["dropout"], _DROPOUT)
        if not isinstance(values.get("dump"), str | os.PathLike | bool | None):
            raise OptionError.bad_value("dump", values["dump"], ["a folder name"])
        values["dump"] = _SWITCH.get(values.get("dump"), values.get("dump"))
        for key, value in given.items():
            if not inductor.is_option(key):
                raise OptionError.unknown_key(key, own)
            if why := inductor.breaks_promise(key, value):
                raise OptionError.breaks_promise(key, value, why)
        return cls(**values, inductor=given)
