"""What a call raises, and with which words."""

import re
from collections.abc import Callable
from typing import Any, TypeAlias

Raised: TypeAlias = tuple[type[BaseException] | type[None], str]


def error_of(call: Callable[[], Any]) -> Raised:
    """The type and the message that `call` raises; (NoneType, "") if it does not."""
    try:
        call()
    except Exception as error:
        return type(error), str(error)
    return type(None), ""


def expect(error: Raised, kind: type[BaseException], *patterns: str) -> None:
    """`error` has the type `kind`, exactly, and its message has every pattern."""
    assert error[0] is kind, error
    for pattern in patterns:
        assert re.search(pattern, error[1]), (pattern, error[1])
